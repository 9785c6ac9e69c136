"""DivPrune: the tokens that lie farthest apart, chosen one by one within every frame.

Source: DivPrune (CVPR 2025) in the form that SEATS gives it (SEATS, appendix B.2): cosine distances between embeddings
in LLM space, per frame instead of over the whole picture span, and for sound per window of
time (2 s in SEATS; here a temporal block).

The greedy rule itself is in `omnicli.compress.max_min`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from omnicli.compress.base import everything
from omnicli.compress.budget import spread
from omnicli.compress.groups import Groups, frames, stretches, windows
from omnicli.compress.max_min import pick_in_groups
from omnicli.compress.published import Baseline, thinned
from omnicli.types import MediaTokens, Modality, Query, Selection
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DivPrune(Baseline):
    """Keep in every frame the tokens that differ most from one another.

    Each pick is the token whose nearest picked token is farthest in cosine distance; the first is the one with the
    farthest nearest neighbour. Nothing is merged and the question plays no part.

    The official mode rounds half to even in every frame (at least 1) and cuts sound into stretches of
    ``audio_window`` tokens. Not reproduced: the released code's choice over all frames at once, its picking the same
    token again where a frame holds duplicates, and the random thinning of sound in SEATS's code where sound should
    stay whole and the budget is too small for it (it is thinned evenly instead, to as many tokens).

    Parameters
    ----------
    audio_window : int
        Official mode: sound tokens per group. 50 are 2 s of Qwen2.5-Omni; 2 s of Qwen3-Omni are 26.
    """

    audio_window: int = 50

    criterion: ClassVar[str] = "distances between embeddings"
    paper: ClassVar[str] = "DivPrune (CVPR 2025); for film and sound as in SEATS, appendix B.2"
    clean_differs: ClassVar[str] = (
        "Meets each modality's budget exactly, where rounding per frame is off by up to half a token a frame, and "
        "groups by true time. Compares in fp32 and never picks a token twice, so duplicates cannot shrink the choice."
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        found = super().problems()
        if self.audio_window < 1:
            found.append(f"audio_window: must be at least 1, not {self.audio_window}")
        return found

    def idle(self) -> dict[str, str]:
        """Return the fields that cannot act: the official windows of sound, where sound is not chosen among in them."""
        found = super().idle()
        if self.mode != "official" or self.audio != "select":
            found["audio_window"] = "only mode official with audio select cuts sound into so many tokens"
        return found

    def compress(self, tokens: MediaTokens, query: Query) -> Selection:
        """Choose within every frame and, with ``audio: select``, within every window of sound.

        Raises
        ------
        ModelError
            Embeddings are not finite.
        """
        if self.mode == "official":
            kept = self._official(tokens)
        else:
            plan = self.plan(tokens)
            if plan.total == len(tokens):
                return everything(tokens)
            by_frame = frames(tokens)
            kept = [_chosen(tokens, by_frame, spread(plan.video, by_frame.sizes))]
            if self.audio == "select":
                audio_groups = windows(tokens, Modality.AUDIO)
                kept.append(_chosen(tokens, audio_groups, spread(plan.audio, audio_groups.sizes)))
            else:
                kept.append(thinned(tokens, plan.audio))
        budget = {"video": kept[0].numel(), "audio": kept[1].numel()}
        return Selection(torch.cat(kept).sort().values, report={"budget": budget})

    def _official(self, tokens: MediaTokens) -> list[Tensor]:
        video, audio = self.ratios(tokens)
        by_frame = frames(tokens)
        kept = [_chosen(tokens, by_frame, rounded(by_frame.sizes, video))]
        if self.audio == "select":
            audio_groups = stretches(tokens, Modality.AUDIO, self.audio_window)
            kept.append(_chosen(tokens, audio_groups, rounded(audio_groups.sizes, audio)))
        else:
            n = tokens.count(Modality.AUDIO)
            kept.append(thinned(tokens, min(n, max(1, int(audio * n)))))
        return kept


def rounded(sizes: Tensor, ratio: float) -> Tensor:
    """Return ``ratio`` of each size (G,), rounded half to even, at least 1 and at most all; 0 for a ratio of 0."""
    if ratio <= 0:
        return torch.zeros_like(sizes)
    share = (sizes.double() * ratio).round().long()  # torch rounds halves to even, as Python does
    return torch.minimum(share.clamp_min(1), sizes)


def _chosen(tokens: MediaTokens, groups: Groups, quota: Tensor) -> Tensor:
    """Return the ascending rows of ``tokens`` that `pick_in_groups` keeps."""
    return groups.rows[pick_in_groups(tokens.features, groups, quota, rows=groups.rows)]


__all__ = ["DivPrune", "rounded"]
