"""Decoding cut into streams of pieces, which whoever can read the film may carry out and hand on.

A stream says what is to be decoded and how its pieces are cut; it can be sent to another process. A `Decoder` is where
streams are carried out. Nothing here knows of models or of what pieces are for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from omnicli.errors import MediaError
from omnicli.media import audio, video
from omnicli.media.container import DecodeStats

if TYPE_CHECKING:
    from omnicli.media.probe import MediaInfo

_T = TypeVar("_T")


@dataclass(frozen=True)
class Piece:
    """Frames (n, H, W, 3) uint8 with their true ``times`` in seconds, or sound (n,) float32 at 16 kHz."""

    data: np.ndarray
    times: tuple[float, ...] = ()


@dataclass(frozen=True)
class VideoPieces:
    """Chosen frames in batches; for ``times`` to ``device`` see `video.read_frames`, ``batch``: frames in a piece."""

    info: MediaInfo
    times: np.ndarray
    height: int
    width: int
    batch: int
    threads: int = 0
    hardware: bool = False
    device: str = "cpu"

    def read(self) -> Iterator[Piece | DecodeStats]:
        """Yield the pieces and at last, even before an error, what decoding met with.

        Raises
        ------
        MediaError
            Not one of the frames can be decoded.
        """
        stats = DecodeStats()
        frames = video.read_frames(
            self.info,
            self.times,
            self.height,
            self.width,
            stats=stats,
            threads=self.threads,
            hardware=self.hardware,
            device=self.device,
        )
        try:
            for batch in batched(frames, self.batch):
                yield Piece(np.stack([rgb for _, rgb in batch]), tuple(time_s for time_s, _ in batch))
        except MediaError:
            yield stats
            raise
        yield stats


@dataclass(frozen=True)
class AudioPieces:
    """The sound between two seconds of the file in blocks; see `audio.read_audio`."""

    info: MediaInfo
    start_s: float
    end_s: float

    def read(self) -> Iterator[Piece | DecodeStats]:
        """Yield the pieces and at last what decoding met with.

        Raises
        ------
        MediaError
            None of the sound can be decoded.
        """
        stats = DecodeStats()
        for block in audio.read_audio(self.info, self.start_s, self.end_s, stats=stats):
            yield Piece(block)
        yield stats


Stream = VideoPieces | AudioPieces


class Decoder(Protocol):
    """Where streams are carried out. The pieces are the same everywhere."""

    @property
    def hardware(self) -> bool:
        """Whether the model's device is at hand, to scale frames and, if it is a graphics card, to decode them."""

    def stretches(self, batches: int) -> int:
        """Return in how many stretches at a time pictures of so many batches are best decoded."""

    def threads(self, info: MediaInfo, stretches: int) -> int:
        """Return how many threads each of the decoders of so many stretches gets."""

    def read(self, stream: Stream) -> Iterator[Piece | DecodeStats]:
        """Yield what the stream's own ``read`` yields; raises what it raises."""


class Here:
    """This process."""

    hardware = True

    def stretches(self, batches: int) -> int:
        """See `Decoder`."""
        return video.stretches(batches)

    def threads(self, info: MediaInfo, stretches: int) -> int:
        """See `Decoder`."""
        return video.decoder_threads(info, stretches)

    def read(self, stream: Stream) -> Iterator[Piece | DecodeStats]:
        """See `Decoder`."""
        return stream.read()


HERE = Here()


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
