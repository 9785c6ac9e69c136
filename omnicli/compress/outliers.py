"""How far tokens lie from the middle of theirs, and how alone they are among their neighbours. Knows no method.

What VidCom2, DASH and OmniScope score by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from omnicli.compress.groups import Groups, best_in_groups
from omnicli.compress.ops import CHUNK_BYTES, SAME, distances, finite, row_chunks, unit
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

WIDTHS = (1 / 8, 1 / 4, 1 / 2, 1, 2)
"""Widths of the Gaussians whose sum says how near a token is to a centre."""

MEMORY = 8 * CHUNK_BYTES
"""Working memory of a batch of frames."""


def steady_channels(features: Tensor, rows: Tensor, k: int) -> Tensor:
    """Return the ascending numbers (k,) int64 of the channels of ``features`` (N, D) that vary least over ``rows``.

    Of channels that vary alike the first.

    Raises
    ------
    ModelError
        Embeddings are not finite.
    """
    width = features.shape[1]
    total = torch.zeros(width, dtype=torch.float64, device=features.device)
    for part in row_chunks(rows.numel(), width):
        total += features[rows[part]].float().sum(0)
    mean = finite(total / max(1, rows.numel())).float()
    square = torch.zeros_like(total)
    for part in row_chunks(rows.numel(), width):
        square += (features[rows[part]].float() - mean).square().sum(0)
    return square.argsort(stable=True)[:k].sort().values


def nearness(x: Tensor, centre: Tensor) -> Tensor:
    """Return the sum of Gaussians (...,) of the distances of ``x`` and ``centre`` (..., D); 5 where they meet."""
    square = (x - centre).square().sum(-1)
    return torch.stack([(-square / (2 * width)).exp() for width in WIDTHS]).sum(0)


def crowding(features: Tensor, groups: Groups, which: Tensor, neighbours: int = 5) -> Tensor:
    """Return how crowded each token is: the mean of its largest cosines to others of its group.

    Parameters
    ----------
    features : Tensor (N, D)
        All tokens.
    groups : Groups
        Frames.
    which : Tensor (G,) bool
        Groups to look at.
    neighbours : int
        How many cosines; fewer where a group has fewer others. A token alone is not crowded: -1.

    Returns
    -------
    Tensor (n,) float32
        One value per place of ``groups``, 0 in groups that were not looked at.

    Raises
    ------
    ModelError
        Embeddings are not finite.
    """
    out = torch.zeros(groups.rows.numel(), device=groups.rows.device)
    for same_size, places in groups.by_size():
        inside = places[which[same_size]]
        n = places.shape[1]
        if n == 1:
            out[inside] = -1.0
            continue
        for part in row_chunks(len(inside), n * (features.shape[1] + 2 * n), limit=MEMORY):
            cosine = cosines(unit(features[groups.rows[inside[part]]]))
            cosine.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
            out[inside[part]] = cosine.topk(min(neighbours, n - 1), dim=2).values.mean(2)
    return finite(out)


def stand_outs(features: Tensor, groups: Groups, other: Tensor, quota: Tensor) -> Tensor:
    """Return the ascending rows of ``quota`` (F,) tokens of each frame.

    Frames with counterparts keep what changed most against those, the others what is least crowded.

    Parameters
    ----------
    features : Tensor (N, D)
        All tokens.
    groups : Groups
        The frames.
    other : Tensor (n,) int64
        Place of each token's counterpart in the frame before; -1, for whole frames: none.
    quota : Tensor (F,) int64
        Tokens of each frame that stay.

    Raises
    ------
    ModelError
        Embeddings are not finite.
    """
    if groups.rows.numel() == 0:
        return groups.rows
    score = -crowding(features, groups, other[groups.starts] < 0)
    temporal = torch.nonzero(other >= 0).flatten()
    score[temporal] = distances(features, groups.rows[temporal], groups.rows[other[temporal]])
    return groups.rows[best_in_groups(score, groups, quota)]


def cosines(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Return cosines (B, n, m) of rows of length 1, (B, n, D) and (B, m, D); 1 up to rounding is 1."""
    cosine = x @ (x if y is None else y).transpose(1, 2)
    return torch.where(1 - cosine < SAME, torch.ones_like(cosine), cosine)


__all__ = ["MEMORY", "WIDTHS", "cosines", "crowding", "nearness", "stand_outs", "steady_channels"]
