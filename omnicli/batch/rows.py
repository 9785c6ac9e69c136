"""The rows of a batch: an answer's object, or one of the same shape that says why there is none."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnicli.answer import result
from omnicli.answer.answer import Answer
from omnicli.batch.choices import chosen
from omnicli.models import identity

if TYPE_CHECKING:
    from omnicli.batch.items import Item
    from omnicli.batch.journal import Row
    from omnicli.config.config import Config


def answered(item: Item, answer: Answer, notes: list[str]) -> Row:
    """Return the row of an answered item; ``notes`` go in front of the answer's own warnings."""
    out = answer.to_dict()
    return _row(item, {**out, "media": item.media, "warnings": [*notes, *out["warnings"]]}, None)


def failed(item: Item, config: Config, code: int, message: str, wall_s: float) -> Row:
    """Return the row of an item that failed; ``code`` is the exit code that `omni ask` would have ended with."""
    known = {"status": "failed", "wall_s": round(wall_s, 4)}
    return _row(item, _empty(item, config) | known, (code, message))


def skipped(item: Item, config: Config) -> Row:
    """Return the row of an item whose file is that of another item under a second name."""
    message = f"{item.media}: the same file as {item.same_as}; see its row"
    return _row(item, _empty(item, config) | {"status": "skipped"}, (0, message))


def _empty(item: Item, config: Config) -> dict[str, Any]:
    """Return an answer's keys with null for what only an answer has."""
    return dict.fromkeys((f.name for f in dataclasses.fields(Answer)), None) | {
        "schema": Answer.schema,
        "id": result.answer_id(Path(item.media), item.question, config),
        "media": item.media,
        "question": item.question,
        "preset": config.preset,
        "config": config.to_dict(),
        "evidence": [],
        "warnings": [],
        "versions": identity.versions(),
    }


def _row(item: Item, values: dict[str, Any], error: tuple[int, str] | None) -> Row:
    """Return ``values`` in the order of `Answer.to_dict`, with what a batch adds after the status."""
    first = {key: values[key] for key in ("schema", "id", "media", "question", "answer", "status")}
    choice = chosen(values["answer"], item.choices) if item.choices and values["answer"] is not None else None
    added = {
        "error": None if error is None else {"code": error[0], "message": " ".join(error[1].split())},
        "key": item.key,
        "item": item.name,
        "choices": list(item.choices) or None,
        "choice": choice,
    }
    return first | added | {key: value for key, value in values.items() if key not in first}
