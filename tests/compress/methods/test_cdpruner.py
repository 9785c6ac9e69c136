"""CDPruner against slow loops in both modes, its kernels, and groups that a few picks span."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from omnicli.compress import dpp
from omnicli.compress.budget import spread
from omnicli.compress.dpp import diverse_in_groups, mixed
from omnicli.compress.groups import group
from omnicli.compress.methods.cdpruner import CDPruner, released_count
from omnicli.errors import ConfigError, ModelError
from omnicli.testing.clips import clip, query
from omnicli.types import MediaTokens, Modality, Query, Selection


def ragged(seed: int) -> MediaTokens:
    """Frames and windows of different sizes, some without sound or without pictures."""
    whole = clip(blocks=6, frames=3, audio=9, seed=seed, width=64)
    keep = torch.rand(len(whole), generator=torch.Generator().manual_seed(seed)) < 0.7
    keep &= ~((whole.window == 2) & (whole.modality == 1)) & ~((whole.window == 4) & (whole.modality == 0))
    return whole.select(Selection(torch.nonzero(keep).flatten()))


CLIPS = {
    "even": clip(blocks=4, frames=2, audio=11, seed=1, width=64),
    "odd cells": clip(blocks=3, frames=1, audio=3, seed=2, rows=3, cols=5, width=64),
    "narrow": clip(blocks=3, frames=2, audio=6, seed=3),
    "ragged": ragged(4),
}
every_clip = pytest.mark.parametrize("kind", list(CLIPS))
every_kernel = pytest.mark.parametrize("kernel", ["mixed", "exponential"])


def slow_relevance(tokens: MediaTokens, rows: list[int], question: Query) -> list[float]:
    text = question.embeddings.double().mean(0)
    return [float(torch.cosine_similarity(tokens.features[i].double(), text, dim=0)) for i in rows]


def minmax(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(v - low) / (high - low + 1e-6) for v in values]


def slow_kernel(tokens: MediaTokens, rows: list[int], r: list[float], w: float, kernel: str) -> list[list[float]]:
    x = [tokens.features[i].double() for i in rows]
    x = [v / math.sqrt(float(v @ v) + 1e-6) for v in x]

    def entry(i: int, j: int) -> float:
        s = float(x[i] @ x[j])
        s = 1.0 if i == j and s > 1 - 2e-6 else s
        if kernel == "mixed":
            return (1 - w) * s + w * r[i] * s * r[j]
        if w == 1:
            return r[i] * s * r[j]
        a = w / (2 * (1 - w))
        return math.exp(a * r[i]) * s * math.exp(a * r[j])

    return [[entry(i, j) for j in range(len(rows))] for i in range(len(rows))]


def slow_released(k: list[list[float]], n: int) -> list[int]:
    """The greedy loop as it is released."""
    everyone = range(len(k))
    g = [k[i][i] for i in everyone]
    picked: list[int] = []
    c: list[list[float]] = []
    for _ in range(n):
        j = max(everyone, key=lambda i: (g[i], -i))
        e = []
        for i in everyone:
            seen = sum(row[j] * row[i] for row in c if abs(row[j]) >= 1e-6)
            e.append((k[j][i] - seen) / math.sqrt(g[j] + 1e-6))
        c.append(e)
        g = [a - b * b for a, b in zip(g, e, strict=True)]
        picked.append(j)
        for i in picked:
            g[i] = -math.inf
    return picked


def slow_clean(k: list[list[float]], r: list[float], n: int) -> list[int]:
    """Each pick has most that those picked do not span, by solving for what they do; then by relevance."""
    table, picked = torch.tensor(k, dtype=torch.float64), []
    while len(picked) < n:
        rest = [i for i in range(len(k)) if i not in picked]
        gain = {i: float(table[i, i]) for i in rest}
        if picked:
            own = table[picked][:, picked]
            for i in rest:
                gain[i] -= float(table[i, picked] @ torch.linalg.lstsq(own, table[picked, i, None], driver="gelsd")[0])
        if max(gain.values()) < 1e-5:
            return picked + sorted(rest, key=lambda i: (-r[i], i))[: n - len(picked)]
        picked.append(max(rest, key=lambda i: (round(gain[i], 9), -i)))
    return picked


def grouped(rows: list[int], keys: list) -> list[list[int]]:
    out: dict = {}
    for i, key in zip(rows, keys, strict=True):
        out.setdefault(key, []).append(i)
    return list(out.values())


@every_clip
@every_kernel
@pytest.mark.parametrize(("share", "w"), [(0.3, 0.5), (0.55, 0.0), (0.45, 1.0)])
def test_official_is_the_slow_loop(kind, kernel, share, w):
    tokens, question = CLIPS[kind], query(CLIPS[kind].features.shape[1])
    kernel = kernel if w else "mixed"  # without relevance there is one kernel
    method = CDPruner(mode="official", retention_video=share, relevance=w, kernel=kernel)
    chosen = method.compress(tokens, question)
    eyes = tokens.indices(Modality.VIDEO).tolist()
    expected = tokens.indices(Modality.AUDIO).tolist()
    for frame in grouped(eyes, tokens.start_s[eyes].tolist()):
        n = max(1, math.floor(len(frame) * share + 0.5))
        half = len(frame) // 2
        for rows, k in ((frame[:half], n // 2), (frame[half:], n - n // 2)):
            if rows:
                r = minmax(slow_relevance(tokens, rows, question))
                expected += [rows[i] for i in slow_released(slow_kernel(tokens, rows, r, w, kernel), k)]
    assert chosen.indices.tolist() == sorted(expected) and chosen.features is None
    kept = tokens.select(chosen)
    assert chosen.report["budget"] == {"video": kept.count(Modality.VIDEO), "audio": kept.count(Modality.AUDIO)}


@every_clip
@every_kernel
@pytest.mark.parametrize(
    ("share", "w", "by"),
    [
        (0.3, 0.5, "even"),
        pytest.param(0.6, 0.0, "relevance", marks=pytest.mark.slow),
        pytest.param(0.45, 0.9, "relevance", marks=pytest.mark.slow),
    ],
)
def test_clean_is_the_slow_loop_and_meets_the_budget(kind, kernel, share, w, by):
    tokens, question = CLIPS[kind], query(CLIPS[kind].features.shape[1])
    kernel = kernel if w else "mixed"  # without relevance there is one kernel
    shares = {"retention_video": share, "retention_audio": 0.5}
    method = CDPruner(**shares, relevance=w, kernel=kernel, spread=by, audio="select")
    chosen, plan = method.compress(tokens, question), method.plan(tokens)
    assert chosen.report["budget"] == plan.to_dict()
    expected = []
    for modality, total in ((Modality.VIDEO, plan.video), (Modality.AUDIO, plan.audio)):
        rows = tokens.indices(modality).tolist()
        r = dict(zip(rows, minmax(slow_relevance(tokens, rows, question)), strict=True))
        groups = grouped(rows, tokens.window[rows].tolist())
        sizes = torch.tensor([len(g) for g in groups])
        weights = torch.tensor([sum(r[i] for i in g) for g in groups], dtype=torch.float64)
        for own, k in zip(groups, spread(total, sizes, weights if by == "relevance" else None).tolist(), strict=True):
            mine = [r[i] for i in own]
            expected += [own[i] for i in slow_clean(slow_kernel(tokens, own, mine, w, kernel), mine, k)]
    assert chosen.indices.tolist() == sorted(expected)


def test_counts_of_the_release():
    assert [released_count(144, p) for p in (55, 75, 90)] == [65, 36, 14]
    assert released_count(5, 50) == 3 and released_count(10, 75) == 3, "halves round up"


def test_a_small_kernel_by_hand():
    # Two directions; token 1 is token 0 again, token 2 stands across, and the question asks for token 3, near token 2.
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    groups = group(torch.arange(4), torch.zeros(4))
    relevance = torch.tensor([0.0, 0.0, 0.0, 1.0])

    def picks(k, w):
        return diverse_in_groups(features, groups, [k], relevance, mixed(w)).tolist()

    assert picks(1, 0.5) == [3] and picks(2, 0.5) == [0, 3]  # 0 adds 0.5 (1 - 0.36 / 2), token 2 0.5 (1 - 0.64 / 2)
    assert picks(1, 0.0) == [0] and picks(2, 0.0) == [0, 2]
    assert picks(3, 0.0) == [0, 2, 3], "two directions are spanned: then by relevance"
    assert picks(3, 1.0) == [0, 1, 3], "what is not relevant adds nothing: the earliest"
    assert picks(4, 0.5) == [0, 1, 2, 3] and picks(0, 0.5) == []


def test_duplicates_and_black_frames_go_by_relevance_and_then_by_order():
    tokens = clip(blocks=1, audio=0, rows=2, cols=6)
    features = torch.zeros(12, 16)
    features[5] = 1.0
    tokens = dataclasses.replace(tokens, features=features)
    asked = Query(-torch.ones(3, 16))  # the one token that is not black is the least relevant
    assert CDPruner(tokens=4).compress(tokens, asked).indices.tolist() == [0, 1, 2, 5]
    one = torch.randn(1, 16, generator=torch.Generator().manual_seed(1))
    tokens = dataclasses.replace(tokens, features=one.expand(12, 16).clone())
    assert CDPruner(tokens=4).compress(tokens, asked).indices.tolist() == [0, 1, 2, 3]


def test_the_question_draws_the_choice():
    tokens = clip(blocks=4, audio=0, rows=6, cols=6, width=64)
    asked = Query(tokens.features[40:43])
    blind, seeing = (CDPruner(tokens=12, relevance=w).compress(tokens, asked).indices.tolist() for w in (0.0, 0.9))
    assert set(range(40, 43)) <= set(seeing) and not set(range(40, 43)) <= set(blind)
    nothing = Query(torch.zeros(0, 64))
    everywhere = CDPruner(tokens=12, relevance=0.9).compress(tokens, nothing)
    assert torch.equal(everywhere.indices, CDPruner(tokens=12, relevance=0.0).compress(tokens, nothing).indices)


def test_batches_and_rows_one_at_a_time_change_nothing(monkeypatch):
    tokens, question = CLIPS["ragged"], query(64)
    for mode in ("clean", "official"):
        method = CDPruner(retention=0.5, audio="select", split="proportional", mode=mode)
        whole = method.compress(tokens, question)
        for memory in (8 * 20 * 20, 64):
            monkeypatch.setattr(dpp, "MEMORY", memory)
            assert torch.equal(method.compress(tokens, question).indices, whole.indices)
        monkeypatch.undo()


EDGES = {
    "silent": clip(audio=0),
    "audio only": clip(frames=0),
    "one picture token": clip(blocks=1, audio=0, rows=1, cols=1),
    "one of each": clip(blocks=1, audio=1, rows=1, cols=1),
    "much sound": clip(audio=200),
    "bf16": clip(dtype=torch.bfloat16),
    "black": dataclasses.replace(clip(), features=torch.zeros_like(clip().features)),
    "long": clip(blocks=1, audio=0, rows=20, cols=20),
}


@pytest.mark.parametrize("kind", list(EDGES))
@pytest.mark.parametrize("audio", ["intact", "select"])
def test_edges(kind, audio):
    tokens, shared = EDGES[kind], {"split": "proportional"} if audio == "select" else {}
    asked = query(dtype=tokens.features.dtype)
    for retention in (0.05, 0.3, 0.99):
        for mode in ("clean", "official"):
            method = CDPruner(retention=retention, audio=audio, **shared, mode=mode)
            chosen = method.compress(tokens, asked)
            kept = tokens.select(chosen)
            budget = {"video": kept.count(Modality.VIDEO), "audio": kept.count(Modality.AUDIO)}
            assert chosen.report["budget"] == budget and len(kept) > 0
            assert mode == "official" or budget == method.plan(tokens).to_dict()


@pytest.mark.parametrize("mode", ["clean", "official"])
def test_broken_embeddings_are_an_error(mode):
    tokens = clip()
    tokens.features[20, 2] = torch.nan
    for asked in (query(), query(tokens=0)):
        with pytest.raises(ModelError, match="not finite"):
            CDPruner(retention=0.6, mode=mode).compress(tokens, asked)


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_impossible_settings_are_config_errors(value):
    with pytest.raises(ConfigError, match="relevance: must be between 0 and 1"):
        CDPruner(relevance=value)
