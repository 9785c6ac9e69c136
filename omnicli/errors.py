"""One exception class per exit code; the message is the one line a user reads.

A message says what happened, to which file or setting, and what to do about it.
Raise these anywhere; only the command line turns them into an exit code.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OmniError(Exception):
    """Base of every error meant for the user. ``exit_code`` is the process's exit status."""

    exit_code = 1


class UsageError(OmniError):
    """A command was called with arguments that make no sense together (exit 2)."""

    exit_code = 2


class MediaError(OmniError):
    """The input file is missing, unreadable, or holds nothing to decode (exit 3)."""

    exit_code = 3


class MemoryLimitError(OmniError):
    """The request does not fit in memory or in the model's context (exit 4)."""

    exit_code = 4


class ModelError(OmniError):
    """The model or its weights are missing, incomplete or of an unsupported kind (exit 5)."""

    exit_code = 5


class UnknownFamilyError(ModelError):
    """Nothing is known of the model without loading it, so that nothing can be planned."""


class ConfigError(OmniError):
    """A preset or setting is wrong (exit 6). ``problems`` lists every problem found, not only the first."""

    exit_code = 6

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("; ".join(self.problems))


def near_names(name: str, known: Iterable[str]) -> str:
    """Return a hint naming the nearest known names (``"; did you mean a, b?"``), or all of them when none is near."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {', '.join(close)}?"
    return f"; known: {', '.join(names)}" if names else ""
