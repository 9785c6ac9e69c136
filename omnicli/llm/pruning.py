"""What a method that prunes inside the LLM sees and offers. The loop that asks it is `omnicli.llm.prefill`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from omnicli.types import MediaTokens

LAST_QUERY_ATTENTION = "last_query_attention"
"""Name a pruner puts into ``needs`` to be given the layer's own attention in ``view.attention``."""

OUTPUT_ATTENTION = "output_attention"
"""The same, of the layer's projections applied once more to its output, as SEATS's released code takes it."""


@dataclass(frozen=True)
class LayerView:
    """What a method sees when it prunes after a layer.

    Attributes
    ----------
    layer, depth : int
        The layer just run, and how many there are.
    hidden : Tensor (n, D)
        Hidden states of the media tokens still present, after the layer, on its card: with several cards the other
        fields may be on another one.
    attention : Tensor (n,) float32 or None
        Attention of the prompt's last token to them in this layer, mean over heads; sums to less than 1, text has the
        rest. Only with ``"last_query_attention"`` or ``"output_attention"`` in the method's ``needs``.
    media : MediaTokens
        The tokens still present, as they entered the LLM.
    entered : (int, int)
        Picture and sound tokens that entered the LLM.
    encoded : (int, int) or None
        Those that came out of the encoders; None where another method chose before the LLM.
    """

    layer: int
    depth: int
    hidden: Tensor
    attention: Tensor | None
    media: MediaTokens
    entered: tuple[int, int]
    encoded: tuple[int, int] | None = None


class LayerPruner(Protocol):
    """The part of a compression method that works inside the LLM."""

    @property
    def needs(self) -> frozenset[str]:
        """Names of what has to be captured."""

    def layers(self, depth: int) -> tuple[int, ...]:
        """Return the layers after which `prune` is called."""

    def prune(self, layer: int, view: Any) -> Tensor:
        """Return ascending indices (k,) into ``view.media`` of the tokens to keep."""

    def late_removal(self, depth: int) -> int | None:
        """Return the layer after which all media tokens go."""

    def keeps_kv(self) -> bool:
        """Return whether layers keep the keys and values of media tokens that are dropped after them."""
