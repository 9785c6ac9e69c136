"""Sound as 16 kHz mono on the film's clock: every sample stands at its true second, holes are silence.

Concatenating decoded samples would lose a late start and every hole, and with them the tie to the pictures. Memory
does not depend on the film's length. Nothing here knows of spectrograms.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from av.audio.resampler import AudioResampler

from omnicli.errors import MediaError
from omnicli.media.container import FAILURES, DecodeStats, open_media, packets

if TYPE_CHECKING:
    from omnicli.media.probe import MediaInfo

SAMPLE_RATE = 16_000

# A frame's time stamp may be this far from where the samples before it end. Containers round to a millisecond and
# some write one stamp for several frames; beyond it something is missing, or a clock has drifted.
TOLERANCE_S = 0.1
# A frame stamped this far beyond the sound that `probe` saw is damaged; filling up to it could take days.
BEYOND_S = 10.0
# Decoding starts this much early, since codecs need a run-up.
RUN_UP_S = 1.0


def read_audio(
    info: MediaInfo,
    start_s: float = 0.0,
    end_s: float | None = None,
    *,
    block_s: float = 2.0,
    stats: DecodeStats | None = None,
) -> Iterator[np.ndarray]:
    """Decode the sound of a span, streaming.

    Parameters
    ----------
    info : MediaInfo
    start_s : float
        File second of the first sample.
    end_s : float, optional
        File second behind the last one; None or beyond the sound: where the sound ends.
    block_s : float
        Length of a block.
    stats : DecodeStats, optional
        Filled while reading.

    Yields
    ------
    (n,) float32
        Mono at 16 kHz, -1..1. Sample i of all blocks together belongs to second ``start_s + i / 16000``: silence
        until the sound sets in and in its holes. Each block holds ``round(block_s * 16000)`` samples, the last one
        what is left. Nothing if the sound ends before ``start_s``.

    Raises
    ------
    MediaError
        If the file holds no sound, or none of it can be decoded.
    ValueError
        If the block length is not positive.
    """
    if info.audio is None or info.audio_span is None:
        raise MediaError(f"{info.path}: the file holds no sound")
    size = round(block_s * SAMPLE_RATE)
    if size < 1:
        raise ValueError(f"block_s must be positive, not {block_s}")
    return _blocks(_Track(info, start_s, end_s, DecodeStats() if stats is None else stats), size)


def _blocks(track: _Track, size: int) -> Iterator[np.ndarray]:
    """Cut the pieces of a track (place, samples) into blocks of ``size``, with silence where no piece lies."""
    block = np.zeros(size, np.float32)
    begin = filled = 0  # of the block: its first sample, and how much of it is final
    for place, samples in track.pieces():
        at, data = place, samples
        if at < begin + filled:  # overlaps what is already there
            data, at = data[begin + filled - at :], begin + filled
        while len(data):
            if at >= begin + size:
                yield block
                block, begin, filled = np.zeros(size, np.float32), begin + size, 0
                continue
            count = min(len(data), begin + size - at)
            block[at - begin : at - begin + count] = data[:count]
            data, at = data[count:], at + count
            filled = at - begin
        if filled == size:
            yield block
            block, begin, filled = np.zeros(size, np.float32), begin + size, 0
    if filled:
        yield block[:filled]


def _resampler() -> AudioResampler:
    # Without the limit swresample mixes to float without scaling: stereo comes out 3 dB louder and may exceed 1.
    return AudioResampler("flt", "mono", SAMPLE_RATE, options={"rematrix_maxval": "1.0"})


class _Track:
    """One decoding pass over the sound: pieces of 16 kHz mono and their places, counted from ``start_s``."""

    def __init__(self, info: MediaInfo, start_s: float, end_s: float | None, stats: DecodeStats) -> None:
        self.info, self.start_s, self.stats = info, start_s, stats
        self.stop = None if end_s is None else round((end_s - start_s) * SAMPLE_RATE)
        self.resampler: AudioResampler | None = None
        self.shape: tuple[Any, ...] = ()
        self.out = 0  # place of the next sample out of the resampler
        self.expected_s = 0.0  # file second at which the next frame should begin

    def pieces(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield ``(place, samples)``, cut to the span; places ascend but may overlap or leave holes."""
        if self.stop is not None and self.stop <= 0:
            return
        for place, samples in self._resampled():
            data, at = samples, place
            if at < 0:
                data, at = data[-at:], 0
            if self.stop is not None:
                data = data[: max(0, self.stop - at)]
            if len(data):
                yield at, data
            if self.stop is not None and place >= self.stop:
                break
        if not self.stats.frames_decoded and self.stats.error_count:
            raise MediaError(f"{self.info.path}: the sound cannot be decoded ({self.stats.errors[0]})")

    def _resampled(self) -> Iterator[tuple[int, np.ndarray]]:
        for second, frame in self._frames():
            shape = (frame.format.name, frame.layout.name, frame.sample_rate)
            if self.resampler is None or shape != self.shape or abs(second - self.expected_s) > TOLERANCE_S:
                yield from self._collect(None)
                self.resampler, self.shape = _resampler(), shape
                self.out = round((second - self.start_s) * SAMPLE_RATE)
                self.expected_s = second
            self.expected_s += frame.samples / frame.sample_rate
            yield from self._collect(frame)
        yield from self._collect(None)  # the resampler keeps the last samples until told that no more come

    def _collect(self, frame: Any) -> Iterator[tuple[int, np.ndarray]]:
        if self.resampler is None:
            return
        try:
            parts = self.resampler.resample(frame)
        except FAILURES as error:
            self.stats.fail("resampling", error)
            self.resampler = None
            return
        for part in parts:
            if part is None:
                continue
            samples = part.to_ndarray().reshape(-1).astype(np.float32, copy=False)
            yield self.out, samples
            self.out += len(samples)

    def _frames(self) -> Iterator[tuple[float, Any]]:
        """Yield ``(file second, decoded frame)`` from the run-up before the span to its end."""
        audio, span = self.info.audio, self.info.audio_span
        if audio is None or span is None:
            return
        origin, shifts, offset = self.info.origin_s, dict(audio.shifts), 0
        running_s: float | None = None  # where frames without a time stamp stand
        with open_media(self.info.path) as container:
            stream = container.streams[audio.index]
            base = float(stream.time_base)
            from_s = self.start_s - RUN_UP_S
            until_s = np.inf if self.stop is None else self.start_s + self.stop / SAMPLE_RATE + RUN_UP_S

            def decoded() -> Iterator[Any]:
                nonlocal offset
                for place, packet in enumerate(packets(container, [stream], self.stats)):
                    offset += shifts.get(place, 0)
                    if packet.pts is not None:
                        if offset:
                            packet.pts += offset
                        second = packet.pts * base - origin
                        if second + (packet.duration or 0) * base < from_s:
                            continue
                        if second > until_s:
                            break
                    self.stats.packets_sent += 1
                    try:
                        yield from packet.decode()
                    except FAILURES as error:
                        self.stats.fail("decoding sound", error)
                try:
                    yield from stream.decode(None)
                except FAILURES as error:
                    self.stats.fail("decoding sound", error)

            for frame in decoded():
                if not frame.samples or not frame.sample_rate:
                    continue
                self.stats.frames_decoded += 1
                if frame.pts is not None:
                    stamped_s = float(frame.pts * (frame.time_base or stream.time_base)) - origin
                    if not span[0] - BEYOND_S <= stamped_s <= span[1] + BEYOND_S:
                        self.stats.fail("decoding sound", ValueError(f"a frame is stamped {stamped_s:.0f} s"))
                        continue
                    running_s = stamped_s
                elif running_s is None:
                    running_s = 0.0
                yield running_s, frame
                running_s += frame.samples / frame.sample_rate


