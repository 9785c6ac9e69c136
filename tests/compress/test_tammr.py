"""The parallel TA-MMR against the literal greedy loop, index for index."""

from __future__ import annotations

import random

import pytest
import torch

from omnicli.compress.tammr import UnitVectors, ta_mmr
from tests.compress.reference import greedy_ta_mmr, grid_vectors, plain_vectors


def case(seed: int) -> dict:
    """Random sizes and settings; a third with duplicates and tied scores, some unsorted, with gaps, or constant."""
    rng, g = random.Random(seed), torch.Generator().manual_seed(seed)
    n, d = rng.randint(1, 70), rng.randint(1, 12)
    features, scores = torch.randn(n, d, generator=g), torch.randn(n, generator=g)
    if seed % 3 == 0:
        features = features[torch.randint(0, max(1, n // 3), (n,), generator=g)]
        scores = (2 * scores).round() / 2
    if seed % 7 == 0:
        scores = torch.zeros(n)
    if seed % 5 == 0:
        features[: n // 2] = 1.0
    if seed % 25 == 0:
        features[:] = 1.0
    window = torch.randint(0, rng.choice([1, 3, 10, 40]), (n,), generator=g) * rng.choice([1, 1, 5]) + 1000
    if seed % 2:
        window = window.sort().values
    return {
        "features": features,
        "scores": scores,
        "window": window,
        "k": rng.choice([0, 1, n // 2, n, rng.randint(0, n)]),
        "diversity": rng.choice([0.0, 0.15, 0.5, 0.9, 1.0]),
        "radius": rng.choice([0, 1, 3, 1000]),
    }


@pytest.mark.parametrize("memory", [2**29, 0], ids=["at once", "on demand"])
def test_equals_the_literal_greedy_loop(memory):
    for seed in range(60):
        c, names = case(seed), ("scores", "window", "k", "diversity", "radius")
        expected = greedy_ta_mmr(grid_vectors(c["features"]), *(c[name] for name in names))
        assert ta_mmr(**c, memory=memory).tolist() == expected, seed


@pytest.mark.parametrize("few", [1, 4, 32])
@pytest.mark.slow
def test_without_a_radius_it_is_the_literal_greedy_over_everything(few, monkeypatch):
    monkeypatch.setattr("omnicli.compress.mmr._FEW", few)
    monkeypatch.setattr("omnicli.compress.mmr._MEMORY", 2000)
    for seed in range(60):
        c, names = case(seed) | {"radius": None}, ("scores", "window", "k", "diversity")
        expected = greedy_ta_mmr(grid_vectors(c["features"]), *(c[name] for name in names), radius=10**9)
        assert ta_mmr(**c).tolist() == expected, seed


def test_equals_the_paper_in_plain_float64_without_ties():
    for seed in range(4):
        g = torch.Generator().manual_seed(seed)
        features, scores = torch.randn(150, 24, generator=g) + 3, torch.randn(150, generator=g)
        window = torch.randint(0, 12, (150,), generator=g).sort().values
        expected = greedy_ta_mmr(plain_vectors(features), scores, window, 60, 0.4, 2)
        assert ta_mmr(features, scores, window, 60, diversity=0.4, radius=2).tolist() == expected, seed


def test_vectors_that_do_not_fit_the_tile_change_nothing(monkeypatch):
    c = case(4) | {"k": 20, "diversity": 0.5, "radius": 3}
    whole = ta_mmr(**c)
    for tile in (1, 500, 3000):
        monkeypatch.setattr("omnicli.compress.tammr._TILE", tile)
        assert torch.equal(ta_mmr(**c), whole)
        assert torch.equal(ta_mmr(**c, memory=0), whole)


def test_later_dtypes_and_rows_are_the_same_as_a_copy():
    g = torch.Generator().manual_seed(3)
    features = torch.randn(200, 16, generator=g).bfloat16()
    rows = torch.randperm(200, generator=g)[:80].sort().values
    scores, window = torch.randn(80, generator=g), torch.arange(80) // 5
    own = ta_mmr(features[rows].float(), scores, window, 30)
    assert torch.equal(ta_mmr(features, scores, window, 30, rows=rows), own)


def test_diversity_spreads_what_the_score_alone_would_not():
    """Two near-copies with the best scores and something else: the second copy has to wait."""
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 1.0], [-1.0, -1.0]])
    scores, window = torch.tensor([1.0, 0.9, 0.85, -1.0]), torch.zeros(4, dtype=torch.int64)
    assert ta_mmr(features, scores, window, 2, diversity=0.0).tolist() == [0, 1]
    assert ta_mmr(features, scores, window, 2, diversity=0.3).tolist() == [0, 2]
    far = torch.tensor([0, 4, 4, 4])
    assert ta_mmr(features, scores, far, 2, diversity=0.3, radius=3).tolist() == [0, 1], "out of reach: no penalty"
    assert ta_mmr(features, scores, far, 2, diversity=0.3, radius=4).tolist() == [0, 2]


def test_dissimilar_tokens_are_not_rewarded():
    """Cosines below 0 count as 0: an opposite neighbour gains nothing over a lonely token with a better score."""
    features = torch.tensor([[1.0], [-1.0], [0.0]])
    scores, window = torch.tensor([1.0, 0.5, 0.55]), torch.tensor([0, 0, 9])
    assert ta_mmr(features, scores, window, 2, diversity=0.9).tolist() == [0, 2]


def test_products_of_unit_vectors_are_exact_in_any_order():
    vectors = UnitVectors(torch.randn(40, 3000, generator=torch.Generator().manual_seed(0)))(slice(None))
    product = vectors @ vectors.T
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(vectors[:, order] @ vectors[:, order].T, product)
    assert torch.equal(torch.stack([(vectors * v).flip(1).cumsum(1)[:, -1] for v in vectors]), product)


@pytest.mark.parametrize(
    "change",
    [{"k": -1}, {"k": 9}, {"diversity": 1.5}, {"radius": -1}, {"scores": torch.tensor([0.0, torch.nan] * 4)}],
    ids=str,
)
def test_impossible_requests_are_refused(change):
    good = {"features": torch.randn(8, 2), "scores": torch.zeros(8), "window": torch.arange(8), "k": 2}
    with pytest.raises(ValueError):
        ta_mmr(**(good | change))
