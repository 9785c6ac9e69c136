"""Temporal-aware maximal marginal relevance (AVOC, arXiv 2606.24286, equation 9), exact and in parallel.

Greedy selection of ``(1 - l) * score - l * max(0, largest cosine to a selected token within W blocks)``; ties go to the
lower index. Knows neither modalities nor budgets: the caller passes one modality's tokens.

Why it may run in parallel without changing the outcome: an unselected token's objective only ever falls. So a token
that is the largest of its own window is picked before anything can lower it, and all such tokens are picked in one
round; and greedy picks come in falling order, so the k picks are the k largest marginals of a run to exhaustion, which
may stop where nothing left reaches the k-th. Before that, a token whose score alone stays below what the k-th pick is
sure to reach (the k-th best score less the largest penalty) is out, which leaves a fraction of the similarities.

Similarities are dot products of unit vectors on a grid of 2**-26, summed in float64: exact in any order, so that ties
and results do not depend on block sizes, threads or devices. The paper's "mean-centered" is read as: less the mean of
the modality's tokens in the clip, since features of one modality share a large common part.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from omnicli.compress.mmr import LOW, NONE, greedy, keys
from omnicli.compress.ops import row_chunks
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

GRID = 2.0**26
"""Steps of a unit vector's component per 1: products are multiples of 2**-52 and their sums fit float64 exactly."""

MEMORY = 512 * 2**20
"""Bytes of similarities that are kept; more are computed as they are needed."""

_UNIT = GRID**-2
_TILE = 48 * 2**20
_CHECK = 8


def ta_mmr(
    features: Tensor,
    scores: Tensor,
    window: Tensor,
    k: int,
    *,
    diversity: float = 0.15,
    radius: int | None = 3,
    rows: Tensor | None = None,
    memory: int = MEMORY,
) -> Tensor:
    """Select ``k`` tokens, exactly as the greedy loop would.

    Parameters
    ----------
    features : Tensor (N, D)
        Embeddings of any float dtype.
    scores : Tensor (n,)
        Scores of the tokens to choose from, finite; used as float32.
    window : Tensor (n,) int64
        Their temporal blocks; any order, gaps and sizes.
    k : int
        How many; at most n.
    diversity : float
        Weight l of the penalty, 0 to 1.
    radius : int or None
        W: blocks up to this far apart are compared; None: all of them, see `omnicli.compress.mmr`.
    rows : Tensor (n,) int64
        Where the tokens lie in ``features``; None: n = N.
    memory : int
        Bytes for similarities. Those of the candidates that lie within W blocks of one another are computed at once if
        they fit; else those of each pick when it is picked (slower by about a factor of ten). Without a radius they
        are never kept.

    Returns
    -------
    Tensor (k,) int64
        Indices into ``scores`` in the order of picking.

    Raises
    ------
    ValueError
        For a ``k`` out of range, scores that are not finite, or settings outside their ranges.
    """
    n = scores.numel()
    if not 0 <= k <= n:
        raise ValueError(f"cannot select {k} of {n} tokens")
    if not 0 <= diversity <= 1 or (radius is not None and radius < 0):
        raise ValueError(f"diversity {diversity} must be in 0..1 and radius {radius} not negative")
    scores = scores.detach().float()
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("scores are not finite")
    gain = (1 - diversity) * scores + 0.0  # + 0.0 turns -0.0 into 0.0, which sorts equal
    if k == 0 or diversity == 0:
        return gain.sort(descending=True, stable=True).indices[:k]
    sure = gain.topk(k).values[-1] - diversity
    chosen = torch.nonzero(gain >= sure - 1e-5 * (1 + sure.abs())).flatten()
    chosen = chosen[window[chosen].argsort(stable=True)]
    units = UnitVectors(features, rows, chosen)
    lonely = units.scale == 0  # similar to nothing: neither lowered by others nor lowering any
    known, chosen, units = keys(gain[chosen[lonely]], chosen[lonely]), chosen[~lonely], units.only(~lonely)
    if radius is None:
        won = greedy(gain[chosen], chosen, units, units.width, k, diversity=diversity, unit=_UNIT)
        return LOW - (torch.cat([won, known]).topk(k).values & LOW)
    layout = _Layout.of(window[chosen], radius)
    near = _Gram(units, layout) if layout.size * 4 <= memory else _OnDemand(units, layout, memory)
    return _rounds(gain, chosen, layout, near, known=known, k=k, diversity=diversity)


