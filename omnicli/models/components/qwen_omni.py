"""What the thinkers of Qwen2.5-Omni and Qwen3-Omni share: sizes, windows of sound, one clock, prompt, LLM layer loop.

Stock modules do all the arithmetic; the loops around them are ours. Pictures go frame pair by frame pair (neither
vision tower looks across pairs), sound in windows that its tower never looks across, the LLM layer by layer. What
differs between the two families is in their files: the towers' insides, token rates, positions of the marks around
media. Not known here: files, methods.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from omnicli.errors import ModelError
from omnicli.models import chat, layout
from omnicli.models.base import OmniModel
from omnicli.models.decoder import Rotate, decoder_layer, query_attention
from omnicli.models.facts.qwen_omni import QwenOmniFacts
from omnicli.models.mel import log_mel_maximum
from omnicli.models.parts import AudioBlock, AudioEncoder, EncodedAudio, EncodedClip, EncodedVideo, LayerCache, Prompt
from omnicli.models.placement import Part
from omnicli.models.preprocessing import WindowedAudioEncoder
from omnicli.models.weights import checkpoint
from omnicli.models.weights.dummy import Shrink, random_model

if TYPE_CHECKING:
    from omnicli.models.weights.quantize import Quantizer

TRANSFORMERS = "5.23"
LLM_LAYERS = "model.language_model.layers."
"""Prefix of the names of the LLM's layers in a thinker."""


def require_transformers(file: str) -> None:
    """Raise `ModelError` unless the version of transformers is installed that ``file`` is written for."""
    import transformers

    if not transformers.__version__.startswith(TRANSFORMERS + "."):
        raise ModelError(
            f"{file} is written for transformers {TRANSFORMERS}.x, {transformers.__version__} is installed; "
            f"pip install 'transformers=={TRANSFORMERS}.*'"
        )


