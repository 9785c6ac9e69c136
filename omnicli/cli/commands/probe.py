"""``omni probe``: what is in a file, and what is wrong with it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from omnicli.cli import options as opt
from omnicli.cli import render

EXAMPLES = """\b
Examples:
  omni probe film.mp4
  omni probe film.mp4 --json"""

PLACE = 50
"""In the order of the help."""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("probe", epilog=EXAMPLES)(probe)


def probe(
    media: Annotated[str, typer.Argument(metavar="MEDIA", help="Film or sound file.", show_default=False)],
    json_out: opt.JsonFlag = False,
    verbose: opt.VerboseFlag = False,
) -> None:
    """Tell what is in a file and what is wrong with it.

    Times are counted from real packets, not taken from the header. Nothing is loaded and nothing is answered.
    """
    from omnicli.cli import answering
    from omnicli.media.probe import probe as look

    info = look(answering.check_media(media))
    if json_out:
        render.print_json(info.to_dict())
        return
    for line in describe(info):
        render.write_text(line + "\n")


def describe(info: Any) -> list[str]:
    """Return a `MediaInfo` as lines for a person."""
    rows = [("file", str(info.path)), ("container", info.container), ("length", f"{info.duration_s:.2f} s")]
    if info.video is None:
        rows.append(("pictures", "none"))
    else:
        v = info.video
        rate = f", {v.fps:.2f} frames/s" if v.fps else ""
        n = 0 if info.frames is None else len(info.frames.time_s)
        count = f", {n} frame{'s' * (n != 1)}"
        rows.append(("pictures", f"{v.codec} {v.width}x{v.height}{rate}{count}"))
    if info.audio is None:
        rows.append(("sound", "none"))
    else:
        a = info.audio
        span = f", {info.audio_span[0]:.2f}-{info.audio_span[1]:.2f} s" if info.audio_span else ", nothing in it"
        rows.append(("sound", f"{a.codec} {a.sample_rate} Hz, {a.channels} channel{'s' * (a.channels != 1)}{span}"))
    if info.subtitles:
        rows.append(("subtitles", str(len(info.subtitles))))
    rows.append(("status", info.status))
    rows.extend(("problem", text) for text in info.problems)
    return render.table(rows).splitlines()
