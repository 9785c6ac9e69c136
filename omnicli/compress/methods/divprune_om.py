"""DivPrune-om: DivPrune among sound tokens as well (SEATS, appendix B.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from omnicli.compress.methods.divprune import DivPrune


@dataclass(frozen=True)
class DivPruneOm(DivPrune):
    """Keep in every frame and every window of sound the tokens that differ most from one another."""

    audio: Literal["intact", "select"] = "select"

    not_carried: ClassVar[frozenset[str]] = frozenset()
