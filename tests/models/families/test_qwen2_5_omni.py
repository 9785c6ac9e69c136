"""The adapter against the stock model on tiny random weights."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from omnicli.errors import ModelError
from omnicli.llm.kv import KVCache
from omnicli.llm.prefill import prefill
from omnicli.models.facts.qwen2_5_omni import FACTS
from omnicli.models.loading import load_model
from omnicli.models.weights import checkpoint
from omnicli.types import Modality
from tests.support import tiny

BOTH = frozenset({"saliency", "keys"})


@pytest.fixture(scope="module")
def omni():
    return tiny.model()


def feed_all(omni, samples, peak, batch_s=2.0, block=32000, capture=frozenset()):
    stream = omni.audio_encoder(peak, capture, batch_s=batch_s)
    pieces = [p for i in range(0, len(samples), block) for p in stream.feed(samples[i : i + block])]
    return pieces + stream.finish()


# ---- pictures ----


@pytest.mark.parametrize(("height", "width"), [(84, 140), (112, 196), (56, 56), (252, 140)])
def test_streamed_pictures_equal_the_stock_tower(omni, height, width):
    pictures = tiny.frames(8, height, width)
    grid = torch.tensor([[4, height // 14, width // 14]])
    with torch.no_grad():
        expected = omni.thinker.model.visual(tiny.patchify_reference(pictures), grid_thw=grid).pooler_output
    streamed = torch.cat([omni.encode_video(pictures[i : i + 2]).features for i in range(0, 8, 2)])
    assert expected.std() > 0.1
    assert (streamed - expected).abs().max() < 1e-5


def test_pairs_are_exact_borders_and_others_are_not(omni):
    pictures = tiny.frames(6)
    whole = omni.encode_video(pictures).features
    pairs = torch.cat([omni.encode_video(pictures[i : i + 2]).features for i in (0, 2, 4)])
    split = torch.cat([omni.encode_video(pictures[:3]).features, omni.encode_video(pictures[3:]).features])
    assert (whole - pairs).abs().max() < 1e-5
    assert (whole - split[: len(whole)]).abs().max() > 0.01


def reference_saliency(omni, pictures, pair=1, pooled=False):
    """Column means of the stock last block's softmax, taken with a hook; raster cells.

    ``pair`` consecutive frame pairs share a window; ``pooled``: the mean query to the mean keys of the cells.
    """
    visual = omni.thinker.model.visual
    seen = {}

    def hook(module, args, kwargs):
        seen["x"] = args[0] if args else kwargs["hidden_states"]
        seen["pos"], seen["cu"] = kwargs["position_embeddings"], kwargs["cu_seqlens"].tolist()

    handle = visual.blocks[-1].attn.register_forward_pre_hook(hook, with_kwargs=True)
    grid = torch.tensor([[len(pictures) // 2, pictures.shape[1] // 14, pictures.shape[2] // 14]])
    with torch.no_grad():
        visual(tiny.patchify_reference(pictures), grid_thw=grid)
    handle.remove()
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import apply_rotary_pos_emb_vision
    from transformers.vision_utils import get_vision_window_index

    attn = visual.blocks[-1].attn
    n = seen["x"].shape[0]
    q, k = (m(seen["x"]).view(n, attn.num_heads, -1) for m in (attn.q, attn.k))
    q, k = apply_rotary_pos_emb_vision(q, k, *seen["pos"])
    out = torch.zeros(n)
    borders = [*seen["cu"][:-1:pair], seen["cu"][-1]]
    for a, b in itertools.pairwise(borders):
        weights = torch.softmax(torch.einsum("qhd,khd->hqk", q[a:b], k[a:b]) * attn.scaling, -1)
        out[a:b] = weights.mean(0).sum(0)
        if pooled:
            cells = k[a:b].unflatten(0, (-1, 4)).mean(1)
            row = torch.softmax(torch.einsum("hd,chd->hc", q[a:b].mean(0), cells) * attn.scaling, -1).mean(0)
            out[a:b] = row.repeat_interleave(4)
    index, _ = get_vision_window_index(grid, 2, visual.window_size, 14)
    back = torch.argsort(index)
    return out.view(-1, 4).mean(1)[back].detach(), k.mean(1).view(-1, 4, k.shape[-1]).mean(1)[back].detach()


def test_picture_saliency_and_keys_equal_the_stock_attention(omni):
    pictures = tiny.frames(4, 112, 196)
    got = omni.encode_video(pictures, BOTH)
    saliency, keys = reference_saliency(omni, pictures)
    assert saliency.std() > 0.01
    assert (got.saliency - saliency).abs().max() < 1e-5
    assert (got.keys - keys).abs().max() < 1e-5
    assert torch.allclose(got.saliency.view(2, -1).mean(1), torch.ones(2), atol=1e-5)
    assert omni.encode_video(pictures).saliency is None


@pytest.mark.parametrize("frames", [8, 6, 2])
def test_saliency_over_two_pairs_is_the_virtual_attention_of_both(omni, frames):
    pictures = tiny.frames(frames, 112, 196)
    got = omni.encode_video(pictures, frozenset({"pair_saliency"})).saliency
    expected, _ = reference_saliency(omni, pictures, pair=2)
    assert (got - expected).abs().max() < 1e-5
    alone, _ = reference_saliency(omni, pictures)
    assert frames == 2 or (expected - alone).abs().max() > 1e-2


def test_saliency_by_the_mean_query(omni):
    pictures = tiny.frames(6, 112, 196)
    got = omni.encode_video(pictures, frozenset({"pooled_saliency"})).saliency
    expected, _ = reference_saliency(omni, pictures, pooled=True)
    assert (got - expected).abs().max() < 1e-5
    assert torch.allclose(got.view(3, -1).sum(1), torch.ones(3), atol=1e-5)


# ---- sound ----


@pytest.mark.parametrize("seconds", [0.005, 0.02, 0.03, 0.7, 2.0, 3.37, 7.0077])
def test_streamed_sound_equals_the_stock_extractor_and_tower(omni, seconds):
    samples = tiny.sound(seconds)
    stock = tiny.stock_inputs(omni, "q", None, 1.0, samples)
    frames = int(stock["feature_attention_mask"].sum())
    pieces = feed_all(omni, samples, omni.measure_log_mel_max([samples]))
    tokens = sum(p.features.shape[0] for p in pieces)
    assert tokens == FACTS.mel_tokens(frames)
    if tokens == 0:
        return
    with torch.no_grad():
        expected = omni.thinker.model.get_audio_features(
            stock["input_features"], stock["feature_attention_mask"]
        ).last_hidden_state
    assert (torch.cat([p.features for p in pieces]) - expected).abs().max() < 1e-5


def test_the_global_maximum_matters_and_the_running_one_is_near(omni):
    samples = np.concatenate([tiny.sound(4.0, seed=1) * 1e-4, tiny.sound(4.0, seed=2)])
    exact = torch.cat([p.features for p in feed_all(omni, samples, omni.measure_log_mel_max([samples]))])
    running = torch.cat([p.features for p in feed_all(omni, samples, None)])
    assert exact.shape == running.shape
    assert (exact[100:] - running[100:]).abs().max() < 1e-5  # from the loud part on the maximum is known
    assert (exact[:50] - running[:50]).abs().max() > 0.01  # before it the floor differs


def test_sound_saliency_is_one_on_average_per_window(omni):
    samples = tiny.sound(4.0)
    pieces = feed_all(omni, samples, omni.measure_log_mel_max([samples]), capture=BOTH)
    saliency = torch.cat([p.saliency for p in pieces])
    assert torch.allclose(saliency.view(2, 50).mean(1), torch.ones(2), atol=1e-5)
    assert saliency.std() > 0.02
    assert torch.cat([p.keys for p in pieces]).shape == (100, 16)


# ---- one clock ----


@pytest.mark.parametrize("fps", [0.7, 2.0, 3.0])
@pytest.mark.parametrize(("frames", "seconds"), [(7, 5.3), (4, 11.5), (1, 2.5), (12, None), (2, None), (0, 4.1)])
def test_order_and_positions_equal_the_stock_code(omni, fps, frames, seconds):
    if 2 / fps > 2 and frames:
        pytest.skip("the stock code tears frames apart when pairs are more than one block apart")
    pictures = tiny.frames(frames) if frames else None
    samples = tiny.sound(seconds) if seconds else None
    stock = tiny.stock_inputs(omni, "Who speaks last?", pictures, fps, samples)
    clip = tiny.encode(omni, pictures, np.arange(frames) / fps, samples)
    prompt = omni.prompt("Who speaks last?", video=pictures is not None, audio=samples is not None)
    read = omni.sequence(prompt, clip)

    ids, config = stock["input_ids"][0], omni.thinker.config
    media = ids[read.media_span]
    assert torch.equal(media == config.audio_token_id, clip.tokens.modality == Modality.AUDIO)
    assert torch.equal(ids[: prompt.before.numel()], prompt.before)
    assert torch.equal(ids[read.media_span.stop :], prompt.after)
    expected, delta = omni.thinker.model.get_rope_index(
        stock["input_ids"],
        None,
        stock.get("video_grid_thw"),
        stock["attention_mask"],
        stock.get("use_audio_in_video", False),
        stock["feature_attention_mask"].sum(1) if samples is not None else None,
        stock.get("video_second_per_grid"),
    )
    assert torch.equal(read.position_ids, expected[:, 0])
    assert read.next_position == len(ids) + int(delta)


def test_true_times_of_a_variable_frame_rate(omni):
    times = np.array([0.0, 0.31, 1.99, 2.4, 2.50, 7.0, 9.013])
    clip = tiny.encode(omni, tiny.frames(7), times, tiny.sound(10.0), end_s=10.0)
    tokens, origin = clip.tokens, int(clip.tokens.position_ids[0, 0])
    video = tokens.indices(Modality.VIDEO)
    starts = torch.tensor(times[::2]).repeat_interleave(15)
    assert torch.equal(tokens.start_s[video], starts)
    assert torch.equal(tokens.position_ids[0, video] - origin, torch.floor(starts * 25 + 1e-5).long())
    assert torch.equal(tokens.window[video], (starts // 2).long())
    assert torch.equal(tokens.end_s[video][:-15], starts[15:])
    assert float(tokens.end_s[video][-1]) == 10.0
    audio = tokens.indices(Modality.AUDIO)
    assert torch.allclose(tokens.start_s[audio], torch.arange(250).double() / 25)
    # Every block of two seconds: its pictures, then its sound.
    key = tokens.window * 2 + tokens.modality
    assert bool((key[1:] >= key[:-1]).all())


def test_far_apart_pairs_stay_whole_and_in_their_block(omni):
    clip = tiny.encode(omni, tiny.frames(6), np.arange(6) * 4.0, tiny.sound(24.0))
    runs = torch.unique_consecutive(clip.tokens.modality, return_counts=True)[1].tolist()
    assert runs == [15, 200, 15, 200, 15, 200]


# ---- text ----


def test_frame_sizes_follow_the_stock_processor(omni):
    assert omni.frame_size(1280, 720) == (560, 1008)
    assert omni.frame_size(640, 480) == (476, 644)
    assert omni.frame_size(1280, 720, max_pixels=256 * 784) == (336, 588)
    assert omni.frame_size(1280, 720, 3600, max_video_tokens=128_000) == (224, 420)


# ---- checkpoints of both released depths ----


DEPTHS = {"3b": {"layers": 36, "heads": 4, "kv_heads": 1}, "7b": {"layers": 28, "heads": 4, "kv_heads": 2}}
"""Depths as published; widths are tiny."""


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Return a function that writes a checkpoint of a size: full or thinker only, its output tied to its input or not.

    ``tied``: None, or which part of the configuration says so; the file then has no lm_head.
    """
    root, made = tmp_path_factory.mktemp("released"), {}

    def write(size, full, tied=None):
        if (key := f"{size}-{full}-{tied}") not in made:
            folder = made[key] = tiny.build(root / key, full=full, **DEPTHS[size])
            told = json.loads((folder / "config.json").read_text())
            inner = told["thinker_config"] if full else told
            if tied:
                (inner["text_config"] if tied == "text_config" else inner)["tie_word_embeddings"] = True
                weights = load_file(folder / "model.safetensors")
                del weights["thinker.lm_head.weight" if full else "lm_head.weight"]
                save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
            (folder / "config.json").write_text(json.dumps(told))
        return made[key]

    return write


