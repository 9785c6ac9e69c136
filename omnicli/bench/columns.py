"""A bench laid out: which of a row's values stand in which column, and the lines under the tables. See `rows`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from omnicli.bench.table import ERROR, NOTHING, Cells, Sheet, number, percent, times
from omnicli.config.config import precision

GIB = 2**30

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of the text tables: its head, what a row shows in it, and in which of the two tables it is."""

    head: str
    show: Callable[[Row], str]
    part: int


def _tokens(row: Row, modality: str) -> str:
    count = row["tokens"][modality]
    return f"{count['encoded']:,} -> {count['kept']:,}"


def median(row: Row, name: str) -> float:
    """Return the median seconds of a time that rows hold."""
    return float(row["seconds"][name]["median"])


COLUMNS = (
    Column("pictures", lambda r: _tokens(r, "video"), 0),
    Column("sound", lambda r: _tokens(r, "audio"), 0),
    Column("kept", lambda r: percent(r["retention"]["door"]), 0),
    Column("in layers", lambda r: percent(r["retention"]["layers"]), 0),
    Column("TFLOPs", lambda r: number(r["flops"]["prefill"], 1e12), 0),
    Column("FLOPs x", lambda r: times(r["flops"]["factor"]), 0),
    Column("device GiB", lambda r: number(r["peak_memory"]["device_bytes"], GIB), 0),
    Column("host GiB", lambda r: number(r["peak_memory"]["host_bytes"], GIB), 0),
    Column("agrees", lambda r: percent(r["agreement"]), 0),
    Column("encode s", lambda r: number(median(r, "encode")), 1),
    Column("select ms", lambda r: number(median(r, "compress"), 1e-3), 1),
    Column("in LLM ms", lambda r: number(median(r, "select_in_llm"), 1e-3), 1),
    Column("prefill s", lambda r: number(median(r, "prefill")), 1),
    Column("prefill x", lambda r: times(r["factor"]["prefill"]), 1),
    Column("1st token s", lambda r: number(median(r, "time_to_first_token")), 1),
    Column("1st token x", lambda r: times(r["factor"]["time_to_first_token"]), 1),
    Column("decode tok/s", lambda r: number((r["decode_tokens_per_s"] or {}).get("median")), 1),
)
"""Columns of the tables after the preset's name: what is read and what it costs, then what it takes."""


PAPER_COUNT = (
    "TFLOPs as papers on token compression count: one per multiply-add, every token meets every token, the head on all"
)


def sheet(report: dict[str, Any]) -> Sheet:
    """Return the bench in two tables; what went wrong with a row stands in the first one."""
    rows = report["rows"]
    parts = [make_cells(rows, [c for c in COLUMNS if c.part == part], told=part == 0) for part in (0, 1)]
    return Sheet(parts, make_cells(rows, COLUMNS, told=True), [flat(row) for row in rows], facts(report))


def make_cells(rows: Sequence[Row], columns: Sequence[Column], *, told: bool) -> Cells:
    """Return a table of these columns after the preset's name; ``told``: what went wrong with a row is in the last."""
    failed = told and any(r["error"] for r in rows)
    out = [["preset", *(c.head for c in columns), *([ERROR] if failed else [])]]
    for row in rows:
        shown = [NOTHING] * len(columns) if row["error"] else [c.show(row) for c in columns]
        out.append([row["preset"], *shown, *([row["error"] or ""] if failed else [])])
    return out


def flat(row: Row) -> dict[str, Any]:
    """Return a row's numbers under one name each; of a spread the median and the quartiles."""
    out: dict[str, Any] = {"preset": row["preset"], "method": row["method"], "error": row["error"] or ""}
    if row["error"]:
        return out
    for modality in ("video", "audio"):
        for key, value in row["tokens"][modality].items():
            out[f"{modality}_{key}"] = value
    out |= {"text": row["tokens"]["text"], "generated": row["tokens"]["generated"]}
    out |= {f"retention_{k}": v for k, v in row["retention"].items()}
    flops = row["flops"]
    out |= {"prefill_flops": flops["prefill"], "flops_factor": flops["factor"], "flops_count": flops["count"]}
    out |= row["peak_memory"]
    spreads = {f"{name}_s": found for name, found in row["seconds"].items()}
    for name, found in {**spreads, "decode_tokens_per_s": row["decode_tokens_per_s"] or {}}.items():
        out |= {name: found.get("median"), f"{name}_q1": found.get("q1"), f"{name}_q3": found.get("q3")}
    out |= {f"{name}_factor": v for name, v in row["factor"].items()}
    return out | {"stage_gap": row["stage_gap"], "agreement": row["agreement"]}


def facts(report: dict[str, Any]) -> list[str]:
    """Return the lines under the tables: how often, what all presets share, and what to know of it."""
    settings = report["settings"]
    good = [r for r in report["rows"] if not r["error"]]
    lines = [
        *origin(report),
        f"{rounds(settings)}, presets in turns; {settings['max_new_tokens']} tokens written by each",
    ]
    if settings["count"] == "paper":
        lines.append(PAPER_COUNT)
    if good and settings["repeat"] > 1:
        widest = max(good, key=lambda r: _width(r["seconds"]["prefill"]))
        width = 100 * _width(widest["seconds"]["prefill"])
        lines.append(
            f"spread: the middle half of prefill times spans {width:.1f} % of their median ({widest['preset']})"
        )
    if good:
        memory = [r["peak_memory"]["encode_device_bytes"] or r["peak_memory"]["encode_host_bytes"] for r in good]
        lines.append(
            f"shared: film decoded in {number(max(median(r, 'decode') for r in good))} s; decoding and encoding "
            f"peaked at {number(max(memory), GIB)} GiB"
        )
    return [*lines, *report["notes"]]


def origin(report: dict[str, Any]) -> list[str]:
    """Return the lines that say which film, which model and which machine."""
    media, model, machine = report["media"], report["model"], report["machine"]
    line = f"film: {media['name']}, {media['duration_s']:.0f} s"
    if used := media.get("used"):
        size = f" of {used['width']}x{used['height']}" if used["frames"] else ""
        line += f"; {used['frames']} frames{size}, {used['audio_s']:.0f} s of sound"
    where = f"{machine['device']}, {machine['threads']} threads on {machine['cores']} cores"
    return [line, f"model: {model['name']} ({precision(model)}); {where}"]


def rounds(settings: dict[str, Any]) -> str:
    """Return how often was measured."""
    return f"medians of {settings['repeat']} rounds after {settings['warmup']} to warm up"


def _width(found: dict[str, Any]) -> float:
    """Return the middle half's width as a share of the median."""
    return float((found["q3"] - found["q1"]) / found["median"]) if found["median"] else 0.0
