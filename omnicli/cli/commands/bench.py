"""``omni bench``: what presets cost and save on one film and this machine. Parses, calls `omnicli.bench`, renders."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omnicli.cli import defaults, render
from omnicli.cli import options as opt
from omnicli.errors import ConfigError, UsageError
from omnicli.utils.timing import StageClock

if TYPE_CHECKING:
    from omnicli.bench.table import Sheet
    from omnicli.config.config import Config
    from omnicli.config.settings import MediaConfig
    from omnicli.models.base import OmniModel

EXAMPLES = """\b
Examples:
  omni bench film.mp4 --preset seats-10 --preset avoc
  omni bench --dummy-weights qwen2.5-omni-7b --preset seats-10 --plot seats.png
  omni bench film.mp4 --preset seats-10 --preset ablation/seats-global --count paper --view seats-4
  omni bench --dummy-weights qwen2.5-omni-3b --layers 4 --scale 0.25 --duration 60 --markdown
  omni bench film.mp4 --stages"""

QUESTION = "What is shown, and what is heard?"
DURATION_S = 600.0
MADE_FRAMES = 128
REFERENCE = "full"

PLACE = 110
"""In the order of the help."""


class Count(str, Enum):
    """How arithmetic is counted."""

    true = "true"
    paper = "paper"


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("bench", epilog=EXAMPLES)(bench)


@opt.shared("sets", "model", "fps", "max_frames", *opt.DEVICE)
def bench(
    *,
    media: Annotated[
        str | None,
        typer.Argument(metavar="MEDIA", help="Film or sound file; without it one is made.", show_default=False),
    ] = None,
    preset: Annotated[
        list[str] | None,
        typer.Option("--preset", "-p", metavar="NAME", help="Compare this preset with full tokens; repeatable."),
    ] = None,
    given: opt.SharedOptions,
    dummy_weights: Annotated[
        str | None,
        typer.Option("--dummy-weights", metavar="NAME", help="This architecture with random weights; no download."),
    ] = None,
    layers: Annotated[
        int | None, typer.Option("--layers", metavar="N", min=1, help="Fewer layers, with --dummy-weights.")
    ] = None,
    scale: Annotated[
        float | None, typer.Option("--scale", metavar="F", help="Narrower layers (0 to 1), with --dummy-weights.")
    ] = None,
    repeat: Annotated[int, typer.Option("--repeat", metavar="N", min=1, help="Rounds that count.")] = 5,
    warmup: Annotated[int, typer.Option("--warmup", metavar="N", min=1, help="Rounds before them.")] = 1,
    max_new_tokens: Annotated[
        int,
        typer.Option(
            "--max-new-tokens", metavar="N", min=1, help="Tokens that each answer has, whatever would end it."
        ),
    ] = 16,
    question: Annotated[str | None, typer.Option("--question", "-q", metavar="TEXT", help="What is asked.")] = None,
    duration: Annotated[
        float | None,
        typer.Option(
            "--duration",
            metavar="TIME",
            parser=opt.parse_time,
            help="Length of the film without MEDIA.  [default: 600]",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Another seed, another film.")] = 0,
    count: Annotated[
        Count,
        typer.Option(
            "--count",
            help="How TFLOPs are counted: true, two per multiply-add, causal, the head once; or as the papers on token "
            "compression do, one per multiply-add, every token meeting every token, the head on all of them.",
        ),
    ] = Count.true,
    view: Annotated[
        str | None,
        typer.Option(
            "--view",
            metavar="NAME",
            help="Show the columns of a paper's table of costs as far as they are measured: "
            "avoc-3 (AVOC, table 3), seats-4 (SEATS, table 4) or omarc-6 (O-MARC, table 6).",
        ),
    ] = None,
    stages: Annotated[bool, typer.Option("--stages", help="Measure decoding and encoding alone.")] = False,
    json_out: opt.JsonFlag = False,
    csv_out: Annotated[bool, typer.Option("--csv", help="Print CSV on stdout instead of text.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table on stdout.")] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw it too (.png, .svg, .pdf); needs matplotlib.")
    ] = None,
    verbose: opt.VerboseFlag = False,
) -> None:
    """Measure what presets cost and save against full tokens.

    Presets run in turns, with the same frames and the same sound, and each answer is written to the same length, so
    that rates compare; --set, --fps and --max-frames hold for all of them. Without MEDIA a film of ten minutes is made
    and looked at in 128 frames with all of its sound. A preset that runs out of memory is told of in its row, and the
    others go on.
    """
    if sum((json_out, csv_out, markdown)) > 1:
        raise UsageError("--json, --csv and --markdown: only one of them")
    if stages and (preset or plot or view or count is Count.paper):
        raise UsageError("--stages measures decoding and encoding alone; drop --preset, --plot, --count and --view")
    if view is not None:
        _check_view(view, whole=json_out or csv_out)
    if media is not None and duration is not None:
        raise UsageError("--duration is the length of the film that is made without MEDIA")
    name = model_name(given.model, dummy_weights, layers, scale)
    from omnicli.cli import answering

    path = None if media is None else answering.check_media(media)
    if plot is not None:
        from omnicli.bench import plot as plots

        plots.check(plot)
    made = () if media else (f"media.max_frames={MADE_FRAMES}",)
    given = dataclasses.replace(given, model=name, settings=(*made, *given.settings))
    configs = configurations(preset or [], given)
    form = "json" if json_out else "csv" if csv_out else "markdown" if markdown else "text"
    film_s = _length(path) if path is not None else DURATION_S if duration is None else duration
    loaded = answering.load(next(iter(configs.values())), StageClock())
    with _film(path, film_s, seed) as film:
        rounds = {"repeat": repeat, "warmup": warmup}
        if stages:
            _profile(film, configs[REFERENCE].media, loaded, rounds, form)
            return
        report, failed = _measure(
            film=film,
            question=question,
            configs=configs,
            max_new_tokens=max_new_tokens,
            model=loaded,
            rounds=rounds,
            count=count.value,
        )
    if plot is not None:
        plots.write(report, plot)
    from omnicli.bench import columns, views

    show(report, columns.sheet(report) if view is None else views.sheet(report, view), form)
    finish(failed, [n for n in configs if n != REFERENCE] or [REFERENCE])


def _check_view(name: str, *, whole: bool) -> None:
    """Raise a UsageError if there is no such view, or if what is printed has no columns to choose from."""
    from omnicli.bench.views import VIEWS

    if name not in VIEWS:
        raise UsageError(f"--view: there is no {name!r}; there are {', '.join(VIEWS)}")
    if whole:
        raise UsageError("--view lays out tables; --json and --csv hold everything")


def model_name(model: str | None, dummy: str | None, layers: int | None, scale: float | None) -> str | None:
    """Return the model's name from --model, or from --dummy-weights and what shrinks it.

    Raises
    ------
    UsageError
        Both are given, or a size without --dummy-weights.
    """
    if dummy is None:
        if layers is not None or scale is not None:
            raise UsageError("--layers and --scale shrink --dummy-weights NAME, which is missing")
        return model
    if model is not None:
        raise UsageError("--model and --dummy-weights: only one of them")
    sizes = [f"{k}={v:g}" for k, v in (("layers", layers), ("scale", scale)) if v is not None]
    return ",".join([f"dummy:{dummy}", *sizes])


def configurations(presets: Sequence[str], given: opt.SharedOptions) -> dict[str, Config]:
    """Return the presets' settings by name, full tokens first; all with one model and one sampling of the film.

    The sampling is the default one as ``media.*`` settings change it. Where a preset has another, a note says so.

    Raises
    ------
    ConfigError
        All problems of all presets.
    """
    from omnicli.cli import answering
    from omnicli.config.config import DEFAULT_PRESET, LOADED, load_config

    mine = defaults.load_defaults()
    common = load_config(REFERENCE, [s for s in [*mine.set, *given.settings] if s.strip().startswith("media.")]).media
    wanted = list(dict.fromkeys(presets or [mine.preset or DEFAULT_PRESET]))
    found: dict[str, Config] = {}
    problems: list[str] = []
    for name in wanted:
        own = given.settings
        if name == REFERENCE:
            own = tuple(text for text in own if text.startswith(("media.", "quantize", "offload")))
        try:
            found[name] = answering.prepare(dataclasses.replace(given, preset=name, settings=own))
        except ConfigError as error:
            problems += error.problems
        else:
            given = dataclasses.replace(given, model=given.model or found[name].model)
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    first = next(iter(found.values()))
    full = dataclasses.replace(load_config(REFERENCE), **{key: getattr(first, key) for key in LOADED})
    for name, config in found.items():
        if (config.quantize, config.offload) != (full.quantize, full.offload):
            raise UsageError(
                f"{name} keeps weights otherwise than {next(iter(found))}; choose with --quantize, --offload"
            )
    for name, config in found.items():
        if changed := [k for k, v in vars(config.media).items() if v != getattr(common, k)]:
            sampling = ", ".join(f"{k} {getattr(config.media, k)}" for k in changed)
            render.note(f"{name} has {sampling} of its own; here all presets get the same frames and sound")
    return {n: dataclasses.replace(c, media=common) for n, c in {REFERENCE: full, **found}.items()}


@dataclass(frozen=True)
class _Film:
    """What is measured on. ``question`` and ``expected`` (its right answer) are known of a film that was made."""

    path: Path
    about: dict[str, Any]
    question: str = QUESTION
    expected: str | None = None


def _length(path: Path) -> float:
    """Return a file's seconds; a file that cannot be read is told of before the model is loaded."""
    from omnicli.media.probe import probe

    return probe(path).duration_s


