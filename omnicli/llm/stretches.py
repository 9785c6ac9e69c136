"""What a prompt attends to in a film that is read stretch by stretch: the LLM as a compression method may ask it.

Every stretch is read behind the prompt's beginning and before its end, as if it were the whole film, by the LLM's first
layers only. The cost grows with the film's length and not with its square. Knows no family and no method.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from omnicli.llm.kv import KVCache
from omnicli.llm.prefix import extra_features, read_rows
from omnicli.utils.attention_recorder import AttentionRecorder
from omnicli.utils.context import RunContext

if TYPE_CHECKING:
    from omnicli.models.base import OmniModel
    from omnicli.models.parts import EncodedClip, Prompt


class StretchReader:
    """Reads a clip's tokens in stretches with one prompt around each; a `omnicli.types.Backbone`.

    Parameters
    ----------
    prompt : Prompt
        What stands around the media. Every stretch is read with all of it: the shorter, the cheaper.
    clip : EncodedClip
        All tokens of the clip, by its own clock.
    context : RunContext
        Is told of ``compress`` in media tokens read.

    Attributes
    ----------
    work : list of (int, int)
        Of each stretch read so far, how many positions and by how many layers: what its arithmetic follows from.
    """

    def __init__(self, model: OmniModel, prompt: Prompt, clip: EncodedClip, context: RunContext | None = None) -> None:
        self.depth, self.work = model.depth, list[tuple[int, int]]()
        self._model, self._prompt, self._clip = model, prompt, clip
        self._progress = (context or RunContext()).progress

    @torch.no_grad()
    def attention(self, stretches: Sequence[slice], layers: range) -> Tensor:
        """Return the mean attention (N,) float32 of the prompt's last token to each token; see `Backbone.attention`."""
        model, count = self._model, len(self._clip.tokens)
        cache = KVCache(
            layers.stop,
            model.kv_heads,
            model.head_dim,
            dtype=model.dtype,
            device=model.layer_devices[: layers.stop],
            capacity=max((rows.stop - rows.start for rows in stretches), default=0) + self._text,
        )
        scores = torch.zeros(count, dtype=torch.float32, device=model.device)
        for rows in stretches:
            scores[rows] = self._read(rows, layers, cache)
            self._progress("compress", rows.stop, count)
        return scores

    @property
    def _text(self) -> int:
        return self._prompt.before.numel() + self._prompt.after.numel()

    def _read(self, rows: slice, layers: range, cache: KVCache) -> Tensor:
        """Return the attention to one stretch. ``cache`` keeps the prompt's beginning from one to the next."""
        part = self._clip.stretch(rows)
        said = self._model.sequence(self._prompt, part)
        held = min(*cache.lengths, said.media_span.start)
        cache.truncate(held)
        self.work.append((len(said.embeds), layers.stop))
        recorder = AttentionRecorder(layers, len(part.tokens))
        everything = torch.arange(len(part.tokens), device=self._model.device)
        recorder.first, recorder.held = said.media_span.start, [everything] * layers.stop
        read_rows(
            self._model,
            said.embeds[held:],
            said.position_ids[:, held:],
            cache,
            layers=layers.stop,
            span=said.media_span,
            extra=extra_features(part.tokens),
            chunk=2048,
            first=held,
            report=lambda done: None,
            recorder=recorder,
        )
        return recorder.scores()
