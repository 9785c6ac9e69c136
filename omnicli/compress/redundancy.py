"""What is redundant: inside a frame, against the frame before, and among sound tokens that merge into anchors.

What both modes of OmniZip are made of. Knows no method and no budget.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from omnicli.compress.groups import Groups, best_in_groups, group
from omnicli.compress.ops import CHUNK_BYTES, SAME, distances, finite, first_largest, gram, row_chunks, unit
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

EPS = 1e-6
"""What the released code adds to a token's length."""

FRAMES_BYTES = 8 * CHUNK_BYTES
"""Working memory of a batch of frames."""

QUERIES, KEYS = 2048, 4096
"""Rows and columns of one block of similarities."""


def thinned_frames(
    features: Tensor, frames: Groups, other: Tensor, quota: Tensor, *, neighbours: int, ties_by_index: bool = True
) -> Tensor:
    """Return the ascending rows of ``quota`` (F,) tokens of each frame.

    Frames with counterparts lose what resembles those, the others what is redundant inside them.

    Parameters
    ----------
    features : Tensor (N, D)
        All tokens.
    frames : Groups
        The frames.
    other : Tensor (n,) int64
        Place of each token's counterpart in the frame before; -1: none.
    quota : Tensor (F,) int64
        Tokens of each frame that stay.
    neighbours, ties_by_index
        See `density_peaks`.

    Raises
    ------
    ModelError
        Embeddings are not finite.
    """
    rows, width = frames.rows, features.shape[1]
    score = torch.zeros(rows.numel(), device=rows.device)
    temporal = torch.nonzero(other >= 0).flatten()
    score[temporal] = distances(features, rows[temporal], rows[other[temporal]])
    spatial = other[frames.starts] < 0
    for same_size, places in frames.by_size():
        inside = places[spatial[same_size]]
        cells = inside.shape[1]
        for part in row_chunks(len(inside), cells * max(width, 4 * cells), limit=FRAMES_BYTES):
            x = unit(features[rows[inside[part]]], EPS)
            score[inside[part]] = density_peaks(x, neighbours, ties_by_index=ties_by_index)
    finite(score)
    return rows[best_in_groups(score, frames, quota)]


def merged_into(features: Tensor, anchors: Tensor, rows: Tensor, score: Tensor, most: int) -> Tensor:
    """Return the anchors (a, D) with what they take up, in the dtype of ``features``.

    Each of ``rows`` (n,) goes to its most similar anchor, which takes the mean of itself and its best ``most``,
    weighted by the softmax of their ``score`` (n,).
    """
    x = features
    _, home = nearest(x, rows, anchors)
    order = home.argsort(stable=True)
    rows, score, home = rows[order], score[order], home[order]
    taken = group(torch.arange(rows.numel(), device=rows.device), home)
    places = best_in_groups(score, taken, taken.sizes.clamp(max=most))
    taken = group(places, home[places])
    into = home[places[taken.starts]]
    # A table with a row per anchor instead of scattered sums: those depend on the order of threads on a GPU.
    slot = torch.arange(int(taken.sizes.max()), device=rows.device)
    there = slot < taken.sizes[:, None]
    table = places[(taken.starts[:, None] + slot).clamp(max=places.numel() - 1)]
    weight = score[table].masked_fill(~there, -torch.inf).softmax(1)
    out = x[anchors]
    for part in row_chunks(into.numel(), slot.numel() * x.shape[1]):
        mean = (weight[part, :, None] * x[rows[table[part]]].float()).sum(1)
        out[into[part]] = ((x[anchors[into[part]]].float() + mean) / 2).to(x.dtype)
    return out


def density_peaks(x: Tensor, neighbours: int, *, ties_by_index: bool = True) -> Tensor:
    """Return how much each token is the centre of a cluster of its frame: density x distance to any denser token.

    Density is exp(-mean cosine distance to the nearest ``neighbours`` others); the densest token's distance is the one
    to the token farthest from it.

    Parameters
    ----------
    x : Tensor (B, n, D) float32
        Tokens of B frames, of length 1.
    neighbours : int
        Fewer where a frame has fewer others.
    ties_by_index : bool
        Whether the first of equally dense tokens counts as the denser; else none does, and all copies of one token in
        the densest spot count as peaks.

    Returns
    -------
    Tensor (B, n) float32
    """
    n = x.shape[1]
    if n == 1:
        return torch.ones(x.shape[:2], device=x.device)
    distance = 1 - gram(x)
    distance = torch.where(distance < SAME, torch.zeros_like(distance), distance)
    own = torch.eye(n, dtype=torch.bool, device=x.device)
    distance = distance.masked_fill(own, torch.inf)
    nearest_few = distance.topk(min(neighbours, n - 1), dim=2, largest=False).values
    density = (-nearest_few.mean(2)).exp()
    denser = density[:, None, :] > density[:, :, None]
    if ties_by_index:
        earlier = torch.ones(n, n, dtype=torch.bool, device=x.device).tril(-1)
        denser |= (density[:, None, :] == density[:, :, None]) & earlier
    farthest = distance.masked_fill(own, -torch.inf).amax(2)
    apart = distance.masked_fill(~denser, torch.inf).amin(2)
    return density * torch.where(denser.any(2), apart, farthest)


def nearest(features: Tensor, rows: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each of ``rows`` (n,) its largest cosine to any of ``among`` (m,), and which that is; ties: the first.

    In blocks: n x m is never held.

    Returns
    -------
    cosine : Tensor (n,) float32
    place : Tensor (n,) int64
        Into ``among``.

    Raises
    ------
    ModelError
        Embeddings are not finite.
    """
    top = torch.full((rows.numel(),), -torch.inf, device=features.device)
    place = torch.zeros(rows.numel(), dtype=torch.int64, device=features.device)
    for part in _blocks(rows.numel(), QUERIES):
        x = unit(features[rows[part]], EPS)
        for block in _blocks(among.numel(), KEYS):
            cosine = x @ unit(features[among[block]], EPS).T
            value = cosine.amax(1)
            place[part] = torch.where(value > top[part] + SAME, first_largest(cosine) + block.start, place[part])
            top[part] = torch.maximum(top[part], value)
    finite(top)
    return top, place


def _blocks(n: int, size: int) -> Iterator[slice]:
    for begin in range(0, n, size):
        yield slice(begin, min(begin + size, n))


__all__ = ["EPS", "FRAMES_BYTES", "density_peaks", "merged_into", "nearest", "thinned_frames"]
