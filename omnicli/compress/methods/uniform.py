"""Tokens evenly spaced in time and, inside a picture, in space; within each modality's budget.

Every moment (all tokens of a modality that start together: a frame pair's cells, one sound token) gets its even share
of the budget. Inside a picture the share is taken in the order of a Bayer matrix, whose every beginning is spread
evenly over the plane; its ranks are scrambled from picture to picture so that all cells get their turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from omnicli.compress.base import MODALITIES, everything
from omnicli.compress.budget import Budgeted
from omnicli.types import MediaTokens, Query, Selection
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_BITS = 8


@dataclass(frozen=True)
class Uniform(Budgeted):
    """Keep tokens evenly spaced in time and space."""

    criterion: ClassVar[str] = "even spacing in time and space"

    def compress(self, tokens: MediaTokens, query: Query) -> Selection:
        """Choose evenly; the question plays no part."""
        budget = self.budget(tokens)
        if budget.total == len(tokens):
            return everything(tokens)
        kept = []
        for modality, name in MODALITIES:
            own = tokens.indices(modality)
            start, row, col = tokens.start_s[own], tokens.row[own], tokens.col[own]
            kept.append(own[evenly_spaced(start, row, col, getattr(budget, name))])
        return Selection(torch.cat(kept).sort().values, report={"budget": budget.to_dict()})


def evenly_spaced(start_s: Tensor, row: Tensor, col: Tensor, k: int) -> Tensor:
    """Return ``k`` indices (k,) int64 of tokens, even in time and space; not sorted.

    Parameters
    ----------
    start_s : Tensor (n,)
        When each token starts; tokens with the same start share a picture.
    row, col : Tensor (n,)
        Its cell; negative: none.
    k : int
        At most n.
    """
    n = start_s.numel()
    if k >= n:
        return torch.arange(n, device=start_s.device)
    if k == 0:
        return torch.empty(0, dtype=torch.int64, device=start_s.device)
    _, moment, size = torch.unique(start_s, return_inverse=True, return_counts=True)
    end = size.cumsum(0)
    # Rounding the running total instead of each share makes the shares add up to k and stay below a moment's size.
    before, after = ((2 * x * k + n) // (2 * n) for x in (end - size, end))
    share = after - before
    rank = _bayer(row.long(), col.long()) ^ _reversed(moment)
    order = (moment * (1 << 2 * _BITS) + rank).argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(n, device=order.device) - (end - size)[moment[order]]
    return torch.nonzero(place < share[moment]).flatten()


def _bayer(row: Tensor, col: Tensor) -> Tensor:
    """Return ranks in an ordered-dithering matrix of 256 x 256: bit-reversed interleaving of row xor col and row."""
    rank = torch.zeros_like(row)
    mixed = row ^ col
    for bit in range(_BITS):
        rank = (rank << 2) | (((mixed >> bit) & 1) << 1) | ((row >> bit) & 1)
    return rank


def _reversed(number: Tensor) -> Tensor:
    """Return the lowest 16 bits in reverse order: what changes most often becomes what matters most."""
    out = torch.zeros_like(number)
    for bit in range(2 * _BITS):
        out = (out << 1) | ((number >> bit) & 1)
    return out
