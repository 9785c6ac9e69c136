"""What every model family offers to the pipeline and to the layer loop. Nothing here knows a family's internals.

The way through a model, in data order::

    height, width = model.frame_size(info.width, info.height, n_frames)
    piece  = model.encode_video(frames)                      # per batch of at most ``video_batch`` frames
    peak   = model.measure_log_mel_max(blocks)               # exact mel: first pass over the sound
    sound  = model.audio_encoder(peak); sound.feed(block); sound.finish()
    clip   = model.assemble(pieces, frame_times, sound_pieces, start_s=..., end_s=...)
    prompt = model.prompt(question, video=True, audio=True)
    embeds, positions, span = model.sequence(prompt, clip, kept)   # kept: clip.tokens or a selection of them

`omnicli.llm` needs only the last part of the class: ``rope``, ``layer``, ``logits`` and the tokenizer. A family whose
encoder feeds several LLM layers (deepstack) returns ``layer_features``; the layer loop adds level i after layer i.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from omnicli.models.parts import (
    AudioBlock,
    AudioEncoder,
    EncodedAudio,
    EncodedClip,
    EncodedVideo,
    LayerCache,
    ModelInput,
    Prompt,
    Tokenizer,
)
from omnicli.models.placement import PlacedModel
from omnicli.types import MediaTokens, Query

if TYPE_CHECKING:
    from omnicli.models.facts.base import Facts
    from omnicli.models.weights.quantize import Quantizer


class OmniModel(PlacedModel, abc.ABC):
    """One loaded model. Subclasses live in one file per family and are found by that file's name.

    A new family is one new file: its class, named there as ``MODEL``, says everything that is kept centrally nowhere.

    Attributes
    ----------
    family : str
        Name of the file.
    model_types : tuple of str
        Values of ``model_type`` in ``config.json`` that are this family's.
    short_names : dict
        Short names of released checkpoints -> hub ids; lower case.
    dummies : dict
        Names that may follow ``dummy:`` -> the ``size`` that `dummy` is called with; lower case.
    experimental : str
        Why the family's answers are not to be trusted yet, told with every answer; empty if they are.
    audio_block : AudioBlock or None
        Blocks of sound that are encoded alike whatever surrounds them, proven in the family's tests: a few changed
        seconds then cost a few blocks. None: sound is encoded in whole each time.
    name, revision : str
        As asked for by the user; commit of the hub snapshot or ``"local"``.
    folder : Path or None
        The checkpoint; None for random weights.
    facts : Facts
        Sizes, rates and closed forms, read from the same configuration, which plans are made of too. The sizes that
        are asked for most are properties below; the others are ``facts.llm`` and ``facts``.
    fingerprint : str or None
        Equal for equal checkpoints, whatever they are called; None for random weights.
    device, dtype
        Where the model computes (the first card, if its layers are on several), and in what the weights are.
    cuda_graph_safe : bool
        A step of one token may be recorded and run again (`omnicli.llm.steps`): nothing in `layer`, `embed`, `rope` and
        `logits` depends on a tensor's values but by arithmetic, and attention asks the cache which keys are ``seen``.
    quantized : str
        In what the weights of the LLM's layers are instead: ``int8``, ``int4`` or ``none``.
    nominal_fps : float
        Frames per second that the family's stock processor assumes when nobody tells it.
    position_axes : int
        Rows of ``position_ids`` (3: time, height, width; 1: plain rotary positions).
    position_dtype : torch.dtype
        int64 where positions are whole numbers, float32 where time is exact.
    joined_marks : bool
        Whether the two marks on either side of a film with sound share one position.
    stop_ids : frozenset of int
        Ids that end an answer.
    """

    family: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    short_names: ClassVar[dict[str, str]] = {}
    dummies: ClassVar[dict[str, str]] = {}
    experimental: ClassVar[str] = ""
    audio_block: AudioBlock | None = None
    cuda_graph_safe: bool = False
    quantized: str = "none"
    position_dtype: torch.dtype = torch.int64
    joined_marks: bool = False

    revision: str
    folder: Path | None
    facts: Facts
    fingerprint: str | None = None
    dtype: torch.dtype
    nominal_fps: float
    position_axes: int
    stop_ids: frozenset[int]
    tokenizer: Tokenizer

    @classmethod
    @abc.abstractmethod
    def load(
        cls,
        folder: Path,
        *,
        name: str,
        revision: str,
        device: torch.device,
        dtype: torch.dtype,
        quantizer: Quantizer | None = None,
    ) -> OmniModel:
        """Load a checkpoint folder in hub layout; raises `ModelError` if it is incomplete or of another kind.

        ``quantizer``: makes the weights of the LLM's layers smaller, each as it is loaded; None: they stay as they are.
        """

    @classmethod
    def check_weights(cls, name: str, folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> list[str] | None:
        """Return what is wrong with a checkpoint's weights, a line each; None: the family cannot tell without loading.

        Parameters
        ----------
        shapes : dict
            Every weight in the folder's safetensors files.

        Raises
        ------
        ModelError
            The folder's settings are not the family's.
        """
        return None

    @classmethod
    @abc.abstractmethod
    def dummy(
        cls,
        size: str,
        *,
        name: str,
        device: torch.device,
        dtype: torch.dtype,
        layers: int | None,
        scale: float,
        quantizer: Quantizer | None = None,
    ) -> OmniModel:
        """Build the architecture of ``size`` with random weights, fewer ``layers`` or ``scale``-times the width."""

    # ---- sizes ----

    @property
    def depth(self) -> int:
        """Layers of the LLM."""
        return self.facts.llm.depth

    @property
    def hidden_size(self) -> int:
        """Width of the LLM's hidden states, and so of every token."""
        return self.facts.llm.hidden_size

    @property
    def kv_heads(self) -> int:
        """Heads of the LLM's keys and values."""
        return self.facts.llm.kv_heads

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.facts.llm.head_dim

    @property
    def max_position(self) -> int:
        """Positions that the LLM was trained on."""
        return self.facts.max_position

    @property
    def frame_group(self) -> int:
        """Frames that become tokens together (2 for the Qwen-Omni families: pairs)."""
        return self.facts.frame_group

    @property
    def video_batch(self) -> int:
        """Most frames of an `encode_video` call, a multiple of ``frame_group``. Depends on nothing but memory."""
        return self.facts.video_batch

    @property
    def audio_tokens_per_s(self) -> float:
        """Tokens that a second of sound becomes."""
        return self.facts.audio_tokens_per_s

    @property
    def layer_devices(self) -> tuple[torch.device, ...]:
        """Where each layer of the LLM computes, and its keys and values are."""
        return self._spread or (self.device,) * self.depth

    # ---- media ----

    def frame_size(
        self,
        width: int,
        height: int,
        n_frames: int | None = None,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        max_video_tokens: int | None = None,
    ) -> tuple[int, int]:
        """Return (height, width) in pixels to decode frames at, as the family's facts say.

        Limits are pixels per frame, None takes the model's. ``max_video_tokens`` with ``n_frames`` lowers the upper
        limit so that all frames together stay under 90 % of that many tokens (never below 1.05 x the lower limit).
        Where a frame's size does not decide about its tokens, it changes nothing.
        """
        return self.facts.frame_size(
            width, height, n_frames, min_pixels=min_pixels, max_pixels=max_pixels, max_video_tokens=max_video_tokens
        )

    @abc.abstractmethod
    def encode_video(self, frames: Tensor, capture: frozenset[str] = frozenset()) -> EncodedVideo:
        """Encode uint8 frames (n, H, W, 3), RGB, n at most ``video_batch``.

        n must be a multiple of ``frame_group`` in every call but the last, where the last frame is repeated.
        ``capture``: subset of `CAPTURES` to compute as well.
        """

    @abc.abstractmethod
    def measure_log_mel_max(self, blocks: Iterable[np.ndarray]) -> float:
        """Return the largest log10 mel value of the whole clip: first of the two passes that make mel exact."""

    @abc.abstractmethod
    def audio_encoder(
        self, log_mel_max: float | None = None, capture: frozenset[str] = frozenset(), batch_s: float = 30.0
    ) -> AudioEncoder:
        """Return a new stream. ``log_mel_max=None`` uses the running maximum of what has been heard (one pass)."""

    @abc.abstractmethod
    def assemble(
        self,
        video: Sequence[EncodedVideo],
        frame_times: Sequence[float] | np.ndarray,
        audio: Sequence[EncodedAudio],
        start_s: float = 0.0,
        end_s: float | None = None,
    ) -> EncodedClip:
        """Interleave pictures and sound on one clock and give every token its position.

        Parameters
        ----------
        frame_times : (frames,)
            True file seconds of every frame given to `encode_video`, ascending.
        start_s, end_s : float
            File second where the clip (and its sound) starts and ends. Positions count from ``start_s``.
        """

    # ---- text ----

    @abc.abstractmethod
    def prompt(
        self, question: str, *, video: bool, audio: bool, history: Sequence[tuple[str, str]] = (), preface: str = ""
    ) -> Prompt:
        """Return the chat-template ids around the media.

        ``history``: earlier (question, answer) pairs in order; ``preface``: text between the media and what is asked
        first.
        """

    @abc.abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Return the input embeddings (n, D) of token ids (n,)."""

    def sequence(
        self, prompt: Prompt, clip: EncodedClip | None = None, tokens: MediaTokens | None = None
    ) -> ModelInput:
        """Return before | media | after as the LLM reads it; ``tokens`` is ``clip.tokens`` (None) or a selection.

        Text counts from 0 before the media and from the clip's ``next_position`` behind them, on every axis; a
        selection leaves gaps, as if all had been read.
        """
        axes = (self.position_axes, -1)
        before, after = (
            torch.arange(ids.numel(), device=self.device, dtype=self.position_dtype)
            for ids in (prompt.before, prompt.after)
        )
        if clip is None:
            embeds = self.embed(torch.cat([prompt.before, prompt.after]))
            positions = torch.cat([before, after + len(before)])
            return ModelInput(embeds, positions.expand(axes), slice(0, 0), len(embeds))
        media = clip.tokens if tokens is None else tokens
        if self.joined_marks and clip.video and clip.audio:
            before[-1] -= 1
            after[1:] -= 1
        after += clip.next_position
        embeds = torch.cat([self.embed(prompt.before), media.features.to(self.dtype), self.embed(prompt.after)])
        position_ids = torch.cat([before.expand(axes), media.position_ids, after.expand(axes)], 1)
        span = slice(before.numel(), before.numel() + len(media))
        return ModelInput(embeds, position_ids, span, max(after[-1].item(), clip.max_position) + 1)

    def query(self, prompt: Prompt) -> Query:
        """Return the question as compression methods see it."""
        return Query(embeddings=self.embed(prompt.after[prompt.question]), text=prompt.text)

    # ---- layer loop ----

    @abc.abstractmethod
    def rope(self, position_ids: Tensor) -> Any:
        """Return what `layer` needs for rotary positions (axes, n); `slice_rope` indexes it."""

    def slice_rope(self, rope: Any, index: Tensor | slice) -> Any:
        """Return the rotary values of a subset of positions; ``rope`` is the pair of cos and sin (1, n, d)."""
        return rope[0][:, index], rope[1][:, index]

    @abc.abstractmethod
    def layer(
        self, index: int, hidden: Tensor, rope: Any, cache: LayerCache | None, last_attention: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Run decoder layer ``index`` on hidden states (n, D) that follow what the cache holds; causal.

        Returns the new hidden states and, if asked, the attention of the last of the n queries to all keys
        (kv,) float32, mean over heads, sum 1.
        """

    @abc.abstractmethod
    def query_attention(self, index: int, hidden: Tensor, rope: Any) -> Tensor:
        """Return attention (n,) float32 of the last of ``hidden`` (n, D) to all, by layer ``index``'s projections.

        The projections are applied to ``hidden`` as it is, whichever layer it comes from; mean over heads, sum 1.
        """

    @abc.abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits (n, vocab) float32 of last-layer hidden states (n, D): final norm and head."""
