"""OmniScope: each sense keeps most where it is like the question; pictures are chosen, sound is merged.

Source: OmniScope (arXiv 2607.23193) and its released code. In order: every frame's likeness to the question shares out
the pictures' budget; inside frames, in turn, what is least crowded stays and what changed since the frame before; every
second's likeness to the question shares out the sound's budget, more around its peaks; inside a second the most similar
tokens merge until the share is met.

The release compares frames with the question by CLIP, a second model that looks at every frame. Here both modes take
the cosine of a frame's mean embedding and the mean of the question's tokens in the LLM's own space, as OMAC does: it
costs no second model, and its shares are not the released ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from omnicli.compress.base import everything
from omnicli.compress.budget import spread
from omnicli.compress.groups import Groups, best_in_groups, counterparts, frames, group, stretches
from omnicli.compress.ops import distances, finite, row_chunks, unit
from omnicli.compress.outliers import MEMORY, cosines, crowding
from omnicli.compress.published import Published
from omnicli.compress.released import omniscope as released
from omnicli.compress.tome import Merged, merged_in_groups
from omnicli.types import MediaTokens, Modality, Query, Selection
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

DENSE = 0.4
"""Frames that keep more than this share of their cells are compared with any cell of the frame before."""

PEAK, PEAK_BOOST, REACH = 0.8, 1.2, 3
"""Seconds from this quantile on are peaks and count that much more, as do those up to so many seconds away."""

_TOP = 5  # tokens of a second that say how like the question it is
_SHARP = 0.05  # temperature of the softmax over the question's tokens
_SLACK_S = 1e-6  # sums of binary seconds may fall short by as much


@dataclass(frozen=True)
class OmniScope(Published):
    """Keep pictures and merge sound where each is like the question.

    A merged sound token stands at the place of one of its members.

    ``official`` rounds a frame's number to a rectangle of the grid's shape and does not hand on what a full frame
    leaves; sound is cut into runs of ``audio_second`` tokens, a shorter one at the end stays whole, sums of merged
    tokens forget how many went into them, and no second falls under ``least``. So both totals may be missed. Not
    reproduced, beside CLIP: positions (the release spreads what is left of a second evenly over it). Where nothing is
    like the question, all frames and all seconds count alike.

    Parameters
    ----------
    least : float
        Share of a second's sound tokens that stays whatever the question, 0 to 1; in clean mode no more than the
        budget's share.
    audio_second : int
        Official mode: sound tokens of a second. 25 in the released code for all models; Qwen3-Omni has 13.
    """

    least: float = 0.4
    audio_second: int = 25

    criterion: ClassVar[str] = "likeness of frames and seconds to the question; pictures by redundancy, sound merges"
    uses_question: ClassVar[bool] = True
    paper: ClassVar[str] = "OmniScope, arXiv 2607.23193"
    clean_differs: ClassVar[str] = (
        "Meets the budget of each modality exactly: no rectangles, and what a full frame leaves goes to the others. "
        "Seconds are those of true time whatever the model's rate, any budget of sound can be met, and merged sound is "
        "the mean of all that went into it, at the member nearest to their mean time. In both modes the likeness of "
        "frames is a cosine in the LLM's own space, where the release asks CLIP."
    )

    def idle(self) -> dict[str, str]:
        """Return the fields that cannot act: the released code's second of sound, where time is true."""
        found = super().idle()
        return found if self.mode == "official" else found | {"audio_second": "mode clean counts true seconds"}

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        found = super().problems()
        if not 0 <= self.least <= 1:
            found.append(f"least: must be between 0 and 1, not {self.least:g}")
        if self.audio_second < 1:
            found.append(f"audio_second: must be at least 1, not {self.audio_second}")
        return found

    def compress(self, tokens: MediaTokens, query: Query) -> Selection:
        """Choose pictures and merge sound.

        Raises
        ------
        ModelError
            Embeddings are not finite.
        """
        plan = self.plan(tokens)
        if plan.total == len(tokens):
            return everything(tokens)
        ratios = self.ratios(tokens)
        video = self._video(tokens, query, plan.video, ratios[0])
        rows = tokens.indices(Modality.AUDIO)
        sound = self._audio(tokens, query, rows, plan.audio, ratios[1])
        audio = rows[sound.places]
        indices = torch.cat([video, audio]).sort().values
        budget = {"video": video.numel(), "audio": audio.numel()}
        report = {"budget": budget, "merged": sound.changed.numel()}
        if sound.changed.numel() == 0:
            return Selection(indices, report=report)
        features = tokens.features[indices]
        features[torch.searchsorted(indices, audio[sound.changed])] = sound.features
        return Selection(indices, features, report)

    def _video(self, tokens: MediaTokens, query: Query, total: int, share: float) -> Tensor:
        """Return the ascending indices of the picture tokens that stay."""
        by_frame = frames(tokens)
        rows = by_frame.rows
        official = self.mode == "official"
        if rows.numel() == 0 or (share >= 1 if official else total == rows.numel()):
            return rows
        if share <= 0 or total == 0:
            return rows[:0]
        score = (100 * _frame_likeness(tokens.features, by_frame, query.embeddings)).clamp_min(0) ** 3
        if official:
            shape = torch.zeros(2, len(by_frame), dtype=torch.int64, device=rows.device)
            for i, cell in enumerate((tokens.row, tokens.col)):
                shape[i].scatter_reduce_(0, by_frame.index, cell[rows].long() + 1, "amax")
            grids = list(zip(by_frame.sizes.tolist(), *shape.tolist(), strict=True))
            quota = torch.tensor(released.picture_quota(score.tolist(), grids, share))
        else:
            quota = spread(total, by_frame.sizes, score.double() * by_frame.sizes)
        quota = quota.to(rows.device)
        return rows[best_in_groups(-_redundancy(tokens, by_frame, quota), by_frame, quota)]

    def _audio(self, tokens: MediaTokens, query: Query, rows: Tensor, total: int, share: float) -> Merged:
        """Return the places among the sound tokens ``rows`` (n,) of what is left, merged second by second."""
        x, n = tokens.features, rows.numel()
        official = self.mode == "official"
        every = torch.arange(n, device=rows.device)
        if n == 0 or (share >= 1 if official else total == n):
            return Merged(every, every[:0], x[:0])
        if share <= 0 or total == 0:
            return Merged(every[:0], every[:0], x[:0])
        like = _sound_likeness(x, rows, query.embeddings)
        if official:
            seconds = stretches(tokens, Modality.AUDIO, self.audio_second)
            tail = n % self.audio_second
            whole = n // self.audio_second
            weight = _boosted(_seconds_likeness(like, seconds)[:whole], torch.arange(whole, device=rows.device))
            least = round(self.least * self.audio_second)
            quota = released.sound_quota(weight.tolist(), share, self.audio_second, least) + [tail] * (tail > 0)
        else:
            second = (tokens.start_s[rows] + _SLACK_S).floor().long()
            seconds = group(rows, second)
            weight = _boosted(_seconds_likeness(like, seconds), second[seconds.starts])
            quota = self._quota(total, n, seconds.sizes.cpu(), weight.cpu())
        return merged_in_groups(x, seconds, quota, tokens.start_s[rows], released=official)

    def _quota(self, total: int, n: int, sizes: Tensor, weight: Tensor) -> list[int]:
        """Return how many tokens of each second (S,) stay, exactly ``total`` of ``n``; all on the CPU."""
        low = torch.minimum((self.least * sizes.double() + 1e-9).floor().long(), sizes * total // n)
        return bounded(total, low, sizes, weight.double() * sizes).tolist()


def bounded(total: int, low: Tensor, high: Tensor, weight: Tensor) -> Tensor:
    """Share ``total`` in the ratio of ``weight`` within bounds; whole tokens by largest remainder, ties to the first.

    Parameters
    ----------
    total : int
        Between the sums of the bounds.
    low, high : Tensor (G,) int64
        Bounds of each share, on the CPU.
    weight : Tensor (G,) float64
        Not negative. What shares with a weight cannot use goes to the others by their room.

    Returns
    -------
    Tensor (G,) int64
    """
    floor, roof = low.double(), high.double()
    below = torch.zeros((), dtype=torch.float64)
    above = torch.where(weight > 0, roof / weight.clamp_min(1e-300), 0.0).amax()
    for _ in range(200):  # halving: the level at which shares add up
        level = (below + above) / 2
        enough = torch.maximum(torch.minimum(level * weight, roof), floor).sum() >= total
        below, above = torch.where(enough, below, level), torch.where(enough, level, above)
    exact = torch.maximum(torch.minimum(above * weight, roof), floor)
    room = roof - exact
    exact = exact + (total - exact.sum()).clamp_min(0) * room / room.sum().clamp_min(1e-300)
    whole = torch.minimum((exact + 1e-9).floor().long(), high)
    short = total - int(whole.sum())
    order = torch.where(whole < high, whole - exact, torch.inf).argsort(stable=True)
    whole[order[:short]] += 1
    return whole


def _frame_likeness(features: Tensor, by_frame: Groups, question: Tensor) -> Tensor:
    """Return cosines (T,) of the frames' means and the mean of the question's tokens; 0 where it has none."""
    mean = torch.zeros(len(by_frame), features.shape[1], device=features.device)
    for groups, places in by_frame.by_size():
        for part in row_chunks(len(groups), places.shape[1] * features.shape[1], limit=MEMORY):
            mean[groups[part]] = features[by_frame.rows[places[part]]].float().mean(1)
    finite(mean)
    if len(question) == 0:
        return torch.zeros(len(by_frame), device=features.device)
    return unit(mean) @ unit(question.float().mean(0))


def _redundancy(tokens: MediaTokens, by_frame: Groups, quota: Tensor) -> Tensor:
    """Return by how much each picture token (n,) can be done without; only comparable inside a frame.

    Every other frame: how crowded it is. The frames between: how like the same cell of the frame before; where more
    than `DENSE` of the frame stays, its largest cosine in the frame times that to any cell of the frame before.
    """
    x, rows, device = tokens.features, by_frame.rows, tokens.features.device
    order = torch.arange(len(by_frame), device=device)
    other = counterparts(tokens, by_frame, torch.where(order % 2 == 1, order - 1, -1))
    delta = other[by_frame.starts] >= 0
    dense = delta & (quota > DENSE * by_frame.sizes)
    score = crowding(x, by_frame, ~delta)
    changed = torch.nonzero((delta & ~dense)[by_frame.index]).flatten()
    score[changed] = 1 - distances(x, rows[changed], rows[other[changed]])
    for same_size, places in by_frame.by_size():
        inside, n = places[dense[same_size]], places.shape[1]
        if n == 1:
            continue
        for part in row_chunks(len(inside), n * (2 * x.shape[1] + 3 * n), limit=MEMORY):
            here, before = unit(x[rows[inside[part]]]), unit(x[rows[inside[part] - n]])
            within = cosines(here)
            within.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
            score[inside[part]] = within.amax(2) * cosines(here, before).amax(2)
    return finite(score)


def _sound_likeness(features: Tensor, rows: Tensor, question: Tensor) -> Tensor:
    """Return how like the question each of ``rows`` (n,) is: cosines to its tokens, those it is most like counting."""
    out = torch.zeros(rows.numel(), device=rows.device)
    if len(question) == 0:
        return out
    words = unit(question)
    length = question.float().norm(dim=1)
    length = length / length.amax().clamp_min(torch.finfo(length.dtype).tiny)
    for part in row_chunks(rows.numel(), features.shape[1] + 3 * len(question)):
        cosine = unit(features[rows[part]]) @ words.T
        out[part] = ((length * cosine / _SHARP).softmax(1) * cosine).sum(1)
    return finite(out)


def _seconds_likeness(like: Tensor, seconds: Groups) -> Tensor:
    """Return the mean of the `_TOP` most like the question in each second (S,)."""
    out = torch.zeros(len(seconds), device=like.device)
    for groups, places in seconds.by_size():
        out[groups] = like[places].topk(min(_TOP, places.shape[1]), dim=1).values.mean(1)
    return out


def _boosted(like: Tensor, second: Tensor) -> Tensor:
    """Return the weights (S,) of the seconds numbered ``second`` (S,), those around peaks raised."""
    weight = (10 * like).clamp_min(0) ** 2
    if weight.numel() == 0:
        return weight
    peak = weight >= torch.quantile(weight, PEAK)
    factor = torch.where(peak, PEAK_BOOST, 1.0)
    for away in range(1, REACH + 1):
        for there in (second - away, second + away):
            at = torch.searchsorted(second, there).clamp_max(len(second) - 1)
            near = (second[at] == there) & peak[at]
            factor = torch.where(near, factor.clamp_min(1 + 0.5 * 0.5**away), factor)
    return weight * factor


__all__ = ["DENSE", "OmniScope", "bounded"]
