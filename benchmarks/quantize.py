"""What 8 and 4 bits do to answers, logits, bytes and speed: the same encoded films, the same questions.

    python benchmarks/quantize.py [--model pocket] [--films 10] [--seconds 30] [--preset full] [--device cpu]
    python benchmarks/quantize.py --linear 8192x2048 [--device cpu] [--dtype bfloat16]

Films are generated with known answers (`omnicli.train`). Prints one JSON object: by kind the right answers of how many,
answers equal to full precision's, the mean divergence of the first token's distribution (nats), bytes of the weights,
seconds to load, to read and per token written.

``--linear``: one layer alone, with four large channels among its inputs as trained LLMs have them: relative error, and
milliseconds for 2048 rows and for one; beside it what bitsandbytes and torchao do by themselves, where they are
installed.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from result import add_out, tell

from omnicli import pipeline
from omnicli.config.config import load_config
from omnicli.encode.film import EncodedFilm, load_film
from omnicli.llm.kv import KVCache
from omnicli.llm.prefill import prefill
from omnicli.models.loading import load_model, resolve_dtype
from omnicli.models.weights import quantize
from omnicli.train.films import write_film
from omnicli.train.pocket_eval import held_out_film

KINDS = ("none", "int8", "int4")


def first_token(model: Any, film: EncodedFilm, question: str) -> torch.Tensor:
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


def contenders(layer: torch.nn.Linear, device: str) -> Iterator[tuple[str, Any]]:
    """Yield names and functions that give the layer quantised; a library that is missing or cannot says so itself."""
    yield "plain", lambda: layer
    for name, kind in (("int8", quantize.Int8), ("int4", quantize.Nf4)):
        yield f"omni {name}", lambda kind=kind: quantize.Linear(kind(layer.weight), layer)

    def llm_int8(threshold: float) -> Any:
        import bitsandbytes

        sizes = layer.in_features, layer.out_features
        made = bitsandbytes.nn.Linear8bitLt(*sizes, bias=False, has_fp16_weights=False, threshold=threshold)
        made.weight = bitsandbytes.nn.Int8Params(layer.weight.data.cpu(), requires_grad=False, has_fp16_weights=False)
        return made.to(device)

    def torchao(config: str, **settings: Any) -> Any:
        import torchao.quantization as ao

        made = copy.deepcopy(layer)
        ao.quantize_(made, getattr(ao, config)(**settings))
        return made

    for threshold in (0.0, 6.0):
        yield f"bitsandbytes LLM.int8(), threshold {threshold:g}", partial(llm_int8, threshold)
    yield "torchao int8", partial(torchao, "Int8WeightOnlyConfig")
    for form in ("plain", "tile_packed_to_4d", "plain_int32"):
        name = f"torchao int4, groups of 64, {form}"
        yield name, partial(torchao, "Int4WeightOnlyConfig", group_size=64, int4_packing_format=form)


@torch.inference_mode()
def one_layer(rows: int, columns: int, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Return error and milliseconds of each contender, or why there are none."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(columns, rows, bias=False, device=device, dtype=dtype).requires_grad_(False)
    torch.nn.init.normal_(layer.weight, 0, columns**-0.5)
    x = torch.randn(2048, columns).to(device, dtype)
    x[:, :4] *= 20
    exact = torch.nn.functional.linear(x.double(), layer.weight.double())
    found: dict[str, Any] = {}
    for name, make in contenders(layer, device):
        try:
            made = make()
            error = float((made(x).double() - exact).norm() / exact.norm())
            found[name] = {"error": round(error, 5), "2048_ms": timed(made, x), "1_ms": timed(made, x[:1])}
        except Exception as problem:  # whatever a library says
            found[name] = f"{type(problem).__name__}: {' '.join(str(problem).split())[:120]}"
    return found


def timed(made: Any, x: torch.Tensor) -> float:
    """Return the median of five calls in milliseconds, after one to warm up."""
    times = []
    for _ in range(6):
        begin = time.perf_counter()
        made(x)
        if x.is_cuda:
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - begin))
    return round(sorted(times[1:])[2], 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--films", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--preset", default="full")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    add_out(parser)
    parser.add_argument("--linear", metavar="ROWSxCOLUMNS")
    args = parser.parse_args()
    if args.linear:
        dtype = resolve_dtype(args.dtype, torch.device(args.device))
        print(json.dumps(one_layer(*map(int, args.linear.split("x")), args.device, dtype), indent=1))
        return
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
            encoded = load_film(path, config.media, config.compressor.needs, models["none"])
            for question in film.questions:
                plain, plain_text = None, ""
                for kind, model in models.items():
                    answer = pipeline.answer(encoded, question.text, config, model)
                    told, row, spent = first_token(model, encoded, question.text), rows[kind], stages[kind]
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
    told = {**about, "device": args.device, "dtype": str(models["none"].dtype), "kinds": rows}
    tell("quantize", told, args.out, device=args.device)


if __name__ == "__main__":
    main()
