"""One answered question. Holds what `omnicli.answer.result` found out about its run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from omnicli.answer import show
from omnicli.types import MediaUsed


@dataclass(frozen=True)
class Answer:
    """One answered question with everything needed to trust and to repeat it (`omni ask --json`).

    A notebook shows it with bars for its stages, a terminal in a few lines.

    Attributes
    ----------
    answer : str
        What the model wrote, white space around it taken off.
    tokens : dict
        Per modality ``encoded`` and ``kept``; ``text``, ``generated`` and ``retention`` (share kept, 0 to 1) beside.
    positions : dict
        ``largest`` rotary position of the media, the range ``trained``, and ``time_scale``.
    stages, busy : dict of str to float
        Seconds per stage, which add up to ``wall_s``, and what threads beside the main one worked on.
    time_to_first_token_s, wall_s : float
        Seconds to the first token and to the last, the stages shared with other questions included.
    peak_memory, flops : dict
        Bytes on host and device so far; floating point operations of the prefill, and of one with all tokens.
    evidence : sequence of dict
        ``start_s``, ``end_s`` (seconds in the file), ``score`` (share of the attention to media, 0 to 1) and
        ``modality``, the strongest first; empty unless it was asked for.
    cached : bool
        The film's tokens were read from the cache (`omnicli.encode.cache`).
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
        """Return the object that `omni ask --json` prints, keys in their documented order."""
        out = dataclasses.asdict(self)
        first = ["schema", "id", "media", "question", "answer", "status"]
        return {k: out[k] for k in first} | {k: v for k, v in out.items() if k not in first}

    def __repr__(self) -> str:
        return show.lines(vars(self))

    def _repr_html_(self) -> str:
        return show.html(vars(self))
