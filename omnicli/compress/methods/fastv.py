"""FastV: what the question's last token attends to in an early layer stays; the rest is dropped there, once.

All tokens enter the LLM and its first layers; the share that remains makes the average over all layers the retention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from omnicli.compress.base import LAST_QUERY_ATTENTION, MODALITIES, OUTPUT_ATTENTION, attention_in
from omnicli.compress.budget import PROPORTIONAL
from omnicli.compress.groups import best
from omnicli.compress.published import Baseline, Published, reallocated, thinned
from omnicli.errors import ConfigError
from omnicli.types import LayerView
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FastV(Baseline):
    """Drop the picture tokens that the prompt's last token attends to least, once, after an early layer.

    Parameters
    ----------
    split : str
        How a total is shared; ``proportional`` by default.
    layer : int
        Layers that read everything (K of the paper); tokens are dropped after the last of them.
    """

    split: str = PROPORTIONAL
    layer: int = 2

    floor: ClassVar[float] = 0.1  # the first 2 of 28 layers alone read 7 % of the whole
    criterion: ClassVar[str] = "attention of the prompt's last token in an early layer"
    uses_question: ClassVar[bool] = True
    paper: ClassVar[str] = "FastV, arXiv 2403.06764; for sound SEATS, appendix B.2"
    clean_differs: ClassVar[str] = (
        "Ranks by the attention that the layer really computed (one query row, fp32), as the original FastV does; "
        "SEATS's code applies the layer's projections to its own output, which is the official mode. The average over "
        "all layers meets the budget exactly, the layers before the drop counted in full; a budget that they alone "
        "exceed is an error instead of a single token. Their keys and values stay for the answer. Where sound cannot "
        "stay whole it is thinned evenly, not at random."
    )

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """The last query's attention, as the mode defines it."""
        return frozenset({OUTPUT_ATTENTION if self.mode == "official" else LAST_QUERY_ATTENTION})

    def problems(self) -> list[str]:
        """Return what is wrong with the fields."""
        found = super().problems()
        if self.layer < 1:
            found.append(f"layer: must be at least 1, not {self.layer}")
        return found

    def layers(self, depth: int) -> tuple[int, ...]:
        """Return the one layer."""
        if self.layer >= depth:
            raise ConfigError(f"{self.name}.layer: the model has {depth} layers; {self.layer} leaves none to save in")
        return (self.layer - 1,)

    def keeps_kv(self) -> bool:
        """Return whether the first layers keep what is dropped after them: in clean mode."""
        return self.mode == "clean"

    def prune(self, layer: int, view: LayerView) -> Tensor:
        """Keep the best of each modality, over the whole clip.

        Raises
        ------
        ConfigError
            The first layers alone read more than the budget.
        """
        media, attention = view.media, attention_in(view)
        kept = []
        for i, (kind, _) in enumerate(MODALITIES):
            rows = media.indices(kind)
            k = self._target(i, view)
            if i == 1 and self.audio == "intact":
                kept.append(thinned(media, k))
            else:
                kept.append(rows[best(attention[rows], k)])
        return torch.cat(kept).sort().values

    def _target(self, i: int, view: LayerView) -> int:
        """Return how many tokens of modality ``i`` stay after the drop."""
        n = view.entered[i]
        if n == 0:
            return 0
        read, depth = self.layer, view.depth
        if self.mode == "official":
            video, audio = ((r * depth - read) / (depth - read) for r in Published.ratios_of(self, *view.entered))
            if self.audio == "intact":  # after the conversion, as SEATS's code has it
                video, audio = reallocated(video, audio, *view.entered)
            return min(n, max(1, round((video, audio)[i] * n)))
        average = getattr(self.plan_of(*view.entered), MODALITIES[i][1])
        target = (average * depth - read * n) / (depth - read)
        if target < -0.5:
            raise ConfigError(
                f"{self.name}: its first {read} of {depth} layers read everything, which is more than the "
                f"{100 * average / n:.1f} % of {MODALITIES[i][1]} asked for; at least {100 * read / depth:.1f} %"
            )
        return max(0, min(n, round(target)))
