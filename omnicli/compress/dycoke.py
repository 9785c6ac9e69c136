"""DyCoke: of every four frames the first stays whole, the others only where they differ from an earlier one.

Source: DyCoke (CVPR 2025), the token merging of its prefill stage, which the released code does by dropping; used
alone, as in SEATS (appendix B.2). Frames are temporal patches (frame pairs for Qwen2.5-Omni). Inside a group of four
consecutive ones the second and third are compared with the first and the fourth with the third, always with all that
the earlier one held before it was thinned itself.

Left out: its second stage, which drops keys and values while the answer is generated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import Self

from omnicli.compress.base import Compressor, everything
from omnicli.compress.budget import share_of, spread
from omnicli.compress.groups import Groups, best_in_groups, frames
from omnicli.compress.ops import row_chunks, unit
from omnicli.errors import ModelError
from omnicli.types import MediaTokens, Modality, Query, Selection

LEAST = 0.25
"""One frame of four stays whole."""

SAME = 2e-6
"""Cosine distances below this are 0: it is what fp32 products of equal rows differ by, and would rank duplicates."""

_GROUP = 4
_BACK = (0, 1, 2, 1)  # which frame before it one is compared with, by its place in the group; 0: none
_EPS = 1e-8


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

    selects_by: ClassVar[str] = "change against the frame before, cell by cell"
    paper: ClassVar[str] = "DyCoke, CVPR 2025"
    adds: ClassVar[str] = (
        "Meets the share of picture tokens exactly. Every group is thinned, also the last and any rest of one to three "
        "frames (the released code skips part of the last group, loses the last of an odd number of frames and fails "
        "below five)."
    )

    @classmethod
    def at(cls, retention: float, **fields: Any) -> Self:
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

    def compress(self, tokens: MediaTokens, query: Query) -> Selection:
        """Thin the pictures; the question plays no part.

        Raises
        ------
        ModelError
            Embeddings are not finite.
        """
        pictures = frames(tokens)
        if self.retention_video == 1 or len(pictures) == 0:
            return everything(tokens)
        official = self.mode == "official"
        reference = partners(len(pictures), skip_last=official).to(pictures.rows.device)
        other = counterparts(tokens, pictures, reference)
        thinned = other[pictures.starts] >= 0
        quota = self._official_quota(pictures, thinned) if official else self._quota(pictures, thinned)
        compared = torch.nonzero(other >= 0).flatten()
        changed = torch.zeros(pictures.rows.numel(), device=pictures.rows.device)
        changed[compared] = distances(tokens.features, pictures.rows[compared], pictures.rows[other[compared]])
        kept = pictures.rows[best_in_groups(changed, pictures, quota)]
        sound = tokens.indices(Modality.AUDIO)
        if kept.numel() == pictures.rows.numel():
            return everything(tokens)
        budget = {"video": kept.numel(), "audio": sound.numel()}
        return Selection(torch.cat([kept, sound]).sort().values, report={"budget": budget})

    def _quota(self, pictures: Groups, thinned: Tensor) -> Tensor:
        quota = pictures.sizes.clone()
        left = share_of(self.retention_video, int(quota.sum())) - int(quota[~thinned].sum())
        quota[thinned] = spread(max(0, left), quota[thinned]).to(quota.device)
        return quota

    def _official_quota(self, pictures: Groups, thinned: Tensor) -> Tensor:
        quota, n = pictures.sizes.clone(), len(pictures)
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


def counterparts(tokens: MediaTokens, pictures: Groups, reference: Tensor) -> Tensor:
    """Return for each picture token the place (n,) of the same cell in its frame's reference frame.

    Parameters
    ----------
    tokens : MediaTokens
        The clip.
    pictures : Groups
        Its frames; places index ``pictures.rows``.
    reference : Tensor (F,) int64
        Another frame for each frame; -1: none.

    Returns
    -------
    Tensor (n,) int64
        -1 in frames that have no reference, or one with other cells.
    """
    comparable = (reference >= 0) & (pictures.sizes == pictures.sizes[reference.clamp_min(0)])
    place = torch.arange(pictures.index.numel(), device=pictures.index.device) - pictures.starts[pictures.index]
    other = pictures.starts[reference.clamp_min(0)][pictures.index] + place
    other = torch.where(comparable[pictures.index], other, -1)
    here = torch.nonzero(other >= 0).flatten()
    for cell in (tokens.row, tokens.col):
        moved = cell[pictures.rows[here]] != cell[pictures.rows[other[here]]]
        comparable[pictures.index[here[moved]]] = False
    return torch.where(comparable[pictures.index], other, -1)


def distances(features: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return 1 - cosine (n,) float32 of the rows ``first`` (n,) and ``second`` (n,) of ``features`` (N, D).

    Raises
    ------
    ModelError
        One is not finite.
    """
    parts = [
        1 - (unit(features[first[part]], _EPS) * unit(features[second[part]], _EPS)).sum(1)
        for part in row_chunks(first.numel(), features.shape[1])
    ]
    out = torch.cat(parts) if parts else features.new_zeros(0, dtype=torch.float32)
    if not bool(torch.isfinite(out).all()):
        raise ModelError("the encoders' output is not finite; try --dtype float32 or bfloat16")
    return torch.where(out < SAME, torch.zeros_like(out), out)


__all__ = ["LEAST", "SAME", "DyCoke", "counterparts", "distances", "partners"]
