"""Workers on the nodes of a Ray cluster: each an actor that holds the model and does one film after the other.

The process that was called keeps list and journal; it asks an actor for one row at a time, so that it knows which item
each of them is at, and tells it which film comes next. An actor that is gone is replaced, and its film is begun once
more by whichever actor is free. Knows nothing of models; the worker has to be picklable, and this package has to be
installed on every node. Only this module imports ray.
"""

from __future__ import annotations

import importlib
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from omnicli.batch.attempt import Attempt
from omnicli.batch.decoders import Tasks
from omnicli.batch.errors import DeviceLostError
from omnicli.batch.isolate import GRACE_S, Doing, Gone, too_long
from omnicli.batch.items import Item, Job
from omnicli.batch.journal import Row
from omnicli.errors import OmniError, UsageError

OBJECT_STORE = 512 * 2**20
"""Bytes of shared memory for rows and decoded pieces, in a cluster that is started here."""

OPENINGS = 3
"""So many workers in a row may be lost while they load the model."""

CONNECT_S = 10.0
"""How long a cluster's address may take to answer. Ray itself would try for minutes."""


def check(address: str | None = None) -> None:
    """Raise `UsageError` unless ray is installed and an address given as ``HOST:PORT`` answers."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read on import
    try:
        importlib.import_module("ray")
    except ImportError:
        raise UsageError("--ray needs Ray: pip install 'omnicli[ray]'") from None
    if address is None or address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise UsageError(f"--address {address}: write auto or HOST:PORT, where the cluster's head node is")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f"--address {address}: no Ray cluster answers there ({error})") from None


def share(nodes: Sequence[Mapping[str, float]], workers: int | None, *, gpus: bool) -> tuple[int, dict[str, int], int]:
    """Return how many workers there are to be, what each of them reserves, as options of an actor, and the decoders.

    One for each GPU; on clusters without, or without ``gpus``, one for two CPUs of a node, or ``workers`` that share
    the CPUs. Decoders are the CPUs that fall to a worker with a GPU; 0: it decodes by itself, as one without GPU does
    on the CPUs that it reserves.

    Parameters
    ----------
    nodes : sequence of mappings
        ``CPU`` and ``GPU`` of each node.

    Raises
    ------
    UsageError
        More workers than GPUs or CPUs.
    """
    counts = {kind: sum(int(node.get(kind, 0)) for node in nodes) for kind in ("CPU", "GPU")}
    kind = "GPU" if gpus and counts["GPU"] else "CPU"
    if (workers or 1) > counts[kind]:
        raise UsageError(f"--workers {workers or 1}: the cluster has {counts[kind]} {kind}s")
    if kind == "GPU":
        count = workers or counts[kind]
        each = counts["CPU"] // count
        return count, {"num_gpus": 1}, each if each >= 2 else 0  # pictures and sound
    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    wanted = workers or max(1, sum(n // 2 for n in cpus))
    on_each = -(-wanted // len(cpus))
    return wanted, {"num_cpus": max(1, min(cpus) // on_each)}, 0


@dataclass
class Cluster:
    """Does jobs on a Ray cluster. Use it as a context manager.

    Parameters
    ----------
    worker : Doing
    failed : callable
        Makes the row of an item that failed, from code, message and seconds.
    timeout_s : float or None
        The worker's own time limit for an item; the actor is ended ``grace_s`` after that.
    setup : callable
        Called in each actor before anything else; picklable.
    address : str or None
        ``HOST:PORT``, or ``auto`` for the cluster that this machine belongs to. None: the one that this process is
        connected to or that ``RAY_ADDRESS`` names, else this machine alone, for as long as the context lasts.
    workers : int or None
        How many; None: as many as there are GPUs, or one for two CPUs.
    gpus : bool
        Use GPUs if there are any.
    verbose : bool
        Let through what Ray and the actors print.
    """

    worker: Doing
    failed: Callable[[Item, int, str, float], Row]
    timeout_s: float | None = None
    grace_s: float = GRACE_S
    setup: Callable[[], object] | None = None
    address: str | None = None
    workers: int | None = None
    gpus: bool = True
    verbose: bool = False
    _hands: list[_Hand] = field(default_factory=list, init=False)
    _queue: deque[Attempt] = field(default_factory=deque, init=False)
    _lost_openings: int = field(default=0, init=False)
    _connected: bool = field(default=False, init=False)

    def __enter__(self) -> Cluster:
        self._ray = importlib.import_module("ray")
        if not self._ray.is_initialized():
            self._connect()
        try:
            nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            self.count, self.each, self.decoders = share(nodes, self.workers, gpus=self.gpus)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *rest: object) -> None:
        for hand in self._hands:
            self._ray.kill(hand.actor)
        self._hands.clear()
        if self._connected:
            self._ray.shutdown()

    def _connect(self) -> None:
        address = self.address or os.environ.get("RAY_ADDRESS") or "local"
        new = {"object_store_memory": OBJECT_STORE, "include_dashboard": False} if address == "local" else {}
        level = "INFO" if self.verbose else "ERROR"
        try:
            self._ray.init(address, log_to_driver=self.verbose, logging_level=level, **new)
        except (OSError, RuntimeError, ValueError) as error:
            raise UsageError(f"--ray: no connection to a cluster ({' '.join(str(error).split())})") from error
        self._connected = True

    def told(self) -> str:
        """Return in one line what the work is done by."""
        ((kind, n),) = self.each.items()
        kind = kind.removeprefix("num_").removesuffix("s").upper()
        decoders = f", films decoded on {self.decoders} CPUs each" if self.decoders else ""
        return f"Ray: {self.count} worker{'s'[: self.count > 1]}, {n} {kind}{'s'[: n > 1]} each{decoders}"

    def answer(self, jobs: Sequence[Job]) -> Iterator[Row]:
        """Yield a row for every item, in the order in which they come.

        Raises
        ------
        OmniError
            A worker cannot be opened, or says that its settings do not fit.
        """
        self._queue.extend(Attempt(job) for job in jobs)
        self._deal()
        while self._queue or any(hand.attempt for hand in self._hands):
            hand, value = self._next()
            rows: list[Row] = []
            if isinstance(value, DeviceLostError):
                value = Gone(value.exit_code, str(value))
            if isinstance(value, Gone):
                rows = self._drop(hand, value)
            elif isinstance(value, Exception):
                raise value
            elif hand.attempt is None:
                hand.node, self._lost_openings = value, 0
            else:
                rows = [value]
                hand.attempt.left.pop(0)
                if hand.attempt.left:
                    hand.ask(hand.actor.further.remote())
                else:
                    hand.attempt = None
            self._deal()  # before the rows are on disk: nobody need wait for that
            yield from rows

    def _deal(self) -> None:
        """Give every free worker a film and announce another; hire workers for films that nobody has."""
        for hand in self._hands:
            if hand.call is None and (attempt := hand.following or self._take()):
                hand.attempt, hand.following = attempt, None
                if self._queue and not attempt.again and not self._queue[0].again:  # those are done by themselves
                    hand.following = self._queue.popleft()
                following = hand.following.job.media if hand.following else None
                hand.ask(hand.actor.first.remote(attempt.rest(), following))
        while len(self._hands) < self.count and self._opening() < len(self._queue):
            self._hire()

    def _take(self) -> Attempt | None:
        """Return the next film: from the queue, else one that was announced to a worker which is still busy."""
        if self._queue:
            return self._queue.popleft()
        for hand in self._hands:
            if (attempt := hand.following) is not None:
                hand.following = None
                hand.actor.forget.remote()  # its decoders may hold CPUs that this film now needs elsewhere
                return attempt
        return None

    def _opening(self) -> int:
        return sum(hand.call is not None and hand.attempt is None for hand in self._hands)

    def _hire(self) -> None:
        served = self._ray.remote(**self.each)(_Served)
        hand = _Hand(served.remote(self.worker, os.getcwd(), self.setup, self.decoders))
        hand.ask(hand.actor.open.remote())
        self._hands.append(hand)

    def _next(self) -> tuple[_Hand, Any]:
        """Wait for a call to return, to break or to take too long; returns whose it was, and what came of it."""
        while True:
            calls = {hand.call: hand for hand in self._hands if hand.call is not None}
            ready, _ = self._ray.wait(list(calls), num_returns=1, timeout=self._patience())
            if ready:
                hand = calls[ready[0]]
                hand.call = None
                self._hands.remove(hand)
                self._hands.append(hand)  # nobody who is always ready may keep the others waiting
                try:
                    return hand, self._ray.get(ready[0])
                except self._ray.exceptions.RayTaskError:
                    raise  # `_Served` returns what goes wrong in a worker
                except self._ray.exceptions.RayError as error:
                    return hand, Gone(OmniError.exit_code, f"{_ending(error)} ({hand.node})")
            if self.timeout_s is not None:
                for hand in calls.values():
                    if hand.attempt is not None and hand.seconds() >= self.timeout_s + self.grace_s:
                        return hand, too_long(self.timeout_s)

    def _patience(self) -> float | None:
        """Return the seconds until the first item takes too long."""
        if self.timeout_s is None:
            return None
        left = [self.timeout_s + self.grace_s - hand.seconds() for hand in self._hands if hand.attempt is not None]
        return max(0.0, min(left)) if left else None

    def _drop(self, hand: _Hand, gone: Gone) -> list[Row]:
        """Part with a worker; its films go back to the others. Returns the rows of items that failed."""
        self._hands.remove(hand)
        self._ray.kill(hand.actor)
        attempt = hand.attempt
        if attempt is None:
            self._lost_openings += 1
            if self._lost_openings >= OPENINGS:
                raise OmniError(f"the model could not be loaded: it {gone}")
            return []
        lost = attempt.dropped(gone.code)
        self._queue.extendleft(a for a in (hand.following, attempt) if a is not None and a.left)
        return [self.failed(item, gone.code, f"{attempt.job.media}: {gone}", hand.seconds()) for item in lost]


@dataclass
class _Hand:
    """An actor, the call it is at (``open`` while it has no film), and the film that was announced to it."""

    actor: Any
    call: Any = None
    attempt: Attempt | None = None
    following: Attempt | None = None
    node: str = "not yet on a node"
    _since: float = 0.0

    def ask(self, call: Any) -> None:
        self.call, self._since = call, time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self._since


class _Served:
    """What runs in an actor. Whatever goes wrong is returned, for Ray would change its type."""

    def __init__(self, worker: Doing, folder: str, setup: Callable[[], object] | None, decoders: int) -> None:
        self._worker, self._folder, self._setup = worker, folder, setup
        self._decoder = Tasks(decoders, folder) if decoders else None
        self._rows: Iterator[Row] = iter(())

    def open(self) -> str | Exception:
        """Load the model; returns the node's name."""
        os.dup2(2, 1)  # whatever a library prints must not get between the rows
        node = socket.gethostname()
        try:
            if self._setup is not None:
                self._setup()
            try:
                os.chdir(self._folder)  # names of films and models count from there
            except OSError as error:
                return UsageError(f"{self._folder}: {error.strerror} on node {node}; start in a folder all nodes share")
            self._worker.open(self._decoder)
        except Exception as error:
            return error
        return node

    def first(self, job: Job, following: str | None) -> Row | Exception:
        """Begin a film; returns its first row."""
        try:
            for _ in self._rows:  # what is done after a film's last row
                pass
            self._rows = self._worker.do(job, following)
        except Exception as error:
            return error
        return self.further()

    def further(self) -> Row | Exception:
        """Return the film's next row."""
        try:
            return next(self._rows)
        except Exception as error:
            return error

    def forget(self) -> None:
        """Stop looking at the film that was announced; another worker does it."""
        self._worker.forget()


def _ending(error: Exception) -> str:
    """Return in a few words why a worker is gone; Ray's own text is a page."""
    text = " ".join(str(error).split())
    if "running low on memory" in text:
        return "ended its worker: Ray killed it because the node ran low on memory"
    with suppress(ValueError):
        return "could not start its worker: " + text[text.index("ModuleNotFoundError") :][:200]
    return "ended its worker: a crash, the system out of memory, or the node is gone"
