"""MiniCPM-o 4.5's published facts, its settings as read from a folder, and its weights as transformers' own modules.

`Parts` is named so that its state dict has the hub's keys: ``llm.*`` is a Qwen3ForCausalLM, ``vpm.*`` a SigLIP vision
model without head, ``apm.*`` a Whisper encoder; the resampler and the sound's projection are small modules of our own.
Speech output (``tts.*``) is left out on purpose. Only safetensors are read, and never a line of a checkpoint's Python.
Knows nothing of what the towers compute (`omnicli.models.components.minicpm_o_towers`).

No released weights have been seen by this code: what stands here comes from the published configuration files, their
documentation, and third parties' copies of both.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn

from omnicli.errors import ModelError

if TYPE_CHECKING:
    from omnicli.models.weights.quantize import Quantizer

TRANSFORMERS = "5.23"
if not transformers.__version__.startswith(TRANSFORMERS + "."):
    raise ModelError(
        f"minicpm_o_weights.py is written for transformers {TRANSFORMERS}.x, {transformers.__version__} is installed; "
        f"pip install 'transformers=={TRANSFORMERS}.*'"
    )

from transformers import Qwen3Config, Qwen3ForCausalLM, SiglipVisionConfig, SiglipVisionModel, WhisperConfig  # noqa: E402
from transformers.models.whisper.modeling_whisper import WhisperEncoder  # noqa: E402

from omnicli.models.facts.minicpm_o import (  # noqa: E402
    AUDIO,
    IGNORED,
    PIECE_S,
    POOL,
    POSITIONS_PER_S,
    QUERIES,
    RESOLUTION,
    TEXT,
    VERSION,
    VISION,
    MiniCPMOFacts,
)
from omnicli.models.weights import checkpoint  # noqa: E402
from omnicli.models.weights.dummy import Shrink, byte_tokenizer  # noqa: E402
from omnicli.models.weights.weight_check import differences  # noqa: E402

# ---- facts about the published files that only loading and the towers need ----

LLM_LAYERS = "llm.model.layers."
"""Prefix of the names of the LLM's layers."""
RESAMPLER_HEAD = 128
"""Channels per head of the resampler: 32 heads of 4096."""
DROP_LAST_VISION_LAYER = True
"""What a configuration without ``drop_vision_last_layer`` means; the released file is said to set it to false."""
CHUNK_S = 1.0
"""Seconds of sound that see each other and everything before them; none or negative: everything sees everything."""
MEAN = STD = (0.5, 0.5, 0.5)

SPECIAL_TOKENS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<think>",
    "</think>",
    "<unk>",
    "<image>",
    "</image>",
    "<|audio_start|>",
    "<|audio_end|>",
)


