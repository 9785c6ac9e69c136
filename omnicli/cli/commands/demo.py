"""``omni demo``: writes a film whose answers are known, asks about it, and says which answers are right."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omnicli.cli import options as opt
from omnicli.cli import render
from omnicli.errors import MediaError

if TYPE_CHECKING:
    from omnicli.answer.answer import Answer

EXAMPLES = """\b
Examples:
  omni demo
  omni demo --minutes 5 --preset full
  omni demo --minutes 10 --keep demo.mp4 --json"""

PLACE = 100
"""In the order of the help."""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("demo", epilog=EXAMPLES)(demo)


@opt.shared(*opt.PRESET, *opt.DEVICE)
def demo(
    *,
    minutes: Annotated[
        float, typer.Option("--minutes", metavar="N", min=0.5, max=600, help="Length of the film.")
    ] = 60.0,
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="FILE", help="Keep the film here (.mp4), to ask more about it.")
    ] = None,
    json_out: opt.JsonFlag = False,
    given: opt.SharedOptions,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Another seed, another film.")] = 2,
    verbose: opt.VerboseFlag = False,
) -> None:
    """Make a film with known answers, ask it, check it.

    Needs no download and no GPU. Exits with 1 if an answer is wrong.
    """
    from omnicli.cli import answering

    if keep is not None and not keep.absolute().parent.is_dir():
        raise MediaError(f"{keep}: the folder {keep.parent} does not exist")
    config = answering.prepare(given)
    with tempfile.TemporaryDirectory(prefix="omni-demo-") as folder:
        film = keep or Path(folder) / "demo.mp4"
        known = write_film(film, minutes, seed)
        questions = [question for question, _ in known]
        answers = answering.answer(film, questions, config, json_out=json_out, on_text=_ignore)
    wrong = show(answers, [expected for _, expected in known], json_out=json_out)
    if keep is not None:
        render.note(f'the film is kept; ask it: omni ask {keep} "{questions[0]}"')
    if wrong:
        render.note(f"{wrong} of {len(answers)} answers are wrong")
        raise typer.Exit(1)


def write_film(path: Path, minutes: float, seed: int) -> list[tuple[str, str]]:
    """Write the film and return its (question, right answer) pairs; progress on stderr."""
    from omnicli.train.films import write_demo_film

    print(f"omni: writing a film of {minutes:g} min with known answers", file=sys.stderr, flush=True)
    with render.ProgressDisplay() as progress:
        return list(write_demo_film(path, minutes, seed, progress=lambda done, total: progress("render", done, total)))


def show(answers: Sequence[Answer], expected: Sequence[str], *, json_out: bool) -> int:
    """Print the answers with right or wrong on stdout and return how many are wrong."""
    wrong = 0
    for one, right in zip(answers, expected, strict=True):
        good = same(one.answer, right)
        wrong += not good
        if json_out:
            render.print_json({**one.to_dict(), "expected": right, "correct": good})
        else:
            verdict = "right" if good else f"WRONG, it is {right}"
            render.write_text(f"{one.question}\n  {one.answer.strip() or '(nothing)'}  ({verdict})\n")
    return wrong


def same(answer: str, expected: str) -> bool:
    """Compare two answers, blind to case, spaces around them and a final full stop."""
    return answer.strip().rstrip(".").lower() == expected.strip().rstrip(".").lower()


def _ignore(index: int, piece: str) -> Any:
    """Take a piece of an answer and show nothing: the demo prints each answer with its verdict."""
