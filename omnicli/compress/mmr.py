"""Maximal marginal relevance without a window (AVOC, arXiv 2606.24286, equation 8), exact and in bounded memory.

What `omnicli.compress.tammr` does where every token is compared with every other: there one token at most is picked per
round, so rounds of windows help nothing. An unselected token's objective only ever falls. So the tokens that stand
highest can be played among themselves, exactly, until the best of them falls to what the best token left out had
before; then all are brought up to date at once, by one product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from omnicli.compress.ops import row_chunks
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

LOW = 0xFFFFFFFF
NONE = -(1 << 63)
"""Below the key of any token."""

_MEMORY = 64 * 2**20  # bytes of vectors and products at once
_FEW, _MANY = 32, 1024  # how many are played among themselves

Vectors = Callable[["Tensor"], "Tensor"]
"""Unit vectors (m, D) float64 of candidates (m,); their products are exact in any order."""


def keys(objective: Tensor, index: Tensor) -> Tensor:
    """Return int64 keys that sort as (objective, lower index first); ``index`` is below 2**32."""
    bits = (objective + 0.0).view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(torch.int64) << 32) | (LOW - index)


def greedy(
    gain: Tensor, index: Tensor, vectors: Vectors, width: int, k: int, *, diversity: float, unit: float
) -> Tensor:
    """Return the keys (at most k,) of the tokens that the greedy choice picks, in its order; see `keys`.

    Parameters
    ----------
    gain : Tensor (m,) float32
        Objective of each candidate before any penalty; finite.
    index : Tensor (m,) int64
        Its number, which keys hold; of equal objectives the lower one is picked.
    vectors : callable
        Their unit vectors.
    width : int
        D.
    k : int
        Picks; more than there are candidates mean all of them.
    diversity : float
        Weight of the largest similarity to a pick, as far as that is above 0.
    unit : float
        What a product of two vectors is multiplied with to be a cosine.
    """
    value, penalty, won = gain.clone(), torch.zeros_like(gain), [index[:0]]
    everyone = torch.arange(index.numel(), device=index.device)
    left, few, k = index.numel(), _FEW, min(k, index.numel())
    while k > 0:
        take = min(few, left)
        top = keys(value - diversity * penalty, index).topk(min(take + 1, left))
        best, bound = top.indices[:take], int(top.values[take]) if left > take else NONE
        chosen = vectors(best)
        similarity = (chosen @ chosen.T).mul_(unit).float()
        order, found = _play(
            value[best], penalty[best], index[best], similarity, bound=bound, most=k, diversity=diversity
        )
        won.append(found)
        value[best[order]] = -torch.inf
        k, left = k - order.numel(), left - order.numel()
        if k > 0:
            picks = chosen[order].T
            for part in row_chunks(everyone.numel(), width + order.numel(), 8, _MEMORY):
                near = (vectors(everyone[part]) @ picks).mul_(unit).float().amax(1)
                penalty[part] = torch.maximum(penalty[part], near)
        few = min(_MANY, 2 * few) if 2 * order.numel() > take else max(_FEW, few // 2)
    return torch.cat(won)


def _play(
    value: Tensor, penalty: Tensor, index: Tensor, similarity: Tensor, *, bound: int, most: int, diversity: float
) -> tuple[Tensor, Tensor]:
    """Return the picks among a few tokens while they stay above ``bound``, and their keys; at least one."""
    picked: list[int] = []
    won: list[int] = []
    key = keys(value - diversity * penalty, index)
    while len(picked) < min(most, index.numel()):
        top = int(key.argmax())
        if int(key[top]) <= bound:
            break
        picked.append(top)
        won.append(int(key[top]))
        value[top] = -torch.inf
        penalty = torch.maximum(penalty, similarity[top])
        key = keys(value - diversity * penalty, index)
    return torch.tensor(picked, device=index.device), torch.tensor(won, device=index.device)


__all__ = ["LOW", "NONE", "greedy", "keys"]
