"""Greedy choice from a determinantal point process: tokens that differ from those picked and matter. Knows no method.

The kernel of two tokens is the cosine of their embeddings times a factor of their relevances. Every pick is the token
that adds most to the determinant of the kernel among the picks: the one with most that the picks do not span yet.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from omnicli.compress.groups import Groups
from omnicli.compress.ops import SAME, finite, row_chunks
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Factor = Callable[["Tensor", "Tensor"], "Tensor"]
"""From two relevances, of any shapes that go together, to what the cosine is multiplied with."""

MEMORY = 64 * 2**20
"""Bytes of kernels at once. A group whose cosines need more is walked with one row of them at a time."""

EXHAUSTED = 1e-5
"""What a token adds that the picks span already; fp32 sums over many picks are no more exact."""

EPS = 1e-6
"""What is added to squared lengths and, as released, to what a pick adds."""

_ROWS = 16 * 2**20  # bytes of fp32 rows that one product reads


def mixed(weight: float) -> Factor:
    """Return the factor ``1 - weight + weight r_i r_j``."""
    return lambda one, other: (1 - weight) + weight * one * other


def exponential(weight: float) -> Factor:
    """Return the factor ``exp(a (r_i + r_j))`` with ``a = weight / (2 - 2 weight)``; for a weight of 1 ``r_i r_j``."""
    if weight >= 1:
        return lambda one, other: one * other
    strength = weight / (2 * (1 - weight))
    return lambda one, other: (strength * one).exp() * (strength * other).exp()


def diverse_in_groups(
    features: Tensor, groups: Groups, quota: list[int], relevance: Tensor, factor: Factor, *, released: bool = False
) -> Tensor:
    """Return the ascending places of ``quota`` diverse and relevant tokens of each group.

    Of equal tokens the first. Once the picks span a group, the rest of its quota goes by relevance.

    Parameters
    ----------
    features : Tensor (N, D)
        All tokens.
    groups : Groups
        Frames, windows, or parts of them.
    quota : list of int
        Picks of each group, at most its size.
    relevance : Tensor (n,) float32
        Of each place, 0 to 1.
    factor : callable
        Of two relevances; see `mixed`.
    released : bool
        As the released code: `EPS` is added to what a pick adds, and a spanned group goes on by what rounding leaves.

    Raises
    ------
    ModelError
        Embeddings are not finite.
    """
    keep = torch.zeros(groups.rows.numel(), dtype=torch.bool, device=groups.rows.device)
    for same_size, places in groups.by_size():
        n, numbers = places.shape[1], same_size.tolist()
        wanted = [quota[g] for g in numbers]
        most = max((k for k in wanted if k < n), default=0)
        held = n if _fits(n) else features.shape[1]
        for part in row_chunks(len(numbers), n * (held + most), limit=MEMORY):
            order = _picks(
                features, groups.rows[places[part]], relevance[places[part]], most, factor=factor, released=released
            )
            own = torch.tensor(wanted[part], device=keep.device)[:, None]
            picked = (own >= n).expand(-1, n).clone()
            keep[places[part]] = picked.scatter_(1, order, (torch.arange(most, device=keep.device) < own) | (own >= n))
    return torch.nonzero(keep).flatten()


def _picks(features: Tensor, rows: Tensor, relevance: Tensor, k: int, *, factor: Factor, released: bool) -> Tensor:
    """Return ``k`` picks of each group (B, k), in their order, as columns of ``rows`` (B, n)."""
    many, n = rows.shape
    group = torch.arange(many, device=rows.device)
    order = torch.empty(many, k, dtype=torch.int64, device=rows.device)
    if k == 0:
        return order
    row_of, length = _cosines(features, rows)
    length = torch.where(1 - length < SAME, torch.ones_like(length), length)  # or rounding would pick the first token
    gain = length * factor(relevance, relevance)
    spanned = torch.empty(many, k, n, device=rows.device)
    left = torch.zeros_like(gain)  # -inf once picked
    for turn in range(k):
        score = gain + left
        if not released:
            full = score.amax(1, keepdim=True) < EXHAUSTED
            score = torch.where(full, relevance + left, score)
        pick = score.argmax(1)  # the first of equal ones
        order[:, turn] = pick
        left[group, pick] = -torch.inf
        new = row_of(pick) * factor(relevance[group, pick, None], relevance)
        before = spanned[group, :turn, pick]
        before = torch.where(before.abs() < EPS, 0.0, before)
        new = new - (before[:, None] @ spanned[:, :turn])[:, 0]
        own = gain[group, pick, None]
        new = new / (own + EPS if released else own.clamp_min(EXHAUSTED)).sqrt()
        spanned[:, turn] = new
        gain = (gain - new.square()).nan_to_num(nan=torch.finfo(gain.dtype).min)  # the root of less than nothing
    return order


def _cosines(features: Tensor, rows: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return what gives the cosines (B, n) of one column (B,) of ``rows`` (B, n) to all, and those to themselves."""
    many, n = rows.shape
    group = torch.arange(many, device=rows.device)
    if not _fits(n):
        x = _directions(features[rows])
        return lambda pick: (x @ x[group, pick, :, None])[..., 0], finite(x.square().sum(-1))
    table = torch.empty(many, n, n, device=rows.device)
    for part in row_chunks(many, n * features.shape[1], limit=_ROWS):
        x = _directions(features[rows[part]])
        torch.bmm(x, x.transpose(1, 2), out=table[part])
    return lambda pick: table[group, pick], finite(table.diagonal(dim1=1, dim2=2)).clone()


def _fits(n: int) -> bool:
    return n * n * 4 <= MEMORY // 2


def _directions(features: Tensor) -> Tensor:
    x = features.float()
    return x / (x.square().sum(-1, keepdim=True) + EPS).sqrt()


def likeness(features: Tensor, rows: Tensor, question: Tensor) -> Tensor:
    """Return cosines (n,) of the ``rows`` (n,) and the mean of the ``question`` (q, D); 0 where it has no tokens.

    Raises
    ------
    ModelError
        Embeddings are not finite.
    """
    if len(question) == 0:
        return torch.zeros(rows.numel(), device=rows.device)
    mean = _directions(question.float().mean(0))
    parts = [_directions(features[rows[part]]) @ mean for part in row_chunks(rows.numel(), features.shape[1])]
    return finite(torch.cat(parts)) if parts else torch.zeros(0, device=rows.device)


def scaled(values: Tensor, groups: Groups, flat: float = 0.0) -> Tensor:
    """Return ``values`` (n,) between 0 and 1 in each group: min-max, with `EPS` added to the range.

    Where the range is below ``flat`` all are 0.
    """
    low = torch.full((len(groups),), math.inf, device=values.device).scatter_reduce(0, groups.index, values, "amin")
    high = torch.full((len(groups),), -math.inf, device=values.device).scatter_reduce(0, groups.index, values, "amax")
    reach = (high - low)[groups.index]
    out = (values - low[groups.index]) / (reach + EPS)
    return torch.where(reach < flat, torch.zeros_like(out), out)


__all__ = ["EPS", "EXHAUSTED", "MEMORY", "Factor", "diverse_in_groups", "exponential", "likeness", "mixed", "scaled"]
