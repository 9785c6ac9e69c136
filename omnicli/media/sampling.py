"""Which frames to look at and how large: arithmetic on frame times and sizes, numpy only.

It knows nothing of files, codecs or models. Times are true seconds in the file, taken from the container's own time
stamps, so that a film of varying frame rate is sampled in time and never by counting frames.
"""

from __future__ import annotations

import math

import numpy as np

# Matroska and Flash round every time stamp to a millisecond: a frame that is due at 0.083333 s is stamped 0.083.
CLOCK_TOLERANCE_S = 1e-3


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
    times = np.asarray(info_times, np.float64)
    if not fps > 0 or not math.isfinite(fps):
        raise ValueError(f"fps must be a positive number, not {fps}")
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"max_frames must be at least 1, not {max_frames}")
    start = 0.0 if start_s is None else float(start_s)
    if end_s is not None and end_s <= start:
        raise ValueError(f"the span from {start:g} s to {end_s:g} s is empty")
    if times.size == 0:
        return times
    inside = times[times >= start - CLOCK_TOLERANCE_S]
    if end_s is not None:
        inside = inside[inside < end_s - CLOCK_TOLERANCE_S]
    if inside.size == 0:
        shown = max(0, int(np.searchsorted(times, start, side="right")) - 1)
        return times[shown : shown + 1]
    chosen = _first_at_or_after(inside, start, 1.0 / fps)
    if max_frames is not None and chosen.size > max_frames:
        first = max(start, float(inside[0]))
        last = float(inside[-1]) + 1.0 / fps
        span = (last if end_s is None else min(end_s, last)) - first
        chosen = _first_at_or_after(inside, first, span / max_frames)[:max_frames]
    return chosen


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
