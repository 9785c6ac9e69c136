"""From a file to encoded tokens: sample, decode and encode in pieces of bounded size, on one clock.

Knows media and models, nothing of methods and questions. What the file holds and what was used of it come out beside
the tokens, with a warning for everything that was cut or could not be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from omnicli.errors import MediaError
from omnicli.media import audio, sampling, video
from omnicli.media.container import DecodeStats
from omnicli.models.base import EncodedAudio, EncodedClip, EncodedVideo, OmniModel
from omnicli.types import MediaUsed

if TYPE_CHECKING:
    from omnicli.config import MediaConfig
    from omnicli.media.probe import MediaInfo
    from omnicli.timing import StageClock

Progress = Callable[[str, float, "float | None"], None]
"""Called with a stage's name, how much is done and of how much: media seconds, or tokens inside the LLM."""

_CUT_S = 0.5  # a difference below half a second is rounding at the borders of frames, not a cut
_T = TypeVar("_T")


@dataclass(frozen=True)
class Encoded:
    """An encoded clip, what was used of the file, and what the user must know about it."""

    clip: EncodedClip
    used: MediaUsed
    warnings: tuple[str, ...]


def encode(
    info: MediaInfo,
    settings: MediaConfig,
    model: OmniModel,
    *,
    capture: frozenset[str],
    clock: StageClock,
    progress: Progress,
) -> Encoded:
    """Decode and encode the chosen span of a file.

    Parameters
    ----------
    info : MediaInfo
        From `probe`.
    capture : frozenset of str
        What the encoders shall compute besides (`omnicli.models.base.CAPTURES`).

    Raises
    ------
    MediaError
        Nothing to encode in the span, or sound was insisted on and there is none.
    """
    start = settings.start or 0.0
    end = info.duration_s if settings.end is None else min(settings.end, info.duration_s)
    if start >= info.duration_s:
        raise MediaError(f"{info.path}: lasts {info.duration_s:.2f} s; there is nothing from {start:g} s on")
    job = _Job(info, settings, model, capture, (start, end), clock, progress)
    seen, heard = DecodeStats(), DecodeStats()
    times, pieces, size = _pictures(job, seen)
    sounds: list[EncodedAudio] = []
    if settings.audio != "off":
        sounds = _sound(job, heard)
        if not sounds and (settings.require_audio or settings.audio == "on"):
            raise MediaError(
                f"{info.path}: {'no sound track' if info.audio is None else 'the sound track gives no sound'}; "
                "drop --require-audio or --audio on to answer from pictures only"
            )
    if not pieces and not sounds:
        raise MediaError(f"{info.path}: no picture and no sound between {start:g} s and {end:g} s")
    laid_out = times if settings.clock == "true" else [start + i / model.nominal_fps for i in range(len(times))]
    with clock.stage("preprocess"):
        clip = model.assemble(pieces, laid_out, sounds, start, end)
    used = _used(job, times, sounds, size)
    return Encoded(clip, used, tuple(_warnings(info, settings, used, seen, heard)))


@dataclass(frozen=True)
class _Job:
    """What both senses of one run share; ``span`` is (start, end) in seconds of the file."""

    info: MediaInfo
    settings: MediaConfig
    model: OmniModel
    capture: frozenset[str]
    span: tuple[float, float]
    clock: StageClock
    progress: Progress


def _pictures(job: _Job, stats: DecodeStats) -> tuple[list[float], list[EncodedVideo], tuple[int, int]]:
    """Return the true times of the frames used, their encoded pieces, and the frame size (height, width)."""
    info, settings, model, span = job.info, job.settings, job.model, job.span
    if info.video is None or info.frames is None or span[0] >= info.frames.end_s:
        return [], [], (0, 0)
    wanted = sampling.frame_times(info.frames.time_s, settings.fps, settings.max_frames, *span)
    size = model.frame_size(
        info.video.width,
        info.video.height,
        len(wanted),
        min_pixels=settings.min_pixels,
        max_pixels=settings.max_pixels,
    )
    frames = timed(video.read_frames(info, wanted, *size, stats=stats), job.clock, "decode_video")
    times: list[float] = []
    pieces: list[EncodedVideo] = []
    for batch in batched(frames, model.video_batch):
        times += [time_s for time_s, _ in batch]
        job.progress("decode_video", times[-1] - span[0], span[1] - span[0])
        with job.clock.stage("encode_video"):
            pieces.append(model.encode_video(torch.from_numpy(np.stack([rgb for _, rgb in batch])), job.capture))
        job.progress("encode_video", times[-1] - span[0], span[1] - span[0])
    return times, pieces, size


