"""SEATS as its released code has it: windows by counting tokens, whatever runs survive, budgets repaired in a loop.

What `omnicli.compress.methods.seats` does with ``mode: official``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from omnicli.compress.base import MODALITIES
from omnicli.compress.groups import Groups, best, best_in_groups, frames, runs, stretches
from omnicli.types import MediaTokens, Modality
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

AUDIO_WINDOW = 50
"""Sound tokens of a window, whatever the model."""

TEMPERATURE = 0.1
"""Of the softmax over the windows' raw attention, in the paper and for Qwen2.5-Omni; for Qwen3-Omni it is 0.3."""


def entering_quotas(tokens: MediaTokens, ratios: tuple[float, float], encoder: float) -> list[tuple[Tensor, Groups]]:
    """Return per modality how many tokens of each window enter the LLM (stage I).

    ``ratios`` are the shares of video and audio that stay on average, ``encoder`` what enters relative to them.
    """
    pairs = frames(tokens)
    cells = int(pairs.sizes[0]) if len(pairs) else 1
    grouped = (stretches(tokens, Modality.VIDEO, 2 * cells), stretches(tokens, Modality.AUDIO, AUDIO_WINDOW))
    return [
        (torch.tensor([max(1, min(n, round(encoder * r * n))) for n in groups.sizes.tolist()]), groups)
        for r, groups in zip(ratios, grouped, strict=True)
    ]


def after_drop(media: MediaTokens, attention: Tensor, keep: float, temperature: float | None) -> Tensor:
    """Return the ascending indices (k,) of the tokens that stay after a layer that keeps the share ``keep`` (stage II).

    Parameters
    ----------
    media : MediaTokens
        Tokens still present; their runs are the windows.
    attention : Tensor (n,) float32
        What the prompt's last token pays to them.
    temperature : float or None
        None: `TEMPERATURE`.
    """
    targets = [max(1, round(keep * n)) if n else 0 for n in (media.count(kind) for kind, _ in MODALITIES)]
    groups = [runs(media, kind) for kind, _ in MODALITIES]
    scores = [attention[g.rows] for g in groups]
    count = max(len(g) for g in groups)
    if count < 2 or min(len(g) for g in groups) == 0:
        kept = [g.rows[best(s, t)] for g, s, t in zip(groups, scores, targets, strict=True)]
        return torch.cat(kept).sort().values
    sizes = [torch.nn.functional.pad(g.sizes.cpu(), (0, count - len(g))) for g in groups]
    weights = []
    for g, s, n in zip(groups, scores, sizes, strict=True):
        mean = torch.zeros(count).index_add_(0, g.index.cpu(), s.float().cpu()) / n.clamp_min(1)
        weights.append(torch.softmax(mean / (temperature or TEMPERATURE), 0))
    quotas = window_quotas(weights, sizes, targets)
    kept = [g.rows[best_in_groups(s, g, q[: len(g)])] for g, s, q in zip(groups, scores, quotas, strict=True)]
    return torch.cat(kept).sort().values


def window_quotas(weights: Sequence[Tensor], sizes: Sequence[Tensor], targets: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return picture and sound tokens of each window (T,), rounded, repaired and floored as the released code does.

    Parameters
    ----------
    weights : two of Tensor (T,)
        Relevance of each window by modality, each adding up to 1.
    sizes : two of Tensor (T,) int64
        Tokens of each modality in it.
    targets : two of int
        Tokens of each modality to keep; only their sum is enforced, and the floors may exceed it.
    """
    (w_v, w_a), (n_v, n_a), (video, audio) = weights, (sizes[0], sizes[1]), targets
    room = n_v + n_a
    shares = torch.minimum(room, ((w_v + w_a) / 2 * (video + audio)).round().long().clamp_min(1))
    shares = level_repair(shares, room, video + audio)
    part = w_v * video / (w_v * video + w_a * audio + 1e-12)
    v = torch.minimum(n_v, (shares * part).round().long())
    a = torch.minimum(n_a, shares - v)
    v = torch.minimum(n_v, shares - a)  # what is left over goes to pictures first, then to sound
    a = torch.minimum(n_a, shares - v)
    bare = (n_v > 0) & (v < 1)
    v = torch.where(bare, 1, v)
    a = torch.where(bare & (a > 1), torch.minimum(n_a, shares - v).clamp_min(1), a)
    bare = (n_a > 0) & (a < 1)
    a = torch.where(bare, 1, a)
    v = torch.where(bare & (v > 1), torch.minimum(n_v, shares - a).clamp_min(1), v)
    return v, a


def level_repair(shares: Tensor, sizes: Tensor, total: int) -> Tensor:
    """Bring whole ``shares`` (G,) to ``total`` as SEATS's released loop does one token at a time, in closed form.

    A surplus is taken from the largest share (the first of equal ones; shares of 1 stay), a lack is given to the
    smallest share that has room (the first of equal ones). Stops where nothing can move. (SEATS, section 4.2.2, where
    the paper hands out what is left in proportion to relevance)

    Returns
    -------
    Tensor (G,) int64
        On the CPU.
    """
    have, size = shares.to("cpu", torch.int64).clone(), sizes.to("cpu", torch.int64)
    excess = int(have.sum()) - total
    if excess > 0:  # cut to a level, then one more from the first at that level
        low = torch.minimum(have, torch.ones_like(have))
        level = _level(lambda x: int((have - have.clamp(max=x).maximum(low)).sum()) <= excess, 1, int(have.max()))
        cut = have.clamp(max=level).maximum(low)
        rest = excess - int((have - cut).sum())
        first = torch.nonzero((cut == level) & (cut > 1)).flatten()[:rest]
        cut[first] -= 1
        return cut
    lack = -excess
    if lack > 0:
        top = torch.maximum(size, have)
        grown = lambda x: have.maximum(top.clamp(max=x))  # noqa: E731
        high = int(top.max()) if top.numel() else 0
        level = high - _level(lambda x: int((grown(high - x) - have).sum()) <= lack, 0, high)
        out = grown(level)
        rest = lack - int((out - have).sum())
        first = torch.nonzero((out <= level) & (out < top)).flatten()
        out[first[out[first] == level][:rest]] += 1
        return out
    return have


def _level(fits: Callable[[int], bool], low: int, high: int) -> int:
    """Return the smallest x in low..high for which ``fits``, given that it holds from some x on."""
    while low < high:
        middle = (low + high) // 2
        if fits(middle):
            high = middle
        else:
            low = middle + 1
    return low


__all__ = ["after_drop", "entering_quotas", "level_repair", "window_quotas"]
