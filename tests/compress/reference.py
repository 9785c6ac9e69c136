"""Slow loops written straight from the papers."""

from __future__ import annotations

import torch
from torch import Tensor

from omnicli.compress.tammr import GRID, UnitVectors


def greedy_ta_mmr(vectors: Tensor, scores: Tensor, window: Tensor, k: int, diversity: float, radius: int) -> list[int]:
    """Pick one token at a time; similarities are plain dot products of ``vectors``, one pair at a time."""
    gain = ((1 - diversity) * scores.float()).tolist()
    penalty = torch.zeros(len(scores))
    left, picked = set(range(len(scores))), []
    for _ in range(k):
        lowered = (torch.tensor(gain) - diversity * penalty).tolist()
        best = max(left, key=lambda i: (lowered[i], -i))
        left.remove(best)
        picked.append(best)
        for i in left:
            if abs(int(window[i]) - int(window[best])) <= radius:
                penalty[i] = max(float(penalty[i]), float((vectors[i] * vectors[best]).sum().float()))
    return picked


def grid_vectors(features: Tensor) -> Tensor:
    return UnitVectors(features)(slice(None)) / GRID


def plain_vectors(features: Tensor) -> Tensor:
    """Mean-centred unit vectors in float64 without any grid."""
    x = features.double() - features.double().mean(0)
    return x / x.norm(dim=1, keepdim=True).clamp_min(1e-300)
