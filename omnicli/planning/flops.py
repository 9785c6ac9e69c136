"""What a run costs in arithmetic, from lengths and dimensions: no clock, no model.

Everything is counted in multiply-adds (MACs), exactly, and told in FLOPs: two per MAC. Attention is causal: query i
meets i + 1 keys. The head sees one position, since one is needed. `PAPERS` counts as papers on token compression do:
one FLOP per MAC, every query meeting every key, the head on all positions. Norms, rotations, activations and softmax
are left out in both; they are linear in the length and small. The LLM's layers, its head, choosing tokens inside it,
and the encoders are counted apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omnicli.models.facts.dimensions import Dimensions

QWEN2_5_OMNI_7B = Dimensions(3584, 18944, 28, 28, 4, 128, 152064)
QWEN2_5_OMNI_3B = Dimensions(2048, 11008, 36, 16, 2, 128, 151936)
QWEN3_OMNI_30B = Dimensions(2048, 8 * 768, 48, 32, 4, 128, 151936, num_experts=128)
"""8 of 128 experts of width 768. SEATS's TFLOPs for it come out with heads of 64 (hidden size / heads), not 128."""


@dataclass(frozen=True)
class Convention:
    """How arithmetic is counted.

    Attributes
    ----------
    flops_per_mac : int
        2: a product and a sum.
    causal : bool
        Whether a query meets only the keys up to its own position, or all.
    head_everywhere : bool
        Whether the head sees every position of the prompt, or only the last.
    """

    flops_per_mac: int = 2
    causal: bool = True
    head_everywhere: bool = False


TRUE = Convention()
PAPERS = Convention(flops_per_mac=1, causal=False, head_everywhere=True)


@dataclass(frozen=True)
class Work:
    """MACs of the LLM's layers and of its head, and FLOPs of both together."""

    layers: int
    head: int
    flops_per_mac: int = 2

    @property
    def macs(self) -> int:
        """MACs of both."""
        return self.layers + self.head

    @property
    def flops(self) -> float:
        """FLOPs of both."""
        return float(self.flops_per_mac * self.macs)


def layer_macs(d: Dimensions, length: int, causal: bool = True) -> int:
    """Return the MACs of one decoder layer over ``length`` positions of a prefill from an empty cache."""
    met = length * (length + 1) // 2 if causal else length * length
    return length * d.token_macs + 2 * met * d.query_width  # scores, and values weighted by them


def prefill(d: Dimensions, lengths: Sequence[int], convention: Convention = TRUE) -> Work:
    """Return the work of a prefill in which layer i reads ``lengths[i]`` positions."""
    if len(lengths) != d.depth:
        raise ValueError(f"{len(lengths)} lengths for {d.depth} layers")
    counted: dict[int, int] = {n: layer_macs(d, n, convention.causal) for n in set(lengths)}
    last = lengths[-1] if convention.head_everywhere else 1
    return Work(sum(counted[n] for n in lengths), last * d.hidden_size * d.vocab_size, convention.flops_per_mac)


