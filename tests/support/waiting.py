"""Waiting for what has to happen, however busy the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

PATIENCE_S = 300.0
"""So long an event that has to come may take; what never comes fails the test after it."""


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition to hold; the test fails with ``what`` if it never does."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def ended(pid: int) -> bool:
    """Tell whether a process is gone, or left is only what its parent did not collect yet."""
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
