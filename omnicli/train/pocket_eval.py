"""Scores of a model on held-out generated films, through the same pipeline that answers users.

``python -m omnicli.train.pocket_eval --seconds 30 --films 60 --preset full`` renders films with seeds, voices and
backgrounds never trained on into real containers, asks every film its questions, and prints exact-match rates with
95 % Wilson intervals as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omnicli.encode.film import load_film
from omnicli.train import films as rendering
from omnicli.train import script, speech, world

HELD_OUT_SEED = 5_000_000
TASKS = ("caption", "spoken", "who", "cross", "presence")


def wilson(right: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a rate; (0, 1) for no trials."""
    if total == 0:
        return 0.0, 1.0
    p, n = right / total, total
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def held_out_film(index: int, seconds: float) -> script.Film:
    """Return held-out film ``index``: all tasks, voices never trained on."""
    tasks: tuple[str, ...] = ("caption", "spoken", "who", "cross")
    if seconds < 45:  # too short for all of them
        tasks = ("who", "cross") if index % 4 == 3 else ("caption", "spoken", "who")
    return world.make_film(HELD_OUT_SEED + index, seconds, tasks=tasks, voices=speech.HELD_OUT_VOICES)


def evaluate(
    model: Any,
    seconds: float,
    films: int,
    presets: Sequence[tuple[str, Sequence[str]]],
    *,
    first: int = 0,
    fps: float = 4.0,
    blank: str | None = None,
    ask: Sequence[str] = (),
    log: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Ask held-out films through `omnicli.pipeline.ask`.

    Parameters
    ----------
    seconds, films : float, int
        Length and number of films.
    presets : sequence of (preset, overrides)
        Each is asked the same questions of the same films.
    fps : float
        Frames per second of the rendered container.
    blank : {"pictures", "sound", None}
        Write films without that sense, to see which questions need it.
    ask : sequence of str
        Only questions that begin with one of these; empty: all.

    Returns
    -------
    list of dict
        Per preset: rates by task with ``right``, ``total``, ``low``, ``high``, and the wrong answers.
    """
    from omnicli import pipeline
    from omnicli.config.config import load_config
    from omnicli.errors import UsageError
    from omnicli.models.parts import SALIENCIES

    configs = [load_config(name, list(overrides)) for name, overrides in presets]
    if any(config.media != configs[0].media for config in configs):
        raise UsageError("presets that sample differently cannot share an evaluation; run them one by one")
    needs = frozenset().union(*(config.compressor.needs for config in configs))
    if len(needs & SALIENCIES) > 1:
        raise UsageError("presets that need different saliencies cannot share an evaluation; run them one by one")
    tallies: list[dict[str, list[int]]] = [{} for _ in configs]
    wrong: list[list[str]] = [[] for _ in configs]
    spent = [0.0] * len(configs)
    with tempfile.TemporaryDirectory(prefix="omni-eval-") as folder:
        for index in range(first, first + films):
            film = held_out_film(index, seconds)
            questions = [q for q in film.questions if not ask or q.text.startswith(tuple(ask))]
            path = Path(folder) / f"film-{index}.mp4"
            rendering.write_film(_blanked(film, blank), path, fps=fps)
            encoded = load_film(path, configs[0].media, needs, model)
            for which, config in enumerate(configs):
                answers = [pipeline.answer(encoded, q.text, config, model) for q in questions]
                spent[which] += encoded.times.wall_s + sum(a.wall_s - encoded.times.wall_s for a in answers)
                for question, answer in zip(questions, answers, strict=True):
                    count = tallies[which].setdefault(question.task, [0, 0])
                    count[0] += answer.answer == question.answer
                    count[1] += 1
                    if answer.answer != question.answer:
                        wrong[which].append(f"{index}: {question.text} {question.answer} not {answer.answer!r}")
            path.unlink()
            so_far = (
                f"{name} " + " ".join(f"{task} {r}/{n}" for task, (r, n) in sorted(tally.items()))
                for (name, _), tally in zip(presets, tallies, strict=True)
            )
            log(f"{seconds:g} s film {index + 1 - first}/{films}: " + " | ".join(so_far))
    results = []
    for (name, overrides), tally, misses, took in zip(presets, tallies, wrong, spent, strict=True):
        results.append(
            {
                "preset": name,
                "set": list(overrides),
                "seconds": seconds,
                "films": films,
                "blank": blank,
                "rates": {task: _rate(*count) for task, count in sorted(tally.items())},
                "wrong": misses,
                "ask_s_per_film": took / films,
            }
        )
    return results


def _rate(right: int, total: int) -> dict[str, float]:
    low, high = wilson(right, total)
    return {"rate": right / total, "right": right, "total": total, "low": low, "high": high}


def _blanked(film: script.Film, blank: str | None) -> script.Film:
    if blank is None:
        return film
    hidden = ("voice", "sound", "music") if blank == "sound" else ("caption", "character", "shape")
    events = tuple(e for e in film.events if e.kind not in hidden)
    return script.Film(film.seed, film.duration_s, film.scenes, events, film.questions, film.noise, film.hiss)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, evaluate, print one JSON object."""
    import torch

    from omnicli.models.loading import load_model

    parser = argparse.ArgumentParser(prog="python -m omnicli.train.pocket_eval", description=__doc__)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--films", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--preset", action="append", help="NAME or NAME:key=value,key=value; repeatable")
    parser.add_argument("--blank", choices=("pictures", "sound"))
    parser.add_argument("--ask", action="append", help="only questions beginning so; repeatable")
    parser.add_argument("--out", type=Path, help="write the report here as well")
    parser.add_argument("--card", type=Path, help="enter the rates into this card.json")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    presets = []
    for text in options.preset or ["full"]:
        name, _, settings = text.partition(":")
        presets.append((name, [s for s in settings.split(",") if s]))
    begin = time.time()
    results = evaluate(
        load_model(options.model),
        options.seconds,
        options.films,
        presets,
        first=options.first,
        blank=options.blank,
        ask=options.ask or (),
        log=lambda line: print(line, file=sys.stderr, flush=True),
    )
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": "GPU" if torch.cuda.is_available() else f"{platform.machine()}, {options.threads} threads, no GPU",
        "command": "python -m omnicli.train.pocket_eval " + " ".join(arguments or sys.argv[1:]),
        "seconds": round(time.time() - begin, 1),
        "results": results,
    }
    text = json.dumps(report, indent=1)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")
    if options.card:
        enter(options.card, report)
    print(text)


def enter(card: Path, report: dict[str, Any]) -> None:
    """Enter a report's rates into a model card, in place of older ones at the same length and settings."""
    content = json.loads(card.read_text())
    for result in report["results"]:
        if result["blank"] is not None:
            continue
        same = {"seconds": result["seconds"], "preset": result["preset"], "set": result["set"]}
        kept = [s for s in content["scores"] if {k: s[k] for k in same} != same]
        rates = {
            task: f"{r['right']}/{r['total']} = {100 * r['rate']:.0f} % [{100 * r['low']:.0f}, {100 * r['high']:.0f}]"
            for task, r in result["rates"].items()
        }
        facts = {"date": report["date"], "machine": report["machine"], "command": report["command"]}
        content["scores"] = [*kept, same | {"exact_match": rates} | facts]
    card.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
