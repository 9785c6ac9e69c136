"""Which frames to look at and how large: arithmetic on frame times and sizes, numpy only.

It knows nothing of files, codecs or models. Times are true seconds in the file, taken from the container's own time
stamps, so that a film of varying frame rate is sampled in time and never by counting frames.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from omnicli.config.settings import MediaConfig
    from omnicli.media.frames import FrameTable

# Matroska and Flash round every time stamp to a millisecond: a frame that is due at 0.083333 s is stamped 0.083.
CLOCK_TOLERANCE_S = 1e-3

# Of the papers' loader: at least so many frames, and whole pairs of them.
_LEAST, _PAIR = 4, 2


def wanted_times(table: FrameTable, settings: MediaConfig, start_s: float, end_s: float) -> np.ndarray:
    """Return the true times (m,) of the frames that a run with these settings looks at between two seconds."""
    if settings.sampling == "clock":
        return frame_times(table.time_s, settings.fps, settings.max_frames, start_s, end_s)
    rate = mean_rate(table.time_s, table.end_s)
    return linspace_times(table.time_s, settings.fps, settings.max_frames, start_s, end_s, rate=rate)


def pixel_bounds(settings: MediaConfig, frames: int) -> dict[str, int | None]:
    """Return ``min_pixels`` and ``max_pixels`` of each of so many frames; None: the model's own.

    With ``total_pixels`` a frame has at most ``2 * total_pixels / frames`` of them, but not less than 1.05 times
    ``min_pixels`` allow, rounded down: what the papers' loader does, which counts pairs of frames.
    """
    low, high = settings.min_pixels, settings.max_pixels
    if settings.total_pixels is not None and frames > 0:
        share = max(1, int(_PAIR * settings.total_pixels / frames), int(1.05 * (low or 0)))
        high = share if high is None else min(high, share)
    return {"min_pixels": low, "max_pixels": high}


def frame_times(
    info_times: np.ndarray,
    fps: float,
    max_frames: int | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
) -> np.ndarray:
    """Return the true times of the frames to decode: the first frame at or after each ``start_s + k / fps``.

    Parameters
    ----------
    info_times : (n,) float64
        Times of all presentable frames, ascending (`FrameTable.time_s`).
    fps : float
        Frames wanted per second of the file. Where the film has fewer, each of its frames is taken once.
    max_frames : int, optional
        If the rate gives more frames than this, the rate is lowered so that as many are spread evenly over the span.
    start_s, end_s : float, optional
        Use only frames with ``start_s <= t < end_s``. None: from file second 0, to the last frame.

    Returns
    -------
    (m,) float64
        Strictly ascending members of ``info_times``. At least one unless ``info_times`` is empty: a span in which no
        frame begins gives the frame that is on screen at ``start_s``.

    Raises
    ------
    ValueError
        If ``fps`` or ``max_frames`` is not positive, or the span is empty.
    """
    start = 0.0 if start_s is None else float(start_s)
    inside, alone = _inside(info_times, fps, max_frames, start, end_s)
    if alone:
        return inside
    chosen = _first_at_or_after(inside, start, 1.0 / fps)
    if max_frames is not None and chosen.size > max_frames:
        first = max(start, float(inside[0]))
        last = float(inside[-1]) + 1.0 / fps
        span = (last if end_s is None else min(end_s, last)) - first
        chosen = _first_at_or_after(inside, first, span / max_frames)[:max_frames]
    return chosen


def linspace_times(
    info_times: np.ndarray,
    fps: float,
    max_frames: int | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
    *,
    rate: float | None,
) -> np.ndarray:
    """Return the true times of frames counted out evenly from the first to the last, as the papers' loader does it.

    Of ``total`` frames the ``round(linspace(first, last, n))``-th are taken, halves to even, where ``n`` is ``total /
    rate * fps``, at least 4, at most ``max_frames``, at most ``total``, and rounded down to whole pairs.

    ``total`` frames are those that begin in the span, counted by the packets that are there; what the header promises
    of a truncated file is not looked at. ``first`` and ``last`` are the first and the last of them. ``rate`` is that of
    the whole film also for a span, so that of a film of varying rate a span with many frames a second gives more of
    them than its seconds. One frame stays where the loader would stop with an error: of one frame in all.

    Parameters
    ----------
    info_times, fps, max_frames, start_s, end_s
        See `frame_times`.
    rate : float or None
        Frames per second of the film (`mean_rate`); None: as many as there are.

    Returns
    -------
    (m,) float64
        Strictly ascending members of ``info_times``; see `frame_times`.

    Raises
    ------
    ValueError
        See `frame_times`.
    """
    inside, alone = _inside(info_times, fps, max_frames, 0.0 if start_s is None else float(start_s), end_s)
    if alone:
        return inside
    total = inside.size
    many = max(total if rate is None else total / rate * fps, _LEAST)
    many = min(many, total if max_frames is None else max_frames, total)
    n = max(1, math.floor(many / _PAIR) * _PAIR)
    return inside[np.round(np.linspace(0, total - 1, n)).astype(np.int64)]


def mean_rate(info_times: np.ndarray, end_s: float) -> float | None:
    """Return a film's frames per second: all its frames over the seconds for which they are on screen.

    The nearest whole number, half of one, or 1000/1001 of one that agrees with the seconds as far as time stamps tell
    them (the first and the last may be off by a millisecond), so that a rounded stamp costs no pair of frames. None: a
    film of one frame, or of no length.

    Parameters
    ----------
    info_times : (n,) float64
        Times of all presentable frames, ascending.
    end_s : float
        Second at which the last one leaves the screen (`FrameTable.end_s`).
    """
    n = len(info_times)
    seconds = end_s - float(info_times[0]) if n else 0.0
    if n < 2 or not seconds > 0:
        return None
    rate = n / seconds
    known = [k for k in (round(rate), round(2 * rate) / 2, round(rate * 1.001) * 1000 / 1001) if k > 0]
    off = {k: abs(n / k - seconds) for k in known}
    near = min(off, key=lambda k: off[k], default=rate)
    return near if off.get(near, 1.0) <= 2 * CLOCK_TOLERANCE_S else rate


def _inside(
    info_times: np.ndarray, fps: float, max_frames: int | None, start: float, end_s: float | None
) -> tuple[np.ndarray, bool]:
    """Return the times (m,) in a span, and whether there is nothing to choose; `ValueError` for nonsense.

    Of a span in which no frame begins it is the frame on screen.
    """
    times = np.asarray(info_times, np.float64)
    if not fps > 0 or not math.isfinite(fps):
        raise ValueError(f"fps must be a positive number, not {fps}")
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"max_frames must be at least 1, not {max_frames}")
    if end_s is not None and end_s <= start:
        raise ValueError(f"the span from {start:g} s to {end_s:g} s is empty")
    if times.size == 0:
        return times, True
    inside = times[times >= start - CLOCK_TOLERANCE_S]
    if end_s is not None:
        inside = inside[inside < end_s - CLOCK_TOLERANCE_S]
    if inside.size == 0:
        shown = max(0, int(np.searchsorted(times, start, side="right")) - 1)
        return times[shown : shown + 1], True
    return inside, False


def _first_at_or_after(times: np.ndarray, start: float, step: float) -> np.ndarray:
    """Return the members of ``times`` (n,) that come first at or after each ``start + k * step``, each once.

    Worked out per frame and not per step, since a header may lie about hours that hold no frame: a frame is chosen if
    a multiple of the step lies between its predecessor (not included) and itself.
    """
    index = np.floor((times - start + CLOCK_TOLERANCE_S) / step)
    before = np.concatenate([[-1.0], index[:-1]])
    return times[index > before]


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Return the frame size ``(height, width)`` in pixels for the encoder, as the Qwen processors compute it.

    Both sides are multiples of ``factor``, the area lies between ``min_pixels`` and ``max_pixels`` where the multiples
    allow it, and the shape is kept as nearly as they allow: rounded if the area fits, floored after shrinking, ceiled
    after enlarging. Extreme shapes (the processors refuse them beyond 200:1) get one ``factor`` for the short side.

    Raises
    ------
    ValueError
        If a size or the factor is not positive, or ``max_pixels`` is smaller than one cell.
    """
    if min(height, width, factor) < 1:
        raise ValueError(f"cannot resize {width}x{height} to multiples of {factor}")
    if max_pixels < factor * factor:
        raise ValueError(f"max_pixels {max_pixels} is less than one {factor}x{factor} cell")
    rows, columns = round(height / factor), round(width / factor)
    if rows * columns * factor * factor > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows, columns = math.floor(height / shrink / factor), math.floor(width / shrink / factor)
    elif rows * columns * factor * factor < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = math.ceil(height * grow / factor), math.ceil(width * grow / factor)
    rows, columns = max(1, rows), max(1, columns)
    if min(rows, columns) == 1:  # a strip as high as one cell, which flooring did not shorten
        cells = max_pixels // (factor * factor)
        rows, columns = min(rows, cells), min(columns, cells)
    return rows * factor, columns * factor
