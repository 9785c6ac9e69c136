"""Read a prompt into the KV cache: the layer loop, in bounded chunks, with pruning on the way if a method asks for it.

A prompt is read in two parts. What stands before the question, media included, is the same for every question as far
as the first layer that a method prunes after (all layers, if it prunes after none): a `Prefix`, read chunk by chunk.
The rest follows, and from that layer on the loop goes layer by layer through all chunks, so that a method sees the
whole media at its layer; hidden states, rotary values, cache rows and deepstack features then follow the same indices.
Text is never pruned. Nothing here knows a model family or a method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from omnicli.compress.base import LAST_QUERY_ATTENTION, OUTPUT_ATTENTION, Compressor
from omnicli.llm.kv import KVCache
from omnicli.types import LayerView, MediaTokens, Modality, Selection
from omnicli.utils.attention_recorder import AttentionRecorder
from omnicli.utils.context import RunContext

if TYPE_CHECKING:
    from omnicli.models.base import OmniModel


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


@dataclass(frozen=True)
class Prefix:
    """The beginning of a prompt, read as far as what comes behind it does not matter.

    Attributes
    ----------
    embeds : Tensor (P, D)
        Its input embeddings.
    position_ids : Tensor (axes, P)
        Their rotary positions.
    span : slice
        Rows that are media tokens.
    media : MediaTokens or None
        Those tokens.
    cache : KVCache
        Holds it in the first ``layers`` layers.
    layers : int
        How many layers have read it: up to and with the first one that is pruned after.
    hidden : Tensor (P, D) or None
        Hidden states after them; None where that is all layers.
    """

    embeds: Tensor
    position_ids: Tensor
    span: slice
    media: MediaTokens | None
    cache: KVCache
    layers: int
    hidden: Tensor | None

    @property
    def rows(self) -> int:
        """P."""
        return self.embeds.shape[0]

    def fits(self, embeds: Tensor, position_ids: Tensor, media: MediaTokens | None, layers: int) -> bool:
        """Tell whether another prompt begins with it."""
        mine, theirs = (None if m is None else m.layer_features for m in (self.media, media))
        return (
            layers == self.layers
            and torch.equal(position_ids[:, : self.rows], self.position_ids)
            and torch.equal(embeds[: self.rows], self.embeds)
            and (mine is theirs or (mine is not None and theirs is not None and torch.equal(mine, theirs)))
        )


def shared_layers(model: OmniModel, media: MediaTokens | None, pruner: Compressor | None) -> int:
    """Return how many layers read a prompt's media as if no question followed.

    Raises
    ------
    ValueError
        The method wants to prune after a layer that the model does not have.
    """
    return min(_stops(model, media, pruner), default=model.depth - 1) + 1


def _stops(model: OmniModel, media: MediaTokens | None, pruner: Compressor | None) -> frozenset[int]:
    """Return the layers after which media tokens are dropped."""
    if pruner is None or media is None:
        return frozenset()
    late = pruner.late_removal(model.depth)
    stops = frozenset(pruner.layers(model.depth)) | frozenset([] if late is None else [late])
    if wrong := sorted(layer for layer in stops if not 0 <= layer < model.depth):
        raise ValueError(f"the method wants to prune after layers {wrong}; the model has 0..{model.depth - 1}")
    return stops


@torch.no_grad()
def read_prefix(
    model: OmniModel,
    embeds: Tensor,
    position_ids: Tensor,
    cache: KVCache,
    *,
    media_span: slice,
    media: MediaTokens | None,
    layers: int,
    chunk: int = 2048,
    report: Callable[[float], None] = lambda share: None,
) -> Prefix:
    """Read the beginning of a prompt; see `prefill` for the parameters and `shared_layers` for ``layers``."""
    hidden = _by_chunk(
        model, embeds, position_ids, cache, layers=layers, span=media_span, extra=_extra(media), chunk=chunk,
        report=report, whole=layers < model.depth,
    )  # fmt: skip
    return Prefix(embeds, position_ids, media_span, media, cache, layers, hidden if layers < model.depth else None)


@torch.no_grad()
def prefill(
    model: OmniModel,
    embeds: Tensor,
    position_ids: Tensor,
    cache: KVCache,
    *,
    media_span: slice | None = None,
    media: MediaTokens | None = None,
    pruner: Compressor | None = None,
    encoded: tuple[int, int] | None = None,
    prefix: Prefix | None = None,
    chunk: int = 2048,
    context: RunContext | None = None,
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
    pruner : Compressor
        Called after ``pruner.layers(depth)``; None or no layers: nothing is pruned.
    encoded : (int, int)
        Picture and sound tokens before any selection, for methods that choose before and inside the LLM; None: those
        that enter.
    prefix : Prefix
        The prompt's beginning, which ``cache`` then holds already in the layers that have read it.
    chunk : int
        Positions worked on at a time.
    context : RunContext
        Is told of ``prefill`` in positions of the prompt; its clock times ``select_in_llm``, its recorder is shown what
        the last position attends to, and told what the caches hold.

    Raises
    ------
    ValueError
        For an empty prompt, media that do not match their span, or a pruner that returns indices that are not
        ascending and in range.
    """
    span = media_span if media_span is not None else slice(0, 0)
    size = embeds.shape[0]
    if size == 0:
        raise ValueError("prefill needs at least one token")
    if media is not None and len(media) != span.stop - span.start:
        raise ValueError(f"media_span holds {span.stop - span.start} tokens, media holds {len(media)}")
    if span.stop > size:
        raise ValueError("media_span reaches past the prompt")
    stops = _stops(model, media, pruner)
    watch = context or RunContext()
    layers = shared_layers(model, media, pruner)
    held = [length - (prefix.rows if prefix and i < prefix.layers else 0) for i, length in enumerate(cache.lengths)]
    if prefix is None:
        rows = span.stop if span.stop < size else 0  # the last position belongs to the rest: its logits are asked for
        part = rows * layers / model.depth
        begin = embeds[:rows], position_ids[:, :rows], cache
        prefix = read_prefix(
            model, *begin, media_span=span, media=media, layers=layers, chunk=chunk,
            report=lambda done: watch.progress("prefill", done * part, size),
        )  # fmt: skip
    behind = prefix.rows
    if stops and pruner is not None and media is not None:
        entered = _counted(media)
        loop = PrunedPrefill(
            model, cache, chunk, watch, stops, pruner, media, entered, encoded or entered, held
        )  # fmt: skip
        return loop(prefix, embeds[behind:], position_ids, span)
    kept = torch.arange(span.stop - span.start, device=embeds.device)
    watch.recorder.held, watch.recorder.first = [kept] * model.depth, held[0] + span.start
    last = _by_chunk(
        model, embeds[behind:], position_ids[:, behind:], cache,
        layers=model.depth, span=span, extra=_extra(media), chunk=chunk, first=behind, recorder=watch.recorder,
        report=lambda done: watch.progress("prefill", behind + done * (size - behind), size),
    )  # fmt: skip
    levels = [(0, span.stop - span.start, 0)] if media is None else [(0, *_counted(media))]
    return PrefillResult(model.logits(last)[0], levels, kept)


