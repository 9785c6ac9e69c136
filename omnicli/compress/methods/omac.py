"""OMAC: frames the question asks about become small memories, and sound anchors follow the pictures' memory.

Source: "O-MARC" (arXiv 2605.26584), section 4, equations 1-6. There is no released code, so there is one mode. What
the paper leaves open is settled here:

- Temporal coverage: the clip is cut into as many bins of equal length as half the frames to keep, each bin's best
  frame stays, the rest go by score. Without a question every frame scores 0 and there are as many bins as frames.
- The pictures' share is a product: the square root of it in frames, the rest inside them (``frame_keep``).
- Contrasts are min-max normalised over the frame. The memory token pools all tokens kept of its frame and takes the
  place of the one of least contrast. A frame that stays whole, or of which one token stays, has none.
- A sound token belongs to the last frame that has begun when it starts, or else to the first. A frame weighs at least
  ``floor`` of the mean frame, where the paper only says that it is lightly adjusted. With 0.1 nothing of what is said
  beside a dropped frame stays: of 25 spoken needles in 100 s the pocket model found 0 with 0.1, 10 with 1, and 19 with
  3, which makes frames weigh alike (docs/benchmarks.md).
- A dropped sound token merges into the anchor nearest in time (of two, the earlier) if that lies in the same or an
  adjacent interval, with the weight max(0, cosine). Without pictures the intervals are the temporal blocks.
- ``guidance: visual`` (V-A in table 7: "raw visual signals"): a frame weighs what its score says, min-max normalised
  over the clip, at least 0.1 of the mean; where all scores are equal, as without a question, all frames weigh the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from omnicli.compress.base import everything
from omnicli.compress.budget import Budgeted, spread
from omnicli.compress.groups import Groups, best, best_in_groups, frames
from omnicli.compress.ops import finite, row_chunks
from omnicli.errors import ModelError
from omnicli.types import MediaTokens, Modality, Query, Selection
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_EPS = 1e-8


@dataclass(frozen=True)
class Omac(Budgeted):
    """Keep distinctive tokens of the frames the question asks about, and merge sound into anchors that follow them.

    Parameters
    ----------
    memory : bool
        Whether a frame's weakest kept token becomes a summary of those kept.
    merge_sound : bool
        Whether anchors take in the sound dropped beside them.
    guidance : str
        What the sound's budget follows in time: ``memory``, what was kept of the frames (V-A-VA in the paper's table
        7); ``visual``, the frames' likeness to the question before anything is chosen (V-A); ``none``: every stretch
        keeps the same share. The table's A-V, sound that guides the pictures, is the method omnizip.
    frame_keep : float or None
        Share of the frames that stay, above 0 and at most 1; None: the square root of the pictures' share. Never fewer
        frames than the pictures' budget fills.
    floor : float
        Least weight of a frame when sound is shared out, as a share of the mean frame's. 0: where no picture is kept,
        no sound is; from a few on, frames weigh alike and sound is shared out by its seconds.
    """

    memory: bool = True
    merge_sound: bool = True
    guidance: Literal["memory", "visual", "none"] = "memory"
    frame_keep: float | None = None
    floor: float = 3.0

    criterion: ClassVar[str] = "frames by likeness to the question, tokens by contrast; sound by encoder saliency"
    uses_question: ClassVar[bool] = True
    paper: ClassVar[str] = "OMAC (O-MARC), arXiv 2605.26584"
    needs: ClassVar[frozenset[str]] = frozenset({"saliency"})

    def idle(self) -> dict[str, str]:
        """Return the fields that cannot act: the floor, where no frame weighs less than another."""
        found = super().idle()
        return found | {"floor": "guidance none weighs all stretches alike"} if self.guidance == "none" else found

    def problems(self) -> list[str]:
        """Return what is wrong with the fields."""
        found = super().problems()
        if self.frame_keep is not None and not 0 < self.frame_keep <= 1:
            found.append(f"frame_keep: must be above 0 and at most 1, not {self.frame_keep:g}")
        if not (math.isfinite(self.floor) and self.floor >= 0):
            found.append(f"floor: must be a number of at least 0, not {self.floor:g}")
        return found

    def compress(self, tokens: MediaTokens, query: Query) -> Selection:
        """Choose frames, tokens inside them, then sound by what the frames kept.

        Raises
        ------
        ModelError
            Sound has to be chosen but the model captured no saliency, or values are not finite.
        """
        plan = self.budget(tokens)
        report: dict[str, Any] = {"budget": plan.to_dict()}
        if plan.total == len(tokens):
            return everything(tokens, **report)
        groups = frames(tokens)
        quota = self._frame_quotas(tokens, query, groups, plan.video)
        contrast = _contrast(tokens.features, groups, quota)
        video = best_in_groups(contrast, groups, quota)
        audio = tokens.indices(Modality.AUDIO)
        interval = _intervals(tokens, groups, audio)
        anchors = _anchors(tokens, audio, interval, self._weight(tokens, query, groups, quota), plan.audio)
        kept, order = torch.cat([groups.rows[video], audio[anchors]]).sort()
        if not (self.memory or self.merge_sound):
            return Selection(kept, report=report)
        place = torch.empty_like(order)
        place[order] = torch.arange(order.numel(), device=order.device)
        features = tokens.features.index_select(0, kept)
        if self.memory:
            at = place[: video.numel()]
            report["frame_memories"] = _add_memories(
                features, at, features=tokens.features, groups=groups, kept=video, contrast=contrast
            )
        if self.merge_sound:
            at = place[video.numel() :]
            report["merged_sound"] = _merge_audio(features, at, tokens, audio=audio, interval=interval, anchors=anchors)
        return Selection(kept, features, report)

    def _weight(self, tokens: MediaTokens, query: Query, groups: Groups, quota: Tensor) -> Tensor:
        """Return what each frame weighs (T,) float64 when sound is shared out (equation 6)."""
        if self.guidance == "none":
            return torch.ones_like(quota, dtype=torch.float64)
        if self.guidance == "memory" or len(groups) == 0:
            return _weights(quota, self.floor)
        score = finite(_frame_scores(tokens.features, groups, query.embeddings)).double()
        low, high = score.aminmax()
        if float(high - low) <= _EPS:
            return torch.ones_like(score)
        score = (score - low) / (high - low)
        return score.clamp_min(self.floor * float(score.mean()))

    def _frame_quotas(self, tokens: MediaTokens, query: Query, groups: Groups, total: int) -> Tensor:
        """Return how many tokens each frame keeps (T,) int64; ``total`` in all (section 4.1)."""
        quota = torch.zeros_like(groups.sizes)
        if total == 0:
            return quota
        count, n = len(groups), groups.rows.numel()
        if self.frame_keep is None:  # the ceiling of sqrt(total / n) x count, in whole numbers
            wanted = math.isqrt(-(-total * count * count // n) - 1) + 1
        else:
            wanted = math.ceil(self.frame_keep * count)
        wanted = min(wanted, total, count)
        score = finite(_frame_scores(tokens.features, groups, query.embeddings))
        starts = groups.rows[groups.starts]
        begin, end = tokens.start_s[starts], tokens.end_s[groups.rows].max()
        bins = max(1, wanted // 2) if bool((score != 0).any()) else wanted
        order = _covering(score, begin, end, bins)
        enough = int(torch.searchsorted(groups.sizes[order].cumsum(0), total)) + 1
        chosen = order[: max(wanted, enough)].sort().values
        quota[chosen] = spread(total, groups.sizes[chosen]).to(quota.device)
        return quota


def _frame_scores(features: Tensor, groups: Groups, question: Tensor) -> Tensor:
    """Return cosines (T,) of the frames' means and the mean of the question's tokens (equations 1 and 2)."""
    if len(question) == 0:
        return torch.zeros(len(groups), device=features.device)
    mean = question.float().mean(0)
    sums = torch.zeros(len(groups), features.shape[1], device=features.device)
    for part in row_chunks(groups.rows.numel(), features.shape[1]):
        sums.index_add_(0, groups.index[part], features[groups.rows[part]].float())
    return (sums @ mean) / (sums.norm(dim=1) * mean.norm()).clamp_min(_EPS)


def _covering(score: Tensor, begin_s: Tensor, end_s: Tensor, bins: int) -> Tensor:
    """Return all frames (T,) in the order in which they are kept: the best of each bin, then the others by score.

    ``begin_s`` (T,) ascends; bins are of equal length from its first value to ``end_s``. Ties go to the first frame.
    """
    span = (end_s - begin_s[0]).clamp_min(1e-9)
    where = ((begin_s - begin_s[0]) * bins / span).long().clamp_max(bins - 1)
    order = score.argsort(descending=True, stable=True)
    by_bin = order[where[order].argsort(stable=True)]
    first = torch.ones_like(by_bin, dtype=torch.bool)
    first[1:] = where[by_bin[1:]] != where[by_bin[:-1]]
    winner = torch.zeros_like(first)
    winner[by_bin[first]] = True
    return order[(~winner[order]).long().argsort(stable=True)]


def _contrast(features: Tensor, groups: Groups, quota: Tensor) -> Tensor:
    """Return 1 - cosine of each picture token and its frame's mean (n,) (equation 3); 0 in frames without quota."""
    contrast = torch.zeros(groups.rows.numel(), device=features.device)
    chosen = torch.nonzero(quota).flatten()
    slot = torch.zeros_like(groups.sizes)
    slot[chosen] = torch.arange(chosen.numel(), device=chosen.device)
    places = torch.nonzero(quota[groups.index] > 0).flatten()
    width = features.shape[1]
    mean = torch.zeros(chosen.numel(), width, device=features.device)
    for part in row_chunks(places.numel(), width):
        some = places[part]
        mean.index_add_(0, slot[groups.index[some]], features[groups.rows[some]].float())
    norm = mean.norm(dim=1)  # a sum has the mean's direction
    for part in row_chunks(places.numel(), width):
        some = places[part]
        x, frame = features[groups.rows[some]].float(), slot[groups.index[some]]
        contrast[some] = 1 - (x * mean[frame]).sum(1) / (x.norm(dim=1) * norm[frame]).clamp_min(_EPS)
    return contrast


