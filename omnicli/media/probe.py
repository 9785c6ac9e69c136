"""What is in a file and what is wrong with it: streams, true times, damage. Reads all packets, decodes one frame.

Everything about time comes from the packets' own time stamps; what the header promises is only compared with them.
Nothing here knows of models or of how many frames anyone wants.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from omnicli.errors import MediaError
from omnicli.media import frames as tables
from omnicli.media.container import FAILURES, DecodeStats, one_line, open_media
from omnicli.media.frames import NONE, FrameTable, PacketLog
from omnicli.media.streams import Track, candidates, first_that_decodes, is_art
from omnicli.media.timeline import joins, origin_of, scan, span_of
from omnicli.utils import fingerprint

# A hole in the sound that is worth a word, and one in the pictures (if twenty times the usual distance).
_AUDIO_GAP_S = 0.5
_VIDEO_GAP_S = 30.0


@dataclass(frozen=True)
class VideoStream:
    """The pictures. ``width`` and ``height`` are as displayed: sample aspect and rotation applied.

    ``rotation`` is the counter-clockwise turn in degrees (0, 90, 180, 270) that the coded picture still needs, ``fps``
    the mean rate of the frames that are there, ``header_duration_s`` what the header promises.
    """

    index: int
    codec: str
    width: int
    height: int
    rotation: int
    fps: float | None
    header_duration_s: float | None
    pix_fmt: str
    coded_width: int
    coded_height: int
    sample_aspect: float = 1.0


@dataclass(frozen=True)
class AudioStream:
    """The sound. ``shifts`` are the offsets of joined recordings, as in `FrameTable`."""

    index: int
    codec: str
    sample_rate: int
    channels: int
    header_duration_s: float | None
    language: str | None = None
    shifts: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class SubtitleStream:
    """A subtitle track; ``text`` is False for pictures of text."""

    index: int
    codec: str
    language: str | None
    text: bool


@dataclass(frozen=True)
class MediaInfo:
    """A file's content on its own clock: second 0 is the container's start time.

    Attributes
    ----------
    path : Path
    container : str
        Name of the container format.
    origin_s : float
        Container seconds that are file second 0.
    duration_s : float
        Second at which the last frame or sound ends, from real packets.
    video, audio : stream or None
        The best streams, never cover art. None if there is none or it yields nothing.
    frames : FrameTable or None
    audio_span : (start, end) or None
        Seconds that the sound's packets cover; there may be holes inside.
    subtitles : tuple of SubtitleStream
    problems : tuple of str
        What is odd or wrong, one line each, without the file's name.
    stamp : (int, int) or None
        The file's `omnicli.utils.fingerprint.stamp` before it was read.
    status : str
        ``ok``; ``truncated``: the header promises more than is there; ``damaged``: something cannot be read.
    """

    path: Path
    container: str
    origin_s: float
    duration_s: float
    video: VideoStream | None
    audio: AudioStream | None
    frames: FrameTable | None
    audio_span: tuple[float, float] | None
    subtitles: tuple[SubtitleStream, ...] = ()
    problems: tuple[str, ...] = ()
    status: str = "ok"
    stamp: tuple[int, int] | None = None

    @property
    def video_present_s(self) -> float:
        """Seconds from the first frame's beginning to the last one's end."""
        return self.frames.end_s - float(self.frames.time_s[0]) if self.frames is not None and len(self.frames) else 0.0

    @property
    def audio_present_s(self) -> float:
        """Seconds from the first sound to the last."""
        return self.audio_span[1] - self.audio_span[0] if self.audio_span else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return what `omni probe --json` prints: everything but the table of frames."""
        table = self.frames
        out: dict[str, Any] = {
            "path": str(self.path),
            "container": self.container,
            "status": self.status,
            "problems": list(self.problems),
            "duration_s": round(self.duration_s, 6),
            "origin_s": round(self.origin_s, 6),
            "video": None,
            "audio": None,
            "subtitles": [dataclasses.asdict(s) for s in self.subtitles],
        }
        if self.video is not None and table is not None:
            out["video"] = dataclasses.asdict(self.video) | {
                "frames": len(table),
                "key_frames": int(table.is_key.sum()),
                "start_s": round(float(table.time_s[0]), 6),
                "end_s": round(table.end_s, 6),
            }
        if self.audio is not None and self.audio_span is not None:
            audio = dataclasses.asdict(self.audio)
            audio.pop("shifts")
            out["audio"] = audio | {"start_s": round(self.audio_span[0], 6), "end_s": round(self.audio_span[1], 6)}
        return out


