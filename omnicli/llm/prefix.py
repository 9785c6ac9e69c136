"""The beginning of a prompt, read as far as no question matters, and the loop that reads rows chunk by chunk.

What stands before the question, media included, is the same for every question through all layers, or up to the first
one that a method prunes after. Knows no model family; of a method only after which layers it prunes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from omnicli.compress.base import Compressor
from omnicli.errors import ConfigError
from omnicli.llm.kv import KVCache
from omnicli.types import MediaTokens
from omnicli.utils.attention_recorder import AttentionRecorder

if TYPE_CHECKING:
    from omnicli.models.base import OmniModel


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
    return min(stops(model, media, pruner), default=model.depth - 1) + 1


def stops(model: OmniModel, media: MediaTokens | None, pruner: Compressor | None) -> frozenset[int]:
    """Return the layers after which media tokens are dropped."""
    if pruner is None or media is None:
        return frozenset()
    late = pruner.late_removal(model.depth)
    stops = frozenset(pruner.layers(model.depth)) | frozenset([] if late is None else [late])
    if wrong := sorted(layer for layer in stops if not 0 <= layer < model.depth):
        raise ConfigError(f"{pruner.name} prunes after layers {wrong}; the model has 0..{model.depth - 1}")
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
    hidden = read_rows(
        model,
        embeds,
        position_ids,
        cache,
        layers=layers,
        span=media_span,
        extra=extra_features(media),
        chunk=chunk,
        report=report,
        whole=layers < model.depth,
    )
    return Prefix(embeds, position_ids, media_span, media, cache, layers, hidden if layers < model.depth else None)


def extra_features(media: MediaTokens | None) -> Tensor | None:
    """Return what the first layers add to the media (levels, n, D), if anything (deepstack)."""
    return None if media is None else media.layer_features


def read_rows(
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
    """Run the rows of a prompt from ``first`` on through the first layers, chunk by chunk.

    Returns
    -------
    Tensor (1, D), or (n, D) if ``whole``
        The last hidden state, on the model's device, or all of them, on the last layer's.
    """
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
                hidden = add_extra(hidden, extra[layer], span, first + begin)
        if whole:
            out[begin:end] = hidden
        else:
            out = hidden[-1:].to(model.device)
        report(end / size)
    return out


def add_extra(hidden: Tensor, features: Tensor, span: slice, begin: int) -> Tensor:
    """Add media features to the rows of a chunk (that starts at row ``begin``) that are media."""
    first, last = max(span.start, begin), min(span.stop, begin + hidden.shape[0])
    if first >= last:
        return hidden
    hidden = hidden.clone()
    hidden[first - begin : last - begin] += features[first - span.start : last - span.start].to(hidden)
    return hidden
