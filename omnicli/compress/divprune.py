"""DivPrune: the tokens that lie farthest apart, chosen one by one within every frame.

Source: DivPrune (CVPR 2025) in the form that SEATS gives it (SEATS, appendix B.2): cosine distances between embeddings
in LLM space, per frame instead of over the whole picture span, and for sound per 2-second window.

The greedy rule is a function of its own, with an optional weight per candidate, because SEATS's first stage is the same
rule weighted by saliency.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from omnicli.compress.base import everything
from omnicli.compress.budget import spread
from omnicli.compress.groups import Groups, frames, stretches, windows
from omnicli.compress.ops import row_chunks, unit
from omnicli.compress.published import Baseline, thinned
from omnicli.errors import ModelError
from omnicli.types import MediaTokens, Modality, Query, Selection

SAME = 2e-6
"""Cosine distances below this are 0: it is what fp32 products of equal rows differ by, and would rank duplicates."""

MEMORY = 128 * 2**20
"""Bytes of distances at once. A group that needs more is walked without its matrix."""

_GRAM = 16 * 2**20  # bytes of fp32 rows that one product reads
_EPS = 1e-8


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

    selects_by: ClassVar[str] = "distances between embeddings"
    paper: ClassVar[str] = "DivPrune (CVPR 2025); for film and sound as in SEATS, appendix B.2"
    adds: ClassVar[str] = (
        "Meets each modality's budget exactly, where rounding per frame is off by up to half a token a frame, and "
        "groups by true time. Compares in fp32 and never picks a token twice, so duplicates cannot shrink the choice."
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        found = super().problems()
        if self.audio_window < 1:
            found.append(f"audio_window: must be at least 1, not {self.audio_window}")
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
            pictures = frames(tokens)
            kept = [_chosen(tokens, pictures, spread(plan.video, pictures.sizes))]
            if self.audio == "select":
                sound = windows(tokens, Modality.AUDIO)
                kept.append(_chosen(tokens, sound, spread(plan.audio, sound.sizes)))
            else:
                kept.append(thinned(tokens, plan.audio))
        budget = {"video": kept[0].numel(), "audio": kept[1].numel()}
        return Selection(torch.cat(kept).sort().values, report={"budget": budget})

    def _official(self, tokens: MediaTokens) -> list[Tensor]:
        video, audio = self.ratios(tokens)
        pictures = frames(tokens)
        kept = [_chosen(tokens, pictures, rounded(pictures.sizes, video))]
        if self.audio == "select":
            sound = stretches(tokens, Modality.AUDIO, self.audio_window)
            kept.append(_chosen(tokens, sound, rounded(sound.sizes, audio)))
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


def max_min_picks(features: Tensor, k: int, weight: Tensor | None = None) -> Tensor:
    """Return ``k`` rows of every group that lie far apart: greedy max-min of weighted cosine distances.

    The first pick has the largest weighted distance to its nearest neighbour. Every further one maximises its weight
    times the distance ``1 - cos`` to its nearest pick. Of equal scores the lower index is picked, and nothing twice.
    (DivPrune, section 3; the weight: SEATS, section 4.1)

    Parameters
    ----------
    features : Tensor (B, n, D)
        Rows of any float dtype, compared in fp32. 1e-8 is added to lengths, so a row of zeros is at distance 1 from
        all; distances up to `SAME` count as 0.
    k : int
        Picks of every group; n or more mean all rows.
    weight : Tensor (B, n) or None
        Not negative; None: 1 everywhere.

    Returns
    -------
    Tensor (B, k) int64
        Ascending.

    Raises
    ------
    ModelError
        A row or a weight is not finite.
    """
    many, n, width = features.shape
    k = max(0, min(k, n))
    if k in (0, n):
        return torch.arange(k, device=features.device).expand(many, k).clone()
    flat = features.reshape(many * n, width)
    at = torch.arange(many * n, device=features.device).view(many, n)
    weight = None if weight is None else _checked(weight)
    parts = [
        _picks(flat, at[part], k, None if weight is None else weight[part])
        for part in row_chunks(many, n * n, limit=MEMORY)
    ]
    return torch.cat(parts).sort(1).values if parts else at.new_zeros(0, k)


def pick_in_groups(
    features: Tensor, groups: Groups, quota: Tensor, weight: Tensor | None = None, *, rows: Tensor | None = None
) -> Tensor:
    """Return the ascending places that `max_min_picks` keeps in each group, many groups at once.

    Greedy picks for a small quota are the first of those for a larger one, so groups need not share their quota; groups
    of nearly equal size are padded to a common one where that saves small batches.

    Parameters
    ----------
    features : Tensor (n, D)
        One row per place of ``groups``, or with ``rows`` any rows (N, D).
    groups : Groups
        The groups.
    quota : Tensor (G,) int64
        Picks of each group. 0: none; its size or more: all.
    weight : Tensor (n,) or None
        Weight of each place, not negative.
    rows : Tensor (n,) int64 or None
        Where each place's row lies in ``features``; saves the caller a copy.

    Returns
    -------
    Tensor (k,) int64
        Places: indices into ``groups.rows``.

    Raises
    ------
    ModelError
        A row or a weight is not finite.
    """
    sizes, starts = groups.sizes, groups.starts
    quota = torch.minimum(quota.to(sizes.device).clamp_min(0), sizes)
    keep = (quota >= sizes).repeat_interleave(sizes)
    weight = None if weight is None else _checked(weight)
    for batch in _batches(sizes, (quota > 0) & (quota < sizes)):
        size, wanted = sizes[batch], quota[batch]
        step = torch.arange(int(size.max()), device=sizes.device)
        padding = step >= size[:, None]
        places = starts[batch, None] + torch.minimum(step, size[:, None] - 1)
        order = _picks(
            features,
            places if rows is None else rows[places],
            int(wanted.max()),
            None if weight is None else weight[places],
            padding if bool(padding.any()) else None,
        )
        keep[places.gather(1, order)[step[: order.shape[1]] < wanted[:, None]]] = True
    return torch.nonzero(keep).flatten()


def _batches(sizes: Tensor, wanted: Tensor) -> Iterator[Tensor]:
    """Yield groups (B,) of nearly equal size whose distances fit in `MEMORY`."""
    open_ = torch.nonzero(wanted).flatten()
    open_ = open_[sizes[open_].argsort(stable=True)]
    begin, known = 0, sizes[open_].tolist()
    for end in range(1, len(known) + 1):
        # Padding costs work with the square of the size, a batch costs a few launches per pick.
        near = end < len(known) and (
            known[end] == known[end - 1] or (end - begin < 16 and known[end] <= 1.125 * known[begin])
        )
        if not near:
            for part in row_chunks(end - begin, known[end - 1] ** 2, limit=MEMORY):
                yield open_[begin:end][part]
            begin = end


def _picks(features: Tensor, at: Tensor, k: int, weights: Tensor | None, padding: Tensor | None = None) -> Tensor:
    """Return the first ``k`` picks (B, k) of every group in the order of picking, as columns of ``at``.

    Parameters
    ----------
    features : Tensor (N, D)
        Rows.
    at : Tensor (B, n) int64
        Where each group's rows lie.
    weights, padding : Tensor (B, n) or None
        Weights; columns that are no tokens. A group with fewer tokens than ``k`` has nothing sensible behind them.
    """
    many, n = at.shape
    features, weights = features.detach(), None if weights is None else weights.detach().float()
    if n * n * 4 > MEMORY:
        singles = [_long(features, at[b], k, None if weights is None else weights[b]) for b in range(many)]
        return torch.stack(singles)
    distance = torch.empty(many, n, n, device=features.device)
    for part in row_chunks(many, n * features.shape[1], limit=_GRAM):
        _distances(features[at[part]].float(), distance[part])
    distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    if padding is not None:
        distance.masked_fill_(padding[:, :, None], torch.inf)
    score = distance.amin(1)
    if weights is not None:
        score *= weights
    if padding is not None:
        score.masked_fill_(padding, -torch.inf)
    group = torch.arange(many, device=at.device)
    order = torch.empty(many, k, dtype=torch.int64, device=at.device)
    for turn in range(k):
        pick = score.argmax(1)  # the first of equal ones
        order[:, turn] = pick
        near = distance[group, pick]
        if weights is not None:
            near *= weights
        if turn > 0:
            torch.minimum(score, near, out=score)
        else:
            score = near if padding is None else near.masked_fill_(padding, -torch.inf)
        score.scatter_(1, pick[:, None], -torch.inf)
    return order


def _distances(rows: Tensor, out: Tensor) -> None:
    """Write cosine distances (B, n, n) of fp32 ``rows`` (B, n, D)."""
    torch.bmm(rows, rows.transpose(1, 2), out=out)
    length = out.diagonal(dim1=1, dim2=2).sqrt()
    if not bool(torch.isfinite(length).all()):
        raise ModelError(_BROKEN)
    scale = 1 / (length + _EPS)
    out.mul_(scale[:, :, None]).mul_(scale[:, None, :]).neg_().add_(1)
    torch.threshold_(out, SAME, 0.0)


def _long(features: Tensor, at: Tensor, k: int, weight: Tensor | None) -> Tensor:
    """Return the picks (k,) of one group in order, with a running minimum instead of the matrix.

    A score only ever falls. So a few tokens with the highest scores can be played among themselves, exactly, until the
    best of them falls to what the best token left out had before; then all scores are brought up to date at once.
    """
    n = at.numel()
    x = torch.empty(n, features.shape[1], device=features.device)
    for part in row_chunks(n, features.shape[1], limit=_GRAM):
        x[part] = unit(features[at[part]], _EPS)
    if not bool(torch.isfinite(x.sum())):
        raise ModelError(_BROKEN)
    nearest = torch.full((n,), torch.inf, device=x.device)
    for part in row_chunks(n, n, limit=MEMORY // 4):
        # The matrix is symmetric: what this part's rows say about later columns they need not be told again.
        block = _between(x[part], x[part.start :])
        block.diagonal().fill_(torch.inf)
        nearest[part] = torch.minimum(nearest[part], block.amin(1))
        nearest[part.start :] = torch.minimum(nearest[part.start :], block.amin(0))
    factor = torch.ones_like(nearest) if weight is None else weight
    first = (nearest * factor).argmax()
    order = [first[None]]
    score = torch.full((n,), torch.inf, device=x.device)
    found, few = 1, 32
    fresh = order[0]
    while found < k:
        for part in row_chunks(n, fresh.numel(), limit=MEMORY // 4):
            near = _between(x[part], x[fresh]).amin(1) * factor[part]
            score[part] = torch.minimum(score[part], near)
        score[fresh] = -torch.inf
        ranked = score.argsort(descending=True, stable=True)
        if float(score[ranked[0]]) <= 0:  # nothing left but duplicates: the lower index first
            order.append(ranked[: k - found])
            break
        best = ranked[:few].sort().values
        bound = float(score[ranked[few]]) if few < n else -torch.inf
        fresh = best[_play(_between(x[best], x[best]), score[best], factor[best], bound, k - found)]
        order.append(fresh)
        found += fresh.numel()
        few = min(1024, 2 * few) if 2 * fresh.numel() > few else max(16, few // 2)
    return torch.cat(order)[:k]


def _play(distance: Tensor, score: Tensor, weight: Tensor, bound: float, k: int) -> Tensor:
    """Return at most ``k`` picks, the first in any case, the others while their scores stay above ``bound``."""
    picked: list[int] = []
    while len(picked) < min(k, score.numel()):
        top = int(score.argmax())
        if picked and not float(score[top]) > bound:
            break
        picked.append(top)
        score = torch.minimum(score, distance[top] * weight)
        score[top] = -torch.inf
    return torch.tensor(picked, device=score.device)


def _between(a: Tensor, b: Tensor) -> Tensor:
    """Return cosine distances (m, n) of unit rows."""
    return torch.threshold_((a @ b.T).neg_().add_(1), SAME, 0.0)


_BROKEN = "the encoders' output is not finite; try --dtype float32 or bfloat16"


def _checked(weight: Tensor) -> Tensor:
    if not bool(torch.isfinite(weight).all()):
        raise ModelError(_BROKEN)
    return weight


__all__ = ["MEMORY", "SAME", "DivPrune", "max_min_picks", "pick_in_groups", "rounded"]
