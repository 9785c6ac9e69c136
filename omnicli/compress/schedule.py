"""SEATS's layer schedule: what share of the media tokens each LLM layer reads, in closed form for any depth.

Relative to the retention R, layers up to the first drop read ``encoder`` x R of the tokens, each drop takes ``growth``
times as much as the one before, and no media is left after the late layer. One unknown, the size of the first drop,
follows from the mean over all layers being R; it is proportional to R, so the ratios serve any R and both modalities.
(SEATS, section 4.2.1 with table 2, appendix A with equations 2 and 3)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from omnicli.errors import ConfigError

ENCODER = 1.4
"""Level before the first drop, relative to R: lambda in the paper (section 5.1)."""

_SLACK = 1e-12
_GRID = 48
_DROPS, _LATE = (27, 31, 35), 39


@dataclass(frozen=True)
class Schedule:
    """Where media tokens are dropped inside the LLM, and how many stay.

    Attributes
    ----------
    drops : tuple of int
        Layers, counted from 0, AFTER which tokens are dropped. SEATS on 28 layers: 15, 17, 19.
    late : int or None
        Layer, counted from 0, after which all media tokens go (22 of 28); None: they stay to the end.
    keep : tuple of float
        Per drop the share of the tokens present that stays.
    encoder : float
        Share of all tokens before the first drop, relative to R. Only where ``encoder`` x R is at most 1 can the mean
        over the layers be R; a caller has to lower it, and solve again, for a larger R.
    """

    drops: tuple[int, ...]
    late: int | None
    keep: tuple[float, ...]
    encoder: float = ENCODER

    def levels(self, depth: int) -> list[float]:
        """Return the share of tokens that each of ``depth`` layers reads, relative to R; the mean is 1."""
        after = dict(zip(self.drops, self.keep, strict=True))
        found, level = [], self.encoder
        for layer in range(depth):
            found.append(level)
            level = 0.0 if layer == self.late else level * after.get(layer, 1.0)
        return found


def auto_layers(depth: int) -> tuple[tuple[int, ...], int | None]:
    """Return ``(drops, late)`` for an LLM of ``depth`` layers, counted from 0.

    The fractions are those of Qwen3-Omni-30B (after 27, 31, 35 and 39 of 48 layers), rounded to the nearest layer.
    They also give the paper's 16, 18, 20 and 23 of the 28 layers of Qwen2.5-Omni-7B. Where neighbours would coincide
    (below 11 layers) the earlier one moves forward, so that there are three drops from 5 layers on, and two with 3 or
    4. Where rounding puts the drops too late for the default encoder level (12 and 24 layers among those up to 128)
    all of them move forward by one. With fewer than 4 layers media removed before the end would cost more layers than
    that level makes up for, and ``late`` is None; 2 layers have room for one drop, 1 for none.
    """
    late = _scaled(_LATE, depth) if depth >= 4 else depth
    drops: list[int] = []
    for part in reversed(_DROPS):
        drops.insert(0, min(_scaled(part, depth), (drops[0] if drops else late) - 1))
    chosen, end = [layer - 1 for layer in drops if layer >= 1], late - 1 if depth >= 4 else None
    while chosen and chosen[0] > 0 and ENCODER * _reach(depth, chosen, end, math.e)[0] >= 1:
        chosen = [layer - 1 for layer in chosen]
    return tuple(chosen), end


def solve(
    depth: int, drops: Sequence[int], late: int | None, encoder: float = ENCODER, growth: float = math.e
) -> Schedule:
    """Return the schedule whose mean over the layers is R, in closed form (SEATS, equation 3).

    Parameters
    ----------
    depth : int
        Layers of the LLM.
    drops, late
        See `Schedule` and `auto_layers`.
    encoder : float
        Level before the first drop, relative to R. Where there are no drops it is no free choice and not used: the
        one level that has R as its mean takes its place.
    growth : float
        How much larger each drop is than the one before; 1: equal steps.

    Raises
    ------
    ConfigError
        The layers are not ascending inside the model, or no size of the drops has R as its mean.
    """
    sizes = _segments(depth, drops, late)
    read = sum(sizes)
    if not drops:
        return Schedule((), late, (), depth / read)
    _check(depth, drops, late, encoder=encoder, growth=growth)
    lost = _lost(len(drops), growth)
    step = max(0.0, encoder * read - depth) / math.fsum(n * x for n, x in zip(sizes, lost, strict=True))
    levels = [max(0.0, encoder - step * x) for x in lost]
    return Schedule(tuple(drops), late, _ratios(levels), encoder)


def official(depth: int, drops: Sequence[int], late: int | None, encoder: float = ENCODER) -> Schedule:
    """Return the schedule as SEATS's released code finds it: by 50 steps of bisection, ratios rounded to 4 decimals.

    Its mean misses R in the fifth digit. Without drops the encoder level stays as given, so the mean is not R. Where
    the target cannot be reached the released code silently returns ratios of 1.0 and spends less than R; that is not
    reproduced, the error of `solve` is raised instead.
    """
    sizes = _segments(depth, drops, late)
    if not drops:
        return Schedule((), late, (), encoder)
    _check(depth, drops, late, encoder=encoder, growth=math.e)
    lost = _lost(len(drops), math.e)

    def levels(share: float) -> list[float]:
        return [encoder * (1 - share * x / lost[-1]) for x in lost]

    share = _bisect(lambda x: math.fsum(n * level for n, level in zip(sizes, levels(x), strict=True)) > depth)
    return Schedule(tuple(drops), late, tuple(round(r, 4) for r in _ratios(levels(share))), encoder)


def _scaled(part: int, depth: int) -> int:
    """Return ``part`` / 48 of ``depth``, to the nearest, halves up."""
    return (2 * part * depth + _GRID) // (2 * _GRID)


def _segments(depth: int, drops: Sequence[int], late: int | None) -> list[int]:
    """Return how many layers read each level, from the first to the one before the late layer's removal."""
    end = depth - 1 if late is None else late
    borders = [-1, *drops, end]
    if depth < 1 or not 0 <= end < depth or any(b <= a for a, b in itertools.pairwise(borders)):
        raise ConfigError(
            f"layers: drops after {list(drops)} and all media gone after {late} must ascend, counted from 0, and the "
            f"last drop must come before layer {min(end, depth - 1)}, the last of {depth} that reads media"
        )
    return [b - a for a, b in itertools.pairwise(borders)]


