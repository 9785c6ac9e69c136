"""From measured runs to rows of plain JSON values: medians, spreads, factors against full tokens. No clock, no model.

A bench is one JSON object: ``schema``, ``kind`` ("bench"), ``media`` {name, duration_s, generated, used}, ``question``,
``expected``, ``model``, ``machine``, ``settings``, ``rows``, ``notes``, ``versions``. A row holds

- ``preset``, ``method``, ``error`` (null, or why there is nothing else), ``captured``
- ``tokens`` {video: {encoded, kept}, audio: {encoded, kept}, text, generated, by_layer: [[first layer, media tokens]]}
- ``retention`` {door, layers}: media tokens that entered the LLM, and their mean over its layers, per encoded token
- ``flops`` {prefill, full_prefill, factor, count}; ``count`` says how: ``true``, two per multiply-add, causal, the head
  on one position; ``paper``, `omnicli.planning.flops.PAPERS`
- ``peak_memory`` {host_bytes, device_bytes, encode_host_bytes, encode_device_bytes}: from selection to the last token,
  weights and encoded film included; and while the film was decoded and encoded. From the first warm-up
- ``seconds`` {decode, encode, compress, select_in_llm, prefill, generate, time_to_first_token, wall} and
  ``decode_tokens_per_s``, each {median, q1, q3, min, max, values}; ``select_in_llm`` is a part of ``prefill``,
  ``time_to_first_token`` counts from the file on
- ``factor`` {prefill, time_to_first_token}: how many times as fast as full tokens, by the medians
- ``stages`` {name: median seconds} and ``stage_gap``, the share of the wall time outside of all stages (below 0: they
  overlap)
- ``agreement`` with the answer from full tokens (share of tokens before the first difference), ``answer`` and
  ``answer_ids`` up to where the model would have stopped by itself
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from omnicli.bench.fixed_length import agreement
from omnicli.bench.measure import REFERENCE, Measured, Outcome
from omnicli.models import identity
from omnicli.planning.flops import PAPERS, prefill_flops

if TYPE_CHECKING:
    from omnicli.config.config import Config
    from omnicli.models.base import OmniModel
    from omnicli.models.facts.dimensions import Dimensions

SCHEMA = 1
GAP = 0.05
"""Share of the wall time outside of all stages that is worth a note."""


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return median, quartiles (interpolated), extremes and the values themselves."""
    ordered = sorted(values)
    q1, _, q3 = statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else ordered * 3
    found = {"median": statistics.median(ordered), "q1": q1, "q3": q3, "min": ordered[0], "max": ordered[-1]}
    return {**{k: _round(v) for k, v in found.items()}, "values": [_round(v) for v in values]}


def report(
    outcome: Outcome,
    model: OmniModel,
    config: Config,
    *,
    media: dict[str, Any],
    question: str,
    expected: str | None,
    repeat: int,
    warmup: int,
    count: str = "true",
) -> dict[str, Any]:
    """Return the bench as one JSON object.

    ``config`` is that of any variant, for the settings that all share; ``count`` says how arithmetic is counted.
    """
    reference = next((m for m in outcome.measured if m.variant.name == REFERENCE and m.error is None), None)
    rows = [row(one, reference) for one in outcome.measured]
    for made in rows if count == "paper" else []:
        if made["error"] is None:
            made["flops"] = paper_flops(made, model.facts.llm)
    settings = config.to_dict()
    return {
        "schema": SCHEMA,
        "kind": "bench",
        "media": {**media, "used": None if outcome.used is None else vars(outcome.used)},
        "question": question,
        "expected": expected,
        "model": identity.of_model(model),
        "machine": machine(model),
        "settings": {
            "media": settings["media"],
            "max_new_tokens": settings["generate"]["max_new_tokens"],
            "repeat": repeat,
            "warmup": warmup,
            "count": count,
        },
        "rows": rows,
        "notes": [*outcome.warnings, *_notes(rows)],
        "versions": identity.versions(),
    }