def _sound(job: _Job, stats: DecodeStats) -> list[EncodedAudio]:
    """Return the encoded pieces of the span's sound; two passes where the mel's maximum shall be exact."""
    info, model, clock, span = job.info, job.model, job.clock, job.span
    if info.audio is None or info.audio_span is None or span[0] >= info.audio_span[1]:
        return []

    if job.settings.audio_limit is not None:
        span = (span[0], min(span[1], span[0] + job.settings.audio_limit))

    def blocks(stats: DecodeStats | None) -> Iterator[np.ndarray]:
        return timed(audio.read_audio(info, *span, stats=stats), clock, "decode_audio")

    peak = None
    if job.settings.exact_mel:
        with clock.stage("preprocess"):
            peak = model.measure_log_mel_max(blocks(None))
    encoder = model.audio_encoder(peak, job.capture)
    pieces: list[EncodedAudio] = []
    done = 0.0
    for block in blocks(stats):
        with clock.stage("encode_audio"):
            pieces += encoder.feed(block)
        done += len(block) / audio.SAMPLE_RATE
        job.progress("encode_audio", done, span[1] - span[0])
    with clock.stage("encode_audio"):
        return pieces + encoder.finish()


def timed(items: Iterable[_T], clock: StageClock, stage: str) -> Iterator[_T]:
    """Yield ``items``, counting the time that making them takes under ``stage``."""
    source = iter(items)
    while True:
        with clock.stage(stage):
            try:
                item = next(source)
            except StopIteration:
                return
        yield item


def batched(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Yield ``items`` in lists of ``size``, the last one shorter."""
    batch: list[_T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _used(job: _Job, times: list[float], sounds: list[EncodedAudio], size: tuple[int, int]) -> MediaUsed:
    info, span = job.info, job.span
    seconds = 0.0
    if times and info.frames is not None:
        seconds = min(span[1], info.frames.end_s) - min(times[0], span[1])
    tokens = sum(piece.features.shape[0] for piece in sounds)
    last = span[0] + tokens / job.model.audio_tokens_per_s  # the last token of a sound may reach beyond it
    heard_to = min(last, span[1], info.audio_span[1]) if info.audio_span else 0.0
    heard = max(0.0, heard_to - max(span[0], info.audio_span[0])) if tokens and info.audio_span else 0.0
    return MediaUsed(
        video_s=round(seconds, 3),
        audio_s=round(heard, 3),
        video_present_s=round(info.video_present_s, 3),
        audio_present_s=round(info.audio_present_s, 3),
        frames=len(times),
        fps=round(len(times) / seconds, 4) if seconds > 0 else 0.0,
        width=size[1],
        height=size[0],
    )


def _warnings(
    info: MediaInfo, settings: MediaConfig, used: MediaUsed, seen: DecodeStats, heard: DecodeStats
) -> Iterator[str]:
    name = info.path.name
    for problem in info.problems:
        yield f"{name}: {problem}"
    if info.audio is None and settings.audio != "off":
        yield f"{name}: no sound track; answered from pictures only (--require-audio to stop instead)"
    elif info.audio is not None and settings.audio == "off":
        yield f"{name}: the sound was not used (--audio off)"
    if info.video is None:
        yield f"{name}: no pictures; answered from the sound only"
    for what, got, present in (
        ("video", used.video_s, used.video_present_s),
        ("audio", used.audio_s, used.audio_present_s if settings.audio != "off" else 0.0),
    ):
        if present - got > _CUT_S:
            yield f"{name}: {what} used {got:.1f} of {present:.1f} s"
    for what, stats in (("pictures", seen), ("sound", heard)):
        if stats.error_count:
            yield f"{name}: {stats.error_count} packets of the {what} could not be decoded ({stats.errors[0]})"
    if seen.missing:
        yield f"{name}: {seen.missing} chosen frames are missing in the file"
