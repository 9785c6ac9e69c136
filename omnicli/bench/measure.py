"""Runs presets over one film in turns, A B A B, and keeps what every run took. Adds nothing up: `rows` does.

Each round decodes and encodes the film once, then asks every variant one question about it, so that a machine that
drifts does so for all of them. A variant that runs out of memory, or whose settings do not fit the model, is told of
and left out from then on.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from omnicli import pipeline
from omnicli.bench.fixed_length import FixedLengthModel
from omnicli.encode.film import EncodedFilm, load_film
from omnicli.models.base import OmniModel
from omnicli.models.parts import CAPTURES, SALIENCIES
from omnicli.utils import memory
from omnicli.utils.memory import Peaks
from omnicli.utils.timing import PARTS, Times

if TYPE_CHECKING:
    from omnicli.answer.answer import Answer
    from omnicli.config.config import Config
    from omnicli.config.settings import MediaConfig
    from omnicli.types import MediaUsed

REFERENCE = "full"
"""Name of the variant that all others are compared with."""

SUMS = {
    "decode": ("probe", "decode_video", "decode_audio"),
    "encode": ("preprocess", "encode_video", "encode_audio"),
    "compress": ("compress",),
    "select_in_llm": ("select_in_llm",),
    "prefill": ("prefill",),
    "generate": ("generate",),
}
"""Times that are told, and the stages of the clock that make them."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Variant:
    """A preset under the name it was asked for. All variants of a bench have the same media and generate settings."""

    name: str
    config: Config


@dataclass(frozen=True)
class Run:
    """One timed run, from the file to the last token.

    Attributes
    ----------
    stages : dict
        Seconds by stage, of the shared film and of the variant's own part.
    wall_s, first_token_s : float
        Seconds until the last and until the first token was known.
    """

    stages: dict[str, float]
    wall_s: float
    first_token_s: float

    def seconds(self) -> dict[str, float]:
        """Return the times of `SUMS`, and those until the first token and the end."""
        sums = {name: sum(self.stages.get(s, 0.0) for s in stages) for name, stages in SUMS.items()}
        return sums | {"time_to_first_token": self.first_token_s, "wall": self.wall_s}

    @property
    def gap(self) -> float:
        """Share of the wall time that no stage accounts for; negative where stages overlap."""
        named = sum(s for name, s in self.stages.items() if name != "other" and name not in PARTS)
        return (self.wall_s - named) / self.wall_s if self.wall_s > 0 else 0.0


@dataclass
class Measured:
    """What is known of one variant. ``error``: one line and an exit code, if it failed.

    Attributes
    ----------
    captured : tuple of str
        What the encoders captured in its pass over the film; it may be more than it needs.
    runs : list of Run
        The timed ones, in order.
    answer : Answer or None
        Of the last run; its text is of the whole fixed length.
    ids, text
        Generated ids up to where the model would have stopped, and their text; from the first warm-up.
    peaks, encode_peaks : Peaks or None
        Largest bytes while it selected, read and wrote, and while its film was decoded and encoded; from the first
        warm-up, since only there freed memory is given back in between.
    """

    variant: Variant
    captured: tuple[str, ...] = ()
    runs: list[Run] = field(default_factory=list)
    answer: Answer | None = None
    ids: list[int] = field(default_factory=list)
    text: str = ""
    peaks: Peaks | None = None
    encode_peaks: Peaks | None = None
    error: tuple[str, int] | None = None


@dataclass
class Outcome:
    """Everything measured: one entry per variant in the order asked for, what was used of the film, and warnings."""

    measured: list[Measured]
    used: MediaUsed | None = None
    warnings: list[str] = field(default_factory=list)


def measure(
    source: str | Path,
    variants: Sequence[Variant],
    question: str,
    model: OmniModel,
    *,
    repeat: int,
    warmup: int = 1,
    tell: Tell = lambda text: None,
) -> Outcome:
    """Measure variants on a film.

    Parameters
    ----------
    source : str or Path
        The film; probed, decoded and encoded anew in every round.
    variants : sequence of Variant
        With equal media and generate settings.
    repeat, warmup : int
        Rounds that count, and rounds before them that do not (at least 1). The first one notes memory and answers,
        which would cost the others time.
    tell : callable
        Called with what is being done.
    """
    torch.manual_seed(0)
    fixed = FixedLengthModel(model)
    bench = _Bench(source, question, fixed, Outcome([Measured(v) for v in variants]))
    groups = passes(bench.outcome.measured)
    for number in range(-warmup, repeat):
        label = f"warm-up {number + warmup + 1} of {warmup}" if number < 0 else f"round {number + 1} of {repeat}"
        for capture, members in groups:
            bench.run(members, capture, partial(_labelled, tell, label), counts=number >= 0, listen=number == -warmup)
    return bench.outcome


