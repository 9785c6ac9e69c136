"""TA-MMR: the parallel selection against the literal greedy loop, and its growth to an hour of film.

    python benchmarks/tammr.py [--out FILE] [--quick]

Prints JSON. The two are timed in turn (A B A B) on the same random fp32 tokens: 320 blocks x 64 tokens, d = 3584,
K = 6826, window radius 3. The literal loop is written the fast way: unit vectors and block offsets made once, one
matrix-vector product over the window per pick. Then sizes up to 1,800 blocks x 144 tokens (K = 25,000) in one process
each, with the peak of memory above what the tokens themselves take; and an hour of the pocket model's tokens.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from result import add_out, tell

from omnicli.compress.methods.avoc import Avoc
from omnicli.compress.tammr import ta_mmr
from omnicli.types import MediaTokens, Query

DIVERSITY, RADIUS = 0.15, 3


def literal(features: torch.Tensor, scores: torch.Tensor, window: torch.Tensor, k: int) -> list[int]:
    """The greedy loop, one pick at a time, updating only the window of each pick."""
    x = features - features.mean(0)
    x /= x.norm(dim=1, keepdim=True)
    blocks = int(window[-1]) + 1
    offset = torch.searchsorted(window, torch.arange(blocks + 1)).tolist()
    block, gain = window.tolist(), (1 - DIVERSITY) * scores
    penalty, objective, picked = torch.zeros_like(scores), gain.clone(), []
    for _ in range(k):
        i = int(objective.argmax())
        picked.append(i)
        gain[i] = -torch.inf
        near = slice(offset[max(0, block[i] - RADIUS)], offset[min(blocks, block[i] + RADIUS + 1)])
        torch.maximum(penalty[near], x[near] @ x[i], out=penalty[near])
        objective[near] = gain[near] - DIVERSITY * penalty[near]
    return picked


def tokens(blocks: int, each: int, d: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    n = blocks * each
    features = torch.empty(n, d, dtype=dtype)
    for i in range(0, n, 4096):
        features[i : i + 4096] = torch.randn(min(4096, n - i), d, generator=g)
    return features, torch.randn(n, generator=g), torch.arange(blocks).repeat_interleave(each)


class Timer:
    """Wall and processor seconds of a block; the latter tells what other work on the machine cost."""

    def __enter__(self) -> Timer:
        self.begin = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall_s = round(time.perf_counter() - self.begin[0], 3)
        self.cpu_s = round(time.process_time() - self.begin[1], 3)


def against_literal(rounds: int) -> dict:
    features, scores, window = tokens(320, 64, 3584)
    k = 6826
    ways = {
        "literal": lambda: literal(features, scores, window, k),
        "parallel": lambda: ta_mmr(features, scores, window, k, diversity=DIVERSITY, radius=RADIUS).tolist(),
    }
    wall, cpu, picks = {n: [] for n in ways}, {n: [] for n in ways}, {}
    for _ in range(rounds):
        for name, way in ways.items():
            with Timer() as timer:
                picks[name] = way()
            wall[name].append(timer.wall_s)
            cpu[name].append(timer.cpu_s)
    return {
        "blocks": 320,
        "tokens_per_block": 64,
        "d": 3584,
        "k": k,
        "wall_s": wall,
        "cpu_s": cpu,
        "speedup_wall": round(statistics.median(wall["literal"]) / statistics.median(wall["parallel"]), 2),
        "speedup_cpu": round(statistics.median(cpu["literal"]) / statistics.median(cpu["parallel"]), 2),
        "same_indices_in_the_same_order": picks["literal"] == picks["parallel"],
    }


def one_size(blocks: int, each: int, d: int, k: int, dtype: str) -> dict:
    features, scores, window = tokens(blocks, each, d, getattr(torch, dtype))
    ta_mmr(features[:64], scores[:64], window[:64], 8)
    reset_peak()
    before = peak()
    with Timer() as timer:
        ta_mmr(features, scores, window, k, diversity=DIVERSITY, radius=RADIUS)
    return {
        "blocks": blocks,
        "tokens_per_block": each,
        "n": blocks * each,
        "d": d,
        "k": k,
        "dtype": dtype,
        "wall_s": timer.wall_s,
        "cpu_s": timer.cpu_s,
        "extra_memory_mib": round((peak() - before) / 2**20, 1),
    }


def hour(k: int) -> dict:
    """The whole method on an hour of the pocket model's tokens: 1,800 blocks of 28 picture and 50 sound tokens."""
    blocks, d = 1800, 192
    modality = torch.tensor([0] * 28 + [1] * 50, dtype=torch.int8).repeat(blocks)
    window = torch.arange(blocks).repeat_interleave(78)
    n, g = len(modality), torch.Generator().manual_seed(0)
    cell = torch.zeros(n, dtype=torch.int32)
    start = window.double() * 2
    clip = MediaTokens(
        torch.randn(n, d, generator=g), modality, start, start + 2, window, cell, cell, torch.zeros(3, n).long()
    )
    question = Query(torch.randn(12, d, generator=g))
    with Timer() as timer:
        kept = Avoc(tokens=k).compress(clip, question)
    return {"n": n, "d": d, "k": k, "wall_s": timer.wall_s, "cpu_s": timer.cpu_s, "budget": kept.report["budget"]}


def peak() -> int:
    """Return the peak of resident memory in bytes since it was last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        print("the peak of memory cannot be reset here: extra memory may be understated", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_out(parser)
    parser.add_argument("--quick", action="store_true", help="only the comparison, once")
    parser.add_argument("--size", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.size:
        *numbers, dtype = args.size
        print(json.dumps(one_size(*map(int, numbers), dtype)))
        return
    result: dict[str, Any] = {"against_literal": against_literal(1 if args.quick else 3)}
    if not args.quick:
        sizes = [(320, 144, 3584, 4444), (900, 144, 3584, 12500), (1800, 144, 3584, 25000)]
        result["growth"] = [
            json.loads(
                subprocess.run(
                    [sys.executable, __file__, "--size", *map(str, size), "bfloat16"],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout
            )
            for size in sizes
        ]
        result["avoc_on_an_hour"] = [hour(k) for k in (10240, 25000, 70000)]
    tell("tammr", result, args.out)


if __name__ == "__main__":
    main()
