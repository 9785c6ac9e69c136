"""Writing tokens layer by layer and from one recorded CUDA graph, in turn (A B A B), behind prompts of several lengths.

    python benchmarks/steps.py [--model dummy:qwen2.5-omni-7b] [--device cuda] [--rows 1600 10240] [--tokens 64]

Random weights and random prompts; recording is counted, as an answer of so many tokens pays for it. Prints JSON:
median tokens per second of both, their ratios, and the largest difference of logits over the largest logit. Without a
graphics card nothing is recorded, and the script says so.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from typing import Any

import torch
from result import add_out, tell

from omnicli.llm.kv import KVCache
from omnicli.llm.prefill import prefill
from omnicli.llm.steps import Steps
from omnicli.models.loading import load_model, resolve_device
from omnicli.utils.attention_recorder import AttentionRecorder


def written(model: Any, cache: KVCache, lengths: list[int], tokens: int) -> tuple[float, bool, torch.Tensor]:
    """Write ``tokens`` fixed ids behind the prompt; return seconds, whether they were recorded, the last logits."""
    cache.truncate(lengths)
    write = Steps(model, cache, AttentionRecorder.nothing(), tokens)
    begin = time.perf_counter()
    for i in range(tokens):
        logits = write(100 + i, lengths[0] + i)
        int(logits.argmax())  # as an answer waits for each token
    return time.perf_counter() - begin, write.recorded, logits.clone()


def compare(model: Any, rows: int, tokens: int, runs: int) -> dict[str, Any]:
    """Time both ways in turn behind a prompt of ``rows`` positions, after one round to warm up."""
    plain = copy.copy(model)
    plain.cuda_graph_safe = False
    cache = KVCache(
        model.depth, model.kv_heads, model.head_dim, dtype=model.dtype, device=model.device, capacity=rows + tokens
    )
    embeds = torch.randn(rows, model.hidden_size, device=model.device, dtype=model.dtype)
    prefill(model, embeds, torch.arange(rows, device=model.device).expand(model.position_axes, -1), cache)
    lengths = cache.lengths
    times: dict[str, list[float]] = {"by_layer": [], "recorded": []}
    for turn in range(runs + 1):
        one, _, want = written(plain, cache, lengths, tokens)
        other, recorded, got = written(model, cache, lengths, tokens)
        if turn:
            times["by_layer"].append(one)
            times["recorded"].append(other)
    ratios = [a / b for a, b in zip(times["by_layer"], times["recorded"], strict=True)]
    return {
        "rows": rows,
        "recorded": recorded,
        **{f"{name}_tokens_per_s": round(tokens / statistics.median(t), 2) for name, t in times.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(r, 3) for r in ratios],
        "difference": float((got - want).abs().max() / want.abs().max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="dummy:qwen2.5-omni-7b")
    parser.add_argument("--rows", type=int, nargs="+", default=(1600, 10240))
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="auto")
    add_out(parser)
    args = parser.parse_args()
    device = resolve_device(args.device)
    model = load_model(args.model, device=str(device))
    with torch.inference_mode():
        found = [compare(model, rows, args.tokens, args.runs) for rows in args.rows]
    settings = {k: v for k, v in vars(args).items() if k != "out"} | {"dtype": str(model.dtype)}
    tell("steps", {"settings": settings, "prompts": found}, args.out, device=str(device))


if __name__ == "__main__":
    main()
