"""AVOC: question relevance and cross-modal importance, then temporal-aware diversity within a budget per modality.

Source: "AVOC" (arXiv 2606.24286), section 3, equations 1-9. Its weights are not public. Without a scorer trained for
the model the LLM itself is asked: the clip is read in stretches by its first layers, and a token's score is what the
prompt's last token attends to there (ours, no paper's). Identity projections are for comparison.

Both scores are means of attention logits, and a mean is linear: the mean over the question (or over the other
modality's tokens of a block) is taken before the product, which turns O(N d^2) into O(d^2 + N d) without changing the
result. What the paper leaves open is settled here: a token whose block has no token of the other modality has an
importance z-score of 0; a modality none of whose blocks has any is scored by relevance alone.

``split: adaptive`` is ours (the paper names the fixed ratio as a limitation): the budget is shared by how far the best
hundredth of each modality's relevances stands out from its bulk (`omnicli.compress.ops.standing`). Importance has no
say in it, since a moment that stands out in one sense makes the other sense's tokens of that moment important.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import Self

from omnicli.compress.base import MODALITIES, counts, everything
from omnicli.compress.budget import ADAPTIVE, DEFAULT_TOKENS, Budgeted
from omnicli.compress.groups import spans
from omnicli.compress.ops import finite, row_chunks, standings, sums_by, zscore
from omnicli.compress.tammr import ta_mmr
from omnicli.compress.weights import beside, load_weights
from omnicli.errors import ConfigError
from omnicli.types import Backbone, MediaTokens, Query, Selection
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

AUTO, BACKBONE, IDENTITY = "auto", "backbone", "identity"

_UNDIVIDED = (
    f"the LLM's own attention (scorer: {BACKBONE}, and {AUTO} for a model without a trained scorer) has no such part; "
    f"set scorer to a file or to {IDENTITY}"
)

SCORER_FILE = "avoc_scorer.safetensors"
"""A scorer of this name in a model's folder is used by ``scorer: auto``."""


@dataclass(frozen=True)
class Projections:
    """Learnt projections of the two scores, the tensors of a scorer file (safetensors, same names).

    Attributes
    ----------
    w_q, w_k : Tensor (d, k)
        Relevance: query projection of the question's tokens, key projection of media tokens. Logits are divided by
        sqrt(k). The paper has k = d.
    importance_w_q, importance_w_k : Tensor (d, k')
        Importance: query projection of the other modality's tokens, key projection of the tokens scored.
    """

    w_q: Tensor
    w_k: Tensor
    importance_w_q: Tensor
    importance_w_k: Tensor

    def __post_init__(self) -> None:
        for a, b in (("w_q", "w_k"), ("importance_w_q", "importance_w_k")):
            first, second = getattr(self, a), getattr(self, b)
            if first.ndim != 2 or first.shape != second.shape:
                raise ValueError(f"{a} {tuple(first.shape)} and {b} {tuple(second.shape)} must both be (d, k)")
        if self.w_q.shape[0] != self.importance_w_q.shape[0]:
            raise ValueError("relevance and importance projections are of different widths d")

    def to_dict(self) -> dict[str, Tensor]:
        """Return the tensors by name, as they are stored."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, tensors: Mapping[str, Tensor]) -> Projections:
        """Return the projections of a scorer's tensors; `ValueError` where names or shapes are wrong."""
        names = [f.name for f in dataclasses.fields(cls)]
        if set(names) != set(tensors):
            raise ValueError(f"holds {', '.join(sorted(tensors)) or 'nothing'}; expected {', '.join(names)}")
        return cls(**tensors)

    def to(self, device: torch.device) -> Projections:
        """Return them as fp32 on ``device``."""
        return Projections(**{k: v.to(device, torch.float32) for k, v in self.to_dict().items()})


