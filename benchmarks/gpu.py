"""Everything that needs a graphics card, in one command of under ten minutes; the summary comes last.

    python benchmarks/gpu.py --out benchmarks/results/gpu-DATE.json [--minutes 9] [--models qwen2.5-omni-7b ...]
    python benchmarks/gpu.py --out check.json --device cpu --only fit --layers 1 --scale 0.05 --frames 8 --seconds 20

In this order, each in a process of its own, until the time is up: encoding against the stock loops, 256 frames and
seconds; writing tokens layer by layer and from a CUDA graph; selection of AVOC on an hour's tokens and of SEATS on 128
frames; `omni bench` with random weights at full size, 128 frames, against full tokens; encoding an hour, and an hour
against full tokens; 128 frames in 8 and 4 bits and with weights that wait in host memory, beside what `omni plan` says
of it. What there was no time for, and what failed, is told, and can be run by itself: `--only -3600 --models
qwen3-omni-30b` (reading all tokens of an hour takes minutes), `--only fit --only plan`. ``--out`` is written after each
step and holds what each step printed; plots stand beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from result import tell
from selection import line

HERE = Path(__file__).parent
OMNI = [sys.executable, "-m", "omnicli.cli.main"]
FITS = (
    ("bf16", []),
    ("int8", ["--quantize", "int8"]),
    ("int4", ["--quantize", "int4"]),
    ("offload", ["--offload"]),
    ("int4-offload", ["--quantize", "int4", "--offload"]),
)
PRESETS = ("seats-10", "avoc", "omnizip-35", "divprune-om-10")


def steps(args: argparse.Namespace, films: dict[int, Path]) -> Iterator[tuple[str, list[str]]]:
    """Yield names and commands; each prints JSON."""
    sizes = {name: value for name, value in (("layers", args.layers), ("scale", args.scale)) if value is not None}
    small = "".join(f",{name}={value}" for name, value in sizes.items())
    shrink = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    dummy = f"dummy:qwen2.5-omni-7b{small}"

    def script(name: str, *rest: str) -> list[str]:
        return [sys.executable, str(HERE / f"{name}.py"), "--device", args.device, *rest]

    def encode(frames: int) -> tuple[str, list[str]]:
        count = str(frames)
        rest = ["--model", dummy, "--frames", count, "--seconds", count, "--runs", "2"]
        return f"encode-{count}", script("encode", *rest)

    def bench(seconds: int, *rest: str) -> Iterator[tuple[str, list[str]]]:
        presets = [word for preset in PRESETS for word in ("--preset", preset)]
        for model in args.models:
            name = f"bench-{model}-{seconds}"
            yield (
                name,
                [
                    *OMNI,
                    "bench",
                    str(films[seconds]),
                    "--dummy-weights",
                    model,
                    *shrink,
                    *presets,
                    *rest,
                    "--device",
                    args.device,
                    "--json",
                    "--plot",
                    str(args.out.with_name(f"{args.out.stem}-{name}.png")),
                ],
            )

    yield encode(256)
    yield "steps", script("steps", "--model", dummy)
    yield "select-hour", script("selection", "--methods", "avoc", "--hour", "--retention", "0.0906")
    yield "select-128", script("selection", "--methods", "seats", "avoc", "--paper", "--retention", "0.1")
    yield from bench(args.seconds, "--max-frames", str(args.frames), "--repeat", "3")
    yield encode(3600)
    yield from bench(3600, "--fps", "1", "--repeat", "1")
    yield from fits(args, films[args.seconds], shrink)


def fits(args: argparse.Namespace, film: Path, shrink: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield, for each model and way to keep its weights, what is planned and what is measured."""
    common = ["--preset", "avoc", "--max-frames", str(args.frames), "--device", args.device, "--json"]
    for model in args.models:
        for kind, options in FITS:
            if not shrink:  # only full sizes are planned
                plan = [*OMNI, "plan", str(film), "--model", f"dummy:{model}", "--max-new-tokens", "32"]
                yield f"plan-{model}-{kind}", [*plan, *common, *options]
            bench = [*OMNI, "bench", str(film), "--dummy-weights", model, *shrink, "--repeat", "2"]
            yield f"fit-{model}-{kind}", [*bench, *common, *options]


