"""One film, many questions: it stays encoded, and what was asked and answered stands before the next question.

Knows when the film must be encoded anew and how much of the history fits. Not how a question is answered, and nothing
of terminals.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnicli import pipeline
from omnicli.answer.answer import Answer
from omnicli.encode.film import EncodedFilm, load_film
from omnicli.errors import MemoryLimitError
from omnicli.llm.prefix_cache import PrefixCache
from omnicli.models.base import OmniModel
from omnicli.models.parts import CAPTURES, KEYS, SALIENCIES
from omnicli.utils.context import Progress, RunContext, untold

if TYPE_CHECKING:
    from omnicli.config.config import Config
    from omnicli.encode.cache import Cache
    from omnicli.media.probe import MediaInfo

Turn = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Told:
    """An answer and the turns that stood before its question, oldest first."""

    answer: Answer
    history: tuple[Turn, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the answer's JSON object and, as ``history``, what was asked and answered before."""
        turns = [{"question": question, "answer": answer} for question, answer in self.history]
        return {**self.answer.to_dict(), "history": turns}


class Session:
    """A conversation about one file, which is decoded and encoded when the session is made.

    Parameters
    ----------
    source : str, Path or MediaInfo
        The file, or what `probe` found in it.
    context : RunContext
        Who is told of progress while the film is encoded, and a clock that may already hold what was timed before.
    cache : Cache
        Where encoded films are kept; None: nowhere.

    Attributes
    ----------
    config : Config
        What the next question is answered with; see `switch`.
    history : list of (str, str)
        Questions and answers that the next question comes after.
    told : list of Told
        Every answer so far, forgotten turns included.
    """

    def __init__(
        self,
        source: str | Path | MediaInfo,
        config: Config,
        model: OmniModel,
        context: RunContext | None = None,
        *,
        cache: Cache | None = None,
    ) -> None:
        self.config, self.model = config, model
        self.history: list[Turn] = []
        self.told: list[Told] = []
        self._source, self._cache, self._prefix_cache = source, cache, PrefixCache(model)
        self._load(config, context)

    def ask(
        self, question: str, *, on_text: Callable[[str], None] = lambda text: None, progress: Progress = untold
    ) -> Told:
        """Answer a question that comes after the history, and put it there.

        Where that does not fit the model's context, the oldest turns are forgotten; a warning of the answer says so.
        Nothing changes if an error or an interruption ends it.

        Raises
        ------
        OmniError
            What a user can mend; `MemoryLimitError` if the question alone does not fit.
        """
        film, history = self._film_for(self.config), list(self.history)
        while True:
            try:
                answer = pipeline.answer(
                    film,
                    question,
                    self.config,
                    self.model,
                    prefix_cache=self._prefix_cache,
                    history=history,
                    evidence=True,
                    on_text=on_text,
                    progress=progress,
                )
                break
            except MemoryLimitError:
                if not history:
                    raise
                del history[0]
        if lost := len(self.history) - len(history):
            turns = f"{lost} of {len(self.history)} turns, up to {self.history[lost - 1][0]!r}"
            note = f"the model's context is full: forgot {turns}"
            answer = dataclasses.replace(answer, warnings=[*answer.warnings, note])
        self.told.append(Told(answer, tuple(history)))
        self.history = [*history, (question, answer.answer)]
        return self.told[-1]

    def missing(self, config: Config) -> frozenset[str]:
        """Return the captures that a configuration's method needs and the film was not encoded with."""
        return config.compressor.needs & CAPTURES - self._captured

    def switch(self, config: Config, progress: Progress = untold) -> None:
        """Answer with another configuration of the same media settings from now on; the history stays."""
        if self.missing(config):
            self._load(config, RunContext.on(self.model.device, progress))
        self.config = config

    def _load(self, config: Config, context: RunContext | None) -> None:
        needs = config.compressor.needs
        self.film = load_film(self._source, config.media, needs, self.model, context, cache=self._cache)
        self._captured = needs & CAPTURES

    def _film_for(self, config: Config) -> EncodedFilm:
        """Return the film without captures that a method did not ask for: it might take them into account."""
        if config.compressor.needs & CAPTURES == self._captured:
            return self.film
        media, needs = self.film.media, config.compressor.needs
        tokens = media.clip.tokens
        keys, saliency = tokens.keys if KEYS in needs else None, tokens.saliency if needs & SALIENCIES else None
        tokens = dataclasses.replace(tokens, keys=keys, saliency=saliency)
        clip = dataclasses.replace(media.clip, tokens=tokens)
        return dataclasses.replace(self.film, media=dataclasses.replace(media, clip=clip))
