"""OmniScope's numbers as its released code rounds them: rectangles of pictures, and sound clamped second by second.

What `omnicli.compress.methods.omniscope` does with ``mode: official``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

ROUNDS = 10
"""Rounds in which what clamping leaves over is handed on."""

_SIDE = 2  # least cells of a rectangle's side, where the grid has them


def rectangle(n: int, height: int, width: int) -> int:
    """Return the cells of the rectangle of a grid's shape that is nearest to ``n`` cells; halves go to even."""
    high = min(max(round(math.sqrt(n / (width / height))), _SIDE), height)
    wide = min(max(round(high * width / height), _SIDE), width)
    return high * wide


def picture_quota(scores: Sequence[float], grids: Sequence[tuple[int, int, int]], share: float) -> list[int]:
    """Return how many tokens of each grid stay; the total may be missed.

    Parameters
    ----------
    scores : sequence of float
        Of each grid, not negative; taken to three decimals. All 0: alike.
    grids : sequence of (int, int, int)
        Tokens, rows and columns of each.
    share : float
        Of all picture tokens.
    """
    kept = [round(score, 3) for score in scores]
    if sum(kept) == 0:
        kept = [1.0] * len(kept)
    mass, total = sum(kept), share * sum(size for size, _, _ in grids)
    out = []
    for score, (size, height, width) in zip(kept, grids, strict=True):
        n = min(math.floor(score / mass * total + 0.5), size)
        out.append(min(rectangle(n, height, width), size))
    return out


def sound_quota(weights: Sequence[float], share: float, size: int, least: int) -> list[int]:
    """Return how many of ``size`` tokens of each second stay.

    In proportion to ``weights``, clamped between ``least`` and ``size``; what that leaves over or takes too much goes
    to the seconds that are not at that end, in at most `ROUNDS` rounds, then whole tokens by largest remainder.
    """
    many = len(weights)
    if many == 0:
        return []
    total, mass = share * size * many, sum(weights)
    weight = [1.0] * many if mass <= 0 else list(weights)
    parts = [total * w / sum(weight) for w in weight]
    for _ in range(ROUNDS):
        parts = [min(max(p, least), size) for p in parts]
        over = total - sum(parts)
        free = [i for i, p in enumerate(parts) if (p < size if over > 0 else p > least)]
        if abs(over) < 1e-6 or not free:
            break
        own = sum(weight[i] for i in free)
        for i in free:
            parts[i] += over * (weight[i] / own if own > 0 else 1 / len(free))
    parts = [min(max(p, least), size) for p in parts]
    whole = [math.floor(p + 1e-9) for p in parts]
    order = sorted((i for i in range(many) if whole[i] < size), key=lambda i: (whole[i] - parts[i], i))
    target = round(min(max(total, least * many), size * many))
    for i in order[: max(0, target - sum(whole))]:
        whole[i] += 1
    return whole


__all__ = ["ROUNDS", "picture_quota", "rectangle", "sound_quota"]
