"""Workers that need no model: what a runner and a process around a worker have to survive. Imports no torch."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from omnicli.batch.errors import DeviceLostError
from omnicli.batch.items import Item, Job
from omnicli.errors import ConfigError, MediaError
from omnicli.media.container import DecodeStats
from omnicli.media.pieces import Decoder, Piece


def row(item: Item, status: str = "ok", **more: Any) -> dict[str, Any]:
    """Return a row of a real one's length."""
    return {"schema": 1, "key": item.key, "media": item.media, "status": status, "answer": "x" * 3000} | more


def failed(item: Item, code: int, message: str, seconds: float) -> dict[str, Any]:
    return row(item, "failed", error={"code": code, "message": message})


def jobs(films: int, questions: int = 1) -> list[Job]:
    return [
        Job(f"{f}.mp4", tuple(Item(f"{f}.mp4", f"q{q}", f"{f:03d}-{q}") for q in range(questions)))
        for f in range(films)
    ]


@dataclass
class Slow:
    """Answers everything, in this process, at so many seconds an item."""

    seconds: float

    def answer(self, todo: Sequence[Job]) -> Iterator[dict[str, Any]]:
        for job in todo:
            for item in job.items:
                time.sleep(self.seconds)
                yield row(item)


@dataclass
class Worker:
    """Does what a film's name says; notes every opening and every film in a file."""

    log: Path
    fail_open: str = ""

    def _note(self, text: str) -> None:
        with self.log.open("a") as file:
            file.write(f"{text}\n")

    def forget(self) -> None:
        pass

    def open(self, decoder: object = None) -> None:
        self._note("open")
        if self.fail_open == "config":
            raise ConfigError(["one", "two"])
        if self.fail_open == "die":
            os.kill(os.getpid(), signal.SIGKILL)

    def do(self, job: Job, following: str | None = None) -> Iterator[dict[str, Any]]:
        self._note(f"{job.media} {len(job.items)} {following or '-'}")
        os.write(1, b"a library prints\n")
        if following and "ahead" in following:
            os.kill(os.getpid(), signal.SIGSEGV)
        for item in job.items:
            if "crash" in job.media or "crash" in item.question:
                os.kill(os.getpid(), signal.SIGSEGV)
            if "killed" in job.media:
                os.kill(os.getpid(), signal.SIGKILL)
            if "hang" in job.media or "hang" in item.question:
                time.sleep(600)
            if "config" in job.media:
                raise ConfigError("does not fit the model")
            yield row(item, pid=os.getpid())
            if "lost" in job.media:
                raise DeviceLostError("the device does not work any more")


@dataclass(frozen=True)
class Info:
    path: Path


@dataclass(frozen=True)
class Stream:
    """Pieces of a parcel's size that hold their number and the process; ``trouble`` comes at the fourth.

    ``once``: the process dies if this is its first time. ``always``: it dies. ``error``: `MediaError`.
    """

    info: Info
    count: int
    trouble: str = ""

    @property
    def log(self) -> Path:
        return self.info.path.with_suffix(".log")

    def read(self) -> Iterator[Piece | DecodeStats]:
        for number in range(self.count):
            begun = self.log.read_text().count("\n") if self.log.exists() else 0
            with self.log.open("a") as file:
                file.write(f"{number} {os.getpid()}\n")
            if number == 3 and (self.trouble == "always" or (self.trouble == "once" and begun == 3)):
                time.sleep(0.5)  # let what is before it be taken
                os.kill(os.getpid(), signal.SIGKILL)
            if number == 3 and self.trouble == "error":
                raise MediaError(f"{self.info.path}: broken")
            yield Piece(np.full((2**21,), number, np.float32), (float(os.getpid()),))
        yield DecodeStats(missing=7)


@dataclass
class PrefixCache(Worker):
    """Has a stream read by the decoders that it is given; `trouble` ``actor``: dies once in the middle of it."""

    trouble: str = ""
    count: int = 12

    def open(self, decoder: Decoder | None = None) -> None:
        super().open()
        assert decoder is not None
        self.decoder = decoder

    def do(self, job: Job, following: str | None = None) -> Iterator[dict[str, Any]]:
        self._note(f"{job.media} {len(job.items)} {following or '-'}")
        stream: Any = Stream(Info(Path(job.media)), self.count, self.trouble)
        got = []
        for piece in self.decoder.read(stream):
            if isinstance(piece, Piece):
                got.append(int(piece.data[0]))
                if self.trouble == "actor" and len(got) == 4 and self.log.read_text().count(job.media) == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
        for item in job.items:
            yield row(item, pid=os.getpid(), got=got)