def relevance(features: Tensor, question: Tensor, projections: Projections | None = None) -> Tensor:
    """Return mean attention logits of the question's tokens to each token (equations 1-3).

    Parameters
    ----------
    features : Tensor (N, d)
        Media tokens.
    question : Tensor (n, d)
        Question tokens; none give 0 everywhere.
    projections : Projections or None
        None: identity.

    Returns
    -------
    Tensor (N,) float32
        With gradients to everything that has any.
    """
    mean = question.float().mean(0) if len(question) else question.new_zeros(question.shape[1], dtype=torch.float32)
    direction = _directions(mean[None], None if projections is None else (projections.w_q, projections.w_k))[0]
    parts = [features[part].float() @ direction for part in row_chunks(*features.shape)]
    return torch.cat(parts) if parts else features.new_zeros(0, dtype=torch.float32)


def importance(
    features: Tensor, modality: Tensor, window: Tensor, projections: Projections | None = None
) -> tuple[Tensor, Tensor]:
    """Return mean attention logits that each token receives from the other modality in its block (equations 4-6).

    Parameters
    ----------
    features : Tensor (N, d)
        Media tokens.
    modality, window : Tensor (N,)
        Their modality and temporal block.
    projections : Projections or None
        None: identity.

    Returns
    -------
    logits : Tensor (N,) float32
        0 where undefined.
    defined : Tensor (N,) bool
        Whether the block holds any token of the other modality.
    """
    blocks, block = torch.unique(window, return_inverse=True)
    group = 2 * block + modality.long()
    sums, count = sums_by(features, group, 2 * len(blocks))
    means = sums / count.clamp_min(1)[:, None]
    directions = _directions(
        means, None if projections is None else (projections.importance_w_q, projections.importance_w_k)
    )
    other = group ^ 1
    parts = [(features[part].float() * directions[other[part]]).sum(1) for part in row_chunks(*features.shape)]
    logits = torch.cat(parts) if parts else features.new_zeros(0, dtype=torch.float32)
    return logits, count[other] > 0


def scores(
    features: Tensor,
    modality: Tensor,
    window: Tensor,
    question: Tensor,
    projections: Projections | None = None,
    *,
    parts: tuple[bool, bool] = (True, True),
) -> Tensor:
    """Return the combined score of each token (equation 7), differentiable; see `relevance` and `importance`.

    Both are z-scored over each modality's tokens of the clip (population deviation; equal values give 0) and averaged.

    Parameters
    ----------
    parts : (bool, bool)
        Whether relevance and importance count. One alone is not halved; importance alone is 0 where undefined.

    Returns
    -------
    Tensor (N,) float32
        Gradients reach the projections, the features and the question.
    """
    total = features.new_zeros(len(features), dtype=torch.float32)
    to_question = relevance(features, question, projections) if parts[0] else total
    to_other, defined = importance(features, modality, window, projections) if parts[1] else (total, total > 0)
    for kind, _ in MODALITIES:
        own = modality == kind
        score = zscore(to_question, own)  # of zeros 0
        both = own & defined
        if bool(both.any()):
            score = (score + zscore(to_other, both)) / (1 + parts[0])
        total = total + score
    return total


def _directions(queries: Tensor, weights: tuple[Tensor, Tensor] | None) -> Tensor:
    """Return vectors (m, d) whose product with a token is its logit from each of the queries (m, d)."""
    if weights is None:
        return queries / queries.shape[1] ** 0.5
    w_q, w_k = weights
    return (queries @ w_q) @ w_k.T / w_q.shape[1] ** 0.5


