"""One clock from the packets' time stamps: where second 0 is, where recordings were joined, what the sound covers."""

from __future__ import annotations

from array import array
from pathlib import Path

import numpy as np

from omnicli.media import frames as tables
from omnicli.media.container import DecodeStats, open_media, packets
from omnicli.media.frames import NONE, PacketLog
from omnicli.media.streams import Track

# Shifts of joined recordings, as in `FrameTable`.
Shifts = tuple[tuple[int, int], ...]


def scan(path: Path, video: Track | None, audio: Track | None, stats: DecodeStats) -> tuple[PacketLog, PacketLog]:
    """Note every packet of both streams without decoding: an hour takes about a second."""
    columns = {s.index: tuple(array(t) for t in "qqqbbb") for s in (video, audio) if s is not None}
    with open_media(path) as container:
        streams = [container.streams[i] for i in columns]
        video_index = video.index if video is not None else -1
        codec = video.codec if video is not None else ""
        extradata = container.streams[video_index].codec_context.extradata if video is not None else None
        for packet in packets(container, streams, stats):
            index = packet.stream_index
            pts, dts, duration, keys, discards, entries = columns[index]
            stamp = packet.pts
            pts.append(NONE if stamp is None else stamp)
            duration.append(packet.duration or 0)
            discards.append(packet.is_discard)
            if index == video_index:
                key = packet.is_keyframe
                stamp = packet.dts
                dts.append(NONE if stamp is None else stamp)
                keys.append(key)
                entries.append(key and tables.is_entry(codec, bytes(packet), extradata))
    logs = []
    for stream in (video, audio):
        data = columns[stream.index] if stream is not None else tuple(array(t) for t in "qqqbbb")
        if stream is audio:  # sound is never out of order and every packet is as good as a key frame
            data = (data[0], data[0], data[2], data[4], data[4], data[4])
        whole = [np.frombuffer(c, np.int64 if c.typecode == "q" else np.bool_).copy() for c in data]
        logs.append(PacketLog(*whole))
    return logs[0], logs[1]


def joins(logs: tuple[PacketLog, PacketLog], video: Track | None, audio: Track | None) -> tuple[Shifts, Shifts]:
    """Return, per stream, what to add to the time stamps where recordings were joined and the stamps start over.

    The second recording begins where the longer of the two streams ends; both streams move by the same time.
    """
    streams = (video, audio)
    places: list[np.ndarray] = []
    for log, stream in zip(logs, streams, strict=True):
        places.append(tables.resets(log, stream.time_base) if stream is not None and len(log.pts) else np.zeros(0, int))
    out: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
    offset_s = 0.0
    for join in range(max(len(p) for p in places)):
        ends, begins = [], []
        for log, stream, at in zip(logs, streams, places, strict=True):
            if stream is None or join >= len(at):
                continue
            part = slice(at[join - 1] if join else 0, at[join])
            base = float(stream.time_base)
            ends.append(float((log.pts[part] + log.duration[part])[log.pts[part] != NONE].max()) * base + offset_s)
            after = log.pts[at[join] : at[join + 1] if join + 1 < len(at) else None]
            begins.append(float(after[after != NONE].min()) * base)
        offset_s = max(ends) - min(begins)
        for stream, at, shift in zip(streams, places, out, strict=True):
            if stream is not None and join < len(at):
                before = sum(o for _, o in shift)
                shift.append((int(at[join]), round(offset_s / stream.time_base) - before))
    return tuple(out[0]), tuple(out[1])


def origin_of(
    start_s: float | None, video: Track | None, audio: Track | None, logs: tuple[PacketLog, PacketLog]
) -> float:
    """Return the container second that is file second 0.

    A start before 0 is an audio encoder's run-up (Opus: -0.007 s), which is not played: the pictures' second 0 holds.
    """
    if start_s is None:
        known = [s.first_s for s in (video, audio) if s is not None and s.first_s is not None]
        return min(known, default=0.0)
    if start_s >= 0:
        return start_s
    log, stream = (logs[0], video) if video is not None else (logs[1], audio)
    if stream is None:
        return 0.0
    shown = log.pts[~log.is_discard & (log.pts != NONE)]
    first = float(shown.min() * stream.time_base) if len(shown) else 0.0
    return min(0.0, first) if video is not None or first < -0.2 else 0.0


def span_of(log: PacketLog, audio: Track, origin_s: float, shifts: Shifts) -> tuple[float, float] | None:
    """Return the first and the last second of the sound."""
    base = float(audio.time_base)
    pts = log.pts.copy()
    for place, offset in shifts:
        pts[place:] += offset
    known = np.flatnonzero((log.pts != NONE) & ~tables.spikes(log.pts, audio.time_base))
    if not len(known):
        total = float(log.duration.sum()) * base
        return (0.0, total) if total > 0 or len(log.pts) else None
    last = known[np.argmax(pts[known] + log.duration[known])]
    # packets after the last time stamp (ADPCM stamps only some of them)
    tail = float(log.duration[last:].sum()) * base
    start = audio.first_s if audio.first_s is not None else float(pts[known].min()) * base
    return max(0.0, start - origin_s), max(start, float(pts[last]) * base + tail) - origin_s
