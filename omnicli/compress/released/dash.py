"""DASH as its released code has it: segments are shares of the token count, and frames are halves of a grid.

What `omnicli.compress.methods.dash` does with ``mode: official``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from omnicli.compress.groups import frames, group
from omnicli.compress.outliers import stand_outs
from omnicli.types import MediaTokens, Modality
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

BOUNDS = (0.1, 0.95)
"""Least and largest share of a segment's pictures that is discarded."""

GUIDANCE = 0.1
LEAST = 30
"""Sound tokens of a segment, at least."""

_UNHEARD = 0.15  # what a film without sound discards less
_LEAST_UNHEARD = 0.35


def video_rows(tokens: MediaTokens, kept_audio: Tensor, begins: Sequence[int], ratio: float) -> Tensor:
    """Return the ascending indices of the picture tokens that the released rule keeps; it may miss ``ratio``.

    Rows behind the last full "frame" of a segment are dropped, and segments of less than two stay whole.

    Parameters
    ----------
    tokens : MediaTokens
        The clip.
    kept_audio : Tensor (a,) int64
        The sound that stays, ascending indices.
    begins : sequence of int
        The first sound token of each segment, counted among sound, from 0; empty: no sound.
    ratio : float
        Share of the pictures to keep; 1 keeps all, 0 none.
    """
    rows = tokens.indices(Modality.VIDEO)
    n = rows.numel()
    if n == 0 or ratio >= 1:
        return rows
    if ratio <= 0:
        return rows[:0]
    first, discard = _segments(tokens, kept_audio, begins, n, ratio)
    cells = max(1, n // (2 * len(frames(tokens))))
    sizes = torch.cat([first[1:], first.new_tensor([n])]) - first
    place = torch.arange(n, device=rows.device)
    segment = torch.searchsorted(first, place, right=True) - 1
    turn = (place - first[segment]) // cells
    short = (sizes < 2 * cells)[segment]
    whole = ~short & (turn < (sizes // cells)[segment])
    segment, turn = segment[whole], turn[whole]
    pieces = group(rows[whole], segment * n + turn)
    own = torch.arange(pieces.rows.numel(), device=rows.device)
    other = torch.where(turn % 2 == 1, own - cells, -1)  # the same slot, whatever its cell
    quota = (cells * (1 - discard)).long().clamp_min(1)[segment[pieces.starts]]
    chosen = stand_outs(tokens.features, pieces, other, quota)
    return torch.cat([rows[short], chosen]).sort().values


def _segments(
    tokens: MediaTokens, kept_audio: Tensor, begins: Sequence[int], n: int, ratio: float
) -> tuple[Tensor, Tensor]:
    """Return the first picture token of each segment (J,) int64 and the share of its pictures to discard (J,) float64.

    Segments of sound that begin at the same picture token are one.
    """
    device, pruned = tokens.features.device, 1 - ratio
    audio = tokens.indices(Modality.AUDIO)
    if audio.numel() == 0:
        discard = max(_LEAST_UNHEARD, pruned - _UNHEARD)
        return torch.zeros(1, dtype=torch.int64, device=device), torch.tensor([discard], device=device).double()
    joined: dict[int, int] = {}
    for begin in begins:
        joined.setdefault(begin * n // audio.numel(), begin)
    edges = torch.tensor([*joined.values(), audio.numel()], device=device)
    before = torch.searchsorted(torch.searchsorted(audio, kept_audio), edges)
    retained = before.diff().double() / edges.diff()
    discard_by = pruned + GUIDANCE * (0.5 - retained)
    return torch.tensor(list(joined), device=device), discard_by.clamp(*BOUNDS)


__all__ = ["BOUNDS", "GUIDANCE", "LEAST", "video_rows"]
