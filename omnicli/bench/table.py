"""Tables of a report as text, Markdown, CSV, or drawn on a terminal. Knows nothing of what is in them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

NOTHING = "-"
ERROR = "error"
"""Head of the column that says why a row has no numbers."""

Cells = list[list[str]]


@dataclass(frozen=True)
class Sheet:
    """A report ready to be shown.

    Attributes
    ----------
    tables : list of Cells
        Rows of text, heads first, in tables narrow enough for a terminal.
    wide : Cells
        All columns in one table, for Markdown.
    flat : list of dict
        Bare numbers by name, one dict a row, for CSV.
    facts : list of str
        Lines under the tables.
    """

    tables: list[Cells]
    wide: Cells
    flat: list[dict[str, Any]]
    facts: list[str]


def number(value: float | None, unit: float = 1.0) -> str:
    """Return a number at three significant digits, or a dash; ``unit`` divides it."""
    if value is None:
        return NOTHING
    scaled = value / unit
    if abs(scaled) >= 1000:
        return f"{scaled:,.0f}"
    text = f"{scaled:.3g}"
    return f"{scaled:.1e}" if "e" in text else text


def times(factor: float | None) -> str:
    """Return a factor with its sign, or a dash."""
    return NOTHING if factor is None else f"{number(factor)}x"


def percent(share: float | None) -> str:
    """Return a share in per cent, or a dash."""
    return NOTHING if share is None else f"{100 * share:.1f} %"


def as_text(sheet: Sheet) -> str:
    """Return the tables and the facts under them as plain text."""
    parts = ["\n".join(_aligned(cells)) for cells in sheet.tables]
    return "\n\n".join([*parts, "\n".join(sheet.facts)]) + "\n"


def as_markdown(sheet: Sheet) -> str:
    """Return one wide Markdown table, and the facts as a list."""
    heads, *rows = sheet.wide
    lines = [_markdown_row(heads), _markdown_row(["---", *["---:"] * (len(heads) - 1)])]
    lines += [_markdown_row(row) for row in rows]
    return "\n".join([*lines, "", *(f"- {text}" for text in sheet.facts)]) + "\n"


def as_csv(sheet: Sheet) -> str:
    """Return one line per row of bare numbers, seconds and bytes; empty where there is none."""
    names = list(dict.fromkeys(name for row in sorted(sheet.flat, key=len, reverse=True) for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sheet.flat)
    return out.getvalue()


def draw(sheet: Sheet) -> None:
    """Draw the tables on a terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for heads, *rows in sheet.tables:
        drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for i, head in enumerate(heads):
            drawn.add_column(head, justify="left" if i == 0 or head == ERROR else "right", no_wrap=i == 0)
        for row in rows:
            drawn.add_row(*(Text(cell) for cell in row))
        console.print(drawn)
    for text in sheet.facts:
        console.print(text, markup=False, highlight=False)


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield rows as lines: first column and errors to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    left = {0} | ({len(widths) - 1} if rows[0][-1] == ERROR else set())
    for row in rows:
        cells = zip(row, widths, strict=True)
        yield "  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(cells)).rstrip()


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"
