"""``omni needle``: is a number hidden anywhere in an hour still found? Parses, calls `omnicli.bench`, renders."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omnicli.cli import options as opt
from omnicli.cli import render
from omnicli.errors import UsageError, near_names

if TYPE_CHECKING:
    from omnicli.bench.needle import Grid
    from omnicli.bench.needle_run import Contender, Source
    from omnicli.config.config import Config

EXAMPLES = """\b
Examples:
  omni needle --durations 100,600 --preset avoc --preset random-10
  omni needle film.mp4 --grid paper --preset avoc-niah --journal niah.jsonl --plot niah.png
  omni needle --preset full --up-to full=600 --preset avoc --preset avoc:avoc.scorer=identity --json"""


class GridChoice(str, Enum):
    """Named sets of durations and depths."""

    coarse = "coarse"
    paper = "paper"


class ModalityChoice(str, Enum):
    """Where needles are hidden."""

    both = "both"
    vision = "vision"
    audio = "audio"


PLACE = 120
"""In the order of the help."""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("needle", epilog=EXAMPLES)(needle)


@opt.shared("sets", "model", *opt.DEVICE)
def needle(
    *,
    haystack: Annotated[
        list[str] | None,
        typer.Argument(metavar="[HAYSTACK]...", help="Films to hide needles in; none: a generated one."),
    ] = None,
    preset: Annotated[
        list[str] | None,
        typer.Option(
            "--preset", "-p", metavar="NAME[:KEY=VALUE,...]", help="Preset, with changed settings; repeatable."
        ),
    ] = None,
    grid: Annotated[
        GridChoice,
        typer.Option(
            "--grid",
            metavar="coarse|paper",
            help="100, 600, 1800, 3600 s at 5 depths, or every 100 s to an hour at 11 depths.",
        ),
    ] = GridChoice.coarse,
    durations: Annotated[
        str | None, typer.Option("--durations", metavar="TIME,...", help="Instead of the grid's: 100,600 or 10:00.")
    ] = None,
    depths: Annotated[
        str | None, typer.Option("--depths", metavar="SHARE,...", help="Instead of the grid's: 0 first, 1 last.")
    ] = None,
    needles: Annotated[
        int, typer.Option("--needles", metavar="N", min=1, help="Needles per duration, depth and modality.")
    ] = 5,
    modality: Annotated[
        ModalityChoice,
        typer.Option("--modality", metavar="both|vision|audio", help="Captions, spoken sentences, or both in turn."),
    ] = ModalityChoice.both,
    up_to: Annotated[
        list[str] | None,
        typer.Option("--up-to", metavar="NAME=TIME", help="Ask this preset no longer durations; repeatable."),
    ] = None,
    needle_wav: Annotated[
        list[str] | None,
        typer.Option(
            "--needle-wav",
            metavar="FILE[=DIGITS]",
            help="A recording of the sentence; its six digits in the name or after =; repeatable.",
        ),
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option("--journal", metavar="FILE", help="Keep answers here (JSONL); a wider run goes on from it."),
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Ask nothing: tell what the journal holds so far.")] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Write heat maps (.png, .svg, .pdf).")
    ] = None,
    json_out: opt.JsonFlag = False,
    given: opt.SharedOptions,
    max_pixels: Annotated[
        int | None, typer.Option("--max-pixels", metavar="N", min=1, help="Largest frame, for all presets.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of the needles and generated film.")] = 0,
    verbose: opt.VerboseFlag = False,
) -> None:
    """Hide six digits anywhere in an hour and ask for them.

    AVOC's audio-video needle in a haystack: a caption on a single frame, or a sentence spoken at the haystack's own
    loudness; one frame a second and all of the sound for every preset. The film is decoded and encoded once.
    """
    if report and (journal is None or not journal.exists()):
        raise UsageError("--report tells what a journal holds: name one that is there with --journal FILE")
    for option, path in (("--journal", journal), ("--plot", plot)):
        if path is not None and not path.absolute().parent.is_dir():
            raise UsageError(f"{option} {path}: the folder {path.parent} does not exist")
    from omnicli.bench import needle as plan
    from omnicli.bench import needle_plot
    from omnicli.bench.needle_journal import Journal
    from omnicli.bench.needle_run import Run, table

    if plot is not None:
        needle_plot.check(plot)
    wanted = plan.Grid(
        plan.GRIDS[grid.value][0] if durations is None else tuple(_numbers("--durations", durations, opt.parse_time)),
        plan.GRIDS[grid.value][1] if depths is None else tuple(_numbers("--depths", depths, float)),
        needles,
        plan.MODALITIES if modality is ModalityChoice.both else (modality.value,),
        seed,
    )
    contenders = _contenders(preset or [], given, up_to or [], max_pixels)
    recordings = [plan.read_recording(text) for text in needle_wav or []]
    first = contenders[0].config
    with tempfile.TemporaryDirectory(prefix="omni-needle-") as folder, _Display() as display:
        sources = _sources(haystack or [], wanted, Path(folder), display)
        arguments = {
            "haystacks": [s.identity for s in sources],
            "model": {"name": first.model, "device": first.device, "dtype": first.dtype, "quantize": first.quantize},
            "max_pixels": max_pixels,
            "seed": seed,
            "recordings": [
                (Path(t.rpartition("=")[0] or t).name, r.digits)
                for t, r in zip(needle_wav or [], recordings, strict=True)
            ],
        }
        with contextlib.closing(Journal(journal, arguments)) as answers:
            run = Run(
                wanted,
                contenders,
                sources,
                answers,
                lambda: _load(first),
                recordings=recordings,
                max_pixels=max_pixels,
                tell=display.tell,
                progress=display.progress,
            )
            if not report:
                run.run()
    found = run.report()
    if plot is not None:
        needle_plot.draw(found, plot)
    for error in found["errors"]:
        where = "" if error["duration_s"] is None else f" at {error['duration_s']:g} s"
        render.note(f"{error['preset']}{where} could not run: {error['message']}")
    if json_out:
        render.print_json(found)
    else:
        render.write_text(render.table(table(found)) + "\n")


def _numbers(option: str, text: str, parse: Any) -> list[float]:
    """Return the numbers of a list written with commas."""
    out = []
    for part in text.split(","):
        try:
            out.append(float(parse(part.strip())))
        except (ValueError, typer.BadParameter) as error:
            raise UsageError(f"{option} {text}: {part.strip()!r} is not a number") from error
    return out


def _contenders(
    presets: list[str], given: opt.SharedOptions, up_to: list[str], max_pixels: int | None
) -> list[Contender]:
    """Resolve presets with what is given for all of them; ``max_pixels``: the largest frame."""
    from omnicli.bench.needle_run import Contender, sampled_alike
    from omnicli.cli import answering, defaults
    from omnicli.config.config import DEFAULT_PRESET
    from omnicli.config.settings import MediaConfig

    labels = presets or [defaults.load_defaults().preset or DEFAULT_PRESET]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise UsageError(f"--preset {twice[0]}: given twice")
    limits = _limits(up_to, labels)
    out: list[Contender] = []
    for label in labels:
        name, _, changes = label.partition(":")
        own = (*given.settings, *(part for part in changes.split(",") if part))
        if sampling := [text for text in own if text.strip().startswith("media.")]:
            raise UsageError(
                f"{sampling[0]}: needles are looked for at one frame a second and with all of the sound, alike for "
                "all presets; only --max-pixels changes that"
            )
        config = answering.prepare(dataclasses.replace(given, preset=name, settings=own))
        if config.media != MediaConfig():
            render.note(f"{label}: its own sampling of films is not used here; one frame a second, all of the sound")
        if out and config.model != out[0].config.model:
            raise UsageError(f"{out[0].label} and {label} name different models; choose one with --model")
        if out and config.quantize != out[0].config.quantize:
            raise UsageError(f"{out[0].label} and {label} keep weights in different ways; choose with --quantize")
        out.append(Contender(label, sampled_alike(config, max_pixels), limits.get(label)))
    return out


def _limits(texts: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Return the longest duration of presets that have one, from ``NAME=TIME``."""
    out = {}
    for text in texts:
        label, _, limit = text.rpartition("=")
        if label not in labels:
            raise UsageError(f"--up-to {text}: no preset called {label!r} in this run{near_names(label, labels)}")
        out[label] = _numbers("--up-to", limit, opt.parse_time)[0]
    return out


