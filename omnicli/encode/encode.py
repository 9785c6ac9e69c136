"""From a file to encoded tokens: sample, decode and encode in pieces of bounded size, on one clock.

Pictures and sound are decoded beside the encoders, a few pieces ahead of them; on many cores the pictures in several
stretches of the film at a time. Where that happens is a `Decoder`'s business. What comes out does not depend on it, nor
on which piece was ready first.

Knows media and models, nothing of methods and questions. What the file holds and what was used of it come out beside
the tokens, with a warning for everything that was cut or could not be read.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from omnicli.encode.prefetch import prefetch
from omnicli.errors import MediaError
from omnicli.media import sampling
from omnicli.media.audio import SAMPLE_RATE
from omnicli.media.container import DecodeStats
from omnicli.media.pieces import AudioPieces, Decoder, Piece, VideoPieces
from omnicli.models.base import OmniModel
from omnicli.models.parts import EncodedAudio, EncodedClip, EncodedVideo
from omnicli.types import MediaUsed

if TYPE_CHECKING:
    import numpy as np

    from omnicli.config.settings import MediaConfig
    from omnicli.media.probe import MediaInfo
    from omnicli.utils.context import RunContext
    from omnicli.utils.timing import StageClock

_CUT_S = 0.5  # a difference below half a second is rounding at the borders of frames, not a cut
_T = TypeVar("_T")


@dataclass(frozen=True)
class Encoded:
    """An encoded clip, what was used of the file, and what the user must know about it."""

    clip: EncodedClip
    used: MediaUsed
    warnings: tuple[str, ...]


class DecodeJob:
    """A film on its way to the encoders. Decoding begins when this is made; use it as a context manager or `close` it.

    Parameters
    ----------
    info : MediaInfo
        From `probe`.
    context : RunContext
        Its clock takes what threads do as busy time.
    decoder : Decoder
        Where it is decoded.

    Raises
    ------
    MediaError
        Nothing is in the chosen span.
    """

    def __init__(
        self, info: MediaInfo, settings: MediaConfig, model: OmniModel, context: RunContext, decoder: Decoder
    ) -> None:
        start = settings.start or 0.0
        end = info.duration_s if settings.end is None else min(settings.end, info.duration_s)
        if start >= info.duration_s:
            raise MediaError(f"{info.path}: lasts {info.duration_s:.2f} s; there is nothing from {start:g} s on")
        self.film = _Film(info, settings, model, (start, end), context, decoder)
        self.video, self.audio = _Video(self.film), _Audio(self.film)
        self._stack = ExitStack()
        self._begin([self.video, self.audio])

    def __enter__(self) -> DecodeJob:
        return self

    def __exit__(self, *rest: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop decoding, wherever it is."""
        self._stack.close()

    def again(self) -> None:
        """Read the video from the beginning, in one go."""
        self.close()
        self.video = _Video(self.film, stretches=1)
        self._begin([self.video])

    def _begin(self, tracks: list[_Video | _Audio]) -> None:
        self._sources: list[tuple[Any, Iterator[Any]]] = [
            (track, source) for track in tracks for source in track.sources
        ]
        self._items = self._stack.enter_context(prefetch([source for _, source in self._sources]))

    def pieces(self) -> Iterator[tuple[Any, Any]]:
        """Yield a track and a piece for its `take`, as they become ready."""
        clock = self.film.context.clock
        while True:
            begin = clock.elapsed()
            found = next(self._items, None)
            if found is None:
                return
            track = self._sources[found[0]][0]
            clock.waited(track.stage, clock.elapsed() - begin)
            yield track, found[1]


