"""A film in segments: where it is cut, its density peaks, and what is merged into them. (FastVID; cuts of sound: DASH)

Knows no method and no budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from omnicli.compress.groups import Groups, best_in_groups, group
from omnicli.compress.ops import SAME as SAME_COSINE
from omnicli.compress.ops import first_largest, gram, row_chunks, unit
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

NEIGHBOURS = 4
"""Nearest tokens, itself among them, whose distances make a token's density."""

SAME = 2e-6
"""Squared distances below this share of both squared lengths are 0: fp32 products of equal rows differ by as much."""

MEMORY = 16 * 2**20
"""Bytes that one batch of frames or segments may need."""


def spaced(places: Sequence[int], at: Sequence[float], first: float, least: float) -> list[int]:
    """Return those of ``places``, ascending, that are at least ``least`` behind the one taken before; greedily.

    Parameters
    ----------
    places : sequence of int
        Where a cut is possible.
    at : sequence of float
        Where these are, in seconds or tokens.
    first : float
        Where counting begins.
    """
    out, last = [], first
    for place, here in zip(places, at, strict=True):
        if here - last >= least:
            out.append(place)
            last = here
    return out


class Layout(NamedTuple):
    """Frames in segments; all on the CPU.

    Attributes
    ----------
    segment : Tensor (F,) int64
        Number of each frame's segment, from 0, never falling.
    valid : Tensor (F,) bool
        Frames that may keep tokens.
    place : Tensor (F,) int64
        How many valid frames of its segment come before each.
    left : Tensor (F,) int64
        How many valid frames of its segment come after it.
    anchor : Tensor (F,) bool
        Frames with merged tokens.
    """

    segment: Tensor
    valid: Tensor
    place: Tensor
    left: Tensor
    anchor: Tensor

    def total(self, values: Tensor) -> Tensor:
        """Return the sums of ``values`` (F,) over the segment of each frame (F,)."""
        sums = torch.zeros(int(self.segment[-1]) + 1, dtype=values.dtype)
        return sums.index_add_(0, self.segment, values)[self.segment]


def similarities(features: Tensor, by_frame: Groups) -> Tensor:
    """Return cosines (F - 1,) fp32 of the mean embeddings of neighbouring frames (FastVID, dynamic segmentation)."""
    mean = torch.empty(len(by_frame), features.shape[1], device=features.device)
    for groups, places in by_frame.by_size():
        for part in row_chunks(len(groups), places.shape[1] * features.shape[1], limit=MEMORY):
            mean[groups[part]] = features[by_frame.rows[places[part]]].float().mean(1)
    mean = unit(mean)
    return (mean[:-1] * mean[1:]).sum(1)


def lay_out(likeness: Tensor, segments: int, threshold: float, step: int, ignore: float | None = None) -> Layout:
    """Cut frames into segments and name the anchors (FastVID, dynamic segmentation and anchor frames).

    Parameters
    ----------
    likeness : Tensor (F - 1,)
        Cosines of neighbouring frames, on the CPU. The ``segments - 1`` smallest and all below ``threshold`` are cuts.
    segments, threshold, step, ignore
        The fields of `omnicli.compress.methods.fastvid.FastVID`; ``step`` is its ``anchor_step``.
    """
    cut = likeness < threshold
    cut[likeness.argsort(stable=True)[: segments - 1]] = True
    segment = torch.cat([torch.zeros(1, dtype=torch.int64), cut.long().cumsum(0)])
    valid = torch.ones(len(segment), dtype=torch.bool)
    if ignore is not None:
        valid[:-1] = cut | (likeness < ignore)
    ones = valid.long()
    before = ones.cumsum(0) - ones
    count = torch.bincount(segment, weights=ones.double()).long()
    place = before - (count.cumsum(0) - count)[segment]
    left = count[segment] - place - ones
    return Layout(segment, valid, place, left, valid & (left % step == 0))


def density_peaks(x: Tensor) -> Tensor:
    """Return how much each token (B, m, D) fp32 is a density peak among those of its frame (B, m).

    Density is the exponential of the negative mean squared distance to the `NEIGHBOURS` nearest tokens, itself among
    them; the score is density times the distance to the nearest denser token, for the densest the largest distance in
    the frame. Distances are Euclidean over sqrt(D). Returned is the logarithm, which does not underflow, with the
    lowest float for a score of 0. (FastVID, density-based merging)
    """
    many, m, _ = x.shape
    x = x - x.mean(1, keepdim=True)  # distances are the same and fp32 products of short vectors are more exact
    square = x.square().sum(-1)
    parts = list(row_chunks(m, many * m, limit=MEMORY))
    spacing, reach, farthest = (torch.empty_like(square) for _ in range(3))
    distance = square
    for part in parts:
        distance = _squared(x, square, part)
        spacing[:, part] = distance.topk(min(NEIGHBOURS, m), dim=-1, largest=False).values.mean(-1)
        farthest[:, part] = distance.amax(-1)
    for part in parts:
        if len(parts) > 1:
            distance = _squared(x, square, part)
        denser = spacing[:, None, :] < spacing[:, part, None]
        reach[:, part] = distance.masked_fill(~denser, torch.inf).amin(-1)
    reach = torch.where(reach.isinf(), farthest.amax(1, keepdim=True), reach)
    score = reach.log() / 2 - spacing
    return score.clamp_min(torch.finfo(score.dtype).min)


