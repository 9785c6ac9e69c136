"""How long choosing tokens takes, and how much memory: every method of the registry on one clip.

    python benchmarks/selection.py [--methods NAME ...] [--threads 1] [--out FILE]
    python benchmarks/selection.py --nn [--out FILE]
    python benchmarks/selection.py --hour --methods avoc --retention 0.0906 --device cuda
    python benchmarks/selection.py --paper --methods seats --retention 0.1 --device cuda

20,000 random tokens of width 3584 in bf16 (104 frames of 9 x 16 cells, 25 sound tokens a second), about a quarter kept.
Times are the median of three calls after one to warm up: ``compress``, and ``prune`` after each layer of 28 that a
method names, on what the layer before has left. Memory is the peak of resident memory above what the process held
before the first call, what is returned included. ``--nn`` takes 100,000 tokens of width 64 instead: whoever compares
all tokens with all others shows. ``--hour``: 23,040 picture and 90,000 sound tokens. ``--paper``: 128 frames and 64
seconds, 9,216 and 1,600. On a graphics card a time includes waiting for it, 15 calls are taken, and memory is the
card's. Each method has a process of its own, with a limit on its memory; a method that fails has a line that says why.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from result import add_out, tell

from omnicli.config import registry
from omnicli.types import LayerView, MediaTokens, Modality, Query, Selection
from omnicli.utils import memory

ROWS, COLS, DEPTH, RUNS = 9, 16, 28, 3
AUDIO_PER_S, WINDOW_S, SCENE = 25, 2.0, 8
SIZES = {
    "film": (104, 5_024, 3584, torch.bfloat16),
    "hour": (160, 90_000, 3584, torch.bfloat16),
    "paper": (64, 1_600, 3584, torch.bfloat16),
    "nn": (520, 25_120, 64, torch.float32),
    "quick": (4, 200, 64, torch.float32),
}
"""Frames, sound tokens, width and type of the clips."""


def clip(frames: int, sounds: int, width: int, dtype: torch.dtype) -> MediaTokens:
    """Return a film in scenes: frames of a scene resemble each other, the cells of a frame do not."""
    g = torch.Generator().manual_seed(0)
    cells, seconds = ROWS * COLS, sounds / AUDIO_PER_S
    video_s = (torch.arange(frames, dtype=torch.float64) * seconds / frames).repeat_interleave(cells)
    start = torch.cat([video_s, torch.arange(sounds, dtype=torch.float64) / AUDIO_PER_S])
    modality = torch.cat([torch.full((frames * cells,), Modality.VIDEO), torch.full((sounds,), Modality.AUDIO)])
    window = (start // WINDOW_S).long()
    order = (2 * window + modality).argsort(stable=True)
    n, cell = len(start), torch.arange(frames * cells) % cells
    features = torch.empty(n, width, dtype=dtype)
    scene = torch.empty(0)
    for frame in range(frames):
        if frame % SCENE == 0:
            scene = torch.randn(cells, width, generator=g)
        features[frame * cells : (frame + 1) * cells] = scene + 0.5 * torch.randn(cells, width, generator=g)
    features[frames * cells :] = torch.randn(sounds, width, generator=g)
    none = torch.full((sounds,), -1)
    return MediaTokens(
        features=features[order],
        modality=modality[order].to(torch.int8),
        start_s=start[order],
        end_s=start[order] + 1 / AUDIO_PER_S,
        window=window[order],
        row=torch.cat([cell // COLS, none])[order].int(),
        col=torch.cat([cell % COLS, none])[order].int(),
        position_ids=torch.arange(n).repeat(3, 1),
        saliency=2 * torch.rand(n, generator=g),
        keys=torch.randn(n, 80, generator=g).to(dtype),
    )


def counts(tokens: MediaTokens) -> tuple[int, int]:
    return tokens.count(Modality.VIDEO), tokens.count(Modality.AUDIO)


def measure(name: str, size: str, retention: float, device: torch.device) -> dict[str, Any]:
    """Return the times and memory of one method."""
    method = registry.methods().find(name).with_retention(retention)
    tokens = clip(*SIZES[size]).to(device)
    g = torch.Generator().manual_seed(1)
    width, dtype = tokens.features.shape[1], tokens.features.dtype
    query = Query(torch.randn(12, width, generator=g).to(device, dtype), "Who speaks last?")
    hidden = torch.randn(len(tokens), width, generator=g, dtype=dtype).to(device)
    attention = torch.rand(len(tokens), generator=g).to(device)
    attention *= 0.5 / attention.sum()
    gc.collect()
    memory.reset(device)
    before = held(device)
    found, kept = timed(lambda: method.compress(tokens, query), device)
    result: dict[str, Any] = {
        "method": name,
        "n": len(tokens),
        "d": width,
        "kept": kept.indices.numel(),
        "compress_s": found,
    }
    layers = sorted(method.layers(DEPTH))
    late = method.late_removal(DEPTH) if hasattr(method, "late_removal") else None
    if layers:
        entered, place = tokens.select(kept), kept.indices
        media, result["prune"] = entered, []
        for layer in layers:
            if layer == late:
                continue
            view = LayerView(
                layer, DEPTH, hidden[place], attention[place], media, entered=counts(entered), encoded=counts(tokens)
            )
            found, keep = timed(lambda v=view: method.prune(v.layer, v), device)
            media, place = media.select(Selection(keep)), place[keep]
            result["prune"].append({"layer": layer, "n": len(view.media), "kept": keep.numel(), "s": found})
    result["total_s"] = round(result["compress_s"] + sum(p["s"] for p in result.get("prune", ())), 4)
    result["extra_memory_mib"] = round((held(device) - before) / 2**20, 1)
    return result


def held(device: torch.device) -> int:
    """Return the peak in bytes since it was reset: of the card, or else of the process."""
    peaks = memory.peaks(device)
    return peaks.host_bytes if peaks.device_bytes is None else peaks.device_bytes


def timed(call: Any, device: torch.device) -> tuple[float, Any]:
    """Return the median seconds of some calls after one to warm up, and what the first returned."""
    first, walls = call(), []
    for _ in range(RUNS if device.type == "cpu" else 5 * RUNS):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        walls.append(time.perf_counter() - begin)
    return round(statistics.median(walls), 5), first


def apart(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure one method in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--one",
        name,
        "--threads",
        str(args.threads),
        "--retention",
        str(args.retention),
        "--limit-gib",
        str(args.limit_gib),
        "--clip",
        args.clip,
        "--device",
        args.device,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=args.timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"method": name, "error": f"took more than {args.timeout:g} s"}
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        lines = done.stderr.strip().splitlines()
        return {"method": name, "error": lines[-1] if lines else f"ended with exit code {done.returncode}"}


def one(name: str, args: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(args.device)
    if device.type == "cpu":  # a card's driver reserves addresses without end
        limit = int((args.limit_gib + 4) * 2**30)  # libraries alone reserve about 4 GiB of addresses
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        return measure(name, args.clip, args.retention, device)
    except Exception as error:  # a method that fails must not hide the others
        return {"method": name, "error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}


def line(found: dict[str, Any]) -> str:
    if "error" in found:
        return f"{found['method']:<16} error: {found['error']}"
    pruned = "  ".join(
        f"after {p['layer']}: {p['s']:.4f} s, {p['n']:,} -> {p['kept']:,}" for p in found.get("prune", ())
    )
    text = f"{found['method']:<16} {found['compress_s']:>9.4f} s {found['kept']:>8,} kept"
    return f"{text} {found['extra_memory_mib']:>9,.1f} MiB  {pruned}".rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", help="names; default: all of the registry")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--retention", type=float, default=0.25)
    parser.add_argument("--clip", choices=SIZES, default="film", help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu")
    for size, told in (
        ("hour", "an hour's tokens"),
        ("paper", "SEATS's setting of 128 frames"),
        ("nn", "100,000 tokens of width 64, for the memory"),
        ("quick", "776 tokens, to try it out"),
    ):
        parser.add_argument(f"--{size}", dest="clip", action="store_const", const=size, help=told)
    parser.add_argument("--limit-gib", type=float, default=8.0, help="memory a method may take before it fails")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds a method may take in all")
    add_out(parser)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        print(json.dumps(one(args.one, args)))
        return
    result: dict[str, Any] = {
        "clip": args.clip,
        "device": args.device,
        "retention": args.retention,
        "methods": [],
    }
    for name in args.methods or registry.methods():
        found = apart(name, args)
        print(line(found), file=sys.stderr, flush=True)
        result["methods"].append(found)
        tell("selection", result, args.out, device=args.device, quiet=True)
    tell("selection", result, None, device=args.device)


if __name__ == "__main__":
    main()
