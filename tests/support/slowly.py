"""Parameters of which only some run with the fast tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def slow_but(values: Iterable[Any], fast: Callable[[Any], bool]) -> list[Any]:
    """Return the values as parameters, those that are not ``fast`` called slow."""
    return [value if fast(value) else pytest.param(value, marks=pytest.mark.slow) for value in values]