@dataclass(frozen=True)
class Settings:
    """What ``config.json`` and ``preprocessor_config.json`` say.

    Attributes
    ----------
    text, vision, audio
        transformers' configurations of the three native parts.
    queries, pool : int
        Tokens per frame; encoder positions per sound token.
    chunk : int
        Encoder positions per block of the sound's block-causal attention; 0: no mask.
    resolution : int
        Square root of a frame's area in pixels.
    mean, std : 3 floats
        Of RGB in 0..1.
    """

    text: Any
    vision: Any
    audio: Any
    queries: int = QUERIES
    pool: int = POOL
    chunk: int = round(CHUNK_S * POSITIONS_PER_S)
    resolution: int = RESOLUTION
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    @property
    def facts(self) -> MiniCPMOFacts:
        """The same as planning reads it."""
        config = {
            **self.text.to_dict(),
            "vision_config": self.vision.to_dict(),
            "audio_config": self.audio.to_dict(),
            "query_num": self.queries,
            "audio_pool_step": self.pool,
        }
        return dataclasses.replace(MiniCPMOFacts.read("minicpm-o", config), resolution=self.resolution)

    @classmethod
    def of(cls, text: dict[str, Any], vision: dict[str, Any], audio: dict[str, Any], **rest: Any) -> Settings:
        """Build from the fields of the three configurations; ``rest`` are fields of this class."""
        configs = Qwen3Config(**text), SiglipVisionConfig(**vision, vision_use_head=False), WhisperConfig(**audio)
        for config in configs:
            config._attn_implementation = "sdpa"
        return cls(*configs, **rest)

    @classmethod
    def read(cls, name: str, folder: Path) -> Settings:
        """Read a checkpoint folder; `ModelError` for another version and for what is missing."""
        config = _read(name, folder / "config.json")
        file = folder / "preprocessor_config.json"
        processor = _read(name, file) if file.is_file() else {}
        version = str(config.get("version", VERSION))
        if not version.startswith(VERSION):
            raise ModelError(f"{name}: MiniCPM-o {version} is not supported, only {VERSION}")
        try:
            text = {key: config[key] for key in TEXT if key != "rope_theta"}
            rope = config.get("rope_parameters") or {"rope_type": "default", "rope_theta": config["rope_theta"]}
            vision = {key: config["vision_config"][key] for key in VISION}
            audio = {key: config["audio_config"][key] for key in AUDIO}
        except (KeyError, TypeError) as error:
            raise ModelError(f"{name}: config.json in {folder} is not MiniCPM-o's: no {error}") from None
        if config.get("use_sliding_window") or config.get("rope_scaling"):
            raise ModelError(f"{name}: sliding windows and scaled rotary positions are not supported for MiniCPM-o")
        if audio["max_source_positions"] < PIECE_S * POSITIONS_PER_S:
            raise ModelError(f"{name}: the sound encoder's positions in config.json are too few for {PIECE_S} seconds")
        if config.get("drop_vision_last_layer", DROP_LAST_VISION_LAYER):
            vision["num_hidden_layers"] -= 1
        chunk = round(float(config.get("audio_chunk_length", CHUNK_S)) * POSITIONS_PER_S)
        return cls.of(
            text | {"rope_parameters": rope, "attention_bias": bool(config.get("attention_bias", False))},
            vision,
            audio,
            queries=int(config.get("query_num", QUERIES)),
            pool=int(config.get("audio_pool_step", POOL)),
            chunk=max(0, chunk),
            resolution=int(processor.get("scale_resolution", RESOLUTION)),
            mean=tuple(processor.get("norm_mean", MEAN)),
            std=tuple(processor.get("norm_std", STD)),
        )

    @classmethod
    def dummy(cls, layers: int | None, scale: float, vocabulary: int) -> Settings:
        """Return the published sizes with at most ``layers`` layers in every part and ``scale`` times the widths.

        Head sizes, windows and token counts stay real; the vocabulary is at least ``vocabulary``.
        """
        shrink = Shrink(layers, scale)

        def smaller(facts: dict[str, Any], names: tuple[str, str, str, str], unit: int = 1) -> dict[str, Any]:
            width, heads, ffn, depth = names
            kept = shrink.width(facts[heads], unit)
            return facts | {
                width: facts[width] // facts[heads] * kept,
                heads: kept,
                ffn: shrink.width(facts[ffn], 16),
                depth: shrink.depth(facts[depth]),
            }

        shared = TEXT["num_attention_heads"] // TEXT["num_key_value_heads"]
        names = ("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers")
        text = smaller(TEXT, names, shared)
        text["num_key_value_heads"] = text["num_attention_heads"] // shared
        text["vocab_size"] = max(vocabulary, round(TEXT["vocab_size"] * scale))
        vision = smaller(VISION, names)
        audio = smaller(AUDIO, ("d_model", "encoder_attention_heads", "encoder_ffn_dim", "encoder_layers"))
        return cls.of(text, vision, audio)


