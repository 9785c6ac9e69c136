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
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from omnicli.errors import ModelError
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
from omnicli.models.weights.devices import split
from omnicli.models.weights.offload import OffloadedWeights
from omnicli.types import MediaTokens, Query

if TYPE_CHECKING:
    from omnicli.models.facts.base import Facts
    from omnicli.models.weights.quantize import Quantizer

Part = Literal["encoders", "llm"]
"""What a model consists of, as far as weights can be apart."""


class OmniModel(abc.ABC):
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
    num_experts : int
        Experts that a router scores for each token in each LLM layer; 0: the layers have one MLP.
        ``intermediate_size`` then is the width of one expert times how many are active.
    name, revision : str
        As asked for by the user; commit of the hub snapshot or ``"local"``.
    folder : Path or None
        The checkpoint; None for random weights.
    facts : Facts
        Sizes and closed forms, read from the same configuration; see `_take`.
    fingerprint : str or None
        Equal for equal checkpoints, whatever they are called; None for random weights.
    device, dtype
        Where the model computes (the first card, if its layers are on several), and in what the weights are.
    cuda_graph_safe : bool
        A step of one token may be recorded and run again (`omnicli.llm.steps`): nothing in `layer`, `embed`, `rope` and
        `logits` depends on a tensor's values but by arithmetic, and attention asks the cache which keys are ``seen``.
    quantized : str
        In what the weights of the LLM's layers are instead: ``int8``, ``int4`` or ``none``.
    hidden_size, intermediate_size, depth, heads, kv_heads, head_dim, vocab_size, max_position : int
        LLM dimensions; ``max_position`` is the trained context in positions.
    window_s : float
        Length of a temporal block in seconds.
    audio_tokens_per_s, positions_per_s : float
        Token rate of sound; rotary positions per second.
    nominal_fps : float
        Frames per second that the family's stock processor assumes when nobody tells it.
    frame_group : int
        Frames per token group (2 for Qwen2.5-Omni: pairs).
    pixel_unit : int
        Frame sides are multiples of this many pixels.
    video_batch : int
        Most frames per `encode_video` call; a multiple of ``frame_group``. Depends on nothing but memory.
    position_axes : int
        Rows of ``position_ids`` (3: time, height, width).
    stop_ids : frozenset of int
        Ids that end an answer.
    """

    family: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    short_names: ClassVar[dict[str, str]] = {}
    dummies: ClassVar[dict[str, str]] = {}
    experimental: ClassVar[str] = ""
    audio_block: AudioBlock | None = None
    num_experts: int = 0
    cuda_graph_safe: bool = False
    quantized: str = "none"
    _offloaded: Mapping[Part, OffloadedWeights] = MappingProxyType({})
    _spread: tuple[torch.device, ...] = ()

    name: str
    revision: str
    folder: Path | None
    facts: Facts
    fingerprint: str | None = None
    device: torch.device
    dtype: torch.dtype
    hidden_size: int
    intermediate_size: int
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_position: int
    window_s: float
    audio_tokens_per_s: float
    positions_per_s: float
    nominal_fps: float
    frame_group: int
    pixel_unit: int
    video_batch: int
    position_axes: int
    stop_ids: frozenset[int]
    tokenizer: Tokenizer

    @classmethod
    @abc.abstractmethod
    def load(
        cls, folder: Path, *, name: str, revision: str, device: torch.device, dtype: torch.dtype,
        quantizer: Quantizer | None = None,
    ) -> OmniModel:  # fmt: skip
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
        cls, size: str, *, name: str, device: torch.device, dtype: torch.dtype, layers: int | None, scale: float,
        quantizer: Quantizer | None = None,
    ) -> OmniModel:  # fmt: skip
        """Build the architecture of ``size`` with random weights, fewer ``layers`` or ``scale``-times the width."""

    def _take(self, facts: Facts) -> None:
        """Take the sizes and rates that planning reads from the same configuration."""
        self.facts, d = facts, facts.llm
        self.hidden_size, self.intermediate_size, self.depth = d.hidden_size, d.intermediate_size, d.depth
        self.heads, self.kv_heads, self.head_dim = d.heads, d.kv_heads, d.head_dim
        self.vocab_size, self.max_position, self.num_experts = d.vocab_size, facts.max_position, d.num_experts
        self.window_s, self.positions_per_s = facts.window_s, facts.positions_per_s
        self.audio_tokens_per_s, self.frame_group = facts.audio_tokens_per_s, facts.frame_group
        self.pixel_unit, self.video_batch = facts.pixel_unit, facts.video_batch

    # ---- weights ----

    def weights(self) -> dict[Part, list[nn.Module]]:
        """Return the modules of the encoders and of the LLM, together all that hold weights.

        Only `offload` needs it; a family that does not tell them apart cannot be offloaded.
        """
        raise ModelError(f"{self.name}: {self.family} cannot be offloaded: it does not tell its encoders from its LLM")

    def offload(self, device: torch.device) -> None:
        """Compute on ``device`` from now on; only the part that was activated is there, the rest in host memory."""
        self.device = device
        self._offloaded = {part: OffloadedWeights(modules) for part, modules in self.weights().items()}

    def activate(self, part: Part) -> None:
        """Have the weights of one part on the device, and with `offload` those of the other in host memory only.

        A family calls it where it encodes and where it embeds, with which reading begins. Results stay the same.
        """
        for other, weights in self._offloaded.items():
            if other != part:
                weights.to_host()
        if part in self._offloaded:
            self._offloaded[part].to_device(self.device)

    def layers(self) -> Sequence[nn.Module]:
        """Return the LLM's layers, first to last, each with all its weights; only `spread` needs them."""
        raise ModelError(
            f"{self.name}: {self.family} cannot be on several cards: it does not tell the LLM's layers from the rest"
        )

    def spread(self, cards: Sequence[torch.device], free: Sequence[int]) -> None:
        """Move the weights to several cards: the LLM's layers in blocks, in order, everything else to the first.

        Parameters
        ----------
        cards : sequence of device
            With their indices.
        free : sequence of int
            Free bytes of each; see `omnicli.models.weights.devices.split`.
        """
        layers, modules = self.layers(), [module for part in self.weights().values() for module in part]
        each, every = (sum(map(_stored, some)) for some in (layers, modules))
        counts = split(len(layers), each // len(layers), every - each, free)
        self._spread = tuple(card for card, count in zip(cards, counts, strict=True) for _ in range(count))
        for layer, card in zip(layers, self._spread, strict=True):
            layer.to(card)
        inside = {id(module) for layer in layers for module in layer.modules()}
        for module in (m for top in modules for m in top.modules() if id(m) not in inside):
            module._apply(lambda tensor: tensor.to(cards[0]), recurse=False)
        self.device = cards[0]

    @property
    def layer_devices(self) -> tuple[torch.device, ...]:
        """Where each layer of the LLM computes, and its keys and values are."""
        return self._spread or (self.device,) * self.depth

    @property
    def stays(self) -> bool:
        """Whether all weights are on `device` and stay there."""
        return not self._spread and not self._offloaded

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """Return all devices that hold the model, `device` first."""
        return tuple(dict.fromkeys((self.device, *self._spread)))

    def to_layer_device(self, index: int, hidden: Tensor, rope: Any) -> tuple[Tensor, Any]:
        """Return hidden states and rotary values where layer ``index`` computes: as they are, but at a card's border.

        Rotary values are the pair of `slice_rope`.
        """
        if not self._spread or hidden.device == (there := self._spread[index]):
            return hidden, rope
        return hidden.to(there), tuple(part.to(there) for part in rope)

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
        before, after = (torch.arange(ids.numel(), device=self.device) for ids in (prompt.before, prompt.after))
        if clip is None:
            embeds = self.embed(torch.cat([prompt.before, prompt.after]))
            position_ids = torch.arange(len(embeds), device=self.device).expand(self.position_axes, -1)
            return ModelInput(embeds, position_ids, slice(0, 0), len(embeds))
        media = clip.tokens if tokens is None else tokens
        after += int(clip.next_position)
        embeds = torch.cat([self.embed(prompt.before), media.features.to(self.dtype), self.embed(prompt.after)])
        axes = (self.position_axes, -1)
        position_ids = torch.cat([before.expand(axes), media.position_ids, after.expand(axes)], 1)
        span = slice(before.numel(), before.numel() + len(media))
        return ModelInput(embeds, position_ids, span, clip.next_position + after.numel())

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


def _stored(module: nn.Module) -> int:
    """Return the bytes of a module's weights and buffers."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
