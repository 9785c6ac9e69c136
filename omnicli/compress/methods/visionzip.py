"""VisionZip: the tokens the encoder attends to most, and a few more that stand for all the others.

Source: VisionZip (CVPR 2025) in the form that SEATS gives it (SEATS, appendix B.2): after the merger, per frame, 5 % of
a frame's tokens contextual, and for sound per window of time (2 s in SEATS; here a temporal block).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from omnicli.compress.base import everything
from omnicli.compress.budget import spread
from omnicli.compress.groups import Groups, best_in_groups, frames, stretches, windows
from omnicli.compress.ops import finite, row_chunks, unit
from omnicli.compress.published import Baseline, thinned
from omnicli.errors import ModelError
from omnicli.types import MediaTokens, Modality, Query, Selection
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

SAME = 1e-6
"""Cosines this near are equal: it is what fp32 products of equal keys differ by."""

_EPS = 1e-6
_MEMORY = 64 * 2**20  # bytes of similarities at once

Shares = tuple["Tensor", "Tensor"]
"""Dominant and contextual tokens of each group, both (G,) int64."""


@dataclass(frozen=True)
class VisionZip(Baseline):
    """Keep in every frame the tokens that receive most attention, and merge the rest into a few evenly spaced ones.

    The dominant tokens have the highest saliency. Of what is left every so-manieth token, counted from the first, is
    contextual; each other token goes to the contextual one whose encoder key is most similar to its own. A contextual
    token that got any is replaced by ``merge`` of itself and those, at its own place; the rest vanish.

    The official mode keeps ``trunc((r - contextual) n)`` dominant tokens of a group of n, at least 1 (none if r is at
    most ``contextual``), and ``round(contextual n)`` contextual ones, halves to even and at least 1; sound is cut into
    stretches of ``audio_window`` tokens. Not reproduced: scores and sums in bf16, whose ties fall anyhow, and the
    random thinning of sound where it should stay whole and the budget is too small for it (it is thinned evenly).

    Parameters
    ----------
    contextual : float
        Share of a group's tokens that are contextual, 0 to below 1; part of the budget. At least one token of a group
        is dominant in the clean mode, and at least one contextual where two or more are kept; 0: none.
    merge : str
        ``add``: a contextual token plus the mean of the tokens assigned to it, as released, which about doubles its
        length. ``mean``: the mean of all of them.
    audio_window : int
        Official mode: sound tokens per group. 50 in SEATS's code for all models; 2 s of Qwen3-Omni are 26.
    """

    contextual: float = 0.05
    merge: Literal["add", "mean"] = "add"
    audio_window: int = 50

    needs: ClassVar[frozenset[str]] = frozenset({"saliency", "keys"})
    criterion: ClassVar[str] = "attention received in the encoder; the rest merges into evenly spaced tokens"
    paper: ClassVar[str] = "VisionZip (CVPR 2025); for film and sound as in SEATS, appendix B.2"
    clean_differs: ClassVar[str] = (
        "Meets each modality's budget exactly, where two roundings per frame lose up to a token and a half, and groups "
        "by true time, where the released code cuts sound every 50 tokens whatever the model. Scores, similarities and "
        "sums are fp32 with ties to the earlier token."
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        found = super().problems()
        if not 0 <= self.contextual < 1:
            found.append(f"contextual: must be at least 0 and below 1, not {self.contextual:g}")
        if self.audio_window < 1:
            found.append(f"audio_window: must be at least 1, not {self.audio_window}")
        return found

    def idle(self) -> dict[str, str]:
        """Return the fields that cannot act: the official windows of sound, where sound is not chosen among in them."""
        found = super().idle()
        if self.mode != "official" or self.audio != "select":
            found["audio_window"] = "only mode official with audio select cuts sound into so many tokens"
        if self.contextual == 0:
            found["merge"] = "contextual is 0, so nothing is merged"
        return found

    def compress(self, tokens: MediaTokens, query: Query) -> Selection:
        """Choose and merge within every frame and, with ``audio: select``, within every window of sound.

        Raises
        ------
        ModelError
            The model captured no saliency or no keys, or its output is not finite.
        """
        n = tokens.count(Modality.AUDIO)
        by_frame = frames(tokens)
        if self.mode == "clean":
            plan = self.plan(tokens)
            if plan.total == len(tokens):
                return everything(tokens)
            audio_groups, left = windows(tokens, Modality.AUDIO), plan.audio
            shares = self._exact(by_frame, plan.video), self._exact(audio_groups, plan.audio)
        else:
            video, audio = self.ratios(tokens)
            audio_groups, left = stretches(tokens, Modality.AUDIO, self.audio_window), max(1, int(audio * n))
            shares = self._official(by_frame, video), self._official(audio_groups, audio)
        parts = [self._reduced(tokens, by_frame, *shares[0])]
        if self.audio == "select":
            parts.append(self._reduced(tokens, audio_groups, *shares[1]))
        else:
            kept = thinned(tokens, min(n, left))
            parts.append((kept, kept[:0], tokens.features[:0]))
        budget = {"video": parts[0][0].numel(), "audio": parts[1][0].numel()}
        indices = torch.cat([kept for kept, _, _ in parts]).sort().values
        changed = torch.cat([rows for _, rows, _ in parts])
        if changed.numel() == 0:
            return Selection(indices, report={"budget": budget})
        features = tokens.features[indices]
        features[torch.searchsorted(indices, changed)] = torch.cat([new for _, _, new in parts])
        return Selection(indices, features, report={"budget": budget})

    def _exact(self, groups: Groups, total: int) -> Shares:
        quota = spread(total, groups.sizes).to(groups.sizes.device)
        contextual = torch.minimum(self._wanted(groups.sizes), (quota - 1).clamp_min(0))
        contextual[quota >= groups.sizes] = 0  # nothing is left to be merged into them
        return quota - contextual, contextual

    def _official(self, groups: Groups, ratio: float) -> Shares:
        sizes, none = groups.sizes, torch.zeros_like(groups.sizes)
        if ratio >= 1 or ratio <= 0:
            return (sizes if ratio >= 1 else none), none
        # An int64 tensor times a Python number is fp32 in torch; the truncation sees that rounding.
        dominant = (sizes * (ratio - self.contextual)).long().clamp_min(1) if ratio > self.contextual else none
        return dominant, torch.minimum(self._wanted(sizes), sizes - dominant)

    def _wanted(self, sizes: Tensor) -> Tensor:
        if self.contextual == 0:
            return torch.zeros_like(sizes)
        return (sizes.double() * self.contextual).round().long().clamp_min(1)  # torch rounds halves to even

    def _reduced(
        self, tokens: MediaTokens, groups: Groups, dominant: Tensor, contextual: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the kept rows of ``tokens`` (k,), those of them that changed (c,), and their new features (c, D)."""
        if bool((dominant >= groups.sizes).all()):
            return groups.rows, groups.rows[:0], tokens.features[:0]
        score = self._captured("saliency", tokens.saliency, groups.rows).float()
        kept = torch.zeros(groups.rows.numel(), dtype=torch.bool, device=groups.rows.device)
        kept[best_in_groups(score, groups, dominant)] = True
        rest = torch.nonzero(~kept).flatten()
        group = groups.index[rest]
        left = groups.sizes - dominant
        place = torch.arange(rest.numel(), device=rest.device) - (left.cumsum(0) - left)[group]
        step = (left // contextual.clamp_min(1)).clamp_min(1)[group]
        is_target = (place % step == 0) & (place // step < contextual[group])
        target, other = rest[is_target], rest[~is_target & (contextual[group] > 0)]
        kept[target] = True
        rows = groups.rows
        if other.numel() == 0:
            return rows[kept], rows[:0], tokens.features[:0]
        keys = self._captured("keys", tokens.keys, rows)
        owner = _owners(keys, groups, contextual, target, other)
        changed, new = self._merged(tokens.features, rows[target], rows[other], owner)
        return rows[kept], changed, new

    def _captured(self, what: str, values: Tensor | None, rows: Tensor) -> Tensor:
        if values is None:
            raise ModelError(f"{self.name}: this model's encoders give no {what}")
        return finite(values[rows])

    def _merged(self, features: Tensor, target: Tensor, other: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows of targets that got any of ``other``, and what they become (c, D) in the features' dtype."""
        order = owner.argsort(stable=True)
        other, owner = other[order], owner[order]
        count = torch.bincount(owner, minlength=target.numel())
        got = torch.nonzero(count).flatten()
        owner = torch.searchsorted(got, owner)
        new = torch.zeros(got.numel(), features.shape[1], device=features.device)
        # Segments instead of index_add_, whose order of summing is not fixed on a GPU.
        for part in row_chunks(other.numel(), features.shape[1]):
            slots, lengths = torch.unique_consecutive(owner[part], return_counts=True)
            new[slots] += torch.segment_reduce(features[other[part]].float(), "sum", lengths=lengths, unsafe=True)
        number = count[got, None].float()
        if self.merge == "add":
            new = features[target[got]].float() + new / number
        else:
            new = (features[target[got]].float() + new) / (1 + number)
        return target[got], finite(new).to(features.dtype)


def _owners(keys: Tensor, groups: Groups, contextual: Tensor, target: Tensor, other: Tensor) -> Tensor:
    """Return for each place in ``other`` (m,) the index into ``target`` (t,) of the nearest of its group's targets.

    Nearest by the cosine of keys, in fp32; of those equal up to `SAME` the earlier. Both lists of places ascend.
    """
    first = contextual.cumsum(0) - contextual  # of each group's targets
    key = unit(keys, _EPS)
    owner = torch.empty_like(other)
    many = torch.bincount(groups.index[other], minlength=len(groups))
    begin = many.cumsum(0) - many
    for batch in _alike(many, contextual, key.shape[1]):
        m, t = many[batch, None], contextual[batch, None]
        column = torch.arange(int(t.max()), device=key.device)
        theirs = key[target[first[batch, None] + torch.minimum(column, t - 1)]].transpose(1, 2)
        for part in row_chunks(int(m.max()), len(batch) * (column.numel() + key.shape[1]), limit=_MEMORY):
            step = torch.arange(part.start, part.stop, device=key.device)
            at = begin[batch, None] + torch.minimum(step, m - 1)
            near = torch.bmm(key[other[at]], theirs)
            slot = (near >= near.amax(2, keepdim=True) - SAME).byte().argmax(2)
            inside = step < m
            owner[at[inside]] = (first[batch, None] + torch.minimum(slot, t - 1))[inside]
    return owner


def _alike(many: Tensor, contextual: Tensor, width: int) -> Iterator[Tensor]:
    """Yield groups (B,) that have others and whose numbers of them are near enough to be padded to the largest."""
    order = torch.nonzero(many).flatten()
    order = order[many[order].argsort(stable=True)]
    sizes, columns = many[order].tolist(), contextual[order].tolist()
    begin = 0
    for end in range(1, len(sizes) + 1):
        if end < len(sizes) and sizes[end] <= 1.25 * sizes[begin] + 8:
            continue
        row = (max(columns[begin:end]) + 1) * (sizes[end - 1] + width)
        for part in row_chunks(end - begin, row, limit=_MEMORY):
            yield order[begin:end][part]
        begin = end


__all__ = ["SAME", "VisionZip"]
