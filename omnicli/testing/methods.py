"""The contract of a method: what every class that derives from `Compressor` keeps, whatever it chooses by."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from omnicli.compress.base import LAST_QUERY_ATTENTION, OUTPUT_ATTENTION, Compressor
from omnicli.config.registry import METHOD_GROUP
from omnicli.config.schema import read_fields
from omnicli.testing.clips import clip, query
from omnicli.testing.trial import first
from omnicli.types import LayerView, MediaTokens, Modality, Query, Selection
from omnicli.utils.docstrings import parameters

DEPTH = 28
KEEP = 0.3
ROOM = 2 * 2**30
"""Bytes that choosing among 100,000 tokens may need; a matrix of all pairs would take 10 GB even in bytes."""


class Run(NamedTuple):
    """What a method makes of a clip: before the LLM, and after each layer it prunes after."""

    tokens: MediaTokens
    selection: Selection
    entered: MediaTokens
    drops: list[tuple[LayerView, Tensor]]


class MethodTrial:
    """A method under trial, with the clips that points look at."""

    def __init__(self, cls: type[Compressor]) -> None:
        self.cls = cls
        self.clips = {
            "video and audio": clip(),
            "two frames a block": clip(blocks=5, frames=2, audio=3),
            "silent video": clip(audio=0),
            "audio only": clip(frames=0),
            "one video token": clip(blocks=1, audio=0, rows=1, cols=1),
            "one audio token": clip(blocks=1, frames=0, audio=1),
            "one token of each": clip(blocks=1, audio=1, rows=1, cols=1),
            "bfloat16": clip(dtype=torch.bfloat16),
        }
        self._runs: dict[str, Run] = {}

    def run(self, kind: str) -> Run:
        """Return the choice among a clip's tokens at `KEEP`; computed once."""
        if kind not in self._runs:
            self._runs[kind] = choose(self.cls.with_retention(KEEP), self.clips[kind])
        return self._runs[kind]


def question(tokens: MediaTokens) -> Query:
    """Return a question for a clip."""
    return query(tokens.features.shape[1], dtype=tokens.features.dtype)


def choose(method: Compressor, tokens: MediaTokens) -> Run:
    """Let a method choose before the LLM and after each of its layers; attention and hidden states are noise."""
    selection = method.compress(tokens, question(tokens))
    check(selection.indices, len(tokens), "compress()")
    entered = now = tokens.select(selection)
    drops = []
    for layer in method.layers(DEPTH):
        noise = torch.Generator().manual_seed(layer)
        attention = torch.rand(len(now), generator=noise) / (2 * len(tokens))
        hidden = torch.randn(now.features.shape, generator=noise).to(tokens.features.dtype)
        asked = method.needs & {LAST_QUERY_ATTENTION, OUTPUT_ATTENTION}
        view = LayerView(
            layer, DEPTH, hidden, attention if asked else None, now, entered=counted(entered), encoded=counted(tokens)
        )
        keep = method.prune(layer, view)
        check(keep, len(now), f"prune() after layer {layer}")
        drops.append((view, keep))
        now = now.select(Selection(keep))
    return Run(tokens, selection, entered, drops)


def check(indices: Tensor, n: int, what: str) -> None:
    """Raise `ValueError` unless these are ascending, unique indices into ``n`` tokens."""
    if indices.dtype != torch.int64 or indices.ndim != 1:
        raise ValueError(f"{what} gives indices {tuple(indices.shape)} {indices.dtype}, not (k,) torch.int64")
    if indices.numel() and not (int(indices.min()) >= 0 and int(indices.max()) < n):
        raise ValueError(f"{what} gives indices outside 0 to {n - 1}")
    if not bool((indices[1:] > indices[:-1]).all()):
        raise ValueError(f"{what} gives indices that are not ascending, or one twice")


def counted(tokens: MediaTokens) -> tuple[int, int]:
    """Return the number of video and of audio tokens."""
    return tokens.count(Modality.VIDEO), tokens.count(Modality.AUDIO)


def differing(a: MediaTokens, b: MediaTokens) -> str | None:
    """Return the first field in which tokens differ by a bit, or None."""
    for f in dataclasses.fields(MediaTokens):
        one, other = getattr(a, f.name), getattr(b, f.name)
        if (one is None) != (other is None):
            return f.name
        if one is not None and (one.dtype != other.dtype or not torch.equal(one, other)):
            return f.name
    return None


# ---- points ----


def name(t: MethodTrial) -> Iterator[str]:
    """An entry point of another package that offers the class is called as the class is."""
    for point in entry_points(group=METHOD_GROUP):
        if point.value == f"{t.cls.__module__}:{t.cls.__qualname__}" and point.name != t.cls.name:
            right = f'write `name: ClassVar[str] = "{point.name}"` into it'
            yield f"the entry point is called {point.name}, the class {t.cls.name}; {right}"


