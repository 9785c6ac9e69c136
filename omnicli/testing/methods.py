"""The contract of a method: what every class that derives from `Compressor` keeps, whatever it chooses by."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from omnicli.compress.base import LAST_QUERY_ATTENTION, OUTPUT_ATTENTION, Compressor
from omnicli.config.registry import METHOD_GROUP
from omnicli.config.schema import read_fields
from omnicli.testing.clips import CAPTURED, check, clip, copied, counted, differing, query, question, shared, stripped
from omnicli.testing.trial import first, told
from omnicli.types import LayerView, MediaTokens, Modality, Query, Selection
from omnicli.utils.docstrings import parameters

DEPTH = 28
KEEP = 0.3
ROOM = 2 * 2**30
"""Bytes that choosing among 100,000 tokens may need; a matrix of all pairs would take 10 GB even in bytes."""


EMPTY = "a question without tokens"
ATTENTION = frozenset({LAST_QUERY_ATTENTION, OUTPUT_ATTENTION})


class Run(NamedTuple):
    """What a method makes of a clip: before the LLM, and after each layer it prunes after."""

    tokens: MediaTokens
    selection: Selection
    entered: MediaTokens
    drops: list[tuple[int, Tensor]]
    modified: list[str]
    """What it changed of what it was shown, a line each."""


class MethodTrial:
    """A method under trial, with the clips that points look at."""

    def __init__(self, cls: type[Compressor], settings: Mapping[str, Any] | None = None) -> None:
        self.cls, self.settings = cls, dict(settings or {})
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

    def made(self, retention: float) -> Compressor:
        """Return the method with a share of tokens to keep and the settings under trial."""
        return self.cls.with_retention(retention, **self.settings)

    def made_for(self, tokens: int) -> Compressor:
        """Return the method with a number of tokens to keep instead of a share."""
        budgets = {name for group in self.cls.exclusive_fields for name in group}
        others = {name: value for name, value in self.settings.items() if name not in budgets}
        return self.cls(**{**others, "tokens": tokens})

    def run(self, kind: str) -> Run:
        """Return the choice among a clip's tokens at `KEEP`; computed once."""
        if kind not in self._runs:
            self._runs[kind] = choose(self.made(KEEP), self.clips[kind])
        return self._runs[kind]


def choose(method: Compressor, tokens: MediaTokens, asked: Query | None = None) -> Run:
    """Let a method choose before the LLM and after each of its layers; attention and hidden states are noise.

    It is shown copies, with saliency and keys only where its ``needs`` name them.
    """
    missing = [name for name, of in CAPTURED.items() if not any(need in method.needs for need in of)]
    try:
        return chosen(method, stripped(tokens, missing), asked)
    except (AttributeError, TypeError, AssertionError):
        for read in ({"saliency"}, {"keys"}, {"saliency", "keys"}):
            if read <= set(missing) and works(method, stripped(tokens, set(missing) - read), asked):
                raise ValueError(f"tokens.{' and '.join(sorted(read))} is read, but needs does not name it") from None
        raise


def works(method: Compressor, tokens: MediaTokens, asked: Query | None) -> bool:
    """Return whether a choice among these tokens raises nothing."""
    try:
        chosen(method, tokens, asked)
    except (Exception, SystemExit):  # whatever it is, it is told for the clip without
        return False
    return True


def chosen(method: Compressor, tokens: MediaTokens, asked: Query | None) -> Run:
    """Let a method choose among copies of these tokens and note what it changes."""
    asked = question(tokens) if asked is None else asked
    shown, words, modified = copied(tokens), dataclasses.replace(asked, embeddings=asked.embeddings.clone()), []
    selection: Any = method.compress(shown, words)
    if not isinstance(selection, Selection):
        raise TypeError(f"compress() gives {type(selection).__name__}, not a Selection")
    if not torch.equal(words.embeddings, asked.embeddings):
        modified.append("the question is modified")
    if field := differing(tokens, shown):
        modified.append(f"{field} is modified")
    if selection.features is not None and shared(selection.features, shown.features):
        modified.append("what is chosen is a view of the clip's features")
    check(selection.indices, len(tokens), "compress()")
    entered = now = tokens.select(selection)
    drops = []
    for layer in method.layers(DEPTH):
        noise = torch.Generator().manual_seed(layer)
        attention = torch.rand(len(now), generator=noise) / (2 * len(tokens))
        hidden = torch.randn(now.features.shape, generator=noise).to(tokens.features.dtype)
        given = attention.clone() if any(need in method.needs for need in ATTENTION) else None
        view = LayerView(
            layer, DEPTH, hidden.clone(), given, copied(now), entered=counted(entered), encoded=counted(tokens)
        )
        keep = method.prune(layer, view)
        check(keep, len(now), f"prune() after layer {layer}")
        changed = [f"media.{field}"] if (field := differing(now, view.media)) else []
        changed += ["hidden"] if not torch.equal(hidden, view.hidden) else []
        changed += ["attention"] if given is not None and not torch.equal(attention, given) else []
        modified += [f"prune() modifies {field} of what layer {layer} shows" for field in changed]
        drops.append((layer, keep))
        now = now.select(Selection(keep))
    return Run(tokens, selection, entered, drops, modified)


