"""The picture of a bench: where each preset's time goes, and what it keeps for how long it takes. Needs matplotlib.

matplotlib is imported only here, when a picture is asked for. Knows the keys of `rows`.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten
from typing import Any

from omnicli.errors import UsageError

KINDS = (".png", ".svg", ".pdf")

_BARS = (  # colours that stay apart for colour-blind readers (Okabe and Ito), in the order of the flow
    ("decode", "decode film", "#999999"),
    ("encode", "encode", "#56b4e9"),
    ("compress", "select before the LLM", "#d55e00"),
    ("prefill", "prefill", "#0072b2"),
    ("select_in_llm", "select inside the LLM", "#e69f00"),
    ("generate", "write the answer", "#009e73"),
)
_MARKERS = "osD^vP*X"


def check(path: Path) -> None:
    """Raise `UsageError` if a picture could not be written there, before anything is measured."""
    if path.suffix.lower() not in KINDS:
        raise UsageError(f"--plot {path}: the name must end in {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--plot {path}: the folder {path.parent} does not exist")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError("--plot needs matplotlib; install it with: pip install 'omnicli[plots]'") from None


def write(report: dict[str, Any], path: Path) -> None:
    """Draw a bench into a file: bars of stages by preset; retention (or agreement) against the time to first token."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = report["rows"]
    figure = Figure(figsize=(13, max(3.6, 1.8 + 0.45 * len(rows))), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _bars(left, rows)
    _points(right, [r for r in rows if not r["error"]])
    figure.suptitle(f"{report['model']['name']} on {report['machine']['device']}; {report['media']['name']}", size=10)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise UsageError(f"--plot {path}: cannot be written ({error.strerror or error})") from error


def _bars(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Stack every preset's median seconds; selection inside the LLM is taken out of prefill, which it is a part of."""
    names = [r["preset"] for r in rows]
    ends = [0.0] * len(rows)
    for key, label, colour in _BARS:
        widths = [0.0 if r["error"] else _seconds(r, key) for r in rows]
        axes.barh(names, widths, left=ends, color=colour, label=label, height=0.65)
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    for i, row in enumerate(rows):
        text = f" {shorten(row['error'], 64, placeholder=' ...')}" if row["error"] else f" {ends[i]:.3g} s"
        axes.text(ends[i], i, text, va="center", size=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("seconds from the file to the last token (medians)")
    axes.legend(fontsize=7, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _seconds(row: dict[str, Any], key: str) -> float:
    found = float(row["seconds"][key]["median"])
    if key == "prefill":
        found -= float(row["seconds"]["select_in_llm"]["median"])
    return max(0.0, found)


def _points(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Show what is left of the tokens against the latency; whiskers span the middle half of the rounds."""
    for i, row in enumerate(rows):
        found = row["seconds"]["time_to_first_token"]
        x, y = found["median"], 100 * row["retention"]["layers"]
        span = [[max(0.0, x - found["q1"])], [max(0.0, found["q3"] - x)]]
        label = row["preset"]
        if row["agreement"] is not None:
            label += f" (agrees {100 * row['agreement']:.0f} %)"
        axes.errorbar(x, y, xerr=span, fmt=_MARKERS[i % len(_MARKERS)], capsize=2, label=label)
    axes.set_xlabel("time to first token, s")
    axes.set_ylabel("media tokens read, mean over the layers, %")
    axes.set_ylim(0, 105)
    if rows:
        axes.set_xlim(left=0)
        axes.legend(fontsize=7, loc="best", frameon=False)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
