"""A file of JSON objects, one a line, that survives whatever stops the process that writes it.

A row is one write, followed by fsync, so that a row is either there or not. What a killed process left unfinished is
cut off before the next row. The file is locked while it is open. Knows nothing of what the rows mean.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from omnicli.errors import UsageError


class JsonLines:
    """An open journal. Read it once with `values` before the first `append`.

    Nothing in the file changes before that, so that naming the wrong file harms nothing.

    Parameters
    ----------
    path : Path
        Made if it is not there.
    option : str
        What named it on the command line, for messages.

    Raises
    ------
    UsageError
        It is no plain file, cannot be opened, or another process has it open.
    """

    def __init__(self, path: Path, option: str) -> None:
        self.path, self.label = Path(os.path.realpath(path)), f"{option} {path}"
        self._end = 0
        self._cut = self._open_line = False
        if self.path.exists() and not self.path.is_file():
            raise UsageError(f"{self.label}: is not a plain file")
        try:
            self._fd = self._locked()
        except OSError as error:
            raise UsageError(f"{self.label}: {error.strerror or error}") from error

    def _locked(self) -> int:
        """Return an open descriptor of the file that now has this name, locked by nobody else."""
        import fcntl

        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(fd), os.stat(self.path)):
                    return fd
            except BlockingIOError:
                os.close(fd)
                raise UsageError(f"{self.label}: another omni is writing it") from None
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # `drop` put a new file in its place between the two calls

    def values(self) -> Iterator[Any]:
        """Yield what the lines hold. A last line that is not whole is left out.

        Raises
        ------
        UsageError
            A line is no JSON object: this is no journal.
        """
        self._end = 0
        with open(self._fd, "rb", closefd=False) as file:
            file.seek(0)
            for number, line in enumerate(file, 1):
                try:
                    value = json.loads(line)
                except ValueError:  # also bytes that are not UTF-8
                    value = None
                if isinstance(value, dict):
                    self._end += len(line)
                    self._open_line = not line.endswith(b"\n")
                    yield value
                elif line.endswith(b"\n") or not (line.startswith(b"{") or not line.strip(b"\0")):
                    raise UsageError(f"{self.label}: line {number} is no row of JSON; name another file")
                else:
                    self._cut = True

    def append(self, value: dict[str, Any]) -> None:
        """Write one row, on disk when this returns. A row that does not fit on the disk leaves nothing behind.

        Raises
        ------
        UsageError
            It cannot be written.
        """
        data = (b"\n" if self._open_line else b"") + dumps(value).encode() + b"\n"
        try:
            if self._cut:
                os.ftruncate(self._fd, self._end)
            written = os.pwrite(self._fd, data, self._end)
            while written < len(data):
                written += os.pwrite(self._fd, data[written:], self._end + written)
            os.fsync(self._fd)
        except OSError as error:
            self._cut = True
            try:
                os.ftruncate(self._fd, self._end)
            finally:
                raise UsageError(f"{self.label}: cannot be written ({error.strerror or error})") from error
        self._end += len(data)
        self._cut = self._open_line = False

    def drop(self, numbers: Collection[int]) -> None:
        """Take out rows by their number from 0 on; at any moment there is either the old file or the new one.

        Nothing can be appended afterwards.
        """
        beside = self.path.with_name(f"{self.path.name}.new")
        with open(self._fd, "rb", closefd=False) as old, beside.open("wb") as new:
            old.seek(0)
            for number, line in enumerate(old):
                if number not in numbers:
                    new.write(line)
            new.flush()
            os.fsync(new.fileno())
        shutil.copymode(self.path, beside)
        os.replace(beside, self.path)
        self.close()

    def close(self) -> None:
        """Close and unlock the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def dumps(value: Any) -> str:
    """Return JSON on one line that can be written as UTF-8, with escapes for what is not text in a file's name."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text
