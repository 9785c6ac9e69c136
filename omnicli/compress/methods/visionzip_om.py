"""VisionZip-om: VisionZip among sound tokens as well (SEATS, appendix B.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from omnicli.compress.methods.visionzip import VisionZip


@dataclass(frozen=True)
class VisionZipOm(VisionZip):
    """Keep in every frame and every window of sound what receives most attention, and merge the rest into a few."""

    audio: Literal["intact", "select"] = "select"

    not_carried: ClassVar[frozenset[str]] = frozenset()
