"""Random clips and questions for trying methods, laid out as models do: per block its frames, then its sound."""

from __future__ import annotations

import torch

from omnicli.types import MediaTokens, Query

ROWS, COLS = 3, 4


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
