"""Tokens drawn at random within each modality's budget. The floor every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from omnicli.compress.base import MODALITIES, everything
from omnicli.compress.budget import Budgeted
from omnicli.types import MediaTokens, Query, Selection
from omnicli.utils.lazy import torch


@dataclass(frozen=True)
class Random(Budgeted):
    """Keep tokens drawn uniformly at random within each modality.

    Parameters
    ----------
    seed : int
        Of the draw. The same seed draws the same tokens on every device.
    """

    seed: int = 0

    criterion: ClassVar[str] = "chance"

    def problems(self) -> list[str]:
        """Return what is wrong with the fields."""
        found = super().problems()
        if self.seed < 0:
            found.append(f"seed: must not be negative, not {self.seed}")
        return found

    def compress(self, tokens: MediaTokens, query: Query) -> Selection:
        """Draw tokens; the question plays no part."""
        budget = self.budget(tokens)
        if budget.total == len(tokens):
            return everything(tokens)
        generator = torch.Generator().manual_seed(self.seed)
        kept = []
        for modality, name in MODALITIES:
            own = tokens.indices(modality)
            drawn = torch.randperm(own.numel(), generator=generator)[: getattr(budget, name)]
            kept.append(own[drawn.to(own.device)])
        return Selection(torch.cat(kept).sort().values, report={"budget": budget.to_dict()})
