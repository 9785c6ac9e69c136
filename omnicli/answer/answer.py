"""One answered question. Holds what `omnicli.answer.result` found out about its run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from omnicli.types import MediaUsed


@dataclass(frozen=True)
class Answer:
    """One answered question with everything needed to trust and to repeat it (`omni ask --json`).

    ``cached``: the film's tokens were read from the cache (`omnicli.encode.cache`).
    """

    id: str
    media: str
    question: str
    answer: str
    model: dict[str, Any]
    preset: str
    config: dict[str, Any]
    media_used: MediaUsed
    tokens: dict[str, Any]
    positions: dict[str, float | None]
    stages: dict[str, float]
    busy: dict[str, float]
    wall_s: float
    time_to_first_token_s: float
    peak_memory: dict[str, int | None]
    flops: dict[str, float | None]
    evidence: Sequence[dict[str, Any]] = ()
    warnings: Sequence[str] = ()
    versions: dict[str, str] = field(default_factory=dict)
    cached: bool = False
    status: str = "ok"
    schema: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of product.md, keys in their documented order."""
        out = dataclasses.asdict(self)
        first = ["schema", "id", "media", "question", "answer", "status"]
        return {k: out[k] for k in first} | {k: v for k, v in out.items() if k not in first}
