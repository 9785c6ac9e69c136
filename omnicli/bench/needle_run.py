"""Asking for needles: every preset the same questions, each answer journalled at once, rates with intervals in the end.

Presets share the encoded haystack and the spliced needle. A preset that cannot run is told of and the others go on. A
run that was stopped goes on where it was, given the same arguments. Knows neither options nor how results are shown.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from omnicli import pipeline
from omnicli.bench.needle import FPS, QUESTION, Grid, Needle, found, make_needle
from omnicli.bench.needle_film import Haystack, Prefix
from omnicli.bench.needle_journal import SCHEMA, Journal
from omnicli.config.config import Config
from omnicli.config.settings import MediaConfig
from omnicli.errors import ConfigError, MemoryLimitError, ModelError, OmniError, UsageError
from omnicli.media.probe import MediaInfo
from omnicli.models import identity
from omnicli.models.base import OmniModel
from omnicli.models.parts import CAPTURES, SALIENCIES
from omnicli.train.pocket_eval import wilson
from omnicli.utils import memory
from omnicli.utils.context import Progress, untold

Pending = dict[tuple[str, float, int], "list[Contender]"]
"""Questions still to be asked of one clip: (modality, depth, needle) to presets."""

Tell = Callable[[int, int, str, "float | None"], None]
"""Called before every question with how many are answered, of how many, what comes next, and seconds left."""


@dataclass(frozen=True)
class Contender:
    """A preset as it is asked: its label in tables, its settings, and the longest duration it is asked at."""

    label: str
    config: Config
    up_to_s: float | None = None

    @cached_property
    def settings(self) -> str:
        """Eight hex digits that tell it apart from others under the same label; sampling and model are the run's."""
        own = {key: self.config.to_dict()[key] for key in ("method", "params", "generate")}
        return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:8]

    def takes(self, duration_s: float) -> bool:
        """Tell whether it is asked at this duration."""
        return self.up_to_s is None or duration_s <= self.up_to_s


@dataclass(frozen=True)
class Source:
    """A haystack before it is opened: what identifies it in reports, and how to get at it."""

    identity: dict[str, Any]
    open: Callable[[], MediaInfo]


def shared_needs(contenders: Sequence[Contender]) -> frozenset[str]:
    """Return what the encoders have to capture for all presets together.

    Raises
    ------
    UsageError
        Two presets need different kinds of saliency, of which an encoded film holds one.
    """
    kinds: dict[str, str] = {}
    for contender in contenders:
        for kind in contender.config.compressor.needs & SALIENCIES:
            kinds.setdefault(kind, contender.label)
    if len(kinds) > 1:
        told = " and ".join(f"{label} ({kind})" for kind, label in sorted(kinds.items()))
        raise UsageError(f"{told} need different kinds of saliency and cannot share a film; run them one by one")
    return frozenset().union(*(c.config.compressor.needs for c in contenders)) & CAPTURES


def sampled_alike(config: Config, max_pixels: int | None = None) -> Config:
    """Return the settings with the test's own sampling: 1 frame a second, all of the sound, exact mel."""
    return dataclasses.replace(config, media=MediaConfig(fps=FPS, max_pixels=max_pixels))


