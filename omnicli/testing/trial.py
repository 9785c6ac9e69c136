"""A model under trial: the noise it is given, what it makes of it, and how results are compared and told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnicli.llm.kv import KVCache
from omnicli.llm.prefill import prefill
from omnicli.models.base import OmniModel
from omnicli.models.parts import EncodedAudio, EncodedClip, EncodedVideo, ModelInput
from omnicli.types import MediaTokens

Stock = Callable[[ModelInput, MediaTokens], Tensor]
"""Logits (S, vocab) of everything read, by the family's stock LLM."""

QUESTION = "Who speaks last?"
FRAMES, SECONDS = 6, 5.3
RATE = 16_000
CLOSE = 1e-4
"""Largest difference between two ways to compute the same, relative to the largest value."""


class Trial:
    """A model with a clip of noise that points look at."""

    def __init__(self, model: OmniModel, stock: Stock | None = None) -> None:
        self.model, self.stock = model, stock

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels of its pictures."""
        unit = self.model.facts.pixel_unit
        return 4 * unit, 6 * unit

    def frames(self, n: int, seed: int = 0) -> Tensor:
        """Return noise (n, height, width, 3) uint8."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, 256, (n, *self.size, 3), dtype=torch.uint8, generator=generator)

    def samples(self, seconds: float) -> np.ndarray:
        """Return noise whose loudness changes by 40 dB from tenth to tenth of a second."""
        rng, n = np.random.default_rng(0), round(seconds * RATE)
        loud = 10.0 ** rng.uniform(-2, 0, n // 1600 + 1)
        return (rng.standard_normal(n) * np.repeat(loud, 1600)[:n]).astype(np.float32)

    def encode_video(self, n: int, batch: int, capture: frozenset[str] = frozenset()) -> list[EncodedVideo]:
        """Encode ``n`` frames in batches."""
        frames = self.frames(n)
        return [self.model.encode_video(frames[i : i + batch], capture) for i in range(0, n, batch)]

    def encode_audio(self, seconds: float, block: int, capture: frozenset[str] = frozenset()) -> list[EncodedAudio]:
        """Encode sound fed in blocks of so many samples."""
        samples = self.samples(seconds)
        blocks = [samples[i : i + block] for i in range(0, len(samples), block)]
        stream = self.model.audio_encoder(self.model.measure_log_mel_max(blocks), capture)
        return [piece for b in blocks for piece in stream.feed(b)] + stream.finish()

    def clip(self, start_s: float = 0.0, *, video: bool = True, audio: bool = True) -> EncodedClip:
        """Assemble `FRAMES` frames, one a second, and `SECONDS` of sound."""
        pictures = self.encode_video(FRAMES, self.model.video_batch) if video else []
        sound = self.encode_audio(SECONDS, 32_000) if audio else []
        times = start_s + np.arange(FRAMES if video else 0, dtype=np.float64)
        return self.model.assemble(pictures, times, sound, start_s=start_s, end_s=start_s + FRAMES)

    @cached_property
    def both(self) -> EncodedClip:
        """Pictures and sound."""
        return self.clip()

    @cached_property
    def given(self) -> ModelInput:
        """What the LLM reads of `both` and a question."""
        return self.model.sequence(self.model.prompt(QUESTION, video=True, audio=True), self.both)

    def read(self, chunk: int, behind: Sequence[int] = (), room: int = 0) -> tuple[Tensor, KVCache]:
        """Return the last logits after reading `given` and ids ``behind`` it in chunks, and the cache with ``room``."""
        m, given, ids = self.model, self.given, torch.tensor(behind, dtype=torch.int64, device=self.model.device)
        later = (given.next_position + torch.arange(len(ids), device=ids.device)).expand(m.position_axes, -1)
        embeds = torch.cat([given.embeds, m.embed(ids)]) if behind else given.embeds
        positions = torch.cat([given.position_ids, later.to(given.position_ids.dtype)], 1)
        size = len(embeds) + room
        cache = KVCache(m.depth, m.kv_heads, m.head_dim, dtype=m.dtype, device=m.device, capacity=size)
        span, media = given.media_span, self.both.tokens
        return prefill(m, embeds, positions, cache, media_span=span, media=media, chunk=chunk).logits, cache


def first(point: Callable[..., Any], run: Callable[[], Iterator[str]], new: Callable[[str], bool] = bool) -> list[str]:
    """Return the first ``new`` thing that a point finds, with the point's name; what it raises counts as found."""
    name = point.__name__.replace("_", " ")
    try:
        found = next((line for line in run() if new(line)), None)
    except (Exception, SystemExit) as error:  # a family that is not finished may raise anything
        line = told(error)
        found = line if new(line) else None
    return [] if found is None else [f"{name}: {found}"]


def told(error: BaseException) -> str:
    """Return an exception's class and message in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def joined(pieces: Iterable[EncodedVideo | EncodedAudio]) -> Tensor:
    """Return the features (n, D) of pieces, one after the other."""
    return torch.cat([piece.features for piece in pieces])


def close(a: Tensor, b: Tensor) -> bool:
    """Tell whether two results of one computation are equal but for rounding."""
    return a.shape == b.shape and bool((a - b).abs().max() <= CLOSE * b.abs().max())
