"""full, random and uniform."""

from __future__ import annotations

import pytest
import torch

from omnicli.compress.methods.full import Full
from omnicli.compress.methods.random import Random
from omnicli.compress.methods.uniform import Uniform, evenly_spaced
from omnicli.testing.clips import clip, query
from omnicli.types import Modality


def test_full_keeps_all():
    assert torch.equal(Full().compress(clip(), query()).indices, torch.arange(len(clip())))


def test_random_draws_evenly_and_by_its_seed():
    tokens = clip(blocks=20)
    seen = torch.zeros(len(tokens))
    for seed in range(200):
        seen[Random(retention=0.2, split="proportional", seed=seed).compress(tokens, query()).indices] += 1
    assert float(seen.min()) >= 20 and float(seen.max()) <= 62  # mean 40, deviation 5.7
    first, other = (Random(tokens=30, seed=s).compress(tokens, query()).indices for s in (0, 1))
    assert not torch.equal(first, other)


def test_random_is_the_same_for_every_question_and_dtype():
    a = Random(tokens=30).compress(clip(), query(seed=1)).indices
    assert torch.equal(a, Random(tokens=30).compress(clip(dtype=torch.bfloat16), query(seed=2)).indices)


@pytest.mark.parametrize("k", [1, 7, 20, 40, 77, 200, 399])
def test_uniform_is_even_in_time(k):
    tokens = clip(blocks=20, audio=25, rows=4, cols=5)
    for modality, name in ((Modality.VIDEO, "2:0"), (Modality.AUDIO, "0:2")):
        kept = tokens.select(Uniform(tokens=k, split=name).compress(tokens, query()))
        assert kept.count(modality) == k
        per_block = torch.bincount(kept.window, minlength=20)
        assert int(per_block.max()) - int(per_block.min()) <= 1
        # Any stretch of blocks holds its share up to rounding.
        running = per_block.cumsum(0) - torch.arange(1, 21) * k / 20
        assert float(running.abs().max()) <= 1


def test_uniform_is_even_in_space():
    tokens = clip(blocks=64, audio=0, rows=4, cols=8)
    kept = tokens.select(Uniform(tokens=64 * 8).compress(tokens, query()))
    for b in range(64):
        here = kept.window == b
        quadrants = 2 * (kept.row[here] >= 2).long() + (kept.col[here] >= 4).long()
        assert torch.bincount(quadrants, minlength=4).tolist() == [2, 2, 2, 2]
    cells = torch.bincount((kept.row * 8 + kept.col).long(), minlength=32)
    assert int(cells.min()) >= 8 and int(cells.max()) <= 24, "every cell gets its turn"


def test_uniform_with_one_cell_a_picture_visits_the_whole_picture():
    tokens = clip(blocks=64, audio=0, rows=4, cols=7)
    kept = tokens.select(Uniform(tokens=64).compress(tokens, query()))
    assert len(set(kept.row.tolist())) == 4 and len(set(kept.col.tolist())) == 7


def test_evenly_spaced_in_any_order_and_amount():
    start = torch.tensor([5.0, 0.0, 5.0, 1.0, 1.0, 1.0])
    none = torch.full((6,), -1)
    for k in range(7):
        found = evenly_spaced(start, none, none, k)
        assert len(set(found.tolist())) == k
