"""SEATS's released budgets in closed form against its loops."""

from __future__ import annotations

import random

import torch

from omnicli.compress.released.seats import level_repair, window_quotas


def one_at_a_time(shares, sizes, total):
    """SEATS's repair loop."""
    shares = list(shares)
    while sum(shares) != total:
        if sum(shares) > total:
            largest = max((b for b in shares if b > 1), default=None)
            if largest is None:
                break
            shares[shares.index(largest)] -= 1
        else:
            open_ = [b for b, n in zip(shares, sizes, strict=True) if b < n]
            if not open_:
                break
            lowest = min(open_)
            at = next(i for i, b in enumerate(shares) if b == lowest and b < sizes[i])
            shares[at] += 1
    return shares


def test_repair_in_closed_form_is_the_loop():
    rng = random.Random(0)
    moved = 0
    for _ in range(800):
        sizes = [rng.randint(1, 12) for _ in range(rng.randint(1, 9))]
        shares = [rng.randint(0, n) for n in sizes]
        total = rng.randint(0, 80)
        expected = one_at_a_time(shares, sizes, total)
        assert level_repair(torch.tensor(shares), torch.tensor(sizes), total).tolist() == expected
        moved += expected != shares
    assert moved > 500


def test_repair_of_many_windows_is_the_loop():
    rng = random.Random(1)
    sizes = [rng.randint(1, 300) for _ in range(300)]
    shares = [rng.randint(1, n) for n in sizes]
    for total in (sum(shares) - 1500, sum(shares) + 1500):
        expected = one_at_a_time(shares, sizes, total)
        assert level_repair(torch.tensor(shares), torch.tensor(sizes), total).tolist() == expected


def released_quotas(w_v, w_a, n_v, n_a, video, audio):
    """The released budgets, one window at a time."""
    total, t = video + audio, len(n_v)
    shares = [min(n_v[i] + n_a[i], max(1, round((w_v[i] + w_a[i]) / 2 * total))) for i in range(t)]
    shares = one_at_a_time(shares, [a + b for a, b in zip(n_v, n_a, strict=True)], total)
    out = []
    for i, b in enumerate(shares):
        f = w_v[i] * video / (w_v[i] * video + w_a[i] * audio + 1e-12)
        v = min(n_v[i], round(b * f))
        a = min(n_a[i], b - v)
        rest = b - v - a
        more = min(rest, n_v[i] - v)
        v, rest = v + more, rest - more
        a += min(rest, n_a[i] - a)
        if n_v[i] > 0 and v < 1:
            v = 1
            if a > 1:
                a = max(1, min(n_a[i], b - v))
        if n_a[i] > 0 and a < 1:
            a = 1
            if v > 1:
                v = max(1, min(n_v[i], b - a))
        out.append((v, a))
    return out


def test_official_budgets_are_the_released_loop():
    rng = random.Random(0)
    for _ in range(400):
        t = rng.randint(2, 9)
        n_v = [rng.choice([0, 5, 12, 40]) for _ in range(t)]
        n_a = [max(1 - n_v[i], rng.choice([0, 3, 9, 60])) for i in range(t)]
        logits = torch.tensor([[rng.random() * 3 for _ in range(t)] for _ in range(2)], dtype=torch.float64)
        w = list(torch.softmax(logits, 1))
        video, audio = (max(1, round(sum(n) * rng.random())) for n in (n_v, n_a))
        expected = released_quotas(w[0].tolist(), w[1].tolist(), n_v, n_a, video, audio)
        got = window_quotas(w, [torch.tensor(n_v), torch.tensor(n_a)], [video, audio])
        assert list(zip(*(q.tolist() for q in got), strict=True)) == expected


def test_official_tail_window_collapses_as_the_notes_describe():
    """31 windows of 121 + 45 tokens and a tail of 121 + 1770, uniform attention: its sound goes 1770 -> 1276 -> 67."""
    n_v, n_a = [121] * 32, [45] * 31 + [1770]
    even = torch.full((32,), 1 / 32, dtype=torch.float64)
    seen = []
    for keep in (0.9298, 0.7949, 0.2986):
        video, audio = round(keep * sum(n_v)), round(keep * sum(n_a))
        v, a = window_quotas([even, even], [torch.tensor(n_v), torch.tensor(n_a)], [video, audio])
        n_v, n_a = v.tolist(), a.tolist()
        seen.append((n_v[0], n_a[0], n_a[-1]))
    assert seen[0] == (121, 45, 1276) and seen[1] == (117, 45, 67) and seen[2] == (34, 14, 14)
