"""AVOC where a film is still coming in: see `omnicli.compress.streaming` for how it chooses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from omnicli.compress.base import everything
from omnicli.compress.methods.avoc import Avoc
from omnicli.compress.streaming import Stream
from omnicli.types import MediaTokens, Query, Selection


@dataclass(frozen=True)
class AvocStream(Avoc):
    """Choose as AVOC does, block by block as they arrive, in memory bounded by the budget instead of the clip."""

    criterion: ClassVar[str] = "as avoc, by what has been seen so far"

    def compress(self, tokens: MediaTokens, query: Query) -> Selection:
        """Feed the clip's blocks to a `Stream`.

        Raises
        ------
        ModelError
            Embeddings are not finite.
        ConfigError
            The scorer file does not fit the model, or the settings leave nothing of what the clip holds.
        """
        projections, report = self._projections(tokens)
        if self.budget(tokens).total == len(tokens):
            return everything(tokens, **report)
        order = None
        if not bool((tokens.window[1:] >= tokens.window[:-1]).all()):
            order = tokens.window.argsort(stable=True)
            tokens = tokens.select(Selection(order))
        stream = Stream(self, query.embeddings, projections)
        stream.push(tokens)
        budget, kept = stream.budget(), stream.finish()
        if order is not None:
            kept = order[kept].sort().values
        return Selection(kept, report={"budget": budget.to_dict(), **report})


__all__ = ["AvocStream"]
