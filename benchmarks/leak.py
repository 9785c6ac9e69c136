"""Does memory grow over hundreds of films? One worker answers about small generated films, one after the other.

    python benchmarks/leak.py --films 300 --out benchmarks/results/leak-DATE.json

Prints the median resident memory over the last third of the films against that over the first third, and what a film
adds on average from the first third on. Every film is another file; a few damaged ones are among them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

from result import add_out, tell


def resident() -> int:
    """Return the resident bytes of this process."""
    import resource

    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def write_films(folder: Path, count: int, seconds: float) -> list[Path]:
    """Write films of drifting colours and a tone that all differ; every tenth is cut off."""
    import numpy as np

    from omnicli.media.write import FilmWriter

    out, rate, fps = [], 16_000, 8
    ramp = np.add.outer(np.arange(112), np.arange(196))
    for i in range(count):
        path = folder / f"{i:04d}.mkv"
        with FilmWriter(path, 196, 112, fps, sample_rate=rate, gop=fps, preset="ultrafast") as film:
            for k in range(int(seconds * fps)):
                colours = [(ramp * c + 9 * k + i) % 256 for c in (1, 2, 3)]
                film.add_frame(np.stack(colours, -1).astype(np.uint8), k / fps)
            tone = np.sin(np.arange(int(seconds * rate)) * (0.05 + i / 5000))
            film.add_samples((0.3 * tone).astype(np.float32))
        if i % 10 == 9:
            path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        out.append(path)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--preset", default="avoc")
    add_out(parser)
    options = parser.parse_args()
    import dataclasses

    from omnicli.batch.items import Wanted, plan
    from omnicli.batch.worker import Worker
    from omnicli.config.config import load_config

    config = dataclasses.replace(load_config(options.preset, ["generate.max_new_tokens=4"]), model=options.model)
    sizes, statuses = [], Counter[str]()
    with tempfile.TemporaryDirectory(prefix="omni-leak-") as folder:
        films = write_films(Path(folder), options.films, options.seconds)
        jobs = plan([Wanted(str(f), q) for f in films for q in ("Who speaks last?", "What is the number?")], "leak")
        begin = time.perf_counter()
        for i, row in enumerate(Worker(config, timeout_s=600).answer(jobs)):
            statuses[row["status"]] += 1
            if i % 2:
                sizes.append(resident())
        wall_s = time.perf_counter() - begin
    third = len(sizes) // 3
    first, last = (statistics.median(part) for part in (sizes[:third], sizes[-third:]))
    report = {
        "model": options.model,
        "preset": options.preset,
        "films": options.films,
        "rows": dict(statuses),
        "wall_s": round(wall_s, 1),
        "first_third_mb": round(first / 1e6, 1),
        "last_third_mb": round(last / 1e6, 1),
        "ratio": round(last / first, 4),
        "growth_kb_per_film": round((last - first) / 1e3 / (options.films - third), 1),
        "resident_mb": [round(size / 1e6, 1) for size in sizes[:: max(1, len(sizes) // 60)]],
    }
    tell("leak", report, options.out)


if __name__ == "__main__":
    main()
