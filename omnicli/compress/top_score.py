"""A method that is one score per token. Budget, split between modalities, ties and order are done here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from omnicli.compress.base import MODALITIES, everything
from omnicli.compress.budget import ADAPTIVE, Budgeted
from omnicli.compress.groups import best
from omnicli.compress.ops import finite, standings
from omnicli.types import MediaTokens, Query, Selection
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TopScore(Budgeted):
    """Keep the tokens of each modality with the highest scores, as many as its budget has; of equal ones the first.

    A subclass writes `score` and nothing else. Only scores of one modality are compared with each other;
    ``split: adaptive`` compares how far the best of each modality stand out (`omnicli.compress.ops.standing`).
    """

    has_scores: ClassVar[bool] = True

    def score(self, tokens: MediaTokens, query: Query) -> Tensor:
        """Return one score per token (N,), of any real dtype, on the device of ``tokens``; the higher, the better.

        Never modifies ``tokens``, and is never called where all of them stay.
        """
        raise NotImplementedError(f"{self.name} has no score()")

    def compress(self, tokens: MediaTokens, query: Query) -> Selection:
        """Choose the best of each modality.

        Raises
        ------
        ModelError
            A score is not finite.
        ValueError
            There is not one score per token.
        """
        budget = self.budget(tokens)
        if budget.total == len(tokens):
            return everything(tokens)
        score = finite(self.score(tokens, query).float())
        if score.shape != (len(tokens),):
            raise ValueError(f"{self.name}: scores are {tuple(score.shape)}, not one for each of {len(tokens)} tokens")
        if self.split == ADAPTIVE:
            budget = self.budget(tokens, standings(score, tokens.modality))
        kept = []
        for kind, name in MODALITIES:
            own = tokens.indices(kind)
            kept.append(own[best(score[own], getattr(budget, name))])
        return Selection(torch.cat(kept).sort().values, report={"budget": budget.to_dict()})


__all__ = ["TopScore"]
