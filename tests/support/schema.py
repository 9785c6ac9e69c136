"""The JSON of an answer as a small schema; docs/reference/json.md describes the same keys in words."""

from __future__ import annotations

import math
from typing import Any

NUMBER = (int, float)
OPTIONAL = (int, float, type(None))

ANSWER: dict[str, Any] = {
    "schema": int,
    "id": str,
    "media": str,
    "question": str,
    "answer": str,
    "status": str,
    "model": {"name": str, "revision": str, "dtype": str, "device": str, "quantize": str},
    "preset": str,
    "config": dict,
    "media_used": {
        "video_s": NUMBER,
        "audio_s": NUMBER,
        "video_present_s": NUMBER,
        "audio_present_s": NUMBER,
        "frames": int,
        "fps": NUMBER,
        "width": int,
        "height": int,
    },
    "tokens": {
        "video": {"encoded": int, "kept": int},
        "audio": {"encoded": int, "kept": int},
        "text": int,
        "reused": int,
        "generated": int,
        "by_layer": list,
        "retention": NUMBER,
        "retention_nominal": (dict, type(None)),
        "retention_layers": {"video": OPTIONAL, "audio": OPTIONAL},
        "selection": dict,
        "timeline": {
            "start_s": int,
            "step_s": int,
            "video": {"encoded": list, "kept": list},
            "audio": {"encoded": list, "kept": list},
        },
    },
    "positions": {"largest": NUMBER, "trained": int, "time_scale": OPTIONAL},
    "stages": dict,
    "busy": dict,
    "wall_s": NUMBER,
    "time_to_first_token_s": NUMBER,
    "peak_memory": {"host_bytes": OPTIONAL, "device_bytes": OPTIONAL},
    "flops": {"prefill": OPTIONAL, "full_prefill": OPTIONAL, "compress": OPTIONAL},
    "evidence": list,
    "warnings": list,
    "versions": dict,
    "cached": bool,
}
EVIDENCE = {"start_s": NUMBER, "end_s": NUMBER, "score": OPTIONAL, "modality": str}

PLAN: dict[str, Any] = {
    "schema": int,
    "media": str,
    "model": {"name": str, "dtype": str, "device": str, "quantize": str, "offload": bool},
    "preset": str,
    "media_used": {"frames": int, "width": int, "height": int, "audio_s": NUMBER},
    "tokens": {
        "video": {"encoded": int, "kept": int},
        "audio": {"encoded": int, "kept": int},
        "text": int,
        "per_layer": int,
    },
    "positions": {"largest": int, "trained": int, "time_scale": OPTIONAL},
    "bytes": dict.fromkeys(
        ("weights", "encoder_weights", "encoders", "tokens", "kept", "kv", "prefill", "asking", "hidden", "frames"), int
    ),
    "peak": {"host_bytes": int, "host_above_libraries_bytes": int, "device_bytes": OPTIONAL},
    "free": {"host_bytes": OPTIONAL, "device_bytes": OPTIONAL},
    "cards": list,
    "decode_cpu_s_estimate": NUMBER,
    "fits": bool,
    "problems": list,
    "changes": list,
}
PLAN_CHANGE: dict[str, Any] = {"change": str, "host_bytes": int, "device_bytes": OPTIONAL, "kept": int}

DOCTOR: dict[str, Any] = {"schema": int, "usable": bool, "checks": list}
DOCTOR_CHECK: dict[str, Any] = {
    "name": str,
    "status": str,
    "found": str,
    "remedy": str,
    "details": (list, type(None)),
}
DOCTOR_MODEL: dict[str, Any] = {"name": str, "weights": str, "films": list}
DOCTOR_FILM: dict[str, Any] = {
    "seconds": int,
    "fits": bool,
    "host_bytes": OPTIONAL,
    "device_bytes": OPTIONAL,
    "problems": list,
}

