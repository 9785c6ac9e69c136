"""A worker in a process of its own, which may die or hang without ending the run.

What no `except` reaches is met here: a native library that crashes or does not return, the system ending the process
when memory runs out, a device that does no work for it any more. The process is replaced (the model is loaded again),
the item is a failed row. Knows nothing of models; the worker has to be picklable.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Protocol

from omnicli.batch.attempt import Attempt
from omnicli.batch.errors import DeviceLostError, TimeLimitError
from omnicli.batch.items import Item, Job
from omnicli.batch.journal import Row
from omnicli.errors import OmniError

if TYPE_CHECKING:
    from omnicli.media.pieces import Decoder

GRACE_S = 10.0
"""What a worker may take longer than its own time limit before it is ended."""


class Doing(Protocol):
    """What runs in the other process: `omnicli.batch.worker.Worker`."""

    def open(self, decoder: Decoder | None = None) -> None:
        """Load what is needed. ``decoder``: where films are decoded; None: in this process."""

    def do(self, job: Job, following: str | None = None) -> Iterator[Row]:
        """Yield a row for each item of a job."""

    def forget(self) -> None:
        """Stop looking at the film that was to follow."""


class Gone(Exception):
    """The process does not answer any more: an exit code for the row, and what to say."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def too_long(seconds: float) -> Gone:
    """Return what is said of an item that its own time limit could not interrupt."""
    text = f"took longer than {seconds:g} s and could not be interrupted; its process was ended"
    return Gone(TimeLimitError.exit_code, text)


@dataclass
class Isolated:
    """Does jobs in another process. Use it as a context manager.

    Parameters
    ----------
    worker : Doing
    failed : callable
        Makes the row of an item that failed, from code, message and seconds.
    timeout_s : float or None
        The worker's own time limit for an item; it is ended `GRACE_S` after that.
    setup : callable
        Called in the other process before anything else; picklable.
    """

    worker: Doing
    failed: Callable[[Item, int, str, float], Row]
    timeout_s: float | None = None
    grace_s: float = GRACE_S
    setup: Callable[[], object] | None = None
    _process: Any = field(default=None, init=False)
    _pipe: Connection | None = field(default=None, init=False)

    def __enter__(self) -> Isolated:
        return self

    def __exit__(self, *rest: object) -> None:
        self.stop()

    def answer(self, jobs: Sequence[Job]) -> Iterator[Row]:
        """Yield a row for every item.

        Raises
        ------
        OmniError
            The worker cannot be opened, or says that its settings do not fit.
        """
        for job, following in itertools.zip_longest(jobs, jobs[1:]):
            yield from self._do(job, following.media if following else None)

    def _do(self, job: Job, following: str | None) -> Iterator[Row]:
        attempt = Attempt(job)
        while attempt.left:
            pipe, begin = self._start(), time.perf_counter()
            try:
                self._send(pipe, (attempt.rest(), None if attempt.again else following))
                while attempt.left:
                    yield self._receive(pipe)
                    attempt.left.pop(0)
                    begin = time.perf_counter()
            except Gone as gone:
                self.stop()
                for item in attempt.dropped(gone.code):
                    yield self.failed(item, gone.code, f"{job.media}: {gone}", time.perf_counter() - begin)

    def _start(self) -> Connection:
        """Return the pipe to a process that is ready."""
        if self._pipe is None:
            context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, self.worker, self.setup), daemon=True)
            # Ctrl-C goes to all processes of a terminal; this one then ends the other, which ignores it from its birth.
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)
            try:
                self._process.start()
            finally:
                signal.signal(signal.SIGINT, before)
            theirs.close()
            try:
                self._receive(self._pipe, limited=False)
            except Gone as gone:
                raise OmniError(f"the model could not be loaded: it {gone}") from None
        return self._pipe

    def _send(self, pipe: Connection, value: object) -> None:
        with contextlib.suppress(OSError):  # it is gone: `_receive` says so
            pipe.send(value)

    def _receive(self, pipe: Connection, *, limited: bool = True) -> Any:
        if self.timeout_s is not None and limited and not pipe.poll(self.timeout_s + self.grace_s):
            raise too_long(self.timeout_s)
        try:
            value = pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise Gone(OmniError.exit_code, f"ended its process ({_ending(self._process.exitcode)})") from None
        if isinstance(value, DeviceLostError):
            raise Gone(OmniError.exit_code, str(value))
        if isinstance(value, Exception):
            raise value
        return value

    def stop(self) -> None:
        """End the process. It holds nothing that has to be saved."""
        if self._pipe is not None:
            self._pipe.close()
            self._process.kill()
            self._process.join()
            self._process = self._pipe = None


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            return f"{name}; the system does this when memory runs out" if name == "SIGKILL" else name
    return f"exit code {code}"


def _serve(pipe: Connection, worker: Doing, setup: Callable[[], object] | None) -> None:
    """Be the other process: do jobs until there are no more."""
    os.dup2(2, 1)  # whatever a library prints must not get between the rows
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if setup is not None:
        setup()
    try:
        worker.open()
        pipe.send(None)
        while True:
            job, following = pipe.recv()
            for row in worker.do(job, following):
                pipe.send(row)
    except EOFError:
        return
    except Exception as error:
        pipe.send(error)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
