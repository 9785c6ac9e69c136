"""Closed forms: patches, counts, windows, order; attention calls."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from omnicli.models import attention, layout
from omnicli.models.facts.base import CLIP_MEAN, CLIP_STD
from omnicli.models.facts.qwen2_5_omni import FACTS
from omnicli.models.facts.qwen_omni import capped_pixels
from tests.support import tiny


@pytest.mark.parametrize(("n", "height", "width"), [(1, 28, 28), (3, 56, 84), (4, 84, 28)])
def test_patches_equal_slow_loops(n, height, width):
    pictures = tiny.frames(n, height, width)
    assert torch.equal(layout.patchify(pictures, CLIP_MEAN, CLIP_STD), tiny.patchify_reference(pictures))


def test_patches_equal_the_stock_picture_processor():
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    picture = tiny.frames(1, 56, 84)
    processor = Qwen2VLImageProcessorPil(do_resize=False)
    stock = processor(images=picture[0].numpy(), return_tensors="pt")
    assert stock["image_grid_thw"].tolist() == [[1, 4, 6]]
    assert (layout.patchify(picture, CLIP_MEAN, CLIP_STD) - stock["pixel_values"]).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(2, 27, 28, 3), (2, 28, 28, 1), (0, 28, 28, 3)])
def test_wrong_frames_are_refused(shape):
    with pytest.raises(ValueError, match="frames of shape"):
        layout.patchify(torch.zeros(shape, dtype=torch.uint8), CLIP_MEAN, CLIP_STD)


def test_two_seconds_are_fifty_tokens_and_pieces_add_up():
    assert FACTS.mel_tokens(200) == 50
    for total in range(0, 1000):
        pieces = 50 * (total // 200) + FACTS.mel_tokens(total % 200)
        assert pieces == FACTS.mel_tokens(total)


@pytest.mark.parametrize(("rows", "cols", "side"), [(1, 1, 4), (3, 5, 4), (4, 8, 4), (9, 13, 4), (2, 9, 4)])
def test_windows_hold_what_the_stock_windows_hold(rows, cols, side):
    from transformers.vision_utils import get_vision_window_index

    order, spans = layout.window_order(rows, cols, side)
    assert sorted(order.tolist()) == list(range(rows * cols))
    mine = [order[i : i + size].tolist() for begin, end, size in spans for i in range(begin, end, size)]
    index, borders = get_vision_window_index(torch.tensor([[1, rows * 2, cols * 2]]), 2, side * 28, 14)
    borders = (borders // 4).tolist()
    stock = [index[a:b].tolist() for a, b in itertools.pairwise(borders)]
    assert sorted(mine) == sorted(stock)
    assert len(spans) <= 4


def test_capped_pixels():
    assert capped_pixels(100_352, 602_112, 3600, 128_000, unit=28) == int(100_352 * 1.05)
    assert capped_pixels(100_352, 602_112, 768, 128_000, unit=28) == 235_200
    assert capped_pixels(100_352, 602_112, 10, 128_000, unit=28) == 602_112


def test_times_of_groups():
    starts, ends = layout.token_times(np.array([0.0, 1.0, 2.0, 3.0, 4.0]), 2, None)
    assert starts.tolist() == [0, 2, 4] and ends.tolist() == [2, 4, 6]
    assert layout.token_times(np.array([0.0, 1.0, 2.0]), 2, 2.5)[1].tolist() == [2, 2.5]
    assert layout.token_times(np.array([5.0]), 2, 7.0)[1].tolist() == [7.0]
    assert layout.token_times(np.array([5.0]), 2, None)[1].tolist() == [5.0]
    assert layout.token_times(np.array([]), 2, None)[0].tolist() == []


# ---- attention ----


@pytest.mark.parametrize(("n", "kv"), [(1, 40), (7, 40), (40, 40), (39, 40), (300, 700)])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("function", ["causal_attention", "_masked", "_past_and_present"])
def test_causal_attention_behind_a_cache(n, kv, kv_heads, function):
    generator = torch.Generator().manual_seed(n + kv)
    q, k, v = (torch.randn(1, h, s, 16, generator=generator) for h, s in ((4, n), (kv_heads, kv), (kv_heads, kv)))
    shared = [t.repeat_interleave(4 // kv_heads, 1) for t in (k, v)]
    mask = torch.ones(n, kv, dtype=torch.bool).tril(kv - n)
    expected = scaled_dot_product_attention(q, *shared, attn_mask=mask, scale=0.3)
    if function != "causal_attention":
        if n == kv:
            pytest.skip("needs a past")
        k, v = shared
    got = getattr(attention, function)(q, k, v, 0.3)
    assert (got - expected).abs().max() < 1e-5


def test_bfloat16_attention_behind_a_cache_is_near():
    q, k, v = (torch.randn(1, 4, s, 16).bfloat16() for s in (50, 200, 200))
    mask = torch.ones(50, 200, dtype=torch.bool).tril(150)
    expected = scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask)
    assert (attention.causal_attention(q, k, v, 0.25).float() - expected).abs().max() < 0.03


def test_received_attention_in_small_pieces(monkeypatch):
    q, k = torch.randn(3, 2, 20, 8), torch.randn(3, 2, 20, 8)
    expected = torch.softmax(q @ k.transpose(2, 3) * 0.5, -1).sum(2).mean(1)
    assert (attention.received_attention(q, k, 0.5) - expected).abs().max() < 1e-5
    monkeypatch.setattr(attention, "_MAP_ELEMENTS", 60)
    assert (attention.received_attention(q, k, 0.5) - expected).abs().max() < 1e-5
    assert torch.allclose(expected.mean(1), torch.ones(3), atol=1e-5)
