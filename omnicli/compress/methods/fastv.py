"""FastV: what the question's last token attends to in an early layer stays; the rest is dropped there, once.

All tokens enter the LLM and its first layers; the share that remains makes the average over all layers the retention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from omnicli.compress.base import LAST_QUERY_ATTENTION, MODALITIES, OUTPUT_ATTENTION, attention_in
from omnicli.compress.budget import PROPORTIONAL, split_tokens
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
        "exceed is an error instead of a single token, and where they exceed one modality's part of a total the other "
        "one gives way. Their keys and values stay for the answer. Where sound cannot "
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

    def idle(self) -> dict[str, str]:
        """Return the fields that cannot act: the layer, where nothing is dropped after it."""
        found = super().idle()
        if self.keeps_everything():
            found["layer"] = "the retention is 1, so nothing is dropped after any layer"
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
        for i, ((kind, _), k) in enumerate(zip(MODALITIES, self._targets(view), strict=True)):
            rows = media.indices(kind)
            if i == 1 and self.audio == "intact":
                kept.append(thinned(media, k))
            else:
                kept.append(rows[best(attention[rows], k)])
        return torch.cat(kept).sort().values

    def _targets(self, view: LayerView) -> tuple[int, int]:
        """Return how many picture and sound tokens stay after the drop."""
        there, read, depth = view.entered, self.layer, view.depth
        if self.mode == "official":
            video, audio = ((r * depth - read) / (depth - read) for r in Published.ratios_of(self, *there))
            if self.audio == "intact":  # after the conversion, as SEATS's code has it
                video, audio = reallocated(video, audio, *there)
            return _rounded(video, there[0]), _rounded(audio, there[1])
        plan = self.plan_of(*there)
        planned = (plan.video, plan.audio)
        video, audio = (left_over(k, n, read, depth) for k, n in zip(planned, there, strict=True))
        by_modality = (self.retention_video, self.retention_audio) != (None, None)
        if by_modality and self.audio == "select":
            for (_, name), k, n in zip(MODALITIES, planned, there, strict=True):
                self._check(k, n, depth, of=name)
        elif min(video, audio) < 0:  # what the first layers read of one modality is more than its share
            self._check(plan.total, sum(there), depth, of="all tokens")
            total = max(1, round(left_over(plan.total, sum(there), read, depth)))
            shared = split_tokens(total, *there, (float(plan.video), float(plan.audio)))
            return shared.video, shared.audio
        return max(0, min(there[0], round(video))), max(0, min(there[1], round(audio)))

    def _check(self, planned: int, n: int, depth: int, *, of: str) -> None:
        """Raise a ConfigError where the first layers read more of ``n`` tokens than is ``planned`` over all layers."""
        if left_over(planned, n, self.layer, depth) < -0.5:
            raise ConfigError(
                f"{self.name}: its first {self.layer} of {depth} layers read everything, which is more than the "
                f"{100 * planned / n:.1f} % of {of} asked for; at least {100 * self.layer / depth:.1f} %"
            )


def left_over(average: int, n: int, read: int, depth: int) -> float:
    """Return how many of ``n`` tokens the later of ``depth`` layers may read, where ``read`` layers read all of them.

    Below 0 where these alone make more than ``average`` over all layers.
    """
    return (average * depth - read * n) / (depth - read)


def _rounded(share: float, n: int) -> int:
    return min(n, max(1, round(share * n))) if n else 0


__all__ = ["FastV", "left_over"]