class UnitVectors:
    """Mean-centred unit vectors of tokens, made when asked for.

    Parameters
    ----------
    features : Tensor (N, D)
        Embeddings.
    rows : Tensor (n,) or None
        One modality's tokens among them; the mean is theirs. None: all.
    chosen : Tensor (m,) or None
        Which of these n are wanted. None: all.
    """

    def __init__(self, features: Tensor, rows: Tensor | None = None, chosen: Tensor | None = None) -> None:
        self.features = features.detach()
        self.width = features.shape[1]
        n = len(features) if rows is None else rows.numel()
        total = torch.zeros(self.width, dtype=torch.float64, device=features.device)
        for part in row_chunks(n, self.width):
            x = self.features[part if rows is None else rows[part]].float()
            total += torch.ones(len(x), dtype=x.dtype, device=x.device) @ x
        self.mean = (total / max(1, n)).float()
        if chosen is None:
            chosen = torch.arange(n, device=features.device)
        self.where = chosen if rows is None else rows[chosen]
        norm = torch.empty(self.where.numel(), dtype=torch.float32, device=features.device)
        for part in row_chunks(self.where.numel(), self.width):
            norm[part] = self._centred(self.where[part]).norm(dim=1)
        # What is left of a token that equals the mean is the mean's rounding error, not a direction.
        self.scale = torch.where(norm > 1e-6 * self.mean.norm(), GRID / norm.clamp_min(1e-30), 0.0)

    def only(self, which: Tensor) -> UnitVectors:
        """Return those chosen by a mask (m,)."""
        other = copy.copy(self)
        other.where, other.scale = self.where[which], self.scale[which]
        return other

    def _centred(self, where: Tensor) -> Tensor:
        return self.features[where].float().sub_(self.mean)

    def __call__(self, part: slice | Tensor, out: Tensor | None = None) -> Tensor:
        """Return vectors (m, D) float64 in steps of the grid; a token that equals the mean is the zero vector.

        They are written to the beginning of ``out``, if given.
        """
        where, scale = self.where[part], self.scale[part, None]
        if out is None:
            out = torch.empty(len(where), self.width, dtype=torch.float64, device=where.device)
        for some in row_chunks(len(where), self.width):
            out[some] = self._centred(where[some]).mul_(scale[some]).round_()
        return out[: len(where)]


@dataclass(frozen=True)
class _Layout:
    """Candidates in the order of their blocks, and the blocks within the radius of each.

    Block u holds the candidates ``offset[u] .. offset[u + 1]``; its window the blocks ``low[u] .. high[u]``. Its
    similarities are a matrix of its candidates by those of its window, at ``base[u]`` of a flat array.
    """

    block: Tensor
    offset: Tensor
    low: Tensor
    high: Tensor
    width: Tensor
    base: Tensor
    size: int

    @classmethod
    def of(cls, window: Tensor, radius: int) -> _Layout:
        """Lay out candidates by their blocks (m,), ascending."""
        blocks, block, count = torch.unique_consecutive(window, return_inverse=True, return_counts=True)
        offset = torch.cat([count.new_zeros(1), count.cumsum(0)])
        low = torch.searchsorted(blocks, blocks - radius)
        high = torch.searchsorted(blocks, blocks + radius, right=True)
        width = offset[high] - offset[low]
        sizes = count * width
        return cls(block, offset, low, high, width, sizes.cumsum(0) - sizes, int(sizes.sum()))