class QwenOmni(OmniModel):
    """A Qwen-Omni thinker behind `OmniModel`. ``thinker`` is the stock module, untouched.

    Attributes
    ----------
    thinker_class : type
        The stock thinker.
    load_options : dict
        More arguments of its ``from_pretrained``.
    facts_class : type
        Reads the sizes from the configuration.
    template : str
        Chat template of checkpoints without one.
    rotate : function
        Stock rotary embedding of the LLM's queries and keys.
    audio_hop_s : float or None
        See `omnicli.models.layout.Clock`.
    """

    thinker_class: ClassVar[Any]
    load_options: ClassVar[dict[str, Any]] = {}
    facts_class: ClassVar[type[QwenOmniFacts]]
    template: ClassVar[str]
    rotate: ClassVar[Rotate]
    position_axes = 3
    audio_hop_s: ClassVar[float | None] = None
    facts: QwenOmniFacts

    def __init__(
        self,
        thinker: Any,
        tokenizer: Any,
        *,
        name: str,
        revision: str = "local",
        folder: Path | None = None,
        stop_ids: Iterable[int] = (),
    ) -> None:
        self.thinker = thinker.eval().requires_grad_(False)  # training turns on what it trains
        self.name, self.revision, self.folder = name, revision, folder
        body, config = thinker.model, thinker.config
        self._visual, self._audio, self._text = body.visual, body.audio_tower, body.language_model
        weight = thinker.lm_head.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.facts = self.facts_class.read(name, config.to_dict(), folder)
        self.tokenizer: chat.TextTokenizer = chat.TextTokenizer(tokenizer)
        self._template = chat.find_template(tokenizer, folder, self.template)
        ids = (config.video_token_id, config.audio_token_id, config.audio_start_token_id, config.audio_end_token_id)
        self._markers = chat.Markers(*tokenizer.convert_ids_to_tokens(list(ids)))
        self.stop_ids = frozenset(stop_ids) | chat.stop_ids(tokenizer)
        self._plan = lru_cache(maxsize=8)(self._make_plan)
        self._before = lru_cache(maxsize=4)(lambda video, audio: len(self.prompt("", video=video, audio=audio).before))

    def _set_audio(self, mel_window: int, mirror_end: bool = False) -> None:
        """Set what follows from the sound tower's attention window (mel frames)."""
        self._mel_window, self._mirror_end = mel_window, mirror_end
        self.audio_block = AudioBlock(mel_window / 100, self.facts.mel_bands, mirror_end)

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
    ) -> QwenOmni:
        """Load a thinker or a full checkpoint (talker and vocoder are skipped) from a folder in hub layout."""
        options = dict(cls.load_options)
        if quantizer is not None:
            from omnicli.models.weights.quantize_loading import Settings

            quantizer.inside = LLM_LAYERS
            options["quantization_config"] = Settings(quantizer)
        with chat.quiet():
            config = cls._config(name, folder)
            try:
                loaded: Any = cls.thinker_class.from_pretrained(
                    folder,
                    config=config,
                    dtype=dtype,
                    attn_implementation="sdpa",
                    local_files_only=True,
                    use_safetensors=True,
                    output_loading_info=True,
                    **options,
                )
            except RuntimeError as error:
                if quantizer is not None and quantizer.failure is not None:
                    raise quantizer.failure from error
                problems = cls.check_weights(name, folder, checkpoint.all_shapes(name, folder))
                if not problems:
                    raise
                raise ModelError(f"{name}: in {folder} {problems[0]}") from error
            thinker, info = loaded
            tokenizer = chat.load_tokenizer(name, folder)
        missing = sorted(info["missing_keys"])
        if missing == ["lm_head.weight"] and thinker.config.text_config.tie_word_embeddings:
            thinker.lm_head.weight, missing = thinker.model.language_model.embed_tokens.weight, []
        if missing:
            raise ModelError(f"{name}: {len(missing)} weights are missing in {folder}, the first is {missing[0]}")
        stop = chat.stop_ids(thinker.config, thinker.config.text_config, thinker.generation_config, tokenizer)
        return cls(thinker.to(device), tokenizer, name=name, revision=revision, folder=folder, stop_ids=stop)

    @classmethod
    def _config(cls, name: str, folder: Path) -> Any:
        """Return the stock configuration of a folder's thinker; `ModelError` if config.json is not one."""
        from huggingface_hub.errors import StrictDataclassError

        # what is not in config.json, transformers would take from the 7B
        cls.facts_class.read(name, checkpoint.read_config(name, folder), folder)
        try:
            return cls.thinker_class.config_class.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
            reason = " ".join(str(error).split())[:160]
            raise ModelError(f"{name}: config.json in {folder} is not that of a {cls.family} ({reason})") from error

    @classmethod
    def check_weights(cls, name: str, folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        """See `OmniModel.check_weights`."""
        from omnicli.models.weights.weight_check import by_stock_loader

        kept = {key: shape for key, shape in shapes.items() if not key.startswith(cls.facts_class.skips)}
        with chat.quiet():
            return by_stock_loader(cls.thinker_class, cls._config(name, folder), kept)

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
    ) -> QwenOmni:
        """Build the thinker of ``size`` with random weights on the device; no files are read."""
        config, tokenizer = cls.dummy_config(size, Shrink(layers, scale))
        if quantizer is not None:
            quantizer.inside = LLM_LAYERS
        thinker = random_model(cls.thinker_class, config, device, dtype, quantizer)
        return cls(thinker, tokenizer, name=name, revision="random")

    @classmethod
    @abc.abstractmethod
    def dummy_config(cls, size: str, shrink: Shrink) -> tuple[Any, Any]:
        """Return (stock thinker config, tokenizer) of ``size``, a value of ``dummies``; `ModelError` if unknown."""

    def weights(self) -> dict[Part, list[torch.nn.Module]]:
        """See `OmniModel.weights`."""
        return {"encoders": [self._visual, self._audio], "llm": [self._text, self.thinker.lm_head]}

    def layers(self) -> Sequence[torch.nn.Module]:
        """See `OmniModel.layers`."""
        return self._text.layers

    # ---- pictures ----

    @torch.no_grad()
    def encode_video(self, frames: Tensor, capture: frozenset[str] = frozenset()) -> EncodedVideo:
        """See `OmniModel.encode_video`. uint8 goes to the device; normalising happens there."""
        self.activate("encoders")
        patch, pre = self.facts.patch, self.facts.preprocessing
        rows = layout.patchify(
            frames.to(self.device),
            pre.mean,
            pre.std,
            patch=patch,
            temporal=self.frame_group,
            merge=self.facts.merge,
        )
        grid = (frames.shape[1] // patch, frames.shape[2] // patch)
        return self.encode_patches(rows, grid, capture)

    @abc.abstractmethod
    def encode_patches(
        self, rows: Tensor, grid: tuple[int, int], capture: frozenset[str] = frozenset()
    ) -> EncodedVideo:
        """Encode patch rows (groups * h * w, 3 * temporal * patch**2) of a patch grid (h, w)."""

    @abc.abstractmethod
    def _make_plan(self, height: int, width: int) -> Any:
        """Return what the vision tower needs of a patch grid; depends on its size only."""

    # ---- sound ----

    def measure_log_mel_max(self, blocks: Iterable[np.ndarray]) -> float:
        """See `OmniModel.measure_log_mel_max`."""
        return log_mel_maximum(blocks, self.facts.mel_bands, self._mirror_end)

    def audio_encoder(
        self, log_mel_max: float | None = None, capture: frozenset[str] = frozenset(), batch_s: float = 30.0
    ) -> AudioEncoder:
        """See `OmniModel.audio_encoder`."""
        return WindowedAudioEncoder(
            lambda mel, first: self.encode_mel(mel, capture, first),
            self.facts.mel_bands,
            batch_frames=max(1, round(batch_s * 100 / self._mel_window)) * self._mel_window,
            maximum=log_mel_max,
            mirror_end=self._mirror_end,
        )

    @torch.no_grad()
    def encode_mel(self, mel: Tensor, capture: frozenset[str] = frozenset(), first: bool = True) -> list[EncodedAudio]:
        """Encode normalised mel frames (bands, k) that start on a window border; one or two pieces, in order.

        ``first``: they begin the sound.
        """
        self.activate("encoders")
        whole = mel.shape[1] // self._mel_window * self._mel_window
        pieces = []
        if whole:
            windows = mel[:, :whole].unflatten(1, (-1, self._mel_window)).transpose(0, 1)
            pieces.append(self.encode_audio_windows(windows, capture))
        if self.facts.mel_tokens(mel.shape[1] - whole):
            pieces.append(self._encode_rest(mel[None, :, whole:], capture, alone=first and whole == 0))
        return pieces

    def _encode_rest(self, window: Tensor, capture: frozenset[str], alone: bool) -> EncodedAudio:
        """Encode a sound's last window (1, bands, k), shorter than the others; ``alone``: it is the whole sound."""
        return self.encode_audio_windows(window, capture)

    @abc.abstractmethod
    def encode_audio_windows(self, windows: Tensor, capture: frozenset[str] = frozenset()) -> EncodedAudio:
        """Encode independent windows (n, bands, k) of k mel frames each, k at most the attention window."""

    # ---- one clock ----

    def assemble(
        self,
        video: Sequence[EncodedVideo],
        frame_times: Sequence[float] | np.ndarray,
        audio: Sequence[EncodedAudio],
        start_s: float = 0.0,
        end_s: float | None = None,
    ) -> EncodedClip:
        """See `OmniModel.assemble`. Order and positions as the stock processor and ``get_rope_index`` give them."""
        with_video, with_audio = (sum(p.features.shape[0] for p in pieces) > 0 for pieces in (video, audio))
        return layout.assemble(
            video,
            np.asarray(frame_times, np.float64),
            audio,
            layout.Clock(
                start_s=start_s,
                end_s=end_s,
                origin=self._before(with_video, with_audio) - (self.joined_marks and with_video and with_audio),
                positions_per_s=self.facts.positions_per_s,
                window_s=self.facts.window_s,
                group=self.frame_group,
                exact=self.position_dtype.is_floating_point,
                audio_hop_s=self.audio_hop_s,
            ),
            self.device,
        )

    # ---- text ----

    def prompt(
        self, question: str, *, video: bool, audio: bool, history: Sequence[tuple[str, str]] = (), preface: str = ""
    ) -> Prompt:
        """See `OmniModel.prompt`."""
        built = chat.build_prompt(
            self.tokenizer,
            self._template,
            self._markers,
            question,
            video=video,
            audio=audio,
            history=history,
            preface=preface,
        )
        return built.to(self.device)

    def embed(self, ids: Tensor) -> Tensor:
        """See `OmniModel.embed`."""
        self.activate("llm")
        return self._text.embed_tokens(ids)

    # ---- layer loop ----

    def rope(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin (1, n, head_dim) of multi-axis positions (3, n)."""
        return self._text.rotary_emb(self.thinker.lm_head.weight, position_ids[:, None])

    def layer(
        self, index: int, hidden: Tensor, rope: Any, cache: LayerCache | None = None, last_attention: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """See `OmniModel.layer`; differentiable with ``cache=None``."""
        block = self._text.layers[index]
        return decoder_layer(
            block,
            hidden,
            rope,
            self.rotate,
            index=index,
            cache=cache,
            last_attention=last_attention,
            mlp=self._mlp(block),
        )

    def _mlp(self, block: Any) -> Callable[[Tensor], Tensor]:
        """Return what comes after attention in a layer."""
        return block.mlp

    def query_attention(self, index: int, hidden: Tensor, rope: Any) -> Tensor:
        """See `OmniModel.query_attention`."""
        return query_attention(self._text.layers[index], hidden, rope, self.rotate)

    def logits(self, hidden: Tensor) -> Tensor:
        """See `OmniModel.logits`."""
        return self.thinker.lm_head(self._text.norm(hidden)).float()
