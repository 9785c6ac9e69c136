"""From a file to encoded tokens: sample, decode and encode in pieces of bounded size, on one clock.

Pictures and sound are decoded in threads of their own, a few pieces ahead of the encoders; on many cores the pictures
in several stretches of the film at a time. What comes out does not depend on which piece was ready first.

Knows media and models, nothing of methods and questions. What the file holds and what was used of it come out beside
the tokens, with a warning for everything that was cut or could not be read.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from omnicli.ahead import ahead
from omnicli.errors import MediaError
from omnicli.media import audio, sampling, video
from omnicli.media.container import DecodeStats
from omnicli.models.base import EncodedAudio, EncodedClip, EncodedVideo, OmniModel
from omnicli.types import MediaUsed

if TYPE_CHECKING:
    from omnicli.media.probe import MediaInfo
    from omnicli.settings import MediaConfig
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
    with clock.stage("load"):
        model.work("encoders")
    pictures, sound = _Pictures(job), _Sound(job)
    _run(job, [pictures, sound])
    if pictures.torn:
        pictures = _Pictures(job, stretches=1)
        _run(job, [pictures])
    times, pieces, sounds = pictures.times, pictures.pieces, sound.pieces
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
    used = _used(job, times, sounds, pictures.size)
    return Encoded(clip, used, tuple(_warnings(info, settings, used, pictures.stats, sound.stats)))


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


def _run(job: _Job, senses: list[_Pictures | _Sound]) -> None:
    """Decode in threads and encode what is ready, until all is done."""
    sources: list[tuple[_Pictures | _Sound, Iterator[Any]]] = [(s, source) for s in senses for source in s.sources]
    with ahead([source for _, source in sources]) as items:
        while True:
            begin = job.clock.elapsed()
            found = next(items, None)
            if found is None:
                break
            sense: Any = sources[found[0]][0]
            job.clock.waited(sense.decode, job.clock.elapsed() - begin)
            sense.take(found[1])
    for sense in senses:
        sense.finish()


class _Pictures:
    """The frames of a span: ``sources`` decode them in batches, `take` encodes a batch.

    Attributes
    ----------
    times : list of float
        True times of the frames used; complete after `finish`, as is ``pieces``.
    size : (int, int)
        Height and width of a frame.
    """

    decode = "decode_video"

    def __init__(self, job: _Job, stretches: int | None = None) -> None:
        self.job = job
        self.times: list[float] = []
        self.pieces: list[EncodedVideo] = []
        self.size = (0, 0)
        self.sources: list[Iterator[_Batch]] = []
        self._stats: list[DecodeStats] = []
        self._done: dict[int, tuple[list[float], EncodedVideo]] = {}
        self._seen = 0
        info, settings, model, span = job.info, job.settings, job.model, job.span
        if info.video is None or info.frames is None or span[0] >= info.frames.end_s:
            return
        wanted = sampling.frame_times(info.frames.time_s, settings.fps, settings.max_frames, *span)
        self._wanted = len(wanted)
        self.size = model.frame_size(
            info.video.width,
            info.video.height,
            len(wanted),
            min_pixels=settings.min_pixels,
            max_pixels=settings.max_pixels,
        )
        batches = -(-len(wanted) // model.video_batch)
        stretches = video.stretches(batches) if stretches is None else stretches
        threads = video.decoder_threads(info, stretches)
        hardware = settings.decoder == "auto" and model.device.type == "cuda"
        for first, end in itertools.pairwise(round(i * batches / stretches) for i in range(stretches + 1)):
            self._stats.append(DecodeStats())
            part = wanted[first * model.video_batch : end * model.video_batch]
            frames = video.read_frames(
                info, part, *self.size, stats=self._stats[-1], threads=threads, hardware=hardware
            )
            self.sources.append(self._read(timed(frames, job.clock, self.decode), first))

    def _read(self, frames: Iterator[tuple[float, np.ndarray]], first: int) -> Iterator[_Batch]:
        try:
            for place, batch in enumerate(batched(frames, self.job.model.video_batch), start=first):
                rgb = torch.from_numpy(np.stack([rgb for _, rgb in batch]))
                yield _Batch(place, [time_s for time_s, _ in batch], rgb)
        except MediaError:  # not one frame of this stretch: a single reading finds what there is
            if len(self.sources) == 1:
                raise

    def take(self, batch: _Batch) -> None:
        """Encode a batch."""
        job = self.job
        with job.clock.stage("encode_video"):
            self._done[batch.place] = (batch.times, job.model.encode_video(batch.frames, job.capture))
        self._seen += len(batch.times)
        done_s = self._seen / self._wanted * (job.span[1] - job.span[0])
        for stage in (self.decode, "encode_video"):
            job.progress(stage, done_s, job.span[1] - job.span[0])

    def finish(self) -> None:
        """Put what was encoded into the film's order."""
        done = [self._done[place] for place in sorted(self._done)]
        self.times = [time_s for times, _ in done for time_s in times]
        self.pieces = [piece for _, piece in done]

    @property
    def stats(self) -> DecodeStats:
        """What decoding met with, in all."""
        return DecodeStats.total(self._stats)

    @property
    def torn(self) -> bool:
        """Whether a single reading may see something else: damage spreads, and a missing frame shifts those behind."""
        return len(self.sources) > 1 and bool(self.stats.missing or self.stats.fell_back or self.stats.error_count)


@dataclass(frozen=True)
class _Batch:
    """Frames (n, H, W, 3) uint8, their true times, and which batch of the film they are."""

    place: int
    times: list[float]
    frames: torch.Tensor


class _Sound:
    """The sound of a span: the source decodes it in blocks, `take` encodes them. ``pieces``: complete after `finish`.

    Where the mel's maximum shall be exact, the source goes through the sound once more before its first block.
    """

    decode = "decode_audio"

    def __init__(self, job: _Job) -> None:
        self.job, self.stats = job, DecodeStats()
        self.pieces: list[EncodedAudio] = []
        self.sources: list[Iterator[np.ndarray]] = []
        self._encoder: Any = None
        self._peak: float | None = None
        self._done = 0.0
        info, span, limit = job.info, job.span, job.settings.audio_limit
        if job.settings.audio == "off" or info.audio is None or info.audio_span is None:
            return
        if span[0] < info.audio_span[1]:
            self._span = span if limit is None else (span[0], min(span[1], span[0] + limit))
            self.sources = [self._read()]

    def _blocks(self, stats: DecodeStats | None) -> Iterator[np.ndarray]:
        return timed(audio.read_audio(self.job.info, *self._span, stats=stats), self.job.clock, self.decode)

    def _read(self) -> Iterator[np.ndarray]:
        if self.job.settings.exact_mel:
            with self.job.clock.stage("preprocess"):
                self._peak = self.job.model.measure_log_mel_max(self._blocks(None))
        yield from self._blocks(self.stats)

    def take(self, block: np.ndarray) -> None:
        """Encode a block."""
        with self.job.clock.stage("encode_audio"):
            if self._encoder is None:
                self._encoder = self.job.model.audio_encoder(self._peak, self.job.capture)
            self.pieces += self._encoder.feed(block)
        self._done += len(block) / audio.SAMPLE_RATE
        self.job.progress("encode_audio", self._done, self._span[1] - self._span[0])

    def finish(self) -> None:
        """Encode what is left."""
        if self._encoder is not None:
            with self.job.clock.stage("encode_audio"):
                self.pieces += self._encoder.finish()


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
