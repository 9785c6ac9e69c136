"""The Qwen3-Omni adapter against the stock model on tiny random weights, read from a full checkpoint's folder."""

from __future__ import annotations

import itertools
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from omnicli.errors import ModelError
from omnicli.models.facts.qwen3_omni_moe import FACTS
from omnicli.models.loading import load_model
from omnicli.models.mel import LogMel, log_mel_maximum, mel_frame_count
from omnicli.types import Modality
from tests.support import tiny_qwen3 as tiny

BOTH = frozenset({"saliency", "keys"})
QUESTION = "Who speaks last?"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {"thinker": tiny.build(root / "thinker"), "full": tiny.build(root / "full", full=True)}


@pytest.fixture(scope="module")
def omni(folders):
    return load_model(folders["full"], device="cpu")


def feed_all(omni, samples, peak, batch_s=8.0, block=32000, capture=frozenset()):
    stream = omni.audio_encoder(peak, capture, batch_s=batch_s)
    pieces = [p for i in range(0, len(samples), block) for p in stream.feed(samples[i : i + block])]
    return pieces + stream.finish()


# ---- checkpoints ----


@pytest.mark.parametrize("kind", ["thinker", "full"])
def test_both_layouts_load_the_same_weights_and_no_talker(folders, kind, capfd):
    stored = load_file(folders[kind] / "model.safetensors")
    prefix = "thinker." if kind == "full" else ""
    assert f"{prefix}model.layers.3.mlp.experts.7.down_proj.weight" in stored, "experts one by one, as released"
    loaded = load_model(folders[kind], device="cpu")
    expected, got = tiny.thinker()[0].state_dict(), loaded.thinker.state_dict()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[k], got[k]) for k in expected)
    assert not any("talker" in k or "code2wav" in k for k in got)
    assert loaded.tokenizer.hf.convert_tokens_to_ids("<|im_end|>") in loaded.stop_ids
    assert capfd.readouterr() == ("", "")


def test_one_missing_expert_is_refused(folders, tmp_path):
    folder = shutil.copytree(folders["thinker"], tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.2.mlp.experts.5.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=re.escape(str(folder))) as caught:
        load_model(folder, device="cpu")
    assert "\n" not in str(caught.value)


def test_what_the_model_says_of_itself(omni):
    assert (omni.depth, omni.facts.llm.heads, omni.kv_heads, omni.head_dim, omni.hidden_size) == (4, 4, 2, 16, 64)
    assert (omni.facts.llm.intermediate_size, omni.facts.llm.num_experts) == (2 * 32, 8)
    assert (omni.audio_tokens_per_s, omni.facts.positions_per_s, omni.facts.window_s) == (13, 13, 2)
    assert (omni.facts.pixel_unit, omni.frame_group, omni.max_position) == (32, 2, 65536)
    assert omni.facts.preprocessing.mean == omni.facts.preprocessing.std == (0.5, 0.5, 0.5)
    assert omni.thinker.config.text_config._experts_implementation == "grouped_mm"


def test_frame_sizes_follow_the_stock_processor(omni):
    assert omni.frame_size(1280, 720) == (640, 1152)
    assert omni.frame_size(640, 480) == (480, 640)
    assert omni.frame_size(3840, 2160) == (640, 1152)


# ---- pictures ----


