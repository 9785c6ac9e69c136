"""Bytes of a run: what holds them, and the largest sum of what is alive at the same time.

From a model's facts, settings and token counts. Imports neither torch nor transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from omnicli.compress.budget import DEFAULT_TOKENS
from omnicli.models.weights import devices as cards
from omnicli.planning.constants import (
    BATCHES_AHEAD,
    BLOCK,
    CHUNK,
    DECODER_FRAMES,
    MAP_ELEMENTS,
    SELECT_BYTES,
    SELECT_TOKEN_BYTES,
    TEXT_TOKENS,
)

if TYPE_CHECKING:
    from omnicli.config.config import Config
    from omnicli.models.facts.base import Facts


@dataclass(frozen=True)
class Media:
    """What is read of the file: frames, their size, and seconds; see `omnicli.types.MediaUsed`."""

    frames: int
    width: int
    height: int
    last_frame_s: float | None
    audio_s: float
    source_pixels: int
    source_frames: int


@dataclass(frozen=True)
class Weights:
    """Bytes of weights: of all, of the encoders, of the LLM's layers, of those in few bits, and of what is restored of
    them at a time."""

    total: int
    encoders: int
    layers: int
    packed: int
    restored: int

    @classmethod
    def of(cls, facts: Facts, quantize: str, item: int, values: int) -> Weights:
        """Work them out for ``values`` weights of ``item`` bytes; norms and biases count as the encoders'."""
        layers, around = facts.llm_values()
        encoders = max(0, values - layers - around) * item
        if quantize == "none":
            return cls(values * item, encoders, layers * item, 0, 0)
        sizes = facts.layer_matrices
        rows = facts.llm.depth * sum(n * high for n, high, _ in sizes)
        packed = layers + 4 * rows if quantize == "int8" else layers // 2 + 4 * layers // BLOCK
        restored = max(high * wide for _, high, wide in sizes)
        if facts.experts_per_token:  # all of a layer's, if a chunk is routed to all
            restored = sum(n * high * wide for n, high, wide in sizes[2:])
        return cls((values - layers) * item + packed, encoders, packed, packed, restored * item)


