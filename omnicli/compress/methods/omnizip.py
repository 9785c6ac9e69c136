"""OmniZip: keep the sound that its encoder attends to, and pictures where sound was kept.

Source: OmniZip (arXiv 2511.14582) and its released code. In order: the most salient sound tokens of the clip stay;
evenly placed anchors among the others take up a few of the rest each, those nearest to what is seen; the share of
sound kept in a stretch of time sets how much of its pictures stays; inside it, frames lose in turn what is redundant in
space and what repeats the frame before.

Not reproduced: the released saliency of sound for Qwen2.5-Omni, which is attention over the whole clip that its encoder
never computes (it attends inside 2-second windows) and needs tens of gigabytes for five minutes. Saliency here is the
attention that each token receives inside its own window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from omnicli.compress.base import everything
from omnicli.compress.budget import Budget, spread
from omnicli.compress.groups import best, counterparts, frames, group, windows
from omnicli.compress.ops import finite, row_chunks, unit
from omnicli.compress.published import Published
from omnicli.compress.redundancy import EPS, FRAMES_BYTES, merged_into, nearest, thinned_frames
from omnicli.compress.released import omnizip as released
from omnicli.errors import ModelError
from omnicli.types import MediaTokens, Modality, Query, Selection
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class OmniZip(Published):
    """Keep the most salient sound, merge a little of the rest into anchors, and keep pictures where sound was kept.

    Anchors count as kept tokens, so the share of dominant sound tokens is the share of sound that stays less
    ``anchors``.

    ``official`` follows the newer of the two released versions. Groups are runs of picture tokens and the run of sound
    with the same number; settings are shares that stay, and its shares discarded are 1 minus them. Its rule cannot keep
    less than 0.25 nor more than 0.65 of the pictures in a run that has sound, and may miss the total. A modality told
    to stay whole does (the released code would still drop 0.35 of the pictures). Silent films, which stop that code
    with an error, have their pictures thinned evenly; where there are no pictures, what an anchor takes up is ranked by
    its cosine to the anchor. At least one token of each thinned frame stays.

    Parameters
    ----------
    anchors : float
        Anchors as a share of all sound tokens, below 1.
    group : int
        Most tokens merged into one anchor; 0: no anchors.
    guidance : str
        What a window's share of the pictures follows: ``audio``, the share of its sound that was kept; ``none``: all
        windows keep the same share.
    discard_intercept, discard_slope : float
        A group that keeps the share r of its sound is to discard ``discard_intercept - discard_slope * r`` of its
        pictures, before all groups are scaled to meet the total.
    discard_min, discard_max : float
        Bounds of that share, 0 to 1.
    neighbours : int
        Nearest tokens in the frame whose mean distance is a token's density.
    """

    anchors: float = 0.05
    group: int = 3
    guidance: Literal["audio", "none"] = "audio"
    discard_intercept: float = 0.75
    discard_slope: float = 0.40
    discard_min: float = 0.35
    discard_max: float = 0.75
    neighbours: int = 5

    needs: ClassVar[frozenset[str]] = frozenset({"saliency"})
    criterion: ClassVar[str] = "sound by encoder saliency; pictures by density and change, guided by the sound kept"
    paper: ClassVar[str] = "OmniZip, arXiv 2511.14582"
    clean_differs: ClassVar[str] = (
        "Meets the budget of each modality exactly, also below a quarter of the pictures, where the released clipping "
        "misses it; sound guides the pictures of its own block of true time, and blocks without sound get "
        "an even share. Anchors cover all of the sound left over instead of its beginning, and what they take up is "
        "ranked by the pictures of its own window, not of the whole film, which would cost the square of the length. "
        "Saliency of sound is attention inside the encoder's windows; the released map over the whole clip is not "
        "reproduced."
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        found = super().problems()
        if not 0 <= self.anchors < 1:
            found.append(f"anchors: must be at least 0 and below 1, not {self.anchors:g}")
        if self.group < 0:
            found.append(f"group: must not be negative, not {self.group}")
        if not 0 <= self.discard_min <= self.discard_max <= 1:
            found.append(
                "discard_min: 0 <= discard_min <= discard_max <= 1 must hold, "
                f"not {self.discard_min:g} and {self.discard_max:g}"
            )
        if self.neighbours < 1:
            found.append(f"neighbours: must be at least 1, not {self.neighbours}")
        if self.guidance == "none":
            if self.mode == "official":
                found.append("guidance: mode official is the released code, which has no such choice")
            names = ("discard_intercept", "discard_slope", "discard_min", "discard_max")
            changed = [name for name in names if getattr(self, name) != getattr(OmniZip, name)]
            found += [f"{name}: has no meaning with guidance none" for name in changed]
        return found

    def idle(self) -> dict[str, str]:
        """Return the fields that cannot act: of anchors where there are none, and of windows that all keep alike."""
        found = super().idle()
        if self.group == 0:
            found["anchors"] = "group is 0, so there are no anchors"
        if self.anchors == 0:
            found["group"] = "anchors is 0, so there is nothing to merge into"
        if self.discard_min == self.discard_max:
            alike = "discard_min and discard_max are equal, so every group discards alike"
            found |= dict.fromkeys(("discard_intercept", "discard_slope"), alike)
        elif self.discard_slope == 0 and self.mode == "clean":
            alike = "discard_slope is 0, so every group discards alike"
            found |= dict.fromkeys(("discard_intercept", "discard_min", "discard_max"), alike)
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
        n_audio = tokens.count(Modality.AUDIO)
        if self.mode == "official":
            ratio_video, ratio_audio = self.ratios(tokens)
            audio, anchors = self._audio(tokens, *released.sizes(n_audio, ratio_audio, self.anchors, self.group))
            bounds = (self.discard_min, self.discard_max)
            video = released.video_rows(
                tokens, audio, ratio_video, discard_of=self._discard, bounds=bounds, neighbours=self.neighbours
            )
        else:
            audio, anchors = self._audio(tokens, *self._split(n_audio, plan.audio))
            video = self._video(tokens, audio, plan)
        indices = torch.cat([audio, video]).sort().values
        budget = {"video": video.numel(), "audio": audio.numel()}
        report = {"budget": budget, "anchors": anchors.numel()}
        merged = self._merged(tokens, audio, anchors)
        if merged is None:
            return Selection(indices, report=report)
        features = tokens.features[indices]
        features[torch.searchsorted(indices, anchors)] = merged
        return Selection(indices, features, report)

    def _split(self, n: int, k: int) -> tuple[int, int]:
        """Return dominant tokens and anchors of ``k`` of ``n``; they add up to ``k``, at least one is dominant."""
        if k >= n or self.group == 0:
            return k, 0
        anchors = min(int(self.anchors * n + 0.5), max(0, k - 1))
        return k - anchors, anchors

    def _audio(self, tokens: MediaTokens, dominant: int, anchors: int) -> tuple[Tensor, Tensor]:
        """Return the ascending indices of the sound that stays, and of the anchors among it."""
        rows = tokens.indices(Modality.AUDIO)
        none = rows[:0]
        if dominant == rows.numel():
            return rows, none
        if dominant + anchors == 0:
            return none, none
        if tokens.saliency is None:
            raise ModelError(f"{self.name}: this model's encoders give no saliency")
        left = torch.ones(rows.numel(), dtype=torch.bool, device=rows.device)
        left[best(tokens.saliency[rows].float(), dominant)] = False
        pool = rows[left]
        if anchors == 0:
            return rows[~left], none
        place = torch.arange(anchors, device=rows.device)
        if self.mode == "official":
            chosen = pool[released.anchor_places(pool.numel(), place)]
        else:
            chosen = pool[(2 * place + 1) * pool.numel() // (2 * anchors)]
        return torch.cat([rows[~left], chosen]).sort().values, chosen

    def _merged(self, tokens: MediaTokens, audio: Tensor, anchors: Tensor) -> Tensor | None:
        """Return the anchors (a, D) with what they take up, in the model's dtype; None: nothing is merged."""
        gone = torch.ones(len(tokens), dtype=torch.bool, device=tokens.features.device)
        gone[audio] = False
        rows = tokens.indices(Modality.AUDIO)
        rows = rows[gone[rows]]
        if anchors.numel() == 0 or rows.numel() == 0:
            return None
        video = tokens.indices(Modality.VIDEO)
        if self.mode == "official":  # without pictures: how near each is to the anchor that it goes to
            score, _ = nearest(tokens.features, rows, video if video.numel() else anchors)
        elif video.numel() == 0 and tokens.saliency is not None:
            score = tokens.saliency[rows].float()
        else:
            score = likeness_to_window(tokens, rows)
        return merged_into(tokens.features, anchors, rows, score, self.group)

    def _video(self, tokens: MediaTokens, audio: Tensor, plan: Budget) -> Tensor:
        """Return the ascending indices of exactly the planned picture tokens, by windows of true time."""
        by_frame, blocks = frames(tokens), windows(tokens, Modality.VIDEO)
        n = blocks.rows.numel()
        if plan.video == n:
            return blocks.rows
        if plan.video == 0:
            return blocks.rows[:0]
        _, window = torch.unique(tokens.window, return_inverse=True)
        many = int(window.max()) + 1
        own = window[blocks.rows[blocks.starts]]
        n_audio = torch.bincount(window[tokens.indices(Modality.AUDIO)], minlength=many)[own]
        kept = torch.bincount(window[audio], minlength=many)[own]
        keep = 1 - self._discard(kept.double() / n_audio.clamp_min(1))
        guided, size = (n_audio > 0) & (self.guidance == "audio"), blocks.sizes.double()
        mean = (keep * size)[guided].sum() / size[guided].sum().clamp_min(1)
        # Relative to the guided windows' mean, so that a window without sound gets the share of an average one.
        relative = torch.where(guided & (mean > 0), keep / mean.clamp_min(1e-12), torch.ones_like(keep))
        share = spread(plan.video, blocks.sizes, relative * size).to(size.device)
        block = blocks.index[by_frame.starts]
        before = by_frame.starts - blocks.starts[block]
        # Differences of a running total rounded up: whole tokens that add up to the window's share.
        upto = torch.stack([before, before + by_frame.sizes]) * share[block]
        first, last = -(-upto // blocks.sizes[block])
        order = torch.arange(len(by_frame), device=block.device)
        turn = order - group(order, block).starts[block]
        before = torch.where(turn % 2 == 1, order - 1, -1)  # what changes, and what stands out, in turn
        other = counterparts(tokens, by_frame, before)
        return thinned_frames(tokens.features, by_frame, other, last - first, neighbours=self.neighbours)

    def _discard(self, retained: Tensor) -> Tensor:
        wanted = self.discard_intercept - self.discard_slope * retained
        return wanted.clamp(self.discard_min, self.discard_max)


def likeness_to_window(tokens: MediaTokens, rows: Tensor) -> Tensor:
    """Return the largest cosine (n,) float32 of the sound tokens ``rows`` (n,) to pictures of their own window.

    The last window before that has pictures, or else the first, stands in for one without. The clip must hold
    pictures, and ``rows`` must be ascending.

    Raises
    ------
    ModelError
        Embeddings are not finite.
    """
    x, blocks = tokens.features, windows(tokens, Modality.VIDEO)
    own = tokens.window[blocks.rows[blocks.starts]]
    block = (torch.searchsorted(own, tokens.window[rows], right=True) - 1).clamp_min(0)
    by_block = group(rows, block)
    block = block[by_block.starts]
    out = torch.zeros(rows.numel(), device=x.device)
    shapes = torch.stack([by_block.sizes, blocks.sizes[block]], 1)
    for n_rows, cells in torch.unique(shapes, dim=0).tolist():
        same = torch.nonzero((shapes == shapes.new_tensor([n_rows, cells])).all(1)).flatten()
        places = by_block.starts[same, None] + torch.arange(n_rows, device=x.device)
        shown = blocks.starts[block[same], None] + torch.arange(cells, device=x.device)
        for part in row_chunks(len(same), (n_rows + cells) * x.shape[1] + n_rows * cells, limit=FRAMES_BYTES):
            video = unit(x[blocks.rows[shown[part]]], EPS)
            cosine = unit(x[rows[places[part]]], EPS) @ video.transpose(1, 2)
            out[places[part]] = cosine.amax(2)
    finite(out)
    return out


__all__ = ["OmniZip", "likeness_to_window"]