def _squared(x: Tensor, square: Tensor, part: slice) -> Tensor:
    """Return squared distances over D (B, p, m) from the rows ``part`` of ``x`` (B, m, D) to all its rows."""
    both = square[:, part, None] + square[:, None, :]
    whole = part.stop - part.start == x.shape[1]
    distance = both - 2 * (gram(x) if whole else x[:, part] @ x.transpose(1, 2))
    distance = distance.masked_fill_(distance < SAME * both, 0.0)
    distance.diagonal(part.start, 1, 2).zero_()
    return distance / x.shape[-1]


def peaks_in_frames(features: Tensor, by_frame: Groups, salient: Tensor, quota: Tensor) -> Tensor:
    """Return the ascending places of ``quota`` (F,) density peaks among each frame's tokens that are not salient."""
    score = torch.full_like(salient, -torch.inf, dtype=torch.float32)
    rest = torch.nonzero(~salient & (quota > 0)[by_frame.index]).flatten()
    left = group(rest, by_frame.index[rest])
    for groups, at in left.by_size():
        m = at.shape[1]
        for part in row_chunks(len(groups), 2 * m * max(2 * m, features.shape[1]), limit=MEMORY):
            places = rest[at[part]]
            score[places] = density_peaks(features[by_frame.rows[places]].float())
    return best_in_groups(score, by_frame, quota)


def merge_segments(
    features: Tensor,
    by_frame: Groups,
    segment: Tensor,
    candidate: Tensor,
    context: Tensor,
    *,
    keep_weight: float,
    itself: bool,
) -> Tensor:
    """Return the context tokens (c, D), in the dtype of ``features``, with the rest of their segment merged into them.

    Each anchor frame by itself: every candidate of the segment joins the most similar context token of that frame. With
    m of them, a context token keeps the weight ``max(1 / (m + 1), keep_weight)`` and their mean gets the rest; with
    none it stays bit for bit. (FastVID, dynamic token merging)

    Parameters
    ----------
    segment : Tensor (n,) int64
        Segment of each place of ``by_frame``.
    candidate : Tensor (n,) bool
        Places that are merged.
    context : Tensor (c,) int64
        Places merged into, ascending.
    itself : bool
        Whether a frame's context tokens are candidates for that frame as well.
    """
    rows, width, device = by_frame.rows, features.shape[1], features.device
    merged = features[rows[context]]
    pool = torch.nonzero(candidate).flatten()
    pool_groups, anchors = group(pool, segment[pool]), group(context, by_frame.index[context])
    anchor_groups = group(context[anchors.starts], segment[context[anchors.starts]])
    # Every segment with an anchor has candidates, the anchor's own tokens, so only segments without one are left out.
    which = torch.searchsorted(segment[pool[pool_groups.starts]], segment[anchor_groups.rows[anchor_groups.starts]])
    most = torch.zeros_like(anchor_groups.sizes)
    most.scatter_reduce_(0, anchor_groups.index, anchors.sizes, "amax")
    block = torch.full_like(rows, -1)  # which anchor of its segment a context token belongs to
    nth = torch.arange(len(anchors), device=device) - anchor_groups.starts[anchor_groups.index]
    block[context] = nth[anchors.index]

    shapes = torch.stack([pool_groups.sizes[which], anchor_groups.sizes, most], 1)
    kinds, kind = torch.unique(shapes, dim=0, return_inverse=True)
    for number, (members, a, q) in enumerate(kinds.tolist()):
        alike = torch.nonzero(kind == number).flatten()
        cost = 2 * width + 4 * a * q
        for some in row_chunks(len(alike), members * cost + 3 * a * q * width, limit=MEMORY):
            own = alike[some]
            anchor = anchor_groups.starts[own, None] + torch.arange(a, device=device)
            step = torch.arange(q, device=device)
            there = step < anchors.sizes[anchor][..., None]
            target = anchors.starts[anchor][..., None] + torch.minimum(step, anchors.sizes[anchor][..., None] - 1)
            aim = features[rows[context[target]]].float()
            towards = unit(aim).flatten(1, 2).transpose(1, 2)
            begin = pool_groups.starts[which[own], None]
            sums = torch.zeros(len(own), a * q, width, device=device)
            count = torch.zeros(len(own), a, q, device=device)
            for part in row_chunks(members, len(own) * cost, limit=MEMORY):
                places = pool[begin + torch.arange(part.start, part.stop, device=device)]
                values = features[rows[places]].float()
                # A candidate's own length scales all its cosines alike.
                cosine = (values @ towards).unflatten(-1, (a, q)).masked_fill_(~there[:, None], -torch.inf)
                slack = SAME_COSINE * values.norm(dim=-1)[..., None, None]
                joins = torch.zeros_like(cosine).scatter_(-1, first_largest(cosine, slack)[..., None], 1.0)
                if not itself:
                    joins *= (block[places][..., None] != torch.arange(a, device=device))[..., None]
                # A product, not index_add_, whose order of adding is not fixed on GPUs.
                sums += joins.flatten(2).transpose(1, 2) @ values
                count += joins.sum(1)
            keep = (1 / (count + 1)).clamp_min(keep_weight)[..., None]
            mean = sums.unflatten(1, (a, q)) / count.clamp_min(1)[..., None]
            changed = there & (count > 0)
            merged[target[changed]] = (keep * aim + (1 - keep) * mean)[changed].to(features.dtype)
    return merged


__all__ = [
    "MEMORY",
    "Layout",
    "density_peaks",
    "lay_out",
    "merge_segments",
    "peaks_in_frames",
    "similarities",
    "spaced",
]
