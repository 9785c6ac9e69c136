"""The needle test as heat maps: duration across, depth down, one panel per preset and modality. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omnicli.errors import UsageError

_PANEL = (3.4, 2.3)  # inches
_BLANK = "#e6e6e6"


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

    Cells that were not asked are grey; green is every needle found, red is none.
    """
    check(path)
    import numpy as np
    from matplotlib.figure import Figure

    grid = report["grid"]
    durations, depths, modalities = grid["durations"], grid["depths"], grid["modalities"]
    labels = [p["label"] for p in report["presets"]]
    rates = {(c["preset"], c["modality"], c["duration_s"], c["depth"]): c["rate"] for c in report["cells"]}
    figure = Figure(
        figsize=(_PANEL[0] * len(modalities) + 1.0, _PANEL[1] * len(labels) + 0.6), layout="constrained", dpi=120
    )
    panels = figure.subplots(len(labels), len(modalities), squeeze=False, sharex=True, sharey=True)
    image = None
    for row, label in enumerate(labels):
        for column, modality in enumerate(modalities):
            axes = panels[row][column]
            values = [[rates[label, modality, t, depth] for t in durations] for depth in depths]
            shown = np.ma.masked_invalid(np.array(values, dtype=np.float64))
            axes.set_facecolor(_BLANK)
            image = axes.imshow(shown, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto")
            axes.set_title(f"{label}, {modality} needle", fontsize=9)
            _ticks(axes.set_xticks, [f"{t:g}" for t in durations])
            _ticks(axes.set_yticks, [f"{depth:g}" for depth in depths])
            if row == len(labels) - 1:
                axes.set_xlabel("duration in s", fontsize=8)
            if column == 0:
                axes.set_ylabel("depth", fontsize=8)
    if image is not None:
        figure.colorbar(image, ax=panels.ravel().tolist(), label="needles found", shrink=0.8)
    try:
        figure.savefig(path)
    except OSError as error:
        raise UsageError(f"--plot {path}: {error.strerror or error}") from error


def _ticks(place: Any, texts: list[str]) -> None:
    """Label at most a dozen cells along an axis."""
    step = -(-len(texts) // 12)
    place(range(0, len(texts), step), texts[::step], fontsize=7)
