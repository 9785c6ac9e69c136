"""Training code: batched passes equal the adapter's, labels fit samples, gradients are right, checkpoints resume."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from omnicli.models.families.qwen2_5_omni import Qwen25Omni
from omnicli.train import pocket_clips as clips
from omnicli.train import pocket_data as data
from omnicli.train import pocket_model as arch
from omnicli.train import pocket_scorer, pocket_towers, speech
from omnicli.train.optim import MasterAdamW, load_checkpoint, save_checkpoint
from omnicli.train.pocket_batches import collate
from omnicli.train.pocket_pool import make_pool


@pytest.fixture(scope="module")
def model():
    return arch.build_model(1)


@pytest.fixture(scope="module")
def adapter(model):
    return Qwen25Omni(model, arch.build_tokenizer(), name="pocket")


@torch.no_grad()
def test_batched_picture_pass_equals_the_adapter(model, adapter):
    pairs = torch.randint(0, 256, (3, 2, arch.HEIGHT, arch.WIDTH, 3), dtype=torch.uint8)
    _, merged = arch.vision_forward(model.model.visual, arch.patch_rows(pairs))
    encoded = adapter.encode_video(pairs.flatten(0, 1))
    assert torch.allclose(merged.flatten(0, 1), encoded.features, atol=2e-5)


@torch.no_grad()
def test_batched_sound_pass_and_mel_equal_the_adapter(model, adapter):
    wave, _ = data.audio_stretch(np.random.default_rng(0), speech.TRAIN_VOICES[:1])
    raw = data.raw_log_mel(torch.from_numpy(wave)[None])
    mel = data.floor_log_mel(raw, raw.amax((1, 2), keepdim=True))[0]
    tokens = arch.audio_forward(model.model.audio_tower, mel.unflatten(1, (-1, 200)).transpose(0, 1)).flatten(0, 1)
    stream = adapter.audio_encoder(adapter.measure_log_mel_max([wave]))
    pieces = stream.feed(wave) + stream.finish()
    encoded = torch.cat([p.features for p in pieces])
    # The last frames differ: an extractor pads the end with zeros, the training mel mirrors it.
    assert encoded.shape == tokens.shape
    assert torch.allclose(tokens[:150], encoded[:150], atol=2e-4)


@torch.no_grad()
def test_batched_text_pass_equals_the_layer_loop(model, adapter):
    embeds = torch.randn(1, 30, arch.HIDDEN)
    position_ids = torch.arange(30).expand(3, 30)
    bias = torch.full((30, 30), float("-inf")).triu(1)[None, None]
    hidden, taps = arch.text_forward(model.model.language_model, embeds, position_ids[:, None], bias, (1,))
    x = embeds[0]
    for i in range(adapter.depth):
        x, _ = adapter.layer(i, x, adapter.rope(position_ids), None)
        if i == 1:
            assert torch.allclose(taps[0][0], x, atol=2e-5)
    assert torch.allclose(model.lm_head(hidden[0]), adapter.logits(x), atol=1e-4)


def test_picture_labels_fit_the_picture():
    rng = np.random.default_rng(3)
    captioned = 0
    for _ in range(30):
        pair, labels = data.frame_pair(rng, caption=0.7)
        assert pair.shape == (2, arch.HEIGHT, arch.WIDTH, 3) and pair.dtype == np.uint8
        on = labels.patch_digit != data.NO_DIGIT
        assert (labels.number[0] >= 0) == on.any()
        if on.any():
            captioned += 1
            places = labels.patch_place[on]
            assert np.array_equal(labels.number[places], labels.patch_digit[on])
    assert captioned > 10


def test_sound_labels_fit_the_sound():
    rng = np.random.default_rng(4)
    for _ in range(5):
        wave, labels = data.audio_stretch(rng, speech.TRAIN_VOICES[:2])
        assert len(wave) == 8 * speech.SAMPLE_RATE and np.abs(wave).max() <= 1
        assert (labels.digit[labels.centre > 0] != data.NO_DIGIT).all()
        assert (labels.speech[labels.digit != data.NO_DIGIT] == 1).all()


@pytest.fixture(scope="module")
def pool(model):
    half = arch.build_model(1).to(torch.bfloat16)
    return make_pool(half, 600, 60, 9, workers=0, voices=speech.TRAIN_VOICES[:1])


@pytest.mark.slow
def test_clips_hold_the_answer_and_stay_near_their_budget(pool):
    rng = np.random.default_rng(5)
    tasks = set()
    for _ in range(60):
        clip = clips.compose(pool, rng, budget=130)
        assert 0 < len(clip) < 300
        times = clip.column("time")
        assert times.max() < clip.end and times.min() >= 0
        windows = times // 50
        assert (np.diff(windows) >= 0).all(), "tokens must be in reading order"
        if clip.digits is not None:
            tasks.add("number")
            assert clip.answer == "".join(map(str, clip.digits))
            if clip.question == "What number is spoken?":
                places = clip.column("place")
                assert sorted(places[places < clips.NO_PLACE]) == list(range(6))
        elif clip.colour >= 0 and len(clip.answer) > 1:
            tasks.add("colour")
            assert clip.answer == data.COLOUR_NAMES[clip.colour]
    assert tasks == {"number", "colour"}


@pytest.mark.slow
def test_batches_have_the_positions_of_the_adapter(pool, adapter):
    rng = np.random.default_rng(6)
    tokenizer = arch.build_tokenizer()
    made = [clips.compose(pool, rng, budget=200) for _ in range(3)]
    batch = collate(made, rng, tokenizer.encode, 256)
    for i, clip in enumerate(made):
        prompt = adapter.prompt(clip.question, video=True, audio=True)
        n = prompt.before.numel()
        assert torch.equal(batch["ids"][i, :n], prompt.before)
        media = int(batch["is_media"][i].sum())
        after = prompt.after.numel()
        assert torch.equal(batch["ids"][i, n + media : n + media + after], prompt.after)
        origin = n - 1
        first = batch["position_ids"][:, i, n + media]
        assert (first == origin + clip.end).all(), "text goes on where a whole clip of this length ends"


def test_straight_through_gradient_is_that_of_the_relaxation():
    torch.manual_seed(0)
    score = torch.randn(12, dtype=torch.float64, requires_grad=True)
    noise, weight = torch.randn(12, dtype=torch.float64), torch.randn(12, dtype=torch.float64)

    def relaxed(s):
        return ((3 * torch.softmax(s + noise, 0)).clamp(max=1.0) * weight).sum()

    flags = pocket_scorer.straight_through_top_k(score, 3, noise)
    assert sorted(set(flags.detach().round(decimals=9).tolist())) == [0.0, 1.0] and flags.sum().round() == 3
    (flags * weight).sum().backward()
    assert score.grad is not None
    for i in range(12):
        step = torch.zeros(12, dtype=torch.float64)
        step[i] = 1e-6
        slope = float(relaxed(score.detach() + step) - relaxed(score.detach() - step)) / 2e-6
        assert abs(slope - float(score.grad[i])) < 1e-6


@pytest.mark.slow
def test_gradients_reach_all_four_projections(model, pool):
    tokenizer = arch.build_tokenizer()
    rng = np.random.default_rng(8)
    batch = collate([clips.compose(pool, rng, budget=150) for _ in range(4)], rng, tokenizer.encode, 256)
    scorer = pocket_scorer.Scorer()
    half = arch.build_model(1).to(torch.bfloat16).requires_grad_(False)
    loss, _ = pocket_scorer.scorer_loss(half, scorer, batch, 0.3)
    loss.backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in scorer.parameters())


@pytest.mark.slow
def test_a_tower_learns_and_resumes(tmp_path):
    model = arch.build_model(2).to(torch.bfloat16)
    heads = pocket_towers.AudioHeads().to(torch.bfloat16)
    tower = model.model.audio_tower
    source = data.Blocks(8, 1, speech.TRAIN_VOICES[:1])

    def stage(steps):
        return [("blocks", steps, source, 1e-3, lambda batch: pocket_towers.audio_loss(tower, heads, batch))]

    lines: list[str] = []
    pocket_towers.train_tower(tower, heads, stage(2), tmp_path, "sounds", workers=0, log=lines.append)
    saved = torch.load(tmp_path / "sounds.pt", weights_only=True)
    assert saved["done"] == {"blocks": 2}
    again = arch.build_model(5).to(torch.bfloat16).model.audio_tower
    heads_again = pocket_towers.AudioHeads().to(torch.bfloat16)
    both = torch.nn.ModuleDict({"tower": again, "heads": heads_again})
    state = load_checkpoint(tmp_path / "sounds.pt", both, MasterAdamW(both.named_parameters(), 1e-3))
    assert state["done"] == {"blocks": 2}
    assert torch.equal(again.conv1.weight, tower.conv1.weight)


def test_master_weights_keep_updates_that_bfloat16_would_lose(tmp_path):
    module = torch.nn.Linear(4, 4, bias=False).to(torch.bfloat16)
    torch.nn.init.ones_(module.weight)
    optimiser = MasterAdamW(module.named_parameters(), 1e-4, weight_decay=0.0)
    for _ in range(30):
        module.weight.grad = torch.ones_like(module.weight)
        optimiser.step(1e-4)
    assert float(optimiser.master[0][0, 0]) < 0.9975
    assert float(module.weight[0, 0].detach()) < 1.0
    save_checkpoint(tmp_path / "m.pt", module, optimiser, {"step": 30})
    assert not list(tmp_path.glob("*.tmp"))