# --- loudness -------------------------------------------------------------------------------------------------------


def integrated_loudness(samples: np.ndarray, sample_rate: int = SAMPLE_RATE) -> float:
    """Return the integrated loudness in LUFS (ITU-R BS.1770-4, torchaudio), -inf for silence.

    Parameters
    ----------
    samples : (n,) float32
        Mono. Sounds shorter than the standard's block of 0.4 s are repeated to fill it.
    sample_rate : int
        Samples per second.
    """
    import torch
    from torchaudio.functional import loudness

    wave = np.asarray(samples, np.float32)
    if not len(wave) or not np.abs(wave).max() > 0:
        return float("-inf")
    least = int(0.4 * sample_rate) + 1
    if len(wave) < least:
        wave = np.tile(wave, -(-least // len(wave)))
    value = float(loudness(torch.from_numpy(wave)[None], sample_rate))
    return value if np.isfinite(value) else float("-inf")


def match_loudness(
    samples: np.ndarray, target_lufs: float, *, peak: float = 0.99, sample_rate: int = SAMPLE_RATE
) -> np.ndarray:
    """Return the samples (n,) float32 brought to a loudness, or as near as the peak limit lets them come.

    Silence stays silence.
    """
    now = integrated_loudness(samples, sample_rate)
    wave = np.asarray(samples, np.float32)
    if now == float("-inf"):
        return wave.copy()
    gain = 10 ** ((target_lufs - now) / 20)
    return (wave * min(gain, peak / float(np.abs(wave).max()))).astype(np.float32)
