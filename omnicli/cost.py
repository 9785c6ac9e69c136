"""What a run costs in arithmetic, from lengths and dimensions. Multiply-adds count as two FLOPs.

Attention is counted causally: query i meets i + 1 keys. Encoders and selection are not in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Dimensions(Protocol):
    """The sizes of an LLM that arithmetic needs; every `OmniModel` has them."""

    hidden_size: int
    intermediate_size: int
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int


def layer_flops(d: Dimensions, length: int) -> float:
    """Return the FLOPs of one decoder layer over ``length`` positions of a prefill from an empty cache."""
    projections = d.hidden_size * d.head_dim * (2 * d.heads + 2 * d.kv_heads)
    mlp = 3 * d.hidden_size * d.intermediate_size
    attention = d.heads * d.head_dim * (length + 1)  # scores and values, each length / 2 keys on average
    return 2.0 * length * (projections + mlp + attention)


def prefill_flops(d: Dimensions, text: int, media: int, by_layer: Sequence[Sequence[int]]) -> dict[str, float | None]:
    """Return ``{"prefill": of this run, "full_prefill": had all media tokens been kept}``.

    Parameters
    ----------
    text, media : int
        Text tokens, and media tokens before any selection.
    by_layer : sequence of (first_layer, media tokens)
        How many media tokens each range of layers worked on.
    """
    borders = [int(first) for first, _ in by_layer[1:]] + [d.depth]
    spans = zip(by_layer, borders, strict=True)
    head = 2.0 * d.hidden_size * d.vocab_size  # on the last position only
    pruned = sum((end - int(first)) * layer_flops(d, text + int(kept)) for (first, kept), end in spans)
    return {"prefill": pruned + head, "full_prefill": d.depth * layer_flops(d, text + media) + head}
