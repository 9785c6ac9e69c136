"""VidCom2 against a slow loop in both modes, its channels and kernel, and frames that stand out."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from omnicli.compress import outliers
from omnicli.compress.budget import spread
from omnicli.compress.methods.vidcom2 import VidCom2, released_quota
from omnicli.compress.outliers import nearness, steady_channels
from omnicli.errors import ConfigError, ModelError
from omnicli.testing.clips import clip, query
from omnicli.types import MediaTokens, Modality, Selection


def ragged(seed: int) -> MediaTokens:
    """Frames of different sizes, windows without sound or without pictures."""
    whole = clip(blocks=6, frames=3, audio=9, seed=seed)
    keep = torch.rand(len(whole), generator=torch.Generator().manual_seed(seed)) < 0.7
    keep &= ~((whole.window == 2) & (whole.modality == 1)) & ~((whole.window == 4) & (whole.modality == 0))
    return whole.select(Selection(torch.nonzero(keep).flatten()))


CLIPS = {
    "even": clip(blocks=7, frames=2, audio=11, seed=1),
    "one frame": clip(blocks=1, audio=4, seed=2),
    "odd width": clip(blocks=3, frames=3, audio=2, width=9, seed=3),
    "ragged": ragged(4),
    "bf16": clip(blocks=5, seed=5, dtype=torch.bfloat16),
}
every_clip = pytest.mark.parametrize("kind", list(CLIPS))


def kernel(x: list[float], y: list[float]) -> float:
    square = sum((a - b) ** 2 for a, b in zip(x, y, strict=True))
    return sum(math.exp(-square / (2 * a)) for a in (1 / 8, 1 / 4, 1 / 2, 1, 2))


def mean(vectors: list[list[float]]) -> list[float]:
    return [sum(column) / len(vectors) for column in zip(*vectors, strict=True)]


def slow_scores(tokens: MediaTokens) -> tuple[list[list[int]], dict[int, float], list[float]]:
    """Grids, the score by which tokens go (the lowest stay), and the grids' weights."""
    eyes = tokens.indices(Modality.VIDEO).tolist()
    x = {i: tokens.features[i].double().tolist() for i in eyes}
    middle = mean(list(x.values()))
    spread_ = [sum((v[c] - middle[c]) ** 2 for v in x.values()) for c in range(len(middle))]
    channels = sorted(range(len(middle)), key=lambda c: (spread_[c], c))[: len(middle) // 2]
    for i, v in x.items():
        length = math.sqrt(sum(v[c] ** 2 for c in channels))
        x[i] = [v[c] / length for c in channels]
    grids: dict[float, list[int]] = {}
    for i in eyes:
        grids.setdefault(float(tokens.start_s[i]), []).append(i)
    g = mean(list(x.values()))
    score, s = {}, []
    for grid in grids.values():
        c = mean([x[i] for i in grid])
        score |= {i: kernel(x[i], g) + kernel(x[i], c) for i in grid}
        s.append(-sum(kernel(x[i], g) for i in grid) / len(grid))
    raised = [math.exp((v - max(s)) / 0.01) for v in s]
    return list(grids.values()), score, [r / sum(raised) for r in raised]


def lowest(grids: list[list[int]], score: dict[int, float], counts: list[int]) -> list[int]:
    kept = []
    for grid, k in zip(grids, counts, strict=True):
        kept += sorted(grid, key=lambda i: (score[i], i))[:k]
    return kept


@every_clip
@pytest.mark.parametrize("share", [0.25, 0.6, 0.08])
def test_official_is_the_slow_loop(kind, share):
    tokens = CLIPS[kind]
    chosen = VidCom2(mode="official", retention_video=share).compress(tokens, query())
    grids, score, p = slow_scores(tokens)
    r = [min(1, share * (1 + v - 1 / len(p))) for v in p]
    counts = [max(1, round(v * len(grid))) for v, grid in zip(r, grids, strict=True)]
    expected = lowest(grids, score, counts) + tokens.indices(Modality.AUDIO).tolist()
    assert chosen.indices.tolist() == sorted(expected) and chosen.features is None
    assert chosen.report["budget"] == {"video": sum(counts), "audio": tokens.count(Modality.AUDIO)}


@every_clip
@pytest.mark.parametrize("share", [0.25, 0.6, 0.08])
def test_clean_is_the_slow_loop_and_meets_the_budget(kind, share):
    tokens = CLIPS[kind]
    method = VidCom2(retention_video=share)
    chosen, plan = method.compress(tokens, query()), method.plan(tokens)
    assert chosen.report["budget"] == plan.to_dict()
    grids, score, p = slow_scores(tokens)
    sizes = [len(grid) for grid in grids]
    weights = [(1 + v - 1 / len(p)) * n for v, n in zip(p, sizes, strict=True)]
    counts = spread(plan.video, torch.tensor(sizes), torch.tensor(weights, dtype=torch.float64)).tolist()
    expected = lowest(grids, score, counts) + tokens.indices(Modality.AUDIO).tolist()
    assert chosen.indices.tolist() == sorted(expected)


def test_the_frame_that_stands_out_keeps_twice_its_share():
    tokens = clip(blocks=8, audio=0, rows=6, cols=6, width=32)
    features = torch.randn(36, 32, generator=torch.Generator().manual_seed(0)).repeat(8, 1)
    features[3 * 36 : 4 * 36] *= -1
    tokens = dataclasses.replace(tokens, features=features)
    chosen = VidCom2(mode="official", retention_video=0.25).compress(tokens, query())
    per_frame = torch.bincount(tokens.window[chosen.indices]).tolist()
    assert per_frame == [8, 8, 8, 17, 8, 8, 8, 8]  # 36 x 0.25 x (1 - 1/8) = 7.9 and 36 x 0.25 x (2 - 1/8) = 16.9
    clean = VidCom2(retention=0.25).compress(tokens, query())
    per_frame = torch.bincount(tokens.window[clean.indices]).tolist()
    assert sum(per_frame) == 72 and per_frame[3] == max(per_frame) >= 16
    clean = VidCom2(retention=0.8).compress(tokens, query())
    assert torch.bincount(tokens.window[clean.indices])[3] == 36  # whole, and the others share the surplus


def test_the_released_rounding():
    sizes = torch.tensor([10, 10, 10, 3])
    assert released_quota(sizes, 0.25, torch.tensor([1.0, 1.4, 9.0, 0.1])).tolist() == [2, 4, 10, 1]
    assert released_quota(sizes, 0.0, torch.ones(4)).tolist() == [0, 0, 0, 0]


def test_channels_are_those_that_vary_least(monkeypatch):
    monkeypatch.setattr("omnicli.compress.ops.CHUNK_BYTES", 64)
    x = torch.tensor([[0.0, 5.0, 1.0, 2.0], [0.0, -5.0, 2.0, 1.0], [9.0, 9.0, 9.0, 9.0], [0.0, 0.0, 3.0, 2.0]])
    rows = torch.tensor([0, 1, 3])
    assert steady_channels(x, rows, 2).tolist() == [0, 3]
    assert steady_channels(x + 1e4, rows, 2).tolist() == [0, 3]
    assert steady_channels(torch.zeros(3, 4), torch.arange(3), 2).tolist() == [0, 1]


def test_the_kernel_is_a_sum_of_five():
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    expected = [5.0, sum(math.exp(-2 / (2 * a)) for a in (0.125, 0.25, 0.5, 1, 2))]
    assert nearness(x, torch.zeros(2)).tolist() == pytest.approx(expected)


def test_batches_change_nothing(monkeypatch):
    tokens = CLIPS["ragged"]
    whole = VidCom2(retention=0.3).compress(tokens, query())
    monkeypatch.setattr("omnicli.compress.methods.vidcom2.MEMORY", 500)
    monkeypatch.setattr(outliers, "MEMORY", 500)
    assert torch.equal(VidCom2(retention=0.3).compress(tokens, query()).indices, whole.indices)


EDGES = {
    "silent": clip(audio=0),
    "audio only": clip(frames=0),
    "one picture token": clip(blocks=1, audio=0, rows=1, cols=1),
    "one of each": clip(blocks=1, audio=1, rows=1, cols=1),
    "much sound": clip(audio=200),
    "black": dataclasses.replace(clip(), features=torch.zeros_like(clip().features)),
    "one channel": clip(width=1),
}


@pytest.mark.parametrize("kind", list(EDGES))
def test_edges(kind):
    tokens = EDGES[kind]
    for retention in (0.05, 0.3, 0.99):
        method = VidCom2(retention=retention)
        chosen = method.compress(tokens, query(tokens.features.shape[1]))
        kept = tokens.select(chosen)
        budget = {"video": kept.count(Modality.VIDEO), "audio": kept.count(Modality.AUDIO)}
        assert chosen.report["budget"] == budget == method.plan(tokens).to_dict()
        official = VidCom2(retention=retention, mode="official")
        assert len(tokens.select(official.compress(tokens, query()))) >= 1
    black = dataclasses.replace(clip(audio=0), features=torch.zeros(72, 16))
    first = VidCom2(retention=0.5).compress(black, query()).indices.view(6, 6) % 12
    assert first.tolist() == [[0, 1, 2, 3, 4, 5]] * 6, "of equal tokens the earlier"


@pytest.mark.parametrize("mode", ["clean", "official"])
def test_broken_embeddings_are_an_error(mode):
    tokens = clip()
    tokens.features[20, 2] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        VidCom2(retention=0.6, mode=mode).compress(tokens, query())


def test_impossible_settings_are_config_errors():
    with pytest.raises(ConfigError, match="audio: vidcom2 has no counterpart for sound"):
        VidCom2(audio="select")
    with pytest.raises(ConfigError, match="temperature: must be above 0"):
        VidCom2(temperature=0.0)
