"""One layer of an LLM, run on stock modules: projections, rotary positions, attention behind a cache, MLP.

For layers that are built as most are: norm, attention, norm, MLP, each of the two added to what came in. Where a stock
attention module normalises queries and keys by head (``q_norm``, ``k_norm``), that is done. Hidden states are (n, D),
without a batch. Nothing here has weights, or knows a family.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from omnicli.models.attention import causal_attention, last_query_attention
from omnicli.models.parts import LayerCache

Rope = tuple[Tensor, Tensor]
"""cos and sin (1, n, head_dim)."""
Rotate = Callable[..., tuple[Tensor, Tensor]]
"""A family's stock ``apply_rotary_pos_emb(query, key, cos, sin)``."""


def decoder_layer(
    block: Any,
    hidden: Tensor,
    rope: Rope,
    rotate: Rotate,
    *,
    index: int,
    cache: LayerCache | None = None,
    last_attention: bool = False,
    mlp: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Run one layer; the work of `OmniModel.layer`. Differentiable without a cache.

    Parameters
    ----------
    block : Module
        The stock layer: ``input_layernorm``, ``self_attn``, ``post_attention_layernorm``, ``mlp``.
    hidden : Tensor (n, D)
        Follow what the cache holds.
    rope : (Tensor, Tensor)
        cos and sin (1, n, head_dim) of their positions.
    rotate : callable
        The stock rotary embedding of queries and keys.
    index : int
        The layer's number, for the cache.
    last_attention : bool
        Also return what the last of the n queries attends to.
    mlp : callable
        What comes after attention, (n, D) to (n, D), where ``block.mlp`` cannot be called so.

    Returns
    -------
    hidden : Tensor (n, D)
    attention : Tensor (kv,) float32 or None
        Mean over heads, sum 1.
    """
    attn, x = block.self_attn, block.input_layernorm(hidden)
    query, key = rotate(_queries(attn, x), _keys(attn, x), *rope)
    value = _by_head(attn, attn.v_proj(x))
    seen = None
    if cache is not None:
        key, value = cache.update(key, value, index)
        seen = cache.seen(index)
    mixed = causal_attention(query, key, value, attn.scaling, seen)
    received = last_query_attention(query, key, attn.scaling) if last_attention else None
    hidden = hidden + attn.o_proj(mixed.transpose(1, 2).reshape(hidden.shape[0], -1))
    return hidden + (mlp or block.mlp)(block.post_attention_layernorm(hidden)), received


def query_attention(block: Any, hidden: Tensor, rope: Rope, rotate: Rotate) -> Tensor:
    """Return attention (n,) float32 of the last of ``hidden`` (n, D) to all; the work of `OmniModel.query_attention`.

    See `decoder_layer` for the parameters.
    """
    attn, x = block.self_attn, block.input_layernorm(hidden)
    query, key, last = _queries(attn, x[-1:]), _keys(attn, x), [part[:, -1:] for part in rope]
    query, _ = rotate(query, query, *last)
    _, key = rotate(key, key, *rope)
    return last_query_attention(query, key, attn.scaling)


def _queries(attn: Any, x: Tensor) -> Tensor:
    return _by_head(attn, attn.q_proj(x), getattr(attn, "q_norm", None))


def _keys(attn: Any, x: Tensor) -> Tensor:
    return _by_head(attn, attn.k_proj(x), getattr(attn, "k_norm", None))


def _by_head(attn: Any, x: Tensor, norm: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Return projected rows (n, heads * head_dim) as (1, heads, n, head_dim), normalised if there is a ``norm``."""
    x = x.view(1, x.shape[0], -1, attn.head_dim)
    return (x if norm is None else norm(x)).transpose(1, 2)
