"""MiniCPM-o's encoders: frames of any shape to 64 tokens each, 30-second pieces of sound to 10 tokens per second.

The layers are transformers' own (SigLIP, Whisper); the loops around them, the positions of pictures of any shape and
the resampler are ours. Both encoders also give what methods ask for. Knows neither the LLM nor files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from omnicli.models import layout
from omnicli.models.attention import received_attention
from omnicli.models.components.minicpm_o_weights import Parts, Settings
from omnicli.models.facts.minicpm_o import PIECE_S
from omnicli.models.mel import HOP, SAMPLE_RATE, WINDOW, LogMel, log_mel, normalise_log_mel
from omnicli.models.parts import KEYS, SALIENCY, AudioEncoder, EncodedAudio, EncodedVideo

PIECE = PIECE_S * SAMPLE_RATE
"""Samples of a piece of sound."""

_WAVELENGTH = 10_000.0  # of the slowest of the resampler's sinusoids, in patches over 2 pi


# ---- pictures ----


def patch_positions(rows: int, cols: int, side: int) -> Tensor:
    """Return which of ``side`` x ``side`` learnt positions each patch of a grid takes (rows * cols,) int64.

    A patch i of n is looked up at i / n of the way; borders belong to what follows them.
    """
    borders = torch.arange(1 / side, 1.0, 1 / side)
    row, col = (torch.bucketize(torch.arange(0, 1 - 1e-6, 1 / n), borders, right=True) for n in (rows, cols))
    return (row.view(-1, 1) * side + col).flatten()


def sinusoids(rows: int, cols: int, width: int) -> Tensor:
    """Return the resampler's positions (rows * cols, width) float32: half for the column, half for the row.

    Each half: sines, then cosines, of the coordinate at ``width / 4`` frequencies.
    """
    steps = torch.arange(width // 4, dtype=torch.float64) / (width // 4)
    angle = torch.arange(max(rows, cols), dtype=torch.float64).view(-1, 1) / _WAVELENGTH**steps
    line = torch.cat([angle.sin(), angle.cos()], 1).float()
    row, col = line[:rows].view(rows, 1, -1), line[:cols].view(1, cols, -1)
    return torch.cat([col.expand(rows, -1, -1), row.expand(-1, cols, -1)], 2).flatten(0, 1)


class VisionTower:
    """Frames to tokens. Frames never see each other, so any batching gives the same."""

    def __init__(self, parts: Parts, settings: Settings) -> None:
        self._vpm, self._resampler, self._settings = parts.vpm, parts.resampler, settings
        self._plan = lru_cache(maxsize=8)(self._make_plan)
        side = int(settings.queries**0.5)
        self.grid = (side, side) if side * side == settings.queries else (1, settings.queries)

    @torch.no_grad()
    def __call__(self, frames: Tensor, capture: frozenset[str]) -> EncodedVideo:
        """Encode uint8 frames (n, H, W, 3) on the weights' device.

        A query's saliency is that of the patches that it reads: attention received in the last layer of the picture
        encoder, weighted by the resampler's attention, mean 1 over a frame. Its key is the same mean of their keys.
        """
        vpm, settings = self._vpm, self._settings
        patch, n = settings.vision.patch_size, frames.shape[0]
        rows = layout.patchify(frames, settings.mean, settings.std, patch=patch, temporal=1, merge=1)
        learnt, fixed = self._plan(frames.shape[1] // patch, frames.shape[2] // patch)
        kernel = vpm.embeddings.patch_embedding
        # Stride equals kernel size: the convolution is a matrix product, and much faster as one.
        hidden = F.linear(rows.to(kernel.weight.dtype), kernel.weight.flatten(1), kernel.bias).view(n, len(learnt), -1)
        hidden = hidden + vpm.embeddings.position_embedding(learnt)
        *layers, last = vpm.encoder.layers
        for layer in layers:
            hidden = layer(hidden, None)
        received = keys = None
        if capture:
            attn, x = last.self_attn, last.layer_norm1(hidden)
            query, key = (
                m(x).view(n, len(learnt), attn.num_heads, -1).transpose(1, 2) for m in (attn.q_proj, attn.k_proj)
            )
            received = received_attention(query, key, attn.scale) if SALIENCY in capture else None
            keys = key.mean(1) if KEYS in capture else None
        hidden = vpm.post_layernorm(last(hidden, None))
        tokens, weights = self._resample(hidden, fixed, wanted=bool(capture))
        saliency = None
        if weights is not None and received is not None:
            saliency = torch.bmm(weights, received.unsqueeze(-1)).squeeze(-1)
            saliency = (saliency / saliency.mean(1, keepdim=True)).flatten()
        if weights is not None and keys is not None:
            keys = torch.bmm(weights.to(keys.dtype), keys).flatten(0, 1)
        return EncodedVideo(tokens.flatten(0, 1), n, *self.grid, saliency, keys)

    def _resample(self, hidden: Tensor, fixed: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
        """Return tokens (n, queries, D) of patches (n, p, d) and, if wanted, the attention (n, queries, p) to them."""
        own = self._resampler
        heads = own.attn.num_heads
        value = own.ln_kv(own.kv_proj(hidden))
        sources = (own.ln_q(own.query)[None], value + fixed, value)
        weights = zip(sources, own.attn.in_proj_weight.chunk(3), own.attn.in_proj_bias.chunk(3), strict=True)
        query, key, value = (F.linear(x, w, b).unflatten(-1, (heads, -1)).transpose(1, 2) for x, w, b in weights)
        mixed = F.scaled_dot_product_attention(query.expand(len(key), -1, -1, -1), key, value)
        tokens = own.ln_post(own.attn.out_proj(mixed.transpose(1, 2).flatten(2))) @ own.proj
        if not wanted:
            return tokens, None
        scale, total = query.shape[-1] ** -0.5, None
        for head in range(heads):  # all 32 heads at once are 135 MB for 16 frames
            part = torch.softmax(query[0, head].float() @ key[:, head].float().transpose(1, 2) * scale, -1)
            total = part if total is None else total + part
        return tokens, total / heads

    def _make_plan(self, rows: int, cols: int) -> tuple[Tensor, Tensor]:
        weight = self._resampler.proj
        side = int(self._vpm.embeddings.position_embedding.num_embeddings**0.5)
        fixed = sinusoids(rows, cols, weight.shape[0])
        return patch_positions(rows, cols, side).to(weight.device), fixed.to(weight)


# ---- sound ----


@dataclass(frozen=True)
class AudioTower:
    """Mel frames to tokens; a piece of at most 30 seconds at a time."""

    parts: Parts
    settings: Settings

    @torch.no_grad()
    def __call__(self, mel: Tensor, capture: frozenset[str]) -> list[EncodedAudio]:
        """Encode pieces of equal length (n, bands, k) of normalised mel frames that do not see each other.

        One-second blocks see themselves and everything before them in their piece. Saliency is the attention that a
        position receives in the last layer from those that see it, with every row weighted by how many positions it
        sees, so that even attention is 1 everywhere; mean 1 over a piece. Positions that fill no token are dropped.
        """
        tower, settings = self.parts.apm, self.settings
        hidden = F.gelu(tower.conv1(mel.to(tower.conv1.weight)))
        hidden = F.gelu(tower.conv2(hidden)).transpose(1, 2)
        length = hidden.shape[1]
        hidden = hidden + tower.embed_positions.weight[:length]
        block = torch.arange(length, device=hidden.device) // (settings.chunk or length)
        seen = block.view(-1, 1) >= block
        *layers, last = tower.layers
        for layer in layers:
            hidden = layer(hidden, seen[None, None])
        received = keys = None
        if capture:
            attn, x = last.self_attn, last.self_attn_layer_norm(hidden)
            query, key = (
                m(x).view(len(mel), length, attn.num_heads, -1).transpose(1, 2) for m in (attn.q_proj, attn.k_proj)
            )
            received = _received_causally(query, key, attn.scaling, seen) if SALIENCY in capture else None
            keys = key.mean(1) if KEYS in capture else None
        hidden = tower.layer_norm(last(hidden, seen[None, None]))
        features = self._pooled(self.parts.audio_projection_layer(hidden))
        if received is not None:
            received = self._pooled(received.unsqueeze(-1)).squeeze(-1)
            received = received / received.mean(1, keepdim=True)
        if keys is not None:
            keys = self._pooled(keys)
        return [
            EncodedAudio(x, *(None if y is None else y[i] for y in (received, keys))) for i, x in enumerate(features)
        ]

    def _pooled(self, x: Tensor) -> Tensor:
        """Return means (n, tokens, d) over the positions (n, length, d) of each token."""
        pool = self.settings.pool
        return x[:, : x.shape[1] // pool * pool].unflatten(1, (-1, pool)).mean(2)


def _received_causally(query: Tensor, key: Tensor, scale: float, seen: Tensor) -> Tensor:
    """Return the attention (n, length) float32 that positions receive from those that see them; even attention: 1."""
    count = seen.sum(1).float()
    out = torch.zeros(query.shape[0], query.shape[2], device=query.device)
    for head in range(query.shape[1]):
        scores = query[:, head].float() @ key[:, head].float().transpose(1, 2) * scale
        weights = torch.softmax(scores.masked_fill(~seen, -torch.inf), -1)
        out += (weights * count.view(-1, 1)).sum(1) / seen.sum(0)
    return out / query.shape[1]


class PieceEncoder(AudioEncoder):
    """A stream of samples, cut every 30 seconds; each piece has its own log-mel, maximum and attention.

    Parameters
    ----------
    encode : callable
        Mel of pieces of equal length (n, bands, k) to one `EncodedAudio` each.
    together : int
        Whole pieces per call.
    """

    def __init__(self, encode: Callable[[Tensor], list[EncodedAudio]], bands: int, together: int) -> None:
        self._encode, self._bands, self._together = encode, bands, together
        self._samples = np.zeros(0, np.float32)

    def feed(self, samples: np.ndarray) -> list[EncodedAudio]:
        """See `AudioEncoder.feed`."""
        self._samples = np.concatenate([self._samples, np.asarray(samples, np.float32)])
        pieces: list[EncodedAudio] = []
        while len(self._samples) >= self._together * PIECE:
            pieces += self._whole(self._together)
        return pieces

    def finish(self) -> list[EncodedAudio]:
        """See `AudioEncoder.finish`."""
        whole = len(self._samples) // PIECE
        pieces = self._whole(whole) if whole else []
        rest, self._samples = self._samples, self._samples[:0]
        if len(rest):
            pieces += self._encode(log_mel(rest, self._bands)[None])
        return [piece for piece in pieces if piece.features.shape[0]]

    def _whole(self, count: int) -> list[EncodedAudio]:
        part, self._samples = self._samples[: count * PIECE], self._samples[count * PIECE :]
        return self._encode(torch.stack([piece_mel(piece, self._bands) for piece in part.reshape(count, PIECE)]))


def piece_mel(samples: np.ndarray, bands: int) -> Tensor:
    """Return the normalised log-mel (bands, 3000) of a whole piece.

    Nothing is padded to its length, so its end is mirrored like its beginning; a shorter piece ends in zeros.
    """
    mirrored = samples[-2 : -2 - WINDOW // 2 : -1]
    frames = LogMel(bands).feed(np.concatenate([samples, mirrored]))[:, : len(samples) // HOP]
    return normalise_log_mel(frames, float(frames.max()))


__all__ = ["PIECE", "AudioTower", "PieceEncoder", "VisionTower", "patch_positions", "sinusoids"]
