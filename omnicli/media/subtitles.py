"""Subtitles as timed lines of text: from a file beside the film or from a text track in it.

Times are seconds in the film, second 0 being the container's start; those of a file of subtitles are that already.
Nothing here knows a model: what a token is, is the caller's to count.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av

from omnicli.errors import MediaError
from omnicli.media.container import FAILURES, DecodeStats, one_line, open_media, packets

if TYPE_CHECKING:
    from omnicli.config.settings import MediaConfig
    from omnicli.media.probe import MediaInfo

ENDINGS = (".srt", ".vtt", ".ass")
"""Files beside a film that are looked for, in this order."""

_DRAWING = re.compile(r"\{[^}]*\\p[1-9]")  # ASS: what follows are coordinates
_OVERRIDE = re.compile(r"\{[^}]*\}")
_TAG = re.compile(r"<[/|!a-zA-Z][^<>]*>")  # also a model's special tokens, <|...|>, which a film must not bring in


@dataclass(frozen=True)
class Line:
    """What is said from ``start_s`` to ``end_s``, in seconds of the film; one line without markup."""

    start_s: float
    end_s: float
    text: str

    def __str__(self) -> str:
        """Return ``[mm:ss] text``, from an hour on ``[h:mm:ss] text``; seconds are cut, not rounded."""
        minutes, seconds = divmod(int(self.start_s), 60)
        time = f"{minutes:02d}:{seconds:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
        return f"[{time}] {self.text}"


def preface(info: MediaInfo, settings: MediaConfig, count: Callable[[str], int]) -> tuple[str, tuple[str, ...]]:
    """Return the text that stands before the question, and what there is to know about it.

    Parameters
    ----------
    count : callable
        Returns the tokens of a text; at most ``settings.subtitle_tokens`` of them are used.

    Returns
    -------
    text, notes : str, tuple of str
        The text is empty if no line is in the span that is looked at; the notes begin with the film's name.

    Raises
    ------
    MediaError
        A file of subtitles cannot be read.
    """
    if settings.subtitles == "off":
        return "", ()
    found, notes = read(info, settings.subtitles)
    begin, end = settings.start or 0.0, min(settings.end or info.duration_s, info.duration_s)
    lines = [line for line in found if line.start_s < end and line.end_s > begin]
    if found and not lines:
        notes.append(f"subtitles: none of {len(found):,} lines between {begin:g} and {end:g} s")
    text, used = fit(lines, settings.subtitle_tokens, count)
    if used < len(lines):
        budget = f"media.subtitle_tokens={settings.subtitle_tokens}"
        notes.append(f"subtitles: {used:,} of {len(lines):,} lines fit {budget}, spread evenly")
    return text, tuple(f"{info.path.name}: {note}" for note in notes)


def read(info: MediaInfo, source: str) -> tuple[list[Line], list[str]]:
    """Return a film's lines in order of time, and notes.

    Parameters
    ----------
    source : str
        ``auto``: the file beside the film with its name and one of `ENDINGS`, else the first text track in it; or a
        file of subtitles.

    Raises
    ------
    MediaError
        A file of subtitles cannot be read.
    """
    found = files(info.path, source)
    if found:
        others = f"subtitles: read from {found[0].name}, not from {', '.join(p.name for p in found[1:])}"
        return _from_file(found[0]), [others] if found[1:] else []
    tracks = [track for track in info.subtitles if track.text]
    if not tracks:
        return [], [f"subtitles: {'only pictures of text' if info.subtitles else 'none'} in the film, none beside it"]
    notes = []
    if tracks[1:]:
        notes.append(f"subtitles: the first of {len(tracks)} text tracks ({tracks[0].language or 'no language given'})")
    stats = DecodeStats()
    with open_media(info.path) as container:
        stream = container.streams[tracks[0].index]
        lines = _lines(_counted(packets(container, [stream], stats), stats), info.origin_s)
    if stats.error_count:
        notes.append(f"subtitles: {stats.error_count} errors in reading them; lines may be missing")
    return lines, notes


def files(film: Path, source: str) -> list[Path]:
    """Return the files from which `read` could take a film's lines; it takes the first. Empty: its text tracks."""
    if source != "auto":
        return [Path(source).expanduser()]
    return [path for ending in ENDINGS if (path := film.with_suffix(ending)).is_file()]


def fit(lines: list[Line], budget: int, count: Callable[[str], int]) -> tuple[str, int]:
    """Return as many lines as the budget holds, spread evenly over all of them, and how many these are.

    Parameters
    ----------
    budget : int
        Tokens, those of the heading included.
    """
    used = len(lines)
    while used:
        text = "Subtitles:\n" + "".join(f"{lines[(2 * i + 1) * len(lines) // (2 * used)]}\n" for i in range(used))
        if (tokens := count(text)) <= budget:
            return text, used
        used = min(used - 1, used * budget // tokens + 1)
    return "", 0


def _from_file(path: Path) -> list[Line]:
    try:
        with av.open(os.path.abspath(path), container_options={"protocol_whitelist": "file"}) as container:
            if any(stream.type != "subtitle" for stream in container.streams):
                raise MediaError(f"{path}: is no file of subtitles ({', '.join(ENDINGS)})")
            return _lines((subtitle for packet in container.demux() for subtitle in _decoded(packet)), 0.0)
    except FAILURES as error:
        raise MediaError(f"{path}: no subtitles that can be read ({one_line(error)}); is it UTF-8?") from error


def _counted(found: Iterable[Any], stats: DecodeStats) -> Iterator[tuple[Any, Any]]:
    """Yield what packets hold; what cannot be decoded is counted."""
    for packet in found:
        try:
            yield from _decoded(packet)
        except FAILURES as error:
            stats.fail("subtitles", error)


def _decoded(packet: Any) -> Iterator[tuple[Any, Any]]:
    """Yield a packet with each text in it; empty packets end a stream."""
    if packet.size and packet.pts is not None:
        for subtitle in packet.decode():
            yield packet, subtitle


def _lines(found: Iterable[tuple[Any, Any]], origin_s: float) -> list[Line]:
    out = []
    for packet, subtitle in found:
        start_s = float(packet.pts * packet.time_base) - origin_s
        text = plain(subtitle.dialogue.decode("utf-8", "replace")) if hasattr(subtitle, "dialogue") else ""
        if text:
            out.append(Line(start_s, start_s + float((packet.duration or 0) * packet.time_base), text))
    return sorted(out, key=lambda line: line.start_s)


def plain(text: str) -> str:
    """Return the text of an ASS dialogue on one line without markup, empty if it is a drawing."""
    if _DRAWING.search(text):
        return ""
    text = html.unescape(_OVERRIDE.sub("", text).replace("\\h", " ").replace("\\N", " ").replace("\\n", " "))
    return " ".join(_TAG.sub("", text).split())
