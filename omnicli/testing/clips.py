"""Random clips and questions for trying methods, laid out as models do: per block its frames, then its sound.

And how tokens and choices among them are copied, compared and checked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from omnicli.models.parts import KEYS, SALIENCIES
from omnicli.types import MediaTokens, Modality, Query, Selection

ROWS, COLS = 3, 4
CAPTURED = {"saliency": SALIENCIES, "keys": frozenset({KEYS})}
"""Fields of `MediaTokens` that are there only where a method's ``needs`` names one of these."""


def clip(
    blocks: int = 6,
    frames: int = 1,
    audio: int = 5,
    width: int = 16,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    rows: int = ROWS,
    cols: int = COLS,
) -> MediaTokens:
    """Return a clip of noise, with saliency and keys.

    Parameters
    ----------
    blocks : int
        Blocks of 2 s.
    frames, audio : int
        Frames (of ``rows`` x ``cols`` tokens) and sound tokens in each of them.
    width : int
        Of the features.
    seed : int
        Equal seeds give equal clips.
    dtype : torch.dtype
        Of features and keys.
    """
    modality, start, window, row, col = [], [], [], [], []
    for b in range(blocks):
        for p in range(frames):
            for cell in range(rows * cols):
                modality.append(0)
                start.append(2.0 * b + 2.0 * p / frames)
                window.append(b)
                row.append(cell // cols)
                col.append(cell % cols)
        for a in range(audio):
            modality.append(1)
            start.append(2.0 * b + 2.0 * a / audio)
            window.append(b)
            row.append(-1)
            col.append(-1)
    n = len(modality)
    generator = torch.Generator().manual_seed(seed)
    begin = torch.tensor(start, dtype=torch.float64)
    saliency = torch.rand(n, generator=generator) + 0.5
    return MediaTokens(
        features=torch.randn(n, width, generator=generator).to(dtype),
        modality=torch.tensor(modality, dtype=torch.int8),
        start_s=begin,
        end_s=begin + 0.4,
        window=torch.tensor(window, dtype=torch.int64),
        row=torch.tensor(row, dtype=torch.int32),
        col=torch.tensor(col, dtype=torch.int32),
        position_ids=torch.arange(n).repeat(3, 1),
        saliency=saliency,
        keys=torch.randn(n, 8, generator=generator).to(dtype),
    )


def query(width: int = 16, tokens: int = 7, *, seed: int = 1, dtype: torch.dtype = torch.float32) -> Query:
    """Return a question of ``tokens`` random embeddings."""
    generator = torch.Generator().manual_seed(seed)
    return Query(torch.randn(tokens, width, generator=generator).to(dtype), "Who speaks last?")


def question(tokens: MediaTokens) -> Query:
    """Return a question for a clip."""
    return query(tokens.features.shape[1], dtype=tokens.features.dtype)


def stripped(tokens: MediaTokens, names: Iterable[str]) -> MediaTokens:
    """Return tokens without the fields of these names."""
    return dataclasses.replace(tokens, **dict.fromkeys(names))  # type: ignore[arg-type]


def copied(tokens: MediaTokens) -> MediaTokens:
    """Return tokens with tensors of their own."""
    return tokens.select(Selection(torch.arange(len(tokens))))


def counted(tokens: MediaTokens) -> tuple[int, int]:
    """Return the number of video and of audio tokens."""
    return tokens.count(Modality.VIDEO), tokens.count(Modality.AUDIO)


def differing(a: MediaTokens, b: MediaTokens) -> str | None:
    """Return the first field in which tokens differ by a bit, or None."""
    for f in dataclasses.fields(MediaTokens):
        one, other = getattr(a, f.name), getattr(b, f.name)
        if (one is None) != (other is None):
            return f.name
        if one is not None and (one.dtype != other.dtype or not torch.equal(one, other)):
            return f.name
    return None


def shared(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors lie in the same memory."""
    return bool(a.numel() and b.numel()) and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def check(indices: Any, n: int, what: str) -> None:
    """Raise `TypeError` or `ValueError` unless these are ascending, unique indices into ``n`` tokens."""
    if not isinstance(indices, Tensor):
        raise TypeError(f"{what} gives {type(indices).__name__}, not indices (k,) torch.int64")
    if indices.dtype != torch.int64 or indices.ndim != 1:
        raise ValueError(f"{what} gives indices {tuple(indices.shape)} {indices.dtype}, not (k,) torch.int64")
    if indices.numel() and not (int(indices.min()) >= 0 and int(indices.max()) < n):
        raise ValueError(f"{what} gives indices outside 0 to {n - 1}")
    if not bool((indices[1:] > indices[:-1]).all()):
        raise ValueError(f"{what} gives indices that are not ascending, or one twice")
