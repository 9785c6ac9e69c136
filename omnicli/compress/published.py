"""What the papers' methods have in common: two modes, and for the picture-only ones sound that stays whole.

``clean`` (default) keeps the method's idea and meets the budget of each modality exactly, in windows of true time, in
fp32. ``official`` does what the released code does, with its own rounding; the papers' numbers came from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from omnicli.compress.budget import Budget, Budgeted, intact
from omnicli.types import MediaTokens, Modality
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Published(Budgeted):
    """A published method with a token budget.

    Parameters
    ----------
    mode : str
        ``clean``: budgets met exactly, true time, fp32. ``official``: as the released code, quirks included.
    """

    mode: Literal["clean", "official"] = "clean"

    def plan(self, tokens: MediaTokens) -> Budget:
        """Return the tokens of each modality that the clean mode keeps, exactly."""
        return self.plan_of(tokens.count(Modality.VIDEO), tokens.count(Modality.AUDIO))

    def plan_of(self, n_video: int, n_audio: int) -> Budget:
        """Return the plan for a clip of so many picture and sound tokens."""
        return self.budget_of(n_video, n_audio)

    def ratios(self, tokens: MediaTokens) -> tuple[float, float]:
        """Return the share of the picture and of the sound tokens that the official mode is told to keep."""
        return self.ratios_of(tokens.count(Modality.VIDEO), tokens.count(Modality.AUDIO))

    def ratios_of(self, n_video: int, n_audio: int) -> tuple[float, float]:
        """Return the ratios for a clip of so many picture and sound tokens."""
        if self.retention_video is not None or self.retention_audio is not None:
            video, audio = (1.0 if r is None else r for r in (self.retention_video, self.retention_audio))
            return video, audio
        planned = self.budget_of(n_video, n_audio)
        return planned.video / max(1, n_video), planned.audio / max(1, n_audio)

    def nominal(self, n_video: int, n_audio: int) -> tuple[float, float] | None:
        """Return the plan as shares, or what the official mode is told."""
        if self.mode == "official":
            return self.ratios_of(n_video, n_audio)
        plan = self.plan_of(n_video, n_audio)
        return plan.video / max(1, n_video), plan.audio / max(1, n_audio)


@dataclass(frozen=True)
class Baseline(Published):
    """A picture or video method carried over to sound (SEATS, appendix B.2).

    Parameters
    ----------
    audio : str
        ``intact``: sound keeps all its tokens and pictures get what is left of the budget, but at least 5 % of theirs;
        ``select``: the method chooses among sound tokens as well (the ``-om`` variants).
    """

    audio: Literal["intact", "select"] = "intact"

    floor: ClassVar[float] = 0.05
    not_carried: ClassVar[frozenset[str]] = frozenset({"split"})

    def idle(self) -> dict[str, str]:
        """Return the fields that cannot act: the split where sound is not chosen among."""
        found = super().idle()
        if self.audio == "intact":
            found["split"] = "audio is intact: pictures get what sound leaves of the total, and nothing is shared"
        return found

    def plan_of(self, n_video: int, n_audio: int) -> Budget:
        """Return the plan for a clip of so many picture and sound tokens."""
        planned = super().plan_of(n_video, n_audio)
        return planned if self.audio == "select" else intact(planned, n_video, n_audio, self.floor)

    def told(self, tokens: MediaTokens) -> tuple[float, float]:
        """Return `ratios` for released code that knows no sound: a share set for pictures alone stays as it is set."""
        if self.retention_video is not None and self.retention_audio in (None, 1):
            return self.retention_video, 1.0
        return self.ratios(tokens)

    def ratios_of(self, n_video: int, n_audio: int) -> tuple[float, float]:
        """Return the shares of the official mode, reallocated as SEATS's code does where sound stays whole."""
        video, audio = super().ratios_of(n_video, n_audio)
        if self.audio == "select":
            return video, audio
        return reallocated(video, audio, n_video, n_audio)


def reallocated(video: float, audio: float, n_video: int, n_audio: int) -> tuple[float, float]:
    """Return the shares that keep as many tokens with sound whole; what SEATS's code computes per sample.

    Pictures keep at least 5 %; then sound gives way. A share above 1 hands its surplus to the other modality.
    """
    if n_audio == 0 or n_video == 0:
        return video, audio
    kept = int(n_video * video + n_audio * audio)
    video, audio = (kept - n_audio) / n_video, 1.0
    if video < 0.05:
        video, audio = 0.05, (kept - 0.05 * n_video) / n_audio
    if video > 1:
        video, audio = 1.0, (kept - n_video) / n_audio
    if audio > 1:
        video, audio = min(1.0, (kept - n_audio) / n_video), 1.0
    return video, audio


def thinned(tokens: MediaTokens, k: int) -> Tensor:
    """Return the indices of ``k`` sound tokens evenly spaced in order: what is left of sound that nobody chooses among.

    Where the pictures' 5 % leave less than all of the sound. The released code drops at random there.
    """
    rows = tokens.indices(Modality.AUDIO)
    n = rows.numel()
    if k >= n:
        return rows
    return rows[(torch.arange(k, device=rows.device) * n + n // 2) // max(1, k)]


__all__ = ["Baseline", "Published", "reallocated", "thinned"]
