"""A manifest: a JSONL or CSV file of films and questions. Every wrong line is told of, and none is guessed at."""

from __future__ import annotations

import csv
import difflib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omnicli.batch.choices import LETTERS
from omnicli.batch.items import Wanted
from omnicli.errors import UsageError

FIELDS = ("media", "question", "id", "choices")
CHOICE_SEPARATOR = "|"
"""Between the options of a CSV cell."""


def read_manifest(path: Path, questions: Sequence[str]) -> tuple[list[Wanted], list[str]]:
    """Return what a manifest asks for, and what is wrong with it: one line of text per problem, with its line number.

    Each line has ``media`` (a path, from the manifest's folder on), ``question``, and if wanted ``id`` and ``choices``
    (a list; in a CSV cell with ``|`` between). Other columns are left alone, unless one looks like a misspelt name.

    Parameters
    ----------
    questions : sequence of str
        Asked where a line has no question of its own.

    Raises
    ------
    UsageError
        The file cannot be read or its name tells no format.
    """
    reader = {".jsonl": _json_lines, ".ndjson": _json_lines, ".csv": _table}.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"--manifest {path}: the name must end in .jsonl or .csv")
    wanted: list[Wanted] = []
    problems: list[str] = []
    lines_of: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            for number, entry in reader(file):
                if isinstance(entry, str):
                    problems.append(f"{path}: line {number}: {entry}")
                    continue
                wrong = list(_problems(entry, questions))
                if (name := entry.get("id")) is not None:
                    before = lines_of.setdefault(str(name), number)
                    wrong += [f"id {name!r} is that of line {before} too"] if before != number else []
                if wrong:
                    problems.append(f"{path}: line {number}: {'; '.join(wrong)}")
                else:
                    wanted += _wanted(entry, os.path.dirname(path), questions)
    except OSError as error:
        raise UsageError(f"--manifest {path}: {error.strerror or error}") from error
    if not wanted and not problems:
        raise UsageError(f"--manifest {path}: holds no line")
    return wanted, problems


def _json_lines(file: Any) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            yield number, f"not valid JSON ({error})"
            continue
        yield number, value if isinstance(value, dict) else "not a JSON object"


def _table(file: Any) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Read CSV with a head line; empty cells count as missing. A cell may hold line breaks."""
    rows = csv.reader(file, strict=True)
    head: list[str] = []
    begin = 1
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield begin, f"not valid CSV ({error})"
            return  # what follows cannot be told apart any more
        number, begin = begin, rows.line_num + 1
        if not head:
            head = [name.strip() for name in row]
            if "media" not in head:
                yield number, "the first line must name the columns: media, question, and if wanted id, choices"
                return
        elif len(row) == len(head):
            entry: dict[str, Any] = {name: cell for name, cell in zip(head, row, strict=True) if cell.strip()}
            if "choices" in entry:
                entry["choices"] = [text.strip() for text in entry["choices"].split(CHOICE_SEPARATOR)]
            yield number, entry
        elif row:
            yield number, f"{len(row)} cells, but the head has {len(head)}"


def _problems(entry: dict[str, Any], questions: Sequence[str]) -> Iterator[str]:
    """Yield what is wrong with an entry."""
    for key in sorted(entry.keys() - set(FIELDS)):
        if near := difflib.get_close_matches(key, set(FIELDS) - entry.keys(), n=1, cutoff=0.75):
            yield f"unknown field {key!r}; did you mean {near[0]}?"
    media, question, name, choices = (entry.get(field) for field in FIELDS)
    if media is None:
        yield "no media"
    elif not isinstance(media, str) or not media.strip() or "\0" in media or not _is_name(media):
        yield "media must be the path of a file"
    if question is None and not questions:
        yield "no question, and none given with -q"
    elif question is not None and not _is_text(question):
        yield "question must be text, and not empty"
    if name is not None and (isinstance(name, bool) or not isinstance(name, str | int) or not _is_text(str(name))):
        yield "id must be text or an integer"
    elif name is not None and question is None and len(questions) > 1:
        yield f"an id, but no question; -q was given {len(questions)} times"
    if choices is not None and not (
        isinstance(choices, list) and 2 <= len(choices) <= len(LETTERS) and all(map(_is_text, choices))
    ):
        yield f"choices must be 2 to {len(LETTERS)} texts, none of them empty"


def _wanted(entry: dict[str, Any], folder: str, questions: Sequence[str]) -> list[Wanted]:
    asked = [entry["question"].strip()] if entry.get("question") is not None else list(questions)
    name = None if entry.get("id") is None else str(entry["id"])
    media = os.path.join(folder, os.path.expanduser(entry["media"]))
    return [Wanted(media, text, name, tuple(entry.get("choices") or ())) for text in asked]


def _is_text(value: object) -> bool:
    """Tell whether a value is text that says something, without bytes that were not UTF-8 or halves of a pair."""
    return isinstance(value, str) and bool(value.strip()) and not any("\ud800" <= c <= "\udfff" for c in value)


def _is_name(text: str) -> bool:
    """Tell whether a text can be a file's name."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True
