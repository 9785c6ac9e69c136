"""Which models answer on this machine: weights here or not, and whether a ten-minute and an hour-long film fit.

Planned by `omnicli.planning.plan` for a film that is assumed, not read: 1280 x 720 at 25 frames a second, with sound.
Nothing is loaded.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from omnicli.config.config import Config
from omnicli.doctor.check import Check, result
from omnicli.errors import ModelError
from omnicli.media.frames import FrameTable
from omnicli.media.probe import AudioStream, MediaInfo, VideoStream
from omnicli.models import registry
from omnicli.planning import plan as planning

LENGTHS_S = (600, 3600)
"""The films that are planned, in seconds."""
WIDTH, HEIGHT, FPS = 1280, 720, 25


def film(seconds: int) -> MediaInfo:
    """Return what `probe` would find in the assumed film."""
    n = seconds * FPS
    number = np.arange(n, dtype=np.int64)
    table = FrameTable(
        pts=number,
        time_s=number / FPS,
        duration_s=np.full(n, 1 / FPS),
        is_key=number % FPS == 0,
        packet=number,
        entry=number[::FPS],
        packets=n,
        time_base=Fraction(1, FPS),
    )
    video = VideoStream(
        index=0,
        codec="h264",
        width=WIDTH,
        height=HEIGHT,
        rotation=0,
        fps=float(FPS),
        header_duration_s=float(seconds),
        pix_fmt="yuv420p",
        coded_width=WIDTH,
        coded_height=HEIGHT,
    )
    audio = AudioStream(1, "aac", 48_000, 2, float(seconds))
    return MediaInfo(
        Path(f"{seconds} s of film"), "mp4", 0.0, float(seconds), video, audio, table, (0.0, float(seconds))
    )


def names() -> list[str]:
    """Return the short names whose sizes are known without loading, the smallest model first."""
    sizes = {name: facts.known_weights().get(name, 0) for facts in registry.known_facts() for name in facts.short_names}
    return ["pocket", *sorted(sizes, key=lambda name: sizes[name])]


def survey(config: Config) -> list[dict[str, Any]]:
    """Return one row per short name: ``weights`` (here, missing, or what is wrong with them) and ``films``.

    ``config``: the settings of the question; its model is not looked at.
    """
    films = [film(seconds) for seconds in LENGTHS_S]
    rows = []
    for name in names():
        asked = dataclasses.replace(config, model=name)
        rows.append({"name": name, "weights": _weights(name), "films": [_verdict(info, asked) for info in films]})
    return rows


def _weights(name: str) -> str:
    from omnicli.models.loading import find_folder
    from omnicli.models.weights.checkpoint import check_weights

    try:
        folder, _ = find_folder(name)
    except ModelError:
        return "missing"
    try:
        check_weights(name, folder)
    except ModelError as error:
        return str(error)
    return "here"


def _verdict(info: MediaInfo, config: Config) -> dict[str, Any]:
    """Return whether a film fits, the peaks in bytes, and the reasons against it."""
    out: dict[str, Any] = {"seconds": int(info.duration_s), "fits": False, "host_bytes": None, "device_bytes": None}
    try:
        plan = planning.make_plan(info, config)
    except ModelError as error:
        return out | {"problems": [str(error)]}
    return out | {
        "fits": plan.fits,
        "host_bytes": plan.host,
        "device_bytes": plan.device,
        "problems": list(plan.problems),
    }


def models(config: Config) -> Check:
    """Tell which models are here and which would fit; a remark if none that is here answers ten minutes."""
    rows = survey(config)
    usable = [r["name"] for r in rows if r["weights"] == "here" and r["films"][0]["fits"]]
    fitting = [r["name"] for r in rows if r["films"][-1]["fits"]]
    where = {"auto": "this machine", "cpu": "the CPU"}.get(config.device, config.device)
    found = f"an hour of 720p with {config.preset} fits {where} with {', '.join(fitting) or 'none'}"
    found += f"; usable now: {', '.join(usable) or 'none'}"
    remedy = "" if usable else "nothing that is here fits: free memory, or choose a smaller preset (omni plan FILM)"
    return result("models", found, remedy, details=rows)


__all__ = ["LENGTHS_S", "film", "models", "names", "survey"]
