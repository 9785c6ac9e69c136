"""Tokens drawn at random within each modality's budget. The floor every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from omnicli.compress.base import MODALITIES
from omnicli.compress.top_score import TopScore
from omnicli.types import MediaTokens, Query
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Random(TopScore):
    """Keep tokens drawn uniformly at random within each modality.

    Parameters
    ----------
    seed : int
        Of the draw. The same seed draws the same tokens on every device.
    """

    seed: int = 0

    criterion: ClassVar[str] = "chance"
    has_scores: ClassVar[bool] = False  # chance says nothing of how a budget is shared

    def problems(self) -> list[str]:
        """Return what is wrong with the fields."""
        found = super().problems()
        if self.seed < 0:
            found.append(f"seed: must not be negative, not {self.seed}")
        return found

    def score(self, tokens: MediaTokens, query: Query) -> Tensor:
        """Return a random order of each modality's tokens; the question plays no part."""
        generator = torch.Generator().manual_seed(self.seed)
        score = torch.empty(len(tokens))
        for modality, _ in MODALITIES:
            own = tokens.indices(modality).cpu()
            score[own[torch.randperm(own.numel(), generator=generator)]] = -torch.arange(own.numel()).float()
        return score.to(tokens.features.device)