@contextmanager
def _film(path: Path | None, film_s: float, seed: int) -> Iterator[_Film]:
    """Give the user's film, or make one of so many seconds that is gone afterwards."""
    if path is not None:
        yield _Film(path, {"name": str(path), "duration_s": round(film_s, 3), "generated": False})
        return
    from omnicli.bench.clip import write_clip

    with tempfile.TemporaryDirectory(prefix="omni-bench-") as folder:
        print(f"omni: writing a film of {film_s:g} s to measure on", file=sys.stderr, flush=True)
        file = Path(folder) / "film.mp4"
        with render.ProgressDisplay() as progress:
            asked, answer = write_clip(file, film_s, seed, lambda done, total: progress("render", done, total))
        yield _Film(file, {"name": f"made (seed {seed})", "duration_s": film_s, "generated": True}, asked, answer)


def _measure(
    *,
    film: _Film,
    question: str | None,
    configs: dict[str, Config],
    max_new_tokens: int,
    model: OmniModel,
    rounds: dict[str, int],
    count: str,
) -> tuple[dict[str, Any], dict[str, tuple[str, int]]]:
    """Return the bench as a JSON object, and (error, exit code) of the presets that failed."""
    from omnicli.bench import rows
    from omnicli.bench.measure import Variant, comparable, measure

    media = configs[REFERENCE].media
    variants = [Variant(name, comparable(config, media, max_new_tokens)) for name, config in configs.items()]
    expected = film.expected if question in (None, film.question) else None
    question = film.question if question is None else question
    with _telling() as tell:
        outcome = measure(film.path, variants, question, model, **rounds, tell=tell)
    shared = variants[0].config
    told: dict[str, Any] = {"media": film.about, "question": question, "expected": expected, "count": count, **rounds}
    report = rows.report(outcome, model, shared, **told)
    return report, {m.variant.name: m.error for m in outcome.measured if m.error is not None}


