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
from omnicli.compress.budget import share_of, spread
from omnicli.compress.groups import Groups, best_in_groups, counterparts, frames
from omnicli.compress.ops import distances
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

    A frame without a partner on the same grid of cells stays whole too.

    ``official`` reproduces what the released code does with the number of frames: the last group of a film whose frame
    count divides by four keeps its third frame whole, and the last of an odd number of frames is dropped. Up to four
    frames, where that code stops with an error, neither is done. Its order of kept cells (least similar first) is not
    reproduced: tokens stay in reading order.

    Parameters
    ----------
    retention_video : float
        Share of the picture tokens that stays, 0.25 to 1.
    mode : str
        ``clean``: that share of all picture tokens exactly, as soon as it covers the frames that stay whole; what is
        left over is shared evenly among the other frames. ``official``: as the released code, quirks included: every
        thinned frame keeps (4 x share - 1) / 3 of its cells, rounded down.
    """

    retention_video: float = LEAST
    mode: Literal["clean", "official"] = "clean"

    criterion: ClassVar[str] = "change against the frame before, cell by cell"
    paper: ClassVar[str] = "DyCoke, CVPR 2025"
    clean_differs: ClassVar[str] = (
        "Meets the share of picture tokens exactly. Every group is thinned, also the last and any rest of one to three "
        "frames (the released code skips part of the last group, loses the last of an odd number of frames and fails "
        "below five)."
    )

    @classmethod
    def with_retention(cls, retention: float, **fields: Any) -> Self:
        """Return the method with this share of the picture tokens, or 0.25 where it is less."""
        return cls(**{"retention_video": max(LEAST, retention), **fields})

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        found = super().problems()
        if not LEAST <= self.retention_video <= 1:
            found.append(
                f"retention_video: must be between {LEAST:g} and 1, not {self.retention_video:g}: the first of every "
                "four frames stays whole"
            )
        return found

    def entering(self, n_video: int, n_audio: int) -> tuple[int, int]:
        """Return the share of the pictures, and all sound; in a short film frames that stay whole may take more."""
        return share_of(self.retention_video, n_video), n_audio

    def compress(self, tokens: MediaTokens, query: Query) -> Selection:
        """Thin the pictures; the question plays no part.

        Raises
        ------
        ModelError
            Embeddings are not finite.
        """
        by_frame = frames(tokens)
        if self.retention_video == 1 or len(by_frame) == 0:
            return everything(tokens)
        official = self.mode == "official"
        reference = partners(len(by_frame), skip_last=official).to(by_frame.rows.device)
        other = counterparts(tokens, by_frame, reference)
        thinned = other[by_frame.starts] >= 0
        quota = self._official_quota(by_frame, thinned) if official else self._quota(by_frame, thinned)
        compared = torch.nonzero(other >= 0).flatten()
        changed = torch.zeros(by_frame.rows.numel(), device=by_frame.rows.device)
        changed[compared] = distances(tokens.features, by_frame.rows[compared], by_frame.rows[other[compared]])
        kept = by_frame.rows[best_in_groups(changed, by_frame, quota)]
        audio = tokens.indices(Modality.AUDIO)
        if kept.numel() == by_frame.rows.numel():
            return everything(tokens)
        budget = {"video": kept.numel(), "audio": audio.numel()}
        return Selection(torch.cat([kept, audio]).sort().values, report={"budget": budget})

    def _quota(self, by_frame: Groups, thinned: Tensor) -> Tensor:
        quota = by_frame.sizes.clone()
        left = share_of(self.retention_video, int(quota.sum())) - int(quota[~thinned].sum())
        quota[thinned] = spread(max(0, left), quota[thinned]).to(quota.device)
        return quota

    def _official_quota(self, by_frame: Groups, thinned: Tensor) -> Tensor:
        quota, n = by_frame.sizes.clone(), len(by_frame)
        dropped = 1 - (4 * self.retention_video - 1) / 3  # its setting is the share dropped, and rounds like this
        quota[thinned] = ((1 - dropped) * quota[thinned].double()).long()
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
