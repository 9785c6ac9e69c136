"""``omni train``: makes the models that come with omni. Parses and calls `omnicli.train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from omnicli.cli import options as opt
from omnicli.errors import UsageError, near_names

train = typer.Typer(
    name="train",
    help="Train the models that come with omni.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog="\b\nExamples:\n  omni train pocket --out runs/pocket",
)

PLACE = 130
"""In the order of the help."""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.add_typer(train)


@train.callback()
def _group() -> None:
    """Train the models that come with omni."""


@train.command(
    "pocket",
    epilog="\b\nExamples:\n"
    "  omni train pocket --out runs/pocket\n"
    "  omni train pocket --out runs/pocket --stage pictures --threads 4\n"
    "  omni train pocket --out runs/trial --scale 0.01 --minutes 5",
)
def pocket(
    *,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Checkpoints and the log go here.")] = Path(
        "runs/pocket"
    ),
    stage: Annotated[
        list[str] | None, typer.Option("--stage", metavar="NAME", help="Only this stage; repeatable.  [default: all]")
    ] = None,
    scale: Annotated[
        float, typer.Option("--scale", metavar="F", help="Factor on the number of samples; 0.01 for a trial run.")
    ] = 1.0,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of weights and samples.")] = 0,
    threads: Annotated[int, typer.Option("--threads", metavar="N", min=1, help="CPU threads.")] = 2,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", metavar="N", min=0, help="Stop the longest stage (answers) after so long."),
    ] = None,
    start: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="Go on from the weights in this folder.")
    ] = None,
    verbose: opt.VerboseFlag = False,
) -> None:
    """Train the pocket model from nothing on generated films.

    Stops and goes on: a second run with the same --out resumes every stage from its last checkpoint.
    """
    from omnicli.train import pocket as room

    unknown = [name for name in stage or [] if name not in room.STAGES]
    if unknown:
        raise UsageError(f"no stage called {unknown[0]!r}{near_names(unknown[0], room.STAGES)}")
    stages = tuple(s for s in room.STAGES if stage is None or s in stage)
    room.main(out, stages, scale=scale, seed=seed, threads=threads, minutes=minutes, start=start)
