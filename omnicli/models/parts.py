"""What goes into and comes out of a model: encoded pieces, the assembled clip, prompts, what the LLM reads.

Data, and the two small interfaces that hand it over. Nothing here knows a family, or that there are several.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from omnicli.models.timescale import EPSILON
from omnicli.types import MediaTokens, Modality, Selection

SALIENCY = "saliency"
PAIR_SALIENCY = "pair_saliency"
POOLED_SALIENCY = "pooled_saliency"
KEYS = "keys"
SALIENCIES = frozenset({SALIENCY, PAIR_SALIENCY, POOLED_SALIENCY})
CAPTURES = SALIENCIES | {KEYS}
"""Names that ``capture`` may hold. ``keys`` fills the field of its name in `MediaTokens`, the others (one at a time)
fill ``saliency``: attention received by a picture's patches within their own frame group, within two consecutive ones
(SEATS), or from the group's mean query (FastVID). Sound has one kind of saliency, within its windows."""


@dataclass(frozen=True)
class EncodedVideo:
    """Tokens of consecutive frame groups of one size.

    Attributes
    ----------
    features : Tensor (groups * rows * cols, D)
        LLM-space embeddings; groups in time order, cells in raster order.
    groups, rows, cols : int
        Frame groups (pairs for Qwen2.5-Omni) and cells of the merged grid.
    saliency : Tensor (n,) float32 or None
        Attention received in the last encoder block, mean 1 inside each group.
    keys : Tensor (n, d_k) or None
        Rotated keys of that block, averaged over heads and over the merged patches.
    layer_features : Tensor (levels, n, D) or None
        Extra features added after the first LLM layers (deepstack).
    """

    features: Tensor
    groups: int
    rows: int
    cols: int
    saliency: Tensor | None = None
    keys: Tensor | None = None
    layer_features: Tensor | None = None


@dataclass(frozen=True)
class EncodedAudio:
    """Tokens of a contiguous piece of sound.

    Attributes
    ----------
    features : Tensor (n, D)
        LLM-space embeddings, ``audio_tokens_per_s`` of them per second.
    saliency : Tensor (n,) float32 or None
        Attention received in the last encoder layer, mean 1 inside each attention window.
    keys : Tensor (n, d_k) or None
        Keys of that layer, averaged over heads and over the positions of a token.
    """

    features: Tensor
    saliency: Tensor | None = None
    keys: Tensor | None = None


