"""FastV with the sound chosen among as well. See `omnicli.compress.methods.fastv`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from omnicli.compress.methods.fastv import FastV


@dataclass(frozen=True)
class FastVOm(FastV):
    """FastV that drops sound tokens by the same attention as pictures, each modality ranked by itself."""

    audio: Literal["intact", "select"] = "select"

    not_carried: ClassVar[frozenset[str]] = frozenset()
