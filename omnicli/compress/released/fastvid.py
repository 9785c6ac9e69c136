"""FastVID's budgets as its released ports count them: truncated frame by frame, or segment by segment.

What `omnicli.compress.methods.fastvid` does with ``mode: official``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from omnicli.compress.segments import Layout
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Quotas = tuple["Tensor", "Tensor"]
"""Salient tokens and density peaks of each frame, both (F,) int64."""


def audio_tokens(ratio: float, n: int) -> int:
    """Return how many of ``n`` sound tokens stay, truncated but at least 1."""
    return min(n, max(1, int(ratio * n + 1e-6)))  # a share that stands for a whole number may be a hair below it


def quotas(ratio: float, sizes: Tensor, layout: Layout, context: float, *, by_segment: bool) -> Quotas:
    """Return what each frame keeps.

    Parameters
    ----------
    ratio : float
        Share of the video tokens that stays.
    sizes : Tensor (F,) int64
        Tokens of each frame, on the CPU.
    layout : Layout
        The frames in segments.
    context : float
        Share of what stays that is merged tokens.
    by_segment : bool
        Count as the port for Qwen2.5-VL, else as the one for LLaVA-OneVision.
    """
    return (_per_segment if by_segment else _truncated)(ratio, sizes, layout, context)


def _shares(ratio: float, sizes: Tensor) -> Tensor:
    """Return ``ratio`` of each frame, truncated, but at least 1 (F,)."""
    if ratio <= 0:
        return torch.zeros_like(sizes)
    return torch.minimum((sizes.double() * ratio).long().clamp_min(1), sizes)


def _truncated(ratio: float, sizes: Tensor, layout: Layout, context: float) -> Quotas:
    """Return salient tokens and peaks of each frame (F,) as the port for LLaVA-OneVision counts them."""
    keep = _shares(ratio, sizes)
    merged = (keep.double() * context).long()
    salient = keep - merged
    share = layout.total(merged) // layout.total(layout.anchor.long())
    return salient, torch.minimum(share * layout.anchor, sizes - salient)


def _per_segment(ratio: float, sizes: Tensor, layout: Layout, context: float) -> Quotas:
    """Return salient tokens and peaks of each frame (F,) as the port for Qwen2.5-VL counts them.

    A segment's budget goes to its valid frames alone, the first of them and the last anchors get what does not divide.
    Merged tokens are at most half of their frame, salient ones what those leave of it; what exceeds that is lost.
    """
    keep = layout.total(_shares(ratio, sizes))
    merged = torch.minimum((keep.double() * context).long().clamp_min(1), keep)
    salient, frames_, anchors = keep - merged, layout.total(layout.valid.long()), layout.total(layout.anchor.long())
    first = salient // frames_ + (layout.place < salient % frames_).long()
    later = layout.total(layout.anchor.long()) - 1 - _anchors_before(layout)
    last = merged // anchors + (later < merged % anchors).long()
    last = torch.minimum(last, (sizes // 2).clamp_min(1)) * layout.anchor
    return torch.minimum(first, sizes - last) * layout.valid, last


def _anchors_before(layout: Layout) -> Tensor:
    """Return how many anchors of its segment come before each frame (F,)."""
    ones = layout.anchor.long()
    count = torch.bincount(layout.segment, weights=ones.double()).long()
    return ones.cumsum(0) - ones - (count.cumsum(0) - count)[layout.segment]


__all__ = ["Quotas", "audio_tokens", "quotas"]