def _lost(drops: int, growth: float) -> list[float]:
    """Return what each level has lost of the first, in units of the first drop: 0, 1, 1 + g, 1 + g + g^2 ..."""
    return [math.fsum(growth**j for j in range(i)) for i in range(drops + 1)]


def _ratios(levels: Sequence[float]) -> tuple[float, ...]:
    return tuple(b / a for a, b in itertools.pairwise(levels))


def _reach(depth: int, drops: Sequence[int], late: int | None, growth: float) -> tuple[float, float]:
    """Return the means over the layers, per encoder level, if the last drop leaves nothing and if none takes any."""
    sizes, lost = _segments(depth, drops, late), _lost(len(drops), growth)
    least = math.fsum(n * (1 - x / lost[-1]) for n, x in zip(sizes, lost, strict=True)) / depth
    return least, sum(sizes) / depth


def _check(depth: int, drops: Sequence[int], late: int | None, *, encoder: float, growth: float) -> None:
    """Raise a ConfigError if no drop between nothing and everything makes the mean R."""
    for name, value in (("encoder", encoder), ("growth", growth)):
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name}: must be a number above 0, not {value:g}")
    least, most = _reach(depth, drops, late, growth)
    if encoder * least - _SLACK <= 1 <= encoder * most + _SLACK:
        return
    removal = "" if late is None else f" and all media gone after layer {late}"
    raise ConfigError(
        f"the schedule cannot reach the retention: over {depth} layers (counted from 0) with drops after "
        f"{', '.join(map(str, drops))}{removal}, encoder {encoder:g} gives means of {encoder * least:.3f} to "
        f"{encoder * most:.3f} times it; use an encoder from {1 / most:.3f} to {1 / least:.3f}, or other layers"
    )


def _bisect(above: Callable[[float], bool], steps: int = 50) -> float:
    """Return where ``above`` turns false between 0 and 1."""
    low, high = 0.0, 1.0
    for _ in range(steps):
        middle = (low + high) / 2
        if above(middle):
            low = middle
        else:
            high = middle
    return (low + high) / 2


__all__ = ["ENCODER", "Schedule", "auto_layers", "official", "solve"]
