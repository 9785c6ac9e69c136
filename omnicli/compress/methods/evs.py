"""EVS, Efficient Video Sampling: picture tokens that look as the same cell did one grid earlier go first.

Source: EVS (arXiv 2510.14624) as vLLM and SGLang ship it, alike. Each picture token is compared with its cell in the
temporal patch before it, and the least changed of the whole film go; the first patch has nothing before it and counts
as changed most. A cell is compared with what it was one patch ago, kept or not, so that a slow fade may vanish.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from omnicli.compress.base import everything
from omnicli.compress.groups import best, counterparts, frames
from omnicli.compress.methods.uniform import evenly_spaced
from omnicli.compress.ops import distances, finite, row_chunks
from omnicli.compress.published import Baseline, thinned
from omnicli.types import MediaTokens, Modality, Query, Selection
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

NEW = 255.0
"""Change of a token that has nothing before it; a cosine distance is at most 2."""


@dataclass(frozen=True)
class EVS(Baseline):
    """Keep the picture cells that changed most against the frame before, over the whole film at once.

    A frame (temporal patch) whose cells are others than those of the frame before, as behind a cut between files, is
    new as a whole. Where the budget does not cover all new cells, they are thinned evenly in time and space. With
    ``audio: select`` a sound token is compared with the one before it, which is ours: the servers leave sound alone.

    ``official`` computes cosines in the model's dtype, in bf16 with many ties, and keeps the first frame whole, even
    where that is more than the budget. Its number of picture tokens is ``trunc(n (1 - q))`` with ``q`` 1 less the share
    to keep, in float64: a share of 0.1 keeps 9 of 100. Not reproduced: the positions that vLLM gives to the text behind
    a film of Qwen2.5-VL, which begins inside the film's time.

    Parameters
    ----------
    refresh_s : float or None
        Clean mode: the first frame of every so many true seconds counts as new, above 0; None: off.
    """

    refresh_s: float | None = None

    criterion: ClassVar[str] = "change against the frame before, cell by cell, over the whole film"
    paper: ClassVar[str] = "EVS, arXiv 2510.14624; the code that vLLM and SGLang ship"
    clean_differs: ClassVar[str] = (
        "Meets the budget exactly, where the servers' float arithmetic loses a token at round shares and their whole "
        "first frame overshoots small ones: there it is thinned evenly in space. Compares in fp32, so that ties are "
        "those of equal tokens and not those of bf16."
    )

    def idle(self) -> dict[str, str]:
        """Return the fields that cannot act: the released code never refreshes."""
        found = super().idle()
        return found | {"refresh_s": "the released code has no refresh"} if self.mode == "official" else found

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        found = super().problems()
        if self.refresh_s is not None and not (self.refresh_s > 0 and math.isfinite(self.refresh_s)):
            found.append(f"refresh_s: must be above 0, not {self.refresh_s:g}")
        return found

    def compress(self, tokens: MediaTokens, query: Query) -> Selection:
        """Choose by change; the question plays no part.

        Raises
        ------
        ModelError
            Embeddings are not finite.
        """
        plan = self.plan(tokens)
        if plan.total == len(tokens):
            return everything(tokens)
        n_audio = tokens.count(Modality.AUDIO)
        video, other = self._before(tokens)
        audio = tokens.indices(Modality.AUDIO)
        earlier = torch.arange(n_audio, device=audio.device) - 1
        if self.mode == "official":
            share_video, share_audio = self.told(tokens)
            k_video = released_count(video.numel(), _first_frame(tokens), share_video)
            k_audio = released_count(n_audio, min(1, n_audio), share_audio)
        else:
            k_video, k_audio = plan.video, plan.audio
        kept = [self._chosen(tokens, video, other, k_video)]
        if self.audio == "select":
            kept.append(self._chosen(tokens, audio, earlier, k_audio))
        else:
            kept.append(thinned(tokens, k_audio))
        budget = {"video": kept[0].numel(), "audio": kept[1].numel()}
        return Selection(torch.cat(kept).sort().values, report={"budget": budget})

    def _before(self, tokens: MediaTokens) -> tuple[Tensor, Tensor]:
        """Return the picture tokens' rows (n,) and the place of each one's cell in the frame before (n,); -1: none."""
        by_frame = frames(tokens)
        before = torch.arange(len(by_frame), device=by_frame.rows.device) - 1
        if self.refresh_s is not None and self.mode == "clean" and len(by_frame):
            start = tokens.start_s[by_frame.rows[by_frame.starts]]
            period = ((start - start[0]) / self.refresh_s + 1e-9).floor()
            before[1:][period[1:] != period[:-1]] = -1
        return by_frame.rows, counterparts(tokens, by_frame, before)

    def _chosen(self, tokens: MediaTokens, rows: Tensor, other: Tensor, k: int) -> Tensor:
        """Return ``k`` of ``rows`` (n,): those that changed most against their ``other`` (n,), a place; -1: new."""
        if k >= rows.numel():
            return rows
        new = torch.nonzero(other < 0).flatten()
        if self.mode == "clean" and new.numel() > k:
            at = rows[new]
            return at[evenly_spaced(tokens.start_s[at], tokens.row[at], tokens.col[at], k)]
        known = torch.nonzero(other >= 0).flatten()
        change = torch.full((rows.numel(),), NEW, device=rows.device)
        compare = distances if self.mode == "clean" else _in_model_dtype
        change[known] = compare(tokens.features, rows[known], rows[other[known]]).float()
        return rows[best(change, k)]


def _first_frame(tokens: MediaTokens) -> int:
    sizes = frames(tokens).sizes
    return int(sizes[0]) if sizes.numel() else 0


def released_count(n: int, first: int, share: float) -> int:
    """Return how many of ``n`` tokens the servers keep when told to prune 1 - ``share``, of which ``first`` are new.

    Their share pruned is below 1; a share of 0 keeps nothing here.
    """
    if share <= 0:
        return 0
    pruned = 1 - share
    return min(n, max(first, int(n * (1 - pruned))))


def _in_model_dtype(features: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return 1 - cosine (n,) of the rows ``first`` and ``second`` in the dtype of ``features``."""
    out = torch.empty(first.numel(), dtype=features.dtype, device=features.device)
    for part in row_chunks(first.numel(), features.shape[1]):
        out[part] = 1 - torch.nn.functional.cosine_similarity(features[first[part]], features[second[part]], dim=-1)
    return finite(out)


__all__ = ["EVS", "NEW", "released_count"]
