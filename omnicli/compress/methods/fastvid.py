"""FastVID: a film is cut into segments of like frames; what each frame's encoder attends to stays, the rest is merged.

Source: FastVID (NeurIPS 2025, arXiv 2503.11187) with the settings that SEATS quotes (appendix B.2). Its released ports
differ from each other; taken here are the means of a frame's embeddings as frame features, the pooled attention of the
Qwen2.5-VL port, the parameters and budgets of the LLaVA-OneVision port, and the merge of the other two ports.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from omnicli.compress.base import everything
from omnicli.compress.budget import spread
from omnicli.compress.groups import best_in_groups, frames
from omnicli.compress.ops import finite
from omnicli.compress.published import Baseline, thinned
from omnicli.compress.released import fastvid as released
from omnicli.compress.segments import Layout, lay_out, merge_segments, peaks_in_frames, similarities
from omnicli.errors import ModelError
from omnicli.types import MediaTokens, Modality, Query, Selection
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


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

    def idle(self) -> dict[str, str]:
        """Return the fields that cannot act: of merging, and of segments, where nothing is merged."""
        found = super().idle()
        if self.context == 0 and (self.mode == "clean" or self.ignore is None):
            none = "context is 0, so nothing is merged"
            found |= dict.fromkeys(("anchor_step", "keep_weight", "merge"), none)
            if self.ignore is None:
                found |= dict.fromkeys(("segments", "threshold"), f"{none} by segments")
        elif self.keep_weight == 1:
            found["merge"] = "keep_weight is 1, so merged tokens stay as they are"
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
        n_kept = plan.audio
        if self.mode == "official":
            video, audio = self.ratios(tokens)
            n_kept = released.audio_tokens(audio, n_audio)
        kept_audio = thinned(tokens, n_kept)
        whole = n_video if self.mode == "clean" else 1
        if n_video == 0 or video >= whole:
            rows = tokens.indices(Modality.VIDEO)
            indices = torch.cat([rows, kept_audio]).sort().values
            return Selection(indices, report={"budget": {"video": n_video, "audio": kept_audio.numel()}})
        if tokens.saliency is None:
            raise ModelError(f"{self.name}: this model's encoders give no saliency")
        return self._select(tokens, tokens.saliency, video, kept_audio)

    def _select(self, tokens: MediaTokens, attention: Tensor, video: float, kept_audio: Tensor) -> Selection:
        by_frame = frames(tokens)
        saliency = attention[by_frame.rows].float()
        likeness = similarities(tokens.features, by_frame)
        finite(likeness), finite(saliency)
        layout = lay_out(likeness.cpu(), self.segments, self.threshold, self.anchor_step, self.ignore)
        sizes = by_frame.sizes.cpu()
        if self.mode == "clean":
            quotas = _exact(int(video), sizes, layout, self.context)
        else:
            by_segment = self.ignore is not None
            quotas = released.quotas(video, sizes, layout, self.context, by_segment=by_segment)
        device = by_frame.rows.device
        plain, peaks = (q.to(device) for q in quotas)

        salient = torch.zeros_like(saliency, dtype=torch.bool)
        salient[best_in_groups(saliency, by_frame, plain)] = True
        context = peaks_in_frames(tokens.features, by_frame, salient, peaks)
        kept = salient.clone()
        kept[context] = True
        indices = torch.cat([by_frame.rows[kept], kept_audio]).sort().values
        report = {
            "budget": {"video": int(kept.sum()), "audio": kept_audio.numel()},
            "segments": int(layout.segment[-1]) + 1,
            "merged": context.numel(),
        }
        if context.numel() == 0:
            return Selection(indices, report=report)
        merged = merge_segments(
            tokens.features,
            by_frame,
            layout.segment.to(device)[by_frame.index],
            ~salient,
            context,
            keep_weight=self.keep_weight,
            itself=self.merge == "parallel",
        )
        features = tokens.features[indices]
        features[torch.searchsorted(indices, by_frame.rows[context])] = merged
        return Selection(indices, features, report)


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


__all__ = ["FastVID"]
