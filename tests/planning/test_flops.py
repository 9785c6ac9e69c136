"""The cost model: numbers small enough to count by hand, PyTorch's own counter, and the papers' tables."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from omnicli.compress.schedule import official, solve
from omnicli.models.facts.dimensions import Dimensions
from omnicli.models.facts.qwen2_5_omni import FACTS
from omnicli.models.families.qwen2_5_omni import SIZES, Qwen25Omni
from omnicli.models.layout import window_order
from omnicli.models.weights.dummy import Shrink
from omnicli.planning import flops as cost
from omnicli.planning.flops import PAPERS, layer_macs, prefill_flops
from tests.support import tiny

SMALL = Dimensions(hidden_size=4, intermediate_size=6, depth=3, heads=2, kv_heads=1, head_dim=2, vocab_size=5)
SEVEN = cost.QWEN2_5_OMNI_7B


# ---- LLM, by hand ----


def by_counting(d: Dimensions, length: int, causal: bool = True) -> int:
    """Count the multiply-adds of one layer, position by position and key by key."""
    total = 0
    for i in range(length):
        total += 2 * d.hidden_size * d.heads * d.head_dim  # queries, and back from the heads
        total += 2 * d.hidden_size * d.kv_heads * d.head_dim  # keys, values
        total += 3 * d.hidden_size * d.intermediate_size  # gate, up, down
        total += d.hidden_size * d.num_experts
        for _ in range(i + 1 if causal else length):
            total += 2 * d.heads * d.head_dim  # a score, a weighted value
    return total


def test_a_layer_by_hand():
    # 3 positions: (48 + 72) each, and 1 + 2 + 3 keys of 2 * 4
    assert layer_macs(SMALL, 3) == 3 * (48 + 72) + 6 * 8 == 408
    assert layer_macs(SMALL, 3, causal=False) == 3 * (48 + 72) + 9 * 8 == 432
    assert layer_macs(SMALL, 1) == layer_macs(SMALL, 1, causal=False) == 48 + 72 + 8
    assert layer_macs(SMALL, 0) == 0


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [1, 2, 7, 30])
@pytest.mark.parametrize(
    "d",
    [
        SMALL,
        replace(SMALL, heads=4, kv_heads=4),
        replace(SMALL, hidden_size=8, head_dim=3),
        replace(SMALL, num_experts=7),
    ],
)
def test_a_layer_equals_counting_every_product(d, length, causal):
    assert layer_macs(d, length, causal) == by_counting(d, length, causal)


def test_all_tokens_in_all_layers_is_the_full_prefill():
    found = prefill_flops(SMALL, 2, 9, [[0, 9]])
    whole = 2 * (3 * layer_macs(SMALL, 11) + 4 * 5)
    assert found == {"prefill": whole, "full_prefill": whole, "compress": 0}


def test_what_is_read_before_the_choice_has_layers_but_no_head():
    found = prefill_flops(SMALL, 2, 9, [[0, 3]], [(7, 2), (5, 2)])
    assert found["compress"] == 2 * 2 * (layer_macs(SMALL, 7) + layer_macs(SMALL, 5))


def test_a_prefill_as_the_papers_count_it():
    """SEATS, R = 10 %, on 8,664 picture, 2,904 sound and 200 text tokens: 12.2 of 111.0 TFLOPs (table 3)."""
    by_layer = [[0, 2151], [16, 2000], [18, 1590], [20, 475], [23, 0]]
    found = prefill_flops(SEVEN, 200, 8664 + 2904, by_layer, convention=PAPERS)
    assert found["prefill"] / 1e12 == pytest.approx(12.2, abs=0.05)
    assert found["full_prefill"] / 1e12 == pytest.approx(111.0, abs=0.05)
    asked = prefill_flops(SMALL, 2, 9, [[0, 9]], [(3, 2), (4, 1)], convention=PAPERS)
    assert asked["compress"] == 2 * layer_macs(SMALL, 3, causal=False) + layer_macs(SMALL, 4, causal=False)


def test_pruned_layers_are_added_up_range_by_range():
    # layer 0 over 1 + 4 positions, layer 1 over 1 + 2, layer 2 over 1 + 1, and the head on one position
    found = prefill_flops(SMALL, 1, 4, [[0, 4], [1, 2], [2, 1]])
    assert found["prefill"] == 1440 + 816 + 528 + 40
    assert found["full_prefill"] == 3 * 1440 + 40


def test_ranges_of_several_layers():
    d = replace(SMALL, depth=7)
    layers = [15, 15, 9, 9, 9, 9, 3]
    by_layer = [[0, 12], [2, 6], [6, 0]]
    assert cost.layer_lengths(3, by_layer, 7) == layers
    found = prefill_flops(d, 3, 20, by_layer)
    assert found["prefill"] == 2 * sum(layer_macs(d, n) for n in layers) + 40
    assert found["full_prefill"] == 2 * 7 * layer_macs(d, 23) + 40


def test_tokens_dropped_before_the_llm_are_in_the_full_prefill_only():
    found = prefill_flops(SMALL, 1, 50, [[0, 2]])
    assert found["prefill"] == 3 * 816 + 40
    assert found["full_prefill"] == 2 * 3 * layer_macs(SMALL, 51) + 40


def test_layers_and_head_are_apart_and_conventions_differ():
    lengths = [5, 3, 2]
    ours, papers = cost.prefill(SMALL, lengths), cost.prefill(SMALL, lengths, PAPERS)
    assert ours.layers == sum(layer_macs(SMALL, n) for n in lengths) and ours.head == 20
    assert papers.layers == sum(layer_macs(SMALL, n, causal=False) for n in lengths) and papers.head == 2 * 20
    assert ours.flops == 2 * ours.macs and papers.flops == papers.macs
    with pytest.raises(ValueError, match="2 lengths for 3 layers"):
        cost.prefill(SMALL, [5, 3])


def test_decoding_a_prompt_token_by_token_costs_as_much_as_its_prefill():
    whole = cost.prefill(SMALL, [6] * 3)
    decoded = cost.decode(SMALL, [0] * 3, 6)
    assert decoded.layers == whole.layers and decoded.head == 6 * whole.head
    begun = cost.prefill(SMALL, [4] * 3)
    assert begun.layers + cost.decode(SMALL, [4] * 3, 2).layers == whole.layers


def test_decoding_counts_what_each_layers_cache_holds():
    # Two steps on caches of 9, 4 and 0: 10 + 11, 5 + 6 and 1 + 2 keys of 2 * 4, and 6 times the linear part.
    assert cost.decode(SMALL, [9, 4, 0], 2).layers == 6 * 120 + (21 + 11 + 3) * 8
    assert cost.decode(SMALL, [9, 4, 0], 0).macs == 0
    with pytest.raises(ValueError, match="cache"):
        cost.decode(SMALL, [9], 2)


# ---- against PyTorch's counter ----


def counted(run) -> int:
    """FLOPs of matrix products, convolutions and attention (every query with every key) as PyTorch counts them."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def omni():
    return tiny.model()


