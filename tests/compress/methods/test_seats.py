"""SEATS against loops written from the paper, and against the released code's arithmetic step by step."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from omnicli.compress.methods.seats import Seats, entering
from omnicli.errors import ConfigError, ModelError
from omnicli.testing.clips import clip, query
from omnicli.types import LayerView, Modality, Selection


def uneven(seed: int, width: int = 12):
    """A clip whose windows differ: some without pictures, some with little sound."""
    tokens = clip(blocks=7, frames=2, audio=6, rows=3, cols=3, width=width, seed=seed)
    rng = torch.Generator().manual_seed(seed + 50)
    gone = (tokens.window == 2) & (tokens.modality == Modality.VIDEO)
    gone |= (tokens.window == 6) & (tokens.modality == Modality.AUDIO) & (torch.rand(len(tokens), generator=rng) < 0.7)
    gone |= (tokens.window == 4) & (tokens.modality == Modality.AUDIO)
    return tokens.select(Selection(torch.nonzero(~gone).flatten()))


def naive_picks(x, weight, k):
    """Greedy: the first by weighted distance to its nearest neighbour, then the farthest from what is picked."""
    x = torch.nn.functional.normalize(x.double(), dim=1)
    n, distance = len(x), (1 - x @ x.T)
    near = [min((float(distance[i, j]) for j in range(n) if j != i), default=0.0) * float(weight[i]) for i in range(n)]
    picked = [max(range(n), key=lambda i: (near[i], -i))]
    while len(picked) < k:
        rest = [i for i in range(n) if i not in picked]
        worth = {i: float(weight[i]) * min(float(distance[i, j]) for j in picked) for i in rest}
        picked.append(max(rest, key=lambda i: (worth[i], -i)))
    return sorted(picked)


def naive_spread(total, sizes):
    """Largest remainder in the ratio of the sizes, one token each first."""
    base = [min(1, n) if total >= len(sizes) else 0 for n in sizes]
    room = [n - b for n, b in zip(sizes, base, strict=True)]
    left = total - sum(base)
    # water-filling by size: as long as nobody is full, everybody gets the same share of its size
    level, share = 0.0, [0.0] * len(sizes)
    low, high = 0.0, 2.0
    for _ in range(100):
        level = (low + high) / 2
        share = [min(r, level * n) for r, n in zip(room, sizes, strict=True)]
        low, high = (low, level) if sum(share) > left else (level, high)
    whole = [math.floor(s + 1e-9) for s in share]
    order = sorted(range(len(sizes)), key=lambda i: (whole[i] - round(share[i], 9), i))
    for i in [i for i in order if whole[i] < room[i]][: left - sum(whole)]:
        whole[i] += 1
    return [b + w for b, w in zip(base, whole, strict=True)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("retention", [0.1, 0.3, 0.6])
def test_stage_one_is_the_greedy_in_every_window(seed, retention):
    tokens = uneven(seed)
    method = Seats(retention=retention)
    expected = []
    for kind in Modality:
        own = tokens.indices(kind).tolist()
        in_window = [[i for i in own if int(tokens.window[i]) == w] for w in range(7)]
        in_window = [rows for rows in in_window if rows]
        average = getattr(method.plan(tokens), kind.name.lower())
        enter = entering(average, len(own), 1.4)
        for rows, k in zip(in_window, naive_spread(enter, [len(r) for r in in_window]), strict=True):
            if k == len(rows):
                expected += rows
            elif k:
                picks = naive_picks(tokens.features[rows], tokens.saliency[rows], k)
                expected += [rows[i] for i in picks]
    assert method.compress(tokens, query(12)).indices.tolist() == sorted(expected)


def test_the_saliency_decides_between_equally_distant_tokens():
    tokens = clip(blocks=1, audio=0, rows=1, cols=4, width=4)
    tokens = dataclasses.replace(tokens, features=torch.eye(4), saliency=torch.tensor([1.0, 3.0, 2.0, 0.5]))
    assert Seats(retention=0.36).compress(tokens, query(4)).indices.tolist() == [1]
    kept = Seats(retention=0.5, encoder=1.0).compress(tokens, query(4))
    assert kept.indices.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("size", "share", "count"),
    [
        (288, 0.30, 121),
        (288, 0.20, 81),
        (288, 0.10, 40),
        (288, 0.06, 24),
        (144, 0.30, 60),
        (144, 0.20, 40),
        (144, 0.10, 20),
        (144, 0.06, 12),
    ],
)
def test_official_counts_of_a_picture_window(size, share, count):
    tokens = clip(blocks=1, frames=size // 144, audio=0, rows=9, cols=16, width=6)
    method = Seats(mode="official", retention_video=share, retention_audio=0.5)
    assert len(method.compress(tokens, query(6)).indices) == count


@pytest.mark.parametrize(("share", "count"), [(0.65, 45), (0.55, 38), (0.45, 32), (0.35, 24)])
def test_official_counts_of_a_sound_window(share, count):
    tokens = clip(blocks=1, frames=0, audio=50, width=6)
    method = Seats(mode="official", retention_video=0.2, retention_audio=share)
    assert len(method.compress(tokens, query(6)).indices) == count


def view_of(tokens, attention, depth=28, layer=15, encoded=None, entered=None):
    now = (tokens.count(Modality.VIDEO), tokens.count(Modality.AUDIO))
    return LayerView(layer, depth, tokens.features, attention, tokens, entered or now, encoded)


def naive_stage_two(tokens, attention, targets, temperature=1.0):
    """Equation 1 with z-scored relevances, one window and one token at a time."""
    blocks = sorted({int(w) for w in tokens.window})
    members = {
        (m, w): [i for i in range(len(tokens)) if int(tokens.modality[i]) == m and int(tokens.window[i]) == w]
        for m in (0, 1)
        for w in blocks
    }
    relevance = {}
    for m in (0, 1):
        there = {w: members[m, w] for w in blocks if members[m, w]}
        means = {w: sum(float(attention[i]) for i in rows) / len(rows) for w, rows in there.items()}
        if not means:
            continue
        mu = sum(means.values()) / len(means)
        sd = math.sqrt(sum((v - mu) ** 2 for v in means.values()) / len(means))
        z = {w: math.exp((v - mu) / sd / temperature if sd > 0 else 0.0) for w, v in means.items()}
        relevance.update({(m, w): v / sum(z.values()) for w, v in z.items()})
    kept = []
    for m in (0, 1):
        rows = [w for w in blocks if members[m, w]]
        weights = []
        for w in rows:
            both = [relevance[k, w] for k in (0, 1) if (k, w) in relevance]
            part = [relevance.get((k, w), 0.0) * targets[k] for k in (0, 1)]
            weights.append(sum(both) / len(both) * part[m] / sum(part))
        sizes = [len(members[m, w]) for w in rows]
        low, high = 0.0, 1e9
        base = [1 if targets[m] >= len(rows) else 0] * len(rows)
        left = targets[m] - sum(base)
        for _ in range(300):
            level = (low + high) / 2
            share = [min(n - b, level * u) for n, b, u in zip(sizes, base, weights, strict=True)]
            low, high = (low, level) if sum(share) > left else (level, high)
        whole = [math.floor(s + 1e-7) for s in share]
        order = sorted(range(len(rows)), key=lambda i: whole[i] - share[i])
        for i in [i for i in order if whole[i] + base[i] < sizes[i]][: left - sum(whole)]:
            whole[i] += 1
        for w, b, k in zip(rows, base, whole, strict=True):
            kept += sorted(members[m, w], key=lambda i: (-float(attention[i]), i))[: b + k]
    return sorted(kept)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("step", [0, 1, 2])
def test_stage_two_is_equation_one_token_by_token(seed, step):
    tokens = uneven(seed)
    attention = torch.rand(len(tokens), generator=torch.Generator().manual_seed(seed)) ** 3 / len(tokens)
    attention = attention * (1 + 4 * (tokens.window == seed % 7))
    method, layer = Seats(retention=0.3), (15, 17, 19)[step]
    entered = [tokens.count(m) for m in Modality]
    ratios = (0.9298438, 0.7949, 0.2986)
    targets = [max(1, round(n * math.prod(exact(ratios[: step + 1])))) for n in entered]
    expected = naive_stage_two(tokens, attention, targets)
    assert method.prune(layer, view_of(tokens, attention, layer=layer)).tolist() == expected
    assert [int((tokens.modality[expected] == m).sum()) for m in Modality] == targets


def exact(rounded):
    from omnicli.compress.schedule import solve

    keep = solve(28, (15, 17, 19), 22).keep
    assert keep == pytest.approx((0.9298, 0.7949, 0.2986), abs=5e-5)
    return keep[: len(rounded)]


def test_the_question_steers_the_budget_in_clean_mode_only():
    tokens = clip(blocks=8, frames=2, audio=10, rows=4, cols=5)
    attention = torch.full((len(tokens),), 1e-4)
    asked = tokens.window == 5
    attention[asked] *= 3
    attention += torch.rand(len(tokens), generator=torch.Generator().manual_seed(0)) * 1e-6
    share = {}
    for mode in ("clean", "official"):
        kept = Seats(mode=mode, retention=0.3).prune(19, view_of(tokens, attention, layer=19))
        share[mode] = float(asked[kept].double().mean()) / float(asked.double().mean())
    assert share["clean"] > 2 and 0.8 < share["official"] < 1.2  # 1: as if nothing had been asked


@pytest.mark.parametrize("mode", ["clean", "official"])
@pytest.mark.parametrize(
    "tokens",
    [clip(audio=0), clip(frames=0), clip(blocks=1), clip(dtype=torch.bfloat16), clip(rows=10, cols=13, blocks=3)],
)
def test_every_kind_of_clip_passes_all_stages(mode, tokens):
    method = Seats(mode=mode, retention=0.3)
    entered = tokens.select(method.compress(tokens, query(dtype=tokens.features.dtype)))
    now, counts = entered, [len(entered)] * 16
    encoded = (tokens.count(Modality.VIDEO), tokens.count(Modality.AUDIO))
    first = (entered.count(Modality.VIDEO), entered.count(Modality.AUDIO))
    for layer, run in ((15, 2), (17, 2), (19, 3)):
        attention = torch.rand(len(now), generator=torch.Generator().manual_seed(layer)) / 100
        keep = method.prune(layer, view_of(now, attention, layer=layer, encoded=encoded, entered=first))
        now = now.select(Selection(keep))
        counts += [len(now)] * run
    counts += [0] * 5
    slack = 2 if mode == "clean" else 0.06 * len(tokens) + 6
    assert abs(sum(counts) / 28 - method.plan(tokens).total) <= slack
    assert all(now.count(m) > 0 for m in Modality if tokens.count(m))


def test_settings_that_cannot_work_say_so():
    with pytest.raises(ConfigError, match=r"temperature: .*drop_layers: .*late_layer: "):
        Seats(temperature=0, drop_layers="18-16", late_layer="x")
    with pytest.raises(ConfigError, match="no layer 40 of 28"):
        Seats(drop_layers="16-18-20", late_layer="40").layers(28)
    tokens = clip()
    with pytest.raises(ConfigError, match="cannot reach the retention"):
        method = Seats(drop_layers="16-18-20", late_layer="23", retention=0.3)
        method.prune(15, view_of(tokens, torch.rand(len(tokens)), depth=36))
    with pytest.raises(ModelError, match="saliency"):
        Seats(retention=0.3).compress(dataclasses.replace(tokens, saliency=None), query())
    with pytest.raises(ConfigError, match="cannot reach"):  # media that leave after 23 of 28 layers cannot average 95 %
        method = Seats(retention=0.95)
        entered = tokens.select(method.compress(tokens, query()))
        n = (tokens.count(Modality.VIDEO), tokens.count(Modality.AUDIO))
        method.prune(15, view_of(entered, torch.rand(len(entered)), encoded=n))


def test_layers_and_what_is_kept_of_the_cache():
    assert Seats().layers(28) == (15, 17, 19) and Seats().late_removal(28) == 22
    assert Seats().layers(48) == (26, 30, 34) and Seats().late_removal(48) == 38
    assert Seats(late_layer="off").late_removal(28) is None
    assert Seats(retention=1.0).layers(28) == () and Seats(retention=1.0).late_removal(28) is None
    assert Seats().keeps_kv() and not Seats(mode="official").keeps_kv() and not Seats(keep_kv=False).keeps_kv()
    assert Seats().needs == {"saliency", "last_query_attention"}
    assert Seats(mode="official").needs == {"pair_saliency", "output_attention"}


def test_what_enters_is_rounded_and_never_more_than_there_is():
    assert [entering(average, 100, 1.4) for average in (0, 1, 4, 71, 72)] == [0, 1, 6, 99, 100]
