"""Numbers and graphics of the report as pieces of HTML, with inline SVG. Knows no rows.

Graphics take their colours from the page's style sheet, so that they follow light and dark. Everything that stands in
the page goes through `text`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omnicli.utils.display import KINDS, clock_time, percent, span, text


def size(count: float | None, unit: str = "") -> str:
    """Return a number with a decimal prefix, ``1.2 T``."""
    if count is None:
        return "\u2013"
    for power, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(count) >= power:
            return f"{count / power:.3g} {prefix}{unit}"
    return f"{count:,.0f} {unit}".strip()


def memory(count: float | None) -> str:
    """Return bytes in GiB."""
    return "\u2013" if count is None else f"{count / 2**30:.2f} GiB"


def bar(share: float) -> str:
    """Return a bar that fills ``share`` of its width; the number stands beside it, so it is not read out."""
    width = max(0.0, min(100.0, 100 * share))
    return (
        '<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="full" width="100" height="8"/><rect class="part" width="{width:.2f}" height="8"/></svg>'
    )


_ROW, _GAP, _LANE = 26, 4, 8


def heat_strip(timeline: dict[str, Any], ranges: Sequence[dict[str, Any]]) -> str:
    """Return the film from left to right: one row per modality, the stronger the larger the share of tokens kept.

    Parameters
    ----------
    timeline : dict
        ``tokens.timeline``.
    ranges : sequence of dict
        ``evidence``; numbered above the strip and outlined in it.
    """
    start, step = timeline["start_s"], timeline["step_s"]
    steps = len(timeline["video"]["encoded"])
    rows = [kind for kind in KINDS if any(timeline[kind]["encoded"])]
    if not rows:
        return ""
    above = _LANE if ranges else 0
    top = {kind: above + i * (_ROW + _GAP) for i, kind in enumerate(rows)}
    height = above + len(rows) * (_ROW + _GAP) - _GAP
    whole_s = steps * step
    out, keys, told = [], [], []
    for kind in rows:
        encoded, kept = timeline[kind]["encoded"], timeline[kind]["kept"]
        shares = [k / e if e else None for k, e in zip(kept, encoded, strict=True)]
        most = max(s for s in shares if s is not None)
        for first, last in _equal(shares):
            share = shares[first]
            if share is None:
                continue
            strength = 0.06 + 0.94 * share / most if most else 0.06
            when = f"{clock_time(start + first * step)}\u2013{clock_time(start + (last + 1) * step)}"
            out.append(
                f'<rect class="{kind}" x="{1000 * first / steps:.2f}" y="{top[kind]}" height="{_ROW}" '
                f'width="{1000 * (last + 1 - first) / steps:.2f}" fill-opacity="{strength:.3f}">'
                f"<title>{when} {KINDS[kind]}: {percent(share)} kept</title></rect>"
            )
        keys.append(f'<span class="key {kind}">{KINDS[kind]}, strongest step {percent(most)} kept</span>')
        told.append(f"{KINDS[kind]}: {sum(kept)} of {sum(encoded)} tokens kept")
    marks = []
    for number, found in enumerate(ranges, 1):
        left = max(0.0, min(995.0, 1000 * (found["start_s"] - start) / whole_s))
        right = max(left + 5, min(1000.0, 1000 * (found["end_s"] - start) / whole_s))
        out.append(f'<rect class="lane" x="{left:.2f}" y="0" width="{right - left:.2f}" height="{_LANE - 2}"/>')
        if found["modality"] in top:
            out.append(
                f'<rect class="mark" x="{left:.2f}" y="{top[found["modality"]]}" width="{right - left:.2f}" '
                f'height="{_ROW}"/>'
            )
        marks.append(f'<span class="at" style="left:{(left + right) / 20:.2f}%">{number}</span>')
        told.append(f"evidence {number} at {span(found['start_s'], found['end_s'])}")
    if ranges:
        keys.append('<span class="key mark">evidence, numbered</span>')
    ends = "".join(f"<span>{clock_time(start + whole_s * part / 2)}</span>" for part in range(3))
    label = text(f"Timeline of kept tokens, {clock_time(start)} to {clock_time(start + whole_s)}. {'; '.join(told)}")
    return (
        f'<figure class="strip"><div class="marks" aria-hidden="true">{"".join(marks)}</div>'
        f'<svg role="img" aria-label="{label}" viewBox="0 0 1000 {height}" preserveAspectRatio="none" '
        f'style="height:{height}px">{"".join(out)}</svg>'
        f'<div class="axis" aria-hidden="true">{ends}</div><figcaption>{"".join(keys)}</figcaption></figure>'
    )


def _equal(values: Sequence[Any]) -> list[tuple[int, int]]:
    """Return (first, last) of stretches of equal values."""
    out: list[tuple[int, int]] = []
    for i, value in enumerate(values):
        if out and values[out[-1][0]] == value:
            out[-1] = (out[-1][0], i)
        else:
            out.append((i, i))
    return out


@dataclass(frozen=True)
class Point:
    """A run in the scatter plot: its number in the table, its name, share of tokens kept, seconds to the answer."""

    number: int
    name: str
    retention: float
    seconds: float


_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 350, 14, 196


def scatter(points: Sequence[Point]) -> str:
    """Return retention against time to first token; a line joins the runs that no other one beats in both."""
    most_x, ticks_x = _ticks(100 * max(p.retention for p in points))
    most_y, ticks_y = _ticks(max(p.seconds for p in points))

    def at(p: Point) -> tuple[float, float]:
        return (
            _LEFT + (_RIGHT - _LEFT) * 100 * p.retention / most_x,
            _BOTTOM - (_BOTTOM - _TOP) * p.seconds / most_y,
        )

    out = []
    for tick in ticks_x:
        x = _LEFT + (_RIGHT - _LEFT) * tick / most_x
        out.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_BOTTOM}"/>')
        out.append(f'<text x="{x:.1f}" y="{_BOTTOM + 15}" text-anchor="middle">{tick:g}</text>')
    for tick in ticks_y:
        y = _BOTTOM - (_BOTTOM - _TOP) * tick / most_y
        out.append(f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    front = [at(p) for p in best(points)]
    if len(front) > 1:
        out.append(f'<polyline class="front" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in front)}"/>')
    for p in points:
        x, y = at(p)
        name = text(f"{p.number} {p.name}: {percent(p.retention)} kept, first token after {p.seconds:.2f} s")
        out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{name}</title></circle>')
        out.append(f'<text class="name" x="{x + 7:.1f}" y="{y - 6:.1f}">{p.number}</text>')
    told = "; ".join(f"{p.number} {p.name} {percent(p.retention)}, {p.seconds:.2f} s" for p in points)
    return (
        '<figure class="scatter"><svg role="img" viewBox="0 0 372 236" '
        f'aria-label="{text(f"Tokens kept against time to first token. {told}")}">{"".join(out)}'
        f'<text x="{(_LEFT + _RIGHT) / 2}" y="{_BOTTOM + 34}" text-anchor="middle">tokens kept, %</text></svg>'
        "<figcaption>Seconds to the first token (upwards) against the tokens kept; numbers as in the table. The line "
        "joins the runs that no other one beats in both.</figcaption></figure>"
    )


def best(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other one beats in both numbers, by retention."""
    out: list[Point] = []
    for p in sorted(points, key=lambda p: (p.retention, p.seconds, p.number)):
        if not out or p.seconds < out[-1].seconds:
            out.append(p)
    return out


def _ticks(most: float) -> tuple[float, list[float]]:
    """Return the end of an axis from 0 on, and round numbers on it."""
    if most <= 0:
        return 1.0, [0.0, 1.0]
    raw = most / 4
    unit = 10 ** math.floor(math.log10(raw))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= raw * (1 - 1e-9))
    count = math.ceil(most / step - 1e-9)
    return count * step, [round(i * step, 12) for i in range(count + 1)]
