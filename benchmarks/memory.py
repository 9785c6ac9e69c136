"""Peak host memory of `omni ask` on a short and a long film, each in a process of its own.

    python benchmarks/memory.py --minutes 10 --minutes 60 --out benchmarks/results/memory-DATE.json

The longer film may take 15 % more than the shorter one plus what the embeddings of its kept tokens need.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from result import add_out, tell

RUN = """
import json, sys, time
from omnicli import pipeline
from omnicli.config.config import load_config
from omnicli.models.loading import load_model
begin = time.perf_counter()
answer = pipeline.ask(sys.argv[1], [sys.argv[2]], load_config(sys.argv[3]), load_model(sys.argv[4]))[0].to_dict()
print(json.dumps({**answer, "process_s": time.perf_counter() - begin}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, action="append")
    parser.add_argument("--preset", default="avoc")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--fps", type=float, default=4.0, help="frames per second of the generated films")
    add_out(parser)
    options = parser.parse_args()
    from omnicli.models.loading import find_folder
    from omnicli.train.films import write_film
    from omnicli.train.world import make_film

    width = json.loads((Path(find_folder(options.model)[0]) / "config.json").read_text())["text_config"]["hidden_size"]
    rows = []
    with tempfile.TemporaryDirectory(prefix="omni-memory-") as folder:
        for minutes in options.minutes or [10.0, 60.0]:
            made = make_film(77, minutes * 60)
            film = Path(folder) / f"{minutes:g}.mp4"
            write_film(made, film, fps=options.fps)
            done = subprocess.run(
                [sys.executable, "-c", RUN, str(film), made.questions[0].text, options.preset, options.model],
                check=True,
                capture_output=True,
                text=True,
            )
            answer = json.loads(done.stdout)
            encoded, kept = (sum(answer["tokens"][m][k] for m in ("video", "audio")) for k in ("encoded", "kept"))
            rows.append(
                {
                    "minutes": minutes,
                    "peak_host_mb": answer["peak_memory"]["host_bytes"] / 1e6,
                    "tokens": encoded,
                    "kept": kept,
                    "kept_embeddings_mb": kept * width * 4 / 1e6,
                    "all_embeddings_mb": encoded * width * 4 / 1e6,
                    "stages": answer["stages"],
                    "wall_s": answer["wall_s"],
                }
            )
    first, last = rows[0], rows[-1]
    report = {
        "model": options.model,
        "preset": options.preset,
        "rows": rows,
        "ratio": (last["peak_host_mb"] - last["kept_embeddings_mb"]) / first["peak_host_mb"],
        "bound": 1.15,
    }
    tell("memory", report, options.out)


if __name__ == "__main__":
    main()
