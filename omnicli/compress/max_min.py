"""Greedy max-min choice: tokens that lie far apart inside their group, optionally weighted. Knows no method.

DivPrune chooses by it, and SEATS's first stage weighted by saliency.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from omnicli.compress.groups import Groups
from omnicli.compress.ops import EPS, SAME, finite, gram, row_chunks, unit
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

MEMORY = 128 * 2**20
"""Bytes of distances at once. A group that needs more is walked without its matrix."""

_GRAM = 16 * 2**20  # bytes of fp32 rows that one product reads

_GRID = 2.0**26  # steps of a unit row's component per 1: float64 sums of products are exact in any order


def max_min_picks(features: Tensor, k: int, weight: Tensor | None = None) -> Tensor:
    """Return ``k`` rows of every group that lie far apart: greedy max-min of weighted cosine distances.

    The first pick has the largest weighted distance to its nearest neighbour. Every further one maximises its weight
    times the distance ``1 - cos`` to its nearest pick. Of equal scores the lower index is picked, and nothing twice.
    (DivPrune, section 3; the weight: SEATS, section 4.1)

    Parameters
    ----------
    features : Tensor (B, n, D)
        Rows of any float dtype, compared in fp32. 1e-8 is added to lengths, so a row of zeros is at distance 1 from
        all; distances up to `SAME` count as 0.
    k : int
        Picks of every group; n or more mean all rows.
    weight : Tensor (B, n) or None
        Not negative; None: 1 everywhere.

    Returns
    -------
    Tensor (B, k) int64
        Ascending.

    Raises
    ------
    ModelError
        A row or a weight is not finite.
    """
    many, n, width = features.shape
    k = max(0, min(k, n))
    if k in (0, n):
        return torch.arange(k, device=features.device).expand(many, k).clone()
    flat = features.reshape(many * n, width)
    at = torch.arange(many * n, device=features.device).view(many, n)
    weight = None if weight is None else finite(weight)
    parts = [
        _picks(flat, at[part], k, None if weight is None else weight[part])
        for part in row_chunks(many, n * n, limit=MEMORY)
    ]
    return torch.cat(parts).sort(1).values if parts else at.new_zeros(0, k)


def pick_in_groups(
    features: Tensor, groups: Groups, quota: Tensor, weight: Tensor | None = None, *, rows: Tensor | None = None
) -> Tensor:
    """Return the ascending places that `max_min_picks` keeps in each group, many groups at once.

    Greedy picks for a small quota are the first of those for a larger one, so groups need not share their quota; groups
    of nearly equal size are padded to a common one where that saves small batches.

    Parameters
    ----------
    features : Tensor (n, D)
        One row per place of ``groups``, or with ``rows`` any rows (N, D).
    groups : Groups
        The groups.
    quota : Tensor (G,) int64
        Picks of each group. 0: none; its size or more: all.
    weight : Tensor (n,) or None
        Weight of each place, not negative.
    rows : Tensor (n,) int64 or None
        Where each place's row lies in ``features``; saves the caller a copy.

    Returns
    -------
    Tensor (k,) int64
        Places: indices into ``groups.rows``.

    Raises
    ------
    ModelError
        A row or a weight is not finite.
    """
    sizes, starts = groups.sizes, groups.starts
    quota = torch.minimum(quota.to(sizes.device).clamp_min(0), sizes)
    keep = (quota >= sizes).repeat_interleave(sizes)
    weight = None if weight is None else finite(weight)
    for batch in _batches(sizes, (quota > 0) & (quota < sizes)):
        size, wanted = sizes[batch], quota[batch]
        step = torch.arange(int(size.max()), device=sizes.device)
        padding = step >= size[:, None]
        places = starts[batch, None] + torch.minimum(step, size[:, None] - 1)
        order = _picks(
            features,
            places if rows is None else rows[places],
            int(wanted.max()),
            None if weight is None else weight[places],
            padding if bool(padding.any()) else None,
        )
        keep[places.gather(1, order)[step[: order.shape[1]] < wanted[:, None]]] = True
    return torch.nonzero(keep).flatten()


def _batches(sizes: Tensor, wanted: Tensor) -> Iterator[Tensor]:
    """Yield groups (B,) of nearly equal size whose distances fit in `MEMORY`."""
    open_ = torch.nonzero(wanted).flatten()
    open_ = open_[sizes[open_].argsort(stable=True)]
    begin, known = 0, sizes[open_].tolist()
    for end in range(1, len(known) + 1):
        # Padding costs work with the square of the size, a batch costs a few launches per pick.
        near = end < len(known) and (
            known[end] == known[end - 1] or (end - begin < 16 and known[end] <= 1.125 * known[begin])
        )
        if not near:
            for part in row_chunks(end - begin, known[end - 1] ** 2, limit=MEMORY):
                yield open_[begin:end][part]
            begin = end


def _picks(features: Tensor, at: Tensor, k: int, weights: Tensor | None, padding: Tensor | None = None) -> Tensor:
    """Return the first ``k`` picks (B, k) of every group in the order of picking, as columns of ``at``.

    Parameters
    ----------
    features : Tensor (N, D)
        Rows.
    at : Tensor (B, n) int64
        Where each group's rows lie.
    weights, padding : Tensor (B, n) or None
        Weights; columns that are no tokens. A group with fewer tokens than ``k`` has nothing sensible behind them.
    """
    many, n = at.shape
    features, weights = features.detach(), None if weights is None else weights.detach().float()
    if n * n * 4 > MEMORY:
        singles = [_long(features, at[b], k, None if weights is None else weights[b]) for b in range(many)]
        return torch.stack(singles)
    distance = torch.empty(many, n, n, device=features.device)
    for part in row_chunks(many, n * features.shape[1], limit=_GRAM):
        _distances(features[at[part]].float(), distance[part])
    distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    if padding is not None:
        distance.masked_fill_(padding[:, :, None], torch.inf)
    score = distance.amin(1)
    if weights is not None:
        score *= weights
    if padding is not None:
        score.masked_fill_(padding, -torch.inf)
    group = torch.arange(many, device=at.device)
    order = torch.empty(many, k, dtype=torch.int64, device=at.device)
    for turn in range(k):
        pick = score.argmax(1)  # the first of equal ones
        order[:, turn] = pick
        near = distance[group, pick]
        if weights is not None:
            near *= weights
        if turn > 0:
            torch.minimum(score, near, out=score)
        else:
            score = near if padding is None else near.masked_fill_(padding, -torch.inf)
        score.scatter_(1, pick[:, None], -torch.inf)
    return order


def _distances(rows: Tensor, out: Tensor) -> None:
    """Write cosine distances (B, n, n) of fp32 ``rows`` (B, n, D)."""
    gram(rows, out)
    scale = 1 / (finite(out.diagonal(dim1=1, dim2=2).sqrt()) + EPS)
    out.mul_(scale[:, :, None] * scale[:, None, :]).neg_().add_(1)  # one factor, or (i, j) and (j, i) round apart
    torch.threshold_(out, SAME, 0.0)


def _long(features: Tensor, at: Tensor, k: int, weight: Tensor | None) -> Tensor:
    """Return the picks (k,) of one group in order, with a running minimum instead of the matrix.

    A score only ever falls. So a few tokens with the highest scores can be played among themselves, exactly, until the
    best of them falls to what the best token left out had before; then all scores are brought up to date at once. The
    same distance is worked out in blocks of different shapes, so products are exact (see `_GRID`).
    """
    n = at.numel()
    x = torch.empty(n, features.shape[1], dtype=torch.float64, device=features.device)
    for part in row_chunks(n, features.shape[1], limit=_GRAM):
        x[part] = unit(features[at[part]]).double().mul_(_GRID).round_()
    finite(x.sum())
    nearest = torch.full((n,), torch.inf, device=x.device)
    for part in row_chunks(n, n, itemsize=8, limit=MEMORY // 4):
        # The matrix is symmetric: what this part's rows say about later columns they need not be told again.
        block = _between(x[part], x[part.start :])
        block.diagonal().fill_(torch.inf)
        nearest[part] = torch.minimum(nearest[part], block.amin(1))
        nearest[part.start :] = torch.minimum(nearest[part.start :], block.amin(0))
    factor = torch.ones_like(nearest) if weight is None else weight
    first = (nearest * factor).argmax()
    order = [first[None]]
    score = torch.full((n,), torch.inf, device=x.device)
    found, few = 1, 32
    fresh = order[0]
    while found < k:
        for part in row_chunks(n, fresh.numel(), itemsize=8, limit=MEMORY // 4):
            near = _between(x[part], x[fresh]).amin(1) * factor[part]
            score[part] = torch.minimum(score[part], near)
        score[fresh] = -torch.inf
        ranked = score.argsort(descending=True, stable=True)
        if float(score[ranked[0]]) <= 0:  # nothing left but duplicates: the lower index first
            order.append(ranked[: k - found])
            break
        best = ranked[:few].sort().values
        bound = float(score[ranked[few]]) if few < n else -torch.inf
        fresh = best[_play(_between(x[best], x[best]), score[best], factor[best], bound, k - found)]
        order.append(fresh)
        found += fresh.numel()
        few = min(1024, 2 * few) if 2 * fresh.numel() > few else max(16, few // 2)
    return torch.cat(order)[:k]


def _play(distance: Tensor, score: Tensor, weight: Tensor, bound: float, k: int) -> Tensor:
    """Return at most ``k`` picks, the first in any case, the others while their scores stay above ``bound``."""
    picked: list[int] = []
    while len(picked) < min(k, score.numel()):
        top = int(score.argmax())
        if picked and not float(score[top]) > bound:
            break
        picked.append(top)
        score = torch.minimum(score, distance[top] * weight)
        score[top] = -torch.inf
    return torch.tensor(picked, device=score.device)


def _between(a: Tensor, b: Tensor) -> Tensor:
    """Return cosine distances (m, n) float32 of unit rows in steps of the grid."""
    return torch.threshold_((a @ b.T).mul_(-(_GRID**-2)).add_(1).float(), SAME, 0.0)


__all__ = ["MEMORY", "max_min_picks", "pick_in_groups"]
