"""Answers of `omni needle` on disk, so that a run that was stopped goes on where it was. Knows no model and no film."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omnicli.errors import UsageError
from omnicli.utils.jsonl import JsonLines

SCHEMA = 1
_KEY = ("haystack", "preset", "settings", "modality", "duration_s", "depth", "needle")


class Journal:
    """Answers so far, one JSON line each, written as they come; the first line holds what all of them depend on.

    Answers of other presets, durations or depths than a run's own stay for a run that wants them.

    Parameters
    ----------
    path : Path or None
        None keeps answers in memory only.
    arguments : dict
        What all answers depend on, as plain JSON values: haystacks, model, seed.

    Raises
    ------
    UsageError
        The file is of a run with other arguments, is no such journal, cannot be written, or another process has it.
    """

    def __init__(self, path: Path | None, arguments: dict[str, Any]) -> None:
        self.path = path
        self.rows: dict[tuple[Any, ...], dict[str, Any]] = {}
        header = {"schema": SCHEMA, "kind": "needle journal", "arguments": json.loads(json.dumps(arguments))}
        self._lines = None if path is None else JsonLines(path, "--journal")
        if self._lines is None:
            return
        try:
            if values := list(self._lines.values()):
                self._read(values, header)
            else:
                self._lines.append(header)
        except UsageError:
            self.close()
            raise

    def _read(self, values: list[dict[str, Any]], header: dict[str, Any]) -> None:
        (first, *rows), path = values, self.path
        try:
            kind, arguments = first["kind"], first["arguments"]
            self.rows = {tuple(row[k] for k in _KEY): row for row in rows}
        except (KeyError, TypeError) as error:
            raise UsageError(f"--journal {path}: is no needle journal; name another file") from error
        if kind != header["kind"] or first.get("schema") != SCHEMA:
            raise UsageError(f"--journal {path}: is no needle journal of this version; name another file")
        wanted = header["arguments"]
        if differing := sorted(k for k in {*wanted, *arguments} if wanted.get(k) != arguments.get(k)):
            raise UsageError(
                f"--journal {path}: written by a run with other {', '.join(differing)}; name another file, "
                "or repeat that run's arguments"
            )

    def __contains__(self, key: tuple[Any, ...]) -> bool:
        return key in self.rows

    def add(self, row: dict[str, Any]) -> None:
        """Keep an answer, on disk as well before anything else happens."""
        self.rows[tuple(row[k] for k in _KEY)] = row
        if self._lines is not None:
            self._lines.append(row)

    def close(self) -> None:
        """Let go of the file, which nobody else can write until then."""
        if self._lines is not None:
            self._lines.close()
