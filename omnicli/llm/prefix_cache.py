"""Reads prompts about one clip: what a prompt begins with is read once for all prompts that begin with it.

Prompts about a film differ behind its tokens only, as long as the same tokens are kept. A method that prunes inside the
LLM by the question sees the same keys, values and hidden states up to its first layer; from there on every question
pays for itself. Reading again and reading on give the same numbers, to the bit. Knows no family and no method.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from omnicli.compress.base import Compressor
from omnicli.llm.kv import KVCache
from omnicli.llm.prefill import PrefillResult, prefill
from omnicli.llm.prefix import Prefix, read_prefix, shared_layers
from omnicli.utils.context import RunContext

if TYPE_CHECKING:
    from omnicli.models.base import OmniModel
    from omnicli.models.parts import ModelInput
    from omnicli.types import MediaTokens


class PrefixCache:
    """Keeps the beginning of the last prompt, read.

    Attributes
    ----------
    reused : int
        Positions of the last prompt that did not have to be read again in the first layers.
    """

    def __init__(self, model: OmniModel) -> None:
        self.reused = 0
        self._model = model
        self._prefix: Prefix | None = None

    def read(
        self,
        prompt: ModelInput,
        media: MediaTokens,
        pruner: Compressor,
        *,
        encoded: tuple[int, int],
        room: int,
        last: bool = False,
        context: RunContext | None = None,
    ) -> tuple[PrefillResult, KVCache]:
        """Read a prompt whose media are ``media``; the cache has room for so many tokens more.

        Parameters
        ----------
        last : bool
            No prompt follows: nothing is kept, and nothing needs to be copied.

        See `omnicli.llm.prefill.prefill` for the others.
        """
        model, span, size = self._model, prompt.media_span, prompt.embeds.shape[0]
        layers, rows = shared_layers(model, media, pruner), prompt.media_span.stop
        begin = prompt.embeds[:rows], prompt.position_ids[:, :rows]
        prefix, self._prefix = self._prefix, None  # a failure leaves nothing half read
        if prefix is not None and not (prefix.rows == rows and prefix.fits(*begin, media, layers)):
            prefix = None
        self.reused = 0 if prefix is None else rows
        context = context or RunContext()
        if prefix is None:
            cache = KVCache(
                model.depth,
                model.kv_heads,
                model.head_dim,
                dtype=model.dtype,
                device=model.layer_devices,
                capacity=size + room,
            )
            part = rows * layers / model.depth
            prefix = read_prefix(
                model,
                *begin,
                cache,
                media_span=span,
                media=media,
                layers=layers,
                report=lambda done: context.progress("prefill", done * part, size),
            )
        prunes = layers < model.depth
        cache = prefix.cache.copy(layers, size + room) if prunes and not last else prefix.cache
        if not prunes:
            cache.truncate(rows)  # what the last question and its answer left
        if not last:
            self._prefix = prefix
        found = prefill(
            model,
            prompt.embeds,
            prompt.position_ids,
            cache,
            media_span=span,
            media=media,
            pruner=pruner,
            encoded=encoded,
            prefix=prefix,
            context=context,
        )
        return found, cache
