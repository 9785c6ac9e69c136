"""FastVID: a film is cut into segments of like frames; what each frame's encoder attends to stays, the rest is merged.

Source: FastVID (NeurIPS 2025, arXiv 2503.11187) with the settings that SEATS quotes (appendix B.2). Its released ports
differ from each other; taken here are the means of a frame's embeddings as frame features, the pooled attention of the
Qwen2.5-VL port, the parameters and budgets of the LLaVA-OneVision port, and the merge of the other two ports.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from omnicli.compress.base import everything
from omnicli.compress.budget import spread
from omnicli.compress.groups import Groups, best_in_groups, frames, group
from omnicli.compress.ops import finite, row_chunks, unit
from omnicli.compress.published import Baseline, thinned
from omnicli.errors import ModelError
from omnicli.types import MediaTokens, Modality, Query, Selection
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

NEIGHBOURS = 4
"""Nearest tokens, itself among them, whose distances make a token's density."""

SAME = 2e-6
"""Squared distances below this share of both squared lengths are 0: fp32 products of equal rows differ by as much."""

MEMORY = 16 * 2**20
"""Bytes that one batch of frames or segments may need."""


@dataclass(frozen=True)
class FastVID(Baseline):
    """Keep what each frame's encoder attends to, and merge the rest of a scene into tokens of a few anchor frames.

    Frames are cut into segments where neighbours differ. In every frame the tokens with the most attention stay as they
    are. Every ``anchor_step``-th frame of a segment, counted from its end, also keeps density peaks (tokens in a crowd
    and far from denser ones), into which the rest of the segment is averaged. Sound stays whole.

    The official mode truncates per frame and loses what does not divide. Not reproduced: the uniform noise that settles
    ties between densities there, the error on clips with fewer frames than segments and on quotas that exceed a frame,
    and the random thinning of sound where the budget is too small for all of it (it is thinned evenly instead). A frame
    so small that its truncated share is 0 keeps one token.

    Parameters
    ----------
    segments : int
        Segments that a film is cut into at least, if it has as many frames (c of the paper).
    threshold : float
        Neighbouring frames less similar than this (cosine) are cut apart in any case (tau).
    context : float
        Share of the picture budget for merged tokens, 0 to 1 (d).
    anchor_step : int
        Frames from one anchor frame to the next (p).
    keep_weight : float
        Least weight of a token's own features when others are merged into it, 0 to 1 (alpha).
    merge : str
        ``straightforward``: an anchor frame's density peaks take no part in the means that are merged into them.
        ``parallel``: they do, as in the port for LLaVA-OneVision.
    ignore : float or None
        Of a run of frames in a segment whose neighbours are at least this similar, only the last keeps tokens. 0.95 in
        the port for Qwen2.5-VL, whose budgets per segment the official mode then takes; None: off.
    """

    segments: int = 8
    threshold: float = 0.9
    context: float = 0.4
    anchor_step: int = 4
    keep_weight: float = 0.6
    merge: Literal["straightforward", "parallel"] = "straightforward"
    ignore: float | None = None

    criterion: ClassVar[str] = "encoder attention and density in segments of like frames; the rest merges"
    paper: ClassVar[str] = "FastVID, arXiv 2503.11187 (NeurIPS 2025); for film with sound as in SEATS, appendix B.2"
    clean_differs: ClassVar[str] = (
        "Meets the budget exactly: the released code truncates per frame and per anchor and so keeps fewer tokens than "
        "it is told to. Without its random noise equal inputs give equal choices, clips with fewer frames than "
        "segments work, and a segment's tokens are found by time, so that sound between pictures does no harm."
    )

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Attention that tokens receive in their frame; in official mode from the frame's mean query."""
        return frozenset({"pooled_saliency" if self.mode == "official" else "saliency"})

    def problems(self) -> list[str]:
        """Return what is wrong with the fields."""
        found = super().problems()
        if self.audio == "select":
            found.append("audio: fastvid has no counterpart for sound; use intact")
        for name in ("segments", "anchor_step"):
            if getattr(self, name) < 1:
                found.append(f"{name}: must be at least 1, not {getattr(self, name)}")
        for name in ("context", "keep_weight"):
            if not 0 <= getattr(self, name) <= 1:
                found.append(f"{name}: must be between 0 and 1, not {getattr(self, name):g}")
        for name in ("threshold", "ignore"):
            value = getattr(self, name)
            if value is not None and not -1 <= value <= 1:
                found.append(f"{name}: must be between -1 and 1, not {value:g}")
        return found

    def compress(self, tokens: MediaTokens, query: Query) -> Selection:
        """Choose and merge picture tokens; the question plays no part.

        Raises
        ------
        ModelError
            The encoders give no saliency, or something that is not finite.
        """
        plan = self.plan(tokens)
        n_video, n_audio = tokens.count(Modality.VIDEO), tokens.count(Modality.AUDIO)
        if plan.total == len(tokens):
            return everything(tokens)
        video: float = plan.video
        sounds = plan.audio
        if self.mode == "official":
            video, audio = self.ratios(tokens)
            # A share that stands for a whole number may come out a hair below it.
            sounds = min(n_audio, max(1, int(audio * n_audio + 1e-6)))
        sound = thinned(tokens, sounds)
        whole = n_video if self.mode == "clean" else 1
        if n_video == 0 or video >= whole:
            rows = tokens.indices(Modality.VIDEO)
            indices = torch.cat([rows, sound]).sort().values
            return Selection(indices, report={"budget": {"video": n_video, "audio": sound.numel()}})
        if tokens.saliency is None:
            raise ModelError(f"{self.name}: this model's encoders give no saliency")
        return self._select(tokens, tokens.saliency, video, sound)

    def _select(self, tokens: MediaTokens, attention: Tensor, video: float, sound: Tensor) -> Selection:
        pictures = frames(tokens)
        saliency = attention[pictures.rows].float()
        likeness = similarities(tokens.features, pictures)
        finite(likeness), finite(saliency)
        layout = lay_out(likeness.cpu(), self.segments, self.threshold, self.anchor_step, self.ignore)
        sizes = pictures.sizes.cpu()
        if self.mode == "clean":
            quotas = _exact(int(video), sizes, layout, self.context)
        elif self.ignore is None:
            quotas = _truncated(video, sizes, layout, self.context)
        else:
            quotas = _per_segment(video, sizes, layout, self.context)
        device = pictures.rows.device
        plain, peaks = (q.to(device) for q in quotas)

        salient = torch.zeros_like(saliency, dtype=torch.bool)
        salient[best_in_groups(saliency, pictures, plain)] = True
        context = _peaks_in_frames(tokens.features, pictures, salient, peaks)
        kept = salient.clone()
        kept[context] = True
        indices = torch.cat([pictures.rows[kept], sound]).sort().values
        report = {
            "budget": {"video": int(kept.sum()), "audio": sound.numel()},
            "segments": int(layout.segment[-1]) + 1,
            "merged": context.numel(),
        }
        if context.numel() == 0:
            return Selection(indices, report=report)
        merged = _merged(
            tokens.features,
            pictures,
            layout.segment.to(device)[pictures.index],
            ~salient,
            context,
            keep_weight=self.keep_weight,
            itself=self.merge == "parallel",
        )
        features = tokens.features[indices]
        features[torch.searchsorted(indices, pictures.rows[context])] = merged
        return Selection(indices, features, report)


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


