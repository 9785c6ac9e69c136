"""Films decoded by tasks on the CPUs of a Ray cluster: a stream is a task with one CPU, a few megabytes ahead.

An actor that holds a model calls this from its threads; only what it is about to encode lies in the object store. A
task that is lost is begun again once and hands over what had not come yet: decoding gives the same pieces every time.
Knows no models and no actors.
"""

from __future__ import annotations

import importlib
import itertools
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from omnicli.errors import MediaError, OmniError
from omnicli.media.container import DecodeStats
from omnicli.media.pieces import Piece, Stream

if TYPE_CHECKING:
    from omnicli.media.probe import MediaInfo

PARCEL = 8 * 2**20
"""Bytes from which on pieces are handed over; each handing over takes milliseconds."""

PARCELS = 2
"""So many parcels of a stream wait in the object store; then its task does."""

_STRETCHES = 4  # each one more reads the film up to its own beginning once more


@dataclass(frozen=True)
class Tasks:
    """Where films are decoded: a `omnicli.media.pieces.Decoder`.

    Parameters
    ----------
    cpus : int
        So many of the cluster's CPUs fall to one worker.
    folder : str
        Where relative names of films count from, on every node.
    """

    cpus: int
    folder: str

    @property
    def hardware(self) -> bool:
        """No graphics card."""
        return False

    def stretches(self, batches: int) -> int:
        """Return in how many stretches pictures are decoded at a time; one CPU is left to the sound."""
        return max(1, min(self.cpus - 1, _STRETCHES, batches // 8))

    def threads(self, info: MediaInfo, stretches: int) -> int:
        """Return 1: a task reserves one CPU."""
        return 1

    def read(self, stream: Stream) -> Iterator[Piece | DecodeStats]:
        """Yield what the stream's own ``read`` yields; raises what it raises, and `OmniError` if two tasks are lost."""
        ray = importlib.import_module("ray")
        got = lost = 0
        while True:
            try:
                for item in self._task(ray, stream, got):
                    got += 1
                    if isinstance(item, Exception):
                        raise item
                    # what Ray hands out lies in its store and cannot be written into
                    yield replace(item, data=np.array(item.data)) if isinstance(item, Piece) else item
                return
            except ray.exceptions.RayTaskError:
                raise  # `_decode` hands over what goes wrong
            except ray.exceptions.RayError as error:
                lost += 1
                if lost > 1:
                    raise OmniError(f"{stream.info.path}: ended its decoder twice ({_ending(error)})") from None

    def _task(self, ray: Any, stream: Stream, skip: int) -> Iterator[Piece | DecodeStats | Exception]:
        task = ray.remote(num_cpus=1, max_retries=0)(_decode)
        parcels = task.options(num_returns="streaming", _generator_backpressure_num_objects=PARCELS).remote(
            stream, self.folder, skip
        )
        try:
            for parcel in parcels:
                yield from ray.get(parcel)
        except GeneratorExit:
            with suppress(Exception):  # the cluster may be gone as well
                ray.cancel(parcels, force=True)  # one that waits for room heeds nothing else
            raise


def _decode(stream: Stream, folder: str, skip: int) -> Iterator[list[Piece | DecodeStats | Exception]]:
    """Be a task: yield parcels of pieces from number ``skip`` on; an error is the last one, for Ray would change it."""
    parcel: list[Piece | DecodeStats | Exception] = []
    size = 0
    try:
        os.chdir(folder)
        if not stream.info.path.exists():
            text = f"{stream.info.path}: no such file on node {socket.gethostname()}, which was to decode it"
            raise MediaError(text)
        for item in itertools.islice(stream.read(), skip, None):
            parcel.append(item)
            size += item.data.nbytes if isinstance(item, Piece) else 0
            if size >= PARCEL:
                yield parcel
                parcel, size = [], 0
    except Exception as error:
        parcel.append(error)
    if parcel:
        yield parcel


def _ending(error: Exception) -> str:
    if "running low on memory" in str(error):
        return "Ray killed it because the node ran low on memory"
    return "a crash, the system out of memory, or the node is gone"
