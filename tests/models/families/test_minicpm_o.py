"""MiniCPM-o against transformers' own modules and slow references, on tiny random weights in hub layout."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from omnicli.bench import needle_audio
from omnicli.compress.methods.omnisift import OmniSIFT
from omnicli.errors import ModelError
from omnicli.llm.decode import DecodeOptions, generate
from omnicli.llm.kv import KVCache
from omnicli.llm.prefill import prefill
from omnicli.models.components import minicpm_o_towers as towers
from omnicli.models.components import minicpm_o_weights as weights
from omnicli.models.loading import load_model
from omnicli.models.weights.dummy import unfilled_model
from omnicli.types import Modality
from tests.support import tiny, tiny_minicpm

BOTH = frozenset({"saliency", "keys"})
RATE = 16_000


@pytest.fixture(scope="module")
def omni():
    return tiny_minicpm.model()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("minicpm")
    return {"one": tiny_minicpm.build(root / "one"), "shards": tiny_minicpm.build(root / "shards", shards=True)}


def pixels(omni, frames):
    """Normalise frames (n, H, W, 3) to (n, 3, H, W), written out."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (omni.settings.mean, omni.settings.std))
    return (frames.permute(0, 3, 1, 2).float() / 255 - mean) / std


# ---- pictures ----