@pytest.mark.parametrize(
    ("size", "full", "tied"),
    [
        ("3b", False, None),
        ("3b", True, "text_config"),
        pytest.param("7b", True, None, marks=pytest.mark.slow),
        pytest.param("7b", True, "thinker_config", marks=pytest.mark.slow),
    ],
)
def test_checkpoints_of_both_depths_load(released, size, full, tied):
    omni = load_model(released(size, full, tied), device="cpu")
    dims = DEPTHS[size]
    assert (omni.depth, omni.facts.llm.heads, omni.kv_heads) == (dims["layers"], dims["heads"], dims["kv_heads"])
    expected = tiny.thinker(**dims)[0].state_dict()
    table = "model.language_model.embed_tokens.weight"
    if tied:
        expected["lm_head.weight"] = expected[table]
    got = omni.thinker.state_dict()
    assert got.keys() == expected.keys() and all(torch.equal(got[k], expected[k]) for k in expected)
    assert (got["lm_head.weight"].data_ptr() == got[table].data_ptr()) == bool(tied)
    weights = checkpoint.count_weights(released(size, full, tied), omni.facts.loads, omni.facts.skips)
    assert weights == sum(p.numel() for p in omni.thinker.parameters())  # what a plan counts
    given = omni.sequence(omni.prompt("q", video=False, audio=False))
    cache = KVCache(omni.depth, omni.kv_heads, omni.head_dim, dtype=omni.dtype, device=omni.device, capacity=80)
    logits = prefill(omni, given.embeds, given.position_ids, cache).logits
    with torch.no_grad():
        stock = omni.thinker.model.language_model(
            inputs_embeds=given.embeds[None], position_ids=given.position_ids[:, None], use_cache=False
        )
    assert (logits - stock.last_hidden_state[0, -1] @ expected["lm_head.weight"].T).abs().max() < 1e-3


@pytest.mark.parametrize("full", [False, True])
def test_a_missing_output_that_nothing_ties_is_refused(released, full):
    folder = released("3b", full, "text_config")
    told = json.loads((folder / "config.json").read_text())
    (told["thinker_config"] if full else told)["text_config"]["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(told))
    with pytest.raises(ModelError, match=r"1 weights are missing in .*, the first is lm_head\.weight"):
        load_model(folder, device="cpu")