class Resampler(nn.Module):
    """Weights of the cross-attention that reads a frame's patches into ``queries`` tokens."""

    def __init__(self, queries: int, width: int, patch_width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(queries, width))
        self.kv_proj = nn.Linear(patch_width, width, bias=False) if patch_width != width else nn.Identity()
        # Never called: it gives the weights their names.
        self.attn = nn.MultiheadAttention(width, max(1, width // RESAMPLER_HEAD), batch_first=True)
        self.ln_q, self.ln_kv, self.ln_post = (nn.LayerNorm(width, eps=1e-6) for _ in range(3))
        self.proj = nn.Parameter(torch.empty(width, width))


class AudioProjection(nn.Module):
    """Two linear layers with a ReLU between: encoder positions into the LLM's space."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, out), nn.Linear(out, out)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return projected positions (..., out)."""
        return self.linear2(torch.relu(self.linear1(hidden)))


class Parts(nn.Module):
    """All weights under the hub's names."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        width = settings.text.hidden_size
        self.llm: Any = Qwen3ForCausalLM(settings.text)
        self.vpm: Any = SiglipVisionModel(settings.vision)
        self.resampler = Resampler(settings.queries, width, settings.vision.hidden_size)
        self.apm: Any = WhisperEncoder(settings.audio)
        self.audio_projection_layer = AudioProjection(settings.audio.d_model, width)


def load_parts(
    name: str,
    folder: Path,
    settings: Settings,
    device: torch.device,
    dtype: torch.dtype,
    *,
    quantizer: Quantizer | None = None,
) -> Parts:
    """Load the weights of a folder in hub layout, straight to the device.

    Raises
    ------
    ModelError
        Weights are missing, unknown or of another shape; told before anything is allocated.
    """
    from safetensors import safe_open

    from omnicli.models.weights.dummy import unfilled_model, weightless_model

    files = checkpoint.weight_files(name, folder)
    if problems := check_weights(settings, checkpoint.all_shapes(name, folder)):
        raise ModelError(f"{name}: in {folder} {problems[0]}")
    if quantizer is None:
        parts: Parts = unfilled_model(Parts, settings, device, dtype)
    else:
        quantizer.inside = LLM_LAYERS
        parts = weightless_model(Parts, settings, device, dtype)
    with torch.no_grad():
        for file in files:
            with safe_open(file, "pt") as weights:
                for key in weights.keys():  # noqa: SIM118
                    if not key.startswith(IGNORED):
                        _place(parts, key, weights.get_tensor(key), quantizer, dtype)
    return parts


def check_weights(settings: Settings, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return what is wrong with weights of these names and shapes; see `OmniModel.check_weights`."""
    from omnicli.models.weights.dummy import unfilled_model

    empty = unfilled_model(Parts, settings, "meta", torch.float32)
    wanted = {key: tuple(value.shape) for key, value in empty.state_dict().items()}
    found = {key: shape for key, shape in shapes.items() if not key.startswith(IGNORED)}
    other = {key for key in wanted.keys() & found.keys() if wanted[key] != found[key]}
    return differences(wanted.keys() - found.keys(), found.keys() - wanted.keys(), other)


def _place(parts: Parts, key: str, value: torch.Tensor, quantizer: Quantizer | None, dtype: torch.dtype) -> None:
    """Put a weight as it was read into its place, or, where that has no storage, in its place."""
    if quantizer is not None and quantizer.wants(parts, key):
        quantizer.take(parts, key, value.to(dtype))
        return
    path, _, last = key.rpartition(".")
    module = parts.get_submodule(path)
    if (there := getattr(module, last)).is_meta and quantizer is not None:
        setattr(module, last, nn.Parameter(value.to(quantizer.home, dtype), requires_grad=False))
    else:
        there.copy_(value)


def load_tokenizer(name: str, folder: Path) -> Any:
    """Load the checkpoint's tokenizer files as Qwen2's, which they are; the class they name is remote code."""
    try:
        tokenizer = transformers.Qwen2Tokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises Exception itself
        raise ModelError(f"{name}: no usable tokenizer in {folder} ({error.__class__.__name__})") from error
    if unknown := [token for token in SPECIAL_TOKENS if token not in tokenizer.get_vocab()]:
        raise ModelError(f"{name}: no usable tokenizer in {folder} (it does not know {unknown[0]})")
    return tokenizer


def dummy_tokenizer() -> Any:
    """Return a tokenizer with one token per byte and the special tokens; needs no download."""
    return byte_tokenizer({}, SPECIAL_TOKENS)


def stop_settings(name: str, folder: Path) -> list[SimpleNamespace]:
    """Return what the folder's files say of ``eos_token_id``, for `omnicli.models.chat.stop_ids`."""
    files = [folder / "config.json", folder / "generation_config.json"]
    return [SimpleNamespace(eos_token_id=_read(name, file).get("eos_token_id")) for file in files if file.is_file()]


def _read(name: str, file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{name}: {file} cannot be read ({error.__class__.__name__})") from None
    if not isinstance(data, dict):
        raise ModelError(f"{name}: {file} holds no settings")
    return data
