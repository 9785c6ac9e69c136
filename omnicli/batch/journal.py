"""Rows of a batch: where they go, which items are done, and what replaces what. Knows nothing of how rows are made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from omnicli.errors import UsageError
from omnicli.utils.jsonl import JsonLines

Row = dict[str, Any]


class Sink(Protocol):
    """Takes rows and knows how items ended before. ``status``: key to the status of an item's newest row."""

    status: dict[str, str]

    def add(self, row: Row) -> None:
        """Put a row where it is safe."""


class Stream:
    """Rows that are handed on and not kept: nothing is known of earlier runs."""

    def __init__(self, write: Callable[[Row], None]) -> None:
        self.status: dict[str, str] = {}
        self._write = write

    def add(self, row: Row) -> None:
        """Write a row."""
        self._write(row)
        self.status[row["key"]] = row["status"]


class Journal:
    """Rows in a file, one item each, locked against a second run. Use it as a context manager.

    A new row of an item that has one (after ``--retry-failed`` or ``--force``) is added first, and the old one taken
    out when the run ends, so that no moment is without an answer that was there; after a kill in between, the newest
    row of an item is the one that counts, and the next run tidies up.

    Raises
    ------
    UsageError
        The file is no batch journal, cannot be written, or is being written by another process.
    """

    def __init__(self, path: Path) -> None:
        self.status: dict[str, str] = {}
        self._line_of: dict[str, int] = {}
        self._old: set[int] = set()
        self._count = 0
        self._lines = JsonLines(path, "-o")
        try:
            for row in self._lines.values():
                if not isinstance(row.get("key"), str) or not isinstance(row.get("status"), str):
                    raise UsageError(f"-o {path}: line {self._count + 1} is no row of omni batch; name another file")
                self._note(row)
        except BaseException:
            self._lines.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None and self._old:
            self._lines.drop(self._old)
        self._lines.close()

    def add(self, row: Row) -> None:
        """Append a row; it is on disk when this returns."""
        self._lines.append(row)
        self._note(row)

    def _note(self, row: Row) -> None:
        key = row["key"]
        if key in self._line_of:
            self._old.add(self._line_of[key])
        self._line_of[key] = self._count
        self.status[key] = row["status"]
        self._count += 1
