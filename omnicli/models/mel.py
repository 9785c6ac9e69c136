"""Log-mel spectra as a stream: samples in, frames out, equal to one pass over the whole sound.

Whisper's front end, which several families share: 16 kHz, 400-sample Hann frames every 160 samples, 128 slaney mel
bands up to 8 kHz, log10 clamped at 1e-10, everything more than 8 below the clip's maximum raised to that floor, then
(x + 4) / 4. Only the maximum couples distant samples, therefore `LogMel` returns raw log10 values and
`normalise_log_mel` takes the maximum. Nothing here knows tokens or files.

The end is treated as by an extractor that pads with zeros ("max_length"): ``ceil(samples / 160)`` frames; or, with
``mirror_end``, as by one that does not pad ("longest"): the last samples are mirrored as the first ones always are, and
a frame that is not full does not count, ``floor(samples / 160)`` frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

SAMPLE_RATE = 16_000
"""Samples per second."""
HOP = 160
"""Samples between frames: 100 frames per second."""
WINDOW = 400
"""Samples per frame."""
DYNAMIC_RANGE = 8.0
"""Decades below the clip's maximum that are kept."""
SILENCE = -10.0
"""log10 of the smallest value: what a frame of zeros gives."""

_REACH = WINDOW // 2  # samples that a frame looks back and ahead of its own time
_BATCH = 3000  # frames per transform: bounds the working memory when somebody feeds an hour at once


def mel_frame_count(samples: int, mirror_end: bool = False) -> int:
    """Return the mel frames of a sound of so many samples: ``ceil(samples / 160)``, with ``mirror_end`` the floor."""
    return samples // HOP if mirror_end else -(-samples // HOP)


class LogMel:
    """One sound's raw log10 mel frames, as they become complete. Make one per clip.

    Parameters
    ----------
    bands : int
        Mel bands.
    mirror_end : bool
        Mirror the sound at its end instead of adding zeros. A sound of at most 200 samples cannot be mirrored (the
        stock extractor refuses it) and gets zeros.

    Attributes
    ----------
    maximum : float
        Largest value so far; after `finish` the true maximum of the clip, in which an extractor that pads with zeros
        also counts the (up to two) frames after the last one that still touch sound. With ``mirror_end`` that of the
        frames returned.
    samples : int
        Samples fed so far.
    """

    def __init__(self, bands: int = 128, mirror_end: bool = False) -> None:
        self.mirror_end = mirror_end
        self.maximum = SILENCE
        self.samples = 0
        self._bands = bands
        self._buffer = np.zeros(0, np.float32)  # sound not yet used up, from sample 160 * frames - 200 on
        self._started = False
        self._finished = False

    def feed(self, samples: np.ndarray) -> Tensor:
        """Take float32 samples (n,) and return the complete frames (bands, k)."""
        if self._finished:
            raise ValueError("the sound is finished; make a new LogMel")
        self.samples += len(samples)
        self._buffer = np.concatenate([self._buffer, np.asarray(samples, np.float32)])
        if not self._started:
            if len(self._buffer) <= _REACH:
                return torch.zeros(self._bands, 0)
            self._start()
        return self._take((len(self._buffer) - WINDOW) // HOP + 1)

    def finish(self) -> Tensor:
        """Return the remaining frames (bands, k) and settle ``maximum``."""
        if self._finished:
            raise ValueError("the sound is finished; make a new LogMel")
        self._finished = True
        if self.samples == 0:
            return torch.zeros(self._bands, 0)
        behind = np.zeros(2 * WINDOW + 3 * HOP, np.float32)
        if self.mirror_end and self.samples > _REACH:
            behind = self._buffer[-2 : -2 - _REACH : -1]
        done = self._frames_done()
        self._buffer = np.concatenate([self._buffer, behind])
        if not self._started:
            self._start()
        last = mel_frame_count(self.samples, self.mirror_end) - done
        frames = self._take(last if self.mirror_end else last + 2)
        return frames[:, :last]

    def _frames_done(self) -> int:
        if not self._started:
            return 0
        return (self.samples + _REACH - len(self._buffer)) // HOP

    def _start(self) -> None:
        mirrored = self._buffer[_REACH:0:-1]
        self._buffer = np.concatenate([mirrored, self._buffer])
        self._started = True

    def _take(self, count: int) -> Tensor:
        if count <= 0:
            return torch.zeros(self._bands, 0)
        parts = []
        for begin in range(0, count, _BATCH):
            n = min(_BATCH, count - begin)
            piece = torch.from_numpy(self._buffer[begin * HOP : (begin + n - 1) * HOP + WINDOW])
            parts.append(_log_mel(piece, self._bands))
        self._buffer = self._buffer[count * HOP :].copy()
        frames = torch.cat(parts, dim=1)
        self.maximum = max(self.maximum, float(frames.max()))
        return frames


def log_mel_maximum(blocks: Iterable[np.ndarray], bands: int = 128, mirror_end: bool = False) -> float:
    """Return the largest log10 mel value of a sound given as contiguous blocks: the first of two passes."""
    stream = LogMel(bands, mirror_end)
    for block in blocks:
        stream.feed(block)
    stream.finish()
    return stream.maximum


def normalise_log_mel(frames: Tensor, maximum: float) -> Tensor:
    """Return ``(max(frames, maximum - 8) + 4) / 4`` for raw log10 frames (bands, k)."""
    return (frames.clamp(min=maximum - DYNAMIC_RANGE) + 4.0) / 4.0


def log_mel(samples: np.ndarray, bands: int = 128, mirror_end: bool = False) -> Tensor:
    """Return the normalised log-mel (bands, frames) of a whole sound (n,) float32 in memory."""
    stream = LogMel(bands, mirror_end)
    frames = torch.cat([stream.feed(samples), stream.finish()], dim=1)
    return normalise_log_mel(frames, stream.maximum)


def _log_mel(samples: Tensor, bands: int) -> Tensor:
    spectrum = torch.stft(samples, WINDOW, HOP, window=torch.hann_window(WINDOW), center=False, return_complex=True)
    power = spectrum.abs() ** 2
    return (mel_filters(bands) @ power).clamp(min=1e-10).log10()


@lru_cache(maxsize=4)
def mel_filters(bands: int = 128) -> Tensor:
    """Return the slaney filter bank (bands, 201) float32: triangles of unit area, 0 to 8000 Hz."""
    points = _mel_to_hz(np.linspace(_hz_to_mel(0.0), _hz_to_mel(SAMPLE_RATE / 2), bands + 2))
    bins = np.linspace(0, SAMPLE_RATE // 2, WINDOW // 2 + 1)
    width = np.diff(points)
    slope = points[:, None] - bins[None, :]
    rising, falling = -slope[:-2] / width[:-1, None], slope[2:] / width[1:, None]
    weights = np.maximum(0, np.minimum(rising, falling)) * (2.0 / (points[2:] - points[:-2]))[:, None]
    return torch.from_numpy(weights.astype(np.float32))


_LINEAR_HZ = 200.0 / 3  # below 1 kHz the slaney scale is linear
_LOG_STEP = math.log(6.4) / 27.0


def _hz_to_mel(hz: float) -> float:
    return hz / _LINEAR_HZ if hz < 1000 else 15.0 + math.log(hz / 1000.0) / _LOG_STEP


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15.0, mel * _LINEAR_HZ, 1000.0 * np.exp(_LOG_STEP * (mel - 15.0)))
