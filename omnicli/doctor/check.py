"""What a check returns, and how one is run so that it never raises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

REINSTALL = "reinstall: pip install --force-reinstall omnicli"


@dataclass(frozen=True)
class Check:
    """What was found, and what to do about it.

    Attributes
    ----------
    name, found : str
    status : str
        ``ok``; ``remark``: works, but could do better; ``problem``: omni cannot answer.
    remedy : str
        Empty if and only if all is well.
    details : list of dict or None
        The same in parts, for programs.
    """

    name: str
    status: str
    found: str
    remedy: str = ""
    details: list[dict[str, Any]] | None = None


def result(
    name: str, found: str, remedy: str = "", *, problem: bool = False, details: list[dict[str, Any]] | None = None
) -> Check:
    """Return a check: no remedy is "ok", a remedy is a "remark" or, with ``problem``, a "problem"."""
    status = "problem" if problem else "remark" if remedy else "ok"
    return Check(name, status, found, remedy, details)


def guarded(check: Callable[[], Check]) -> Check:
    """Run a check; one that fails itself is a problem, not a crash."""
    try:
        return check()
    except Exception as error:  # whatever a broken library raises is what there is to tell
        return result(
            check.__name__.replace("_", " "), f"{type(error).__name__}: {line(error)}", REINSTALL, problem=True
        )


def line(error: Exception) -> str:
    """Return an error as one line of bounded length."""
    return " ".join(str(error).split())[:200]


__all__ = ["REINSTALL", "Check", "guarded", "line", "result"]
