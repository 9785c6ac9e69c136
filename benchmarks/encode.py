"""Encoding: our batched towers against the stock loops of transformers, in turn (A B A B), on the same inputs.

    python benchmarks/encode.py [--model NAME] [--frames 32] [--seconds 60] [--device cpu] [--dtype float32]

Without ``--model`` the towers of Qwen2.5-Omni-7B at real width with random weights, 8 layers of 32. Ours begins with
uint8 frames and goes frame batch by frame batch; the stock tower is given patch rows that are ready, all at once.
Sound: both begin with samples, ours window by window, the stock extractor and tower with all of them. Both must agree;
``difference`` is the largest one over the largest value. Prints JSON, medians and ratios of each turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from result import add_out, tell

from omnicli.media.pieces import batched
from omnicli.models import layout
from omnicli.models.loading import load_model, resolve_device

RATE = 16_000


def video(model: Any, count: int, height: int, width: int) -> dict[str, Callable[[], torch.Tensor]]:
    """Return both ways of encoding ``count`` frames."""
    g = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (count, height, width, 3), generator=g, dtype=torch.uint8)
    pre, visual = model.facts.preprocessing, model.thinker.model.visual
    rows = layout.patchify(frames, pre.mean, pre.std, patch=14, temporal=2, merge=2).to(model.device, model.dtype)
    grid = torch.tensor([[count // 2, height // 14, width // 14]], device=model.device)

    def ours() -> torch.Tensor:
        return torch.cat([model.encode_video(torch.stack(b)).features for b in batched(frames, model.video_batch)])

    return {"ours": ours, "stock": lambda: visual(rows, grid_thw=grid).pooler_output}


def audio(model: Any, seconds: float) -> dict[str, Callable[[], torch.Tensor]]:
    """Return both ways of encoding so many seconds of noise."""
    from transformers import WhisperFeatureExtractor

    samples = np.random.default_rng(0).standard_normal(round(seconds * RATE)).astype(np.float32) * 0.1
    extractor = WhisperFeatureExtractor(feature_size=128, chunk_length=round(seconds) + 1, return_attention_mask=True)
    peak = model.measure_log_mel_max([samples])

    def ours() -> torch.Tensor:
        stream = model.audio_encoder(peak)
        pieces = [p for i in range(0, len(samples), 2 * RATE) for p in stream.feed(samples[i : i + 2 * RATE])]
        return torch.cat([p.features for p in pieces + stream.finish()])

    def stock() -> torch.Tensor:
        mel = extractor(samples, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True)
        features, mask = mel.input_features.to(model.device, model.dtype), mel.attention_mask.to(model.device)
        return model.thinker.model.get_audio_features(features, mask).last_hidden_state

    return {"ours": ours, "stock": stock}


def compare(ways: dict[str, Callable[[], torch.Tensor]], runs: int, device: torch.device) -> dict[str, Any]:
    """Time both ways in turn, after a round to warm up that also compares what comes out."""
    outs = {name: way().float() for name, way in ways.items()}
    peak = float(outs["stock"].abs().max())
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[name].append(time.perf_counter() - begin)
    ratios = [s / o for o, s in zip(times["ours"], times["stock"], strict=True)]
    return {
        "tokens": outs["ours"].shape[0],
        "difference": float((outs["ours"] - outs["stock"]).abs().max()) / peak,
        **{f"{name}_s": round(statistics.median(t), 4) for name, t in times.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(r, 3) for r in ratios],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="dummy:qwen2.5-omni-7b,layers=8")
    parser.add_argument("--size", type=int, nargs=2, default=(224, 420), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    add_out(parser)
    args = parser.parse_args()
    device = resolve_device(args.device)
    model = load_model(args.model, device=str(device), dtype=args.dtype)
    with torch.inference_mode():
        found = {
            "pictures": compare(video(model, args.frames, *args.size), args.runs, device),
            "sound": compare(audio(model, args.seconds), args.runs, device),
        }
    told = {
        "settings": {k: v for k, v in vars(args).items() if k != "out"} | {"dtype": str(model.dtype)},
        **found,
        "together": round(sum(f["stock_s"] for f in found.values()) / sum(f["ours_s"] for f in found.values()), 3),
    }
    tell("encode", told, args.out, device=str(device))


if __name__ == "__main__":
    main()
