"""Time from `look` to the first token with and without the cache of encoded films, each run in a process of its own.

    python benchmarks/cache.py --minutes 5 --preset avoc --preset avoc:avoc.tokens=512 --out FILE.json
    python benchmarks/cache.py --footage --minutes 60 --preset avoc --runs 2

Runs alternate between decoding the film (no cache at all) and reading what a run before them kept. What the question
costs (choosing tokens, prefill) is the same in both and bounds the ratio; `look` alone is told beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from result import add_out, tell

RUN = """
import json, sys
from pathlib import Path
from omnicli import pipeline
from omnicli.config.config import load_config
from omnicli.encode.cache import Cache
from omnicli.encode.film import load_film
from omnicli.models.loading import load_model
film, question, preset, sets, name, folder = sys.argv[1:]
config, model = load_config(preset, json.loads(sets)), load_model(name)
cache = Cache(Path(folder)) if folder else None
encoded = load_film(film, config.media, config.compressor.needs, model, cache=cache)
answer = pipeline.answer(encoded, question, config, model)
anonymous = [int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith("RssAnon")]
print(json.dumps({
    "cached": encoded.cached, "look_s": encoded.times.wall_s, "first_token_s": answer.time_to_first_token_s,
    "answer": answer.answer, "tokens": answer.tokens, "cache_s": answer.stages["cache"],
    "rss_anonymous": anonymous[0], "stages": answer.stages,
}))
"""
BOUND = 20.0


def run(film: Path, question: str, preset: str, model: str, folder: str) -> dict:
    name, *sets = preset.split(":")
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(film), question, name, json.dumps(sets), model, folder],
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)


def compare(film: Path, question: str, preset: str, model: str, runs: int) -> dict:
    """Measure one preset, cold and cached in turns."""
    with tempfile.TemporaryDirectory(prefix="omni-cache-") as folder:
        kept = run(film, question, preset, model, folder)
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        rows = [
            (run(film, question, preset, model, ""), run(film, question, preset, model, folder)) for _ in range(runs)
        ]
    answers = {row["answer"] for pair in rows for row in pair} | {kept["answer"]}
    if kept["cached"] or any(cold["cached"] or not cached["cached"] for cold, cached in rows) or len(answers) != 1:
        raise SystemExit(f"{preset}: not what was to be measured: {answers}")
    cold, cached = (
        {k: statistics.median(pair[i][k] for pair in rows) for k in ("look_s", "first_token_s", "rss_anonymous")}
        for i in (0, 1)
    )
    ratio = {k: round(cold[k] / cached[k], 1) for k in ("look_s", "first_token_s")}
    return {
        "preset": preset,
        "tokens": {m: kept["tokens"][m] for m in ("video", "audio")},
        "entry_bytes": size,
        "keeping_s": round(kept["cache_s"], 4),
        "cold": cold,
        "cached": cached,
        "cached_stages": rows[-1][1]["stages"],
        "look_ratio": ratio["look_s"],
        "first_token_ratio": ratio["first_token_s"],
        "first_token_ratios": [round(a["first_token_s"] / b["first_token_s"], 1) for a, b in rows],
        "bound": BOUND,
        "look_held": ratio["look_s"] >= BOUND,
        "first_token_held": ratio["first_token_s"] >= BOUND,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="length of the generated film")
    parser.add_argument("--footage", action="store_true", help="720p at 25 fps, the film of decode.py")
    parser.add_argument("--file", type=Path, help="measure on this film instead")
    parser.add_argument("--preset", action="append", help="NAME or NAME:KEY=VALUE; repeatable")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--runs", type=int, default=5)
    add_out(parser)
    options = parser.parse_args()
    import decode  # beside this file

    from omnicli.train.films import write_film
    from omnicli.train.world import make_film

    made = make_film(77, options.minutes * 60)
    with tempfile.TemporaryDirectory(prefix="omni-film-") as folder:
        film = options.file or Path(folder) / "film.mp4"
        if options.footage:
            decode.make_film(decode.find_ffmpeg(), film, options.minutes, "footage")
        elif options.file is None:
            write_film(made, film, fps=4.0)
        presets = options.preset or ["avoc", "avoc-10", "avoc:avoc.tokens=512"]
        rows = [compare(film, made.questions[0].text, p, options.model, options.runs) for p in presets]
    report = {
        "model": options.model,
        "film": "file" if options.file else "720p footage" if options.footage else "generated",
        "minutes": None if options.file else options.minutes,
        "runs": options.runs,
        "rows": rows,
    }
    tell("cache", report, options.out)


if __name__ == "__main__":
    main()