def probe(path: str | Path) -> MediaInfo:
    """Find out what a file holds.

    Raises
    ------
    MediaError
        If the file is missing, no media file, or holds neither pictures nor sound that can be decoded. One line that
        names the file. No other exception, whatever the file holds.
    """
    path = Path(path)
    try:
        return _probe(path)
    except FAILURES as error:
        raise MediaError(f"{path}: not a readable video or sound file ({one_line(error)})") from error


@dataclass(frozen=True)
class _Header:
    """What a container says before a packet is read; ``whole_s`` is None where other streams may last longer."""

    container: str
    start_s: float | None
    whole_s: float | None
    video_ids: list[int]
    audio_ids: list[int]
    subtitles: tuple[SubtitleStream, ...]
    stamp: tuple[int, int] | None


def _header(path: Path) -> _Header:
    with open_media(path) as container:
        stamp = fingerprint.stamp(path)
        video_ids, audio_ids = candidates(container, "video"), candidates(container, "audio")
        if not video_ids and not audio_ids:
            cover = any(s.type == "video" and is_art(s) for s in container.streams)
            what = "a cover picture but no film and no sound" if cover else "neither pictures nor sound"
            raise MediaError(f"{path}: the file holds {what}")
        subtitles = tuple(
            SubtitleStream(s.index, s.codec_context.name, s.language, s.codec_context.name not in _IMAGE_SUBTITLES)
            for s in container.streams
            if s.type == "subtitle" and s.codec_context is not None
        )
        others = len(container.streams) > bool(video_ids) + bool(audio_ids)
        return _Header(
            container=container.format.name,
            start_s=None if container.start_time is None else container.start_time / 1e6,
            whole_s=None if container.duration is None or others else container.duration / 1e6,
            video_ids=video_ids,
            audio_ids=audio_ids,
            subtitles=subtitles,
            stamp=stamp,
        )


_IMAGE_SUBTITLES = {"hdmv_pgs_subtitle", "dvd_subtitle", "dvb_subtitle", "xsub", "dvdsub", "dvbsub", "pgssub"}


def _probe(path: Path) -> MediaInfo:
    problems: list[str] = []
    header = _header(path)
    video, silent = first_that_decodes(path, header.video_ids, problems)
    audio, mute = first_that_decodes(path, header.audio_ids, problems)
    if video is None and audio is None:
        raise MediaError(f"{path}: the file opens but yields nothing: {'; '.join(problems) or 'no packets'}")
    stats = DecodeStats()
    logs = scan(path, video, audio, stats)
    damaged = bool(silent or mute or stats.error_count)
    if stats.error_count:
        problems.append(f"{stats.error_count} places could not be read ({stats.errors[0]})")

    shifts = joins(logs, video, audio)
    if shifts[0] or shifts[1]:
        count = max(len(shifts[0]), len(shifts[1]))
        problems.append(f"time stamps start over {count} time{'s' * (count > 1)}: the recordings are played in a row")
    origin_s = origin_of(header.start_s, video, audio, logs)
    table: FrameTable | None = None
    if video is not None:
        table = tables.build(logs[0], video.time_base, origin_s, shifts[0], 1.0 / video.facts["rate"])
        if not len(table):
            problems.append("the video stream shows no frame")
            video, table = None, None
    span = span_of(logs[1], audio, origin_s, shifts[1]) if audio is not None else None
    if span is None and table is None:
        raise MediaError(f"{path}: the file opens but yields nothing: {'; '.join(problems) or 'no packets'}")

    truncated = _promises(problems, video=video, audio=audio, table=table, span=span, container_s=header.whole_s)
    _gaps(problems, table, logs[1], audio)
    return MediaInfo(
        path=path,
        container=header.container,
        origin_s=origin_s,
        duration_s=max(table.end_s if table else 0.0, span[1] if span else 0.0),
        video=_video_stream(video, table),
        audio=None if audio is None or span is None else _audio_stream(audio, shifts[1]),
        frames=table,
        audio_span=span,
        subtitles=header.subtitles,
        problems=tuple(problems),
        status="truncated" if truncated else "damaged" if damaged else "ok",
        stamp=header.stamp,
    )


