"""Decoding chosen frames, the same pictures as a full decode gives, at about half its cost.

Three things are left out ("exact skip"): packets before the first entry that is needed and behind the last chosen
frame of each group of pictures are not sent to the decoder; pictures that no other picture refers to are skipped by
the decoder unless they are chosen; only chosen frames are converted and scaled. Whenever something unexpected
happens (an error, a chosen frame that does not come), the rest is decoded in full from a safe entry on.

Memory does not depend on the film's length. Nothing here knows why these frames were chosen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from omnicli.errors import MediaError
from omnicli.media.container import (
    FAILURES,
    DecodeStats,
    cores,
    nvdec,
    one_line,
    open_media,
    packets,
    threads_for,
)
from omnicli.media.frames import NONE, FrameTable
from omnicli.media.resize import resize

if TYPE_CHECKING:
    from omnicli.media.probe import MediaInfo

__all__ = ["DecodeStats", "FrameTable", "read_frames"]

# How the decoder is told what to leave out, between packets.
_ALL, _REFERENCES_ONLY = "DEFAULT", "NONREF"


def read_frames(
    info: MediaInfo,
    times: np.ndarray,
    height: int,
    width: int,
    *,
    exact_skip: bool = True,
    stats: DecodeStats | None = None,
    threads: int = 0,
    hardware: bool = False,
    device: str | None = None,
) -> Iterator[tuple[float, np.ndarray]]:
    """Decode chosen frames.

    Parameters
    ----------
    info : MediaInfo
    times : (m,) float64
        True times of the frames: ascending members of ``info.frames.time_s`` (see `sampling.frame_times`).
    height, width : int
        Size in pixels as displayed, rotation applied.
    exact_skip : bool
        False decodes every frame from a safe entry on; the pictures are the same.
    stats : DecodeStats, optional
        Filled while the frames are read.
    threads : int
        Decoder threads; 0 for one per core.
    hardware : bool
        Let the graphics card decode (NVDEC) if there is one that can. Whatever it fails at is decoded in software.
    device : str, optional
        Torch device on which frames are scaled as models' image processors do it (`resize`). None: swscale scales
        them (bicubic) while it converts colours; other values, for eyes, and torch need not be imported.

    Yields
    ------
    (time_s, rgb)
        True second in the file, and uint8 (height, width, 3). One per chosen time, in order. Where a chosen frame
        cannot be decoded, the next one that can stands for it with its own time, unless that one is chosen as well:
        then there is one less, counted in ``stats.missing``.

    Raises
    ------
    MediaError
        If the file holds no pictures or not one of the chosen frames can be decoded.
    ValueError
        If a time is no frame's time.
    """
    if info.video is None or info.frames is None:
        raise MediaError(f"{info.path}: the file holds no pictures")
    rows = info.frames.rows(times)
    stats = DecodeStats() if stats is None else stats
    reader = _Reader(info, info.frames, rows, size=(height, width), stats=stats, threads=threads, device=device)
    return reader.read(exact_skip, hardware and nvdec(info.video.codec))


def stretches(batches: int) -> int:
    """Return in how many stretches at a time a film of so many batches of frames is best decoded.

    One decoder uses up to eight cores; each stretch beyond the first reads the file up to its own beginning once more.
    """
    return max(1, min(cores() // 8, 4, batches // 8))


def decoder_threads(info: MediaInfo, stretches: int) -> int:
    """Return how many threads each of the decoders of so many stretches gets."""
    if info.video is None:
        return 1
    return max(1, min(threads_for(info.video.coded_height, info.video.coded_width), cores() // stretches))


class _Fallback(Exception):
    """Frames cannot be skipped safely here."""


class _Reader:
    """The state of one reading: which chosen frame is waited for next."""

    def __init__(
        self,
        info: MediaInfo,
        table: FrameTable,
        rows: np.ndarray,
        *,
        size: tuple[int, int],
        stats: DecodeStats,
        threads: int,
        device: str | None,
    ) -> None:
        self.info, self.table, self.rows, self.stats, self.threads = info, table, rows, stats, threads
        self.device = device
        self.turns = (info.video.rotation if info.video is not None else 0) // 90
        self.height, self.width = size[::-1] if self.turns % 2 else size
        self.scaler = VideoReformatter()
        self.next = 0
        self.last_pts = NONE

    def read(self, exact_skip: bool, hardware: bool) -> Iterator[tuple[float, np.ndarray]]:
        if not len(self.rows):
            return
        try:
            if hardware and exact_skip and self.table.ordered:
                with contextlib.suppress(_Fallback, MediaError):
                    yield from self._run(self._plan(), hardware=True)
            if not self.table.ordered:
                yield from self._by_count()
            elif self.next < len(self.rows):
                if exact_skip:
                    try:
                        yield from self._run(self._plan())
                    except _Fallback as reason:
                        self.stats.fell_back, self.stats.fallback_reason = True, str(reason)
                if self.next < len(self.rows) and (not exact_skip or self.stats.fell_back):
                    yield from self._run(None)
        except FAILURES as error:
            self.stats.fail("decoding", error)
        self.stats.missing += len(self.rows) - self.next
        if not self.stats.frames_yielded:
            why = self.stats.errors[0] if self.stats.errors else f"{self.stats.packets_sent} packets gave no picture"
            raise MediaError(f"{self.info.path}: the video opens but not one chosen frame could be decoded ({why})")

    # --- what to send ---

    def _plan(self) -> tuple[np.ndarray, np.ndarray]:
        """Return two masks (packets,) for the frames still waited for: send this packet; decode its picture even if
        nothing refers to it.

        A chosen frame needs its group of pictures from the entry up to its own packet. A leading picture (shown
        before the entry that precedes it in the file) needs the whole group before as well.
        """
        table, rows = self.table, self.rows[self.next :]
        send, chosen = np.zeros(table.packets, bool), np.zeros(table.packets, bool)
        places = table.packet[rows]
        chosen[places] = True
        group = np.searchsorted(table.entry, places, side="right") - 1
        entry_pts = np.full(table.packets, NONE)
        entry_pts[table.packet] = table.pts
        leading = (table.pts[rows] < entry_pts[table.entry[group]]) & (group > 0)
        last = np.full(len(table.entry), -1)
        np.maximum.at(last, group, places)
        ends = np.append(table.entry[1:], table.packets) - 1
        before = group[leading] - 1
        last[before] = ends[before]
        for g in np.flatnonzero(last >= 0):
            send[table.entry[g] : last[g] + 1] = True
        return send, chosen

    def _start(self) -> int:
        """Return the packet from which a full decode gives the waiting frame right: two entries back."""
        place = self.table.packet[self.rows[self.next]]
        group = int(np.searchsorted(self.table.entry, place, side="right")) - 1
        return int(self.table.entry[max(0, group - 2)])

    # --- decoding ---

    def _run(
        self, plan: tuple[np.ndarray, np.ndarray] | None, hardware: bool = False
    ) -> Iterator[tuple[float, np.ndarray]]:
        """Send packets as planned, or all of them from a safe entry on (``None``), and yield what is waited for."""
        table, last_row = self.table, self.rows[-1]
        start = 0 if plan is not None else self._start()
        # behind the last chosen frame in the file nothing is needed: the flush brings out what is still inside
        stop = int(table.packet[self.rows].max()) + 1 if plan is not None else table.packets
        shifts = dict(table.shifts)
        offset = 0
        with open_media(self.info.path, hardware) as container:
            # What a decoder makes of damage depends on its threads' order; with one it is the same every time.
            stream = self._open(container, 1 if self.stats.fell_back else self.threads)
            self.stats.hardware |= hardware
            context = stream.codec_context
            sparing, sent = False, -1
            for place, packet in enumerate(packets(container, [stream], self.stats)):
                offset += shifts.get(place, 0)
                if place >= stop:
                    break
                if place < start or (plan is not None and not plan[0][place]):
                    continue
                if plan is not None and 0 <= sent < place - 1:
                    # Over a hole like over a seek: an h264 decoder that missed frames may withhold the next ones.
                    yield from self._take(self._flush(stream, True), True)
                    if self.next < len(self.rows) and table.packet[self.rows[self.next]] <= sent:
                        raise _Fallback(f"no picture came for {table.time_s[self.rows[self.next]]:.3f} s")
                    context.flush_buffers()
                sent = place
                if offset and packet.pts is not None:
                    packet.pts += offset
                if plan is not None and sparing == plan[1][place]:
                    sparing = not sparing
                    context.skip_frame = _REFERENCES_ONLY if sparing else _ALL
                yield from self._take(self._decode(packet, plan is not None), plan is not None)
                if self.next >= len(self.rows):
                    return
                if plan is None and self.last_pts > table.pts[last_row]:
                    break
            yield from self._take(self._flush(stream, plan is not None), plan is not None)
            if plan is not None and self.next < len(self.rows):
                raise _Fallback(f"no picture came for {table.time_s[self.rows[self.next]]:.3f} s")

    def _by_count(self) -> Iterator[tuple[float, np.ndarray]]:
        """Yield frames by their place in the decoder's output: the packets carry no time stamps."""
        count = 0
        with open_media(self.info.path) as container:
            stream = self._open(container, self.threads)

            def batches() -> Iterator[list[Any]]:
                for packet in packets(container, [stream], self.stats):
                    yield self._decode(packet, False)
                yield self._flush(stream, False)

            for frames in batches():
                for frame in frames:
                    self.stats.frames_decoded += 1
                    if count == self.rows[self.next]:
                        yield self._finish(frame, int(self.rows[self.next]))
                        self.next += 1
                        if self.next >= len(self.rows):
                            return
                    count += 1

    def _open(self, container: Any, threads: int) -> Any:
        video = self.info.video
        if video is None:
            raise MediaError(f"{self.info.path}: the file holds no pictures")
        stream = container.streams[video.index]
        stream.codec_context.thread_count = threads or decoder_threads(self.info, 1)
        stream.codec_context.thread_type = "AUTO"
        return stream

    def _decode(self, packet: Any, sparing: bool) -> list[Any]:
        self.stats.packets_sent += 1
        try:
            return packet.decode()
        except FAILURES as error:
            if sparing:
                raise _Fallback(one_line(error)) from error
            self.stats.fail("decoding pictures", error)
            return []

    def _flush(self, stream: Any, sparing: bool) -> list[Any]:
        try:
            return stream.decode(None)
        except av.error.EOFError:
            return []
        except FAILURES as error:
            if sparing:
                raise _Fallback(one_line(error)) from error
            self.stats.fail("decoding pictures", error)
            return []

    def _take(self, frames: list[Any], sparing: bool) -> Iterator[tuple[float, np.ndarray]]:
        """Yield those frames that are waited for. ``sparing``: a frame that does not come is a reason to fall back."""
        table, rows = self.table, self.rows
        for frame in frames:
            self.stats.frames_decoded += 1
            pts = frame.pts if frame.pts is not None else frame.dts
            if pts is None or self.next >= len(rows):
                continue
            self.last_pts = max(self.last_pts, pts)
            wanted = table.pts[rows[self.next]]
            if pts < wanted:
                continue
            if sparing and (pts > wanted or frame.is_corrupt):
                what = "came damaged" if frame.is_corrupt else "did not come"
                raise _Fallback(f"the picture of {table.time_s[rows[self.next]]:.3f} s {what}")
            row = int(np.searchsorted(table.pts, pts))
            if row >= len(table) or table.pts[row] != pts:
                continue  # its packet is no frame of the film
            behind = int(np.searchsorted(rows, row, side="right"))
            self.stats.missing += behind - self.next - 1
            if frame.is_corrupt:
                self.stats.fail("decoding pictures", ValueError(f"damaged picture at {table.time_s[row]:.3f} s"))
            yield self._finish(frame, row)
            self.next = behind

    def _finish(self, frame: Any, row: int) -> tuple[float, np.ndarray]:
        """Convert, scale and rotate one frame."""
        size = {} if self.device else {"width": self.width, "height": self.height}
        image = self.scaler.reformat(
            frame,
            **size,
            format="rgb24",
            interpolation=Interpolation.BICUBIC,
            threads=1,  # waking threads for one small picture takes longer than scaling it
        )
        rgb: np.ndarray = image.to_ndarray()
        if self.device:
            rgb = resize(rgb, self.height, self.width, self.device)
        if self.turns:
            rgb = np.ascontiguousarray(np.rot90(rgb, self.turns))
        self.stats.frames_yielded += 1
        return float(self.table.time_s[row]), rgb