def passes(measured: Sequence[Measured]) -> list[tuple[frozenset[str], list[Measured]]]:
    """Return (captures, variants) of each pass over the film, and note the captures in the variants.

    Variants share a pass, which captures what all of them need, except that tokens hold one kind of saliency at a
    time: each further kind takes a pass of its own.
    """
    found: list[tuple[frozenset[str], list[Measured]]] = []
    for one in measured:
        needs = one.variant.config.compressor.needs & CAPTURES
        for i, (capture, members) in enumerate(found):
            if len((capture | needs) & SALIENCIES) <= 1:
                found[i] = (capture | needs, [*members, one])
                break
        else:
            found.append((needs, [one]))
    for capture, members in found:
        for one in members:
            one.captured = tuple(sorted(capture))
    return found


@dataclass
class _Bench:
    source: str | Path
    question: str
    fixed: FixedLengthModel
    outcome: Outcome

    @property
    def device(self) -> torch.device:
        return self.fixed.model.device

    def run(self, members: list[Measured], capture: frozenset[str], tell: Tell, *, counts: bool, listen: bool) -> None:
        """Look at the film once and ask every variant that is still there; keep the times if the round ``counts``."""
        live = [one for one in members if one.error is None]
        if not live:
            return
        tell("decode and encode")
        if listen:
            memory.reset(*self.fixed.model.devices)
        with self.failing(live):
            film = load_film(self.source, live[0].variant.config.media, capture, self.fixed.model)
        if live[0].error is not None:
            memory.free(self.device)  # only here: the error kept the tensors of its frames
            return
        for one in live if listen else []:
            one.encode_peaks = memory.peaks(*self.fixed.model.devices)
        for one in live:
            self.outcome.used = film.media.used
            self.warn(film.media.warnings)
            tell(one.variant.name)
            with self.failing([one]):
                run = self.ask(film, one, listen=listen)
                if counts:
                    one.runs.append(run)
            if one.error is not None:
                memory.free(self.device)

    def ask(self, film: EncodedFilm, one: Measured, *, listen: bool) -> Run:
        """Ask one variant about an encoded film."""
        self.fixed.start(listen=listen)
        if listen:
            memory.reset(*self.fixed.model.devices)
        begin = time.perf_counter()
        apart = dataclasses.replace(film, times=Times())
        answer = pipeline.answer(apart, self.question, one.variant.config, self.fixed.model)
        one.answer = answer
        self.warn(answer.warnings)
        if listen:
            one.peaks = memory.peaks(*self.fixed.model.devices)
            one.ids = self.fixed.answer_ids()
            one.text = self.fixed.model.tokenizer.decode(one.ids).strip()
        read_s = answer.time_to_first_token_s if self.fixed.read_at is None else self.fixed.read_at - begin
        both = film.times + Times(answer.stages, answer.wall_s)
        return Run(both.stages, both.wall_s, film.times.wall_s + read_s)

    @contextmanager
    def failing(self, those: list[Measured]) -> Iterator[None]:
        """Note what a run may die of for ``those`` and go on; anything else is raised."""
        try:
            yield
        except Exception as error:
            found = memory.failure(error)
            if found is None:
                raise
            text = found[0].removeprefix(f"{self.source}: ")
            for one in those:
                one.error = (text, found[1])

    def warn(self, texts: Sequence[str]) -> None:
        self.outcome.warnings += [text for text in texts if text not in self.outcome.warnings]


def _labelled(tell: Tell, label: str, text: str) -> None:
    tell(f"{label}: {text}")


def comparable(config: Config, media: MediaConfig, max_new_tokens: int) -> Config:
    """Return a preset with the bench's sampling and a greedy answer of fixed length, whatever it had itself."""
    fixed: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": 0.0, "seed": 0, "stop": ()}
    return dataclasses.replace(config, media=media, generate=dataclasses.replace(config.generate, **fixed))
