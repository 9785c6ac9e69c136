"""Tensor code that methods share: z-scores, sums by block, chunks. Knows no method."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from omnicli.errors import ModelError
from omnicli.types import Modality
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_BYTES = 4 * 2**20
"""Working memory of a pass over the tokens' features: small enough for the cache and to be reused by the allocator."""

SAME = 2e-6
"""Cosine distances below this are 0: it is what fp32 products of equal rows differ by, and would rank duplicates."""


EPS = 1e-8
"""What is added to a row's length before dividing by it."""

_FEW = 16  # rows whose products are cheap one row at a time


def row_chunks(n: int, width: int, itemsize: int = 4, limit: int = CHUNK_BYTES) -> Iterator[slice]:
    """Yield slices that cover ``n`` rows, each of at most ``limit`` bytes when a row has ``width`` items."""
    step = max(1, limit // max(1, width * itemsize))
    for begin in range(0, n, step):
        yield slice(begin, min(begin + step, n))


def sums_by(features: Tensor, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Return fp32 sums (groups, D) of features (N, D) and counts (groups,) by group index (N,). Differentiable."""
    sums = torch.zeros(groups, features.shape[1], dtype=torch.float32, device=features.device)
    for part in row_chunks(len(features), features.shape[1]):
        sums.index_add_(0, group[part], features[part].float())
    return sums, torch.bincount(group, minlength=groups)


def finite(values: Tensor) -> Tensor:
    """Return ``values`` as they are; `ModelError` where one is not finite."""
    if not bool(torch.isfinite(values).all()):
        raise ModelError("the encoders' output is not finite; try --dtype float32 or bfloat16")
    return values


def unit(features: Tensor, eps: float = EPS) -> Tensor:
    """Return rows (..., D) as fp32 of length 1; ``eps`` is added to the length, so a zero row stays zero."""
    rows = features.float()
    return rows / (rows.norm(dim=-1, keepdim=True) + eps)


def gram(rows: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the products (B, n, n) of fp32 ``rows`` (B, n, D) with one another, symmetric to the last bit.

    A matrix product may add up (i, j) in another order than (j, i), and a small one that of a row in another order than
    that of its copy. An exact tie would be decided by that instead of by the lower index.
    """
    many, n, _ = rows.shape
    out = rows.new_empty(many, n, n) if out is None else out
    if n <= _FEW:
        for i in range(n):
            out[:, i] = (rows[:, i, None] * rows).sum(-1)
        return out
    torch.bmm(rows, rows.transpose(1, 2), out=out)
    return out.copy_(torch.minimum(out, out.transpose(1, 2)))


def first_largest(values: Tensor, slack: float | Tensor = SAME) -> Tensor:
    """Return where the largest value of the last axis is (...); of those within ``slack`` of it the first.

    For cosines that are equal but for the order in which a product adds up.
    """
    return (values >= values.amax(-1, keepdim=True) - slack).byte().argmax(-1)


def distances(features: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return 1 - cosine (n,) float32 of the rows ``first`` (n,) and ``second`` (n,) of ``features`` (N, D).

    Raises
    ------
    ModelError
        One is not finite.
    """
    parts = [
        1 - (unit(features[first[part]]) * unit(features[second[part]])).sum(1)
        for part in row_chunks(first.numel(), features.shape[1])
    ]
    out = torch.cat(parts) if parts else features.new_zeros(0, dtype=torch.float32)
    return torch.where(finite(out) < SAME, torch.zeros_like(out), out)


def zscore(values: Tensor, where: Tensor) -> Tensor:
    """Return z-scores (n,) over the entries chosen by ``where`` (n,) bool, 0 at all others.

    The deviation is that of the population. Values that are equal up to rounding have z-score 0. Differentiable.
    """
    zero = torch.zeros_like(values)
    count = where.sum().clamp_min(1)
    mean = torch.where(where, values, zero).sum() / count
    centred = torch.where(where, values - mean, zero)
    variance = centred.square().sum() / count
    # fp32 products of equal embeddings differ in their last bits; dividing that noise by its own deviation would rank.
    floor = (1e-6 * torch.where(where, values, zero).detach().abs().max()) ** 2 if values.numel() else variance
    flat = variance <= floor
    return torch.where(flat, zero, centred / torch.where(flat, torch.ones_like(variance), variance).sqrt())


BEST = 0.01
"""The best hundredth of a modality's scores are what may stand out."""

NOISE = 2.6652
"""Mean of the best hundredth of normally distributed scores, in deviations above their median."""


def standings(score: Tensor, modality: Tensor) -> tuple[float, float]:
    """Return how far the best scores (N,) of video and of audio stand out, see `standing`; ``modality`` (N,)."""
    video, audio = (standing(score[modality == kind]) for kind in Modality)
    return video, audio


def standing(score: Tensor) -> float:
    """Return how far the best of these scores (n,) stand out from their bulk: 1 for noise, more for rare high ones.

    ``1 + max(0, mean of the best hundredth of u - 2.6652)`` with ``u = (score - median) / deviation``. The deviation is
    the median one from the median, scaled to that of a normal distribution (1.4826 x MAD); where more than half of the
    scores are equal, the mean one (1.2533 x), and where all are, 1. At least one score is among the best. Neither the
    number of scores nor their unit matters, so that modalities can be compared; z-scores cannot be, since what lies
    above 0 of them adds up to about 0.4 a token whatever the scores are. 0 for no score.
    """
    n = score.numel()
    if n == 0:
        return 0.0
    values = score.detach().double().sort().values
    apart = (values - values[n // 2]).abs()
    deviation = 1.4826 * float(apart.sort().values[n // 2]) or 1.2533 * float(apart.mean()) or 1.0
    best = values[n - max(1, round(BEST * n)) :] - values[n // 2]
    return 1 + max(0.0, float(best.mean()) / deviation - NOISE)


__all__ = [
    "CHUNK_BYTES",
    "EPS",
    "SAME",
    "distances",
    "finite",
    "first_largest",
    "gram",
    "row_chunks",
    "standing",
    "standings",
    "sums_by",
    "unit",
    "zscore",
]
