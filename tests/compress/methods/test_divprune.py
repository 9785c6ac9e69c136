"""DivPrune against slow loops, its published counts, duplicates, long groups, and its rounding."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from omnicli.compress import max_min
from omnicli.compress.groups import frames, group
from omnicli.compress.max_min import max_min_picks, pick_in_groups
from omnicli.compress.methods.divprune import DivPrune, rounded
from omnicli.compress.methods.divprune_om import DivPruneOm
from omnicli.errors import ConfigError, ModelError
from omnicli.testing.clips import clip, query
from omnicli.types import MediaTokens, Modality, Selection
from tests.support.slowly import slow_but

SAME = 2e-6


def farthest(x: torch.Tensor, k: int, weight: torch.Tensor | None = None) -> list[int]:
    """Greedy max-min, one pair at a time."""
    x = x.float()
    length = [float(row.norm()) + 1e-8 for row in x]
    w = [1.0] * len(x) if weight is None else weight.tolist()

    def apart(i: int, j: int) -> float:
        d = 1 - float(x[i] @ x[j]) / length[i] / length[j]
        return d if d > SAME else 0.0

    everyone = range(len(x))
    if k >= len(x):
        return list(everyone)
    picked: list[int] = []
    while len(picked) < k:
        left = [j for j in everyone if j not in picked]
        others = {j: picked or [i for i in everyone if i != j] for j in left}
        picked.append(max(left, key=lambda j: (w[j] * min(apart(i, j) for i in others[j]), -j)))
    return sorted(picked)


def ragged(seed: int = 3, **fields) -> MediaTokens:
    """Frames and windows of different sizes, some blocks without sound, one without pictures."""
    whole = clip(blocks=6, frames=3, audio=9, seed=seed, **fields)
    keep = torch.rand(len(whole), generator=torch.Generator().manual_seed(seed)) < 0.7
    keep &= ~((whole.window == 2) & (whole.modality == 1)) & ~((whole.window == 4) & (whole.modality == 0))
    return whole.select(Selection(torch.nonzero(keep).flatten()))


def by_group(rows: torch.Tensor, key: list) -> list[list[int]]:
    out: dict = {}
    for row, name in zip(rows.tolist(), key, strict=True):
        out.setdefault(name, []).append(row)
    return list(out.values())


def pieces(tokens: MediaTokens, modality: Modality, stretch: int | None = None) -> list[list[int]]:
    """Rows of each frame, or of each window or stretch of sound."""
    rows = tokens.indices(modality)
    if modality == Modality.VIDEO:
        return by_group(rows, tokens.start_s[rows].tolist())
    if stretch is None:
        return by_group(rows, tokens.window[rows].tolist())
    return by_group(rows, [i // stretch for i in range(len(rows))])


def even_shares(total: int, sizes: list[int]) -> list[int]:
    """At least one each if that goes, the rest in proportion to the room left; largest remainders first."""
    base = [1 if total >= len(sizes) else 0 for _ in sizes]
    room, left = [s - b for s, b in zip(sizes, base, strict=True)], total - sum(base)
    level = left / sum(sizes)
    exact = [level * s for s in sizes]
    while True:  # full groups give the rest to the others
        over = [min(r, e) for r, e in zip(room, exact, strict=True)]
        missing = left - sum(over)
        if missing < 1e-9:
            break
        free = sum(s for s, r, e in zip(sizes, room, exact, strict=True) if e < r)
        exact = [e + missing * s / free if e < r else e for s, r, e in zip(sizes, room, exact, strict=True)]
    whole = [int(o + 1e-9) for o in over]
    order = sorted(range(len(sizes)), key=lambda i: (round(whole[i] - over[i], 9), i))
    for i in [i for i in order if whole[i] < room[i]][: left - sum(whole)]:
        whole[i] += 1
    return [b + w for b, w in zip(base, whole, strict=True)]


def expected_clean(tokens: MediaTokens, budget: dict[str, int]) -> list[int]:
    kept = []
    for modality, name in ((Modality.VIDEO, "video"), (Modality.AUDIO, "audio")):
        groups = pieces(tokens, modality)
        for rows, k in zip(groups, even_shares(budget[name], [len(g) for g in groups]), strict=True):
            kept += [rows[i] for i in farthest(tokens.features[rows], k)]
    return sorted(kept)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("weighted", [False, True])
def test_picks_are_those_of_the_slow_loop(seed, weighted, monkeypatch):
    g = torch.Generator().manual_seed(seed)
    n = int(torch.randint(2, 24, (), generator=g))
    x, weight = torch.randn(3, n, 8, generator=g), torch.rand(3, n, generator=g) if weighted else None
    for k in {0, 1, n // 2, n - 1, n, n + 5}:
        expected = [farthest(row, k, None if weight is None else weight[b]) for b, row in enumerate(x)]
        got = max_min_picks(x, k, weight)
        assert got.dtype == torch.int64 and got.tolist() == expected
        with monkeypatch.context() as small:
            small.setattr(max_min, "MEMORY", 1000)  # matrices in several batches, or not at all
            assert max_min_picks(x, k, weight).tolist() == expected


def tie(n: int, i: int, j: int, width: int) -> torch.Tensor:
    """Rows of halves and quarters of which ``i`` and ``j`` are each other's nearest and farther apart than any others.

    All others lie near one axis; the two lie near another one and have lengths that no float holds.
    """
    rows = torch.zeros(n, width)
    rows[:, 0] = 4
    rows[torch.arange(n), 2 + torch.arange(n)] = 0.25
    rows[i, :2], rows[j, :2] = torch.tensor([0.0, 1.25]), torch.tensor([0.0, 2.75])
    rows[i, 2 + i], rows[j, 2 + j] = 1.5, -1.75
    return rows


@pytest.mark.parametrize("memory", [max_min.MEMORY, 60], ids=["matrix", "running minimum"])
def test_an_exact_tie_goes_to_the_lower_index(memory, monkeypatch):
    monkeypatch.setattr(max_min, "MEMORY", memory)
    rows = [(-0.25, -0.25, -1.5), (0.5, -0.25, 0.25), (0.25, -0.75, -1), (1, -0.75, 0), (1.75, -0.75, 0.5)]
    assert max_min_picks(torch.tensor([rows]), 1).tolist() == [[0]]
    for n in range(5, 24):  # small products add up a pair in two orders
        for i, j in ((0, n - 1), (1, 2), (n - 2, n - 1)):
            assert max_min_picks(tie(n, i, j, 40)[None], 1).tolist() == [[i]], (n, i, j)


@pytest.mark.parametrize("memory", [max_min.MEMORY, 60], ids=["matrix", "running minimum"])
@pytest.mark.parametrize("width", slow_but([8, 64, 2048], lambda width: width == 64))
def test_of_copies_the_first_is_picked(memory, width, monkeypatch):
    monkeypatch.setattr(max_min, "MEMORY", memory)
    g = torch.Generator().manual_seed(6)
    for n in (3, 5, 6, 7, 9, 10, 11, 23):
        x = torch.randn(1, n, width, generator=g)
        x[0, n - n // 2 :] = x[0, : n // 2]
        different = n - n // 2
        assert max_min_picks(x, different).tolist() == [list(range(different))], n
        assert max_min_picks(x.repeat(1, 40, 1), different).tolist() == [list(range(different))], n


def test_weights_decide_and_zero_ones_come_last():
    x = torch.randn(1, 9, 8, generator=torch.Generator().manual_seed(1))
    weight = torch.zeros(1, 9)
    weight[0, [2, 5, 7]] = torch.tensor([1.0, 2.0, 3.0])
    assert max_min_picks(x, 3, weight).tolist() == [[2, 5, 7]]
    assert max_min_picks(x, 5, weight).tolist() == [[0, 1, 2, 5, 7]]


@pytest.mark.parametrize("memory", [max_min.MEMORY, 1000], ids=["matrix", "running minimum"])
def test_duplicates_are_picked_last_and_nothing_twice(memory, monkeypatch):
    monkeypatch.setattr(max_min, "MEMORY", memory)
    different = torch.randn(5, 64, generator=torch.Generator().manual_seed(2)) * 30
    x = different.repeat(8, 1)[None]
    for k in (4, 5, 12, 39):
        picks = max_min_picks(x, k)[0]
        assert picks.unique().numel() == k
        assert (picks % 5).unique().numel() == min(k, 5)
    scaled = x * (1 + torch.rand(1, 40, 1, generator=torch.Generator().manual_seed(3)))  # cosines are 1 up to rounding
    picks = set(max_min_picks(scaled, 9)[0].tolist())
    first = [set(five) for five in itertools.combinations(picks, 5) if len({p % 5 for p in five}) == 5]
    assert any(picks - five == set([p for p in range(40) if p not in five][:4]) for five in first)
    for same in (torch.zeros(1, 20, 16), torch.ones(1, 20, 16), different[:1].expand(20, -1)[None]):
        assert max_min_picks(same, 6).tolist() == [[0, 1, 2, 3, 4, 5]]


def test_long_groups_need_no_matrix(monkeypatch):
    g = torch.Generator().manual_seed(4)
    x, weight = torch.randn(1, 700, 12, generator=g), torch.rand(1, 700, generator=g)
    expected = [max_min_picks(x, k, w) for k in (1, 90, 400) for w in (None, weight)]
    monkeypatch.setattr(max_min, "MEMORY", 700 * 700)
    assert [max_min_picks(x, k, w).tolist() for k in (1, 90, 400) for w in (None, weight)] == [
        e.tolist() for e in expected
    ]


@pytest.mark.parametrize("weighted", [False, True])
def test_groups_of_all_sizes_and_quotas_at_once(weighted):
    g = torch.Generator().manual_seed(5)
    sizes = torch.tensor([1, 17, 18, 3, 19, 18, 40, 2, 18, 17])
    quota = torch.tensor([1, 5, 0, 9, 19, 7, 11, 1, 2, 16])
    n = int(sizes.sum())
    groups = group(torch.arange(n) * 2 + 1, torch.arange(len(sizes)).repeat_interleave(sizes))
    clip_rows = torch.randn(2 * n + 2, 8, generator=g)
    weight = torch.rand(n, generator=g) if weighted else None
    expected, begin = [], 0
    for size, k in zip(sizes.tolist(), quota.tolist(), strict=True):
        own = slice(begin, begin + size)
        picks = farthest(clip_rows[groups.rows[own]], k, None if weight is None else weight[own]) if k else []
        expected += [begin + i for i in picks]
        begin += size
    assert pick_in_groups(clip_rows[groups.rows], groups, quota, weight).tolist() == expected
    assert pick_in_groups(clip_rows, groups, quota, weight, rows=groups.rows).tolist() == expected
    nothing = group(torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    assert pick_in_groups(clip_rows, nothing, torch.zeros(0, dtype=torch.int64)).numel() == 0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("retention", [0.1, 0.37])
def test_clean_is_the_slow_loop_and_meets_the_budget(seed, retention):
    tokens = ragged(seed)
    method = DivPruneOm(retention=retention)
    selection = method.compress(tokens, query())
    assert selection.report["budget"] == method.plan(tokens).to_dict() and selection.features is None
    assert selection.indices.tolist() == expected_clean(tokens, selection.report["budget"])


@pytest.mark.parametrize("seed", range(3))
def test_official_is_the_slow_loop(seed):
    tokens = ragged(seed)
    method = DivPruneOm(mode="official", retention_video=0.35, retention_audio=0.5, audio_window=7)
    expected = []
    for modality, ratio, stretch in ((Modality.VIDEO, 0.35, None), (Modality.AUDIO, 0.5, 7)):
        for rows in pieces(tokens, modality, stretch):
            k = min(len(rows), max(1, round(ratio * len(rows))))
            expected += [rows[i] for i in farthest(tokens.features[rows], k)]
    selection = method.compress(tokens, query())
    assert selection.indices.tolist() == sorted(expected)
    kept = tokens.select(selection)
    assert selection.report["budget"] == {"video": kept.count(Modality.VIDEO), "audio": kept.count(Modality.AUDIO)}


def test_published_counts():
    picture = {0.30: 43, 0.20: 29, 0.10: 14, 0.06: 9, 0.2392: 34, 0.1219: 18, 0.32: 46, 0.22: 32, 0.12: 17, 0.07: 10}
    picture |= {0.2929: 42, 0.1839: 26, 0.0748: 11}
    sound = {50: {0.65: 32, 0.55: 28, 0.45: 22, 0.35: 18}, 26: {0.70: 18, 0.60: 16, 0.50: 13, 0.45: 12}}
    for size, table in ({144: picture} | sound).items():
        for ratio, count in table.items():
            assert rounded(torch.tensor([size]), ratio).tolist() == [count], (size, ratio)
    assert rounded(torch.tensor([3, 1, 200]), 0.01).tolist() == [1, 1, 2]
    assert rounded(torch.tensor([3]), 0.0).tolist() == [0]


def test_sound_stays_whole_and_pictures_take_the_rest():
    tokens = clip(blocks=4, frames=2, audio=5)  # 96 and 20 tokens
    clean = DivPrune(retention=0.5).compress(tokens, query())
    assert clean.report["budget"] == {"video": 38, "audio": 20}
    official = DivPrune(mode="official", retention_video=0.3, retention_audio=0.65)
    video = (int(96 * 0.3 + 20 * 0.65) - 20) / 96
    assert official.compress(tokens, query()).report["budget"] == {"video": 8 * round(video * 12), "audio": 20}
    # Less than the sound alone: pictures keep 5 %, sound is thinned evenly.
    tight = DivPrune(tokens=14).compress(tokens, query())
    assert tight.report["budget"] == {"video": 5, "audio": 9}
    gaps = torch.nonzero(torch.isin(tokens.indices(Modality.AUDIO), tight.indices)).flatten().diff()
    assert int(gaps.min()) >= 2 and int(gaps.max()) <= 3
    assert DivPrune(mode="official", tokens=14).compress(tokens, query()).report["budget"] == {"video": 8, "audio": 9}


EDGES = {
    "silent": clip(audio=0),
    "audio only": clip(frames=0),
    "one picture token": clip(blocks=1, audio=0, rows=1, cols=1),
    "one sound token": clip(blocks=1, frames=0, audio=1),
    "one of each": clip(blocks=1, audio=1, rows=1, cols=1),
    "one frame": clip(blocks=1, audio=0),
    "odd frames, 10 x 13": clip(blocks=3, frames=3, rows=10, cols=13, audio=4),
    "bf16": clip(dtype=torch.bfloat16),
    "black": dataclasses.replace(clip(), features=torch.zeros_like(clip().features)),
    "ragged": ragged(),
}


@pytest.mark.parametrize("kind", list(EDGES))
@pytest.mark.parametrize("cls", [DivPrune, DivPruneOm])
def test_edges_in_both_modes(cls, kind):
    tokens = EDGES[kind]
    bare = dataclasses.replace(tokens, saliency=None, keys=None)
    before = tokens.features.clone()
    for retention in (0.05, 0.3, 0.99):
        for mode in ("clean", "official"):
            method = cls(mode=mode, retention=retention)
            selection = method.compress(bare, query(dtype=tokens.features.dtype))
            idx = selection.indices
            assert idx.numel() >= 1 and bool((idx.diff() > 0).all())
            kept = bare.select(selection)
            assert selection.report["budget"] == {"video": kept.count(Modality(0)), "audio": kept.count(Modality(1))}
            assert mode == "official" or selection.report["budget"] == method.plan(bare).to_dict()
            assert torch.equal(idx, method.compress(bare, query(dtype=tokens.features.dtype)).indices)
    for mode in ("clean", "official"):
        whole = cls(mode=mode, retention=1.0).compress(bare, query(dtype=tokens.features.dtype))
        assert whole.indices.tolist() == list(range(len(tokens))) and whole.features is None
    assert torch.equal(before, tokens.features)


def test_bf16_is_compared_in_fp32():
    tokens = clip(dtype=torch.bfloat16)
    wide = dataclasses.replace(tokens, features=tokens.features.float())
    method = DivPruneOm(retention=0.3)
    assert torch.equal(method.compress(tokens, query()).indices, method.compress(wide, query()).indices)


def test_padding_and_batches_change_nothing(monkeypatch):
    tokens = ragged()
    groups = frames(tokens)
    quota = (groups.sizes + 1) // 3
    whole = pick_in_groups(tokens.features, groups, quota, rows=groups.rows)
    monkeypatch.setattr(max_min, "MEMORY", 4 * 200)
    monkeypatch.setattr(max_min, "_GRAM", 4 * 16 * 13)
    assert torch.equal(pick_in_groups(tokens.features, groups, quota, rows=groups.rows), whole)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("memory", [max_min.MEMORY, 100], ids=["matrix", "running minimum"])
def test_broken_embeddings_are_an_error(bad, memory, monkeypatch):
    monkeypatch.setattr(max_min, "MEMORY", memory)
    tokens = clip()
    tokens.features[3, 2] = bad
    with pytest.raises(ModelError, match="not finite"):
        DivPrune(retention=0.6).compress(tokens, query())
    with pytest.raises(ModelError, match="not finite"):
        max_min_picks(clip().features[None, :4], 2, torch.tensor([[1.0, bad, 1.0, 1.0]]))


def test_impossible_settings_are_config_errors():
    with pytest.raises(ConfigError, match="audio_window"):
        DivPrune(audio_window=0)