def row(one: Measured, reference: Measured | None) -> dict[str, Any]:
    """Return one variant's row; factors and agreement are null where there is no reference."""
    config, done = one.variant.config, one.answer
    out: dict[str, Any] = {"preset": one.variant.name, "method": config.method, "error": None}
    if one.error is not None or done is None or not one.runs:
        return {**out, "error": one.error[0] if one.error else "not measured", "captured": list(one.captured)}
    base = [run.seconds() for run in reference.runs] if reference is not None else []
    seconds = [run.seconds() for run in one.runs]
    steps = done.tokens["generated"] - 1  # the first token comes out of prefill
    rates = [steps / s["generate"] for s in seconds if steps > 0 and s["generate"] > 0]
    encoded = {m: done.tokens[m]["encoded"] for m in ("video", "audio")}
    read = sum((done.tokens["retention_layers"][m] or 0.0) * n for m, n in encoded.items())
    prefill, whole = done.flops["prefill"], done.flops["full_prefill"]
    names = list(dict.fromkeys(name for run in one.runs for name in run.stages if name != "load" or config.offload))
    stages = {name: statistics.median(run.stages.get(name, 0.0) for run in one.runs) for name in names}
    return {
        **out,
        "captured": list(one.captured),
        "tokens": {k: done.tokens[k] for k in ("video", "audio", "text", "generated", "by_layer")},
        "retention": {
            "door": round(done.tokens["retention"], 6),
            "layers": round(read / max(1, sum(encoded.values())), 6),
        },
        "flops": {
            "prefill": prefill,
            "full_prefill": whole,
            "factor": _round(whole / prefill) if prefill and whole else None,
            "count": "true",
        },
        "peak_memory": {
            **(vars(one.peaks) if one.peaks else {"host_bytes": None, "device_bytes": None}),
            **{f"encode_{k}": v for k, v in (vars(one.encode_peaks) if one.encode_peaks else {}).items()},
        },
        "seconds": {name: spread([s[name] for s in seconds]) for name in seconds[0]},
        "decode_tokens_per_s": spread(rates) if rates else None,
        "factor": {name: _factor(base, seconds, name) for name in ("prefill", "time_to_first_token")},
        "stages": {name: _round(s) for name, s in stages.items()},
        "stage_gap": _round(statistics.median(run.gap for run in one.runs)),
        "agreement": None if reference is None else round(agreement(reference.ids, one.ids), 4),
        "answer": one.text,
        "answer_ids": one.ids,
    }


def paper_flops(row: dict[str, Any], dimensions: Dimensions) -> dict[str, Any]:
    """Return a row's ``flops`` as the papers count them."""
    tokens = row["tokens"]
    media = sum(tokens[m]["encoded"] for m in ("video", "audio"))
    found = prefill_flops(dimensions, tokens["text"], media, tokens["by_layer"], convention=PAPERS)
    prefill, whole = found["prefill"] or 0.0, found["full_prefill"] or 0.0
    return {"prefill": prefill, "full_prefill": whole, "factor": _round(whole / prefill), "count": "paper"}


def machine(model: OmniModel) -> dict[str, Any]:
    """Return what the numbers depend on besides the versions: device, cores, threads."""
    cuda = model.device.type == "cuda"
    name = torch.cuda.get_device_name(model.device) if cuda else _processor()
    return {
        "device": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _factor(base: Sequence[dict[str, float]], seconds: Sequence[dict[str, float]], name: str) -> float | None:
    """Return how many times as long the reference took, by the medians."""
    if not base:
        return None
    whole, own = (statistics.median(s[name] for s in times) for times in (base, seconds))
    return _round(whole / own) if own > 0 else None


def _notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return what a reader should know of the numbers: stages that do not add up, captures that were charged to all."""
    good = [r for r in rows if r["error"] is None]
    notes = [
        f"{r['preset']}: stages {'miss' if r['stage_gap'] > 0 else 'overlap by'} "
        f"{100 * abs(r['stage_gap']):.1f} % of the wall time"
        for r in good
        if abs(r["stage_gap"]) > GAP
    ]
    captured = sorted({name for r in good for name in r["captured"]})
    if captured:
        notes.append(f"encode includes capturing {', '.join(captured)}, which some of the presets need")
    return notes


def _round(value: float) -> float:
    return float(f"{value:.6g}")