def _add_memories(
    out: Tensor, place: Tensor, *, features: Tensor, groups: Groups, kept: Tensor, contrast: Tensor
) -> int:
    """Put each frame's memory token (equation 4) where its weakest kept token stands in ``out``; return how many.

    Parameters
    ----------
    out : Tensor (K, D)
        Kept features, changed in place.
    place : Tensor (k,)
        Where the kept picture tokens stand in it.
    features : Tensor (N, D)
        All tokens.
    groups : Groups
        Frames.
    kept : Tensor (k,)
        Ascending places of the kept tokens in ``groups``.
    contrast : Tensor (n,)
        Of all picture tokens.
    """
    frame, count = groups.index[kept], len(groups)
    quota = torch.bincount(frame, minlength=count)
    summed = torch.nonzero((quota > 1) & (quota < groups.sizes)).flatten()
    if summed.numel() == 0:
        return 0
    low = torch.full((count,), torch.inf, device=out.device).scatter_reduce_(0, groups.index, contrast, "amin")
    high = torch.full((count,), -torch.inf, device=out.device).scatter_reduce_(0, groups.index, contrast, "amax")
    own = contrast[kept]
    raised = ((own - low[frame]) / (high - low).clamp_min(_EPS)[frame]).exp()
    weight = raised / torch.zeros(count, device=out.device).index_add_(0, frame, raised)[frame]
    slot = torch.full_like(groups.sizes, -1)
    slot[summed] = torch.arange(summed.numel(), device=summed.device)
    memory = torch.zeros(summed.numel(), out.shape[1], device=out.device)
    used = torch.nonzero(slot[frame] >= 0).flatten()
    for part in row_chunks(used.numel(), out.shape[1]):
        some = used[part]
        x = features[groups.rows[kept[some]]].float() * weight[some, None]
        memory.index_add_(0, slot[frame[some]], x)
    weakest = own.argsort(descending=True, stable=True)  # of equal ones the last, as the first is the better one
    weakest = weakest[frame[weakest].argsort(stable=True)][quota.cumsum(0)[summed] - 1]
    out[place[weakest]] = memory.to(out.dtype)
    return summed.numel()