def encode(decoding: DecodeJob, capture: frozenset[str]) -> Encoded:
    """Encode a film as it is decoded, and close its decoding.

    Parameters
    ----------
    capture : frozenset of str
        What the encoders shall compute besides (`omnicli.models.parts.CAPTURES`).

    Raises
    ------
    MediaError
        Nothing to encode in the span, or sound was insisted on and there is none.
    """
    film, audio = decoding.film, decoding.audio
    info, settings, model, clock, (start, end) = film.info, film.settings, film.model, film.context.clock, film.span
    with decoding:
        with clock.stage("load"):
            model.activate("encoders")
        _run(decoding, [decoding.video, audio], capture)
        if decoding.video.torn:
            decoding.again()
            _run(decoding, [decoding.video], capture)
    video, times = decoding.video, decoding.video.times
    if not audio.pieces and (settings.require_audio or settings.audio == "on"):
        raise MediaError(
            f"{info.path}: {'no sound track' if info.audio is None else 'the sound track gives no sound'}; "
            "drop --require-audio or --audio on to answer from pictures only"
        )
    if not video.pieces and not audio.pieces:
        raise MediaError(f"{info.path}: no picture and no sound between {start:g} s and {end:g} s")
    laid_out = times if settings.clock == "true" else [start + i / model.nominal_fps for i in range(len(times))]
    with clock.stage("preprocess"):
        clip = model.assemble(video.pieces, laid_out, audio.pieces, start, end)
    used = _used(film, video, audio)
    return Encoded(clip, used, tuple(_warnings(info, settings, used, video.stats, audio.stats)))


@dataclass(frozen=True)
class _Film:
    """What both tracks of one film share; ``span`` is (start, end) in seconds of the file."""

    info: MediaInfo
    settings: MediaConfig
    model: OmniModel
    span: tuple[float, float]
    context: RunContext
    decoder: Decoder


def _run(decoding: DecodeJob, tracks: list[_Video | _Audio], capture: frozenset[str]) -> None:
    """Encode what is ready, until all is done."""
    for track, piece in decoding.pieces():
        track.take(piece, capture)
    for track in tracks:
        track.finish()


