"""The loop over layers in which a method drops media on the way: layer by layer, through all chunks.

A method sees the whole media at its layer. Hidden states, rotary values, deepstack features and cache rows then follow
the same indices. Nothing here knows a model family or a method.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from omnicli.compress.base import LAST_QUERY_ATTENTION, OUTPUT_ATTENTION, Compressor
from omnicli.llm.kv import KVCache
from omnicli.llm.prefix import Prefix, add_extra, extra_features, stops
from omnicli.types import LayerView, MediaTokens, Modality, Selection
from omnicli.utils.context import RunContext

if TYPE_CHECKING:
    from omnicli.models.base import OmniModel


def counts(media: MediaTokens) -> tuple[int, int]:
    """Return how many picture and sound tokens there are."""
    return media.count(Modality.VIDEO), media.count(Modality.AUDIO)


@dataclass(frozen=True)
class _Rows:
    """What a layer's cache holds of the media: ``kept``, in rows from ``begin`` to ``end``."""

    begin: int
    end: int
    kept: Tensor


class PrunedPrefill:
    """One reading of a prompt, and what is left of its media as the layers go by.

    Parameters
    ----------
    encoded : (int, int)
        Picture and sound tokens before any selection; None: those that enter.
    held : list of int
        Tokens that each layer's cache held before the prompt.
    chunk : int
        Positions worked on at a time.

    Attributes
    ----------
    media : MediaTokens
        Those that are still there.
    kept : Tensor (k,) int64
        Which they are of those that entered.
    span : slice
        Their rows among the hidden states.
    levels : list of (first_layer, picture tokens, sound tokens)
        How many each range of layers worked on.
    """

    def __init__(
        self,
        model: OmniModel,
        cache: KVCache,
        pruner: Compressor,
        media: MediaTokens,
        span: slice,
        *,
        encoded: tuple[int, int] | None,
        held: list[int],
        chunk: int,
        context: RunContext,
    ) -> None:
        self.media, self.span = media, span
        self.kept = torch.arange(len(media), device=model.device)
        self._entered = counts(media)
        self._encoded = encoded or self._entered
        self.levels = [(0, *self._entered)]
        self._model, self._cache, self._pruner, self._context = model, cache, pruner, context
        self._held, self._chunk = held, chunk
        self._stops, self._late = stops(model, media, pruner), pruner.late_removal(model.depth)
        self._extra = extra_features(media)
        self._in_cache: list[_Rows] = []  # of each layer that has run
        self._spare = 0

    def read(self, prefix: Prefix, rest: Tensor, position_ids: Tensor) -> Tensor:
        """Read ``rest`` (n, D) behind the prefix and go on with both; return the last hidden state (1, D).

        ``position_ids`` (axes, P + n) are those of both.
        """
        model, depth = self._model, self._model.depth
        hidden, rope, border = rest.clone(), model.rope(position_ids), prefix.rows
        size = prefix.rows + len(rest)
        self._spare = max(0, self._cache.capacity - size)
        self._context.recorder.first = self._held[0] + self.span.start
        for layer in range(depth):
            alone = layer < prefix.layers  # the prefix has been there: only the rest is to be read
            if not alone:
                self._cache.reserve(layer, len(hidden) + self._spare)
            hidden, rope = model.to_layer_device(layer, hidden, rope)
            attention = self._run(layer, hidden, rope, first=border if alone else 0, border=0 if alone else border)
            self._context.progress("prefill", max(prefix.rows * prefix.layers, size * (layer + 1)) / depth, size)
            self._ran(layer, attention)
            if layer == prefix.layers - 1 and prefix.hidden is not None:
                hidden = torch.cat([prefix.hidden, hidden])
            if layer in self._stops and layer < depth - 1 and len(self.media):
                keep = self._choose(layer, hidden, rope, attention)
                if (dropped := len(self.media) - len(keep)) > 0:
                    index = self._drop(layer, keep, len(hidden)).to(hidden.device)
                    hidden, rope = hidden[index], model.slice_rope(rope, index)
                    border -= dropped if border else 0
        self._settle()
        return hidden[-1:].to(model.device)

    def _run(self, layer: int, hidden: Tensor, rope: Any, *, first: int, border: int) -> Tensor | None:
        """Run one layer over ``hidden`` (n, D), in place; return the attention of its last row if somebody asks.

        ``first``: the prompt's row that it begins with; ``border``: where the chunks of its first part end.
        """
        attention = None
        wanted = self._asks(layer, LAST_QUERY_ATTENTION) or layer in self._context.recorder.layers
        for begin, end in self._chunks(border, len(hidden)):
            part = self._model.slice_rope(rope, slice(first + begin, first + end))
            ask = wanted and end == len(hidden)
            piece, attention = self._model.layer(layer, hidden[begin:end], part, self._cache, last_attention=ask)
            if self._extra is not None and layer < len(self._extra):
                piece = add_extra(piece, self._extra[layer], self.span, first + begin)
            hidden[begin:end] = piece
        return attention

    def _chunks(self, border: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield where chunks begin and end: those of the first part end at ``border``, as they did when it was read."""
        for first, last in ((0, border), (border, size)):
            for begin in range(first, last, self._chunk):
                yield begin, min(begin + self._chunk, last)

    def _asks(self, layer: int, what: str) -> bool:
        return layer in self._stops and what in self._pruner.needs

    def _ran(self, layer: int, attention: Tensor | None) -> None:
        """Note what a layer's cache holds now; drop its media at once if all go and nothing is to stay."""
        before = self._held[layer]
        self._in_cache.append(_Rows(before + self.span.start, before + self.span.stop, self.kept))
        self._context.recorder.add(attention, layer, self.kept)
        if self._late is not None and layer <= self._late and not self._pruner.keeps_kv():
            self._forget(layer, self.kept[:0])

    def _choose(self, layer: int, hidden: Tensor, rope: Any, attention: Tensor | None) -> Tensor:
        """Return the ascending indices of the media that the method keeps after a layer."""
        if layer == self._late:
            return self.kept[:0]
        with self._context.clock.stage("select_in_llm"):
            if self._asks(layer, OUTPUT_ATTENTION):
                attention = self._model.query_attention(layer, hidden, rope)[self.span]
            elif self._asks(layer, LAST_QUERY_ATTENTION) and attention is not None:
                rows = self._in_cache[layer]
                attention = attention[rows.begin : rows.end]
            else:
                attention = None
            attention = None if attention is None else attention.to(self._model.device)
            states = hidden[self.span]
            view = LayerView(layer, self._model.depth, states, attention, self.media, self._entered, self._encoded)
            return _checked(self._pruner.prune(layer, view), len(self.media), layer)

    def _drop(self, layer: int, keep: Tensor, size: int) -> Tensor:
        """Keep those media only from the next layer on; return which of the ``size`` hidden states stay."""
        begin, end = self.span.start, self.span.stop
        self.kept, self.media = self.kept[keep], self.media.select(Selection(keep))
        self._extra = None if self._extra is None else self._extra[:, keep]
        self.span = slice(begin, begin + keep.numel())
        self.levels.append((layer + 1, *counts(self.media)))
        return _around(begin, keep, end, size)

    def _settle(self) -> None:
        """Drop the keys and values that were to be kept up to here; tell the recorder what the caches now hold."""
        recorder = self._context.recorder
        if self._pruner.keeps_kv():
            recorder.held = [rows.kept for rows in self._in_cache]
        elif self._late is not None:
            recorder.held = [self.kept[:0]] * len(self._in_cache)
        else:
            recorder.held = [self.kept] * len(self._in_cache)
            for layer in range(len(self._in_cache)):
                self._forget(layer, self.kept)

    def _forget(self, layer: int, survivors: Tensor) -> None:
        """Drop the layer's keys and values of media that did not survive: one gather, however many drops there were."""
        rows = self._in_cache[layer]
        if survivors.numel() == rows.kept.numel():
            return
        index = _around(rows.begin, torch.searchsorted(rows.kept, survivors), rows.end, self._cache.lengths[layer])
        self._cache.keep(layer, index, capacity=index.numel() + self._spare)


def _around(begin: int, keep: Tensor, end: int, size: int) -> Tensor:
    """Return which of ``size`` rows stay: all but those from ``begin`` to ``end`` that ``keep`` does not name."""
    before, behind = torch.arange(begin, device=keep.device), torch.arange(end, size, device=keep.device)
    return torch.cat([before, keep + begin, behind])


def _checked(keep: Tensor, n: int, layer: int) -> Tensor:
    keep = keep.to(torch.int64)
    if keep.ndim != 1:
        raise ValueError(f"prune after layer {layer} returned a tensor of shape {tuple(keep.shape)}, expected indices")
    if keep.numel() and (int(keep[0]) < 0 or int(keep[-1]) >= n or bool((keep[1:] <= keep[:-1]).any())):
        raise ValueError(f"prune after layer {layer} returned indices that are not ascending inside 0..{n - 1}")
    return keep
