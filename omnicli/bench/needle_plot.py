"""The needle test as heat maps: duration across, depth down, one panel per preset and modality. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omnicli.errors import UsageError

_PANEL = (3.4, 2.3)  # inches
_BLANK = "#e6e6e6"
_TALL = 4  # more presets than that stand side by side
_COUNTED = 50  # cells of a panel up to which there is room for a number in each


def check(path: Path) -> None:
    """Raise `UsageError` if a plot cannot be written there: before anything takes hours."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UsageError("--plot needs matplotlib: pip install 'omnicli[plots]'") from error
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--plot {path}: the folder {path.parent} does not exist")
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UsageError(f"--plot {path}: end the name in .png, .svg or .pdf")


def draw(report: dict[str, Any], path: Path) -> None:
    """Write the picture of a report of `omnicli.bench.needle_run.Run`.

    Cells that were not asked are grey; green is every needle found, red is none. Each tells found of asked.
    """
    check(path)
    import numpy as np
    from matplotlib.figure import Figure

    grid = report["grid"]
    durations, depths, modalities = grid["durations"], grid["depths"], grid["modalities"]
    panels = [(p["label"], modality) for p in report["presets"] for modality in modalities]
    cells = {(c["preset"], c["modality"], c["duration_s"], c["depth"]): c for c in report["cells"]}
    columns = min(len(panels), len(modalities) * (2 if len(report["presets"]) > _TALL else 1))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(_PANEL[0] * columns + 1.0, _PANEL[1] * rows + 0.6), layout="constrained", dpi=120)
    places = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, (label, modality) in zip(places, panels, strict=False):
        found = [[cells[label, modality, t, depth] for t in durations] for depth in depths]
        shown = np.ma.masked_invalid(np.array([[c["rate"] for c in row] for row in found], dtype=np.float64))
        axes.set_facecolor(_BLANK)
        image = axes.imshow(shown, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto")
        axes.set_title(f"{label}, {modality} needle".replace(":", "\n", 1), fontsize=9)
        _ticks(axes.set_xticks, [f"{t:g}" for t in durations])
        _ticks(axes.set_yticks, [f"{depth:g}" for depth in depths])
        if shown.size <= _COUNTED:
            for y, row in enumerate(found):
                for x, c in enumerate(row):
                    if c["total"]:
                        ink = "black" if 0.15 < c["rate"] < 0.85 else "white"
                        text = f"{c['right']}/{c['total']}"
                        axes.text(x, y, text, ha="center", va="center", fontsize=7, color=ink)
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    for place, axes in enumerate(places[: len(panels)]):
        if place + columns >= len(panels):
            axes.set_xlabel("duration in s", fontsize=8)
            axes.tick_params(labelbottom=True)
        if place % columns == 0:
            axes.set_ylabel("depth", fontsize=8)
    figure.colorbar(image, ax=places.tolist(), label="needles found", shrink=min(0.8, 3 / rows), aspect=30)
    try:
        figure.savefig(path)
    except OSError as error:
        raise UsageError(f"--plot {path}: {error.strerror or error}") from error


def _ticks(place: Any, texts: list[str]) -> None:
    """Label at most a dozen cells along an axis."""
    step = -(-len(texts) // 12)
    place(range(0, len(texts), step), texts[::step], fontsize=7)
