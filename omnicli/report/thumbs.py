"""Small pictures of a film at given seconds, as data URIs. Knows no answer and no page."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
import numpy as np

from omnicli.errors import MediaError
from omnicli.media.container import FAILURES, one_line
from omnicli.media.probe import MediaInfo, probe
from omnicli.media.video import read_frames

WIDTH = 240
_SLACK_S = 0.5
"""How much the film's length may differ from what the answer was given about."""
_LATE_S = 1.0
"""A frame that is later than that does not stand for one that cannot be decoded."""


def cut(media: str, present_s: float, times: Iterable[float]) -> dict[float, str]:
    """Return for each second the frame that is on the screen then, as the data URI of a JPEG `WIDTH` pixels wide.

    Parameters
    ----------
    media : str
        The film.
    present_s : float
        Seconds of pictures that it held when the answer was given.

    Raises
    ------
    MediaError
        It is not there any more, cannot be read, or is another film by now. One line.
    """
    wanted = sorted(set(times))
    info = probe(media)
    if info.video is None or info.frames is None:
        raise MediaError(f"{media}: holds no pictures")
    if abs(info.video_present_s - present_s) > _SLACK_S:
        raise MediaError(f"{media}: is another film now, of {info.video_present_s:.1f} s instead of {present_s:.1f} s")
    shown = info.frames.time_s
    rows = np.clip(np.searchsorted(shown, np.asarray(wanted) + 1e-6, side="right") - 1, 0, len(shown) - 1)
    height = max(2, min(2 * WIDTH, round(WIDTH * info.video.height / info.video.width)))
    found: dict[float, str] = {}
    waiting = list(zip(wanted, shown[rows], strict=True))
    for time_s, image in _frames(info, shown[np.unique(rows)], height):
        uri = f"data:image/jpeg;base64,{base64.b64encode(jpeg(image)).decode()}"
        while waiting and waiting[0][1] <= time_s + 1e-6:
            asked, shown_s = waiting.pop(0)
            if time_s - shown_s < _LATE_S:
                found[asked] = uri
    return found


def _frames(info: MediaInfo, times: np.ndarray, height: int) -> Iterator[tuple[float, np.ndarray]]:
    try:
        yield from read_frames(info, times, height, WIDTH)
    except FAILURES as error:
        raise MediaError(f"{info.path}: cannot be decoded ({one_line(error)})") from error


def jpeg(image: np.ndarray) -> bytes:
    """Return a picture, uint8 (height, width, 3), as JPEG."""
    coder = av.CodecContext.create("mjpeg", "w")
    coder.height, coder.width = image.shape[:2]
    coder.pix_fmt, coder.time_base, coder.thread_count = "yuvj420p", Fraction(1, 25), 1
    coder.options = {"qmin": "5", "qmax": "5"}
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24").reformat(
        format="yuvj420p", dst_color_range="JPEG"
    )
    frame.pts = 0
    return b"".join(bytes(packet) for packet in [*coder.encode(frame), *coder.encode(None)])
