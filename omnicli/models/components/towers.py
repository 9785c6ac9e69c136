"""What encoder towers of the Qwen-Omni families share: the sound layers, and what methods ask of the last attention.

Everything works on batches of equal-sized windows. No loading, no positions, no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from omnicli.models.attention import received_attention
from omnicli.models.parts import KEYS, PAIR_SALIENCY, POOLED_SALIENCY, SALIENCIES, SALIENCY


def split(x: Tensor, span: tuple[int, int, int]) -> Tensor:
    """Cut (groups, patches, heads, d) into windows: (groups * windows, heads, patches per window, d)."""
    begin, end, size = span
    return x[:, begin:end].reshape(-1, size, *x.shape[2:]).transpose(1, 2)


def video_captures(
    query: Tensor,
    key: Tensor,
    scale: float,
    capture: frozenset[str],
    *,
    merge: int,
    cells: Tensor | slice = slice(None),
    spans: Sequence[tuple[int, int, int]] | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Return saliency (n,) and keys (n, d) of merged cells in raster order, of what ``capture`` names.

    Parameters
    ----------
    query, key : Tensor (groups, patches, heads, d)
        Of the last block, rotated; the patches of a cell together.
    scale : float
        Of its attention.
    merge : int
        Patches along the side of a cell.
    cells : Tensor (cells,) or slice
        Where each raster cell is in the order of the patches.
    spans : list of (begin, end, size)
        Attention windows of that block; None: one.
    """
    groups, size = query.shape[:2]
    unit = merge**2

    def per_cell(values: Tensor) -> Tensor:
        return values.view(groups, size // unit, unit, -1).mean(2)[:, cells].flatten(0, 1)

    saliency = None
    if SALIENCY in capture:
        spans = spans or [(0, size, size)]
        got = [received_attention(split(query, s), split(key, s), scale).view(groups, -1) for s in spans]
        saliency = per_cell(torch.cat(got, 1)).flatten()
    elif PAIR_SALIENCY in capture:
        saliency = per_cell(_pair_attention(query, key, scale)).flatten()
    elif POOLED_SALIENCY in capture:
        pooled = key.unflatten(1, (-1, unit)).mean(2)
        weights = torch.einsum("ghd,gchd->gch", query.float().mean(1), pooled.float())
        saliency = torch.softmax(weights * scale, 1).mean(2)[:, cells].flatten()
    return saliency, per_cell(key.mean(2)) if KEYS in capture else None


def _pair_attention(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Return attention (groups, patches) received within two consecutive groups, which the tower never joins.

    query, key (groups, patches, heads, d). Groups are paired as they come; an odd last one is alone.
    """
    groups = query.shape[0]
    even = groups // 2 * 2
    parts = [slice(0, even), slice(even, groups)]
    got = []
    for part, pair in zip(parts, (2, 1), strict=True):
        if part.stop > part.start:
            q, k = (x[part].reshape(-1, pair * x.shape[1], *x.shape[2:]).transpose(1, 2) for x in (query, key))
            got.append(received_attention(q, k, scale))
    return torch.cat([g.view(-1, query.shape[1]) for g in got])


def audio_layers(layers: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Run a stock sound tower's layers on windows (n, positions, D).

    Returns
    -------
    hidden : Tensor (n, positions, D)
    query, key : Tensor (n, heads, positions, d)
        Of the last layer.
    """
    n, length, _ = hidden.shape
    query = key = hidden
    for layer in layers:
        attn = layer.self_attn
        x = layer.self_attn_layer_norm(hidden)
        query, key, value = (
            m(x).view(n, length, attn.num_heads, -1).transpose(1, 2) for m in (attn.q_proj, attn.k_proj, attn.v_proj)
        )
        mixed = scaled_dot_product_attention(query, key, value, scale=attn.scaling)
        hidden = hidden + attn.out_proj(mixed.transpose(1, 2).reshape(n, length, -1))
        x = layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden))))
        hidden = hidden + x
        if hidden.dtype == torch.float16:
            limit = torch.finfo(torch.float16).max - 1000
            hidden = hidden.clamp(-limit, limit)
    return hidden, query, key


def audio_captures(
    query: Tensor, key: Tensor, scale: float, capture: frozenset[str], merge: int = 1
) -> tuple[Tensor | None, Tensor | None]:
    """Return saliency (n,) and keys (n, d) of tokens made of ``merge`` positions each; a rest makes no token.

    Parameters
    ----------
    query, key : Tensor (n, heads, positions, d)
        Of the last layer.
    """
    even = query.shape[2] // merge * merge
    saliency = keys = None
    if capture & SALIENCIES:
        got = received_attention(query, key, scale)
        saliency = got[:, :even].unflatten(1, (-1, merge)).mean(2).flatten()
    if KEYS in capture:
        keys = key.mean(1)[:, :even].unflatten(1, (-1, merge)).mean(2).flatten(0, 1)
    return saliency, keys