@dataclass(frozen=True)
class EncodedClip:
    """All media tokens of one clip, uncompressed, and where the text after them starts.

    Attributes
    ----------
    tokens : MediaTokens
        In the order the model reads them.
    next_position : float
        Rotary position of the first token after the uncompressed media. A selection keeps it, so that text is read at
        the same place whatever was dropped. An int in families whose positions are whole numbers.
    max_position : float
        Largest position of any uncompressed media token, on any axis; likewise.
    video, audio : bool
        Which media are in the clip; chooses the markers around them.
    origin : int or None
        Position of the clip's start; None where positions count tokens instead of time.
    last_run : int
        Tokens of the last run of one modality; ``next_position`` is one above the largest among them.
    time_scale : float
        What positions in time have been multiplied with.
    """

    tokens: MediaTokens
    next_position: float
    max_position: float
    video: bool
    audio: bool
    origin: int | None = None
    last_run: int = 0
    time_scale: float = 1.0

    def scaled(self, scale: float) -> EncodedClip:
        """Return the clip with its positions in time, counted from its start, multiplied by ``scale``.

        Rounded down again where positions are whole numbers. Rows and columns of pictures stay, and so does the order.

        Raises
        ------
        ValueError
            Positions count tokens, or are scaled already.
        """
        if self.origin is None or self.time_scale != 1:
            raise ValueError("positions count tokens, or are scaled already")
        before, audio = self.tokens.position_ids, self.tokens.modality == Modality.AUDIO
        times = (before - self.origin).double() * scale
        if not before.is_floating_point():
            times = torch.floor(times + EPSILON)
        times = (times + self.origin).to(before.dtype)
        positions = torch.where(audio, times, before)
        positions[0] = times[0]
        return dataclasses.replace(
            self,
            tokens=dataclasses.replace(self.tokens, position_ids=positions),
            next_position=positions[:, -self.last_run :].max().item() + 1,
            max_position=positions.max().item(),
            time_scale=scale,
        )

    def stretch(self, rows: slice) -> EncodedClip:
        """Return some consecutive tokens as a clip of their own that begins where this one does.

        Positions in time (of sound: on every axis) move together; rows and columns of pictures stay. Text behind the
        stretch follows its largest position.

        Raises
        ------
        ValueError
            ``rows`` holds no token.
        """
        index = torch.arange(len(self.tokens), device=self.tokens.features.device)[rows]
        if index.numel() == 0:
            raise ValueError("a stretch needs at least one token")
        tokens = self.tokens.select(Selection(index))
        begin = self.tokens.position_ids[0, :1] if self.origin is None else self.origin
        times = tokens.position_ids - (tokens.position_ids[0].min() - begin)
        positions = torch.where(tokens.modality == Modality.AUDIO, times, tokens.position_ids)
        positions[0] = times[0]
        last = positions.max().item()
        return dataclasses.replace(
            self,
            tokens=dataclasses.replace(tokens, position_ids=positions),
            next_position=last + 1,
            max_position=last,
            last_run=index.numel(),
        )


@dataclass(frozen=True)
class Prompt:
    """Token ids around the media.

    Attributes
    ----------
    before, after : Tensor (n,), (m,) int64
        Ids before and after the media tokens, markers included.
    question : slice
        Where in ``after`` the question's own tokens are.
    text : str
        The question.
    """

    before: Tensor
    after: Tensor
    question: slice
    text: str

    def to(self, device: torch.device) -> Prompt:
        """Return the same with its ids on a device."""
        return dataclasses.replace(self, before=self.before.to(device), after=self.after.to(device))


@dataclass(frozen=True)
class ModelInput:
    """What the LLM reads: embeddings (S, D), rotary positions (axes, S), where the media lie, the next position."""

    embeds: Tensor
    position_ids: Tensor
    media_span: slice
    next_position: float


@dataclass(frozen=True)
class AudioBlock:
    """What a family's sound tower takes independently of everything before and after it.

    Attributes
    ----------
    seconds : float
        Length of a block.
    bands : int
        Mel bands.
    mirror_end : bool
        How the mel of the sound's end is made; see `omnicli.models.mel.LogMel`.
    """

    seconds: float
    bands: int
    mirror_end: bool = False


class Tokenizer(Protocol):
    """The part of a tokenizer that is used outside the family's file."""

    def encode(self, text: str) -> list[int]:
        """Return ids of ``text`` without adding special tokens."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids`` without special tokens; an unfinished character becomes U+FFFD."""


class LayerCache(Protocol):
    """The keys and values that a layer appends to and attends to; `omnicli.llm.kv.KVCache` is one."""

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Append (1, kv_heads, n, head_dim) and return all keys and values (1, kv_heads, kv, head_dim) of the layer."""

    def seen(self, layer: int) -> Tensor | None:
        """Return which of the rows that `update` returned are there (kv,) bool; None: all are."""


class AudioEncoder(abc.ABC):
    """A stream: 16 kHz mono samples in, encoded pieces out, in exact windows of the model. One per clip."""

    @abc.abstractmethod
    def feed(self, samples: np.ndarray) -> list[EncodedAudio]:
        """Take contiguous float32 samples (n,) of any length; return the pieces that became complete."""

    @abc.abstractmethod
    def finish(self) -> list[EncodedAudio]:
        """Return what is left after the last sample. The encoder cannot be fed afterwards."""
