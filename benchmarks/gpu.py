"""Everything that needs a graphics card, in one command of under ten minutes; the summary comes last.

    python benchmarks/gpu.py --out benchmarks/results/gpu-DATE [--minutes 9] [--models qwen2.5-omni-7b ...]
    python benchmarks/gpu.py --out /tmp/check --device cpu --only fit --layers 1 --scale 0.05 --frames 8 --seconds 20

In this order, each in a process of its own, until the time is up: encoding against the stock loops, 256 frames and
seconds and then an hour's; writing tokens layer by layer and from a CUDA graph; selection of AVOC on an hour's tokens
and of SEATS on 128 frames; `omni bench` with random weights at full size, 128 frames, against full tokens; the same in
8 and 4 bits and with weights that wait in host memory, beside what `omni plan` says of it; an hour against full tokens.
What there was no time for, and what failed, is told. Writes summary.json, one JSON file per step and the plots to
``--out``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OMNI = [sys.executable, "-m", "omnicli.cli.main"]
FITS = (("bf16", []), ("int8", ["--quantize", "int8"]), ("int4", ["--quantize", "int4"]), ("offload", ["--offload"]),
        ("int4-offload", ["--quantize", "int4", "--offload"]))  # fmt: skip
PRESETS = ("seats-10", "avoc", "omnizip-35", "divprune-om-10")


def steps(args: argparse.Namespace, films: dict[int, Path]) -> Iterator[tuple[str, list[str]]]:
    """Yield names and commands; each prints JSON, or writes it to the file named after ``--out``."""
    out = args.out
    sizes = {name: value for name, value in (("layers", args.layers), ("scale", args.scale)) if value is not None}
    small = "".join(f",{name}={value}" for name, value in sizes.items())
    shrink = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    dummy = f"dummy:qwen2.5-omni-7b{small}"
    encode = [sys.executable, str(HERE / "encode.py"), "--model", dummy, "--device", args.device]
    for frames in (256, 3600):
        yield f"encode-{frames}", [*encode, "--frames", str(frames), "--seconds", str(frames), "--runs", "2"]
    yield "steps", [sys.executable, str(HERE / "steps.py"), "--model", dummy, "--device", args.device]
    selection = [sys.executable, str(HERE / "selection.py"), "--device", args.device, "--methods"]
    for name, rest in (
        ("avoc-hour", ["avoc", "--hour", "--retention", "0.0906"]),
        ("seats-paper", ["seats", "avoc", "--paper", "--retention", "0.1"]),
    ):
        yield f"select-{name}", [*selection, *rest, "--out", str(out / f"select-{name}.json")]
    presets = [word for preset in PRESETS for word in ("--preset", preset)]
    for seconds, repeat in ((args.seconds, "3"), (3600, "1")):
        for model in args.models:
            name = f"bench-{model}-{seconds}"
            frames = ["--max-frames", str(args.frames)] if seconds == args.seconds else ["--fps", "1"]
            yield name, [
                *OMNI, "bench", str(films[seconds]), "--dummy-weights", model, *shrink, *presets, *frames,
                "--repeat", repeat, "--device", args.device, "--json", "--plot", str(out / f"{name}.png"),
            ]  # fmt: skip
        if seconds == args.seconds:
            yield from fits(args, films[seconds], shrink)


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


def run(name: str, command: list[str], out: Path, left_s: float) -> dict[str, Any]:
    """Run one step; returns what is known of it."""
    begin = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=left_s, check=False)
    except subprocess.TimeoutExpired:
        return {"step": name, "error": f"stopped after {left_s:.0f} s: the time was up"}
    told: dict[str, Any] = {"step": name, "wall_s": round(time.monotonic() - begin, 1)}
    if done.returncode and not name.startswith("plan"):  # a plan that does not fit is one too
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return told | {"error": lines[-1] if lines else f"ended with exit code {done.returncode}"}
    if done.stdout.lstrip().startswith("{"):
        (out / f"{name}.json").write_text(done.stdout)
    else:
        told["lines"] = done.stdout.strip().splitlines()
    return told


def summary(step: dict[str, Any], out: Path) -> list[str]:
    """Return the lines that tell of one step."""
    name = step["step"]
    if "error" in step:
        return [f"{name}: {step['error']}"]
    head = f"{name} ({step['wall_s']:.0f} s)"
    if "lines" in step:
        return [head, *(f"  {line}" for line in step["lines"])]
    found = json.loads((out / f"{name}.json").read_text())
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--minutes", type=float, default=9.0, help="time in all")
    parser.add_argument("--models", nargs="+", default=["qwen2.5-omni-7b", "qwen3-omni-30b"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--frames", type=int, default=128, help="of the shorter film")
    parser.add_argument("--seconds", type=int, default=600, help="length of the shorter film")
    parser.add_argument("--layers", type=int, help="fewer layers, to see whether it runs")
    parser.add_argument("--scale", type=float, help="narrower ones")
    parser.add_argument("--only", help="run the steps whose names hold this")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    told: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        films = {seconds: Path(folder) / f"{seconds}.mp4" for seconds in (args.seconds, 3600)}
        for name, command in steps(args, films):
            if args.only and args.only not in name:
                continue
            left_s = end - time.monotonic()
            if left_s < 20:
                told.append({"step": name, "error": "no time left"})
                continue
            if (film := next((f for f in films.values() if str(f) in command), None)) and not film.exists():
                from omnicli.bench.clip import write_clip

                write_clip(film, float(film.stem))
            told.append(run(name, command, args.out, left_s))
            print(*summary(told[-1], args.out), sep="\n", flush=True)
    (args.out / "summary.json").write_text(json.dumps(told, indent=1) + "\n")
    print("\n--- summary ---", *(line for step in told for line in summary(step, args.out)), sep="\n")


if __name__ == "__main__":
    main()