def _sources(names: Sequence[str], grid: Grid, folder: Path, display: _Display) -> list[Source]:
    """Return the haystacks; files are looked at before anything is loaded, a generated one is written when needed."""
    from omnicli.bench import needle as plan
    from omnicli.bench import needle_film
    from omnicli.bench.needle_run import Source
    from omnicli.cli import answering
    from omnicli.media.probe import probe

    out = []
    for name in names:
        info = probe(answering.check_media(name))
        needle_film.check(info, grid)
        out.append(Source({"name": info.path.name, "bytes": info.path.stat().st_size}, partial(_same, info)))
    if out:
        return out

    def generate() -> Any:
        path, seconds = folder / "haystack.mp4", grid.durations[-1]
        display.note(f"writing a generated haystack of {seconds:g} s")
        plan.write_haystack(path, seconds, grid.seed, lambda done, total: display.progress("render", done, total))
        return probe(path)

    return [Source({"name": "generated", "seconds": grid.durations[-1], "seed": grid.seed}, generate)]


def _same(info: Any) -> Any:
    return info


def _load(config: Config) -> Any:
    from omnicli.cli import answering
    from omnicli.utils.timing import StageClock

    return answering.load(config, StageClock())


class _Display:
    """Progress on stderr, on a terminal only: bars while the haystack is made and encoded, then a line of questions."""

    def __init__(self) -> None:
        self.bars = render.ProgressDisplay()
        self.line = False

    def __enter__(self) -> _Display:
        self.bars.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self.bars.pause()
        self._end_line()

    def progress(self, stage: str, done: float, total: float | None = None) -> None:
        """Show how far a stage is."""
        self._end_line()
        self.bars(stage, done, total)

    def note(self, text: str) -> None:
        """Write one line for good."""
        self.bars.pause()
        self._end_line()
        render.note(text)

    def tell(self, done: int, total: int, what: str, left_s: float | None) -> None:
        """Show which question is asked, and the time left."""
        if not self.bars.enabled:
            return
        self.bars.pause()
        left = ""
        if left_s is not None:
            minutes, seconds = divmod(round(left_s), 60)
            left = f", {minutes // 60}:{minutes % 60:02d}:{seconds:02d} left"
        print(f"\r\033[K[{done + 1}/{total}] {what}{left}", end="", file=sys.stderr, flush=True)
        self.line = True

    def _end_line(self) -> None:
        if self.line:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
            self.line = False