def parts(
    facts: Facts, config: Config, media: Media, weights: Weights, *, counts: tuple[int, int, int], item: int
) -> dict[str, int]:
    """Return bytes by what holds them, see `omnicli.planning.plan.Plan`.

    Parameters
    ----------
    counts : (int, int, int)
        Tokens encoded, kept, and held per layer.
    item : int
        Bytes of a value.
    """
    d, (n, kept, per_layer), needs = facts.llm, counts, config.compressor.needs
    token = d.hidden_size * item * (1 + facts.levels) + 64  # times, places and positions of a token: 64 bytes
    saliency = any(name.endswith("saliency") for name in needs)
    token += 4 * saliency
    token += item * max(facts.vision.key_width, facts.audio.key_width) * ("keys" in needs)
    pixels = min(facts.video_batch, media.frames) * media.height * media.width
    patches = pixels // facts.patch**2 // facts.frame_group
    rows = 3 * pixels * (1 + 4 + (item if item < 4 else 0))  # uint8 and normalised float32, cast where that is not it
    video = rows + patches * facts.vision.position_values * item if media.frames else 0
    batch_s = min(facts.audio_batch_s, media.audio_s)
    stem = batch_s * 100 * (facts.mel_bands * 4 + facts.stem_values * item)
    positions = batch_s * facts.audio_positions_per_s
    audio = int(max(stem, positions * facts.audio.position_values * item))
    per_group = media.height * media.width // facts.patch**2
    maps = 3 * 4 * min(MAP_ELEMENTS, max(patches * per_group, int(positions**2)))  # scores, softmax, and a copy
    length = kept + TEXT_TOKENS
    return {
        "weights": weights.total,
        "encoder_weights": weights.encoders,
        "encoders": max(video, audio) + (maps if saliency else 0),
        "tokens": n * token,
        "kept": kept * token + length * d.hidden_size * item,
        "kv": 2 * d.depth * (per_layer + TEXT_TOKENS + config.generate.max_new_tokens) * d.kv_width * item,
        "prefill": _reading(facts, length, item) + weights.restored,
        "asking": _asking(facts, config, media, weights, n=n, item=item),
        "frames": BATCHES_AHEAD * 3 * pixels + (DECODER_FRAMES * media.source_pixels * 3 // 2 if media.frames else 0),
        "hidden": length * (2 * d.hidden_size + 2 * d.head_dim) * item,
    }


def _reading(facts: Facts, length: int, item: int) -> int:
    """Return the working memory of reading ``length`` positions, a chunk at a time."""
    d, chunk = facts.llm, min(CHUNK, length)
    mlp = 4 * d.intermediate_size + 2 * facts.experts_per_token * d.hidden_size
    chunked = chunk * (6 * d.hidden_size + max(mlp, 3 * d.query_width + 4 * d.kv_width)) * item
    spread = 2 * length * d.query_width * item if d.heads > d.kv_heads else 0  # keys and values repeated for all heads
    return chunked + spread


def _asking(facts: Facts, config: Config, media: Media, weights: Weights, *, n: int, item: int) -> int:
    """Return the bytes of a stretch of the ``n`` tokens that the LLM reads before the choice; 0: it reads none."""
    d = facts.llm
    if (first := config.compressor.reads_first(d.depth)) is None:
        return 0
    layers, stretch_s = first
    seconds = max(media.audio_s, media.last_frame_s or 0.0, stretch_s)
    length = min(n, int(n * stretch_s / seconds) + 1, DEFAULT_TOKENS) + TEXT_TOKENS
    copies = 3 * length * d.hidden_size * (1 + facts.levels) * item
    return copies + 2 * layers * length * d.kv_width * item + _reading(facts, length, item) + weights.restored


def _peak(parts: dict[str, int], selecting: int, whole: bool, offload: bool) -> int:
    """Return the largest sum of what is alive at the same time, where the model computes.

    Encoding: weights, tokens so far, working memory. Assembling: the tokens twice. Choosing: tokens, the copies that
    are kept, and the method's own, or the stretch that the LLM reads for it. Reading: tokens, copies, KV cache, and a
    chunk's working memory; hidden states of all positions where a method prunes inside the LLM (``whole``).
    With ``offload`` only the weights that work are there.
    """
    encoding = parts["tokens"] + max(parts["encoders"], parts["tokens"])
    asking = parts["asking"] + parts["kv"] if parts["asking"] else 0  # what an earlier question read is still there
    choosing = parts["tokens"] + max(parts["kept"], asking) + selecting
    reading = parts["tokens"] + parts["kept"] + parts["kv"] + parts["prefill"] + (parts["hidden"] if whole else 0)
    llm = parts["weights"] - parts["encoder_weights"]
    if offload:
        return max(parts["encoder_weights"] + encoding, llm + max(choosing, reading))
    return parts["weights"] + max(encoding, choosing, reading)


def peaks(
    parts: dict[str, int], weights: Weights, config: Config, *, depth: int, counts: tuple[int, int], free: list[int]
) -> tuple[list[int], list[int]]:
    """Return how many layers each card holds, and the peak of each: behind the first there are only layers at work.

    Parameters
    ----------
    parts : dict of str to int
        From `parts`.
    depth : int
        The LLM's layers.
    counts : (int, int)
        Tokens encoded and kept.
    free : list of int
        Free bytes of each card; one of any size on a CPU.
    """
    method, (encoded, kept) = config.compressor, counts
    whole = bool(method.layers(depth)) or method.late_removal(depth) is not None
    selecting = SELECT_BYTES + encoded * SELECT_TOKEN_BYTES if kept < encoded else 0
    first, *others = layers = cards.split(depth, weights.layers // depth, weights.total - weights.layers, free)
    away = depth - first
    here = parts | {
        "weights": parts["weights"] - weights.layers * away // depth,
        "kv": parts["kv"] - parts["kv"] * away // depth,
    }
    working = parts["prefill"] + (parts["hidden"] if whole else 0)
    behind = [(weights.layers + parts["kv"]) * n // depth + working for n in others]
    return layers, [_peak(here, selecting, whole, config.offload), *behind]
