"""Decoding and encoding alone: how fast, how many times real time, and how much of a processor an hour of film takes.

Every part runs by itself, so that nothing overlaps. Encoding does not depend on what is seen, so it runs on the first
frames and seconds of the film, over and over, as often as the film would have it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from omnicli.bench.columns import origin, rounds
from omnicli.bench.rows import machine, spread
from omnicli.bench.table import NOTHING, Cells, Sheet, number
from omnicli.errors import MediaError
from omnicli.media import audio, sampling, video
from omnicli.media.container import DecodeStats
from omnicli.media.pieces import batched
from omnicli.media.probe import MediaInfo, probe
from omnicli.models import identity

if TYPE_CHECKING:
    from omnicli.config.settings import MediaConfig
    from omnicli.models.base import OmniModel

HELD_FRAMES, HELD_BLOCKS = 128, 150
"""Most frames and 2-second blocks of sound held in memory for encoding."""

Part = Callable[[], "int | None"]


def profile(
    source: str | Path,
    settings: MediaConfig,
    model: OmniModel,
    *,
    media: dict[str, Any],
    repeat: int,
    warmup: int = 1,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Return the profile as one JSON object: ``rows`` hold one part each.

    A row has ``stage``, ``film_s`` (seconds of film it went through), ``frames`` (given out or taken in; null for
    sound), ``decoded`` (frames that the decoder had to make for them), ``seconds`` and ``cpu_s`` (of all threads) as
    spreads, ``frames_per_s``, ``x_real_time`` and ``cpu_s_per_hour`` of film from the medians.
    """
    info = probe(source)
    with torch.inference_mode():
        parts, film_s, decoded = _parts(info, settings, model)
        walls: dict[str, list[float]] = {name: [] for name in parts}
        cpus: dict[str, list[float]] = {name: [] for name in parts}
        frames: dict[str, int | None] = {}
        for turn, (name, part) in itertools.product(range(-warmup, repeat), parts.items()):
            tell(f"{'warm-up' if turn < 0 else f'round {turn + 1} of {repeat}'}: {name}")
            wall, cpu = time.perf_counter(), time.process_time()
            frames[name] = part()
            if model.device.type == "cuda":
                torch.cuda.synchronize(model.device)
            if turn >= 0:
                walls[name].append(time.perf_counter() - wall)
                cpus[name].append(time.process_time() - cpu)
    return {
        "schema": 1,
        "kind": "bench_stages",
        "media": media,
        "model": identity.of_model(model),
        "machine": machine(model),
        "settings": {"media": vars(settings), "repeat": repeat, "warmup": warmup},
        "rows": [
            _row(name, walls[name], cpus[name], frames[name], film_s[name])
            | ({"decoded": decoded.frames_decoded // (repeat + warmup)} if name == "decode_video" else {})
            for name in parts
        ],
        "notes": list(info.problems),
        "versions": identity.versions(),
    }


def _row(name: str, walls: list[float], cpus: list[float], frames: int | None, film_s: float) -> dict[str, Any]:
    seconds, cpu = spread(walls), spread(cpus)
    wall = max(seconds["median"], 1e-9)
    return {
        "stage": name,
        "film_s": round(film_s, 3),
        "frames": frames,
        "decoded": None,
        "seconds": seconds,
        "cpu_s": cpu,
        "frames_per_s": None if frames is None else round(frames / wall, 3),
        "x_real_time": round(film_s / wall, 3),
        "cpu_s_per_hour": round(3600 * cpu["median"] / film_s, 3) if film_s > 0 else None,
    }


def _parts(
    info: MediaInfo, settings: MediaConfig, model: OmniModel
) -> tuple[dict[str, Part], dict[str, float], DecodeStats]:
    """Return what is to be timed by stage name, the seconds of film that each goes through, and the decoder's count."""
    start = settings.start or 0.0
    end = info.duration_s if settings.end is None else min(settings.end, info.duration_s)
    if start >= end:
        raise MediaError(f"{info.path}: lasts {info.duration_s:.2f} s; there is nothing from {start:g} s on")
    parts: dict[str, Part] = {"probe": lambda: _none(probe(info.path))}
    film_s = {"probe": info.duration_s}
    decoded = DecodeStats()
    if info.video is not None and info.frames is not None and start < info.frames.end_s:
        wanted = sampling.wanted_times(info.frames, settings, start, end)
        size = model.frame_size(
            info.video.width,
            info.video.height,
            len(wanted),
            **sampling.pixel_bounds(settings, len(wanted)),
        )
        frames = partial(video.read_frames, info, wanted, *size, device=str(model.device))
        held = [rgb for _, rgb in itertools.islice(frames(), HELD_FRAMES)]
        parts["decode_video"] = lambda: sum(1 for _ in frames(stats=decoded))
        parts["encode_video"] = lambda: _encode_frames(model, held, len(wanted))
        film_s |= dict.fromkeys(("decode_video", "encode_video"), min(end, info.frames.end_s) - start)
    audio_span = None if settings.audio == "off" else info.audio_span
    if info.audio is not None and audio_span is not None and start < audio_span[1]:
        stop = end if settings.audio_limit is None else min(end, start + settings.audio_limit)
        blocks = list(itertools.islice(audio.read_audio(info, start, stop), HELD_BLOCKS))
        seconds = min(stop, audio_span[1]) - start
        parts["decode_audio"] = lambda: _none(*(None for _ in audio.read_audio(info, start, stop)))
        if settings.exact_mel:
            parts["measure_mel"] = lambda: _none(model.measure_log_mel_max(_over_and_over(blocks, seconds)))
        parts["encode_audio"] = lambda: _encode_audio(model, _over_and_over(blocks, seconds))
        film_s |= dict.fromkeys(("decode_audio", "measure_mel", "encode_audio"), seconds)
    return parts, film_s, decoded


def _none(*_: Any) -> None:
    """Take what a part made: only frames are counted."""


def _encode_frames(model: OmniModel, held: list[np.ndarray], count: int) -> int:
    """Encode ``count`` frames in the model's batches."""
    for batch in batched(itertools.islice(itertools.cycle(held), count), model.video_batch):
        model.encode_video(torch.from_numpy(np.stack(batch)))
    return count


def _encode_audio(model: OmniModel, blocks: Iterator[np.ndarray]) -> None:
    stream = model.audio_encoder(0.0)  # any maximum does: the arithmetic is the same
    for block in blocks:
        stream.feed(block)
    stream.finish()


def _over_and_over(blocks: list[np.ndarray], seconds: float) -> Iterator[np.ndarray]:
    """Yield blocks until there are so many seconds of sound."""
    left = round(seconds * audio.SAMPLE_RATE)
    for block in itertools.cycle(blocks):
        if left <= 0:
            return
        yield block[:left]
        left -= len(block)


HEADS = ("stage", "seconds", "frames", "decoded", "frames/s", "x real time", "CPU s per hour")


def sheet(report: dict[str, Any]) -> Sheet:
    """Return the profile's one table."""
    cells: Cells = [list(HEADS)]
    for r in report["rows"]:
        counts = [NOTHING if r[key] is None else f"{r[key]:,}" for key in ("frames", "decoded")]
        told = [number(r[key]) for key in ("frames_per_s", "x_real_time", "cpu_s_per_hour")]
        cells.append([r["stage"], number(r["seconds"]["median"]), *counts, *told])
    lines = [*origin(report), f"{rounds(report['settings'])}; every part by itself", *report["notes"]]
    return Sheet([cells], cells, [flat(r) for r in report["rows"]], lines)


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row's numbers under one name each, for CSV."""
    spreads = {f"{k}{tail}": row[k][q] for k in ("seconds", "cpu_s") for tail, q in (("", "median"), ("_q3", "q3"))}
    return {k: v for k, v in row.items() if k not in ("seconds", "cpu_s")} | spreads