class Run:
    """One run over all haystacks. `run` does it, `report` tells of it.

    Parameters
    ----------
    load : callable
        Returns the model; called when the first question has to be asked.
    recordings : sequence of Needle
        Spoken needles to use instead of synthetic ones.
    """

    def __init__(
        self,
        grid: Grid,
        contenders: Sequence[Contender],
        sources: Sequence[Source],
        journal: Journal,
        load: Callable[[], OmniModel],
        *,
        recordings: Sequence[Needle] = (),
        max_pixels: int | None = None,
        tell: Tell = lambda done, total, what, left_s: None,
        progress: Progress = untold,
    ) -> None:
        self.grid, self.contenders, self.sources, self.journal = grid, contenders, sources, journal
        self.recordings, self.max_pixels, self.tell, self.progress = recordings, max_pixels, tell, progress
        self.capture = shared_needs(contenders)
        self.errors: list[dict[str, Any]] = []
        self._load = load
        self._model: OmniModel | None = None
        self._first_error: OmniError | None = None
        self._out: set[tuple[str, float | None]] = set()  # presets that failed, for good or at a duration
        self._pace: dict[str, list[float]] = {}  # per preset: seconds spent, film seconds asked about

    def run(self) -> None:
        """Ask everything that the journal does not hold yet.

        Raises
        ------
        OmniError
            No preset could answer anything: the first one's reason.
        """
        for which, source in enumerate(self.sources):
            if not any(self._pending(which, d) for d in self.grid.durations):
                continue
            hay = Haystack(
                source.open(),
                self.model(),
                self.grid,
                capture=self.capture,
                max_pixels=self.max_pixels,
                progress=self.progress,
            )
            for duration_s in self.grid.durations:
                if pending := self._pending(which, duration_s):
                    self._ask_all(which, hay.prefix(duration_s), pending)
        if self._first_error is not None and not self._rows():
            raise self._first_error

    def model(self) -> OmniModel:
        """Return the model, loaded once."""
        if self._model is None:
            self._model = self._load()
        return self._model

    def _pending(self, which: int, duration_s: float) -> Pending:
        out: Pending = {}
        for modality, depth, number in self.grid.cells(duration_s):
            if left := [
                c
                for c in self.contenders
                if self._fit(c, duration_s)
                and (which, c.label, c.settings, modality, duration_s, depth, number) not in self.journal
            ]:
                out[modality, depth, number] = left
        return out

    def _fit(self, contender: Contender, duration_s: float) -> bool:
        out = {(contender.label, None), (contender.label, duration_s)} & self._out
        return contender.takes(duration_s) and not out

    @torch.inference_mode()
    def _ask_all(self, which: int, prefix: Prefix, pending: Pending) -> None:
        duration_s = prefix.duration_s
        for (modality, depth, number), contenders in pending.items():
            needle = make_needle(
                self.grid, modality, duration_s=duration_s, depth=depth, number=number, recordings=self.recordings
            )
            place = {"modality": modality, "duration_s": duration_s, "depth": depth, "needle": number}
            with prefix.with_needle(modality, depth, needle) as at_s:
                for contender in contenders:
                    if not self._fit(contender, duration_s):
                        continue
                    done, total, left_s = self._status()
                    self.tell(done, total, f"{contender.label}, {modality}, {duration_s:g} s at {depth:g}", left_s)
                    begin = time.perf_counter()
                    answer = self._ask(prefix, contender)
                    if answer is None:
                        continue
                    seconds = time.perf_counter() - begin
                    pace = self._pace.setdefault(contender.label, [0.0, 0.0])
                    pace[0], pace[1] = pace[0] + seconds, pace[1] + duration_s
                    told = {
                        "at_s": round(at_s, 3),
                        "expected": needle.digits,
                        "answer": answer.answer,
                        "correct": found(answer.answer, needle.digits),
                        "retention": answer.tokens["retention"],
                        "seconds": round(seconds, 3),
                    }
                    name = {"haystack": which, "preset": contender.label, "settings": contender.settings}
                    self.journal.add(name | place | told)

    def _ask(self, prefix: Prefix, contender: Contender) -> Any:
        """Return a preset's answer, or None after noting why there is none."""
        try:
            return pipeline.answer(prefix.film, QUESTION, contender.config, self.model())
        except (ConfigError, ModelError) as error:
            self._fail(contender, None, error)
        except MemoryLimitError as error:
            self._fail(contender, prefix.duration_s, error)
        except (MemoryError, RuntimeError) as error:
            if memory.failure(error) is None:
                raise
            text = f"{contender.label}: out of memory at {prefix.duration_s:g} s; end it earlier (--up-to)"
            self._fail(contender, prefix.duration_s, MemoryLimitError(text))
        return None

    def _fail(self, contender: Contender, duration_s: float | None, error: OmniError) -> None:
        self._out.add((contender.label, duration_s))
        self._first_error = self._first_error or error
        message = " ".join(str(error).split())
        self.errors.append(
            {"preset": contender.label, "duration_s": duration_s, "code": error.exit_code, "message": message}
        )

    def _status(self) -> tuple[int, int, float | None]:
        """Return how many questions are answered, of how many, and the seconds left at the pace of this run."""
        done, total, left_s = len(self._rows()), 0, 0.0
        spent, asked = (sum(p[i] for p in self._pace.values()) for i in (0, 1))
        for which in range(len(self.sources)):
            for duration_s in self.grid.durations:
                for contenders in self._pending(which, duration_s).values():
                    total += len(contenders)
                    for c in contenders:
                        seconds, of = self._pace.get(c.label, [spent, asked])
                        left_s += duration_s * seconds / of if of else 0.0
        return done, done + total, left_s if asked else None

    # ---- what came out ----

    def _rows(self) -> list[dict[str, Any]]:
        """Return the journal's answers that are of this run."""
        mine = {
            (which, c.label, c.settings, modality, duration_s, depth, number)
            for which in range(len(self.sources))
            for c in self.contenders
            for duration_s in self.grid.durations
            if c.takes(duration_s)
            for modality, depth, number in self.grid.cells(duration_s)
        }
        return [row for key, row in self.journal.rows.items() if key in mine]

    def report(self) -> dict[str, Any]:
        """Return everything as plain JSON values; rates have 95 % Wilson intervals."""
        rows = self._rows()
        scores, cells = [], []
        for contender in self.contenders:
            for modality in self.grid.modalities:
                mine = [r for r in rows if r["preset"] == contender.label and r["modality"] == modality]
                name = {"preset": contender.label, "modality": modality}
                by_duration = []
                for duration_s in self.grid.durations:
                    here = [r for r in mine if r["duration_s"] == duration_s]
                    by_duration.append({"duration_s": duration_s} | _rate(here) | _means(here))
                    for depth in self.grid.depths:
                        there = [r for r in here if r["depth"] == depth]
                        cells.append(name | {"duration_s": duration_s, "depth": depth} | _rate(there))
                scores.append(name | _rate(mine) | {"by_duration": by_duration})
        return {
            "schema": SCHEMA,
            "kind": "needle",
            "date": time.strftime("%Y-%m-%d"),
            "machine": _machine(),
            "versions": identity.versions(),
            "question": QUESTION,
            "grid": json.loads(json.dumps(dataclasses.asdict(self.grid))),
            "haystacks": [source.identity for source in self.sources],
            "presets": [
                {"label": c.label, "up_to_s": c.up_to_s, "config": c.config.to_dict()} for c in self.contenders
            ],
            "scores": scores,
            "cells": cells,
            "errors": self.errors,
        }


