"""Read a prompt into the KV cache: the layer loop, in bounded chunks, with pruning on the way if a method asks for it.

Without pruning the loop goes chunk by chunk through all layers (working memory: one chunk). With pruning it goes layer
by layer through all chunks, so that a method sees the whole media at its layer; hidden states, rotary values, cache
rows and deepstack features then follow the same indices. Text is never pruned. Nothing here knows a model family or a
method.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from omnicli.llm.kv import KVCache
from omnicli.types import MediaTokens, Selection

if TYPE_CHECKING:
    from omnicli.models.base import OmniModel
    from omnicli.timing import StageClock

LAST_QUERY_ATTENTION = "last_query_attention"
"""Name a pruner puts into ``needs`` to be given ``view.attention``."""


@dataclass(frozen=True)
class LayerView:
    """What a method sees when it prunes after a layer.

    Attributes
    ----------
    layer, depth : int
        The layer just run, and how many there are.
    hidden : Tensor (n, D)
        Hidden states of the media tokens still present, after the layer.
    attention : Tensor (n,) float32 or None
        Attention of the prompt's last token to them in this layer, mean over heads; sums to less than 1, text has the
        rest. Only with ``"last_query_attention"`` in the method's ``needs``.
    media : MediaTokens
        The tokens still present, as they entered the LLM.
    """

    layer: int
    depth: int
    hidden: Tensor
    attention: Tensor | None
    media: MediaTokens


class LayerPruner(Protocol):
    """The part of a compression method that works inside the LLM."""

    @property
    def needs(self) -> frozenset[str]:
        """Names of what has to be captured."""

    def layers(self, depth: int) -> tuple[int, ...]:
        """Return the layers after which `prune` is called."""

    def prune(self, layer: int, view: Any) -> Tensor:
        """Return ascending indices (k,) into ``view.media`` of the tokens to keep."""


@dataclass(frozen=True)
class PrefillResult:
    """Outcome of `prefill`.

    Attributes
    ----------
    logits : Tensor (V,) float32
        Of the last position.
    by_layer : list of [first_layer, media tokens]
        How many media tokens each range of layers worked on.
    kept : Tensor (k,) int64
        Media tokens that reached the last layer, as indices into the media that entered.
    """

    logits: Tensor
    by_layer: list[list[int]]
    kept: Tensor


@torch.no_grad()
def prefill(
    model: OmniModel,
    embeds: Tensor,
    position_ids: Tensor,
    cache: KVCache,
    *,
    media_span: slice | None = None,
    media: MediaTokens | None = None,
    pruner: LayerPruner | None = None,
    chunk: int = 2048,
    progress: Callable[[float], None] | None = None,
    clock: StageClock | None = None,
) -> PrefillResult:
    """Run all layers over a prompt, appending to ``cache``, and return the logits of its last position.

    Parameters
    ----------
    embeds : Tensor (S, D)
        Input embeddings; follow what the cache already holds.
    position_ids : Tensor (axes, S)
        Rotary positions.
    media_span : slice
        Rows of ``embeds`` that are media tokens; None: only text.
    media : MediaTokens
        Those tokens, needed for pruning and for deepstack features.
    pruner : LayerPruner
        Called after ``pruner.layers(depth)``; None or no layers: nothing is pruned.
    chunk : int
        Positions worked on at a time.
    progress : callable
        Called with the fraction done.
    clock : StageClock
        Times ``select_in_llm``, a part of prefill.

    Raises
    ------
    ValueError
        For an empty prompt, media that do not match their span, or a pruner that returns indices that are not
        ascending and in range.
    """
    span = media_span if media_span is not None else slice(0, 0)
    if embeds.shape[0] == 0:
        raise ValueError("prefill needs at least one token")
    if media is not None and len(media) != span.stop - span.start:
        raise ValueError(f"media_span holds {span.stop - span.start} tokens, media holds {len(media)}")
    if span.stop > embeds.shape[0]:
        raise ValueError("media_span reaches past the prompt")
    stops = frozenset(pruner.layers(model.depth)) if pruner is not None and media is not None else frozenset()
    wrong = [layer for layer in stops if not 0 <= layer < model.depth]
    if wrong:
        raise ValueError(f"the method wants to prune after layers {sorted(wrong)}; the model has 0..{model.depth - 1}")
    report = progress or (lambda _: None)
    extra = media.layer_features if media is not None else None
    if stops and pruner is not None and media is not None:
        return _Pruned(model, cache, chunk, report, clock, stops, pruner, media)(embeds, position_ids, span, extra)

    total = span.stop - span.start
    last = _by_chunk(model, embeds, position_ids, cache, span=span, extra=extra, chunk=chunk, report=report)
    kept = torch.arange(total, device=embeds.device)
    return PrefillResult(model.logits(last)[0], [[0, total]], kept)


def _by_chunk(
    model: OmniModel,
    embeds: Tensor,
    position_ids: Tensor,
    cache: KVCache,
    *,
    span: slice,
    extra: Tensor | None,
    chunk: int,
    report: Callable[[float], None],
) -> Tensor:
    size = embeds.shape[0]
    hidden = embeds[:0]
    for begin in range(0, size, chunk):
        end = min(begin + chunk, size)
        hidden = embeds[begin:end]
        rope = model.rope(position_ids[:, begin:end])
        for layer in range(model.depth):
            hidden, _ = model.layer(layer, hidden, rope, cache)
            if extra is not None and layer < extra.shape[0]:
                hidden = _add_extra(hidden, extra[layer], span, begin)
        report(end / size)
    return hidden[-1:]


def _add_extra(hidden: Tensor, features: Tensor, span: slice, begin: int) -> Tensor:
    """Add media features to the rows of a chunk (that starts at row ``begin``) that are media."""
    first, last = max(span.start, begin), min(span.stop, begin + hidden.shape[0])
    if first >= last:
        return hidden
    hidden = hidden.clone()
    hidden[first - begin : last - begin] += features[first - span.start : last - span.start].to(hidden.dtype)
    return hidden


@dataclass
class _Pruned:
    """The layer-by-layer loop; fields are what does not change from layer to layer."""

    model: OmniModel
    cache: KVCache
    chunk: int
    report: Callable[[float], None]
    clock: StageClock | None
    stops: frozenset[int]
    pruner: LayerPruner
    media: MediaTokens

    def __call__(self, embeds: Tensor, position_ids: Tensor, span: slice, extra: Tensor | None) -> PrefillResult:
        model, hidden = self.model, embeds.clone()
        rope = model.rope(position_ids)
        media = self.media
        kept = torch.arange(len(media), device=embeds.device)
        by_layer = [[0, len(media)]]
        want = LAST_QUERY_ATTENTION in self.pruner.needs
        spare = max(0, self.cache.capacity - embeds.shape[0])
        for layer in range(model.depth):
            self.cache.reserve(layer, hidden.shape[0] + spare)
            held = self.cache.lengths[layer]
            attention = None
            for begin in range(0, hidden.shape[0], self.chunk):
                end = min(begin + self.chunk, hidden.shape[0])
                ask = want and layer in self.stops and end == hidden.shape[0]
                piece, attention = model.layer(
                    layer, hidden[begin:end], model.take(rope, slice(begin, end)), self.cache, last_attention=ask
                )
                if extra is not None and layer < extra.shape[0]:
                    piece = _add_extra(piece, extra[layer], span, begin)
                hidden[begin:end] = piece
            self.report((layer + 1) / model.depth)
            if layer not in self.stops or layer == model.depth - 1:
                continue
            with self.clock.stage("select_in_llm") if self.clock is not None else contextlib.nullcontext():
                rows = slice(held + span.start, held + span.stop)
                view = LayerView(
                    layer, model.depth, hidden[span], None if attention is None else attention[rows], media
                )
                keep = _checked(self.pruner.prune(layer, view), len(media), layer)
            if keep.numel() == len(media):
                continue
            index = torch.cat(
                [
                    torch.arange(span.start, device=keep.device),
                    keep + span.start,
                    torch.arange(span.stop, hidden.shape[0], device=keep.device),
                ]
            )
            hidden, rope = hidden[index], model.take(rope, index)
            kept, media = kept[keep], media.select(Selection(keep))
            extra = None if extra is None else extra[:, keep]
            span = slice(span.start, span.start + keep.numel())
            by_layer.append([layer + 1, keep.numel()])
        return PrefillResult(model.logits(hidden[-1:])[0], by_layer, kept)


def _checked(keep: Tensor, n: int, layer: int) -> Tensor:
    keep = keep.to(torch.int64)
    if keep.ndim != 1:
        raise ValueError(f"prune after layer {layer} returned a tensor of shape {tuple(keep.shape)}, expected indices")
    if keep.numel() and (int(keep[0]) < 0 or int(keep[-1]) >= n or bool((keep[1:] <= keep[:-1]).any())):
        raise ValueError(f"prune after layer {layer} returned indices that are not ascending inside 0..{n - 1}")
    return keep


__all__ = ["LAST_QUERY_ATTENTION", "LayerPruner", "LayerView", "PrefillResult", "prefill"]
