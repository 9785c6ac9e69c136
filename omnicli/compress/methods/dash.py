"""DASH: the film is cut where its sound changes; sound that marks a cut, stands out or is attended to stays.

Source: DASH (arXiv 2603.15685) and its released code, which is built on OmniZip's. In order: sound is cut into segments
where neighbouring tokens differ; sound tokens are ranked over the clip by how much they differ from the one before, by
how far they lie from the mean of all, and by the encoder's attention; anchors among the others take up a few of the
rest each; segments that keep more of their sound keep more of their pictures; frames lose in turn what is crowded in
space and what repeats the frame before.

Not reproduced: the released saliency, attention over the whole clip that the encoder never computes; here it is the
attention that a token receives inside its own window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from omnicli.compress.base import everything
from omnicli.compress.budget import Budget, spread
from omnicli.compress.groups import best, counterparts, frames, group
from omnicli.compress.methods.omnizip import likeness_to_window
from omnicli.compress.ops import distances, finite, row_chunks, unit
from omnicli.compress.outliers import nearness, stand_outs, steady_channels
from omnicli.compress.published import Published
from omnicli.compress.redundancy import merged_into, nearest
from omnicli.compress.released import dash as released
from omnicli.compress.released.omnizip import anchor_places, sizes
from omnicli.compress.segments import spaced
from omnicli.errors import ModelError
from omnicli.types import MediaTokens, Modality, Query, Selection
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

FEW = 10
"""Up to so many channels all of them count, not the steadier half."""

_SLACK_S = 1e-6  # sums of binary seconds may fall short by as much


@dataclass(frozen=True)
class Dash(Published):
    """Cut the film where its sound changes, keep telling sound, and more pictures where more sound was kept.

    Anchors count as kept tokens: 60 % of the sound are 55 % ranked and 5 % anchors.

    ``official`` cuts by token counts (30 sound tokens at least), carries cuts over to pictures by their share of the
    token count, takes half a grid for a frame as the released code does for frame pairs, drops what is left behind a
    segment's last full frame, and so misses the share of pictures it is told. A modality told to stay whole does (the
    released code would still drop a tenth of the pictures), at least one token of each thinned half stays, and a silent
    film, which stops that code with an error, goes through the branch that was meant for it. Not reproduced: the
    model's dtype (all is fp32 here).

    Parameters
    ----------
    cut : float
        Neighbouring sound tokens less similar than this (cosine) may be cut apart.
    least_s : float
        Clean mode: seconds of a segment, at least.
    context : float
        Anchors as a share of all sound tokens, 0 to below 1.
    merge : int
        Most tokens merged into one anchor; 0: no anchors.
    change_weight, outlier_weight, saliency_weight : float
        Of a sound token's difference to the one before, its distance from the mean, and the encoder's attention.
    guidance : float
        Clean mode: how much a segment's share of sound kept changes its share of pictures; 0: not at all.
    """

    cut: float = 0.4
    least_s: float = 1.2
    context: float = 0.05
    merge: int = 3
    change_weight: float = 0.4
    outlier_weight: float = 0.3
    saliency_weight: float = 0.3
    guidance: float = released.GUIDANCE

    needs: ClassVar[frozenset[str]] = frozenset({"saliency"})
    criterion: ClassVar[str] = "sound by change, distance from its mean and encoder saliency; pictures guided by it"
    paper: ClassVar[str] = "DASH, arXiv 2603.15685"
    clean_differs: ClassVar[str] = (
        "Meets the budget of each modality exactly: guidance moves pictures between segments and never changes their "
        "number, and no tail of a segment is lost. Segments are seconds of true time, a frame belongs to the one that "
        "holds its middle, and frames are whole, so that change in time is change in time and not that between the "
        "halves of a picture. Anchors cover all of the sound left over, and what they take up is ranked by the "
        "pictures of its own window, not of the whole film, which would cost the square of the length. Saliency is "
        "attention inside the encoder's windows."
    )

    def idle(self) -> dict[str, str]:
        """Return the fields that cannot act: what the released code holds fixed, and half of the merging alone."""
        found = super().idle()
        if self.mode == "official":
            found |= dict.fromkeys(("least_s", "guidance"), "the released code has a number of its own")
        if self.merge == 0:
            found["context"] = "merge is 0, so nothing is merged"
        if self.context == 0:
            found["merge"] = "context is 0, so there is nothing to merge into"
        return found

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        found = super().problems()
        if not -1 <= self.cut <= 1:
            found.append(f"cut: must be between -1 and 1, not {self.cut:g}")
        if not (self.least_s >= 0 and math.isfinite(self.least_s)):
            found.append(f"least_s: must not be negative, not {self.least_s:g}")
        if not 0 <= self.context < 1:
            found.append(f"context: must be at least 0 and below 1, not {self.context:g}")
        if self.merge < 0:
            found.append(f"merge: must not be negative, not {self.merge}")
        for name in ("change_weight", "outlier_weight", "saliency_weight", "guidance"):
            if getattr(self, name) < 0:
                found.append(f"{name}: must not be negative, not {getattr(self, name):g}")
        return found

    def compress(self, tokens: MediaTokens, query: Query) -> Selection:
        """Choose sound, then pictures; the question plays no part.

        Raises
        ------
        ModelError
            Sound has to be chosen and the model gives no encoder saliency; or embeddings are not finite.
        """
        plan = self.plan(tokens)
        if plan.total == len(tokens):
            return everything(tokens)
        rows = tokens.indices(Modality.AUDIO)
        change = distances(tokens.features, rows[:-1], rows[1:])
        begins = self._begins(tokens, rows, change)
        if self.mode == "official":
            ratio_video, ratio_audio = self.ratios(tokens)
            parts = sizes(rows.numel(), ratio_audio, self.context, self.merge)
            audio, anchors = self._audio(tokens, rows, change, *parts)
            video = released.video_rows(tokens, audio, begins, ratio_video)
        else:
            audio, anchors = self._audio(tokens, rows, change, *self._split(rows.numel(), plan.audio))
            video = self._video(tokens, audio, begins, plan)
        indices = torch.cat([audio, video]).sort().values
        budget = {"video": video.numel(), "audio": audio.numel()}
        report = {"budget": budget, "anchors": anchors.numel(), "segments": max(1, len(begins))}
        merged = self._merged(tokens, rows, audio, anchors)
        if merged is None:
            return Selection(indices, report=report)
        features = tokens.features[indices]
        features[torch.searchsorted(indices, anchors)] = merged
        return Selection(indices, features, report)

    def _begins(self, tokens: MediaTokens, rows: Tensor, change: Tensor) -> list[int]:
        """Return the first sound token of each segment, counted among the sound tokens ``rows`` (n,); [] without."""
        if rows.numel() == 0:
            return []
        possible = torch.nonzero(change > 1 - self.cut).flatten() + 1
        places = possible.tolist()
        if self.mode == "official":
            return [0, *spaced(places, [float(place) for place in places], 0.0, released.LEAST)]
        start = tokens.start_s[rows]
        return [0, *spaced(places, start[possible].tolist(), float(start[0]), self.least_s - _SLACK_S)]

    def _split(self, n: int, k: int) -> tuple[int, int]:
        """Return ranked tokens and anchors of ``k`` of ``n``; they add up to ``k``, at least one is ranked."""
        if k >= n or self.merge == 0:
            return k, 0
        anchors = min(int(self.context * n + 0.5), max(0, k - 1))
        return k - anchors, anchors

    def _audio(
        self, tokens: MediaTokens, rows: Tensor, change: Tensor, ranked: int, anchors: int
    ) -> tuple[Tensor, Tensor]:
        """Return the ascending indices of the sound that stays, and of the anchors among it."""
        none = rows[:0]
        if ranked == rows.numel():
            return rows, none
        if ranked + anchors == 0:
            return none, none
        left = torch.ones(rows.numel(), dtype=torch.bool, device=rows.device)
        left[best(self._score(tokens, rows, change), ranked)] = False
        pool = rows[left]
        if anchors == 0:
            return rows[~left], none
        place = torch.arange(anchors, device=rows.device)
        if self.mode == "official":
            chosen = pool[anchor_places(pool.numel(), place)]
        else:
            chosen = pool[(2 * place + 1) * pool.numel() // (2 * anchors)]
        return torch.cat([rows[~left], chosen]).sort().values, chosen

    def _score(self, tokens: MediaTokens, rows: Tensor, change: Tensor) -> Tensor:
        """Return the three signals (n,) of the sound tokens ``rows`` (n,), weighted; the first begins everything."""
        if tokens.saliency is None:
            raise ModelError(f"{self.name}: this model's encoders give no saliency")
        begin = torch.cat([change.new_ones(1), (change / 2).clamp(0, 1)])
        near = _near_mean(tokens.features, rows)
        attended = finite(tokens.saliency[rows].float())
        heard = attended / attended.amax().clamp_min(torch.finfo(attended.dtype).tiny)
        apart = 1 - near / near.amax()
        return self.change_weight * begin + self.outlier_weight * apart + self.saliency_weight * heard

    def _merged(self, tokens: MediaTokens, rows: Tensor, audio: Tensor, anchors: Tensor) -> Tensor | None:
        """Return the anchors (a, D) with what they take up, in the model's dtype; None: nothing is merged."""
        gone = torch.ones(len(tokens), dtype=torch.bool, device=rows.device)
        gone[audio] = False
        rest = rows[gone[rows]]
        if anchors.numel() == 0 or rest.numel() == 0:
            return None
        video = tokens.indices(Modality.VIDEO)
        if video.numel() == 0 and tokens.saliency is not None:
            score = tokens.saliency[rest].float()
        elif self.mode == "official":
            score, _ = nearest(tokens.features, rest, video)
        else:
            score = likeness_to_window(tokens, rest)
        return merged_into(tokens.features, anchors, rest, score, self.merge)

    def _video(self, tokens: MediaTokens, audio: Tensor, begins: list[int], plan: Budget) -> Tensor:
        """Return the ascending indices of exactly the planned picture tokens, by segments of true time."""
        by_frame = frames(tokens)
        n = by_frame.rows.numel()
        if plan.video in (0, n):
            return by_frame.rows[: plan.video]
        first = by_frame.rows[by_frame.starts]
        middle = (tokens.start_s[first] + tokens.end_s[first]) / 2
        rows = tokens.indices(Modality.AUDIO)
        later = torch.tensor(begins[1:], dtype=torch.int64, device=rows.device)
        segment = torch.searchsorted(tokens.start_s[rows[later]], middle, right=True)
        order = torch.arange(len(by_frame), device=rows.device)
        blocks = group(order, segment)
        block, begin = blocks.index, by_frame.starts[blocks.starts]
        size = torch.cat([begin[1:], begin.new_tensor([n])]) - begin
        discard = torch.full((len(blocks),), 1 - plan.video / n, dtype=torch.float64, device=rows.device)
        if rows.numel():
            edges = torch.tensor([*begins, rows.numel()], device=rows.device)
            before = torch.searchsorted(torch.searchsorted(rows, audio), edges)
            retained = (before.diff().double() / edges.diff())[segment[blocks.starts]]
            discard = (discard + self.guidance * (0.5 - retained)).clamp(*released.BOUNDS)
        share = spread(plan.video, size, size * (1 - discard)).to(size.device)
        ahead = by_frame.starts - begin[block]
        # Differences of a running total rounded up: whole tokens that add up to the segment's share.
        upto = -(-torch.stack([ahead, ahead + by_frame.sizes]) * share[block] // size[block])
        turn = order - blocks.starts[block]
        other = counterparts(tokens, by_frame, torch.where(turn % 2 == 1, order - 1, -1))
        return stand_outs(tokens.features, by_frame, other, upto[1] - upto[0])


def _near_mean(features: Tensor, rows: Tensor) -> Tensor:
    """Return how near each of ``rows`` (n,) is to their mean (n,), on the steadier half of the channels."""
    width = features.shape[1]
    channels = torch.arange(width, device=rows.device)
    if width > FEW:
        channels = steady_channels(features, rows, width // 2)
    parts = list(row_chunks(rows.numel(), width))
    total = torch.zeros(channels.numel(), dtype=torch.float64, device=rows.device)
    for part in parts:
        total += unit(features[rows[part]][:, channels]).sum(0)
    mean = finite(total / rows.numel()).float()
    return torch.cat([nearness(unit(features[rows[part]][:, channels]), mean) for part in parts])


__all__ = ["FEW", "Dash"]
