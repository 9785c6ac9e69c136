"""How often the strongest range of `--evidence` holds the planted event, where the pocket model answers rightly.

    python benchmarks/evidence.py [--seconds 60] [--films 20] [--preset full] [--out FILE]

Generated films with held-out seeds and voices; each asks for a number shown, one spoken, and who speaks first and last,
and knows when that happens. A range counts if it overlaps the event. Prints JSON with 95 % Wilson intervals.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from result import add_out, tell

from omnicli import pipeline
from omnicli.config.config import load_config
from omnicli.models.base import OmniModel
from omnicli.models.loading import load_model
from omnicli.train import films, speech, world
from omnicli.train.pocket_eval import wilson

SEED = 9_400_000
TASKS = ("caption", "spoken", "who")


def measure(model: OmniModel, seconds: float, count: int, preset: str) -> dict[str, dict[str, Any]]:
    """Return by task how many right answers there are, and of how many the first range overlaps the event."""
    config = load_config(preset)
    found: dict[str, list[tuple[bool, float]]] = defaultdict(list)
    asked: dict[str, int] = defaultdict(int)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        for number in range(count):
            film = world.make_film(SEED + number, seconds, tasks=TASKS, voices=speech.HELD_OUT_VOICES)
            films.write_film(film, path)
            answers = pipeline.ask(path, [q.text for q in film.questions], config, model, evidence=True)
            for question, answer in zip(film.questions, answers, strict=True):
                asked[question.task] += 1
                if answer.answer == question.answer:
                    first = next(iter(answer.evidence), {"start_s": 0.0, "end_s": -1.0})
                    hit = first["start_s"] <= question.at_s[1] and first["end_s"] >= question.at_s[0]
                    found[question.task].append((hit, first["end_s"] - first["start_s"]))
    return {task: row(found[task], asked[task]) for task in asked} | {
        "all": row([hit for hits in found.values() for hit in hits], 0)
    }


def row(hits: list[tuple[bool, float]], asked: int) -> dict[str, Any]:
    """Return counts, the rate with its interval, and the mean length of the ranges."""
    right, n = sum(hit for hit, _ in hits), len(hits)
    low, high = wilson(right, n)
    return {
        **({"asked": asked} if asked else {}),
        "answered_rightly": n,
        "first_range_holds_it": right,
        "rate": round(right / max(1, n), 3),
        "interval": [round(low, 3), round(high, 3)],
        "mean_range_s": round(sum(s for _, s in hits) / max(1, n), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--films", type=int, default=20)
    parser.add_argument("--preset", default="full")
    add_out(parser)
    args = parser.parse_args()
    told = {
        "settings": {"seconds": args.seconds, "films": args.films, "preset": args.preset, "seed": SEED},
        "tasks": measure(load_model("pocket"), args.seconds, args.films, args.preset),
    }
    tell("evidence", told, args.out)


if __name__ == "__main__":
    main()