def on_every_clip(point: Callable[[MethodTrial, str], Iterator[str]]) -> Callable[[MethodTrial], Iterator[str]]:
    """Return a point that looks at one clip after the other and says at which it finds something or fails."""

    @functools.wraps(point)
    def over(t: MethodTrial) -> Iterator[str]:
        for kind in t.clips:
            try:
                for line in point(t, kind):
                    yield f"{kind}: {line}"
            except (Exception, SystemExit) as error:  # a method that is not finished may raise anything
                yield f"{kind}: {told(error)}"

    return over


# ---- points ----


def name(t: MethodTrial) -> Iterator[str]:
    """An entry point of another package that offers the class is called as the class is."""
    for point in entry_points(group=METHOD_GROUP):
        if point.value == f"{t.cls.__module__}:{t.cls.__qualname__}" and point.name != t.cls.name:
            right = f'write `name: ClassVar[str] = "{point.name}"` into it'
            yield f"the entry point is called {point.name}, the class {t.cls.name}; {right}"


def settings(t: MethodTrial) -> Iterator[str]:
    """The class is a frozen dataclass; every setting has a default, a type that YAML can hold, and a meaning."""
    known = ATTENTION.union(*CAPTURED.values())
    made = vars(t.cls).get("__dataclass_params__")
    if made is None or not made.frozen:
        yield "the class is not decorated with @dataclass(frozen=True)"
    doc = (vars(t.cls).get("__doc__") or "").strip()
    if not doc or doc.startswith(f"{t.cls.__name__}("):  # what @dataclass writes where there is none
        yield "the class has no docstring, whose first line `omni methods` shows"
    if not t.cls.criterion:
        yield "criterion does not say in a few words what it goes by"
    described = parameters(t.cls)
    for f in dataclasses.fields(t.cls):
        if not all(described.get(f.name, ("", ""))):
            yield f"{f.name} is not described under Parameters in the docstring as `{f.name} : type` and its meaning"
    method = t.cls()
    for needs in (method.needs, t.made(KEEP).needs):
        if not isinstance(needs, (set, frozenset)):
            yield f"needs is {needs!r}, not a frozenset of names"
        elif unknown := sorted(set(needs) - known, key=str):
            yield f"needs names {', '.join(map(str, unknown))}; there are {', '.join(sorted(known))}"
    params = method.params()
    if json.loads(json.dumps(params)) != params:
        yield f"{params} is not the same after being written as JSON"
    problems: list[str] = []
    if t.cls(**read_fields(t.cls, params, "", problems)) != method or problems:
        yield f"its own defaults are no values that a preset can hold: {'; '.join(problems) or params}"


@on_every_clip
def choices(t: MethodTrial, kind: str) -> Iterator[str]:
    """Indices ascend and are in range for every kind of clip, something stays, and merged features are sound."""
    run = t.run(kind)
    if not len(run.entered):
        yield "nothing is kept"
    elif run.tokens.features.dtype != run.entered.features.dtype:
        yield f"features become {run.entered.features.dtype}"
    elif run.entered.features.shape != (len(run.selection.indices), run.tokens.features.shape[1]):
        yield f"new features are {tuple(run.entered.features.shape)}"
    elif not bool(torch.isfinite(run.entered.features).all()):
        yield "new features are not finite"


