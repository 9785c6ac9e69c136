"""MiniCPM-o 4.5: names, published sizes, token arithmetic.

No released weights have been seen by this code: what stands here comes from the published configuration files, their
documentation, and third parties' copies of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import Self

from omnicli.errors import ModelError
from omnicli.models.facts.base import Facts, Preprocessing, Tower
from omnicli.models.facts.dimensions import Dimensions

HUB_ID = "openbmb/MiniCPM-o-4_5"
VERSION = "4.5"
IGNORED = ("tts.",)
"""Prefixes of weights that are not needed to answer in text."""

TEXT: dict[str, Any] = {
    "vocab_size": 151748,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
}
"""Qwen3-8B. The vocabulary and the context are from memory and third parties, not checked against the file."""
VISION: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 980,
    "patch_size": 14,
}
"""SigLIP-so400m for pictures of any shape: 70 x 70 learnt positions."""
AUDIO: dict[str, Any] = {
    "d_model": 1024,
    "encoder_layers": 24,
    "encoder_attention_heads": 16,
    "encoder_ffn_dim": 4096,
    "num_mel_bins": 80,
    "max_source_positions": 1500,
}
"""Whisper-medium's encoder."""
QUERIES = 64
"""Tokens per frame."""
POOL = 5
"""Encoder positions per sound token: 50 per second make 10."""
POSITIONS_PER_S = 50
"""Encoder positions per second of sound."""
PIECE_S = 30
"""Seconds of sound that the encoder takes at once; nothing is shared between pieces."""
RESOLUTION = 448
"""A frame's area in pixels is the square of this, whatever its shape."""
VIDEO_BATCH = 16


def frame_size(width: int, height: int, pixels: int, patch: int) -> tuple[int, int]:
    """Return (height, width) of about ``pixels`` in the picture's own shape, sides rounded to whole patches.

    As the published processor resizes a picture that it does not slice; small pictures are enlarged.
    """
    high = int((pixels * height / width) ** 0.5)
    wide = int(high * width / height)
    return max(round(high / patch), 1) * patch, max(round(wide / patch), 1) * patch


@dataclass(frozen=True)
class MiniCPMOFacts(Facts):
    """MiniCPM-o 4.5."""

    family = "minicpm_o"
    model_types: ClassVar[tuple[str, ...]] = ("minicpmo",)
    short_names: ClassVar[dict[str, str]] = {"minicpm-o-4.5": HUB_ID}
    dummies: ClassVar[dict[str, str]] = {"minicpm-o-4.5": VERSION}
    parameters: ClassVar[dict[str, int]] = {VERSION: 9_024_091_376}
    through_host: ClassVar[bool] = False
    clocked: ClassVar[bool] = False
    skips: ClassVar[tuple[str, ...]] = IGNORED

    queries: int = QUERIES
    pool: int = POOL
    resolution: int = RESOLUTION

    @classmethod
    def released(cls, size: str) -> Mapping[str, Any]:
        """See `Facts.released`."""
        if size != VERSION:
            raise ModelError(f"no MiniCPM-o in version {size!r}; known: {VERSION}")
        return {**TEXT, "vision_config": VISION, "audio_config": AUDIO}

    @classmethod
    def _read(cls, config: Mapping[str, Any], preprocessing: Preprocessing | Path | None) -> Self:
        import json

        processor: dict[str, Any] = {}
        if isinstance(preprocessing, Path) and (preprocessing / "preprocessor_config.json").is_file():
            processor = json.loads((preprocessing / "preprocessor_config.json").read_text(encoding="utf-8"))
        vision, audio = config["vision_config"], config["audio_config"]
        pool = int(config.get("audio_pool_step", POOL))
        rate = POSITIONS_PER_S / pool
        return cls(
            llm=Dimensions(
                hidden_size=config["hidden_size"],
                intermediate_size=config["intermediate_size"],
                depth=config["num_hidden_layers"],
                heads=config["num_attention_heads"],
                kv_heads=config["num_key_value_heads"],
                head_dim=config["head_dim"],
                vocab_size=config["vocab_size"],
            ),
            max_position=config["max_position_embeddings"],
            window_s=1.0,
            positions_per_s=rate,
            audio_tokens_per_s=rate,
            frame_group=1,
            patch=vision["patch_size"],
            merge=1,
            video_batch=VIDEO_BATCH,
            vision=Tower(vision["hidden_size"], vision["intermediate_size"], vision["num_attention_heads"]),
            audio=Tower(audio["d_model"], audio["encoder_ffn_dim"], audio["encoder_attention_heads"]),
            preprocessing=Preprocessing((0.5,) * 3, (0.5,) * 3, 0, 0),
            mel_bands=audio["num_mel_bins"],
            stem_values=2 * audio["d_model"],
            queries=int(config.get("query_num", QUERIES)),
            pool=pool,
            resolution=int(processor.get("scale_resolution", RESOLUTION)),
        )

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
        """See `Facts.frame_size`: the area of 448 x 448 in the picture's own shape, within the limits given."""
        area = max(self.resolution**2, min_pixels or 0)
        return frame_size(width, height, area if max_pixels is None else min(area, max_pixels), self.pixel_unit)

    def group_tokens(self, height: int, width: int) -> int:
        """Return the queries: a frame has as many tokens whatever its size."""
        return self.queries

    def audio_tokens(self, seconds: float) -> int:
        """Return the tokens of pieces of 30 seconds, each alone; what fills no token is dropped."""
        pieces, rest = divmod(int(seconds * 100 + 1e-6), 100 * PIECE_S)
        return pieces * (PIECE_S * POSITIONS_PER_S // self.pool) + (rest + 1) // 2 // self.pool

    def last_position(self, text: int, video_s: float | None, audio: int, tokens: int) -> int:
        """Return the last token's number: positions count what is read."""
        return text + tokens - 1


FACTS = MiniCPMOFacts