@pytest.mark.parametrize(("height", "width"), [(96, 160), (128, 224), (64, 64), (288, 160)])
def test_streamed_pictures_and_their_deepstack_levels_equal_the_stock_tower(omni, height, width):
    pictures = tiny.frames(8, height, width)
    grid = torch.tensor([[4, height // 16, width // 16]])
    with torch.no_grad():
        expected = omni.thinker.model.visual(tiny.patchify_reference(pictures), grid_thw=grid)
    pieces = [omni.encode_video(pictures[i : i + 2]) for i in range(0, 8, 2)]
    assert expected.pooler_output.std() > 0.1
    assert (torch.cat([p.features for p in pieces]) - expected.pooler_output).abs().max() < 1e-5
    assert len(expected.deepstack_features) == 3
    levels = torch.cat([p.layer_features for p in pieces], 1)
    for got, level in zip(levels, expected.deepstack_features, strict=True):
        assert level.std() > 0.05
        assert (got - level).abs().max() < 1e-5
    assert (levels[0] - levels[1]).abs().max() > 0.1


def reference_saliency(omni, pictures, pair=1, pooled=False):
    """Column means of the stock last block's softmax, from its input taken with a hook; raster cells."""
    from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import apply_rotary_pos_emb_vision

    visual, seen = omni.thinker.model.visual, {}

    def hook(module, args, kwargs):
        seen["x"] = args[0] if args else kwargs["hidden_states"]
        seen["pos"], seen["cu"] = kwargs["position_embeddings"], kwargs["cu_seqlens"].tolist()

    attn = visual.blocks[-1].attn
    handle = attn.register_forward_pre_hook(hook, with_kwargs=True)
    grid = torch.tensor([[len(pictures) // 2, pictures.shape[1] // 16, pictures.shape[2] // 16]])
    with torch.no_grad():
        visual(tiny.patchify_reference(pictures), grid_thw=grid)
        handle.remove()
        n = seen["x"].shape[0]
        q, k, _ = attn.qkv(seen["x"]).view(n, 3, attn.num_heads, -1).unbind(1)
        q, k = apply_rotary_pos_emb_vision(q, k, *seen["pos"])
    out = torch.zeros(n)
    borders = [*seen["cu"][:-1:pair], seen["cu"][-1]]
    assert len(seen["cu"]) == len(pictures) // 2 + 1, "one segment per frame pair"
    for a, b in itertools.pairwise(borders):
        out[a:b] = torch.softmax(torch.einsum("qhd,khd->hqk", q[a:b], k[a:b]) * attn.scaling, -1).mean(0).sum(0)
        if pooled:
            cells = k[a:b].unflatten(0, (-1, 4)).mean(1)
            row = torch.softmax(torch.einsum("hd,chd->hc", q[a:b].mean(0), cells) * attn.scaling, -1).mean(0)
            out[a:b] = row.repeat_interleave(4)
    return out.view(-1, 4).mean(1), k.mean(1).view(-1, 4, k.shape[-1]).mean(1)


def test_picture_saliency_and_keys_equal_the_stock_attention(omni):
    pictures = tiny.frames(4, 128, 224)
    got = omni.encode_video(pictures, BOTH)
    saliency, keys = reference_saliency(omni, pictures)
    assert saliency.std() > 0.01
    assert (got.saliency - saliency).abs().max() < 1e-5
    assert (got.keys - keys).abs().max() < 1e-5
    assert torch.allclose(got.saliency.view(2, -1).mean(1), torch.ones(2), atol=1e-5)
    assert omni.encode_video(pictures).saliency is None


@pytest.mark.parametrize("frames", [8, 6, 2])
def test_saliency_over_two_pairs_is_the_virtual_attention_of_both(omni, frames):
    pictures = tiny.frames(frames, 128, 224)
    got = omni.encode_video(pictures, frozenset({"pair_saliency"})).saliency
    expected, _ = reference_saliency(omni, pictures, pair=2)
    assert (got - expected).abs().max() < 1e-5
    alone, _ = reference_saliency(omni, pictures)
    assert frames == 2 or (expected - alone).abs().max() > 1e-2


def test_saliency_by_the_mean_query(omni):
    pictures = tiny.frames(6, 128, 224)
    got = omni.encode_video(pictures, frozenset({"pooled_saliency"})).saliency
    expected, _ = reference_saliency(omni, pictures, pooled=True)
    assert (got - expected).abs().max() < 1e-5
    assert torch.allclose(got.view(3, -1).sum(1), torch.ones(3), atol=1e-5)


# ---- sound ----


@pytest.mark.parametrize("n", [201, 320, 400, 479, 16_000, 16_159, 32_123, 100_000, 48_159, 48_200])
@pytest.mark.parametrize("block", [37, 1600, 32_000])
def test_mel_of_blocks_equals_the_stock_extractor(n, block):
    if n / block > 900:
        pytest.skip("slow and no different")
    samples = tiny.sound(n / 16_000)
    blocks = [samples[i : i + block] for i in range(0, n, block)]
    stream = LogMel(mirror_end=True)
    raw = torch.cat([*(stream.feed(b) for b in blocks), stream.finish()], 1)
    made = tiny.mel(samples)
    expected = made.input_features[0][:, : int(made.attention_mask.sum())]
    got = (raw.clamp(min=log_mel_maximum(blocks, mirror_end=True) - 8) + 4) / 4
    assert got.shape == expected.shape == (128, mel_frame_count(n, mirror_end=True))
    assert (got - expected).abs().max() < 1e-6


def test_token_counts_are_the_stock_formula_and_pieces_add_up():
    from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import _get_feat_extract_output_lengths

    for frames in range(2000):
        tokens = FACTS.mel_tokens(frames)
        assert tokens == int(_get_feat_extract_output_lengths(torch.tensor(frames)))
        assert tokens == 104 * (frames // 800) + FACTS.mel_tokens(frames % 800)


TAILS = [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 37, 50, 64, 88, 96, 97, 98, 99]
"""Every class of lengths that three convolutions of stride 2 tell apart, and the borders of a second."""


@pytest.mark.parametrize("before", [0, 100, 300, 700, 800, 900, 1600])
def test_sound_tower_equals_the_stock_tower_for_every_tail(omni, before):
    tails = [t for t in [0, *TAILS] if before + t]
    for tail in tails:
        mel = torch.randn(128, before + tail, generator=torch.Generator().manual_seed(tail))
        lens = torch.tensor([before + tail])
        with torch.no_grad():
            expected = omni.thinker.model.audio_tower(mel, feature_lens=lens).last_hidden_state
        got, first = [], True
        for begin in range(0, mel.shape[1], 800):
            got += omni.encode_mel(mel[:, begin : begin + 800], first=first)
            first = False
        assert expected.std() > 0.05
        assert (torch.cat([p.features for p in got]) - expected).abs().max() < 1e-5, (before, tail)


@pytest.mark.parametrize("seconds", [0.015, 0.37, 0.999, 1.0, 3.37, 7.0077, 8.0, 8.3, 8.5003, 16.77, 17.0])
@pytest.mark.parametrize("block", [777, 32_000])
def test_streamed_sound_equals_the_stock_extractor_and_tower(omni, seconds, block):
    samples = tiny.sound(seconds)
    made = tiny.mel(samples)
    with torch.no_grad():
        expected = omni.thinker.model.get_audio_features(made.input_features, made.attention_mask).last_hidden_state
    pieces = feed_all(omni, samples, omni.measure_log_mel_max([samples]), block=block)
    got = torch.cat([p.features for p in pieces])
    assert got.shape == expected.shape
    assert (got - expected).abs().max() < 1e-5


def test_a_sound_too_short_for_a_frame_gives_no_token(omni):
    assert feed_all(omni, tiny.sound(0.009), None) == []
    assert sum(len(p.features) for p in feed_all(omni, tiny.sound(0.0125), None)) == 1  # stock code refuses these


def test_sound_saliency_and_keys_are_one_to_one_with_the_stock_attention(omni):
    samples = tiny.sound(11.3)
    made, tower, seen = tiny.mel(samples), omni.thinker.model.audio_tower, {}

    def hook(module, args, kwargs):
        seen["x"] = args[0] if args else kwargs["hidden_states"]
        seen["cu"] = (args[1] if len(args) > 1 else kwargs["cu_seqlens"]).tolist()

    attn = tower.layers[-1].self_attn
    handle = attn.register_forward_pre_hook(hook, with_kwargs=True)
    with torch.no_grad():
        omni.thinker.model.get_audio_features(made.input_features, made.attention_mask)
        handle.remove()
        q, k = (m(seen["x"]).view(-1, attn.num_heads, 16) for m in (attn.q_proj, attn.k_proj))
    expected = torch.zeros(len(k))
    assert seen["cu"] == [0, 104, len(k)]
    for a, b in itertools.pairwise(seen["cu"]):
        expected[a:b] = torch.softmax(torch.einsum("qhd,khd->hqk", q[a:b], k[a:b]) * attn.scaling, -1).mean(0).sum(0)
    pieces = feed_all(omni, samples, omni.measure_log_mel_max([samples]), capture=BOTH)
    assert (torch.cat([p.saliency for p in pieces]) - expected).abs().max() < 1e-5
    assert (torch.cat([p.keys for p in pieces]) - k.mean(1)).abs().max() < 1e-5
    assert expected.std() > 0.02


# ---- one clock ----


EXACT_FPS = [0.5, 1.0, 2.0, 4.0]
"""Frame rates whose times are binary fractions: positions must be the stock ones to the bit."""


@pytest.mark.parametrize("fps", [*EXACT_FPS, 0.7, 1.5, 3.0, 23.976])
@pytest.mark.parametrize(("frames", "seconds"), [(7, 5.3), (8, 3.0), (4, 11.5), (1, 2.5), (12, None), (0, 4.1)])
def test_order_and_positions_equal_the_stock_code(omni, fps, frames, seconds):
    pictures = tiny.frames(frames) if frames else None
    samples = tiny.sound(seconds) if seconds else None
    stock = tiny.stock_inputs(omni, QUESTION, pictures, fps, samples)
    clip = tiny.encode(omni, pictures, np.arange(frames) / fps, samples)
    prompt = omni.prompt(QUESTION, video=pictures is not None, audio=samples is not None)
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
    assert read.position_ids.dtype == expected.dtype == torch.float32
    if fps in EXACT_FPS or not frames:
        assert torch.equal(read.position_ids, expected[:, 0])
        assert read.next_position == len(ids) + float(delta)
    else:
        assert (read.position_ids - expected[:, 0]).abs().max() < 1e-4
        assert read.next_position == pytest.approx(len(ids) + float(delta), abs=1e-4)


def test_strict_order_of_true_times(omni):
    """A picture comes before every sound token that is not earlier, wherever its true time lies."""
    times = np.array([0.0, 0.31, 1.99, 2.4, 2.50, 7.0, 9.013, 9.5])
    clip = tiny.encode(omni, tiny.frames(8), times, tiny.sound(10.0), end_s=10.0)
    tokens, origin = clip.tokens, clip.tokens.position_ids[0, 0]
    video, audio = (tokens.indices(m) for m in (Modality.VIDEO, Modality.AUDIO))
    assert torch.equal(tokens.start_s[video], torch.tensor(times[::2]).repeat_interleave(15))
    assert torch.allclose(tokens.position_ids[0, video] - origin, (13 * tokens.start_s[video]).float(), atol=1e-4)
    assert torch.equal(tokens.position_ids[0, audio] - origin, torch.arange(130.0))
    key = [(float(p), int(m)) for p, m in zip(tokens.position_ids[0], tokens.modality, strict=True)]
    assert key == sorted(key)
    assert bool((tokens.window[1:] >= tokens.window[:-1]).all())
    assert torch.equal(tokens.window, torch.floor(tokens.start_s / 2 + 1e-9).long())


def test_thirteen_tokens_cover_a_second_and_the_next_begins_anew(omni):
    tokens = tiny.encode(omni, None, [], tiny.sound(3.5), start_s=600.0).tokens
    assert len(tokens) == 3 * 13 + 7
    start, end = (x[:39].view(3, 13) - 600 for x in (tokens.start_s, tokens.end_s))
    assert torch.allclose(start, torch.arange(3.0).double()[:, None] + 0.08 * torch.arange(13).double())
    assert torch.allclose(end[:, -1], torch.arange(1.0, 4.0).double())
    assert torch.allclose(end[:, :-1], start[:, 1:])


# ---- text ----


def test_the_template_names_this_familys_marks(omni):
    text = omni.tokenizer.hf
    both = omni.prompt(QUESTION, video=True, audio=True)
    assert text.decode(both.before).endswith("user\n<|vision_start|><|audio_start|>")
    assert text.decode(both.after).startswith("<|audio_end|><|vision_end|>" + QUESTION)
    assert text.decode(omni.prompt("q", video=False, audio=True).before).endswith("<|audio_start|>")
    assert "system" not in text.decode(both.before)
    assert omni.tokenizer.decode(both.after[both.question]) == QUESTION


# ---- random weights at real sizes ----


def test_the_30b_has_its_published_size():
    from omnicli.models.families.qwen3_omni_moe import Qwen3OmniMoe, Thinker
    from omnicli.models.weights.dummy import Shrink, random_model

    config, _ = Qwen3OmniMoe.dummy_config("30b", Shrink())
    model = random_model(Thinker, config, "meta", torch.bfloat16)
    assert round(sum(p.numel() for p in model.parameters()) / 1e9, 2) == 31.72
    text, vision, audio = config.text_config, config.vision_config, config.audio_config
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads) == (
        2048,
        48,
        32,
        4,
    )
    assert (text.num_experts, text.num_experts_per_tok, text.moe_intermediate_size, text.head_dim) == (128, 8, 768, 128)
    assert (vision.depth, vision.hidden_size, vision.num_heads, vision.intermediate_size) == (27, 1152, 16, 4304)
    assert list(vision.deepstack_visual_indexes) == [8, 16, 24] and vision.num_position_embeddings == 2304
    assert (audio.encoder_layers, audio.d_model, audio.encoder_attention_heads) == (32, 1280, 20)
    assert (audio.encoder_ffn_dim, audio.n_window_infer, audio.downsample_hidden_size) == (5120, 800, 480)


@pytest.mark.parametrize("scale", [0.5, 0.1, 0.01, 0.0001])
def test_shrinking_keeps_the_experts_sensible(scale):
    from omnicli.models.families.qwen3_omni_moe import Qwen3OmniMoe
    from omnicli.models.weights.dummy import Shrink

    text = Qwen3OmniMoe.dummy_config("30b", Shrink(2, scale))[0].text_config
    assert 2 <= text.num_experts_per_tok <= min(8, text.num_experts) and text.num_experts <= 128
    assert text.moe_intermediate_size % 16 == 0 and text.moe_intermediate_size < 768
    assert text.hidden_size % 64 == 0 and text.head_dim == 128 and text.num_hidden_layers == 2


def test_shrunken_dummies_run_end_to_end():
    from omnicli.llm.decode import DecodeOptions, generate
    from omnicli.llm.kv import KVCache
    from omnicli.llm.prefill import prefill

    omni = load_model("dummy:Qwen3-Omni-30B,layers=3,scale=0.01", device="cpu", dtype="bf16")
    assert (omni.depth, omni.kv_heads, omni.head_dim, omni.dtype) == (3, 4, 128, torch.bfloat16)
    clip = tiny.encode(omni, tiny.frames(3), [0.0, 1.0, 2.0], tiny.sound(2.0))
    assert clip.tokens.layer_features.shape[0] == 3 and clip.tokens.features.std() > 0.05
    given = omni.sequence(omni.prompt("q", video=True, audio=True), clip)
    cache = KVCache(3, 4, 128, dtype=omni.dtype, device="cpu", capacity=200)
    result = prefill(
        omni, given.embeds, given.position_ids, cache, media_span=given.media_span, media=clip.tokens, chunk=30
    )
    assert result.logits.isfinite().all() and result.logits.std() > 0.01
    generate(omni, cache, result.logits, given.next_position, DecodeOptions(max_new_tokens=4)).finish()
    again = load_model("dummy:qwen3-omni-30b,layers=3,scale=0.01", device="cpu", dtype="bf16")
    assert torch.equal(again.thinker.lm_head.weight, omni.thinker.lm_head.weight)