BATCH: dict[str, Any] = {
    "error": (dict, type(None)),
    "key": str,
    "item": (str, type(None)),
    "choices": (list, type(None)),
    "choice": (str, type(None)),
}
"""What a row of `omni batch` has besides."""

WITHOUT_ANSWER = (
    "answer",
    "model",
    "media_used",
    "tokens",
    "positions",
    "stages",
    "busy",
    "time_to_first_token_s",
    "peak_memory",
    "flops",
    "cached",
)
"""Null in a row that is not ok; ``wall_s`` may be."""


def row_problems(row: Any) -> list[str]:
    """Return what is wrong with a row of `omni batch`."""
    if not isinstance(row, dict):
        return ["row: not an object"]
    if row.get("status") == "ok":
        out = problems({k: v for k, v in row.items() if k not in BATCH}) + [k for k in BATCH if k not in row]
        return out + ([] if row.get("error") is None else ["row.error: an answer has none"])
    schema = {**ANSWER, **BATCH, "error": {"code": int, "message": str}}
    schema |= {key: type(None) for key in WITHOUT_ANSWER} | {"wall_s": OPTIONAL}
    out = problems(row, schema, "row")
    if row.get("status") not in ("failed", "skipped"):
        out.append(f"row.status: {row.get('status')}")
    if not out and (row["status"] == "failed") != (row["error"]["code"] != 0):
        out.append(f"row.error.code: {row['error']['code']} of a row that is {row['status']}")
    if not out and ("\n" in row["error"]["message"] or "Traceback" in row["error"]["message"]):
        out.append("row.error.message: more than a line")
    return out


def problems(value: Any, schema: Any = None, path: str = "answer") -> list[str]:
    """Return what is wrong with an answer's JSON; an empty list means that it follows the schema."""
    schema = ANSWER if schema is None else schema
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [f"{path}: not an object"]
        out = [f"{path}.{key}: missing" for key in schema if key not in value]
        out += [f"{path}.{key}: not in the schema" for key in value if key not in schema]
        for key in schema.keys() & value.keys():
            out += problems(value[key], schema[key], f"{path}.{key}")
        if schema is ANSWER and not out:
            out = _contents(value)
        return out
    if isinstance(value, bool) != (schema is bool) or not isinstance(value, schema):
        return [f"{path}: {type(value).__name__} is not allowed"]
    if isinstance(value, float) and not math.isfinite(value):
        return [f"{path}: {value}"]
    return []


def _contents(value: dict[str, Any]) -> list[str]:
    """Return what is wrong with values whose types are right."""
    out = []
    for item in value["evidence"]:
        out += problems(item, EVIDENCE, "answer.evidence")
    for name in ("stages", "busy"):
        out += [f"answer.{name}.{k}: {v}" for k, v in value[name].items() if not isinstance(v, NUMBER) or v < 0]
    out += ["answer.warnings: not text" for w in value["warnings"] if not isinstance(w, str)]
    kept = 0
    for name in ("video", "audio"):
        count = value["tokens"][name]
        kept += count["kept"]
        if not 0 <= count["kept"] <= count["encoded"]:
            out.append(f"answer.tokens.{name}: kept {count['kept']} of {count['encoded']}")
    if not 0 <= value["tokens"]["retention"] <= 1:
        out.append(f"answer.tokens.retention: {value['tokens']['retention']}")
    layers = value["tokens"]["by_layer"]
    if layers and layers[0] != [0, kept]:
        out.append(f"answer.tokens.by_layer: starts with {layers[0]}, but {kept} tokens were kept")
    for name in ("video", "audio"):
        for what, numbers in value["tokens"]["timeline"][name].items():
            if sum(numbers) != value["tokens"][name][what] or len(numbers) > 100:
                out.append(f"answer.tokens.timeline.{name}.{what}: does not add up")
    if value["schema"] != 1:
        out.append("answer.schema: not 1")
    return out
