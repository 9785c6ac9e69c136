"""A bench in the columns of a paper's table of costs: those that are measured here, under the paper's heads.

What is measured here is one film on this machine, not the paper's benchmark on its card. See `columns` for our own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omnicli.bench.columns import GIB, Column, Row, facts, flat, make_cells, median
from omnicli.bench.table import Sheet, number, percent, times


@dataclass(frozen=True)
class View:
    """A paper's table: where it stands, the columns that are measured here, and what is left out of it, and why."""

    source: str
    columns: tuple[Column, ...]
    left_out: str


def _seconds(row: Row, name: str, factor: bool = False) -> str:
    """Return a median in seconds, with how many times as fast it is as full tokens; a dash for a stage never run."""
    found = median(row, name)
    if not factor:
        return number(found or None)
    return f"{number(found)} ({times(row['factor'][name])})"


_RETENTION = Column("R", lambda r: percent(r["retention"]["layers"]), 0)
_MEMORY = Column("GPU peak GiB", lambda r: number(r["peak_memory"]["device_bytes"], GIB), 0)

VIEWS = {
    "avoc-3": View(
        "AVOC, table 3 and section 4.5",
        (
            Column("rho", lambda r: percent(r["retention"]["door"]), 0),
            Column("compression s", lambda r: _seconds(r, "compress"), 0),
            Column("prefilling s", lambda r: _seconds(r, "prefill"), 0),
            Column("TTFT s", lambda r: _seconds(r, "time_to_first_token"), 0),
        ),
        "",
    ),
    "seats-4": View(
        "SEATS, table 4",
        (
            _RETENTION,
            Column("TFLOPs", lambda r: f"{number(r['flops']['prefill'], 1e12)} ({times(r['flops']['factor'])})", 0),
            _MEMORY,
            Column("pre-LLM s", lambda r: _seconds(r, "compress"), 0),
            Column("inner-LLM s", lambda r: _seconds(r, "select_in_llm"), 0),
            Column("prefill s", lambda r: _seconds(r, "prefill", factor=True), 0),
            Column("TTFT s", lambda r: _seconds(r, "time_to_first_token", factor=True), 0),
        ),
        "the mean score, which takes benchmarks",
    ),
    "omarc-6": View(
        "O-MARC, table 6",
        (
            Column("time s", lambda r: _seconds(r, "wall"), 0),
            Column("memory GiB", _MEMORY.show, 0),
        ),
        "frames and their size, which all rows here share and the line of the film tells",
    ),
}
"""Views by the name that ``--view`` takes: the paper and the table's number."""


def sheet(report: dict[str, Any], name: str) -> Sheet:
    """Return the bench in the columns of the view ``name``, and what it leaves out among the lines below."""
    view, rows = VIEWS[name], report["rows"]
    cells = make_cells(rows, view.columns, told=True)
    left_out = f"; left out: {view.left_out}" if view.left_out else ""
    line = f"columns of {view.source}, measured on this film and machine{left_out}"
    return Sheet([cells], cells, [flat(row) for row in rows], [line, *facts(report)])


__all__ = ["VIEWS", "View", "sheet"]
