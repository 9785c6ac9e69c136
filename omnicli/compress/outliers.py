"""How far tokens lie from the middle of theirs, on the channels that vary least. Knows no method."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omnicli.compress.ops import CHUNK_BYTES, finite, row_chunks
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


__all__ = ["MEMORY", "WIDTHS", "nearness", "steady_channels"]
