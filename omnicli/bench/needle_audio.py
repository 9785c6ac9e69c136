"""A haystack's sound, encoded in blocks that do not know of each other: a few changed seconds cost a few blocks.

Two things tie a block to the rest of its clip. A mel frame reaches 200 samples to either side of its time: blocks
within that reach of a change are encoded anew. And values more than 8 decades below the clip's largest one are raised
to that floor: where a change moves the largest value, every block that holds a value below the old or the new floor is
encoded anew as well, which may be all of them. Everything else is the same to the bit, and is kept.

Knows samples and encoded sound; neither pictures, nor needles, nor where tokens lie in a clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from omnicli.models.base import OmniModel
from omnicli.models.mel import DYNAMIC_RANGE, HOP, SAMPLE_RATE, SILENCE, WINDOW, LogMel, mel_frame_count
from omnicli.models.parts import EncodedAudio

_MARGIN = WINDOW + HOP  # samples: more than any mel frame reaches
_FEED = 30 * SAMPLE_RATE  # samples fed at a time: bounds the working memory over an hour
_ROUNDING = 1e-6  # decades: a value this near to a floor counts as below it


@dataclass(frozen=True)
class AudioTokens:
    """A clip's sound, 16 kHz mono, and what the model made of it.

    Attributes
    ----------
    samples : ndarray (n,) float32
    encoded : EncodedAudio
        All tokens.
    high, low : ndarray (blocks,) float64
        Largest and smallest raw log10 mel value of each block.
    maximum : float
        Largest value of the clip, which ``encoded`` is normalised by.
    """

    samples: np.ndarray
    encoded: EncodedAudio
    high: np.ndarray
    low: np.ndarray
    maximum: float


@dataclass(frozen=True)
class Change:
    """What other samples make of a sound: ``pieces`` of tokens in place of those from ``(token, piece)`` on."""

    pieces: tuple[tuple[int, EncodedAudio], ...]
    high: np.ndarray
    low: np.ndarray
    maximum: float


class AudioBlocks:
    """Encodes sounds of one model with one set of captures.

    Parameters
    ----------
    capture : frozenset of str
        As for `OmniModel.audio_encoder`.

    Attributes
    ----------
    audio_block : AudioBlock or None
        The model's; None: every sound is encoded in whole.
    """

    def __init__(self, model: OmniModel, capture: frozenset[str] = frozenset()) -> None:
        self.model, self.capture = model, capture
        self.audio_block = model.audio_block
        self._tokens = 1 << 40  # per block
        self._block = 1 << 40  # samples per block
        if self.audio_block is not None:
            self._tokens = round(self.audio_block.seconds * model.audio_tokens_per_s)
            self._block = round(self.audio_block.seconds * SAMPLE_RATE)

    @torch.inference_mode()
    def encode(self, samples: np.ndarray, progress: Callable[[float], None] = lambda done_s: None) -> AudioTokens:
        """Encode a whole sound (n,) float32, n at least 1. ``progress(done_s)``: seconds encoded so far."""
        high, low = self._range(samples, 0, self._count(samples))
        maximum = float(high.max())
        encoded = self._encode(samples, 0, self._count(samples), maximum, progress)
        return AudioTokens(samples, encoded, high, low, maximum)

    @torch.inference_mode()
    def prefix(self, audio: AudioTokens, n: int) -> AudioTokens:
        """Return the first ``n`` samples as if nothing had ever followed them."""
        if n >= len(audio.samples):
            return audio
        samples = audio.samples[:n]
        change = self.change(audio, samples, n, len(audio.samples))
        *inner, (begin, last) = change.pieces  # the last one reaches the end
        old = audio.encoded
        encoded = join([cut(old, 0, begin), last], old)
        for at, piece in inner:
            overwrite(encoded, at, piece)
        return AudioTokens(samples, encoded, change.high, change.low, change.maximum)

    @torch.inference_mode()
    def change(self, audio: AudioTokens, samples: np.ndarray, begin: int, end: int) -> Change:
        """Encode what differs when ``samples`` stand in place of the sound's.

        Parameters
        ----------
        samples : ndarray (m,) float32
            Equal to the sound's outside ``begin`` to ``end``; m may be smaller than n if ``end`` is n.
        begin, end : int
            Samples that may differ.
        """
        blocks = self._count(samples)
        first = max(0, begin - _MARGIN) // self._block
        last = min(blocks, (end + _MARGIN) // self._block + 1)
        high, low = audio.high[:blocks].copy(), audio.low[:blocks].copy()
        high[first:last], low[first:last] = self._range(samples, first, last)
        maximum = float(high.max())
        anew = np.zeros(blocks, bool)
        anew[first:last] = True
        if maximum != audio.maximum:
            anew |= low < max(maximum, audio.maximum) - DYNAMIC_RANGE + _ROUNDING
        pieces = [(a * self._tokens, self._encode(samples, a, b, maximum)) for a, b in _runs(anew)]
        return Change(tuple(pieces), high, low, maximum)

    def _count(self, samples: np.ndarray) -> int:
        if self.audio_block is None:
            return 1
        frames = mel_frame_count(len(samples), self.audio_block.mirror_end)
        return max(1, -(-frames // (self._block // HOP)))

    def _range(self, samples: np.ndarray, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the largest and smallest raw mel value of the blocks ``first`` to ``last - 1``.

        Where the end is not mirrored, frames behind it that still touch sound are counted in the last block, as in
        `LogMel.maximum`.
        """
        if self.audio_block is None:
            whole = self.model.measure_log_mel_max(_chunks(samples))
            return np.array([whole]), np.array([-np.inf])
        lo, hi = max(0, first - 1) * self._block, (last + 1) * self._block
        part = samples[lo:hi]
        if hi >= len(samples) and not self.audio_block.mirror_end:
            part = np.concatenate([part, np.zeros(2 * HOP, np.float32)])
        stream = LogMel(self.audio_block.bands, self.audio_block.mirror_end)
        frames = [(x.amax(0), x.amin(0)) for x in _fed(stream, part) if x.shape[1]]
        if not frames:  # shorter than a frame
            return np.full(1, SILENCE), np.full(1, SILENCE)
        top, bottom = (torch.cat(values).double().numpy() for values in zip(*frames, strict=True))
        wide, skip = self._block // HOP, (first * self._block - lo) // HOP
        starts = skip + wide * np.arange(last - first)
        stop = len(top) if last == self._count(samples) else skip + wide * (last - first)
        return np.maximum.reduceat(top[:stop], starts), np.minimum.reduceat(bottom[:stop], starts)

    def _encode(
        self,
        samples: np.ndarray,
        first: int,
        last: int,
        maximum: float,
        progress: Callable[[float], None] = lambda s: None,
    ) -> EncodedAudio:
        """Return the tokens of the blocks ``first`` to ``last - 1``, encoded with a block on either side."""
        lo = max(0, first - 1) * self._block
        stream = self.model.audio_encoder(maximum, self.capture)
        pieces: list[EncodedAudio] = []
        for i, chunk in enumerate(_chunks(samples[lo : (last + 1) * self._block])):
            pieces += stream.feed(chunk)
            progress((i * _FEED + len(chunk)) / SAMPLE_RATE)
        pieces += stream.finish()
        nothing = torch.zeros(0, self.model.hidden_size, dtype=self.model.dtype, device=self.model.device)
        begin = (first * self._block - lo) // self._block * self._tokens
        return cut(join(pieces, EncodedAudio(nothing)), begin, begin + (last - first) * self._tokens)


