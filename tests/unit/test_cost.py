"""Arithmetic of a prefill, on numbers small enough to count by hand."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from omnicli.cost import layer_flops, prefill_flops


@dataclass
class Small:
    hidden_size: int = 4
    intermediate_size: int = 6
    depth: int = 3
    heads: int = 2
    kv_heads: int = 1
    head_dim: int = 2
    vocab_size: int = 5


def by_counting(d: Small, length: int) -> int:
    """Count the multiply-adds of one layer, position by position and key by key; each is two FLOPs."""
    total = 0
    for i in range(length):
        total += 2 * d.hidden_size * d.heads * d.head_dim  # queries, and back from the heads
        total += 2 * d.hidden_size * d.kv_heads * d.head_dim  # keys, values
        total += 3 * d.hidden_size * d.intermediate_size  # gate, up, down
        for _ in range(i + 1):
            total += 2 * d.heads * d.head_dim  # a score, a weighted value
    return 2 * total


def test_a_layer_by_hand():
    # 3 positions: (48 + 72) each, and 1 + 2 + 3 keys of 2 * 4; two FLOPs each
    assert layer_flops(Small(), 3) == 2 * (3 * (48 + 72) + 6 * 8) == 816
    assert layer_flops(Small(), 1) == 2 * (48 + 72 + 8) == 256
    assert layer_flops(Small(), 0) == 0


@pytest.mark.parametrize("length", [1, 2, 7, 30])
@pytest.mark.parametrize("d", [Small(), Small(heads=4, kv_heads=4), Small(hidden_size=8, head_dim=3)])
def test_a_layer_equals_counting_every_product(d, length):
    assert layer_flops(d, length) == by_counting(d, length)


def test_all_tokens_in_all_layers_is_the_full_prefill():
    cost = prefill_flops(Small(), 2, 9, [[0, 9]])
    assert cost["prefill"] == cost["full_prefill"] == 3 * layer_flops(Small(), 11) + 2 * 4 * 5


def test_pruned_layers_are_added_up_range_by_range():
    # layer 0 over 1 + 4 positions, layer 1 over 1 + 2, layer 2 over 1 + 1, and the head on one position
    cost = prefill_flops(Small(), 1, 4, [[0, 4], [1, 2], [2, 1]])
    assert cost["prefill"] == 1440 + 816 + 528 + 40
    assert cost["full_prefill"] == 3 * 1440 + 40


def test_ranges_of_several_layers():
    d = Small(depth=7)
    cost = prefill_flops(d, 3, 20, [[0, 12], [2, 6], [6, 1]])
    layers = [15, 15, 9, 9, 9, 9, 4]
    assert cost["prefill"] == sum(layer_flops(d, n) for n in layers) + 40
    assert cost["full_prefill"] == 7 * layer_flops(d, 23) + 40


def test_tokens_dropped_before_the_llm_are_in_the_full_prefill_only():
    cost = prefill_flops(Small(), 1, 50, [[0, 2]])
    assert cost["prefill"] == 3 * 816 + 40
    assert cost["full_prefill"] == 3 * layer_flops(Small(), 51) + 40
