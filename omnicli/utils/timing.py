"""The stage clock: where the time of a run went. It knows stage names and nothing of what happens in them.

Host stages are wall time; on CUDA a stage is bracketed by events that are read once at the end, so that no stage
waits for the device. Stages of the thread that made the clock add up to the wall time, with ``other`` for what none of
them covers. What other threads do beside it (decoding) is kept apart as busy time: there a stage is how long the main
thread *waited* for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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


LABELS = {
    "probe": "look at the file",
    "load": "load the model",
    "cache": "read or keep tokens",
    "decode_video": "decode pictures",
    "decode_audio": "decode sound",
    "preprocess": "preprocess",
    "encode_video": "encode pictures",
    "encode_audio": "encode sound",
    "compress": "compress",
    "prefill": "prefill",
    "select_in_llm": "  of it, selection",
    "generate": "generate",
    "other": "other",
    "measure": "measure loudness",
    "render": "write the film",
}
"""Stages in words, for people; those of `omni demo` are among them."""


@dataclass(frozen=True)
class Times:
    """Where the time went, in seconds.

    Attributes
    ----------
    stages : dict
        By stage; with ``other`` they add up to the wall time.
    wall_s : float
        In all.
    busy : dict
        What threads beside the main one worked on, by stage; not part of the sum.
    """

    stages: dict[str, float] = field(default_factory=dict)
    wall_s: float = 0.0
    busy: dict[str, float] = field(default_factory=dict)

    def __add__(self, later: Times) -> Times:
        """Return the times of one run after the other."""
        return Times(_sum(self.stages, later.stages), self.wall_s + later.wall_s, _sum(self.busy, later.busy))


def _sum(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    return {name: first.get(name, 0.0) + second.get(name, 0.0) for name in first | second}


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
        self.stages: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self.busy: dict[str, float] = {}
        self._covered = 0.0
        self._owner = threading.get_ident()
        self._local = threading.local()
        self._events: list[tuple[str, float, Any, Any]] = []
        self._lock = threading.Lock()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the body's time under ``name``; in another thread than the clock's, as busy time beside it."""
        own = threading.get_ident() == self._owner
        pair = self._record() if self.cuda and own else None
        self._opened().append(0.0)
        begin = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - begin
            inner = self._opened().pop()
            self._cover(name, seconds)
            if pair is not None and inner == 0.0:
                self._events.append((name, seconds, pair, self._record()))
            else:
                self._add(self.stages if own else self.busy, name, seconds - inner)

    def waited(self, name: str, seconds: float) -> None:
        """Count time that the clock's thread has just spent waiting for a stage of another thread."""
        self._cover(name, seconds)
        self._add(self.stages, name, seconds)

    def _opened(self) -> list[float]:
        """Return the seconds spent in stages inside each open stage of the calling thread."""
        if not hasattr(self._local, "opened"):
            self._local.opened = []
        opened: list[float] = self._local.opened
        return opened

    def _cover(self, name: str, seconds: float) -> None:
        if opened := self._opened():
            opened[-1] += seconds if name not in PARTS else 0.0
        elif threading.get_ident() == self._owner:
            self._covered += seconds

    def _add(self, to: dict[str, float], name: str, seconds: float) -> None:
        with self._lock:
            to[name] = to.get(name, 0.0) + seconds

    def restart(self) -> None:
        """Count wall time from now on; what threads did before stays."""
        self.start = time.perf_counter()

    def elapsed(self) -> float:
        """Return the seconds since the clock was made or restarted."""
        return time.perf_counter() - self.start

    def report(self) -> Times:
        """Return the seconds so far, with ``other``."""
        for name, host_s, begin, end in self._events:
            end.synchronize()
            self._add(self.stages, name, max(host_s, begin.elapsed_time(end) / 1000))
        self._events.clear()
        wall = self.elapsed()
        return Times({**self.stages, "other": max(0.0, wall - self._covered)}, wall, dict(self.busy))

    @staticmethod
    def _record() -> Any:
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
