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
from omnicli.types import MediaTokens, Modality, Selection

if TYPE_CHECKING:
    from omnicli.models.base import OmniModel
    from omnicli.timing import StageClock

LAST_QUERY_ATTENTION = "last_query_attention"
"""Name a pruner puts into ``needs`` to be given the layer's own attention in ``view.attention``."""

OUTPUT_ATTENTION = "output_attention"
"""The same, of the layer's projections applied once more to its output, as SEATS's released code takes it."""


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
        rest. Only with ``"last_query_attention"`` or ``"output_attention"`` in the method's ``needs``.
    media : MediaTokens
        The tokens still present, as they entered the LLM.
    entered : (int, int)
        Picture and sound tokens that entered the LLM.
    encoded : (int, int) or None
        Those that came out of the encoders; None where another method chose before the LLM.
    """

    layer: int
    depth: int
    hidden: Tensor
    attention: Tensor | None
    media: MediaTokens
    entered: tuple[int, int]
    encoded: tuple[int, int] | None = None


class LayerPruner(Protocol):
    """The part of a compression method that works inside the LLM."""

    @property
    def needs(self) -> frozenset[str]:
        """Names of what has to be captured."""

    def layers(self, depth: int) -> tuple[int, ...]:
        """Return the layers after which `prune` is called."""

    def prune(self, layer: int, view: Any) -> Tensor:
        """Return ascending indices (k,) into ``view.media`` of the tokens to keep."""

    def late_removal(self, depth: int) -> int | None:
        """Return the layer after which all media tokens go."""

    def keeps_kv(self) -> bool:
        """Return whether layers keep the keys and values of media tokens that are dropped after them."""


@dataclass(frozen=True)
class PrefillResult:
    """Outcome of `prefill`.

    Attributes
    ----------
    logits : Tensor (V,) float32
        Of the last position.
    levels : list of (first_layer, picture tokens, sound tokens)
        How many media tokens each range of layers worked on.
    kept : Tensor (k,) int64
        Media tokens that reached the last layer, as indices into the media that entered.
    """

    logits: Tensor
    levels: list[tuple[int, int, int]]
    kept: Tensor

    @property
    def by_layer(self) -> list[list[int]]:
        """``[first_layer, media tokens]`` of each range of layers."""
        return [[first, video + audio] for first, video, audio in self.levels]


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
    encoded: tuple[int, int] | None = None,
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
    encoded : (int, int)
        Picture and sound tokens before any selection, for methods that choose before and inside the LLM; None: those
        that enter.
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
    stops: frozenset[int] = frozenset()
    if pruner is not None and media is not None:
        late = pruner.late_removal(model.depth)
        stops = frozenset(pruner.layers(model.depth)) | frozenset([] if late is None else [late])
    wrong = [layer for layer in stops if not 0 <= layer < model.depth]
    if wrong:
        raise ValueError(f"the method wants to prune after layers {sorted(wrong)}; the model has 0..{model.depth - 1}")
    report = progress or (lambda _: None)
    extra = media.layer_features if media is not None else None
    if stops and pruner is not None and media is not None:
        entered = _counted(media)
        loop = _Pruned(model, cache, chunk, report, clock, stops, pruner, media, entered, encoded or entered)
        return loop(embeds, position_ids, span, extra)

    total = span.stop - span.start
    last = _by_chunk(model, embeds, position_ids, cache, span=span, extra=extra, chunk=chunk, report=report)
    kept = torch.arange(total, device=embeds.device)
    levels = [(0, total, 0)] if media is None else [(0, *_counted(media))]
    return PrefillResult(model.logits(last)[0], levels, kept)


def _counted(media: MediaTokens) -> tuple[int, int]:
    return media.count(Modality.VIDEO), media.count(Modality.AUDIO)


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
    entered: tuple[int, int]
    encoded: tuple[int, int]

    def __call__(self, embeds: Tensor, position_ids: Tensor, span: slice, extra: Tensor | None) -> PrefillResult:
        model, hidden = self.model, embeds.clone()
        rope, depth = model.rope(position_ids), model.depth
        media, late = self.media, self.pruner.late_removal(depth)
        kept = torch.arange(len(media), device=embeds.device)
        levels = [(0, *self.entered)]
        spare = max(0, self.cache.capacity - embeds.shape[0])
        ran: list[tuple[int, Tensor, slice]] = []  # what each layer's cache held before, and which media it holds
        for layer in range(depth):
            self.cache.reserve(layer, hidden.shape[0] + spare)
            held = self.cache.lengths[layer]
            attention = None
            for begin in range(0, hidden.shape[0], self.chunk):
                end = min(begin + self.chunk, hidden.shape[0])
                ask = self._asks(layer, LAST_QUERY_ATTENTION) and end == hidden.shape[0]
                piece, attention = model.layer(
                    layer, hidden[begin:end], model.take(rope, slice(begin, end)), self.cache, last_attention=ask
                )
                if extra is not None and layer < extra.shape[0]:
                    piece = _add_extra(piece, extra[layer], span, begin)
                hidden[begin:end] = piece
            self.report((layer + 1) / depth)
            ran.append((held, kept, span))
            if late is not None and layer <= late and not self.pruner.keeps_kv():
                self._forget(layer, hidden.shape[0] + held, ran[-1], kept[:0], spare)
            if layer not in self.stops or layer == depth - 1 or not len(media):
                continue
            with self.clock.stage("select_in_llm") if self.clock is not None else contextlib.nullcontext():
                if self._asks(layer, OUTPUT_ATTENTION):
                    attention = self.model.query_attention(layer, hidden, rope)[span]
                elif attention is not None:
                    attention = attention[held + span.start : held + span.stop]
                view = LayerView(layer, depth, hidden[span], attention, media, self.entered, self.encoded)
                keep = kept[:0] if layer == late else _checked(self.pruner.prune(layer, view), len(media), layer)
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
            levels.append((layer + 1, *_counted(media)))
        if late is None and not self.pruner.keeps_kv():
            for layer, before in enumerate(ran):
                self._forget(layer, self.cache.lengths[layer], before, kept, spare)
        return PrefillResult(model.logits(hidden[-1:])[0], levels, kept)

    def _asks(self, layer: int, what: str) -> bool:
        return layer in self.stops and what in self.pruner.needs

    def _forget(
        self, layer: int, length: int, before: tuple[int, Tensor, slice], survivors: Tensor, spare: int
    ) -> None:
        """Drop the layer's keys and values of media that did not survive: one gather, however many drops there were."""
        held, media, span = before
        if survivors.numel() == media.numel():
            return
        first = held + span.start
        index = torch.cat(
            [
                torch.arange(first, device=media.device),
                torch.searchsorted(media, survivors) + first,
                torch.arange(held + span.stop, length, device=media.device),
            ]
        )
        self.cache.keep(layer, index, capacity=index.numel() + spare)


def _checked(keep: Tensor, n: int, layer: int) -> Tensor:
    keep = keep.to(torch.int64)
    if keep.ndim != 1:
        raise ValueError(f"prune after layer {layer} returned a tensor of shape {tuple(keep.shape)}, expected indices")
    if keep.numel() and (int(keep[0]) < 0 or int(keep[-1]) >= n or bool((keep[1:] <= keep[:-1]).any())):
        raise ValueError(f"prune after layer {layer} returned indices that are not ascending inside 0..{n - 1}")
    return keep


__all__ = ["LAST_QUERY_ATTENTION", "OUTPUT_ATTENTION", "LayerPruner", "LayerView", "PrefillResult", "prefill"]
