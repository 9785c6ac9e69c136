"""The cache: ragged lengths, growth, truncation."""

from __future__ import annotations

import pytest
import torch

from omnicli.llm.kv import KVCache


def rows(a, b):
    return torch.arange(a, b).float().view(1, 1, -1, 1).expand(1, 2, -1, 3)


def cache(capacity=4):
    return KVCache(2, 2, 3, dtype=torch.float32, device="cpu", capacity=capacity)


def test_layers_are_independent_and_grow():
    kv = cache()
    k, v = kv.update(rows(0, 3), -rows(0, 3), 0)
    assert torch.equal(k, rows(0, 3)) and torch.equal(v, -rows(0, 3))
    k, v = kv.update(rows(3, 9), -rows(3, 9), 0)
    assert torch.equal(k, rows(0, 9)) and torch.equal(v, -rows(0, 9))
    assert kv.lengths == [9, 0]


def test_nothing_is_copied_inside_the_capacity():
    kv = cache(8)
    first = kv.update(rows(0, 3), rows(0, 3), 0)[0].data_ptr()
    assert kv.update(rows(3, 8), rows(3, 8), 0)[0].data_ptr() == first
    assert kv.nbytes == 2 * 2 * 8 * 3 * 4


def test_keep_and_truncate():
    kv = cache(8)
    for layer in (0, 1):
        kv.update(rows(0, 6), rows(0, 6), layer)
    kv.keep(1, torch.tensor([0, 2, 5]))
    assert kv.lengths == [6, 3]
    k, _ = kv.update(rows(6, 7), rows(6, 7), 1)
    assert k[0, 0, :, 0].tolist() == [0, 2, 5, 6]
    kv.truncate([6, 3])
    assert kv.lengths == [6, 3]
    kv.truncate(2)
    assert kv.lengths == [2, 2]
    with pytest.raises(ValueError, match="truncate"):
        kv.truncate(5)


def test_a_layer_can_be_given_less_before_its_first_use():
    kv = cache(100)
    kv.reserve(1, 5)
    kv.update(rows(0, 3), rows(0, 3), 1)
    assert kv.nbytes == 2 * 2 * 5 * 3 * 4
