"""MiniCPM-o 4.5, AVOC's backbone, without remote code: Qwen3-8B, SigLIP and Whisper as transformers has them.

Experimental: written from published facts (`omnicli.models.components.minicpm_o_weights`), never run on the released
weights.
What is as published: keys, sizes of frames, 64 tokens per frame, 10 per second of sound, units of one second (its
frames, then its sound), one rotary axis that counts tokens, the chat format with an empty thought.

What differs, and why:

- The published prompt puts ``<image>`` and ``</image>`` around every frame, ``<|audio_start|>`` and ``<|audio_end|>``
  around every second of sound. `MediaTokens` hold no text, so these marks stand once, around all media; positions count
  what is read, without the marks left out.
- One picture, no slices, no image numbers, which is how videos are published to be read.

What is assumed about the published processor: sound is cut every 30 seconds from the clip's start, each piece has the
log-mel of a file of its own (its own maximum, mirrored ends), and its last, shorter piece is encoded without padding.
Streaming is exact under that, in one pass: frames see no other frame, pieces no other piece.

Tokens of a frame are read by learnt queries: their ``row`` and ``col`` number the queries (8 x 8), they are no places
in the picture. Not known here: files, methods.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

from omnicli.errors import ModelError, near_names
from omnicli.models import chat, layout
from omnicli.models.base import OmniModel
from omnicli.models.components import minicpm_o_weights as weights
from omnicli.models.components.minicpm_o_towers import AudioTower, PieceEncoder, VisionTower
from omnicli.models.decoder import decoder_layer, query_attention
from omnicli.models.facts.minicpm_o import AUDIO, FACTS, PIECE_S, VERSION
from omnicli.models.mel import SILENCE
from omnicli.models.parts import (
    KEYS,
    SALIENCY,
    AudioBlock,
    AudioEncoder,
    EncodedAudio,
    EncodedClip,
    EncodedVideo,
    LayerCache,
    Prompt,
)
from omnicli.models.placement import Part
from omnicli.models.weights.dummy import filled, unfilled_model, weightless_model

if TYPE_CHECKING:
    from omnicli.models.weights.quantize import Quantizer

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<image><unk></image>\n"
    "{% elif part['type'] == 'audio' %}<|audio_start|><unk><|audio_end|>\n"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)
"""The published format with thinking off and no speech. The checkpoint's own template takes strings that its Python
has put together, so this one is always used."""

MARKERS = chat.Markers("<unk>", "<unk>", "<|audio_start|>", "<|audio_end|>")

CAPTURED = frozenset({SALIENCY, KEYS})
"""What the encoders give: the other kinds of saliency speak of patches, and tokens here are queries."""


class MiniCPMO(OmniModel):
    """MiniCPM-o 4.5 behind `OmniModel`. ``parts`` holds the weights under the hub's names."""

    family = "minicpm_o"
    model_types, short_names, dummies = FACTS.model_types, FACTS.short_names, FACTS.dummies
    audio_block = AudioBlock(float(PIECE_S), AUDIO["num_mel_bins"])
    cuda_graph_safe = True
    position_axes, nominal_fps = 1, 1.0
    experimental: ClassVar[str] = "written from published facts and not yet run on the released weights"

    def __init__(
        self,
        parts: weights.Parts,
        settings: weights.Settings,
        tokenizer: Any,
        *,
        name: str,
        revision: str = "local",
        folder: Path | None = None,
        stop_ids: Iterable[int] = (),
    ) -> None:
        self.parts, self.settings = parts.eval().requires_grad_(False), settings
        self.name, self.revision, self.folder = name, revision, folder
        self._text = parts.llm.model
        weight = parts.llm.lm_head.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.facts = settings.facts
        self._vision, self._audio = VisionTower(parts, settings), AudioTower(parts, settings)
        self.tokenizer: chat.TextTokenizer = chat.TextTokenizer(tokenizer)
        self.stop_ids = frozenset(stop_ids) | chat.stop_ids(tokenizer)
        self._before = lru_cache(maxsize=4)(lambda video, audio: len(self.prompt("", video=video, audio=audio).before))

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        name: str,
        revision: str,
        device: torch.device,
        dtype: torch.dtype,
        quantizer: Quantizer | None = None,
    ) -> MiniCPMO:
        """Load a folder in hub layout; the speech output and the folder's Python files are not touched."""
        settings = weights.Settings.read(name, folder)
        with chat.quiet():
            tokenizer = weights.load_tokenizer(name, folder)
            parts = weights.load_parts(name, folder, settings, device, dtype, quantizer=quantizer)
        stop = chat.stop_ids(*weights.stop_settings(name, folder))
        return cls(parts, settings, tokenizer, name=name, revision=revision, folder=folder, stop_ids=stop)

    @classmethod
    def check_weights(cls, name: str, folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        """See `OmniModel.check_weights`."""
        return weights.check_weights(weights.Settings.read(name, folder), shapes)

    @classmethod
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
    ) -> MiniCPMO:
        """Build version ``size`` ("4.5") with random weights on the device; no files are read."""
        if size != VERSION:
            raise ModelError(f"no dummy weights of MiniCPM-o in version {size!r}{near_names(size, [VERSION])}")
        tokenizer = weights.dummy_tokenizer()
        settings = weights.Settings.dummy(layers, scale, len(tokenizer))
        if quantizer is not None:
            quantizer.inside = weights.LLM_LAYERS
        build = unfilled_model if quantizer is None else weightless_model
        parts = filled(build(weights.Parts, settings, device, dtype), device, quantizer)
        return cls(parts, settings, tokenizer, name=name, revision="random")

    def weights(self) -> dict[Part, list[torch.nn.Module]]:
        """See `OmniModel.weights`."""
        p = self.parts
        return {"encoders": [p.vpm, p.resampler, p.apm, p.audio_projection_layer], "llm": [p.llm]}

    def layers(self) -> Sequence[torch.nn.Module]:
        """See `OmniModel.layers`."""
        return self._text.layers

    # ---- pictures and sound ----

    def encode_video(self, frames: Tensor, capture: frozenset[str] = frozenset()) -> EncodedVideo:
        """See `OmniModel.encode_video`; any number of frames in any call."""
        self._check(capture)
        self.activate("encoders")
        return self._vision(frames.to(self.device), capture)

    def measure_log_mel_max(self, blocks: Iterable[np.ndarray]) -> float:
        """Return the smallest value there is, without reading ``blocks``: every piece has its own maximum."""
        return SILENCE

    def audio_encoder(
        self, log_mel_max: float | None = None, capture: frozenset[str] = frozenset(), batch_s: float = 30.0
    ) -> AudioEncoder:
        """See `OmniModel.audio_encoder`. Exact in one pass: ``log_mel_max`` has nothing to decide."""
        self._check(capture)

        def encode(mel: Tensor) -> list[EncodedAudio]:
            self.activate("encoders")
            return self._audio(mel, capture)

        return PieceEncoder(encode, self.facts.mel_bands, max(1, round(batch_s / PIECE_S)))

    def _check(self, capture: frozenset[str]) -> None:
        if missing := sorted(capture - CAPTURED):
            raise ModelError(
                f"{self.name}: MiniCPM-o's encoders give no {missing[0]}, which the method needs in this mode; "
                "use its mode clean"
            )

    # ---- one clock ----

    def assemble(
        self,
        video: Sequence[EncodedVideo],
        frame_times: Sequence[float] | np.ndarray,
        audio: Sequence[EncodedAudio],
        start_s: float = 0.0,
        end_s: float | None = None,
    ) -> EncodedClip:
        """See `OmniModel.assemble`. Second by second, its frames and then its sound; positions count tokens."""
        clock = layout.Clock(start_s, end_s, 0, self.facts.positions_per_s, self.facts.window_s, self.frame_group)
        clip = layout.assemble(video, np.asarray(frame_times, np.float64), audio, clock, self.device)
        return layout.numbered(clip, self._before(clip.video, clip.audio))

    # ---- text ----

    def prompt(
        self, question: str, *, video: bool, audio: bool, history: Sequence[tuple[str, str]] = (), preface: str = ""
    ) -> Prompt:
        """See `OmniModel.prompt`."""
        built = chat.build_prompt(
            self.tokenizer, TEMPLATE, MARKERS, question, video=video, audio=audio, history=history, preface=preface
        )
        return built.to(self.device)

    def embed(self, ids: Tensor) -> Tensor:
        """See `OmniModel.embed`."""
        self.activate("llm")
        return self._text.embed_tokens(ids)

    # ---- layer loop ----

    def rope(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin (1, n, head_dim) of positions (1, n)."""
        return self._text.rotary_emb(self.parts.llm.lm_head.weight, position_ids)

    def layer(
        self, index: int, hidden: Tensor, rope: Any, cache: LayerCache | None = None, last_attention: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """See `OmniModel.layer`; differentiable with ``cache=None``."""
        block, rotate = self._text.layers[index], apply_rotary_pos_emb
        return decoder_layer(block, hidden, rope, rotate, index=index, cache=cache, last_attention=last_attention)

    def query_attention(self, index: int, hidden: Tensor, rope: Any) -> Tensor:
        """See `OmniModel.query_attention`."""
        return query_attention(self._text.layers[index], hidden, rope, apply_rotary_pos_emb)

    def logits(self, hidden: Tensor) -> Tensor:
        """See `OmniModel.logits`."""
        return self.parts.llm.lm_head(self._text.norm(hidden)).float()


MODEL = MiniCPMO
"""The class that `omnicli.models.loading` uses for this file."""
