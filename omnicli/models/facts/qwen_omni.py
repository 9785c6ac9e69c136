"""What the two Qwen-Omni families have in common: frame sizes, one clock."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import Self

from omnicli.models.facts.base import Facts, Preprocessing, Tower
from omnicli.models.facts.dimensions import Dimensions

VIDEO_BATCH = 32


def capped_pixels(
    min_pixels: int, max_pixels: int, n_frames: int, max_video_tokens: int, *, unit: int, temporal: int = 2
) -> int:
    """Return the upper pixel limit per frame under a budget of tokens for the whole video.

    An even share of 90 % of ``max_video_tokens``, at least 1.05 x ``min_pixels`` (qwen-vl-utils and transformers'
    ``cap_pixels_per_frame``).
    """
    share = int(max_video_tokens * unit * unit * 0.9) * temporal // max(1, n_frames)
    return max(min(max_pixels, share), int(min_pixels * 1.05))


@dataclass(frozen=True)
class QwenOmniFacts(Facts):
    """A Qwen-Omni thinker."""

    loads: ClassVar[tuple[str, ...]] = ("thinker.", "")
    defaults: ClassVar[Preprocessing]

    @classmethod
    def _read(cls, config: Mapping[str, Any], preprocessing: Preprocessing | Path | None) -> Self:
        config = config.get("thinker_config") or config
        text, vision, audio = config["text_config"], config["vision_config"], config["audio_config"]
        if preprocessing is None:
            preprocessing = cls.defaults
        elif isinstance(preprocessing, Path):
            preprocessing = Preprocessing.read(preprocessing, cls.defaults)
        heads = text["num_attention_heads"]
        return cls(
            llm=Dimensions(
                hidden_size=text["hidden_size"],
                intermediate_size=cls._active_width(text),
                depth=text["num_hidden_layers"],
                heads=heads,
                kv_heads=text["num_key_value_heads"],
                head_dim=text.get("head_dim") or text["hidden_size"] // heads,
                vocab_size=text["vocab_size"],
                num_experts=cls._num_experts(text),
            ),
            max_position=text["max_position_embeddings"],
            window_s=float(config.get("seconds_per_chunk") or 2.0),
            positions_per_s=float(config["position_id_per_seconds"]),
            audio_tokens_per_s=cls._audio_rate(config),
            frame_group=vision["temporal_patch_size"],
            patch=vision["patch_size"],
            merge=vision["spatial_merge_size"],
            video_batch=VIDEO_BATCH,
            vision=Tower(vision["hidden_size"], vision["intermediate_size"], vision["num_heads"], cls._mlp_matrices()),
            audio=Tower(audio["d_model"], audio["encoder_ffn_dim"], audio["encoder_attention_heads"]),
            preprocessing=preprocessing,
            mel_bands=audio["num_mel_bins"],
            stem_values=cls._stem_values(audio),
            levels=len(vision.get("deepstack_visual_indexes") or ()),
            experts_per_token=text.get("num_experts_per_tok") or 0,
            tied_head=bool(text.get("tie_word_embeddings")),
        )

    @staticmethod
    def _active_width(text: Mapping[str, Any]) -> int:
        return text["intermediate_size"]

    @staticmethod
    def _stem_values(audio: Mapping[str, Any]) -> int:
        return 2 * audio["d_model"]

    @staticmethod
    def _num_experts(text: Mapping[str, Any]) -> int:
        return 0

    @staticmethod
    def _mlp_matrices() -> int:
        return 3

    @staticmethod
    def _audio_rate(config: Mapping[str, Any]) -> float:
        return float(config["position_id_per_seconds"])

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
        """See `Facts.frame_size`; without a token budget the stock processor's sizes."""
        from omnicli.media.sampling import smart_resize

        low = self.preprocessing.min_pixels if min_pixels is None else min_pixels
        high = self.preprocessing.max_pixels if max_pixels is None else max_pixels
        low = min(low, high)
        if max_video_tokens is not None and n_frames is not None:
            high = capped_pixels(low, high, n_frames, max_video_tokens, unit=self.pixel_unit, temporal=self.frame_group)
        return smart_resize(height, width, self.pixel_unit, low, high)

    def audio_tokens(self, seconds: float) -> int:
        """See `Facts.audio_tokens`; a hundred mel frames are a second."""
        return self.mel_tokens(int(seconds * 100 + 1e-6))

    @staticmethod
    @abc.abstractmethod
    def mel_tokens(mel_frames: int) -> int:
        """Return the tokens that a sound of so many mel frames becomes."""