def _profile(film: _Film, settings: MediaConfig, model: OmniModel, rounds: dict[str, int], form: str) -> None:
    """Measure decoding and encoding alone and print it."""
    from omnicli.bench import stages

    with _telling() as tell:
        report = stages.profile(film.path, settings, model, media=film.about, **rounds, tell=tell)
    show(report, stages.sheet(report), form)


@contextmanager
def _telling() -> Iterator[Callable[[str], None]]:
    """Give a function that shows what is being done: one line that changes, and only on a terminal."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        yield status.update


def show(report: dict[str, Any], sheet: Sheet, form: str) -> None:
    """Print a report on stdout as ``json``, ``csv``, ``markdown`` or ``text`` (drawn, on a terminal)."""
    from omnicli.bench import table

    if form == "json":
        render.print_json(report)
    elif form == "text" and sys.stdout.isatty():
        table.draw(sheet)
    else:
        write = {"csv": table.as_csv, "markdown": table.as_markdown, "text": table.as_text}[form]
        render.write_text(write(sheet))


def finish(failed: dict[str, tuple[str, int]], wanted: Sequence[str]) -> None:
    """Tell on stderr what failed; exit with the first one's code if nothing that was asked for could be measured."""
    for name, (text, _) in failed.items():
        render.note(f"{name}: {text}")
    if all(name in failed for name in wanted):
        raise typer.Exit(failed[wanted[0]][1])