def _counted(media: MediaTokens) -> tuple[int, int]:
    return media.count(Modality.VIDEO), media.count(Modality.AUDIO)


def _extra(media: MediaTokens | None) -> Tensor | None:
    return None if media is None else media.layer_features


def _by_chunk(
    model: OmniModel,
    embeds: Tensor,
    position_ids: Tensor,
    cache: KVCache,
    *,
    layers: int,
    span: slice,
    extra: Tensor | None,
    chunk: int,
    report: Callable[[float], None],
    first: int = 0,
    whole: bool = False,
    recorder: AttentionRecorder | None = None,
) -> Tensor:
    """Run rows, which are the prompt's from ``first`` on, through the first layers; return the last hidden state, or
    the ``whole`` of them."""
    size = embeds.shape[0]
    out = torch.empty_like(embeds, device=model.layer_devices[layers - 1]) if whole else embeds[:0]
    for begin in range(0, size, chunk):
        end = min(begin + chunk, size)
        hidden = embeds[begin:end]
        rope = model.rope(position_ids[:, begin:end])
        for layer in range(layers):
            ask = recorder is not None and end == size and layer in recorder.layers
            hidden, rope = model.to_layer_device(layer, hidden, rope)
            hidden, attention = model.layer(layer, hidden, rope, cache, last_attention=ask)
            if recorder is not None:
                recorder.add(attention, layer)
            if extra is not None and layer < extra.shape[0]:
                hidden = _add_extra(hidden, extra[layer], span, first + begin)
        if whole:
            out[begin:end] = hidden
        else:
            out = hidden[-1:].to(model.device)
        report(end / size)
    return out


def _add_extra(hidden: Tensor, features: Tensor, span: slice, begin: int) -> Tensor:
    """Add media features to the rows of a chunk (that starts at row ``begin``) that are media."""
    first, last = max(span.start, begin), min(span.stop, begin + hidden.shape[0])
    if first >= last:
        return hidden
    hidden = hidden.clone()
    hidden[first - begin : last - begin] += features[first - span.start : last - span.start].to(hidden)
    return hidden


