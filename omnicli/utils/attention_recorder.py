"""What an answer attended to: attention of the last queries, in some layers, added up per media token.

One row of attention per layer and token written, never a full map. Knows neither times nor what is made of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class AttentionRecorder:
    """Adds up attention to the media that entered the LLM.

    Parameters
    ----------
    layers : range
        Layers that are looked at.
    count : int
        Media tokens that entered.

    Attributes
    ----------
    held : list of Tensor (k,) int64
        Which of them each layer's cache holds, set by `omnicli.llm.prefill.prefill`; one tensor for each layer.
    first : int
        Where in the caches they begin.
    """

    def __init__(self, layers: range, count: int) -> None:
        self.layers, self.count = layers, count
        self.held: list[Tensor] = []
        self.first = 0
        self._sum: Tensor | None = None
        self._rows = 0

    @classmethod
    def nothing(cls) -> AttentionRecorder:
        """Return one that looks at no layer."""
        return cls(range(0), 0)

    def add(self, attention: Tensor | None, layer: int, media: Tensor | None = None) -> None:
        """Take the attention (kv,) of one query in a layer; ``media``: what its cache holds, if not yet in ``held``."""
        if attention is None or layer not in self.layers:
            return
        media = self.held[layer] if media is None else media
        attention = attention.to(media.device)  # layers may be on other cards
        if self._sum is None:
            self._sum = torch.zeros(self.count, dtype=torch.float32, device=attention.device)
        self._sum.index_add_(0, media, attention[self.first : self.first + media.numel()])
        self._rows += 1

    def scores(self) -> Tensor:
        """Return the mean attention (count,) float32 that each token received; tokens dropped on the way got less."""
        return torch.zeros(self.count) if self._sum is None else self._sum / max(1, self._rows)
