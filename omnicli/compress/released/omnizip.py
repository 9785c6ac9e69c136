"""OmniZip as its released code has it: groups are runs of tokens, and shares discarded are clipped into a band.

What `omnicli.compress.methods.omnizip` does with ``mode: official``; the newer of the two released versions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from omnicli.compress.groups import frames, group, runs
from omnicli.compress.redundancy import thinned_frames
from omnicli.types import MediaTokens, Modality
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def sizes(n: int, ratio: float, anchors: float, most: int) -> tuple[int, int]:
    """Return dominant tokens and anchors of ``n`` sound tokens as the released code rounds them.

    Parameters
    ----------
    ratio : float
        Share of the sound that stays.
    anchors : float
        Anchors as a share of all sound tokens.
    most : int
        Most tokens merged into one anchor; 0: no anchors.
    """
    if ratio >= 1 or ratio <= 0:
        return (n if ratio >= 1 else 0), 0
    merged = round(anchors * n) if most else 0
    share = ratio - anchors if most else ratio
    dominant = min(n, max(0, round(share * n)))
    merged = min(merged, n - dominant)
    return (dominant, merged) if dominant + merged else (min(1, n), 0)


def anchor_places(n: int, anchors: Tensor) -> Tensor:
    """Return where ``anchors`` (a,), numbered from 0, stand among ``n`` tokens; a step rounded down leaves the end."""
    return anchors * max(1, n // anchors.numel())


def video_rows(
    tokens: MediaTokens,
    kept_audio: Tensor,
    ratio: float,
    *,
    discard_of: Callable[[Tensor], Tensor],
    bounds: tuple[float, float],
    neighbours: int,
) -> Tensor:
    """Return the ascending indices of the video tokens that the released rule keeps.

    Parameters
    ----------
    tokens : MediaTokens
        The clip.
    kept_audio : Tensor (a,) int64
        The sound that stays.
    ratio : float
        Share of the video tokens to keep; the rule may miss it.
    discard_of : callable
        From the share of sound kept in each group (G,) to the share of its video to discard, inside ``bounds``.
    neighbours : int
        See `omnicli.compress.redundancy.density_peaks`.
    """
    rows = tokens.indices(Modality.VIDEO)
    if ratio >= 1 or rows.numel() == 0:
        return rows
    cells = int(frames(tokens).sizes[0])
    video, audio = runs(tokens, Modality.VIDEO), runs(tokens, Modality.AUDIO)
    kept = torch.zeros(len(tokens), dtype=torch.bool, device=rows.device)
    kept[kept_audio] = True
    retained = torch.bincount(audio.index[kept[audio.rows]], minlength=len(audio)).double() / audio.sizes
    guided = min(len(video), len(audio))
    discard = torch.full((len(video),), 1 - ratio, dtype=torch.float64)
    wanted = discard_of(retained[:guided].cpu())
    discard[:guided] = renormalised(wanted, video.sizes[:guided].cpu(), 1 - ratio, bounds)
    quota = (cells * (1 - discard)).long().to(rows.device)
    quota = torch.where(discard.to(rows.device) < 1, quota.clamp_min(1), quota)
    place = torch.arange(rows.numel(), device=rows.device) - video.starts[video.index]
    turn = place // cells
    short = (video.sizes < cells)[video.index]
    whole = turn < (video.sizes // cells)[video.index]  # what is left of a run after its last frame is dropped
    run, turn = video.index[whole], turn[whole]
    pieces = group(rows[whole], run * rows.numel() + turn)
    first = pieces.starts
    own = torch.arange(pieces.rows.numel(), device=rows.device)
    other = torch.where(turn % 2 == 1, own - pieces.sizes[pieces.index], -1)  # the same slot, whatever its cell
    chosen = thinned_frames(
        tokens.features, pieces, other, quota[run[first]], neighbours=neighbours, ties_by_index=False
    )
    return torch.cat([rows[short], chosen]).sort().values


def renormalised(discard: Tensor, sizes: Tensor, target: float, bounds: tuple[float, float]) -> Tensor:
    """Return shares discarded (G,) float64 moved towards the mean ``target``, in the released code's two steps.

    The lowest and the highest group stay as they are. The others are scaled, clipped, shifted by one amount and
    clipped again; whatever is missing then stays missing.
    """
    if discard.numel() <= 2:
        return discard
    size = sizes.double()
    goal = target * float(size.sum())
    if abs(float((size * discard).sum()) - goal) <= 1e-3:
        return discard
    free = torch.ones_like(discard, dtype=torch.bool)
    free[int(discard.argmin())] = free[int(discard.argmax())] = False
    out, fixed = discard.clone(), float((size * discard)[~free].sum())
    loose = float((size * discard)[free].sum())
    if loose > 0:
        out[free] = out[free] * ((goal - fixed) / loose)
    out[free] = out[free].clamp(*bounds)
    out[free] += (goal - float((size * out).sum())) / float(size[free].sum())
    out[free] = out[free].clamp(*bounds)
    return out


__all__ = ["anchor_places", "renormalised", "sizes", "video_rows"]