def similarities(features: Tensor, pictures: Groups) -> Tensor:
    """Return cosines (F - 1,) fp32 of the mean embeddings of neighbouring frames (FastVID, dynamic segmentation)."""
    mean = torch.empty(len(pictures), features.shape[1], device=features.device)
    for groups, places in pictures.by_size():
        for part in row_chunks(len(groups), places.shape[1] * features.shape[1], limit=MEMORY):
            mean[groups[part]] = features[pictures.rows[places[part]]].float().mean(1)
    mean = unit(mean)
    return (mean[:-1] * mean[1:]).sum(1)


def lay_out(likeness: Tensor, segments: int, threshold: float, step: int, ignore: float | None = None) -> Layout:
    """Cut frames into segments and name the anchors (FastVID, dynamic segmentation and anchor frames).

    Parameters
    ----------
    likeness : Tensor (F - 1,)
        Cosines of neighbouring frames, on the CPU. The ``segments - 1`` smallest and all below ``threshold`` are cuts.
    segments, threshold, step, ignore
        The fields of `FastVID`; ``step`` is its ``anchor_step``.
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


def _exact(total: int, sizes: Tensor, layout: Layout, context: float) -> tuple[Tensor, Tensor]:
    """Return salient tokens and density peaks of each frame (F,), together exactly ``total``.

    Peaks are ``context`` of the total, rounded down, as far as anchor frames have room. Salient tokens are shared by
    size; the tokens of a segment, divided by its anchors, weigh each anchor's share of the peaks.
    """
    valid = sizes * layout.valid
    wanted = math.floor(total * context + 1e-9)
    salient = spread(total - wanted, valid)
    weight = layout.total(valid.double()) / layout.total(layout.anchor.double())
    peaks = spread(wanted, (sizes - salient) * layout.anchor, weight)
    for room in (valid, sizes):  # what anchors, then all valid frames have no room for
        short = total - int(salient.sum()) - int(peaks.sum())
        if short:
            salient = salient + spread(short, (room - salient - peaks).clamp_min(0))
    return salient, peaks


def _shares(ratio: float, sizes: Tensor) -> Tensor:
    """Return ``ratio`` of each frame, truncated, but at least 1 (F,)."""
    if ratio <= 0:
        return torch.zeros_like(sizes)
    return torch.minimum((sizes.double() * ratio).long().clamp_min(1), sizes)


def _truncated(ratio: float, sizes: Tensor, layout: Layout, context: float) -> tuple[Tensor, Tensor]:
    """Return salient tokens and peaks of each frame (F,) as the port for LLaVA-OneVision counts them."""
    keep = _shares(ratio, sizes)
    merged = (keep.double() * context).long()
    salient = keep - merged
    share = layout.total(merged) // layout.total(layout.anchor.long())
    return salient, torch.minimum(share * layout.anchor, sizes - salient)


def _per_segment(ratio: float, sizes: Tensor, layout: Layout, context: float) -> tuple[Tensor, Tensor]:
    """Return salient tokens and peaks of each frame (F,) as the port for Qwen2.5-VL counts them.

    A segment's budget goes to its valid frames alone, the first of them and the last anchors get what does not divide,
    and what exceeds a frame or half of it is lost.
    """
    keep = layout.total(_shares(ratio, sizes))
    merged = torch.minimum((keep.double() * context).long().clamp_min(1), keep)
    salient, frames_, anchors = keep - merged, layout.total(layout.valid.long()), layout.total(layout.anchor.long())
    first = salient // frames_ + (layout.place < salient % frames_).long()
    first = torch.minimum(first, sizes) * layout.valid
    later = layout.total(layout.anchor.long()) - 1 - _anchors_before(layout)
    last = merged // anchors + (later < merged % anchors).long()
    cap = torch.minimum((sizes // 2).clamp_min(1), sizes - first)
    return first, torch.minimum(last, cap) * layout.anchor


def _anchors_before(layout: Layout) -> Tensor:
    """Return how many anchors of its segment come before each frame (F,)."""
    ones = layout.anchor.long()
    count = torch.bincount(layout.segment, weights=ones.double()).long()
    return ones.cumsum(0) - ones - (count.cumsum(0) - count)[layout.segment]


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
    distance = both - 2 * (x[:, part] @ x.transpose(1, 2))
    distance = distance.masked_fill_(distance < SAME * both, 0.0)
    distance.diagonal(part.start, 1, 2).zero_()
    return distance / x.shape[-1]


def _peaks_in_frames(features: Tensor, pictures: Groups, salient: Tensor, quota: Tensor) -> Tensor:
    """Return the ascending places of ``quota`` (F,) density peaks among each frame's tokens that are not salient."""
    score = torch.full_like(salient, -torch.inf, dtype=torch.float32)
    rest = torch.nonzero(~salient & (quota > 0)[pictures.index]).flatten()
    left = group(rest, pictures.index[rest])
    for groups, at in left.by_size():
        m = at.shape[1]
        for part in row_chunks(len(groups), 2 * m * max(2 * m, features.shape[1]), limit=MEMORY):
            places = rest[at[part]]
            score[places] = density_peaks(features[pictures.rows[places]].float())
    return best_in_groups(score, pictures, quota)


def _merged(
    features: Tensor,
    pictures: Groups,
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
        Segment of each place of ``pictures``.
    candidate : Tensor (n,) bool
        Places that are merged.
    context : Tensor (c,) int64
        Places merged into, ascending.
    itself : bool
        Whether a frame's context tokens are candidates for that frame as well.
    """
    rows, width, device = pictures.rows, features.shape[1], features.device
    merged = features[rows[context]]
    pool = torch.nonzero(candidate).flatten()
    pool_groups, anchors = group(pool, segment[pool]), group(context, pictures.index[context])
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
                joins = torch.zeros_like(cosine).scatter_(-1, cosine.argmax(-1, keepdim=True), 1.0)
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


__all__ = ["FastVID", "Layout", "density_peaks", "lay_out", "similarities"]
