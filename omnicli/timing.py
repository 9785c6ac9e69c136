"""The stage clock: where the time of a run went. It knows stage names and nothing of what happens in them.

Host stages are wall time; on CUDA a stage is bracketed by events that are read once at the end, so that no stage
waits for the device. Stages may overlap (a decoder thread beside the encoder): busy time is kept per stage and
``other`` is the wall time that no stage of the *calling* thread covers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STAGES = (
    "probe",
    "load",
    "cache",
    "decode_video",
    "decode_audio",
    "preprocess",
    "encode_video",
    "encode_audio",
    "compress",
    "prefill",
    "generate",
)


PARTS = frozenset({"select_in_llm"})
"""Stages that are reported beside the stage they happen in and stay counted in it."""


class StageClock:
    """Adds up seconds per stage.

    A stage inside another one takes its seconds away from the outer one, so that stages add up; `PARTS` do not.

    Parameters
    ----------
    cuda : bool
        Time stages of the creating thread with CUDA events as well and report the longer of host and device time.
    """

    def __init__(self, cuda: bool = False) -> None:
        self.cuda = cuda
        self.start = time.perf_counter()
        self.busy: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self._covered = 0.0
        self._owner = threading.get_ident()
        self._inner: list[float] = []  # seconds spent in stages inside each open stage of the owning thread
        self._events: list[tuple[str, float, Any, Any]] = []
        self._lock = threading.Lock()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the body's time under ``name``. May be used from several threads."""
        own = threading.get_ident() == self._owner
        pair = self._record() if self.cuda and own else None
        if own:
            self._inner.append(0.0)
        begin = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - begin
            inner = 0.0
            if own:
                inner = self._inner.pop()
                if not self._inner:
                    self._covered += seconds
                elif name not in PARTS:
                    self._inner[-1] += seconds
            if pair is not None and inner == 0.0:
                self._events.append((name, seconds, pair, self._record()))
            else:
                with self._lock:
                    self.busy[name] = self.busy.get(name, 0.0) + seconds - inner

    def elapsed(self) -> float:
        """Return the seconds since the clock was made."""
        return time.perf_counter() - self.start

    def report(self) -> tuple[dict[str, float], float]:
        """Return busy seconds per stage (with ``other``) and the wall time since the clock was made."""
        for name, host_s, begin, end in self._events:
            end.synchronize()
            self.busy[name] = self.busy.get(name, 0.0) + max(host_s, begin.elapsed_time(end) / 1000)
        self._events.clear()
        wall = self.elapsed()
        return {**self.busy, "other": max(0.0, wall - self._covered)}, wall

    @staticmethod
    def _record() -> Any:
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