@pytest.mark.parametrize("length", [1, 5, 64])
def test_a_layer_as_pytorch_counts_it(omni, length):
    d = omni.facts.llm
    hidden = torch.randn(length, d.hidden_size)
    rope = omni.rope(torch.arange(length).repeat(3, 1))
    assert counted(lambda: omni.layer(0, hidden, rope, None)) == 2 * layer_macs(d, length, causal=False)
    assert counted(lambda: omni.logits(hidden[-1:])) == 2 * cost.prefill(d, [length] * d.depth).head


@pytest.mark.parametrize(("pairs", "height", "width"), [(1, 56, 56), (3, 112, 196), (2, 252, 140)])
def test_pictures_as_pytorch_counts_them(omni, pairs, height, width):
    e = cost.EncoderDims.vision(omni.thinker.config.vision_config)
    pictures = tiny.frames(2 * pairs, height, width)
    expected = 2 * cost.vision_macs(e, pairs, height // 28, width // 28)
    assert counted(lambda: omni.encode_video(pictures)) == expected > 0


@pytest.mark.parametrize("mel_frames", [200, 1000, 737, 401, 402, 403, 404, 50])
def test_sound_as_pytorch_counts_it(omni, mel_frames):
    e = cost.EncoderDims.audio(omni.thinker.config.audio_config)
    mel = torch.randn(128, mel_frames)
    assert counted(lambda: omni.encode_mel(mel)) == 2 * cost.audio_macs(e, mel_frames) > 0


# ---- encoders, by hand ----


def test_windowed_attention_by_hand():
    # 5 x 3 tokens of 4 patches in windows of 2 x 2: 2 of 16 patches, 2 of 8 at the right, 1 of 8 and 1 of 4 below.
    e = cost.EncoderDims(10, 20, 3, 3, 1, window=2, merge=4, frame_macs=0, stem_macs=7, out_macs=9)
    window, full, n = 2 * 256 + 2 * 64 + 64 + 16, 60 * 60, 60
    linear = 3 * n * (4 * 10 * 10 + 3 * 10 * 20)
    expected = n * 7 + linear + 2 * 10 * (2 * window + full) + 15 * 9
    assert cost.vision_macs(e, 1, 5, 3) == expected
    assert cost.vision_macs(e, 6, 5, 3) == 6 * expected


@pytest.mark.parametrize(("rows", "cols"), [(9, 16), (8, 15), (1, 1), (4, 4), (10, 13)])
def test_windows_are_those_of_the_tower(rows, cols):
    sizes = [(end - begin) // size * [size] for begin, end, size in window_order(rows, cols, 4)[1]]
    met = sum((4 * size) ** 2 for group in sizes for size in group)
    e = cost.EncoderDims(1, 0, 1, 3, 0, window=4, merge=4, frame_macs=0, stem_macs=0, out_macs=0)
    assert cost.vision_macs(e, 1, rows, cols) == 4 * rows * cols * 4 + 2 * met


def test_sound_windows_by_hand():
    # 2 windows of 4 mel frames (2 positions, 1 token) and a rest of 3 (2 positions, 1 token) or 2 (no token, no work).
    e = cost.EncoderDims(10, 20, 3, 2, 0, window=2, merge=2, frame_macs=5, stem_macs=7, out_macs=9)
    one = 2 * 7 + 3 * 2 * (400 + 400) + 2 * 10 * 3 * 4 + 9
    assert cost.audio_macs(e, 8) == 2 * (one + 4 * 5)
    assert cost.audio_macs(e, 11) == 2 * (one + 4 * 5) + one + 3 * 5
    assert cost.audio_macs(e, 10) == cost.audio_macs(e, 8)
    assert cost.audio_macs(e, 0) == 0


@pytest.mark.parametrize("mel_frames", [*range(200), 1234])
def test_sound_tokens_are_those_of_the_tower(mel_frames):
    e = cost.EncoderDims(0, 0, 0, 2, 0, window=100, merge=2, frame_macs=0, stem_macs=0, out_macs=1)
    assert cost.audio_macs(e, mel_frames) == FACTS.mel_tokens(mel_frames)


def test_the_towers_of_qwen2_5_omni():
    config, _ = Qwen25Omni.dummy_config("7b", Shrink())
    assert cost.EncoderDims.vision(config.vision_config) == cost.QWEN2_5_OMNI_7B_VISION
    assert cost.EncoderDims.audio(config.audio_config) == cost.QWEN2_5_OMNI_7B_AUDIO
    config, _ = Qwen25Omni.dummy_config("3b", Shrink())
    assert cost.EncoderDims.vision(config.vision_config) == cost.QWEN2_5_OMNI_3B_VISION
    assert cost.EncoderDims.audio(config.audio_config) == cost.QWEN2_5_OMNI_3B_AUDIO
    # 144 tokens of a pair: parameters of a block x 576 patches x 32, the rest is attention, patches and merger.
    blocks = 32 * 576 * (4 * 1280**2 + 3 * 1280 * 3420)
    assert 1.0 < cost.vision_macs(cost.QWEN2_5_OMNI_7B_VISION, 1, 9, 16) / blocks < 1.15


def test_dummy_models_have_the_dimensions_of_the_constants():
    for size, d in (("7b", SEVEN), ("3b", cost.QWEN2_5_OMNI_3B)):
        assert list(SIZES[size].values()) == [
            d.hidden_size,
            d.intermediate_size,
            d.depth,
            d.heads,
            d.kv_heads,
            d.vocab_size,
        ]
        assert d.query_width == d.hidden_size


# ---- selection ----


def test_scoring_one_row():
    # One query row of 4 x 4, keys of 4 x 2 for each of 6 positions, 6 scores of 4.
    assert cost.scoring_macs(SMALL, 6) == 16 + 24
    assert cost.scoring_macs(SMALL, 6, queries=0) == 24
    assert cost.scoring_macs(SMALL, 6, keys=True) == 16 + 48 + 24
    assert cost.scoring_macs(SMALL, 6, queries=6, keys=True) == 6 * (16 + 8) + 24


def test_scoring_as_released_is_a_quarter_of_a_teraflop_and_one_row_an_eighth_of_it():
    lengths = [6482, 6041, 4843]
    released = sum(cost.scoring_macs(SEVEN, n, queries=n, keys=True) for n in lengths)
    ours = sum(cost.scoring_macs(SEVEN, n, keys=True) for n in lengths)
    assert released / 1e12 == pytest.approx(0.255, abs=5e-4)
    assert ours / released == pytest.approx(1 / 8, abs=3e-3)


# ---- the papers' tables ----


def teraflops(d: Dimensions, lengths: list[int]) -> float:
    return cost.prefill(d, lengths, PAPERS).flops / 1e12


def test_parts_of_the_7b_model():
    assert 28 * SEVEN.token_macs == pytest.approx(6.5253e9, rel=1e-5)
    assert SEVEN.hidden_size * SEVEN.vocab_size == pytest.approx(0.5450e9, rel=1e-4)
    assert 2 * 28 * SEVEN.query_width == 200_704


def test_all_tokens_of_the_average_worldsense_clip():
    assert teraflops(SEVEN, [11768] * 28) == pytest.approx(110.998, abs=5e-4)


def by_schedule(r_video: float, r_audio: float, clip: tuple[int, int, int]) -> list[int]:
    """Positions in each of 28 layers: shares rounded before the LLM, then rounded at every drop."""
    schedule = official(28, (15, 17, 19), 22)
    video, audio = round(1.4 * r_video * clip[0]), round(1.4 * r_audio * clip[1])
    lengths = []
    for layer in range(28):
        lengths.append(clip[2] + video + audio)
        if layer in schedule.drops:
            keep = schedule.keep[schedule.drops.index(layer)]
            video, audio = round(keep * video), round(keep * audio)
        if layer == schedule.late:
            video = audio = 0
    return lengths


@pytest.mark.parametrize(
    ("r_video", "r_audio", "lengths", "expected", "published"),
    [
        (0.30, 0.65, [6482, 6041, 4843, 1586, 200], 36.4, 36.7),
        (0.20, 0.55, [4862, 4535, 3646, 1229, 200], 26.4, 26.5),
        (0.10, 0.45, [3243, 3030, 2450, 872, 200], 17.0, 17.3),
        (0.06, 0.35, [2351, 2200, 1790, 675, 200], 12.2, 12.2),
    ],
)
def test_seats_on_the_average_clip(r_video, r_audio, lengths, expected, published):
    found = by_schedule(r_video, r_audio, (8664, 2904, 200))
    runs = [n for i, n in enumerate(found) if i in (0, 16, 18, 20, 23)]
    assert found == [n for n, times in zip(runs, (16, 2, 2, 3, 5), strict=True) for _ in range(times)]
    assert runs == pytest.approx(lengths, abs=1)
    assert round(teraflops(SEVEN, found), 1) == expected == pytest.approx(published, rel=0.02)


def test_the_hand_check():
    parts = {n: layer_macs(SEVEN, n, causal=False) / 1e12 for n in (2351, 2200, 1790, 675, 200)}
    assert {n: round(x, 4) for n, x in parts.items()} == {
        2351: 0.5875,
        2200: 0.5474,
        1790: 0.4401,
        675: 0.1606,
        200: 0.0469,
    }
    assert all(x == (n * 233_046_016 + 7168 * n * n) / 1e12 for n, x in parts.items())
    lengths = [2351] * 16 + [2200] * 2 + [1790] * 2 + [675] * 3 + [200] * 5
    assert cost.prefill(SEVEN, lengths, PAPERS).head / 1e12 == pytest.approx(0.109, abs=5e-4)
    assert teraflops(SEVEN, lengths) == pytest.approx(12.20, abs=5e-3)


@pytest.mark.parametrize(
    ("r_video", "r_audio", "expected"), [(0.30, 0.65, 37.6), (0.20, 0.55, 27.5), (0.10, 0.45, 17.9), (0.06, 0.35, 12.9)]
)
def test_selection_before_the_llm_only(r_video, r_audio, expected):
    length = 180 + round(r_video * 8632) + round(r_audio * 2956)
    assert teraflops(SEVEN, [length] * 28) == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize(("length", "expected"), [(10270, 47.2), (4018, 13.5), (3001, 9.5)])
def test_the_papers_30b_column_has_heads_of_64(length, expected):
    papers = replace(cost.QWEN3_OMNI_30B, head_dim=64, num_experts=0)
    assert teraflops(papers, [length] * 48) == pytest.approx(expected, abs=0.06)


def test_the_30b_model_costs_more_than_the_paper_says():
    assert teraflops(replace(cost.QWEN3_OMNI_30B, num_experts=0), [10270] * 48) == pytest.approx(73, abs=0.6)


def test_what_seats_saves_in_true_flops():
    schedule = solve(28, (15, 17, 19), 22)
    lengths = [200 + round(level * (0.06 * 8664 + 0.35 * 2904)) for level in schedule.levels(28)]
    full = cost.prefill(SEVEN, [11768] * 28)
    assert full.flops / 1e12 == pytest.approx(2 * (76.789 + 13.898), rel=1e-3)
    assert full.flops / cost.prefill(SEVEN, lengths).flops == pytest.approx(7.74, abs=0.005)
