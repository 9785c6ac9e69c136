"""What 8 and 4 bits do to answers, logits, bytes and speed: the same encoded films, the same questions.

    python benchmarks/quantize.py [--model pocket] [--films 10] [--seconds 30] [--preset full] [--device cpu]

Films are generated with known answers (`omnicli.train`). Prints one JSON object: by kind the right answers of how many,
answers equal to full precision's, the mean divergence of the first token's distribution (nats), bytes of the weights,
seconds to load, to read and per token written.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from omnicli import pipeline
from omnicli.config import load_config
from omnicli.llm.kv import KVCache
from omnicli.llm.prefill import prefill
from omnicli.models.loading import load_model
from omnicli.train.films import write_film
from omnicli.train.pocket_eval import held_out_film

KINDS = ("none", "int8", "int4")


def first_token(model: Any, film: pipeline.Film, question: str) -> torch.Tensor:
    """Return the log-probabilities (V,) of an answer's first token, all media tokens read."""
    clip = film.media.clip
    read = model.sequence(model.prompt(question, video=clip.video, audio=clip.audio), clip)
    sizes = model.depth, model.kv_heads, model.head_dim
    cache = KVCache(*sizes, dtype=model.dtype, device=model.device, capacity=len(read.embeds))
    found = prefill(model, read.embeds, read.position_ids, cache, media_span=read.media_span, media=clip.tokens)
    return torch.log_softmax(found.logits, -1)


def stored(model: Any) -> int:
    """Return the bytes of all weights."""
    modules = [module for part in model.weights().values() for module in part]
    return sum(t.nbytes for m in modules for t in (*m.parameters(), *m.buffers()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--films", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--preset", default="full")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    config = load_config(args.preset)
    models, rows = {}, {kind: {"load_s": 0.0, "right": 0, "asked": 0, "same": 0, "nats": 0.0} for kind in KINDS}
    for kind in KINDS:
        begin = time.perf_counter()
        models[kind] = load_model(args.model, args.device, args.dtype, kind)
        rows[kind] |= {"load_s": round(time.perf_counter() - begin, 2), "weights_bytes": stored(models[kind])}
    stages: dict[str, list[float]] = {kind: [0.0, 0.0, 0] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for number in range(args.films):
            film = held_out_film(number, args.seconds)
            path = Path(folder) / f"{number}.mp4"
            write_film(film, path, fps=4.0)
            seen = pipeline.look(path, config.media, config.compressor.needs, models["none"])
            for question in film.questions:
                plain, plain_text = None, ""
                for kind, model in models.items():
                    answer = pipeline.answer(seen, question.text, config, model)
                    told, row, spent = first_token(model, seen, question.text), rows[kind], stages[kind]
                    plain, plain_text = (told, answer.answer) if plain is None else (plain, plain_text)
                    row["asked"] += 1
                    row["right"] += answer.answer == question.answer
                    row["same"] += answer.answer == plain_text
                    row["nats"] += float((plain.exp() * (plain - told)).sum())
                    spent[0] += answer.stages["prefill"]
                    spent[1] += answer.stages["generate"]
                    spent[2] += answer.tokens["generated"]
            path.unlink()
    for kind, (read_s, write_s, written) in stages.items():
        row = rows[kind]
        row |= {"nats": round(row["nats"] / row["asked"], 4), "prefill_s": round(read_s / row["asked"], 3)}
        row |= {"write_s_per_token": round(write_s / max(1, written), 4)}
    about = {"model": args.model, "films": args.films, "seconds": args.seconds, "preset": args.preset}
    print(json.dumps({**about, "device": args.device, "dtype": str(models["none"].dtype), "kinds": rows}, indent=1))


if __name__ == "__main__":
    main()
