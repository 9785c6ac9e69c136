"""Qwen3-Omni: names, released sizes, token arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from omnicli.errors import ModelError, near_names
from omnicli.models.facts.base import Preprocessing
from omnicli.models.facts.qwen_omni import QwenOmniFacts

TOKENS_PER_SECOND = 13
SIZES: dict[str, dict[str, Any]] = {
    # From third parties' copies of the published configuration file, not from the file itself.
    "30b": {
        "hidden_size": 2048,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "vocab_size": 152064,
        "max_position_embeddings": 65536,
    },
}
"""LLM dimensions by size."""
VISION: dict[str, Any] = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "deepstack_visual_indexes": [8, 16, 24],
}
AUDIO = {
    "encoder_layers": 32,
    "d_model": 1280,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "num_mel_bins": 128,
    "downsample_hidden_size": 480,
}


@dataclass(frozen=True)
class Qwen3OmniMoeFacts(QwenOmniFacts):
    """Qwen3-Omni's thinker."""

    family = "qwen3_omni_moe"
    model_types: ClassVar[tuple[str, ...]] = ("qwen3_omni_moe", "qwen3_omni_moe_thinker")
    short_names: ClassVar[dict[str, str]] = {"qwen3-omni-30b": "Qwen/Qwen3-Omni-30B-A3B-Instruct"}
    dummies: ClassVar[dict[str, str]] = {"qwen3-omni-30b": "30b"}
    audio_positions_per_s: ClassVar[float] = float(TOKENS_PER_SECOND)
    parameters: ClassVar[dict[str, int]] = {"30b": 31_719_205_488}
    skips: ClassVar[tuple[str, ...]] = ("talker.", "code2wav.")
    defaults: ClassVar[Preprocessing] = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 128 * 32 * 32, 768 * 32 * 32)

    @classmethod
    def released(cls, size: str) -> Mapping[str, Any]:
        """See `Facts.released`."""
        if size not in SIZES:
            raise ModelError(f"no Qwen3-Omni of size {size!r}{near_names(size, SIZES)}")
        return {
            "text_config": SIZES[size],
            "vision_config": VISION,
            "audio_config": AUDIO,
            "position_id_per_seconds": TOKENS_PER_SECOND,
        }

    @staticmethod
    def _active_width(text: Mapping[str, Any]) -> int:
        return text["moe_intermediate_size"] * text["num_experts_per_tok"]

    @staticmethod
    def _stem_values(audio: Mapping[str, Any]) -> int:
        """Return the first 2-D convolution's output, halved in time and pitch, and its activation."""
        return audio["downsample_hidden_size"] * audio["num_mel_bins"] // 2

    @staticmethod
    def _num_experts(text: Mapping[str, Any]) -> int:
        return text["num_experts"]

    @staticmethod
    def _mlp_matrices() -> int:
        return 2

    @staticmethod
    def _audio_rate(config: Mapping[str, Any]) -> float:
        return float(TOKENS_PER_SECOND)

    @staticmethod
    def mel_tokens(mel_frames: int) -> int:
        """Return the tokens of so many mel frames: 13 a second, each second anew."""
        seconds, rest = divmod(mel_frames, 100)
        for _ in range(3):  # three convolutions of stride 2
            rest = (rest + 1) // 2
        return TOKENS_PER_SECOND * seconds + rest


FACTS = Qwen3OmniMoeFacts