@dataclass
class PrunedPrefill:
    """The layer-by-layer loop; fields are what does not change from layer to layer."""

    model: OmniModel
    cache: KVCache
    chunk: int
    context: RunContext
    stops: frozenset[int]
    pruner: Compressor
    media: MediaTokens
    entered: tuple[int, int]
    encoded: tuple[int, int]
    held: list[int]  # tokens that each layer's cache held before the prompt

    def __call__(self, prefix: Prefix, rest: Tensor, position_ids: Tensor, span: slice) -> PrefillResult:
        """Read ``rest`` (n, D) behind the prefix and go on with both."""
        model, hidden, behind = self.model, rest.clone(), prefix.rows
        rope, depth = model.rope(position_ids), model.depth
        media, late, held = self.media, self.pruner.late_removal(depth), self.held
        extra, self.context.recorder.first = _extra(media), held[0] + span.start
        kept = torch.arange(len(media), device=rest.device)
        levels = [(0, *self.entered)]
        rows = behind + rest.shape[0]
        spare = max(0, self.cache.capacity - rows)
        ran: list[tuple[int, Tensor, slice]] = []  # what each layer's cache held before, and which media it holds
        for layer in range(depth):
            alone = layer < prefix.layers  # the prefix has been there: only the rest is to be read
            if not alone:
                self.cache.reserve(layer, hidden.shape[0] + spare)
            rows_at = (behind, 0) if alone else (0, behind)
            hidden, rope = model.to_layer_device(layer, hidden, rope)
            attention = self._read(layer, hidden, rope, rows_at, (span, extra))
            self.context.progress("prefill", max(prefix.rows * prefix.layers, rows * (layer + 1)) / depth, rows)
            ran.append((held[layer], kept, span))
            self.context.recorder.add(attention, layer, kept)
            if layer == prefix.layers - 1 and prefix.hidden is not None:
                hidden = torch.cat([prefix.hidden, hidden])
            if late is not None and layer <= late and not self.pruner.keeps_kv():
                self._forget(layer, self.cache.lengths[layer], ran[-1], kept[:0], spare)
            if layer not in self.stops or layer == depth - 1 or not len(media):
                continue
            with self.context.clock.stage("select_in_llm"):
                if self._asks(layer, OUTPUT_ATTENTION):
                    attention = self.model.query_attention(layer, hidden, rope)[span]
                elif self._asks(layer, LAST_QUERY_ATTENTION) and attention is not None:
                    attention = attention[held[layer] + span.start : held[layer] + span.stop]
                else:
                    attention = None
                attention = None if attention is None else attention.to(model.device)
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
            index = index.to(hidden.device)
            hidden, rope = hidden[index], model.slice_rope(rope, index)
            behind -= len(media) - keep.numel() if behind else 0
            kept, media = kept[keep], media.select(Selection(keep))
            extra = None if extra is None else extra[:, keep]
            span = slice(span.start, span.start + keep.numel())
            levels.append((layer + 1, *_counted(media)))
        self._settle(ran, kept, late, spare)
        return PrefillResult(model.logits(hidden[-1:].to(model.device))[0], levels, kept)

    def _read(
        self, layer: int, hidden: Tensor, rope: Any, rows_at: tuple[int, int], extra: tuple[slice, Tensor | None]
    ) -> Tensor | None:
        """Run one layer over ``hidden`` (n, D), in place; return the attention of its last row if somebody asks.

        ``rows_at``: the prompt's row that it begins with, and where the chunks of its first part end.
        """
        (first, border), (span, features), attention = rows_at, extra, None
        wanted = self._asks(layer, LAST_QUERY_ATTENTION) or layer in self.context.recorder.layers
        for begin, end in self._chunks(border, hidden.shape[0]):
            part = self.model.slice_rope(rope, slice(first + begin, first + end))
            ask = wanted and end == hidden.shape[0]
            piece, attention = self.model.layer(layer, hidden[begin:end], part, self.cache, last_attention=ask)
            if features is not None and layer < features.shape[0]:
                piece = _add_extra(piece, features[layer], span, first + begin)
            hidden[begin:end] = piece
        return attention

    def _settle(self, ran: list[tuple[int, Tensor, slice]], kept: Tensor, late: int | None, spare: int) -> None:
        """Drop the keys and values that were to be kept up to here, and tell the watch what the caches now hold."""
        if self.pruner.keeps_kv():
            self.context.recorder.held = [media for _, media, _ in ran]
            return
        self.context.recorder.held = [kept[:0] if late is not None and layer <= late else kept for layer in range(len(ran))]
        if late is None:
            for layer, before in enumerate(ran):
                self._forget(layer, self.cache.lengths[layer], before, kept, spare)

    def _chunks(self, border: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield where chunks begin and end: those of the first part end at ``border``, as they did when it was read."""
        for first, last in ((0, border), (border, size)):
            for begin in range(first, last, self.chunk):
                yield begin, min(begin + self.chunk, last)

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
