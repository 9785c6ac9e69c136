"""The seconds that an answer rests on: from attention to kept tokens to a few time ranges.

A range is where tokens of one modality got much of the attention of the answer's own rows in the LLM's middle layers
(`omnicli.utils.attention_recorder`). That tells where the model looked, not that it was right to. Knows tokens and
their times only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from omnicli.types import MediaTokens, Modality

BIN_S = 1.0
"""Attention is added up in steps of so many seconds."""
MOST = 5
"""Ranges told of, at most."""

_OF_TOP = 0.25  # a step belongs to a range if it has this share of the strongest step's attention ...
_OF_MEAN = 3.0  # ... and so many times the mean step's


def layers(depth: int) -> range:
    """Return the layers that are looked at: the middle third of an LLM of ``depth`` layers, at least one."""
    return range(depth // 3, max(depth // 3 + 1, 2 * depth // 3))


def ranges(tokens: MediaTokens, scores: Tensor) -> list[dict[str, Any]]:
    """Return time ranges with much attention, the strongest first, at most `MOST`.

    Parameters
    ----------
    tokens : MediaTokens
        Those that the LLM read (N).
    scores : Tensor (N,)
        Attention that each of them got.

    Returns
    -------
    list of dict
        ``start_s``, ``end_s`` (true seconds in the file), ``score`` (share of all attention to media that falls into
        the range, 0 to 1) and ``modality`` ("video" or "audio").
    """
    score = scores.double().cpu()
    total = float(score.sum())
    if total <= 0:
        return []
    start, end, modality = (x.cpu() for x in (tokens.start_s, tokens.end_s, tokens.modality))
    step = torch.floor(start / BIN_S).long()
    step -= int(step.min())
    seconds = int(step.max()) + 1
    shares = torch.zeros(2, seconds, dtype=torch.float64)
    shares.index_put_((modality.long(), step), score / total, accumulate=True)
    least = max(_OF_TOP * float(shares.max()), _OF_MEAN * float(shares.sum()) / seconds)
    found: list[dict[str, Any]] = []
    for kind in Modality:
        own = modality == kind
        for first, last in _runs(torch.nonzero(shares[kind] >= least).flatten().tolist()):
            inside = own & (step >= first) & (step <= last)
            found.append(
                {
                    "start_s": round(float(start[inside].min()), 3),
                    "end_s": round(float(end[inside].max()), 3),
                    "score": round(float(shares[kind, first : last + 1].sum()), 4),
                    "modality": kind.name.lower(),
                }
            )
    return sorted(found, key=lambda r: (-r["score"], r["start_s"]))[:MOST]


def _runs(steps: Sequence[int]) -> list[tuple[int, int]]:
    """Return (first, last) of consecutive steps; a single step between two of them does not part them."""
    out: list[tuple[int, int]] = []
    for step in steps:
        if out and step - out[-1][1] <= 2:
            out[-1] = (out[-1][0], step)
        else:
            out.append((step, step))
    return out