def join(pieces: list[EncodedAudio], empty: EncodedAudio) -> EncodedAudio:
    """Return the pieces as one; ``empty`` if there is none."""
    pieces = [piece for piece in pieces if piece.features.shape[0]]
    if not pieces:
        return cut(empty, 0, 0)
    fields: dict[str, Tensor] = {}
    for name in ("features", "saliency", "keys"):
        values = [getattr(piece, name) for piece in pieces]
        if values[0] is not None:
            fields[name] = torch.cat(values)
    return EncodedAudio(**fields)


def cut(piece: EncodedAudio, begin: int, end: int) -> EncodedAudio:
    """Return the tokens ``begin`` to ``end - 1``; a view."""
    rest = (None if x is None else x[begin:end] for x in (piece.saliency, piece.keys))
    return EncodedAudio(piece.features[begin:end], *rest)


def overwrite(target: EncodedAudio, begin: int, piece: EncodedAudio) -> None:
    """Copy ``piece`` into ``target`` in place, from token ``begin`` on."""
    for name in ("features", "saliency", "keys"):
        old, new = getattr(target, name), getattr(piece, name)
        if old is not None and new is not None:
            old[begin : begin + new.shape[0]] = new


def _chunks(samples: np.ndarray) -> Iterator[np.ndarray]:
    for begin in range(0, len(samples), _FEED):
        yield samples[begin : begin + _FEED]


def _fed(stream: LogMel, samples: np.ndarray) -> Iterator[Tensor]:
    for chunk in _chunks(samples):
        yield stream.feed(chunk)
    yield stream.finish()


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Return the stretches (begin, end) in which the mask is set."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
