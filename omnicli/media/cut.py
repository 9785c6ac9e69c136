"""Cutting a stretch out of a film without encoding it again, and saving one frame as a picture.

Knows times in the file, not why somebody wants them.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from omnicli.errors import MediaError
from omnicli.media import video
from omnicli.media.container import FAILURES, DecodeStats, one_line, open_media, packets
from omnicli.media.probe import MediaInfo

_EARLY_S = 3.0  # seeking in a transport stream lands near a second, not on its key frame


def write_clip(info: MediaInfo, start_s: float, end_s: float, path: Path) -> None:
    """Copy a stretch into a Matroska file, packet by packet.

    Decoding can begin at key frames only: pictures begin at the last one before ``start_s``, the sound with them.

    Raises
    ------
    MediaError
        There is nothing in the stretch, or the file cannot be written.
    """
    nothing = MediaError(f"{info.path}: nothing between {start_s:g} and {end_s:g} s to cut out")
    if start_s >= info.duration_s:
        raise nothing
    if info.frames is not None and info.video is not None:
        keys = info.frames.time_s[info.frames.is_key]
        before = keys[keys <= start_s + 1e-6]
        start_s = float(before[-1]) if len(before) else float(info.frames.time_s[0])
    wanted = [part.index for part in (info.video, info.audio) if part is not None]
    written = 0
    try:
        with open_media(info.path) as source, av.open(str(path), "w", format="matroska") as target:
            streams = [source.streams[i] for i in wanted]
            copies: dict[int, Any] = {s.index: target.add_stream_from_template(s) for s in streams}
            source.seek(round((start_s + info.origin_s - _EARLY_S) * av.time_base), backward=True)
            for packet in packets(source, streams, DecodeStats()):
                stamp = packet.dts if packet.dts is not None else packet.pts
                if stamp is None or packet.time_base is None:
                    continue
                at_s = float(stamp * packet.time_base) - info.origin_s
                if at_s > end_s + 1.0 and packet.stream.type == "video":
                    break
                shown_s = at_s if packet.pts is None else float(packet.pts * packet.time_base) - info.origin_s
                if shown_s < start_s - 1e-6 or shown_s > end_s:
                    continue
                shift = round((start_s + info.origin_s) / float(packet.time_base))
                packet.dts = None if packet.dts is None else packet.dts - shift
                packet.pts = None if packet.pts is None else packet.pts - shift
                packet.stream = copies[packet.stream.index]
                target.mux(packet)
                written += 1
    except FAILURES as error:
        raise MediaError(f"{path}: the clip cannot be written ({one_line(error)})") from error
    if not written:
        path.unlink(missing_ok=True)
        raise nothing


def write_frame(info: MediaInfo, time_s: float, path: Path, width: int = 640) -> float:
    """Save the frame that is on the screen at a second as a JPEG; returns its own true time.

    Raises
    ------
    MediaError
        The file holds no pictures, or this one cannot be decoded or written.
    """
    if info.video is None or info.frames is None or not len(info.frames):
        raise MediaError(f"{info.path}: the file holds no pictures")
    row = max(0, int(np.searchsorted(info.frames.time_s, time_s + 1e-6)) - 1)
    scale = min(1.0, width / info.video.width)
    height, wide = (max(2, round(side * scale / 2) * 2) for side in (info.video.height, info.video.width))
    ((at_s, rgb),) = list(video.read_frames(info, info.frames.time_s[row : row + 1], height, wide))
    try:
        codec: Any = av.CodecContext.create("mjpeg", "w")
        codec.width, codec.height, codec.pix_fmt = wide, height, "yuvj420p"
        codec.time_base = Fraction(1, 1)
        frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuvj420p")
        path.write_bytes(b"".join(bytes(p) for p in [*codec.encode(frame), *codec.encode(None)]))
    except FAILURES as error:
        raise MediaError(f"{path}: the frame cannot be written ({one_line(error)})") from error
    return at_s
