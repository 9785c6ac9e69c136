"""CDPruner: picture tokens that differ from one another and point where the question points.

Source: CDPruner as OpenVINO GenAI ships it, there for images and films without sound: a determinantal point process
whose kernel is the cosine of two tokens, weighted by how much both are like the question; its greedy solution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from omnicli.compress import budget
from omnicli.compress.base import everything
from omnicli.compress.dpp import Factor, diverse_in_groups, exponential, likeness, mixed, scaled
from omnicli.compress.groups import Groups, frames, group, windows
from omnicli.compress.ops import SAME
from omnicli.compress.published import Baseline, thinned
from omnicli.types import MediaTokens, Modality, Query, Selection
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class CDPruner(Baseline):
    """Keep in every window of time the tokens that are diverse and like the question.

    A token's relevance is its cosine to the mean of the question's tokens, scaled to 0 to 1. Each pick adds most to the
    determinant of the kernel of those picked. Once they span a window, the rest of its share goes by relevance.

    ``official`` prunes every frame (temporal patch) by itself, in two halves of its tokens with a scale and a choice
    each; the share pruned is a whole percent, a frame's number rounds halves up, and at least one token of a frame
    stays. Not reproduced: the text vector is the mean of the question's tokens alone, where the release takes the whole
    prompt, system text and template included, which no method sees here; its positions; and its path for OpenCL, which
    rounds numbers up to even.

    Parameters
    ----------
    relevance : float
        Weight of relevance in the kernel, 0 (diversity alone) to 1.
    kernel : str
        ``mixed``: cosine times ``1 - w + w r_i r_j``, the release's usual path; ``exponential``: times
        ``exp(a (r_i + r_j))`` with ``a = w / (2 - 2 w)``, its path for devices on which that fails.
    spread : str
        Clean mode, how the budget is shared among windows: ``even``: by size; ``relevance``: by size and the mean
        relevance of their tokens.
    """

    relevance: float = 0.5
    kernel: Literal["mixed", "exponential"] = "mixed"
    spread: Literal["even", "relevance"] = "even"

    criterion: ClassVar[str] = "diversity of embeddings, weighted by likeness to the question"
    uses_question: ClassVar[bool] = True
    paper: ClassVar[str] = "CDPruner; the code of OpenVINO GenAI"
    clean_differs: ClassVar[str] = (
        "Meets the budget exactly, in windows of true time that are not cut in halves, with one scale of relevance for "
        "the whole film, so that a window without anything relevant says so. Relevance is to the question's own "
        "tokens. Where the picks span a window, as in black frames, relevance decides instead of rounding errors."
    )

    def idle(self) -> dict[str, str]:
        """Return the fields that cannot act: shares of windows where there are none, a kernel without its relevance."""
        found = super().idle()
        if self.mode == "official":
            found["spread"] = "the released code keeps the same share of every frame"
        if self.relevance == 0:
            found["kernel"] = "relevance is 0, so all kernels are the cosines alone"
        return found

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        found = super().problems()
        if not 0 <= self.relevance <= 1:
            found.append(f"relevance: must be between 0 and 1, not {self.relevance:g}")
        return found

    def compress(self, tokens: MediaTokens, query: Query) -> Selection:
        """Choose within every window and, with ``audio: select``, within every window of sound.

        Raises
        ------
        ModelError
            Embeddings are not finite.
        """
        plan = self.plan(tokens)
        if plan.total == len(tokens):
            return everything(tokens)
        sound = self.audio == "select"
        if self.mode == "official":
            share_video, share_audio = self.told(tokens)
            kept = [self._official(tokens, query, frames(tokens), share_video)]
            n_audio = tokens.count(Modality.AUDIO)
            k_audio = min(n_audio, max(int(share_audio > 0), int(share_audio * n_audio)))
            if sound:
                kept.append(self._official(tokens, query, windows(tokens, Modality.AUDIO), share_audio))
        else:
            kept = [self._chosen(tokens, query, windows(tokens, Modality.VIDEO), plan.video)]
            k_audio = plan.audio
            if sound:
                kept.append(self._chosen(tokens, query, windows(tokens, Modality.AUDIO), plan.audio))
        if not sound:
            kept.append(thinned(tokens, k_audio))
        counts = {"video": kept[0].numel(), "audio": kept[1].numel()}
        return Selection(torch.cat(kept).sort().values, report={"budget": counts})

    def _chosen(self, tokens: MediaTokens, query: Query, groups: Groups, total: int) -> Tensor:
        """Return the ascending rows of ``total`` tokens of the windows ``groups``."""
        if total in (0, groups.rows.numel()):
            return groups.rows[:total]
        like = likeness(tokens.features, groups.rows, query.embeddings)
        relevance = scaled(like, group(groups.rows, torch.zeros_like(groups.rows)), flat=SAME)
        weights = None
        if self.spread == "relevance":
            weights = torch.zeros(len(groups), dtype=torch.float64, device=like.device)
            weights.index_add_(0, groups.index, relevance.double())  # the mean times the size
        quota = budget.spread(total, groups.sizes, weights).tolist()
        return groups.rows[diverse_in_groups(tokens.features, groups, quota, relevance, self._factor())]

    def _official(self, tokens: MediaTokens, query: Query, regions: Groups, share: float) -> Tensor:
        """Return the ascending rows that the release keeps of each region, in two halves."""
        pruned = round(100 * (1 - share))
        if pruned < 1 or share <= 0:
            return regions.rows if share > 0 else regions.rows[:0]
        place = torch.arange(regions.rows.numel(), device=regions.rows.device) - regions.starts[regions.index]
        late = place >= (regions.sizes // 2)[regions.index]
        halves = group(regions.rows, 2 * regions.index + late)
        first, second = regions.index[halves.starts].tolist(), late[halves.starts].tolist()
        sizes = regions.sizes.tolist()
        wanted = [max(1, released_count(sizes[region], min(99, pruned))) for region in first]
        quota = [n - n // 2 if rear else n // 2 for n, rear in zip(wanted, second, strict=True)]
        like = likeness(tokens.features, halves.rows, query.embeddings)
        relevance = scaled(like, halves)
        return halves.rows[diverse_in_groups(tokens.features, halves, quota, relevance, self._factor(), released=True)]

    def _factor(self) -> Factor:
        return (mixed if self.kernel == "mixed" else exponential)(self.relevance)


def released_count(n: int, pruned: int) -> int:
    """Return how many of a region's ``n`` tokens stay when ``pruned`` percent go; halves round up."""
    return math.floor(n * (1 - pruned / 100) + 0.5)


__all__ = ["CDPruner", "released_count"]
