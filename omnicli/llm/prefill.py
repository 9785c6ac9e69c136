"""Read a prompt into the KV cache, in bounded chunks, with pruning on the way if a method asks for it.

A prompt is read in two parts: its beginning, media included, which is the same for every question (`Prefix`), and the
rest. If a method prunes inside the LLM, both go on from its first layer layer by layer (`PrunedPrefill`). Text is never
pruned. Nothing here knows a model family or a method.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from omnicli.compress.base import Compressor
from omnicli.llm.kv import KVCache
from omnicli.llm.prefix import Prefix, extra_features, read_prefix, read_rows, shared_layers, stops
from omnicli.llm.pruned_prefill import PrunedPrefill, counts
from omnicli.types import MediaTokens
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
    context, layers = context or RunContext(), shared_layers(model, media, pruner)
    held = [length - (prefix.rows if prefix and i < prefix.layers else 0) for i, length in enumerate(cache.lengths)]
    if prefix is None:
        rows = span.stop if span.stop < size else 0  # the last position belongs to the rest: its logits are asked for
        part = rows * layers / model.depth
        prefix = read_prefix(
            model,
            embeds[:rows],
            position_ids[:, :rows],
            cache,
            media_span=span,
            media=media,
            layers=layers,
            chunk=chunk,
            report=lambda done: context.progress("prefill", done * part, size),
        )
    rest, positions = embeds[prefix.rows :], position_ids[:, prefix.rows :]
    if pruner is not None and media is not None and stops(model, media, pruner):
        loop = PrunedPrefill(
            model, cache, pruner, media, span, encoded=encoded, held=held, chunk=chunk, context=context
        )
        hidden = loop.read(prefix, rest, position_ids)
        return PrefillResult(model.logits(hidden)[0], loop.levels, loop.kept)
    kept = torch.arange(span.stop - span.start, device=embeds.device)
    context.recorder.held, context.recorder.first = [kept] * model.depth, held[0] + span.start
    hidden = read_rows(
        model,
        rest,
        positions,
        cache,
        layers=model.depth,
        span=span,
        extra=extra_features(media),
        chunk=chunk,
        first=prefix.rows,
        recorder=context.recorder,
        report=lambda done: context.progress("prefill", prefix.rows + done * len(rest), size),
    )
    levels = [(0, span.stop - span.start, 0)] if media is None else [(0, *counts(media))]
    return PrefillResult(model.logits(hidden)[0], levels, kept)