def _rate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    right, total = sum(r["correct"] for r in rows), len(rows)
    low, high = wilson(right, total)
    return {
        "right": right,
        "total": total,
        "rate": round(right / total, 4) if total else None,
        "low": round(low, 4),
        "high": round(high, 4),
    }


def _means(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean share of tokens kept and the mean seconds per question."""
    n = max(1, len(rows))
    return {name: round(sum(r[name] for r in rows) / n, 4) if rows else None for name in ("retention", "seconds")}


def _machine() -> str:
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{platform.machine()}, {torch.get_num_threads()} threads, {where}"


def table(report: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the comparison: per preset and modality the rate overall and at each duration."""
    failed = {(e["preset"], d) for e in report["errors"] for d in _durations(report, e)}
    heads = ["preset", "modality", "all", *(f"{d:g} s" for d in report["grid"]["durations"])]
    rows = [heads]
    for score in report["scores"]:
        cells = []
        for part in score["by_duration"]:
            if part["total"]:
                cells.append(f"{100 * part['rate']:.0f} % ({part['right']}/{part['total']})")
            else:
                cells.append("failed" if (score["preset"], part["duration_s"]) in failed else "-")
        overall = "-"
        if score["total"]:
            overall = f"{100 * score['rate']:.0f} % [{100 * score['low']:.0f}, {100 * score['high']:.0f}]"
        rows.append([score["preset"], score["modality"], overall, *cells])
    return rows


def _durations(report: dict[str, Any], error: dict[str, Any]) -> list[float]:
    return report["grid"]["durations"] if error["duration_s"] is None else [error["duration_s"]]