@on_every_clip
def budgets(t: MethodTrial, kind: str) -> Iterator[str]:
    """The report tells what stays, and a budget is met on average over the LLM's layers: a share, a number of tokens.

    Looked at where there are fields for it: ``retention``, and ``tokens`` beside it.
    """
    method, run = t.made(KEEP), t.run(kind)
    fields = {f.name for f in dataclasses.fields(method)}
    (video, audio), there = counted(run.entered), counted(run.tokens)
    reported = run.selection.report.get("budget")
    if reported != {"video": video, "audio": audio}:
        yield f'report["budget"] is {reported}, kept are {video} video and {audio} audio tokens'
    if "retention" in fields:
        asked = max(1, int(KEEP * len(run.tokens) + 0.5))
        if line := missed(method, run, asked, f"retention {KEEP:g}"):
            yield line
    if {"tokens", "retention"} <= fields:
        asked = max(1, len(run.tokens) // 2)
        method = t.made_for(asked)
        if line := missed(method, choose(method, t.clips[kind]), asked, f"tokens={asked}"):
            yield line
    shares = method.nominal(*there)
    if shares is not None and not all(0 <= share <= 1 for share in shares):
        yield f"nominal() gives shares {shares}"
    if any(n and not had for n, had in zip(method.entering(*there), there, strict=True)):
        yield "entering() lets in tokens of a modality that is not there"


def missed(method: Compressor, run: Run, asked: int, what: str) -> str | None:
    """Return how a budget is missed, or None: whole tokens before the LLM, rounded at every drop in it."""
    after = {layer: keep.numel() for layer, keep in run.drops}
    now, total, late = len(run.entered), 0, method.late_removal(DEPTH)
    for layer in range(DEPTH):
        total += now
        now = 0 if layer == late else after.get(layer, now)
    if abs(total / DEPTH - asked) > (1 + len(after) if after else 0):
        return f"{what} of {len(run.tokens)} tokens are {asked}, not {total / DEPTH:g}"
    present = [m for m in Modality if run.tokens.count(m)]
    if len(run.entered) >= len(present) and not all(run.entered.count(m) for m in present):
        return "one modality loses all of its tokens"
    return None


@on_every_clip
def everything_stays(t: MethodTrial, kind: str) -> Iterator[str]:
    """At a retention of 1 all tokens stay as they are, bit for bit; for methods that can be told a retention."""
    if t.cls.with_retention.__func__ is Compressor.with_retention.__func__:  # type: ignore[attr-defined]
        return
    run = choose(t.made(1.0), t.clips[kind])
    if field := differing(run.tokens, run.entered) if len(run.tokens) == len(run.entered) else "their number":
        yield f"retention 1 changes {field}"
    if any(keep.numel() < len(run.tokens) for _, keep in run.drops):
        yield "retention 1 drops tokens inside the LLM"


@on_every_clip
def repeatable(t: MethodTrial, kind: str) -> Iterator[str]:
    """The same input gives the same choice, and nothing is drawn from torch's shared generator."""
    one = t.run(kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(kind))
        state = torch.get_rng_state()
        two = choose(t.made(KEEP), t.clips[kind])
        if not torch.equal(torch.get_rng_state(), state):
            yield "draws from torch's shared generator; make one of your own from a `seed` setting"
    told_twice = [(repr(run.selection.report), [keep.tolist() for _, keep in run.drops]) for run in (one, two)]
    if differing(one.entered, two.entered) or told_twice[0] != told_twice[1]:
        yield "a second time gives another choice"


@on_every_clip
def input_untouched(t: MethodTrial, kind: str) -> Iterator[str]:
    """Neither tokens nor question nor what a layer shows are modified, and what is chosen is no view of them."""
    yield from t.run(kind).modified


@on_every_clip
def reports(t: MethodTrial, kind: str) -> Iterator[str]:
    """What is reported can be written as JSON."""
    report = t.run(kind).selection.report
    if json.loads(json.dumps(report)) != report:
        yield f"the report is not the same after being written as JSON: {report}"


def questions(t: MethodTrial) -> Iterator[str]:
    """A question without tokens is no error, and only a method that says so goes by the question."""
    tokens = t.clips["video and audio"]
    method = t.made(KEEP)
    try:
        choose(method, tokens, query(tokens=0))
    except (Exception, SystemExit) as error:  # whatever it is
        yield f"{EMPTY}: {told(error)}"
    if not t.cls.uses_question:
        one, two = (choose(method, tokens, query(seed=seed)).entered for seed in (1, 2))
        if differing(one, two) if len(one) == len(two) else True:
            yield "the question changes the choice, but uses_question is False"


def layers(t: MethodTrial) -> Iterator[str]:
    """Layers ascend inside the model, media leave late or never, and whoever names layers has a prune()."""
    method = t.made(KEEP)
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
    method, tokens = t.made(KEEP), t.clips["video and audio"]
    one, two = (choose(m, tokens).selection for m in (method, method.bind(Path("no such folder"))))
    if not torch.equal(one.indices, two.indices):
        yield "bind() changes the choice where the model's folder holds nothing"


def memory(t: MethodTrial) -> Iterator[str]:
    """100,000 tokens need no matrix of all pairs. Checked on Linux, by a limit on the process's address space."""
    tokens = clip(blocks=200, rows=14, cols=20, audio=220, width=8)
    try:
        with address_space(ROOM):
            choose(t.made(0.1), tokens)
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
def of_method(cls: type[Compressor], points: Iterable[Callable[..., Any]] = POINTS, **settings: Any) -> list[str]:
    """Return what a method's class does not keep; a few seconds, nothing but this process.

    One line per point at most, with the clip where it shows; what an earlier line tells is not told again.

    Parameters
    ----------
    cls : type
        The class, not a method made of it.
    settings
        Other values than the defaults to try it with: ``of_method(Echo, length=0.5)``.

    Raises
    ------
    TypeError
        ``cls`` is no class that derives from `Compressor`.
    """
    if not isinstance(cls, type):
        raise TypeError(f"of_method takes the class and settings by name, not {cls!r}")
    if not issubclass(cls, Compressor):
        raise TypeError(f"{cls.__name__} does not derive from omnicli's Compressor")
    trial, heard = MethodTrial(cls, settings), set[str]()

    def new(line: str) -> bool:
        place, _, fault = line.partition(": ")
        fault = re.sub(r"\d+(\.\d+)?", "#", fault if place in (*trial.clips, EMPTY) else line)
        known = fault in heard
        heard.add(fault)
        return not known

    return [line for point in points for line in first(point, functools.partial(point, trial), new)]


__all__ = ["POINTS", "MethodTrial", "of_method"]
