"""Text, times and shares as people read them, on a terminal and in a page. Knows no films and no answers."""

from __future__ import annotations

import html
import math
import re

KINDS = {"video": "pictures", "audio": "sound"}
"""The modalities in words."""

_NOT_SHOWN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls, halves of characters, and what turns the direction of the text around it."""


def plain(value: object) -> str:
    """Return a value as text that is safe to print; what is no character becomes U+FFFD."""
    return _NOT_SHOWN.sub("\ufffd", str(value))


def text(value: object) -> str:
    """Return a value as text of a page, also inside quotes; what is no character becomes U+FFFD."""
    return html.escape(plain(value), quote=True)


def clock_time(seconds: float) -> str:
    """Return a whole second as ``mm:ss``, or ``h:mm:ss`` from an hour on."""
    whole = int(seconds)
    rest = f"{whole // 60 % 60:02d}:{whole % 60:02d}"
    return rest if whole < 3600 else f"{whole // 3600}:{rest}"


def span(start_s: float, end_s: float) -> str:
    """Return a stretch of the film in whole seconds, none of it left out."""
    return f"{clock_time(math.floor(start_s))}\u2013{clock_time(math.ceil(end_s))}"


def percent(share: float | None) -> str:
    """Return a share, 0 to 1, in percent."""
    return "\u2013" if share is None else f"{100 * share:.3g} %"