def _intervals(tokens: MediaTokens, groups: Groups, audio: Tensor) -> Tensor:
    """Return the interval (a,) of each sound token: its frame or, without pictures, its temporal block."""
    if len(groups) == 0:
        return tokens.window[audio]
    begin = tokens.start_s[groups.rows[groups.starts]]
    return (torch.searchsorted(begin, tokens.start_s[audio], right=True) - 1).clamp_min(0)


def _weights(quota: Tensor, floor: float) -> Tensor:
    """Return what frames weigh (T,) float64 that keep ``quota`` (T,) tokens: that, but at least ``floor`` of the mean.

    Where all weigh nothing they weigh alike.
    """
    kept = quota.double()
    if not bool(quota.any()):
        return torch.ones_like(kept)
    return kept.clamp_min(floor * float(kept.mean()))


def _anchors(tokens: MediaTokens, audio: Tensor, interval: Tensor, weight: Tensor, total: int) -> Tensor:
    """Return the ascending places (total,) among ``audio`` (a,) of the anchors: the most salient of each interval.

    ``weight`` (T,) is what the frames' intervals weigh (equation 6); without pictures there is one.
    """
    n = audio.numel()
    if total == n:
        return torch.arange(n, device=audio.device)
    if total == 0:
        return audio[:0]
    if tokens.saliency is None:
        raise ModelError("omac chooses sound by the audio encoder's saliency, which this model does not capture")
    saliency = finite(tokens.saliency[audio].float())
    if weight.numel() == 0:
        return best(saliency, total)
    sizes = torch.bincount(interval, minlength=weight.numel())
    share = share_audio(total, sizes, weight)
    return best_in_groups(saliency, Groups(audio, interval, sizes), share)


