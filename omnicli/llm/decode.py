"""Turn logits into text, token by token, as a stream that never shows half a character. Knows no model family.

Greedy by default; with a temperature, sampling from the nucleus with its own seeded generator, so that the same call
gives the same text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from omnicli.llm.kv import KVCache
from omnicli.llm.steps import Steps
from omnicli.utils.attention_recorder import AttentionRecorder

if TYPE_CHECKING:
    from omnicli.models.base import OmniModel
    from omnicli.models.parts import Tokenizer

_UNFINISHED = "\ufffd"


@dataclass(frozen=True)
class DecodeOptions:
    """How to decode.

    Attributes
    ----------
    max_new_tokens : int
        At most this many tokens, the stop token not counted.
    temperature : float
        0 is greedy.
    top_p : float
        Sample from the smallest set of tokens that holds this much probability. Only with a temperature.
    seed : int
        Of the sampling generator.
    stop : tuple of str
        The answer ends before the first of these strings, also when it spans several tokens.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


class Generation(Iterator[str]):
    """An answer being written: iterate for text pieces, then read the rest.

    Attributes
    ----------
    text : str
        What has been emitted so far.
    token_ids : list of int
        Generated ids, without the stop token.
    finish_reason : str or None
        ``"eos"``, ``"stop"`` (a stop string), ``"length"``, or None while running.
    next_position : float
        Rotary position of the next token (see `EncodedClip`); all generated ids but the last are in the cache.
    """

    def __init__(
        self,
        model: OmniModel,
        cache: KVCache,
        logits: Tensor,
        next_position: float,
        options: DecodeOptions,
        *,
        recorder: AttentionRecorder,
    ) -> None:
        self.token_ids: list[int] = []
        self.finish_reason: str | None = None
        self.next_position = next_position
        self._model, self._options = model, options
        self._steps = Steps(model, cache, recorder, options.max_new_tokens)
        self._logits = logits
        self._writer = TextWriter(model.tokenizer, options.stop)
        self._generator = torch.Generator(device=logits.device).manual_seed(options.seed)

    @property
    def text(self) -> str:
        """Everything emitted so far."""
        return self._writer.text

    def finish(self) -> str:
        """Run to the end and return the whole text."""
        for _ in self:
            pass
        return self.text

    def __next__(self) -> str:
        while self.finish_reason is None:
            piece = self._step()
            if piece:
                return piece
        raise StopIteration

    @torch.no_grad()
    def _step(self) -> str:
        options = self._options
        if len(self.token_ids) >= options.max_new_tokens:
            self.finish_reason = "length"
            return self._writer.close()
        token = pick(self._logits, options.temperature, options.top_p, self._generator)
        if token in self._model.stop_ids:
            self.finish_reason = "eos"
            return self._writer.close()
        self.token_ids.append(token)
        piece = self._writer.write(token)
        if self._writer.stopped:
            self.finish_reason = "stop"
        elif len(self.token_ids) < options.max_new_tokens:
            self._logits = self._steps(token, self.next_position)
            self.next_position += 1
        return piece


def generate(
    model: OmniModel,
    cache: KVCache,
    logits: Tensor,
    next_position: float,
    options: DecodeOptions | None = None,
    *,
    recorder: AttentionRecorder | None = None,
) -> Generation:
    """Continue from ``logits`` (V,) after the cache's tokens.

    Parameters
    ----------
    next_position : float
        Rotary position of the first generated token, the same on all axes.
    recorder : AttentionRecorder
        Is shown what every token that is written attends to.

    Returns
    -------
    Generation
        An iterator of text pieces that also tells token ids and why it ended.
    """
    settings = options or DecodeOptions()
    return Generation(model, cache, logits, next_position, settings, recorder=recorder or AttentionRecorder.nothing())


def pick(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """Return one token id from logits (V,): the largest at temperature 0, else one drawn from the nucleus."""
    if temperature <= 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.float() / temperature, dim=-1)
    if top_p < 1:
        ordered, index = probabilities.sort(descending=True, stable=True)
        # A token stays while the mass before it is below top_p: the smallest set that reaches it, never empty.
        ordered = ordered.masked_fill(ordered.cumsum(0) - ordered >= top_p, 0)
        ordered[0] = ordered[0].clamp(min=1e-12)
        return int(index[torch.multinomial(ordered, 1, generator=generator)])
    return int(torch.multinomial(probabilities, 1, generator=generator))


class TextWriter:
    """Turns ids into text pieces: whole characters only, nothing that may still become a stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = ()) -> None:
        self.text = ""
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = tuple(s for s in stop if s)
        self._pending: list[int] = []
        self._shown = 0  # characters of the pending ids' text that are out already
        self._held = ""

    def write(self, token: int) -> str:
        """Take one id and return what can be shown now (often one word piece, sometimes nothing)."""
        self._pending.append(token)
        text = self._tokenizer.decode(self._pending)
        # A character that lacks bytes is one U+FFFD at the end; what stands before it cannot change any more.
        whole = text[:-1] if text.endswith(_UNFINISHED) else text
        piece, self._shown = whole[self._shown :], len(whole)
        if whole == text:
            self._pending, self._shown = [], 0
        return self._emit(piece)

    def close(self) -> str:
        """Return what was held back; an unfinished character becomes U+FFFD."""
        text = self._tokenizer.decode(self._pending)[self._shown :] if self._pending else ""
        self._pending, self._shown = [], 0
        piece = self._emit(text)
        if not self.stopped:
            piece += self._held
            self.text += self._held
            self._held = ""
        return piece

    def _emit(self, text: str) -> str:
        held = self._held + text
        found = [i for i in (held.find(s) for s in self._stop) if i >= 0]
        if found:
            self.stopped = True
            held, self._held = held[: min(found)], ""
        else:
            keep = max((_overlap(held, s) for s in self._stop), default=0)
            held, self._held = held[: len(held) - keep], held[len(held) - keep :]
        self.text += held
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of ``text`` that begins ``stop``."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
