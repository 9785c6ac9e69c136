"""Workers that need no model: what a runner and a process around a worker have to survive. Imports no torch."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnicli.batch.errors import DeviceLostError
from omnicli.batch.items import Item, Job
from omnicli.errors import ConfigError


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

    def open(self) -> None:
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