def share_audio(total: int, sizes: Tensor, weight: Tensor) -> Tensor:
    """Share ``total`` tokens among intervals in the ratio size x weight (equation 6), never above an interval's size.

    What a full interval cannot use goes to the others in their ratio. Whole tokens by largest remainder, ties to the
    first interval. (`omnicli.compress.budget.spread` would give every interval one token first.)

    Parameters
    ----------
    total : int
        At most the sum of the sizes.
    sizes : Tensor (T,) int64
        Sound tokens of each interval.
    weight : Tensor (T,)
        All above 0, or all 0: equal.

    Returns
    -------
    Tensor (T,) int64
        On the CPU.
    """
    size, weight = sizes.to("cpu", torch.int64), weight.to("cpu").double()
    mass = size * weight if float(weight.sum()) > 0 else size.double()
    exact, free = torch.zeros_like(mass), torch.ones_like(mass, dtype=torch.bool)
    while True:
        left = total - int(size[~free].sum())
        exact = torch.where(free, left * mass / mass[free].sum().clamp_min(1e-300), size.double())
        over = free & (exact > size)
        if not bool(over.any()):
            break
        free &= ~over
    whole = torch.minimum(exact.floor().long(), size)
    order = torch.where(whole < size, whole - exact, torch.inf).argsort(stable=True)
    whole[order[: total - int(whole.sum())]] += 1
    return whole


def _merge_audio(
    out: Tensor, place: Tensor, tokens: MediaTokens, *, audio: Tensor, interval: Tensor, anchors: Tensor
) -> int:
    """Merge dropped sound into the anchors in ``out`` (K, D), in place (equation 5); return how many tokens merged.

    ``place`` (b,) is where the anchors stand in ``out``, ``anchors`` (b,) their ascending places among ``audio`` (a,).
    """
    dropped = torch.ones_like(audio, dtype=torch.bool)
    dropped[anchors] = False
    lost = torch.nonzero(dropped).flatten()
    if lost.numel() == 0 or anchors.numel() == 0:
        return 0
    time, anchor_time = tokens.start_s[audio[lost]], tokens.start_s[audio[anchors]]
    after = torch.searchsorted(anchors, lost)
    before, after = (after - 1).clamp_min(0), after.clamp_max(anchors.numel() - 1)
    nearer = (anchor_time[after] - time).abs() < (time - anchor_time[before]).abs()
    target = torch.where(nearer, after, before)
    close = (interval[lost] - interval[anchors[target]]).abs() <= 1
    target, order = target[close].sort(stable=True)
    lost, features, width = lost[close][order], tokens.features, out.shape[1]
    merged = torch.zeros((), dtype=torch.int64, device=out.device)
    parts = list(row_chunks(anchors.numel(), width))
    edges = torch.tensor([part.start for part in parts] + [anchors.numel()], device=target.device)
    edge = torch.searchsorted(target, edges).tolist()
    for part, first, last in zip(parts, edge[:-1], edge[1:], strict=True):
        anchor = features[audio[anchors[part]]].float()
        total, norm, mass = anchor.clone(), anchor.norm(dim=1), torch.ones(len(anchor), device=out.device)
        for piece in row_chunks(last - first, width):
            some = slice(first + piece.start, first + piece.stop)
            x, to = features[audio[lost[some]]].float(), target[some] - part.start
            cosine = (x * anchor[to]).sum(1) / (x.norm(dim=1) * norm[to]).clamp_min(_EPS)
            weight = cosine.clamp_min(0)
            total.index_add_(0, to, x * weight[:, None])
            mass.index_add_(0, to, weight)
            merged += (weight > 0).sum()
        changed = torch.nonzero(mass > 1).flatten()
        out[place[part][changed]] = (total[changed] / mass[changed, None]).to(out.dtype)
    return int(merged)


__all__ = ["Omac", "share_audio"]