def run(command: list[str], left_s: float) -> dict[str, Any]:
    """Run one step; returns what is known of it: ``result`` or ``error``."""
    begin = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=left_s, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"stopped after {left_s:.0f} s: the time was up"}
    told = {"wall_s": round(time.monotonic() - begin, 1)}
    try:
        return {**told, "result": json.loads(done.stdout)}  # a plan that does not fit has an exit code of its own
    except ValueError:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return {**told, "error": lines[-1] if lines else f"ended with exit code {done.returncode}"}


def summary(name: str, step: dict[str, Any]) -> list[str]:
    """Return the lines that tell of one step."""
    if "error" in step:
        return [f"{name}: {step['error']}"]
    head, found = f"{name} ({step['wall_s']:.0f} s)", step["result"]
    if name.startswith("encode"):
        parts = (f"{p} {found[p]['ours_s']} s, {found[p]['ratio']} x stock" for p in ("pictures", "sound"))
        return [f"{head}: {'; '.join(parts)}; together {found['together']} x"]
    if name == "steps":
        parts = (
            f"behind {p['rows']} rows {p['recorded_tokens_per_s']} tokens/s, {p['ratio']} x layer by layer, logits "
            f"{p['difference']:.1e} apart{'' if p['recorded'] else ' (NOT recorded)'}"
            for p in found["prompts"]
        )
        return [f"{head}: {'; '.join(parts)}"]
    if name.startswith("select"):
        return [head, *(f"  {line(method)}" for method in found["methods"])]
    if name.startswith("plan"):
        peaks = (f"{where} {(found['peak'][f'{where}_bytes'] or 0) / 2**30:.1f} GiB" for where in ("device", "host"))
        weights = found["bytes"]["weights"] / 2**30
        return [f"{head}: {', '.join(peaks)}, weights {weights:.1f} GiB; fits: {found['fits']}"]
    rows = []
    for row in found["rows"]:
        if row["error"]:
            rows.append(f"  {row['preset']}: {row['error']}")
            continue
        s, m = row["seconds"], row["peak_memory"]
        rows.append(
            f"  {row['preset']}: retention {row['retention']['layers']}, FLOPs x {row['flops']['factor']}, "
            f"encode {s['encode']['median']} s, compress {s['compress']['median']} s, select in LLM "
            f"{s['select_in_llm']['median']} s, prefill {s['prefill']['median']} s (x {row['factor']['prefill']}), "
            f"first token {s['time_to_first_token']['median']} s (x {row['factor']['time_to_first_token']}), writing "
            f"{(row['decode_tokens_per_s'] or {}).get('median')} tokens/s, moving weights "
            f"{row['stages'].get('load', 0.0)} s, device {(m['encode_device_bytes'] or 0) / 2**30:.1f} GiB encoding, "
            f"{(m['device_bytes'] or 0) / 2**30:.1f} GiB reading"
        )
    return [head, *rows]


def main() -> None:
    from omnicli.bench.clip import write_clip

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the results")
    parser.add_argument("--minutes", type=float, default=9.0, help="time in all")
    parser.add_argument("--models", nargs="+", default=["qwen2.5-omni-7b", "qwen3-omni-30b"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--frames", type=int, default=128, help="of the shorter film")
    parser.add_argument("--seconds", type=int, default=600, help="length of the shorter film")
    parser.add_argument("--layers", type=int, help="fewer layers, to see whether it runs")
    parser.add_argument("--scale", type=float, help="narrower ones")
    parser.add_argument("--only", action="append", help="run the steps whose names hold this; repeatable")
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1) as beside:
        films = {seconds: Path(folder) / f"{seconds}.mp4" for seconds in (args.seconds, 3600)}
        todo = {name: c for name, c in steps(args, films) if any(part in name for part in args.only or [""])}
        # an hour's film takes minutes to write: that is done beside the steps that need none
        written = {
            str(film): beside.submit(write_clip, film, float(seconds))
            for seconds, film in films.items()
            if any(str(film) in command for command in todo.values())
        }
        for name, command in todo.items():
            for film in written.keys() & set(command):
                written[film].result()
            left_s = end - time.monotonic()
            told[name] = run(command, left_s) if left_s > 20 else {"error": "no time left"}
            tell("gpu", {"steps": told}, args.out, device=args.device, quiet=True)
            print(*summary(name, told[name]), sep="\n", flush=True)
    print("\n--- summary ---", *(text for name, step in told.items() for text in summary(name, step)), sep="\n")


if __name__ == "__main__":
    main()
