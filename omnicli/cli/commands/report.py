"""``omni report``: answers kept as JSON, as one HTML file. Reads, calls `omnicli.report`, writes. Imports no torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from omnicli.cli import options as opt
from omnicli.cli import render
from omnicli.errors import MediaError, UsageError

EXAMPLES = """\b
Examples:
  omni report answers.jsonl -o answers.html
  omni report avoc.json seats.json full.json -o compared.html --no-thumbnails
  omni ask film.mp4 "Who speaks last?" --json | omni report - -o report.html"""

STDIN = "-"

PLACE = 40
"""In the order of the help."""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("report", epilog=EXAMPLES)(report)


def report(
    *,
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN.json...", help="What ask --json or batch wrote; - is stdin.", show_default=False),
    ],
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE", help="The HTML file; - is stdout.", show_default=False)
    ],
    thumbnails: Annotated[
        bool, typer.Option("--thumbnails/--no-thumbnails", help="Show the film at the evidence, if it is still there.")
    ] = True,
    verbose: opt.VerboseFlag = False,
) -> None:
    """Write answers as one HTML page that needs nothing else.

    Each answer with its timeline of kept tokens, evidence, stages, tokens and the command that repeats it; runs that
    ask the same about the same file are compared. Films are read for thumbnails; nothing is answered or fetched.
    """
    check_output(output, runs)
    from omnicli.report import page, rows

    found = [row for name in runs for row in rows.read(read_input(name), _shown(name), render.note)]
    data = page.build(found, thumbnails=thumbnails, note=render.note).encode()
    if output == STDIN:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
        return
    write(Path(output), data)
    render.note(f"{output}: {len(found)} {'row' if len(found) == 1 else 'rows'}, {len(data) / 1000:,.0f} kB")


def check_output(output: str, runs: list[str]) -> None:
    """Raise `UsageError` for an output that cannot be written or is one of the inputs, and for stdin named twice."""
    if runs.count(STDIN) > 1:
        raise UsageError("stdin (-) can be read only once")
    if output == STDIN:
        return
    path = Path(output)
    if path.is_dir():
        raise UsageError(f"-o {output}: is a folder; name a file")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"-o {output}: the folder {path.parent} does not exist")
    for name in runs:
        if name != STDIN and path.exists() and Path(name).exists() and path.samefile(name):
            raise UsageError(f"-o {output}: is what is read; name another file")


def read_input(name: str) -> bytes:
    """Return the bytes of a file, or of stdin.

    Raises
    ------
    MediaError
        It cannot be read.
    """
    if name == STDIN:
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise MediaError(f"{name}: cannot be read ({reason})") from None


def write(path: Path, data: bytes) -> None:
    """Put ``data`` into a file, all of it or nothing.

    Raises
    ------
    UsageError
        It cannot be written.
    """
    beside = path.with_name(f"{path.name}.new")
    try:
        if path.exists() and not path.is_file():  # a device or a pipe
            path.write_bytes(data)
            return
        beside.write_bytes(data)
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UsageError(f"-o {path}: cannot be written ({error.strerror or error})") from error


def _shown(name: str) -> str:
    return "stdin" if name == STDIN else name