class _Gram:
    """Similarities of all candidates within the radius of one another, computed once, block by block."""

    def __init__(self, units: UnitVectors, layout: _Layout) -> None:
        self.layout = layout
        self.flat = torch.empty(layout.size, dtype=torch.float32, device=units.where.device)
        offset, low, high = layout.offset.tolist(), layout.low.tolist(), layout.high.tolist()
        base = layout.base.tolist()
        limit = max(1, _TILE // (8 * units.width))
        tile = torch.empty(min(limit, offset[-1]), units.width, dtype=torch.float64, device=units.where.device)
        for first, last in _groups(offset, low, high, limit):
            begin, end = offset[low[first]], offset[high[last - 1]]
            shared = units(slice(begin, end), tile) if end - begin <= limit else None
            for u in range(first, last):
                top, bottom, left, right = offset[u], offset[u + 1], offset[low[u]], offset[high[u]]
                out = self.flat[base[u] : base[u] + (bottom - top) * (right - left)].view(bottom - top, right - left)
                if shared is not None:
                    product = shared[top - begin : bottom - begin] @ shared[left - begin : right - begin].T
                    out.copy_(product.mul_(_UNIT))
                    continue
                for down in _pieces(top, bottom, units.width):
                    mine = units(down)
                    for across in _pieces(left, right, units.width):
                        product = mine @ units(across, tile).T
                        out[down.start - top : down.stop - top, across.start - left : across.stop - left] = (
                            product.mul_(_UNIT)
                        )

    def raise_penalty(self, penalty: Tensor, picks: _Picks, where: Tensor, block: Tensor) -> None:
        """Raise the penalties (a,) of candidates ``where`` (a,) in ``block`` (a,) to their similarity to the picks."""
        lay = self.layout
        for side, valid in (picks.left(lay), picks.right(lay)):
            row = picks.candidate[side] - lay.offset[side]
            start = lay.base[side] + row * lay.width[side] - lay.offset[lay.low[side]]
            here = valid[block]
            found = self.flat[torch.where(here, start[block] + where, 0)]
            torch.maximum(penalty, torch.where(here, found, 0.0), out=penalty)


class _OnDemand:
    """Similarities of a pick with its window, computed when it is picked."""

    def __init__(self, units: UnitVectors, layout: _Layout, memory: int) -> None:
        self.units, self.layout = units, layout
        count = units.where.numel()
        fits = count * units.width * 8 <= memory
        self.vectors = torch.cat([units(p) for p in _pieces(0, count, units.width)]) if fits else None

    def raise_penalty(self, penalty: Tensor, picks: _Picks, where: Tensor, block: Tensor) -> None:
        """Raise the penalties (a,) of candidates ``where`` (a,), ascending, to their similarity to the picks."""
        lay = self.layout
        hit = torch.nonzero(picks.hit).flatten()
        ends = torch.stack([lay.offset[lay.low[hit]], lay.offset[lay.high[hit]]])
        spans = torch.searchsorted(where, ends).tolist()
        for pick, begin, end in zip(picks.candidate[hit].tolist(), *spans, strict=True):
            mine = self._get(slice(pick, pick + 1))[0]
            for here in _pieces(begin, end, self.units.width):
                found = (self._get(where[here]) @ mine).mul_(_UNIT).float()
                torch.maximum(penalty[here], found, out=penalty[here])

    def _get(self, part: slice | Tensor) -> Tensor:
        return self.units(part) if self.vectors is None else self.vectors[part]


@dataclass(frozen=True)
class _Picks:
    """One round's picks: in which blocks, and which candidate in each; any two are more than the radius apart."""

    hit: Tensor
    candidate: Tensor
    place: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "place", torch.arange(self.hit.numel(), device=self.hit.device))

    def left(self, layout: _Layout) -> tuple[Tensor, Tensor]:
        """Return for each block the block of the pick at or before it in its window, and whether there is one."""
        found = torch.where(self.hit, self.place, -1).cummax(0).values
        return found.clamp_min(0), found >= layout.low

    def right(self, layout: _Layout) -> tuple[Tensor, Tensor]:
        """Return for each block the block of the pick after it in its window, and whether there is one."""
        none = self.hit.numel()
        after = torch.where(self.hit, self.place, none).flip(0).cummin(0).values.flip(0)
        found = torch.cat([after[1:], after.new_full((1,), none)])
        return found.clamp_max(none - 1), found < layout.high


