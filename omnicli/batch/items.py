"""What is to be done: files found, questions about them, and the key by which an answered one is known again.

Reads names and, for keys, a few bytes of each file; decodes nothing.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from omnicli.batch.choices import with_choices
from omnicli.errors import UsageError, near_names
from omnicli.utils import fingerprint

SUFFIXES = frozenset(
    """3g2 3gp aac ac3 aif aiff amr asf avi caf divx dv f4v flac flv m2ts m2v m4a m4b m4v mka mkv mov mp3 mp4 mpeg mpg
    mts mxf oga ogg ogv opus rm rmvb ts vob wav webm wma wmv""".split()  # noqa: SIM905
)
"""What a media file in a folder is told by; files that are named themselves may be called anything."""


@dataclass(frozen=True)
class Wanted:
    """A question about a file, as it was given. ``name``: the id it has in a manifest."""

    media: str
    question: str
    name: str | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Item:
    """One row to be: a question about a file.

    ``question`` is what the model is asked, choices included. ``key`` identifies content, question and settings, and
    not the file's name. ``same_as``: the file whose row answers this one too, which is then not worked on.
    """

    media: str
    question: str
    key: str
    name: str | None = None
    choices: tuple[str, ...] = ()
    same_as: str | None = None


@dataclass(frozen=True)
class Job:
    """A file and everything asked about it: what one worker does with the file encoded once."""

    media: str
    items: tuple[Item, ...]


def find_media(names: Iterable[str], note: Callable[[str], None], *, patterns: bool = True) -> list[str]:
    """Return the files that paths stand for, without repetitions.

    A folder stands for the media files in and below it, by suffix, sorted, without hidden ones and without following
    links to folders. With ``patterns``, a name that is no file may be a glob pattern, ``**`` included, and has to stand
    for something; without, names are names and one that does not exist is kept, so that it gets its row.

    Parameters
    ----------
    note : callable
        Told in one line of a folder that cannot be read.

    Raises
    ------
    UsageError
        A name or a pattern stands for nothing.
    """
    found: dict[str, None] = {}
    for name in names:
        path = os.path.expanduser(name) if patterns else name
        if os.path.lexists(path) or not patterns:
            matches = [path]
        elif any(c in path for c in "*?["):
            matches = sorted(glob.glob(path, recursive=True))
            if not matches:
                raise UsageError(f"{name}: no file matches")
        else:
            raise UsageError(f"{name}: no such file or folder{_near(path)}")
        for match in matches:
            found.update(dict.fromkeys(_in_folder(match, note) if os.path.isdir(match) else [match]))
    return list(found)


def _in_folder(folder: str, note: Callable[[str], None]) -> list[str]:
    out = []
    for place, folders, files in os.walk(
        folder, onerror=lambda e: note(f"{e.filename}: not looked into ({e.strerror})")
    ):
        folders[:] = [f for f in folders if not f.startswith(".")]
        out += [os.path.join(place, f) for f in files if not f.startswith(".") and is_media(f)]
    return sorted(out, key=lambda path: path.split(os.sep))


def is_media(name: str) -> bool:
    """Tell by its suffix whether a name is that of a film or a sound file."""
    return os.path.splitext(name)[1][1:].lower() in SUFFIXES


def _near(path: str) -> str:
    folder = os.path.dirname(path) or "."
    hint = near_names(os.path.basename(path), os.listdir(folder)) if os.path.isdir(folder) else ""
    return hint if hint.startswith("; did") else ""


def plan(wanted: Sequence[Wanted], settings: str, subtitles: str = "off") -> list[Job]:
    """Group questions by file, in the order in which files first appear, and give each its key.

    The key is made of the file (its size, time of change, suffix and samples of its content: `fingerprint.file`), of
    the question, its choices and its name, of the text in the file that ``subtitles`` (`MediaConfig.subtitles`) names
    or finds beside the film, and of ``settings``: everything else that answers depend on. A second name of the same
    file (a link) becomes an item that refers to the first one; the same name twice becomes one item.
    """
    contents: dict[str, str] = {}
    first: dict[str, str] = {}
    jobs: dict[str, list[Item]] = {}
    for one in wanted:
        if one.media not in contents:
            contents[one.media] = _content(one.media) + _subtitles(one.media, subtitles)
        question = with_choices(one.question, one.choices)
        key = _digest(contents[one.media], question, one.name, settings)
        item = Item(one.media, question, key, one.name, one.choices)
        here = os.path.abspath(one.media)
        if key in first and os.path.abspath(first[key]) != here:
            item = dataclasses.replace(item, key=_digest(key, here), same_as=first[key])
        if item.key not in first:
            first[item.key] = one.media
            jobs.setdefault(one.media, []).append(item)
    return [Job(media, tuple(items)) for media, items in jobs.items()]


def _content(media: str) -> str:
    """Return what identifies a file's content, or, of one that cannot be read, that it is this name without content."""
    path = Path(media)
    try:
        if path.is_file():
            return fingerprint.file(path, fingerprint.stamp(path))
    except (OSError, ValueError):  # ValueError: a null byte in the name
        pass
    return f"unreadable {os.path.abspath(media)}"


def _subtitles(media: str, source: str) -> str:
    """Return what identifies the text of the file of subtitles that is read with a film; empty without one."""
    if source == "off":
        return ""
    from omnicli.media.subtitles import files

    for path in files(Path(media), source)[:1]:
        try:
            return f" {hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()}"
        except (OSError, ValueError):
            return " unreadable"
    return ""


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