def decode(d: Dimensions, cached: Sequence[int], steps: int, convention: Convention = TRUE) -> Work:
    """Return the work of feeding ``steps`` tokens one by one, with ``cached[i]`` positions already held by layer i."""
    if len(cached) != d.depth:
        raise ValueError(f"{len(cached)} cache lengths for {d.depth} layers")
    met = sum(cached) * steps + d.depth * (steps * (steps + 1) // 2)
    layers = d.depth * steps * d.token_macs + 2 * met * d.query_width
    return Work(layers, steps * d.hidden_size * d.vocab_size, convention.flops_per_mac)


def layer_lengths(text: int, by_layer: Sequence[Sequence[int]], depth: int) -> list[int]:
    """Return the positions that each of ``depth`` layers reads, from ``by_layer`` of (first layer, media tokens)."""
    borders = [int(first) for first, _ in by_layer[1:]] + [depth]
    spans = zip(by_layer, borders, strict=True)
    return [text + int(kept) for (first, kept), end in spans for _ in range(int(first), end)]


def prefill_flops(
    d: Dimensions,
    text: int,
    media: int,
    by_layer: Sequence[Sequence[int]],
    before: Sequence[tuple[int, int]] = (),
    *,
    convention: Convention = TRUE,
) -> dict[str, float | None]:
    """Return ``{"prefill": of this run, "full_prefill": had all media tokens been kept, "compress": before it}``.

    Parameters
    ----------
    before : sequence of (positions, layers)
        What the LLM read to choose the tokens, from an empty cache each time, its head not asked.
    text, media : int
        Text tokens, and media tokens before any selection.
    by_layer : sequence of (first_layer, media tokens)
        How many media tokens each range of layers worked on.
    convention : Convention
        How it is counted.
    """
    pruned = prefill(d, layer_lengths(text, by_layer, d.depth), convention)
    macs = sum(layers * layer_macs(d, length, convention.causal) for length, layers in before)
    asked = convention.flops_per_mac * macs
    whole = prefill(d, [text + media] * d.depth, convention).flops
    return {"prefill": pruned.flops, "full_prefill": whole, "compress": float(asked)}


def scoring_macs(d: Dimensions, length: int, *, queries: int = 1, keys: bool = False) -> int:
    """Return the MACs of scoring ``length`` positions by the attention of the last one, in one layer.

    SEATS's stage II (section 4.2.2): one drop; a run's cost is the sum over its drops.

    Parameters
    ----------
    length : int
        Positions present at the drop, text included.
    queries : int
        Positions whose query is projected for it: 1 is enough, 0 where the layer's own is taken. SEATS's released code
        projects all of them.
    keys : bool
        Whether keys are projected again for it (the scores of a layer's output, SEATS's released code), or the layer's
        own are taken.
    """
    projected = queries * d.query_width + (length * d.kv_width if keys else 0)
    return d.hidden_size * projected + length * d.query_width


@dataclass(frozen=True)
class EncoderDims:
    """The sizes of a picture or sound tower that arithmetic needs.

    A position is a patch of a frame pair, or two mel frames; a token is made of ``merge`` positions.

    Attributes
    ----------
    hidden_size, intermediate_size, depth : int
        Of its transformer.
    mlp_matrices : int
        3 with a gate, else 2.
    full_depth : int
        How many of the layers attend over a whole frame pair instead of windows; 0 for sound.
    window : int
        Pictures: side of an attention window in tokens. Sound: positions of a window.
    merge : int
        Positions per token.
    frame_macs, stem_macs, out_macs : int
        MACs per mel frame (0 for pictures) and per position before the transformer, and per token after it.
    """

    hidden_size: int
    intermediate_size: int
    depth: int
    mlp_matrices: int
    full_depth: int
    window: int
    merge: int
    frame_macs: int
    stem_macs: int
    out_macs: int

    @classmethod
    def vision(cls, config: Any) -> EncoderDims:
        """Return the sizes of Qwen2.5-Omni's picture tower from its ``vision_config`` or anything like it."""
        width, merge = config.hidden_size, config.spatial_merge_size**2
        patch = config.in_channels * config.temporal_patch_size * config.patch_size**2
        side = config.window_size // config.patch_size // config.spatial_merge_size
        merged = merge * width
        return cls(
            hidden_size=width,
            intermediate_size=config.intermediate_size,
            depth=config.depth,
            mlp_matrices=3,
            full_depth=len(config.fullatt_block_indexes),
            window=side,
            merge=merge,
            frame_macs=0,
            stem_macs=patch * width,
            out_macs=merged * merged + merged * config.out_hidden_size,
        )

    @classmethod
    def audio(cls, config: Any) -> EncoderDims:
        """Return the sizes of Qwen2.5-Omni's sound tower from its ``audio_config`` or anything like it."""
        width = config.d_model
        return cls(
            hidden_size=width,
            intermediate_size=config.encoder_ffn_dim,
            depth=config.encoder_layers,
            mlp_matrices=2,
            full_depth=0,
            window=config.n_window,
            merge=2,
            frame_macs=3 * config.num_mel_bins * width,
            stem_macs=3 * width * width,
            out_macs=width * config.output_dim,
        )

    def transformer_macs(self, positions: int, met: int, met_full: int = 0) -> int:
        """Return the MACs of all layers, with ``met`` pairs of positions in windowed and ``met_full`` in full ones."""
        linear = 4 * self.hidden_size + self.mlp_matrices * self.intermediate_size
        pairs = (self.depth - self.full_depth) * met + self.full_depth * met_full
        return self.hidden_size * (self.depth * positions * linear + 2 * pairs)


def vision_macs(e: EncoderDims, pairs: int, rows: int, cols: int) -> int:
    """Return the MACs of encoding ``pairs`` frame pairs of ``rows`` x ``cols`` tokens each.

    Windows at the right and lower border are smaller. No layer looks across pairs.
    """
    cells = rows * cols
    positions = cells * e.merge
    met = _squares(rows, e.window) * _squares(cols, e.window) * e.merge**2
    layers = e.transformer_macs(positions, met, positions**2)
    return pairs * (positions * e.stem_macs + layers + cells * e.out_macs)


def audio_macs(e: EncoderDims, mel_frames: int) -> int:
    """Return the MACs of encoding so many mel frames (100 per second), in windows that never see each other."""
    whole, rest = divmod(mel_frames, 2 * e.window)
    return whole * _audio_window_macs(e, 2 * e.window) + _audio_window_macs(e, rest)


def _audio_window_macs(e: EncoderDims, frames: int) -> int:
    """Return the MACs of one window of sound; none if it makes no token."""
    positions = (frames + 1) // 2
    tokens = positions // e.merge
    if tokens == 0:
        return 0
    layers = e.transformer_macs(positions, positions**2)
    return frames * e.frame_macs + positions * e.stem_macs + layers + tokens * e.out_macs


def _squares(length: int, side: int) -> int:
    """Return the sum of squares of the pieces of ``length`` cut every ``side``."""
    return length // side * side**2 + (length % side) ** 2


def _vision(out: int) -> EncoderDims:
    merged = 4 * 1280
    return EncoderDims(1280, 3420, 32, 3, 4, 4, 4, 0, 3 * 2 * 14 * 14 * 1280, merged * merged + merged * out)


def _audio(out: int) -> EncoderDims:
    return EncoderDims(1280, 5120, 32, 2, 0, 100, 2, 3 * 128 * 1280, 3 * 1280 * 1280, 1280 * out)


QWEN2_5_OMNI_7B_VISION, QWEN2_5_OMNI_7B_AUDIO = _vision(3584), _audio(3584)
QWEN2_5_OMNI_3B_VISION, QWEN2_5_OMNI_3B_AUDIO = _vision(2048), _audio(2048)


__all__ = [
    "PAPERS",
    "QWEN2_5_OMNI_3B",
    "QWEN2_5_OMNI_3B_AUDIO",
    "QWEN2_5_OMNI_3B_VISION",
    "QWEN2_5_OMNI_7B",
    "QWEN2_5_OMNI_7B_AUDIO",
    "QWEN2_5_OMNI_7B_VISION",
    "QWEN3_OMNI_30B",
    "TRUE",
    "Convention",
    "EncoderDims",
    "Work",
    "audio_macs",
    "decode",
    "layer_lengths",
    "layer_macs",
    "prefill",
    "prefill_flops",
    "scoring_macs",
    "vision_macs",
]
