"""Qwen2.5-Omni: names, released sizes, token arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from omnicli.errors import ModelError, near_names
from omnicli.models.facts.base import Preprocessing
from omnicli.models.facts.qwen_omni import QwenOmniFacts

SIZES: dict[str, dict[str, Any]] = {
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
    # Not checked against the published configuration file: from memory.
    "3b": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
    },
}
"""LLM dimensions by size."""
MAX_POSITION = 32768
VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
"""Full attention in blocks 7, 15, 23, 31."""
AUDIO = {
    "encoder_layers": 32,
    "d_model": 1280,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "num_mel_bins": 128,
}


@dataclass(frozen=True)
class Qwen25OmniFacts(QwenOmniFacts):
    """Qwen2.5-Omni's thinker."""

    family = "qwen2_5_omni"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_omni", "qwen2_5_omni_thinker")
    short_names: ClassVar[dict[str, str]] = {
        "qwen2.5-omni-3b": "Qwen/Qwen2.5-Omni-3B",
        "qwen2.5-omni-7b": "Qwen/Qwen2.5-Omni-7B",
    }
    dummies: ClassVar[dict[str, str]] = {"qwen2.5-omni-7b": "7b", "qwen2.5-omni-3b": "3b"}
    parameters: ClassVar[dict[str, int]] = {"7b": 8_931_813_888, "3b": 4_703_464_448}
    skips: ClassVar[tuple[str, ...]] = ("talker.", "token2wav.")
    nominal_fps: ClassVar[float] = 2.0
    defaults: ClassVar[Preprocessing] = Preprocessing()

    @classmethod
    def released(cls, size: str) -> Mapping[str, Any]:
        """See `Facts.released`."""
        if size not in SIZES:
            raise ModelError(f"no Qwen2.5-Omni of size {size!r}{near_names(size, SIZES)}")
        return {
            "text_config": SIZES[size] | {"max_position_embeddings": MAX_POSITION},
            "vision_config": VISION,
            "audio_config": AUDIO,
            "position_id_per_seconds": 25,
        }

    @staticmethod
    def mel_tokens(mel_frames: int) -> int:
        """Return the tokens of so many mel frames: about one in four."""
        return max(0, ((mel_frames - 1) // 2 + 1 - 2) // 2 + 1)


FACTS = Qwen25OmniFacts