def _video_stream(video: Track | None, table: FrameTable | None) -> VideoStream | None:
    if video is None or table is None:
        return None
    facts = dict(video.facts)
    facts.pop("rate")
    width, height = facts["coded_width"], facts["coded_height"]
    if facts["sample_aspect"] > 1:  # stretch the side that is too short: no pixel is lost
        width = max(1, round(width * facts["sample_aspect"]))
    else:
        height = max(1, round(height / facts["sample_aspect"]))
    if facts["rotation"] % 180:
        width, height = height, width
    shown_s = float(table.time_s[-1] - table.time_s[0])
    return VideoStream(
        index=video.index,
        codec=video.codec,
        width=width,
        height=height,
        fps=(len(table) - 1) / shown_s if shown_s > 0 else None,
        header_duration_s=video.header_s,
        **facts,
    )


def _audio_stream(audio: Track, shifts: tuple[tuple[int, int], ...]) -> AudioStream:
    return AudioStream(
        index=audio.index, codec=audio.codec, header_duration_s=audio.header_s, shifts=shifts, **audio.facts
    )


# --- what is wrong --------------------------------------------------------------------------------------------------


def _promises(
    problems: list[str],
    *,
    video: Track | None,
    audio: Track | None,
    table: FrameTable | None,
    span: tuple[float, float] | None,
    container_s: float | None,
) -> bool:
    """Compare the header's lengths with the data; returns whether the data end early."""
    truncated = False
    measured = (
        ("pictures", video, table.end_s - float(table.time_s[0]) if table else 0.0),
        ("sound", audio, span[1] - span[0] if span else 0.0),
    )
    for what, stream, real in measured:
        promised = stream.header_s if stream is not None else None
        if promised is None or (what == "pictures" and table is None):
            continue
        if promised > real + max(1.0, 0.02 * promised):
            truncated = True
            problems.append(f"the header promises {promised:.2f} s of {what}, the data end after {real:.2f} s")
        elif real > promised + max(1.0, 0.02 * real):
            problems.append(f"the header speaks of {promised:.2f} s of {what}, the data go on to {real:.2f} s")
    end = max(table.end_s if table else 0.0, span[1] if span else 0.0)
    if not truncated and container_s is not None and container_s > end + max(1.0, 0.02 * container_s):
        truncated = True
        problems.append(f"the header promises {container_s:.2f} s, the data end after {end:.2f} s")
    return truncated


def _gaps(problems: list[str], table: FrameTable | None, audio_log: PacketLog, audio: Track | None) -> None:
    """Name long holes in the pictures and holes in the sound."""
    if table is not None and len(table) > 2:
        gaps = np.diff(table.time_s)
        for at in np.flatnonzero(gaps > max(_VIDEO_GAP_S, 20 * float(np.median(gaps))))[:5]:
            problems.append(f"no pictures between {table.time_s[at]:.1f} s and {table.time_s[at + 1]:.1f} s")
    if audio is None:
        return
    known = audio_log.pts != NONE
    if known.all() and len(audio_log.pts) > 1:
        base = float(audio.time_base)
        # mp4 stretches the packet before a hole: no packet is believed to be four times as long as usual
        typical = int(np.median(audio_log.duration))
        holes = (np.diff(audio_log.pts) - np.minimum(audio_log.duration[:-1], 4 * typical)) * base
        lost = holes[(holes > _AUDIO_GAP_S) & (typical > 0)]
        if len(lost):
            count = f"{len(lost)} hole{'s' * (len(lost) > 1)}"
            problems.append(f"{count} in the sound, {lost.sum():.1f} s in all, filled with silence")