def settings(t: MethodTrial) -> Iterator[str]:
    """The class is a frozen dataclass; every setting has a default, a type that YAML can hold, and a meaning."""
    made = vars(t.cls).get("__dataclass_params__")
    if made is None or not made.frozen:
        yield "the class is not decorated with @dataclass(frozen=True)"
    if not (t.cls.__doc__ or "").strip() or t.cls.__doc__ == Compressor.__doc__:
        yield "the class has no docstring, whose first line `omni methods` shows"
    if not t.cls.criterion:
        yield "criterion does not say in a few words what it goes by"
    told = parameters(t.cls)
    for f in dataclasses.fields(t.cls):
        if not all(told.get(f.name, ("", ""))):
            yield f"{f.name} is not described under Parameters in the docstring as `{f.name} : type` and its meaning"
    method = t.cls()
    params = method.params()
    if json.loads(json.dumps(params)) != params:
        yield f"{params} is not the same after being written as JSON"
    problems: list[str] = []
    if t.cls(**read_fields(t.cls, params, "", problems)) != method or problems:
        yield f"its own defaults are no values that a preset can hold: {'; '.join(problems) or params}"


def choices(t: MethodTrial) -> Iterator[str]:
    """Indices ascend and are in range for every kind of clip, something stays, and merged features are sound."""
    for kind in t.clips:
        run = t.run(kind)
        if not len(run.entered):
            yield f"{kind}: nothing is kept"
        elif run.tokens.features.dtype != run.entered.features.dtype:
            yield f"{kind}: features become {run.entered.features.dtype}"
        elif run.entered.features.shape != (len(run.selection.indices), run.tokens.features.shape[1]):
            yield f"{kind}: new features are {tuple(run.entered.features.shape)}"
        elif not bool(torch.isfinite(run.entered.features).all()):
            yield f"{kind}: new features are not finite"


def budgets(t: MethodTrial) -> Iterator[str]:
    """The report tells what stays, and a method with a ``retention`` meets it, on average over the LLM's layers."""
    method = t.cls.with_retention(KEEP)
    exact = "retention" in {f.name for f in dataclasses.fields(method)}
    for kind in t.clips:
        run = t.run(kind)
        video, audio = counted(run.entered)
        told = run.selection.report.get("budget")
        if told != {"video": video, "audio": audio}:
            yield f'{kind}: report["budget"] is {told}, kept are {video} video and {audio} audio tokens'
        if exact and (line := missed(method, run)):
            yield f"{kind}: {line}"
        shares = method.nominal(*counted(run.tokens))
        if shares is not None and not all(0 <= share <= 1 for share in shares):
            yield f"{kind}: nominal() gives shares {shares}"
    left = [n for kind in ("silent video", "audio only") for n in method.entering(*counted(t.clips[kind]))]
    if left[1] or left[2]:
        yield "entering() lets in tokens of a modality that is not there"


def missed(method: Compressor, run: Run) -> str | None:
    """Return how a retention of `KEEP` is missed, or None: whole tokens before the LLM, rounded at every drop in it."""
    after = {view.layer: keep.numel() for view, keep in run.drops}
    now, total, late = len(run.entered), 0, method.late_removal(DEPTH)
    for layer in range(DEPTH):
        total += now
        now = 0 if layer == late else after.get(layer, now)
    asked = max(1, int(KEEP * len(run.tokens) + 0.5))
    if abs(total / DEPTH - asked) > (1 + len(after) if after else 0):
        return f"retention {KEEP:g} of {len(run.tokens)} tokens are {asked}, not {total / DEPTH:g}"
    present = [m for m in Modality if run.tokens.count(m)]
    if len(run.entered) >= len(present) and not all(run.entered.count(m) for m in present):
        return "one modality loses all of its tokens"
    return None


def everything_stays(t: MethodTrial) -> Iterator[str]:
    """At a retention of 1 all tokens stay as they are, bit for bit; for methods that can be told a retention."""
    if t.cls.with_retention.__func__ is Compressor.with_retention.__func__:  # type: ignore[attr-defined]
        return
    for kind, tokens in t.clips.items():
        run = choose(t.cls.with_retention(1.0), tokens)
        if field := differing(tokens, run.entered) if len(tokens) == len(run.entered) else "their number":
            yield f"{kind}: retention 1 changes {field}"
        if any(keep.numel() < len(tokens) for _, keep in run.drops):
            yield f"{kind}: retention 1 drops tokens inside the LLM"


def repeatable(t: MethodTrial) -> Iterator[str]:
    """The same input gives the same choice, and nothing is drawn from torch's shared generator."""
    for kind, tokens in t.clips.items():
        one = t.run(kind)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(len(kind))
            state = torch.get_rng_state()
            two = choose(t.cls.with_retention(KEEP), tokens)
            if not torch.equal(torch.get_rng_state(), state):
                yield "draws from torch's shared generator; make one of your own from a `seed` setting"
        drops = [[keep.tolist() for _, keep in run.drops] for run in (one, two)]
        if differing(one.entered, two.entered) or one.selection.report != two.selection.report or drops[0] != drops[1]:
            yield f"{kind}: a second time gives another choice"


