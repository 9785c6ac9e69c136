"""Rows of `omni ask --json` and `omni batch`, read back and checked, so that drawing them needs no doubt.

Knows the shape that docs/reference/json.md describes as far as the report shows it, and nothing of HTML.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from omnicli.errors import MediaError

Row = dict[str, Any]

SCHEMA = 1
_NUMBER = (int, float)
_MAYBE = (int, float, type(None))
_LARGEST = 10**21  # a run of more FLOPs than that is a broken file; keeps numbers printable

_CONFIG = {
    "method": str,
    "params": dict,
    "media": dict,
    "generate": dict,
    "model": (str, type(None)),
    "device": str,
    "dtype": str,
}
_COUNT = {"encoded": int, "kept": int}
_STEPS = {"encoded": [int], "kept": [int]}
_ALWAYS = {
    "schema": int,
    "media": str,
    "question": str,
    "preset": str,
    "config": _CONFIG,
    "warnings": [str],
    "versions": {str: str},
}
_FAILED = {**_ALWAYS, "error": {"code": int, "message": str}}
_ANSWER = {
    **_ALWAYS,
    "answer": str,
    "model": {"name": str, "dtype": str, "device": str},
    "media_used": dict.fromkeys(("video_s", "audio_s", "video_present_s", "audio_present_s"), _NUMBER)
    | {"frames": int, "width": int, "height": int},
    "tokens": {
        "video": _COUNT,
        "audio": _COUNT,
        "text": int,
        "reused": int,
        "generated": int,
        "by_layer": [[int]],
        "retention": _NUMBER,
        "retention_nominal": (dict, type(None)),
        "retention_layers": {str: _MAYBE},
    },
    "stages": {str: _NUMBER},
    "busy": {str: _NUMBER},
    "wall_s": _NUMBER,
    "time_to_first_token_s": _NUMBER,
    "peak_memory": {"host_bytes": _MAYBE, "device_bytes": _MAYBE},
    "flops": {"prefill": _MAYBE, "full_prefill": _MAYBE},
    "evidence": [{"start_s": _NUMBER, "end_s": _NUMBER, "score": _MAYBE, "modality": str}],
    "cached": bool,
}
_TIMELINE = {"start_s": _NUMBER, "step_s": _NUMBER, "video": _STEPS, "audio": _STEPS}


def read(data: bytes, name: str, note: Callable[[str], None]) -> list[Row]:
    """Return the rows of one file: JSON lines, one JSON object, or an array of objects.

    A last line that a killed writer left unfinished is left out and noted.

    Raises
    ------
    MediaError
        It is no JSON, holds no row, or a row is not one that this version can read. One line that begins with ``name``.
    """
    found = _parse(data, name, note)
    if not found:
        raise MediaError(f"{name}: holds no answers; write some with omni ask --json or omni batch")
    for where, row in found:
        problem = _problem_of(row)
        if problem:
            raise MediaError(f"{name}: {where}{problem}")
    return [row for _, row in found]


def _parse(data: bytes, name: str, note: Callable[[str], None]) -> list[tuple[str, Any]]:
    """Return the values and where each one stands."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise MediaError(f"{name}: not UTF-8 text, so no JSON") from None
    try:
        whole = _loads(text)
        return [(f"row {i}: ", row) for i, row in enumerate(whole, 1)] if isinstance(whole, list) else [("", whole)]
    except ValueError:
        pass
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    out: list[tuple[str, Any]] = []
    for number, line in lines:
        try:
            out.append((f"line {number}: ", _loads(line)))
        except ValueError as error:
            if out and number == lines[-1][0] and not text.endswith("\n"):
                note(f"{name}: line {number} is not whole and is left out")
                break
            raise MediaError(f"{name}: line {number}: not JSON ({error})") from None
    return out


def _loads(text: str) -> Any:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _problem_of(row: Any) -> str | None:
    """Return what is wrong with a row, None if nothing is."""
    if not isinstance(row, dict) or "schema" not in row:
        return "no row of omni ask --json or omni batch"
    if row["schema"] != SCHEMA or isinstance(row["schema"], bool):
        return f"schema {row['schema']!r:.40}, but this omni reads schema {SCHEMA}"
    status = row.get("status")
    if status in ("failed", "skipped"):
        return _mismatch(row, _FAILED, "")
    if status != "ok":
        return f"status: {status!r:.40} is not ok, failed or skipped"
    return _mismatch(row, _ANSWER, "") or _mismatch_inside(row["tokens"])


def _mismatch_inside(tokens: Row) -> str | None:
    """Return what is wrong with the parts of ``tokens`` that may be null or missing."""
    problem = _mismatch(tokens["retention_nominal"] or {}, {str: _MAYBE}, "tokens.retention_nominal.")
    timeline = tokens.get("timeline")
    if problem or timeline is None:
        return problem
    return _mismatch(timeline, _TIMELINE, "tokens.timeline.") or _uneven(timeline)


def _uneven(timeline: dict[str, Any]) -> str | None:
    lengths = {len(timeline[kind][what]) for kind in ("video", "audio") for what in ("encoded", "kept")}
    counts = [n for kind in ("video", "audio") for what in ("encoded", "kept") for n in timeline[kind][what]]
    if len(lengths) != 1 or not 1 <= max(lengths) <= 1000 or timeline["step_s"] <= 0 or min(counts) < 0:
        return "tokens.timeline: its steps do not fit together"
    return None


def _mismatch(value: Any, shape: Any, path: str) -> str | None:
    """Return the first place where ``value`` is not of this shape.

    A shape is a type or several, ``[shape]`` for a list, ``{str: shape}`` for an object with any keys, or an object of
    required keys; others may be there.
    """
    name = path.rstrip(".")
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{name}: must be a list"
        inner = [(item, shape[0], f"{name}[{i}].") for i, item in enumerate(value)]
    elif isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{name}: must be an object"
        if str in shape:
            inner = [(item, shape[str], f"{path}{key}.") for key, item in value.items()]
        else:
            missing = [key for key in shape if key not in value]
            if missing:
                return f"{path}{missing[0]}: is missing"
            inner = [(value[key], kind, f"{path}{key}.") for key, kind in shape.items()]
    else:
        kinds = shape if isinstance(shape, tuple) else (shape,)
        fits = isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)
        if not fits or (isinstance(value, int | float) and not -_LARGEST < value < _LARGEST):
            return f"{name}: {value!r:.40} is not allowed"
        return None
    return next((problem for item, kind, at in inner if (problem := _mismatch(item, kind, at))), None)
