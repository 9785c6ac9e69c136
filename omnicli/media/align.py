"""One clock for pictures and sound: the window a second falls into, and how seconds are written for people."""

from __future__ import annotations

import numpy as np

from omnicli.media.sampling import CLOCK_TOLERANCE_S


def window_index(times_s: np.ndarray, window_s: float) -> np.ndarray:
    """Return the temporal window of each time: ``floor(t / window_s)``, int64, same shape.

    A time up to a millisecond before a border counts as behind it, as in `sampling.frame_times`: containers round
    time stamps, and the frame taken for second 2 may be stamped 1.9997.
    """
    if not window_s > 0:
        raise ValueError(f"window_s must be positive, not {window_s}")
    return np.floor((np.asarray(times_s, np.float64) + CLOCK_TOLERANCE_S) / window_s).astype(np.int64)


def format_seconds(seconds: float, digits: int = 0) -> str:
    """Write file seconds as ``mm:ss``, ``h:mm:ss`` from an hour on; ``digits`` decimals, cut off and not rounded.

    >>> format_seconds(600.9), format_seconds(3725.25, 1)
    ('10:00', '1:02:05.2')
    """
    unit = 10**digits
    ticks = int(abs(seconds) * unit + 1e-6)
    whole, part = divmod(ticks, unit)
    hours, rest = divmod(whole, 3600)
    text = f"{rest // 60:02d}:{rest % 60:02d}"
    if hours:
        text = f"{hours}:{text}"
    if digits:
        text += f".{part:0{digits}d}"
    return f"-{text}" if seconds < 0 and ticks else text