def input_untouched(t: MethodTrial) -> Iterator[str]:
    """Neither tokens nor question nor what a layer shows are modified, and what is chosen is no view of them."""
    for kind, tokens in t.clips.items():
        asked, method = question(tokens), t.cls.with_retention(KEEP)
        before = copied(tokens)
        tokens.select(method.compress(tokens, asked)).features.add_(1)
        if not torch.equal(asked.embeddings, question(tokens).embeddings):
            yield f"{kind}: the question is modified"
        if field := differing(before, tokens):
            yield f"{kind}: {field} is modified"
        for view, _ in t.run(kind).drops:
            before, hidden = copied(view.media), view.hidden.clone()
            attention = None if view.attention is None else view.attention.clone()
            method.prune(view.layer, view)
            same = attention is None or torch.equal(attention, view.attention)  # type: ignore[arg-type]
            if differing(before, view.media) or not torch.equal(hidden, view.hidden) or not same:
                yield f"{kind}: prune() modifies what layer {view.layer} shows"


def copied(tokens: MediaTokens) -> MediaTokens:
    """Return tokens with tensors of their own."""
    return tokens.select(Selection(torch.arange(len(tokens))))


def reports(t: MethodTrial) -> Iterator[str]:
    """What is reported can be written as JSON."""
    for kind in t.clips:
        report = t.run(kind).selection.report
        if json.loads(json.dumps(report)) != report:
            yield f"{kind}: the report is not the same after being written as JSON: {report}"


def questions(t: MethodTrial) -> Iterator[str]:
    """A question without tokens is no error, and only a method that says so goes by the question."""
    tokens = t.clips["video and audio"]
    method = t.cls.with_retention(KEEP)
    method.compress(tokens, query(tokens=0))
    if not t.cls.uses_question:
        one, two = (tokens.select(method.compress(tokens, query(seed=seed))) for seed in (1, 2))
        if differing(one, two) if len(one) == len(two) else True:
            yield "the question changes the choice, but uses_question is False"


def layers(t: MethodTrial) -> Iterator[str]:
    """Layers ascend inside the model, media leave late or never, and whoever names layers has a prune()."""
    method = t.cls.with_retention(KEEP)
    for depth in (DEPTH, 36, 48):
        named, late = method.layers(depth), method.late_removal(depth)
        if list(named) != sorted(set(named)) or not all(0 <= layer < depth for layer in named):
            yield f"layers({depth}) are {named}"
        if named and t.cls.prune is Compressor.prune:
            yield f"layers({depth}) are {named}, but there is no prune()"
        if late is not None and not max(named, default=-1) < late < depth:
            yield f"late_removal({depth}) is {late}"
    if t.cls.prune is not Compressor.prune and not method.layers(DEPTH):
        yield f"there is a prune(), but layers({DEPTH}) names no layer to call it after"


def bound(t: MethodTrial) -> Iterator[str]:
    """Binding to a model that ships nothing changes no choice."""
    method, tokens = t.cls.with_retention(KEEP), t.clips["video and audio"]
    one, two = (m.compress(tokens, question(tokens)) for m in (method, method.bind(Path("no such folder"))))
    if not torch.equal(one.indices, two.indices):
        yield "bind() changes the choice where the model's folder holds nothing"


def memory(t: MethodTrial) -> Iterator[str]:
    """100,000 tokens need no matrix of all pairs. Checked on Linux, by a limit on the process's address space."""
    tokens = clip(blocks=200, rows=14, cols=20, audio=220, width=8)
    try:
        with address_space(ROOM):
            choose(t.cls.with_retention(0.1), tokens)
    except (MemoryError, RuntimeError) as error:
        if "alloc" not in str(error).lower() and not isinstance(error, MemoryError):
            raise
        yield f"{len(tokens)} tokens need more than {ROOM / 2**30:g} GiB; compare them in blocks"


@contextmanager
def address_space(more: int) -> Iterator[None]:
    """Let the process map no more than ``more`` bytes on top of what it has; nothing on systems other than Linux."""
    if not sys.platform.startswith("linux"):
        yield
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


POINTS = (
    *(name, settings, choices, budgets, everything_stays, repeatable, input_untouched),
    *(reports, questions, layers, bound, memory),
)


@torch.no_grad()
def of_method(cls: type[Compressor], points: Iterable[Callable[..., Any]] = POINTS) -> list[str]:
    """Return what a method's class does not keep, one line per point; a few seconds, nothing but this process."""
    trial = MethodTrial(cls)
    return [line for point in points for line in first(point, partial(point, trial))]


__all__ = ["POINTS", "MethodTrial", "of_method"]
