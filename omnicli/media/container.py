"""Opening media files and saying in one line why one cannot be read; what decoding counts and reports.

Every call into FFmpeg may fail on damaged input, and not only with FFmpeg's own exceptions; the tuple `FAILURES` is
what callers catch around demuxing and decoding. Nothing here chooses streams or knows of time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import av.error
from av.codec.hwaccel import HWAccel
from av.stream import Discard

from omnicli.errors import MediaError

# UnicodeError: tags that are not UTF-8. LookupError: a stream that turns up in mid-file. The
# others: PyAV itself on impossible values.
FAILURES = (av.error.FFmpegError, OSError, UnicodeError, ValueError, LookupError, OverflowError, RuntimeError)

# FFmpeg reads any text as "ANSI art" once it is named .txt.
NOT_MEDIA = {"tty", "lrc", "srt", "webvtt", "ass", "ffmetadata"}

_KEPT_MESSAGES = 20


@dataclass
class DecodeStats:
    """What one decoding pass did. Pass it to `read_frames` or `read_audio` and look at it afterwards.

    Attributes
    ----------
    packets_sent, frames_decoded, frames_yielded : int
        Packets given to the decoder, frames that came out of it, frames handed on.
    error_count : int
        Packets that could not be read or decoded. ``errors`` keeps the first messages.
    missing : int
        Chosen frames that the file does not yield.
    fell_back : bool
        Frames could not be skipped safely, so that everything was decoded from ``fallback_reason`` on.
    hardware : bool
        NVDEC made the frames, at least up to a fallback.
    """

    packets_sent: int = 0
    frames_decoded: int = 0
    frames_yielded: int = 0
    error_count: int = 0
    errors: list[str] = field(default_factory=list)
    missing: int = 0
    fell_back: bool = False
    fallback_reason: str = ""
    hardware: bool = False

    @classmethod
    def total(cls, parts: Iterable[DecodeStats]) -> DecodeStats:
        """Return the sums of several passes; the first messages and the first reason to fall back."""
        out = cls()
        for part in parts:
            for name in ("packets_sent", "frames_decoded", "frames_yielded", "error_count", "missing"):
                setattr(out, name, getattr(out, name) + getattr(part, name))
            out.errors = [*out.errors, *part.errors][:_KEPT_MESSAGES]
            out.fell_back |= part.fell_back
            out.hardware |= part.hardware
            out.fallback_reason = out.fallback_reason or part.fallback_reason
        return out

    def fail(self, what: str, error: BaseException) -> None:
        """Count one failure; the first few messages are kept."""
        self.error_count += 1
        if len(self.errors) < _KEPT_MESSAGES:
            self.errors.append(f"{what}: {one_line(error)}")


def one_line(error: BaseException) -> str:
    """Return the message of an FFmpeg error without number, file name and line breaks."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


def cores() -> int:
    """Return the processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_for(height: int, width: int) -> int:
    """Return how many threads one decoder gets: one per core, fewer for large pictures.

    Each frame thread keeps its own pictures: 8 threads at 1080p hold about 100 MB, at 4K they would hold 400.
    """
    return max(1, min(cores(), 8 if height * width <= 1920 * 1088 else 3))


@lru_cache
def nvdec(codec: str) -> bool:
    """Tell whether this machine's graphics card decodes a codec (by FFmpeg's name)."""
    try:
        _hardware().create(av.Codec(codec, "r"))
    except (*FAILURES, av.codec.codec.UnknownCodecError):
        return False
    return True


def _hardware() -> HWAccel:
    # The primary context is the one that torch uses: another one would cost hundreds of megabytes.
    return HWAccel("cuda", allow_software_fallback=False, options={"primary_ctx": "1"})


@contextmanager
def open_media(path: Path, hardware: bool = False) -> Iterator[Any]:
    """Open a local file for reading; yields the container. ``hardware``: its pictures are decoded by NVDEC.

    Raises
    ------
    MediaError
        If the file is missing or is no media file. Errors inside the body pass through.
    """
    if not path.exists():
        raise MediaError(f"{path}: no such file")
    if not path.is_file():
        raise MediaError(f"{path}: not a file")
    try:
        # "file" only: a playlist must not reach out into the network. The absolute path keeps "a:b.mp4" a file name.
        container = av.open(
            os.path.abspath(path),
            container_options={"protocol_whitelist": "file"},
            metadata_errors="replace",
            hwaccel=_hardware() if hardware else None,
        )
    except FAILURES as error:
        raise MediaError(f"{path}: {_why_unreadable(path, error)}") from error
    try:
        if container.format.name in NOT_MEDIA:
            raise MediaError(f"{path}: this is text, not a video or sound file")
        yield container
    finally:
        container.close()


def packets(container: Any, streams: list[Any], stats: DecodeStats, what: str = "reading") -> Iterator[Any]:
    """Yield the packets of some streams in file order, without the empty ones; the other streams are not read.

    Read errors are counted and reading goes on behind them as long as something still comes.
    """
    wanted = {s.index for s in streams}
    for stream in container.streams:
        if stream.index not in wanted:
            stream.discard = Discard.all
    barren = 0
    while barren < 50:
        try:
            for packet in container.demux(streams):
                if packet.size:  # an empty packet would tell the decoder that the film is over
                    barren = 0
                    yield packet
            return
        except FAILURES as error:
            stats.fail(what, error)
            barren += 1


def _why_unreadable(path: Path, error: BaseException) -> str:
    """Say what is wrong with a file that FFmpeg does not open."""
    try:
        size = path.stat().st_size
        if size == 0:
            return "the file is empty (0 bytes)"
        with open(path, "rb") as file:
            head = file.read(4096)
            boxes = _top_level_boxes(file, size) if head[4:8] == b"ftyp" else []
    except OSError as failure:
        return f"cannot be read ({one_line(failure)})"
    if boxes and b"moov" not in boxes:
        return "the index (moov) is missing: the recording or the download was cut off"
    if not head.strip(b"\0"):
        return "the file holds only zero bytes"
    if _is_text(head):
        return "this is text, not a video or sound file"
    return f"not a readable video or sound file ({one_line(error)})"


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8", errors="strict" if len(head) < 4096 else "ignore")
    except UnicodeDecodeError:
        return False
    return bool(text) and all(c.isprintable() or c in "\n\r\t\f" for c in text)


def _top_level_boxes(file: Any, size: int) -> list[bytes]:
    """Return the names of an mp4 file's outermost boxes, as far as their lengths can be followed."""
    names: list[bytes] = []
    at = 0
    while at + 8 <= size and len(names) < 1000:
        file.seek(at)
        header = file.read(16)
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        names.append(header[4:8])
        if length < 8:  # 0: to the end of the file
            break
        at += length
    return names
