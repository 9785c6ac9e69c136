"""DyCoke: of every four frames the first stays whole, the others only where they differ from an earlier one.

Source: DyCoke (CVPR 2025), the token merging of its prefill stage, which the released code does by dropping; used
alone, as in SEATS (appendix B.2). Frames are temporal patches (frame pairs for Qwen2.5-Omni). Inside a group of four
consecutive ones the second and third are compared with the first and the fourth with the third, always with all that
the earlier one held before it was thinned itself.

Left out: its second stage, which drops keys and values while the answer is generated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from typing_extensions import Self

from omnicli.compress.base import Compressor, everything
from omnicli.compress.budget import Budget, intact, share_of, spread
from omnicli.compress.groups import Groups, best_in_groups, counterparts, evenly, frames
from omnicli.compress.ops import distances
from omnicli.compress.published import thinned
from omnicli.types import MediaTokens, Modality, Query, Selection
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

LEAST = 0.25
"""One frame of four stays whole."""

_GROUP = 4
_BACK = (0, 1, 2, 1)  # which frame before it one is compared with, by its place in the group; 0: none


@dataclass(frozen=True)
class DyCoke(Compressor):
    """Keep one frame of every four whole and of the others the cells that changed; sound stays whole.

    A frame without a partner on the same grid of cells stays whole too. Where a retention of all tokens leaves less
    than that, sound is thinned evenly first, until pictures have a quarter of theirs; and in a film so short that the
    frames that stay whole are more than that, these are thinned evenly as well.

    ``official`` reproduces what the released code does with the number of frames: the last group of a film whose frame
    count divides by four keeps its third frame whole, and the last of an odd number of frames is dropped. Up to four
    frames, where that code stops with an error, neither is done. Its order of kept cells (least similar first) is not
    reproduced: tokens stay in reading order.

    Parameters
    ----------
    retention_video : float or None
        Share of the picture tokens that stays, 0.25 to 1; 0.25 where no retention is set.
    retention : float or None
        Instead: the share of all tokens that stays, 0.25 to 1. Pictures get what sound leaves of it.
    mode : str
        ``clean``: that share of all picture tokens exactly, as soon as it covers the frames that stay whole; what is
        left over is shared evenly among the other frames. ``official``: as the released code, quirks included: every
        thinned frame keeps (4 x share - 1) / 3 of its cells, rounded down.
    """

    retention_video: float | None = None
    retention: float | None = None
    mode: Literal["clean", "official"] = "clean"

    criterion: ClassVar[str] = "change against the frame before, cell by cell"
    paper: ClassVar[str] = "DyCoke, CVPR 2025"
    clean_differs: ClassVar[str] = (
        "Meets the share of picture tokens, or of all tokens, exactly. Every group is thinned, also the last and any "
        "rest of one to three frames (the released code skips part of the last group, loses the last of an odd number "
        "of frames and fails below five)."
    )

    exclusive_fields: ClassVar[tuple[tuple[str, ...], ...]] = (("retention",), ("retention_video",))

    @classmethod
    def with_retention(cls, retention: float, **fields: Any) -> Self:
        """Return the method with this share of all tokens, or 0.25 where it is less."""
        return cls(**{"retention": max(LEAST, retention), **fields})

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        found = super().problems()
        for name in ("retention_video", "retention"):
            value = getattr(self, name)
            if value is not None and not LEAST <= value <= 1:
                whole = "the first of every four frames stays whole"
                found.append(f"{name}: must be between {LEAST:g} and 1, not {value:g}: {whole}")
        if self.retention is not None and self.retention_video is not None:
            found.append("retention: contradicts retention_video; set one of them")
        return found

    def plan_of(self, n_video: int, n_audio: int) -> Budget:
        """Return the tokens that the settings ask for of so many picture and sound tokens."""
        if self.retention is None:
            return Budget(share_of(self.retention_video or LEAST, n_video), n_audio)
        total = share_of(self.retention, n_video + n_audio)
        return intact(Budget(min(n_video, total), max(0, total - n_video)), n_video, n_audio, LEAST)

    def entering(self, n_video: int, n_audio: int) -> tuple[int, int]:
        """Return the plan; of a share of the pictures, frames that stay whole may take more in a short film."""
        plan = self.plan_of(n_video, n_audio)
        return plan.video, plan.audio

    def compress(self, tokens: MediaTokens, query: Query) -> Selection:
        """Thin the pictures; the question plays no part.

        Raises
        ------
        ModelError
            Embeddings are not finite.
        """
        by_frame, plan = frames(tokens), self.plan_of(tokens.count(Modality.VIDEO), tokens.count(Modality.AUDIO))
        if plan.total == len(tokens):
            return everything(tokens)
        audio = thinned(tokens, plan.audio)
        if len(by_frame) == 0:
            return Selection(audio, report={"budget": plan.to_dict()})
        official = self.mode == "official"
        reference = partners(len(by_frame), skip_last=official).to(by_frame.rows.device)
        other = counterparts(tokens, by_frame, reference)
        partnered = other[by_frame.starts] >= 0
        if official:
            share = self.retention_video or LEAST
            share = share if self.retention is None else plan.video / by_frame.rows.numel()
            quota = _official_quota(by_frame, partnered, share)
        else:
            quota = self._quota(by_frame, partnered, plan.video)
        compared = torch.nonzero(other >= 0).flatten()
        changed = torch.zeros(by_frame.rows.numel(), device=by_frame.rows.device)
        changed[compared] = distances(tokens.features, by_frame.rows[compared], by_frame.rows[other[compared]])
        changed = torch.where(partnered[by_frame.index], changed, evenly(by_frame, quota))
        kept = by_frame.rows[best_in_groups(changed, by_frame, quota)]
        if kept.numel() + audio.numel() == len(tokens):
            return everything(tokens)
        budget = {"video": kept.numel(), "audio": audio.numel()}
        return Selection(torch.cat([kept, audio]).sort().values, report={"budget": budget})

    def _quota(self, by_frame: Groups, partnered: Tensor, total: int) -> Tensor:
        quota = by_frame.sizes.clone()
        left = total - int(quota[~partnered].sum())
        if left < 0 and self.retention is not None:
            quota[~partnered] = spread(total, quota[~partnered]).to(quota.device)
        quota[partnered] = spread(max(0, left), quota[partnered]).to(quota.device)
        return quota


def _official_quota(by_frame: Groups, partnered: Tensor, share: float) -> Tensor:
    quota, n = by_frame.sizes.clone(), len(by_frame)
    dropped = 1 - (4 * share - 1) / 3  # its setting is the share dropped, and rounds like this
    quota[partnered] = ((1 - dropped) * quota[partnered].double()).long()
    if n > _GROUP and n % 2:
        quota[-1] = 0
    return quota


def partners(n: int, *, skip_last: bool = False) -> Tensor:
    """Return which frame each of ``n`` frames is compared with (n,) int64; -1: none, it stays whole.

    ``skip_last`` leaves the third frame of the last complete group alone if the film ends with it, as released.
    """
    frame = torch.arange(n)
    back = torch.tensor(_BACK)[frame % _GROUP]
    if skip_last and n > _GROUP:
        back[(frame % _GROUP == 2) & (frame - 2 >= n - _GROUP)] = 0
    return torch.where(back > 0, frame - back, -1)


__all__ = ["LEAST", "DyCoke", "partners"]
