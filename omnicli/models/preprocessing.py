"""What happens to pictures and sound before a tower sees them: a checkpoint's settings, and the stream of mel windows.

Shared by families whose towers work in windows. Knows no weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnicli.models.base import AudioEncoder, EncodedAudio
from omnicli.models.mel import LogMel, normalise_log_mel

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MIN_PIXELS, MAX_PIXELS = 128 * 28 * 28, 768 * 28 * 28
"""Per frame: what the stock processor class sets, whatever the checkpoint's picture limits are."""
_PICTURE_LIMITS = (3136, 12_845_056)  # written in the released preprocessor files; the stock class overrides them


@dataclass(frozen=True)
class Preprocessing:
    """What a checkpoint's ``preprocessor_config.json`` says about pictures."""

    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    min_pixels: int = MIN_PIXELS
    max_pixels: int = MAX_PIXELS

    @classmethod
    def read(cls, folder: Path, default: Preprocessing | None = None) -> Preprocessing:
        """Read a checkpoint folder; what is missing is the family's ``default`` (None: Qwen2.5-Omni's)."""
        default = default or cls()
        file = folder / "preprocessor_config.json"
        data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        size = data.get("size") or {}
        limits = (
            int(size.get("shortest_edge") or data.get("min_pixels") or default.min_pixels),
            int(size.get("longest_edge") or data.get("max_pixels") or default.max_pixels),
        )
        if limits == _PICTURE_LIMITS:
            limits = (default.min_pixels, default.max_pixels)
        mean, std = data.get("image_mean") or default.mean, data.get("image_std") or default.std
        return cls(tuple(mean), tuple(std), *limits)


class WindowedAudioEncoder(AudioEncoder):
    """Collects mel frames to batches of whole windows and has them encoded.

    Parameters
    ----------
    encode : callable
        Normalised mel (bands, k), starting on a window border, and whether it begins the sound, to encoded pieces.
    batch_frames : int
        Mel frames per call; a multiple of the tower's window.
    maximum : float
        The clip's largest log10 mel value, which makes the result exact; None: the largest heard so far.
    mirror_end : bool
        See `LogMel`.
    """

    def __init__(
        self,
        encode: Callable[[Tensor, bool], list[EncodedAudio]],
        bands: int,
        *,
        batch_frames: int,
        maximum: float | None,
        mirror_end: bool = False,
    ) -> None:
        self._encode_mel, self._batch, self._maximum = encode, batch_frames, maximum
        self._mel = LogMel(bands, mirror_end)
        self._frames = torch.zeros(bands, 0)
        self._first = True

    def feed(self, samples: np.ndarray) -> list[EncodedAudio]:
        """See `AudioEncoder.feed`."""
        self._frames = torch.cat([self._frames, self._mel.feed(samples)], 1)
        return self._drain(whole=True)

    def finish(self) -> list[EncodedAudio]:
        """See `AudioEncoder.finish`."""
        self._frames = torch.cat([self._frames, self._mel.finish()], 1)
        return self._drain(whole=False)

    def _drain(self, whole: bool) -> list[EncodedAudio]:
        pieces: list[EncodedAudio] = []
        maximum = self._mel.maximum if self._maximum is None else self._maximum
        while self._frames.shape[1] >= (self._batch if whole else 1):
            part, self._frames = self._frames[:, : self._batch], self._frames[:, self._batch :]
            pieces += self._encode_mel(normalise_log_mel(part, maximum), self._first)
            self._first = False
        return pieces
