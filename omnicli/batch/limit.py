"""A time limit on what runs in the main thread, by a timer's signal.

It interrupts Python between two steps: waiting for a decoder's next frame, the loop over frames, layers or tokens. It
cannot interrupt a call into a native library that does not return; against that helps a process that can be ended
(`omnicli.batch.isolate`).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from omnicli.batch.errors import TimeLimitError

_AGAIN_S = 5.0


class _Alarm(BaseException):
    """Not an Exception: decoding goes on behind errors of many kinds, and must not go on behind this one."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Interrupt the body after so many seconds; None: never. Only in the main thread of a process.

    The alarm rings again every few seconds, in case the first was raised where Python drops exceptions (``__del__``).

    Raises
    ------
    TimeLimitError
    """
    if seconds is None:
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("a time limit works in the main thread only")
    before = signal.signal(signal.SIGALRM, _ring)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_S)
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _Alarm:
        raise TimeLimitError(f"took longer than {seconds:g} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _ring(number: int, frame: object) -> NoReturn:
    raise _Alarm
