"""Merging of neighbours inside groups, round by round, until each holds its quota (ToMe). Knows no method.

In a round every other token of a group, counted among those left, looks for the most similar of the ones between; the
pairs that are most alike become one token. Groups are walked side by side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from omnicli.compress.groups import Groups
from omnicli.compress.ops import finite, row_chunks, unit
from omnicli.compress.outliers import cosines
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

MEMORY = 16 * 2**20
"""Bytes of fp32 rows and cosines of a batch; a round holds several times as much for a moment."""


class Merged(NamedTuple):
    """What is left.

    Attributes
    ----------
    places : Tensor (k,) int64
        Ascending places of the groupings' tokens that stand for what is left.
    changed : Tensor (c,) int64
        Where among ``places`` tokens were merged.
    features : Tensor (c, D)
        What these become, in the dtype of the features.
    """

    places: Tensor
    changed: Tensor
    features: Tensor


def most(n: int, released: bool) -> int:
    """Return how many of ``n`` tokens may be merged away in a round; released: none of three or fewer."""
    return max(0 if released else min(1, n - 1), n // 2 - 1)


def reachable(n: int, quota: int, released: bool) -> list[int]:
    """Return how many of ``n`` tokens are left after each round on the way to ``quota``."""
    out = []
    while n > quota and (gone := min(n - quota, most(n, released))) > 0:
        n -= gone
        out.append(n)
    return out


def merged_in_groups(
    features: Tensor, groups: Groups, quota: list[int], start_s: Tensor, *, released: bool = False
) -> Merged:
    """Merge each group down to ``quota`` tokens.

    Parameters
    ----------
    features : Tensor (N, D)
        All tokens.
    groups : Groups
        Seconds of sound.
    quota : list of int
        Tokens of each group that are left; 0: the whole group is dropped.
    start_s : Tensor (n,) float64
        When the token at each place begins.
    released : bool
        A mean counts its two sides alike, whatever was merged into them before, stands where its odd member stood, and
        three tokens are never merged. Else every token counts the same, the mean stands at the member nearest to the
        mean time (of two, the earlier), and any quota is reached.

    Raises
    ------
    ModelError
        Embeddings are not finite.
    """
    sizes, width = groups.sizes.tolist(), features.shape[1]
    keep = torch.zeros(groups.rows.numel(), dtype=torch.bool, device=groups.rows.device)
    by_size: dict[int, list[int]] = {}
    plans = [reachable(n, k, released) if k else [] for n, k in zip(sizes, quota, strict=True)]
    untouched = [g for g, plan in enumerate(plans) if quota[g] and not plan]
    starts = groups.starts
    for g in range(len(sizes)):
        if plans[g]:
            by_size.setdefault(sizes[g], []).append(g)
    whole = torch.zeros(len(sizes), dtype=torch.bool, device=keep.device)
    whole[torch.tensor(untouched, dtype=torch.int64, device=keep.device)] = True
    keep |= whole[groups.index]
    at, new = [groups.rows[:0]], [features[:0]]
    for n, numbers in by_size.items():
        for part in row_chunks(len(numbers), 2 * n * (width + n), limit=MEMORY):
            own = numbers[part]
            places = starts[torch.tensor(own, device=keep.device), None] + torch.arange(n, device=keep.device)
            batch = _Batch(features[groups.rows[places]].float(), start_s[places], released)
            for turn in range(max(len(plans[g]) for g in own)):
                left = [[n, *plans[g]] for g in own]
                gone = [p[turn] - p[turn + 1] if turn + 1 < len(p) else 0 for p in left]
                batch.merge(torch.tensor(gone, device=keep.device))
            stands = batch.stands()
            keep[places.gather(1, stands)[batch.alive]] = True
            several = batch.alive & (batch.count > 1)
            at.append(places.gather(1, stands)[several])
            new.append(finite(batch.x[several]).to(features.dtype))
    kept = torch.nonzero(keep).flatten()
    where, order = torch.cat(at).sort()
    return Merged(kept, torch.searchsorted(kept, where), torch.cat(new)[order])


class _Batch:
    """Groups (B, n) of equal size on their way. Tokens that are gone stay where they are, not alive."""

    def __init__(self, x: Tensor, start_s: Tensor, released: bool) -> None:
        self.x, self._start, self._released = x, start_s, released
        self.alive = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        self.count = torch.ones(x.shape[:2], device=x.device)
        self._into = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2]).clone()

    def merge(self, gone: Tensor) -> None:
        """Merge the ``gone`` (B,) even tokens that are most like an odd one into it; of equal ones the first."""
        rank = self.alive.cumsum(1) - 1
        even, odd = self.alive & (rank % 2 == 0), self.alive & (rank % 2 == 1)
        cosine = cosines(unit(self.x)).masked_fill(~odd[:, None], -torch.inf)
        like, partner = cosine.max(2)
        order = like.masked_fill(~even, -torch.inf).argsort(dim=1, descending=True, stable=True)
        turn = torch.empty_like(order)
        turn.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
        moves = even & (turn < gone[:, None])
        joins = torch.zeros_like(cosine).scatter_(2, partner[..., None], 1.0) * moves[..., None]  # from, to
        weight = torch.ones_like(self.count) if self._released else self.count
        total = weight + (joins * weight[..., None]).sum(1)
        # A product, not index_add_, whose order of adding is not fixed on GPUs.
        weighted = self.x * weight[..., None]
        sums = weighted + joins.transpose(1, 2) @ weighted
        hit = joins.sum(1) > 0
        self.x = torch.where(hit[..., None], sums / total[..., None], self.x)
        self.count = self.count + (joins * self.count[..., None]).sum(1)
        self.alive = self.alive & ~moves
        self._into = torch.where(moves, partner, torch.arange(moves.shape[1], device=moves.device)).gather(
            1, self._into
        )

    def stands(self) -> Tensor:
        """Return for each token that is alive the column (B, n) it stands at; anything for the others."""
        own = torch.arange(self.alive.shape[1], device=self.x.device).expand(self.alive.shape)
        if self._released:
            return own
        belongs = self._into[:, :, None] == own[:, None]  # member, token it is in
        time = (belongs * self._start[..., None]).sum(1) / belongs.sum(1).clamp_min(1)
        far = (self._start[..., None] - time[:, None]).abs().masked_fill(~belongs, torch.inf)
        return (far <= far.amin(1, keepdim=True) + 1e-9).byte().argmax(1)


__all__ = ["Merged", "merged_in_groups", "most", "reachable"]