def reference_positions(rows, cols, width):
    """Sines and cosines of column and row, one number at a time."""
    out = torch.zeros(rows * cols, width)
    quarter = width // 4
    for p in range(rows * cols):
        for half, coordinate in enumerate((p % cols, p // cols)):
            for i in range(quarter):
                angle = coordinate / 10000 ** (i / quarter)
                out[p, half * 2 * quarter + i] = math.sin(angle)
                out[p, half * 2 * quarter + quarter + i] = math.cos(angle)
    return out


def reference_tokens(omni, hidden, rows, cols):
    """The resampler through `nn.MultiheadAttention`; tokens (n, 64, D) and attention (n, 64, patches)."""
    own = omni.parts.resampler
    value = own.ln_kv(own.kv_proj(hidden))
    key = value + reference_positions(rows, cols, value.shape[-1])
    query = own.ln_q(own.query).expand(len(hidden), -1, -1)
    mixed, attention = own.attn(query, key, value)
    return own.ln_post(mixed) @ own.proj, attention


@torch.no_grad()
@pytest.mark.parametrize("width", [64, 256])
def test_frames_of_the_native_size_equal_the_stock_tower(width):
    omni = tiny_minicpm.model(width=width)
    assert omni.parts.resampler.attn.num_heads == max(1, width // 128)
    frames = tiny.frames(3, 140, 140)
    hidden = omni.parts.vpm(pixels(omni, frames)).last_hidden_state
    expected, _ = reference_tokens(omni, hidden, 10, 10)
    got = omni.encode_video(frames)
    assert (got.groups, got.rows, got.cols) == (3, 8, 8)
    assert expected.std() > 0.1 and (expected[0] - expected[1]).abs().max() > 0.1
    assert (got.features.view(3, 64, -1) - expected).abs().max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize(("rows", "cols"), [(24, 43), (8, 12), (37, 28), (1, 5)])
def test_frames_of_any_shape_equal_the_stock_layers_behind_native_variable_positions(omni, rows, cols):
    from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionEmbeddings

    frames = tiny.frames(2, rows * 14, cols * 14)
    vpm = omni.parts.vpm
    native = Idefics2VisionEmbeddings(vpm.config)
    native.load_state_dict(vpm.embeddings.state_dict())
    hidden = native(pixels(omni, frames), torch.ones(2, rows, cols, dtype=torch.bool))
    hidden = vpm.post_layernorm(vpm.encoder(inputs_embeds=hidden).last_hidden_state)
    expected, _ = reference_tokens(omni, hidden, rows, cols)
    assert (omni.encode_video(frames).features.view(2, 64, -1) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("side", [10, 70])
def test_patches_take_the_learnt_position_at_their_share_of_the_way(side):
    for n in range(1, 101):
        got = towers.patch_positions(n, 1, side) // side
        exact = torch.tensor([i * side // n for i in range(n)])
        wrong = torch.nonzero(got != exact).flatten().tolist()
        assert all(i * side % n == 0 and abs(int(got[i] - exact[i])) == 1 for i in wrong)  # a border, rounded down
        assert len(wrong) <= 3
        assert torch.equal(towers.patch_positions(1, n, side), got)


def test_frames_do_not_see_each_other(omni):
    frames = tiny.frames(5, 112, 168)
    whole = omni.encode_video(frames, BOTH)
    alone = [omni.encode_video(frames[i : i + 1], BOTH) for i in range(5)]
    for name in ("features", "saliency", "keys"):
        assert (getattr(whole, name) - torch.cat([getattr(p, name) for p in alone])).abs().max() < 1e-5
    other = frames.clone()
    other[2] = 255 - other[2]
    changed = (omni.encode_video(other).features - whole.features).view(5, -1).abs().amax(1) > 1e-3
    assert changed.tolist() == [False, False, True, False, False]


@torch.no_grad()
def test_picture_saliency_is_that_of_the_patches_read(omni):
    frames, seen = tiny.frames(2, 112, 168), {}
    last = omni.parts.vpm.encoder.layers[-1]
    hook = last.self_attn.register_forward_pre_hook(lambda m, a, kw: seen.update(kw), with_kwargs=True)
    got = omni.encode_video(frames, BOTH)
    hook.remove()
    x, attn = seen["hidden_states"], last.self_attn
    query, key = (m(x).view(2, 96, 2, -1) for m in (attn.q_proj, attn.k_proj))
    maps = torch.softmax(torch.einsum("nqhd,nkhd->nhqk", query, key) * attn.scale, -1)
    received = maps.mean(1).sum(1)
    hidden = omni.parts.vpm.post_layernorm(last(_before_last(omni, frames), None))
    _, read = reference_tokens(omni, hidden, 8, 12)
    saliency = (read * received[:, None]).sum(-1)
    saliency = saliency / saliency.mean(1, keepdim=True)
    assert saliency.std() > 0.01
    assert (got.saliency.view(2, 64) - saliency).abs().max() < 1e-4
    assert (got.keys.view(2, 64, -1) - read @ key.mean(2)).abs().max() < 1e-4
    assert torch.allclose(got.saliency.view(2, -1).mean(1), torch.ones(2), atol=1e-5)


def _before_last(omni, frames):
    seen = {}
    layer = omni.parts.vpm.encoder.layers[-1]
    hook = layer.register_forward_pre_hook(lambda m, a: seen.update(x=a[0]))
    omni.encode_video(frames)
    hook.remove()
    return seen["x"]


def test_dropping_the_last_layer_is_read_from_the_settings(tmp_path):
    short = tiny_minicpm.build(tmp_path / "short", drop_vision_last_layer=True)
    assert not any(k.startswith("vpm.encoder.layers.2.") for k in load_file(short / "model.safetensors"))
    omni = load_model(short, "cpu")
    assert len(omni.parts.vpm.encoder.layers) == 2
    (tmp_path / "default").mkdir()
    config = tiny_minicpm.config()
    del config["drop_vision_last_layer"]
    (tmp_path / "default" / "config.json").write_text(json.dumps(config))
    assert weights.Settings.read("x", tmp_path / "default").vision.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (1280, 720, (336, 602)),
        (448, 448, (448, 448)),
        (640, 480, (392, 518)),
        (720, 1280, (602, 336)),
        (64, 36, (336, 602)),
        (4000, 100, (70, 2800)),
        (100, 9000, (4256, 42)),
    ],
)
def test_64_tokens_whatever_the_shape(omni, width, height, expected):
    size = omni.frame_size(width, height)
    assert size == expected
    assert abs(size[0] * size[1] / 448**2 - 1) < 0.12
    if max(size) < 1000:
        assert len(omni.encode_video(tiny.frames(1, *size)).features) == 64
    assert omni.frame_size(width, height, 100_000, max_video_tokens=10) == size


def test_limits_on_pixels_move_the_area(omni):
    assert omni.frame_size(1280, 720, max_pixels=50_176) == (168, 294)
    assert omni.frame_size(1280, 720, min_pixels=401_408) == (476, 840)
    assert omni.frame_size(1280, 720, min_pixels=100_352, max_pixels=200_704) == (336, 602)


# ---- sound ----


def block_causal(module, query, key, value, attention_mask, scaling, **kwargs):
    """An attention for the stock encoder: everything before, and the own second of 50 positions."""
    i = torch.arange(query.shape[2])
    mask = (i.view(-1, 1) // 50) >= (i // 50)
    weights_ = torch.softmax((query @ key.transpose(2, 3) * scaling).masked_fill(~mask, -torch.inf), -1)
    return (weights_ @ value).transpose(1, 2), None


@pytest.fixture
def stock_encoder(omni):
    from transformers import AttentionInterface
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    AttentionInterface.register("block_causal_for_test", block_causal)
    config = type(omni.settings.audio)(**omni.settings.audio.to_dict())
    config._attn_implementation = "block_causal_for_test"
    encoder = WhisperEncoder(config).eval()
    encoder.load_state_dict(omni.parts.apm.state_dict())
    return encoder


@torch.no_grad()
def reference_sound(omni, encoder, mel):
    projection = omni.parts.audio_projection_layer
    hidden = encoder(mel[None]).last_hidden_state
    hidden = projection.linear2(torch.relu(projection.linear1(hidden)))
    return nn.AvgPool1d(5, 5)(hidden.transpose(1, 2))[0].T


def feed_all(omni, samples, block=32000, capture=frozenset(), batch_s=30.0):
    stream = omni.audio_encoder(None, capture, batch_s=batch_s)
    pieces = [p for i in range(0, len(samples), block) for p in stream.feed(samples[i : i + block])]
    return pieces + stream.finish()


def joined(pieces):
    return torch.cat([p.features for p in pieces])


@torch.no_grad()
@pytest.mark.parametrize("seconds", [30.0, 12.0, 7.77, 0.5])
def test_a_piece_of_sound_equals_the_stock_extractor_and_encoder(omni, stock_encoder, seconds):
    from transformers import WhisperFeatureExtractor

    samples = tiny.sound(seconds)
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=30)
    stock = extractor(samples, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True)
    frames = int(stock.attention_mask.sum())
    mel = stock.input_features[0, :, :frames]
    expected = reference_sound(omni, stock_encoder, nn.functional.pad(mel, (0, 3000 - frames)))
    (piece,) = feed_all(omni, samples)
    count = ((frames - 1) // 2 + 1) // 5
    assert len(piece.features) == count and abs(count - 10 * seconds) <= 1
    if seconds == 30.0:
        assert torch.allclose(towers.piece_mel(samples, 80), mel, atol=1e-4)
    # The stock encoder only takes 30 seconds; what follows in the last second would be seen, so whole seconds compare.
    whole = count if seconds == 30.0 else int(seconds) * 10
    assert expected.std() > 0.1
    assert whole == 0 or (piece.features[:whole] - expected[:whole]).abs().max() < 1e-4


@torch.no_grad()
def test_the_mask_decides(omni, monkeypatch):
    mel = torch.randn(1, 80, 600, generator=torch.Generator().manual_seed(0))
    later = mel.clone()
    later[:, :, 450:] += 1
    first, second = (omni._audio(m, frozenset())[0].features for m in (mel, later))
    changed = ((first - second).abs().amax(1) > 1e-5).tolist()
    assert changed == [False] * 40 + [True] * 20  # second 4 as a whole, and what follows
    open_ = tiny_minicpm.model(audio_chunk_length=-1)
    first, second = (open_._audio(m, frozenset())[0].features for m in (mel, later))
    assert bool(((first - second).abs().amax(1) > 1e-5).all())


def test_streaming_equals_every_piece_at_once(omni):
    samples = tiny.sound(75.35)
    whole = joined(feed_all(omni, samples, block=len(samples)))
    small = joined(feed_all(omni, samples, block=7777))
    pieces = joined([p for i in range(0, len(samples), 480_000) for p in feed_all(omni, samples[i : i + 480_000])])
    assert len(whole) == 300 + 300 + 153
    assert torch.equal(whole, small) and torch.equal(whole, pieces)
    assert (joined(feed_all(omni, samples, batch_s=60.0)) - whole).abs().max() < 1e-4
    # A loud second piece leaves the first as it is: each has its own maximum.
    louder = np.concatenate([samples[:480_000], 30 * samples[480_000:]])
    assert torch.equal(joined(feed_all(omni, louder))[:300], whole[:300])


@pytest.mark.parametrize("samples", [0, 1, 150, 1000, 1440, 1600])
def test_tiny_sounds(omni, samples):
    pieces = feed_all(omni, tiny.sound(1.0)[:samples])
    count = sum(len(p.features) for p in pieces)
    assert count == omni.facts.audio_tokens(samples / RATE) == (1 if samples >= 1440 else 0)


def test_nothing_is_measured_before(omni):
    def never():
        raise AssertionError("read")
        yield

    assert omni.measure_log_mel_max(never()) == -10.0


@torch.no_grad()
def test_sound_saliency_is_even_where_attention_is_even(omni):
    samples, seen = tiny.sound(4.2), {}
    last = omni.parts.apm.layers[-1]
    hook = last.self_attn.register_forward_pre_hook(lambda m, a, kw: seen.update(kw), with_kwargs=True)
    (piece,) = feed_all(omni, samples, capture=BOTH)
    hook.remove()
    x, attn = seen["hidden_states"], last.self_attn
    length = x.shape[1]
    query, key = (m(x)[0].view(length, 2, -1) for m in (attn.q_proj, attn.k_proj))
    got, seers = torch.zeros(length), torch.zeros(length)
    for i in range(length):
        end = min(length, (i // 50 + 1) * 50)
        row = torch.softmax(torch.einsum("hd,khd->hk", query[i], key[:end]) * attn.scaling, -1).mean(0)
        got[:end] += row * end
        seers[:end] += 1
    tokens = (got / seers)[: length // 5 * 5].view(-1, 5).mean(1)
    assert tokens.std() > 0.02
    assert (piece.saliency - tokens / tokens.mean()).abs().max() < 1e-4
    assert (piece.keys - key.mean(1)[: length // 5 * 5].view(-1, 5, 16).mean(1)).abs().max() < 1e-4
    even = towers._received_causally(torch.zeros(1, 2, 130, 4), torch.randn(1, 2, 130, 4), 1.0, _seen(130))
    assert torch.allclose(even, torch.ones(1, 130), atol=1e-5)


def _seen(length):
    block = torch.arange(length) // 50
    return block.view(-1, 1) >= block


@pytest.mark.slow
@torch.inference_mode()
def test_blocks_of_thirty_seconds_are_independent_of_the_rest(omni):
    samples = tiny.sound(95.0)
    blocks = needle_audio.AudioBlocks(omni, BOTH)
    assert blocks.audio_block == omni.audio_block and omni.audio_block.seconds == 30
    sound = blocks.encode(samples)
    other = samples.copy()
    other[40 * RATE : 42 * RATE] = 3 * tiny.sound(2.0, seed=5)
    change = blocks.change(sound, other, 40 * RATE, 42 * RATE)
    for at, piece in change.pieces:
        needle_audio.overwrite(sound.encoded, at, piece)
    anew = blocks.encode(other).encoded
    for name in ("features", "saliency", "keys"):
        assert torch.equal(getattr(sound.encoded, name), getattr(anew, name)), name
    assert torch.equal(
        blocks.prefix(blocks.encode(other), 50 * RATE).encoded.features, joined(feed_all(omni, other[: 50 * RATE]))
    )


# ---- one clock ----


def test_second_by_second_frames_and_then_sound(omni):
    clip = tiny.encode(omni, tiny.frames(6, 28, 42), np.arange(6) / 2 + 0.1, tiny.sound(4.0), end_s=4.0)
    tokens = clip.tokens
    runs = torch.unique_consecutive(tokens.modality, return_counts=True)[1].tolist()
    assert runs == [128, 10, 128, 10, 128, 20]
    video = tokens.indices(Modality.VIDEO)
    assert tokens.row[video][:64].tolist() == [i // 8 for i in range(64)]
    assert tokens.col[video][:64].tolist() == [i % 8 for i in range(64)]
    assert torch.equal(tokens.window, torch.floor(tokens.start_s + 1e-6).long())
    assert tokens.start_s[video][::64].tolist() == pytest.approx([0.1, 0.6, 1.1, 1.6, 2.1, 2.6])
    assert torch.allclose(tokens.start_s[tokens.indices(Modality.AUDIO)], torch.arange(40).double() / 10)
    first = len(omni.prompt("q", video=True, audio=True).before)
    assert torch.equal(tokens.position_ids, torch.arange(first, first + len(tokens))[None])
    assert (clip.next_position, clip.max_position) == (first + len(tokens), first + len(tokens) - 1)


# ---- text ----


def test_the_prompt_is_the_published_format(omni):
    def read(video, audio, **more):
        prompt = omni.prompt("Who?", video=video, audio=audio, **more)
        assert omni.tokenizer.decode(prompt.after[prompt.question]) == "Who?"
        return omni.tokenizer.hf.decode(prompt.before), omni.tokenizer.hf.decode(prompt.after)

    end = "Who?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert read(True, False) == ("<|im_start|>user\n<image>", "</image>\n" + end)
    assert read(False, True) == ("<|im_start|>user\n<|audio_start|>", "<|audio_end|>\n" + end)
    assert read(True, True) == ("<|im_start|>user\n<image><|audio_start|>", "<|audio_end|></image>\n" + end)
    assert read(False, False) == ("", "<|im_start|>user\n" + end)
    _, after = read(True, False, history=[("one", "1")])
    assert after == "</image>\none<|im_end|>\n<|im_start|>assistant\n1<|im_end|>\n<|im_start|>user\n" + end
    assert read(True, False, preface="Who? said: ")[1] == "</image>\nWho? said: " + end


@torch.no_grad()
def test_prefill_and_greedy_answers_equal_the_stock_llm(omni):
    clip = tiny.encode(omni, tiny.frames(4, 28, 42), np.arange(4.0), tiny.sound(4.0))
    given = omni.sequence(omni.prompt("Who speaks last?", video=True, audio=True), clip)
    stock = omni.parts.llm(inputs_embeds=given.embeds[None]).logits[0]
    cache = KVCache(4, 2, 24, dtype=omni.dtype, device="cpu", capacity=len(given.embeds) + 20)
    read = prefill(omni, given.embeds, given.position_ids, cache, chunk=50, media_span=given.media_span)
    assert stock.std() > 0.5 and (read.logits - stock[-1]).abs().max() < 1e-3
    expected = omni.parts.llm.generate(
        inputs_embeds=given.embeds[None], max_new_tokens=16, do_sample=False, eos_token_id=10**6
    )
    options = DecodeOptions(max_new_tokens=16, temperature=0.0)
    omni_stops, omni.stop_ids = omni.stop_ids, frozenset()
    try:
        text = generate(omni, cache, read.logits, given.next_position, options)
        text.finish()
    finally:
        omni.stop_ids = omni_stops
    assert list(text.token_ids) == expected[0].tolist()


@torch.no_grad()
def test_attention_asked_of_a_layer_is_the_stock_attention(omni):
    ids = torch.arange(30)
    omni.parts.llm.set_attn_implementation("eager")
    try:
        out = omni.parts.llm(ids[None], output_attentions=True, output_hidden_states=True)
    finally:
        omni.parts.llm.set_attn_implementation("sdpa")
    hidden, rope = omni.embed(ids), omni.rope(torch.arange(30)[None])
    for index in range(2):
        again = omni.query_attention(index, hidden, rope)
        hidden, received = omni.layer(index, hidden, rope, None, last_attention=True)
        assert (received - out.attentions[index][0, :, -1].mean(0)).abs().max() < 1e-5
        assert (again - received).abs().max() < 1e-6
        assert (hidden - out.hidden_states[index + 1][0]).abs().max() < 1e-4


# ---- what cannot be given ----


@pytest.mark.parametrize("capture", ["pair_saliency", "pooled_saliency"])
def test_other_kinds_of_saliency_are_refused(omni, capture):
    for call in (lambda c: omni.encode_video(tiny.frames(1, 28, 28), c), lambda c: omni.audio_encoder(None, c)):
        with pytest.raises(ModelError, match=f"gives? no {capture}.*mode clean"):
            call(frozenset({capture}))


def test_a_method_that_reads_time_from_positions_is_refused(omni):
    clip = tiny.encode(omni, tiny.frames(4, 28, 28), np.arange(4.0), tiny.sound(4.0))
    query = omni.query(omni.prompt("q", video=True, audio=True))
    with pytest.raises(ModelError, match="use mode clean"):
        OmniSIFT(mode="official", retention_video=0.3, retention_audio=0.7).compress(clip.tokens, query)


# ---- folders ----


@pytest.mark.parametrize("kind", ["one", "shards"])
def test_a_folder_in_hub_layout_loads_without_its_python(folders, kind, capfd):
    omni = load_model(folders[kind], "cpu")
    expected = tiny_minicpm.parts(omni.settings).state_dict()
    got = omni.parts.state_dict()
    assert expected.keys() == got.keys() and all(torch.equal(expected[k], got[k]) for k in expected)
    assert capfd.readouterr() == ("", "")
    assert {3, 5, 7, omni.tokenizer.hf.convert_tokens_to_ids("<|im_end|>")} <= omni.stop_ids
    assert omni.settings.mean == (0.5, 0.4, 0.3) and omni.settings.std == (0.5, 0.6, 0.7)
    assert (omni.depth, omni.head_dim, omni.audio_tokens_per_s, omni.position_axes) == (4, 24, 10.0, 1)
    frames = tiny.frames(1, 28, 42)
    same = tiny_minicpm.model().encode_video(frames).features
    assert torch.allclose(omni.encode_video(frames).features, same, atol=1e-6)


def message(folder):
    with pytest.raises(ModelError) as caught:
        load_model(folder, "cpu")
    assert caught.value.exit_code == 5 and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def broken(folders, tmp_path):
    return shutil.copytree(folders["one"], tmp_path / "model")


def change_weights(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def test_every_weight_is_accounted_for(folders, tmp_path):
    def cut(state):
        del state["llm.model.layers.2.mlp.up_proj.weight"], state["apm.conv1.bias"]

    def add(state):
        state["vpm.head.probe"], state["apm.extra"] = torch.zeros(2), torch.zeros(2)

    def reshape(state):
        state["resampler.query"] = torch.zeros(32, 64)

    for change, expected in (
        (cut, "in {} 2 weights are missing, the first is apm.conv1.bias"),
        (add, "in {} 2 weights are not this architecture's, the first is apm.extra"),
        (reshape, "in {} 1 weights have another shape than config.json says, the first is resampler.query"),
    ):
        folder = shutil.copytree(folders["one"], tmp_path / change.__name__)
        change_weights(folder, change)
        assert expected.format(folder) in message(folder)


def test_wrong_settings_are_named(broken):
    config = json.loads((broken / "config.json").read_text())
    for changes, expected in (
        ({"version": "2.6"}, "MiniCPM-o 2.6 is not supported, only 4.5"),
        ({"vision_config": None}, "is not MiniCPM-o's"),
        ({"audio_config": config["audio_config"] | {"max_source_positions": 100}}, "too few for 30 seconds"),
        ({"hidden_size": 128}, "another shape"),
        ({"use_sliding_window": True}, "sliding windows"),
        ({"drop_vision_last_layer": True}, "are not this architecture's"),
    ):
        (broken / "config.json").write_text(json.dumps(config | changes))
        assert expected in message(broken)
    del config["head_dim"]
    (broken / "config.json").write_text(json.dumps(config))
    assert "no 'head_dim'" in message(broken)
    (broken / "config.json").write_text(json.dumps(tiny_minicpm.config()))
    (broken / "preprocessor_config.json").write_text("{")
    assert "cannot be read" in message(broken)


def test_pickles_and_foreign_tokenizers_are_refused(broken):
    from omnicli.models.weights.dummy import byte_tokenizer

    byte_tokenizer().save_pretrained(broken)
    assert "does not know <think>" in message(broken)
    for file in [*broken.glob("tokenizer*"), *broken.glob("vocab*"), *broken.glob("merges*")]:
        file.unlink()
    assert "no usable tokenizer" in message(broken)
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    assert "no safetensors" in message(broken)


# ---- dummy weights ----


def test_the_real_sizes_have_nine_billion_weights_less_speech():
    settings = weights.Settings.dummy(None, 1.0, 0)
    parts = unfilled_model(weights.Parts, settings, "meta", torch.bfloat16)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.named_children()}
    assert {name: round(count / 1e6) for name, count in counts.items()} == COUNTS
    assert parts.resampler.attn.num_heads == 32 and settings.vision.num_hidden_layers == 27
    assert settings.text.vocab_size == 151748


COUNTS = {"llm": 8189, "vpm": 418, "resampler": 89, "apm": 307, "audio_projection_layer": 21}
"""Millions; 9.02 billion together."""


def test_shrunken_dummies_run_end_to_end():
    omni = load_model("dummy:minicpm-o-4.5,layers=2,scale=0.04", "cpu", "bf16")
    assert (omni.depth, omni.facts.llm.heads, omni.kv_heads, omni.head_dim) == (2, 4, 1, 128)
    assert omni.dtype == torch.bfloat16 and len(omni.parts.vpm.encoder.layers) == 2
    clip = tiny.encode(omni, tiny.frames(3, 112, 168), [0.0, 1.0, 2.0], tiny.sound(3.0), capture=BOTH)
    assert clip.tokens.features.isfinite().all() and clip.tokens.features.std() > 0.05
    assert len(clip.tokens) == 3 * 64 + 30 and clip.tokens.saliency.isfinite().all()
    given = omni.sequence(omni.prompt("q", video=True, audio=True), clip)
    cache = KVCache(2, 1, 128, dtype=omni.dtype, device="cpu", capacity=300)
    read = prefill(omni, given.embeds, given.position_ids, cache, chunk=50)
    generate(omni, cache, read.logits, given.next_position, DecodeOptions(max_new_tokens=4)).finish()
    again = load_model("dummy:minicpm-o-4.5,layers=2,scale=0.04", "cpu", "bf16")
    assert torch.equal(again.parts.resampler.query, omni.parts.resampler.query)
    with pytest.raises(ModelError, match=r"did you mean minicpm-o-4\.5"):
        load_model("dummy:minicpm-o-4.6", "cpu")
    with pytest.raises(ModelError, match="layers >= 1"):
        load_model("dummy:minicpm-o-4.5,layers=0", "cpu")