@dataclass(frozen=True)
class Avoc(Budgeted):
    """Keep what the question asks about and what sight and sound share, without repeating itself.

    Parameters
    ----------
    scorer : str
        A scorer file (safetensors, see `Projections`); ``backbone``: the LLM's own attention; ``identity``: untrained
        projections; or ``auto``: the file ``avoc_scorer.safetensors`` beside the model, else the backbone.
    stretch_s : float
        Seconds that the backbone reads at a time; where those are more than 10,240 tokens, less. Memory and time grow
        with it.
    scorer_layers : float
        Share of the LLM's layers, from the first, that the backbone's score is the mean of; above 0 and at most 1.
    relevance, importance : bool
        Whether the two scores count, by which a scorer file and ``identity`` choose; not both false. Importance alone
        tells nothing of a film that is silent or has no pictures: there novelty decides, then order.
    diversity : float
        Weight of the penalty on tokens similar to those already chosen, 0 to 1; 0: the best scores stay.
    radius : int or None
        Blocks up to this far apart are compared; None (``null``): all of them, plain maximal marginal relevance.
    """

    scorer: str = AUTO
    stretch_s: float = 60.0
    scorer_layers: float = 0.5
    relevance: bool = True
    importance: bool = True
    diversity: float = 0.15
    radius: int | None = 3

    criterion: ClassVar[str] = "relevance to the question, importance to the other sense, novelty within 3 blocks"
    uses_question: ClassVar[bool] = True
    paper: ClassVar[str] = "AVOC, arXiv 2606.24286"
    has_scores: ClassVar[bool] = True

    def problems(self) -> list[str]:
        """Return what is wrong with the fields."""
        found = super().problems()
        if not 0 <= self.diversity <= 1:
            found.append(f"diversity: must be between 0 and 1, not {self.diversity:g}")
        if self.radius is not None and self.radius < 0:
            found.append(f"radius: must not be negative, not {self.radius}")
        if self.scorer not in (AUTO, BACKBONE, IDENTITY) and not Path(self.scorer).expanduser().is_file():
            found.append(f"scorer: {self.scorer} is neither {AUTO}, {BACKBONE}, {IDENTITY} nor a file")
        if not self.stretch_s > 0:
            found.append(f"stretch_s: must be above 0, not {self.stretch_s:g}")
        if not 0 < self.scorer_layers <= 1:
            found.append(f"scorer_layers: must be above 0 and at most 1, not {self.scorer_layers:g}")
        if not (self.relevance or self.importance):
            found.append("relevance: without importance as well there is nothing to choose by; use method random")
        if self.scorer == BACKBONE and (left_out := self._left_out()):
            found.append(f"{left_out}: {_UNDIVIDED}")
        return found

    def _left_out(self) -> str:
        """Return which of the two scores does not count; empty if both do."""
        return "relevance" if not self.relevance else "importance" if not self.importance else ""

    def reads_first(self, depth: int) -> tuple[int, float] | None:
        """Return what the backbone reads; ``auto`` counts as it until `bind` has found a scorer."""
        return (self._layers(depth), self.stretch_s) if self.scorer in (AUTO, BACKBONE) else None

    def _layers(self, depth: int) -> int:
        return max(1, round(self.scorer_layers * depth))

    def idle(self) -> dict[str, str]:
        """Return the fields that cannot act: the radius, where nothing is compared, and the backbone's without it."""
        found = super().idle()
        if self.scorer not in (AUTO, BACKBONE):
            found |= dict.fromkeys(("stretch_s", "scorer_layers"), f"only the scorer {BACKBONE} reads stretches")
        if self.diversity == 0:
            found["radius"] = "diversity is 0, so no tokens are compared"
        return found

    def bind(self, model_folder: Path) -> Self:
        """Return the method with the scorer in the model's folder, if it is to choose one and there is one."""
        if self.scorer != AUTO:
            return self
        return dataclasses.replace(self, scorer=beside(model_folder, SCORER_FILE, AUTO))

    def compress(self, tokens: MediaTokens, query: Query) -> Selection:
        """Score all tokens, then choose within each modality.

        Raises
        ------
        ModelError
            Embeddings are not finite.
        ConfigError
            The scorer file does not fit the model.
        """
        score, scorer = self._scores(tokens, query)
        budget = self.budget(tokens, self._standing(score, scorer, tokens, query))
        report: dict[str, Any] = {"scorer": scorer, "budget": budget.to_dict()}
        if budget.total == len(tokens):
            return everything(tokens, **report)
        kept = []
        for kind, name in MODALITIES:
            own = tokens.indices(kind)
            chosen = ta_mmr(
                tokens.features,
                score[own],
                tokens.window[own],
                getattr(budget, name),
                diversity=self.diversity,
                radius=self.radius,
                rows=own,
            )
            kept.append(own[chosen])
        return Selection(torch.cat(kept).sort().values, report=report, notes=self._notes(scorer, tokens))

    def _scores(self, tokens: MediaTokens, query: Query) -> tuple[Tensor, str]:
        """Return the combined score (N,) float32 of each token, and what gave it."""
        if self.scorer == BACKBONE or (self.scorer == AUTO and query.backbone is not None):
            return self._asked(tokens, query.backbone), BACKBONE
        projections, name = self._projections(tokens)
        given = (tokens.features, tokens.modality, tokens.window, query.embeddings, projections)
        return finite(scores(*given, parts=(self.relevance, self.importance))), name

    def _asked(self, tokens: MediaTokens, backbone: Backbone | None) -> Tensor:
        """Return what the prompt's last token attends to (N,) float32, as z-scores of each modality."""
        if left_out := self._left_out():
            raise ConfigError(f"{self.name}.{left_out}: {_UNDIVIDED}")
        if backbone is None:
            raise ConfigError(f"{self.name}.scorer: {BACKBONE} needs the LLM, which is not at hand here")
        if self.total_of(*counts(tokens).values()) >= len(tokens):  # all stay: nothing to ask for
            return torch.zeros(len(tokens), device=tokens.features.device)
        attention = backbone.attention(
            spans(tokens, self.stretch_s, DEFAULT_TOKENS), range(self._layers(backbone.depth))
        )
        score = torch.zeros_like(finite(attention))
        for kind, _ in MODALITIES:
            score += zscore(attention, tokens.modality == kind)
        return score

    def _standing(self, score: Tensor, scorer: str, tokens: MediaTokens, query: Query) -> tuple[float, float] | None:
        """Return how far each sense stands out, for ``split: adaptive``; importance lifts both where one does."""
        if self.split != ADAPTIVE:
            return None
        if scorer != BACKBONE and self.relevance:
            score = relevance(tokens.features, query.embeddings, self._projections(tokens)[0])
        return standings(score, tokens.modality)

    def _notes(self, scorer: str, tokens: MediaTokens) -> tuple[str, ...]:
        """Return what to say of a scorer that was not trained for the model, or that has nothing to go by."""
        alone = not self.relevance and min(tokens.count(kind) for kind, _ in MODALITIES) == 0
        note = f"{self.name}: importance says nothing where picture or sound is missing, and relevance is off"
        return (*self._untrained(scorer), note) if alone else self._untrained(scorer)

    def _untrained(self, scorer: str) -> tuple[str, ...]:
        if scorer == IDENTITY:
            return (f"{self.name}: untrained projections (scorer: {IDENTITY}) choose little better than chance",)
        if self.scorer == AUTO:
            return (
                f"{self.name}: no scorer trained for this model, using the LLM's own attention (scorer: {BACKBONE})",
            )
        return ()

    def _projections(self, tokens: MediaTokens) -> tuple[Projections | None, str]:
        if self.scorer in (AUTO, IDENTITY):
            return None, IDENTITY
        path = Path(self.scorer).expanduser()
        projections = load_projections(path)
        width = tokens.features.shape[1]
        if projections.w_q.shape[0] != width:
            raise ConfigError(
                f"{self.name}.scorer: {path.name} is for models of width {projections.w_q.shape[0]}, not {width}"
            )
        return projections.to(tokens.features.device), path.name


def load_projections(path: Path) -> Projections:
    """Return the projections in a scorer file.

    Raises
    ------
    ConfigError
        It cannot be read or does not hold what a scorer holds.
    """
    return load_weights(path, _parsed, "AVOC scorer")


def _parsed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Projections:
    return Projections.from_dict(tensors)


__all__ = [
    "SCORER_FILE",
    "Avoc",
    "Projections",
    "importance",
    "load_projections",
    "relevance",
    "scores",
]
