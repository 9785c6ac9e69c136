"""The types that carry a film from file to LLM. Nothing here decodes, encodes or selects.

Times are true seconds in the file (container start subtracted). Shapes are given as ``(N, D)``; N counts tokens in
the order the model reads them, D is the width of the LLM's embedding space.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol

from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class Modality(IntEnum):
    """What a token came from. Stored as int8 in ``MediaTokens.modality``."""

    VIDEO = 0
    AUDIO = 1


@dataclass(frozen=True)
class MediaTokens:
    """Picture and sound tokens of one clip, in the order the model reads them (time order). Text never enters.

    Attributes
    ----------
    features : Tensor (N, D)
        Token embeddings in LLM space, model dtype.
    modality : Tensor (N,) int8
        Values of `Modality`.
    start_s, end_s : Tensor (N,) float64
        True seconds in the file that the token covers.
    window : Tensor (N,) int64
        Temporal block index: ``floor(start_s / window_s)`` with the model's block length (2 s for
        Qwen2.5-Omni, 1 s for MiniCPM-o). Where frame groups are farther apart than that, a block begins with a group
        and lasts until the next one; stretches without pictures are cut at the typical interval between groups, so
        that every block but theirs holds pictures, and neighbouring groups are one block apart.
    row, col : Tensor (N,) int32
        Cell of a picture token in its frame's merged grid; -1 for sound.
    position_ids : Tensor (axes, N) int64 or float32
        Rotary positions, owned by the model (3 axes for Qwen-Omni, 1 where positions count tokens); a selection
        gathers them unchanged.
    saliency : Tensor (N,) float32 or None
        Attention received in the last encoder block (mean 1 inside its window), if captured.
    keys : Tensor (N, d_k) or None
        Mean-over-heads encoder keys, if captured.
    layer_features : Tensor (levels, N, D) or None
        Extra per-layer features (Qwen3-Omni deepstack); zero rows for sound.
    """

    features: Tensor
    modality: Tensor
    start_s: Tensor
    end_s: Tensor
    window: Tensor
    row: Tensor
    col: Tensor
    position_ids: Tensor
    saliency: Tensor | None = None
    keys: Tensor | None = None
    layer_features: Tensor | None = None

    def __post_init__(self) -> None:
        n = self.features.shape[0]
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if value is None:
                continue
            axis = 1 if f.name in _TOKEN_AXIS_1 else 0
            if value.shape[axis] != n:
                raise ValueError(f"MediaTokens.{f.name} holds {value.shape[axis]} tokens, features hold {n}")

    def __len__(self) -> int:
        return self.features.shape[0]

    def count(self, modality: Modality) -> int:
        """Return the number of tokens of one modality."""
        return int((self.modality == modality).sum())

    def indices(self, modality: Modality) -> Tensor:
        """Return the ascending indices (n,) int64 of one modality's tokens."""
        return torch.nonzero(self.modality == modality).flatten()

    def to(self, device: torch.device) -> MediaTokens:
        """Return the tokens on another device."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        moved: dict[str, Any] = {name: None if v is None else v.to(device) for name, v in values.items()}
        return MediaTokens(**moved)

    def select(self, selection: Selection) -> MediaTokens:
        """Return the selected tokens with everything that belongs to them (positions, times, deepstack rows)."""
        idx = selection.indices
        changes: dict[str, Any] = {}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if value is not None:
                axis = 1 if f.name in _TOKEN_AXIS_1 else 0
                changes[f.name] = value.index_select(axis, idx)
        if selection.features is not None:
            changes["features"] = selection.features
        return dataclasses.replace(self, **changes)


_TOKEN_AXIS_1 = ("position_ids", "layer_features")


class Backbone(Protocol):
    """The LLM that will answer, as a method may ask it about a clip's tokens before it chooses among them.

    Attributes
    ----------
    depth : int
        Layers of the LLM.
    """

    depth: int

    def attention(self, stretches: Sequence[slice], layers: range) -> Tensor:
        """Return the attention (N,) float32 of the prompt's last token to each of the clip's N tokens.

        Parameters
        ----------
        stretches : sequence of slice
            Consecutive tokens that are read together, each stretch as if it were the whole clip; tokens in none of
            them get 0. What a token gets is a share of its own stretch, of which the prompt's text has the rest.
        layers : range
            Layers (0-based) over which the mean is taken, as over their heads; none behind them is run.
        """
        ...


@dataclass(frozen=True)
class Query:
    """The question, as a method sees it.

    Attributes
    ----------
    embeddings : Tensor (n, D)
        LLM input embeddings of the question's own tokens, not the template's.
    text : str
        The question itself.
    backbone : Backbone or None
        The LLM, to ask it what the question attends to; None: it is not at hand.
    """

    embeddings: Tensor
    text: str = ""
    backbone: Backbone | None = None


@dataclass(frozen=True)
class Selection:
    """What a method keeps.

    Attributes
    ----------
    indices : Tensor (K,) int64
        Strictly ascending indices into the `MediaTokens` it was given.
    features : Tensor (K, D) or None
        New features where tokens were merged; None keeps the originals.
    report : dict
        What the method wants to tell: budgets, scores, ``scorer``. JSON-serialisable.
    notes : tuple of str
        What a user should know of it, a sentence each; they stand among the answer's warnings.
    """

    indices: Tensor
    features: Tensor | None = None
    report: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LayerView:
    """What a method sees when it prunes after a layer of the LLM.

    Attributes
    ----------
    layer, depth : int
        The layer just run (0-based), and how many there are.
    hidden : Tensor (n, D)
        Hidden states of the media tokens still present, after the layer, on its card: with several cards the other
        fields may be on another one.
    attention : Tensor (n,) float32 or None
        Attention of the prompt's last token to them in this layer, mean over heads; sums to less than 1, text has the
        rest. Only with ``"last_query_attention"`` or ``"output_attention"`` in the method's ``needs``.
    media : MediaTokens
        The tokens still present, as they entered the LLM.
    entered : (int, int)
        Video and audio tokens that entered the LLM.
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


@dataclass(frozen=True)
class MediaUsed:
    """Seconds of picture and sound that were used beside what the file holds, and the pictures' sampling.

    ``width``/``height`` are the pixels given to the encoder, ``fps`` the mean rate of the sampled frames.
    """

    video_s: float
    audio_s: float
    video_present_s: float
    audio_present_s: float
    frames: int
    fps: float
    width: int
    height: int