class _Video:
    """The frames of a span: ``sources`` decode them in batches, `take` encodes a batch.

    Attributes
    ----------
    times : list of float
        True times of the frames used; complete after `finish`, as is ``pieces``.
    size : (int, int)
        Height and width of a frame.
    """

    stage = "decode_video"

    def __init__(self, film: _Film, stretches: int | None = None) -> None:
        self.film = film
        self.times: list[float] = []
        self.pieces: list[EncodedVideo] = []
        self.size = (0, 0)
        self.sources: list[Iterator[_Batch]] = []
        self._stats: list[DecodeStats] = []
        self._done: dict[int, tuple[list[float], EncodedVideo]] = {}
        self._encoded = 0
        info, settings, model, span, decoder = film.info, film.settings, film.model, film.span, film.decoder
        if info.video is None or info.frames is None or span[0] >= info.frames.end_s:
            return
        wanted = sampling.wanted_times(info.frames, settings, *span)
        self._wanted = len(wanted)
        self.size = model.frame_size(
            info.video.width,
            info.video.height,
            len(wanted),
            **sampling.pixel_bounds(settings, len(wanted)),
        )
        batches = -(-len(wanted) // model.video_batch)
        stretches = decoder.stretches(batches) if stretches is None else stretches
        threads = decoder.threads(info, stretches)
        device = str(model.device) if decoder.hardware else "cpu"
        hardware = settings.decoder == "auto" and device.startswith("cuda")
        for first, end in itertools.pairwise(round(i * batches / stretches) for i in range(stretches + 1)):
            part = wanted[first * model.video_batch : end * model.video_batch]
            stream = VideoPieces(info, part, *self.size, model.video_batch, threads, hardware, device)
            self.sources.append(self._read(stream, first))

    def _read(self, stream: VideoPieces, first: int) -> Iterator[_Batch]:
        place = itertools.count(first)
        try:
            for piece in timed(self.film.decoder.read(stream), self.film.context.clock, self.stage):
                if isinstance(piece, Piece):
                    yield _Batch(next(place), list(piece.times), torch.from_numpy(piece.data))
                else:
                    self._stats.append(piece)
        except MediaError:  # not one frame of this stretch: a single reading finds what there is
            if len(self.sources) == 1:
                raise

    def take(self, batch: _Batch, capture: frozenset[str]) -> None:
        """Encode a batch."""
        with self.film.context.clock.stage("encode_video"):
            self._done[batch.place] = (batch.times, self.film.model.encode_video(batch.frames, capture))
        self._encoded += len(batch.times)
        whole_s = self.film.span[1] - self.film.span[0]
        for stage in (self.stage, "encode_video"):
            self.film.context.progress(stage, self._encoded / self._wanted * whole_s, whole_s)

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


class _Audio:
    """The sound of a span: the source decodes it in blocks, `take` encodes them. ``pieces``: complete after `finish`.

    Where the mel's maximum shall be exact, the source goes through the sound once more before its first block.
    """

    stage = "decode_audio"

    def __init__(self, film: _Film) -> None:
        self.film, self.stats = film, DecodeStats()
        self.pieces: list[EncodedAudio] = []
        self.sources: list[Iterator[np.ndarray]] = []
        self._encoder: Any = None
        self._peak: float | None = None
        self._done = 0.0
        info, span, limit = film.info, film.span, film.settings.audio_limit
        if film.settings.audio == "off" or info.audio is None or info.audio_span is None:
            return
        if span[0] < info.audio_span[1]:
            self._span = span if limit is None else (span[0], min(span[1], span[0] + limit))
            self.sources = [self._read()]

    def _blocks(self) -> Iterator[np.ndarray]:
        stream = AudioPieces(self.film.info, *self._span)
        for piece in timed(self.film.decoder.read(stream), self.film.context.clock, self.stage):
            if isinstance(piece, Piece):
                yield piece.data
            else:
                self.stats = piece

    def _read(self) -> Iterator[np.ndarray]:
        if self.film.settings.exact_mel:
            with self.film.context.clock.stage("preprocess"):
                self._peak = self.film.model.measure_log_mel_max(self._blocks())
        yield from self._blocks()

    def take(self, block: np.ndarray, capture: frozenset[str]) -> None:
        """Encode a block."""
        with self.film.context.clock.stage("encode_audio"):
            if self._encoder is None:
                self._encoder = self.film.model.audio_encoder(self._peak, capture)
            self.pieces += self._encoder.feed(block)
        self._done += len(block) / SAMPLE_RATE
        self.film.context.progress("encode_audio", self._done, self._span[1] - self._span[0])

    def finish(self) -> None:
        """Encode what is left."""
        if self._encoder is not None:
            with self.film.context.clock.stage("encode_audio"):
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


def _used(film: _Film, video: _Video, audio: _Audio) -> MediaUsed:
    info, span, times, (height, width) = film.info, film.span, video.times, video.size
    seconds = 0.0
    if times and info.frames is not None:
        seconds = min(span[1], info.frames.end_s) - min(times[0], span[1])
    tokens = sum(piece.features.shape[0] for piece in audio.pieces)
    last = span[0] + tokens / film.model.audio_tokens_per_s  # the last token may reach beyond the sound
    audio_end = min(last, span[1], info.audio_span[1]) if info.audio_span else 0.0
    audio_s = max(0.0, audio_end - max(span[0], info.audio_span[0])) if tokens and info.audio_span else 0.0
    return MediaUsed(
        video_s=round(seconds, 3),
        audio_s=round(audio_s, 3),
        video_present_s=round(info.video_present_s, 3),
        audio_present_s=round(info.audio_present_s, 3),
        frames=len(times),
        fps=round(len(times) / seconds, 4) if seconds > 0 else 0.0,
        width=width,
        height=height,
    )


def _warnings(
    info: MediaInfo, settings: MediaConfig, used: MediaUsed, video: DecodeStats, audio: DecodeStats
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
    for what, stats in (("pictures", video), ("sound", audio)):
        if stats.error_count:
            yield f"{name}: {stats.error_count} packets of the {what} could not be decoded ({stats.errors[0]})"
    if video.missing:
        yield f"{name}: {video.missing} chosen frames are missing in the file"
