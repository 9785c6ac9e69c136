"""``omni ask``: questions about one file. Parses, checks what is cheap to check, calls the pipeline, renders."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from omnicli.cli import options as opt
from omnicli.errors import UsageError

EXAMPLES = """\b
Examples:
  omni ask film.mp4 "What is the secret number?"
  omni ask film.mp4 "Who speaks last?" -q "Which shape comes first?" --json
  echo "What sound is heard?" | omni ask film.mp4 - --start 10:00 --end 12:30
  omni ask film.mp4 "What is the secret number?" --evidence --clip-dir clips
  omni ask film.mp4 "Who speaks?" --preset avoc --set avoc.tokens=2048 --fps 2"""

PLACE = 10
"""In the order of the help."""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("ask", epilog=EXAMPLES)(ask)


@opt.shared(*opt.PRESET, *opt.SAMPLING, "require_audio", *opt.WRITING, *opt.DEVICE)
def ask(
    *,
    media: Annotated[str, typer.Argument(metavar="MEDIA", help="Film or sound file.", show_default=False)],
    question: Annotated[
        str | None, typer.Argument(metavar="QUESTION", help="The question; - reads questions from stdin, one a line.")
    ] = None,
    more: Annotated[
        list[str] | None, typer.Option("-q", "--question", metavar="TEXT", help="One more question; repeatable.")
    ] = None,
    json_out: opt.JsonFlag = False,
    given: opt.SharedOptions,
    evidence: opt.EvidenceFlag = False,
    clip_dir: Annotated[
        Path | None,
        typer.Option("--clip-dir", metavar="DIR", help="Write that evidence there, as clips and frames."),
    ] = None,
    fit: Annotated[
        bool, typer.Option("--fit", help="Where it does not fit in memory, ask with the smallest change that does.")
    ] = False,
    no_cache: opt.NoCacheFlag = False,
    verbose: opt.VerboseFlag = False,
) -> None:
    """Ask one or more questions about a file.

    The answer appears on stdout as it is written; progress, notes and the table of stages go to stderr.
    With --json each question gives one JSON object on one line (docs/reference/json.md).
    """
    if clip_dir is not None and clip_dir.exists() and not clip_dir.is_dir():
        raise UsageError(f"--clip-dir {clip_dir}: is not a folder")
    questions = read_questions(question, more)
    from omnicli.cli import answering, defaults
    from omnicli.utils.timing import StageClock

    clock = StageClock()
    path = answering.check_media(media)
    with clock.stage("load"):
        config = answering.prepare(given)
        cache = None if no_cache else defaults.open_cache()
    answers = answering.answer(
        path,
        questions,
        config,
        json_out=json_out,
        clock=clock,
        cache=cache,
        fit=fit,
        evidence=evidence or clip_dir is not None,
    )
    if clip_dir is not None:
        answering.write_evidence(path, answers, clip_dir)


def read_questions(question: str | None, more: list[str] | None) -> list[str]:
    """Return the questions in order; ``-`` is replaced by the lines of stdin.

    Raises
    ------
    UsageError
        No question at all, an empty one, or stdin named twice.
    """
    asked = ([] if question is None else [question]) + list(more or [])
    if asked.count("-") > 1:
        raise UsageError("stdin (-) can be read only once")
    out: list[str] = []
    for text in asked:
        if text != "-":
            out.append(text.strip())
            continue
        lines = [line.strip() for line in sys.stdin.read().splitlines()]
        lines = [line for line in lines if line]
        if not lines:
            raise UsageError("no question on stdin")
        out.extend(lines)
    if not out:
        raise UsageError('no question; try: omni ask MEDIA "What is the secret number?"')
    if not all(out):
        raise UsageError("a question is empty")
    return out