def _rounds(
    gain: Tensor,
    chosen: Tensor,
    layout: _Layout,
    near: _Gram | _OnDemand,
    *,
    known: Tensor,
    k: int,
    diversity: float,
) -> Tensor:
    """Pick all window maxima, lower what is near them, again, until the k largest marginals are known.

    ``known`` (l,) are keys of marginals that are final from the start.
    """
    if chosen.numel() == 0:
        return LOW - (known.topk(k).values & LOW)
    blocks = layout.low.numel()
    nothing = keys(gain.new_full((1,), -torch.inf), chosen.new_zeros(1))[0]  # the largest key of "no token"
    local = torch.zeros_like(gain, dtype=torch.int64)
    local[chosen] = torch.arange(chosen.numel(), device=chosen.device)
    won = torch.full((chosen.numel() + 1,), NONE, dtype=torch.int64, device=gain.device)
    where, block, index = torch.arange(chosen.numel(), device=chosen.device), layout.block, chosen
    value, penalty = gain[chosen], torch.zeros_like(gain[chosen])
    window_max = _WindowMax(layout)
    while True:
        for _ in range(_CHECK):
            key = keys(value - diversity * penalty, index)
            best = torch.full((blocks,), NONE, dtype=torch.int64, device=gain.device)
            best.scatter_reduce_(0, block, key, "amax")
            hit = (best == window_max(best)) & (best > nothing)
            picks = _Picks(hit, torch.where(hit, local[(LOW - (best & LOW)) % gain.numel()], chosen.numel()))
            won[picks.candidate] = best
            value = value.masked_fill(key == torch.where(hit, best, NONE)[block], -torch.inf)
            near.raise_penalty(penalty, picks, where, block)
        done = torch.cat([won[:-1], known]).topk(k).values
        alive = torch.nonzero(keys(value - diversity * penalty, index) > done[-1].clamp_min(nothing)).flatten()
        if alive.numel() == 0:
            return LOW - (done & LOW)
        if 2 * alive.numel() < where.numel():
            where, block, index = where[alive], block[alive], index[alive]
            value, penalty = value[alive], penalty[alive]


class _WindowMax:
    """Maximum over each block's window: a table of maxima over powers of two, two of which cover any window."""

    def __init__(self, layout: _Layout) -> None:
        length = layout.high - layout.low
        self.levels = max(1, int(length.max()).bit_length())
        level = torch.log2(length.double() + 0.5).floor().to(torch.int64)
        self.first = level * length.numel() + layout.low
        self.second = level * length.numel() + layout.high - (1 << level)

    def __call__(self, best: Tensor) -> Tensor:
        """Return window maxima (blocks,) of block maxima (blocks,)."""
        table = [best]
        for step in range(self.levels - 1):
            last, shift = table[-1], 1 << step
            table.append(torch.cat([torch.maximum(last[:-shift], last[shift:]), last[-shift:]]))
        flat = torch.cat(table)
        return torch.maximum(flat[self.first], flat[self.second])


def _groups(offset: list[int], low: list[int], high: list[int], limit: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of blocks whose windows together hold at most ``limit`` candidates (at least one block each)."""
    first, blocks = 0, len(low)
    while first < blocks:
        last = first + 1
        while last < blocks and offset[high[last]] - offset[low[first]] <= limit:
            last += 1
        yield first, last
        first = last


def _pieces(begin: int, end: int, width: int) -> Iterator[slice]:
    for part in row_chunks(end - begin, width, 8, _TILE):
        yield slice(begin + part.start, begin + part.stop)


__all__ = ["GRID", "MEMORY", "UnitVectors", "ta_mmr"]
