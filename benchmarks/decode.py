"""CPU time and memory of reading a film, against `ffmpeg -f null` decoding the same stream of the same file whole.

    python benchmarks/decode.py --out benchmarks/results/decode-<date>.json
    python benchmarks/decode.py --part sound sparse length --out benchmarks/results/decode-hour-<date>.json
    python benchmarks/decode.py --file film.mp4 --runs 5

Parts: ``pictures``, one frame a second of five minutes; ``sparse``, 320 frames of an hour; ``sound``, all of an hour's;
``length``, peak memory of pictures and sound at ten minutes and at sixty. Both programs run in processes of their own,
taking turns (A B A B ...), so that other load on the machine meets both. What counts is user + system CPU time. ffmpeg
converts nothing; ours includes the demuxing pass of `probe`, and conversion to RGB and scaling to the model's size, or
resampling to 16 kHz mono, but not importing torch. ``references_ratio``: what ffmpeg takes to decode only pictures that
others refer to, near which reading chosen frames exactly can come; tails of groups that are not read save some more.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from result import add_out, tell

SIZE = (252, 448)  # what a 720p frame becomes at about 140 tokens
LIMITS = {"pictures": 0.65, "sparse": 0.25, "sound": 1.5}
LIMIT_MB = 200.0
SPARSE_FRAMES = 320
CONTENTS = ("zoom", "footage", "still")


SEED_S = 20.0  # seconds that are encoded; they are repeated packet by packet up to the film's length


def make_film(ffmpeg: str, path: Path, minutes: float, content: str) -> None:
    """Write a noisy 720p film: h264, 25 fps, GOP 250, up to 3 B-frames. What it shows decides what skipping gains.

    ``zoom``: everything moves by parts of a pixel, every picture costs something. ``footage``: the clip of the tests,
    enlarged, with grain. ``still``: the picture moves by whole pixels, so that B-frames are mostly copies and cost
    next to nothing; skipping them gains least.
    """
    seed = path.with_name("seed.mp4")
    run = [ffmpeg, "-v", "error", "-nostdin", "-y"]
    if content == "still":
        # in a process of its own: a child inherits its parent's peak memory
        subprocess.run([sys.executable, __file__, "--make-still", "--file", str(seed)], check=True)
    else:
        if content == "zoom":
            source = ["-f", "lavfi", "-i", "mandelbrot=s=1280x720:r=25,noise=alls=8:allf=t"]
        else:
            clip = Path(__file__).parent.parent / "tests" / "data" / "nasa_webb_narration_13s.mp4"
            source = ["-stream_loop", "-1", "-i", str(clip), "-vf", "fps=25,scale=1280:720,noise=alls=6:allf=t"]
            source += ["-c:a", "aac", "-ar", "48000", "-ac", "2"]
        encode = ["-t", str(SEED_S), "-c:v", "libx264", "-preset", "veryfast", "-g", "250", "-bf", "3"]
        subprocess.run([*run, *source, *encode, "-pix_fmt", "yuv420p", str(seed)], check=True)
    repeat = ["-stream_loop", "-1", "-i", str(seed), "-t", str(minutes * 60), "-c", "copy", str(path)]
    subprocess.run([*run, *repeat], check=True)
    seed.unlink()


def _still_film(path: Path, seconds: float, width: int = 1280, height: int = 720, fps: float = 25.0) -> None:
    from omnicli.media.write import FilmWriter

    rng = np.random.default_rng(7)
    margin = 320

    def texture() -> np.ndarray:
        total = np.full((height + margin, width + margin, 3), 110.0, np.float32)
        for cell, strength in ((80, 50), (16, 25), (4, 10)):
            grid = rng.normal(0, strength, (-(-(height + margin) // cell), -(-(width + margin) // cell), 3))
            total += np.kron(grid, np.ones((cell, cell, 1)))[: height + margin, : width + margin]
        return np.clip(total, 0, 235).astype(np.uint8)

    grain = rng.integers(0, 14, (8, height, width, 1)).astype(np.uint8)
    scene = texture()
    cut = round(fps * 7)
    with FilmWriter(path, width, height, fps, sample_rate=None, gop=250, bframes=3) as film:
        for i in range(int(seconds * fps)):
            if i and i % cut == 0:
                scene = texture()
            k = i % cut
            x, y = (k * 2) % margin, (k + k // 3) % margin
            film.add_frame(scene[y : y + height, x : x + width] + grain[rng.integers(8)], i / fps)


def child(path: Path, part: str, fps: float) -> None:
    """Read the film as the pipeline does and print a line of JSON. Runs in a process of its own."""
    import torch  # noqa: F401  (scales the frames; loaded anyway where a model is)

    from omnicli.media.audio import read_audio
    from omnicli.media.probe import probe
    from omnicli.media.sampling import frame_times
    from omnicli.media.video import DecodeStats, read_frames

    loaded = resource.getrusage(resource.RUSAGE_SELF)
    info = probe(path)
    stats = DecodeStats()
    total, taken = 0.0, 0
    if part != "sound":
        assert info.frames is not None
        times = frame_times(info.frames.time_s, fps, SPARSE_FRAMES if part == "sparse" else None)
        for _, rgb in read_frames(info, times, *SIZE, stats=stats, device="cpu"):
            total += int(rgb[::16].sum())
        taken = stats.frames_yielded
    if part in ("sound", "length"):
        for block in read_audio(info, stats=stats):
            total += float(abs(block).sum())
            taken += len(block)
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps(
            {
                "read": taken,
                "film_frames": 0 if info.frames is None else len(info.frames),
                "decoded": stats.frames_decoded,
                "packets_sent": stats.packets_sent,
                "fell_back": stats.fell_back,
                "checksum": total,
                "loading_cpu_s": loaded.ru_utime + loaded.ru_stime,
                "above_libraries_mb": (peak_kb - loaded.ru_maxrss) / 1024,
                "peak_rss_mb": peak_kb / 1024,
                "duration_s": info.duration_s,
            }
        )
    )


def measure(command: list[str]) -> tuple[float, float, str]:
    """Run a command; returns its user + system CPU seconds, peak RSS in MB, and what it printed."""
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{command[0]} failed with status {status}")
        process.returncode = 0
        out.seek(0)
        return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, out.read()


def find_ffmpeg() -> str:
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        found = shutil.which("ffmpeg")
        if not found:
            raise SystemExit("no ffmpeg: pip install imageio-ffmpeg") from None
        return found


def ours(path: Path, part: str, fps: float) -> list[str]:
    """Return the command that reads a film as the pipeline does."""
    return [sys.executable, __file__, "--child", "--file", str(path), "--fps", str(fps), "--part", part]


def compare(ffmpeg: str, path: Path, part: str, fps: float, runs: int) -> dict[str, object]:
    """Measure both on one film, taking turns."""
    stream = "0:a:0" if part == "sound" else "0:v:0"
    program, rest = [ffmpeg, "-v", "error", "-nostdin", "-threads", "0"], ["-map", stream, "-f", "null", "-"]
    full, references = ([*program, *skip, "-i", str(path), *rest] for skip in ([], ["-skip_frame", "noref"]))
    rows = []
    for _ in range(runs):
        a, b = measure(full), measure(ours(path, part, fps))
        read = json.loads(b[2])
        row = {"ffmpeg_cpu_s": a[0], "ffmpeg_rss_mb": a[1], "ours_cpu_s": b[0] - read["loading_cpu_s"]}
        if part == "pictures":
            row["references_ratio"] = measure(references)[0] / a[0]
        rows.append(row | read)
    middle = {k: statistics.median(r[k] for r in rows) for k in rows[0] if not isinstance(rows[0][k], bool)}
    ratios = [r["ours_cpu_s"] / r["ffmpeg_cpu_s"] for r in rows]
    return {
        "part": part,
        "megabits_per_s": round(path.stat().st_size * 8e-6 / middle["duration_s"], 2),
        "duration_s": round(middle["duration_s"], 2),
        "frames": int(middle["film_frames"]),
        "frames_or_samples_read": int(middle["read"]),
        "frames_decoded": int(middle["decoded"]),
        "ffmpeg_cpu_s": round(middle["ffmpeg_cpu_s"], 2),
        "ours_cpu_s": round(middle["ours_cpu_s"], 2),
        "ffmpeg_peak_rss_mb": round(middle["ffmpeg_rss_mb"], 1),
        "ours_peak_rss_mb": round(middle["peak_rss_mb"], 1),
        "ours_above_libraries_mb": round(middle["above_libraries_mb"], 1),
        "fell_back": any(r["fell_back"] for r in rows),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(r, 3) for r in ratios],
        **({"references_ratio": round(middle["references_ratio"], 3)} if part == "pictures" else {}),
        "limit": LIMITS[part],
        "ratio_held": statistics.median(ratios) <= LIMITS[part],
        "memory_held": middle["above_libraries_mb"] <= LIMIT_MB,
    }


def memory(path: Path, fps: float) -> dict[str, object]:
    """Return the peak memory of reading pictures and sound of one film."""
    cpu_s, _, told = measure(ours(path, "length", fps))
    read = json.loads(told)
    return {
        "part": "length",
        "duration_s": round(read["duration_s"], 2),
        "ours_cpu_s": round(cpu_s - read["loading_cpu_s"], 2),
        "ours_peak_rss_mb": round(read["peak_rss_mb"], 1),
        "ours_above_libraries_mb": round(read["above_libraries_mb"], 1),
        "memory_held": read["above_libraries_mb"] <= LIMIT_MB,
    }


def generated(args: argparse.Namespace, ffmpeg: str, folder: Path) -> dict[str, object]:
    """Measure the parts asked for on films made for them."""
    found: dict[str, object] = {}
    if "pictures" in args.part:
        for content in args.content:
            path = folder / f"{content}.mp4"
            make_film(ffmpeg, path, args.minutes, content)
            found[content] = compare(ffmpeg, path, "pictures", args.fps, args.runs)
            path.unlink()
    if set(args.part) - {"pictures"}:
        path = folder / "hour.mp4"
        make_film(ffmpeg, path, 60, "footage")
        for part in ("sparse", "sound"):
            if part in args.part:
                found[f"footage, {part}"] = compare(ffmpeg, path, part, args.fps, args.runs)
        if "length" in args.part:
            found["footage, 60 min"] = memory(path, args.fps)
            make_film(ffmpeg, path, 10, "footage")
            found["footage, 10 min"] = memory(path, args.fps)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, help="film to read; without it films are generated")
    parser.add_argument("--part", nargs="+", choices=[*LIMITS, "length"], default=["pictures"])
    parser.add_argument("--content", nargs="+", choices=CONTENTS, default=CONTENTS, help="what generated films show")
    parser.add_argument("--minutes", type=float, default=5.0, help="length of the films for pictures")
    parser.add_argument("--fps", type=float, default=1.0, help="frames to read per second")
    parser.add_argument("--runs", type=int, default=3)
    add_out(parser)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--make-still", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make_still:
        _still_film(args.file, SEED_S)
        return
    if args.child:
        child(args.file, args.part[0], args.fps)
        return
    ffmpeg = find_ffmpeg()
    if args.file is not None:
        films: dict[str, object] = {
            f"{args.file.name}, {part}": memory(args.file, args.fps)
            if part == "length"
            else compare(ffmpeg, args.file, part, args.fps, args.runs)
            for part in args.part
        }
    else:
        with tempfile.TemporaryDirectory() as folder:
            films = generated(args, ffmpeg, Path(folder))
    version = subprocess.run([ffmpeg, "-version"], capture_output=True, text=True, check=True).stdout.split()[2]
    told = {
        "fps": args.fps,
        "read_size": list(SIZE),
        "ffmpeg": version,
        "runs": args.runs,
        "limits": LIMITS | {"above_libraries_mb": LIMIT_MB},
        "films": films,
    }
    tell("decode", told, args.out)


if __name__ == "__main__":
    main()
