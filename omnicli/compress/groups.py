"""Tokens in groups: frames, true-time windows, contiguous runs; and choosing inside every group at once.

A grouping is a set of rows of `MediaTokens` with a group number each. Nothing here knows a method.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from omnicli.types import MediaTokens, Modality
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Groups:
    """Some rows of a clip, in groups that never interleave.

    Attributes
    ----------
    rows : Tensor (n,) int64
        Ascending indices into the clip's tokens.
    index : Tensor (n,) int64
        Group of each row, 0 to G - 1, never falling.
    sizes : Tensor (G,) int64
        Rows of each group, all at least 1.
    """

    rows: Tensor
    index: Tensor
    sizes: Tensor

    def __len__(self) -> int:
        return self.sizes.numel()

    @property
    def starts(self) -> Tensor:
        """Where each group begins among the rows (G,)."""
        return self.sizes.cumsum(0) - self.sizes

    def by_size(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ``(groups (B,), places (B, n))`` for every size n that occurs; places index ``rows`` and ``index``."""
        for size in torch.unique(self.sizes).tolist():
            groups = torch.nonzero(self.sizes == size).flatten()
            yield groups, self.starts[groups, None] + torch.arange(size, device=groups.device)


def group(rows: Tensor, key: Tensor) -> Groups:
    """Group ascending ``rows`` (n,) by runs of equal ``key`` (n,)."""
    if rows.numel() == 0:
        return Groups(rows, rows.clone(), rows.clone())
    _, index, sizes = torch.unique_consecutive(key, return_inverse=True, return_counts=True)
    return Groups(rows, index, sizes)


def frames(tokens: MediaTokens) -> Groups:
    """Return the picture tokens, one group per frame (a temporal patch: a frame pair for Qwen2.5-Omni)."""
    rows = tokens.indices(Modality.VIDEO)
    return group(rows, tokens.start_s[rows])


def windows(tokens: MediaTokens, modality: Modality) -> Groups:
    """Return one modality's tokens, one group per true-time window that holds any."""
    rows = tokens.indices(modality)
    return group(rows, tokens.window[rows])


def stretches(tokens: MediaTokens, modality: Modality, size: int) -> Groups:
    """Return one modality's tokens in consecutive groups of ``size`` of its own tokens, the last one shorter."""
    rows = tokens.indices(modality)
    return group(rows, torch.arange(rows.numel(), device=rows.device) // size)


def runs(tokens: MediaTokens, modality: Modality) -> Groups:
    """Return one modality's tokens in runs that nothing of the other modality interrupts."""
    rows = tokens.indices(modality)
    return group(rows, rows - torch.arange(rows.numel(), device=rows.device))


def spans(tokens: MediaTokens, seconds: float, most: int) -> list[slice]:
    """Return the clip's tokens, of both modalities, as consecutive slices of ``seconds`` of true time each.

    A slice of more than ``most`` tokens is cut into as few equal ones as it takes.
    """
    if len(tokens) == 0:
        return []
    index = torch.floor((tokens.start_s - tokens.start_s.min()) / seconds).cummax(0).values
    sizes = torch.unique_consecutive(index, return_counts=True)[1]
    borders, begin = [0], 0
    for size in sizes.tolist():
        pieces = -(-size // most)
        borders += [begin + size * (i + 1) // pieces for i in range(pieces)]
        begin += size
    return [slice(begin, end) for begin, end in itertools.pairwise(borders)]


def counterparts(tokens: MediaTokens, by_frame: Groups, reference: Tensor) -> Tensor:
    """Return for each picture token the place (n,) of the same cell in its frame's reference frame.

    Parameters
    ----------
    tokens : MediaTokens
        The clip.
    by_frame : Groups
        Its frames; places index ``by_frame.rows``.
    reference : Tensor (F,) int64
        Another frame for each frame; -1: none.

    Returns
    -------
    Tensor (n,) int64
        -1 in frames that have no reference, or one with other cells.
    """
    comparable = (reference >= 0) & (by_frame.sizes == by_frame.sizes[reference.clamp_min(0)])
    place = torch.arange(by_frame.index.numel(), device=by_frame.index.device) - by_frame.starts[by_frame.index]
    other = by_frame.starts[reference.clamp_min(0)][by_frame.index] + place
    other = torch.where(comparable[by_frame.index], other, -1)
    here = torch.nonzero(other >= 0).flatten()
    for cell in (tokens.row, tokens.col):
        moved = cell[by_frame.rows[here]] != cell[by_frame.rows[other[here]]]
        comparable[by_frame.index[here[moved]]] = False
    return torch.where(comparable[by_frame.index], other, -1)


def best(scores: Tensor, k: int) -> Tensor:
    """Return the ascending indices (k,) of the ``k`` largest ``scores`` (n,); of equal ones the first."""
    if k <= 0:
        return torch.zeros(0, dtype=torch.int64, device=scores.device)
    return scores.argsort(descending=True, stable=True)[:k].sort().values


def best_in_groups(scores: Tensor, groups: Groups, quota: Tensor) -> Tensor:
    """Return the ascending places of the ``quota`` (G,) largest ``scores`` (n,) of each group; of equal ones the first.

    Places index ``groups.rows``. A quota above a group's size takes the whole group.
    """
    order = scores.argsort(descending=True, stable=True)
    order = order[groups.index[order].argsort(stable=True)]  # by group, inside it by falling score
    rank = torch.arange(order.numel(), device=order.device) - groups.starts.repeat_interleave(groups.sizes)
    return order[rank < quota.to(order.device).repeat_interleave(groups.sizes)].sort().values


def evenly(groups: Groups, quota: Tensor) -> Tensor:
    """Return scores (n,) fp32, 1 for ``quota`` (G,) evenly spaced rows of each group and 0 for the others."""
    n, k = groups.sizes[groups.index], quota[groups.index]
    nth = torch.arange(n.numel(), device=n.device) - groups.starts[groups.index]
    return ((((nth + 1) * k + n // 2) // n) > ((nth * k + n // 2) // n)).float()


__all__ = [
    "Groups",
    "best",
    "best_in_groups",
    "counterparts",
    "evenly",
    "frames",
    "group",
    "runs",
    "spans",
    "stretches",
    "windows",
]
