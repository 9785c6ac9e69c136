"""AVOC where a film is still coming in: see `omnicli.compress.streaming` for how it chooses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from omnicli.compress.base import everything
from omnicli.compress.methods.avoc import BACKBONE, Avoc
from omnicli.compress.streaming import Stream
from omnicli.types import MediaTokens, Query, Selection


@dataclass(frozen=True)
class AvocStream(Avoc):
    """Choose as AVOC does, block by block as they arrive, in memory bounded by the budget instead of the clip."""

    criterion: ClassVar[str] = "as avoc, by what has been seen so far"

    def problems(self) -> list[str]:
        """Return what is wrong with the fields."""
        found = super().problems()
        if self.scorer == BACKBONE:
            found.append(f"scorer: a film that is still coming in cannot be read by the {BACKBONE}; use avoc")
        if self.radius is None:
            found.append("radius: what was let go of a film that is still coming in cannot be compared with; use avoc")
        return found

    def idle(self) -> dict[str, str]:
        """Return the fields that cannot act: those of a scorer that a stream has not."""
        return super().idle() | dict.fromkeys(("stretch_s", "scorer_layers"), f"only avoc's scorer {BACKBONE} has it")

    def reads_first(self, depth: int) -> tuple[int, float] | None:
        """Return None: the LLM is never asked."""
        return None

    def compress(self, tokens: MediaTokens, query: Query) -> Selection:
        """Feed the clip's blocks to a `Stream`.

        Raises
        ------
        ModelError
            Embeddings are not finite.
        ConfigError
            The scorer file does not fit the model, or the settings leave nothing of what the clip holds.
        """
        projections, scorer = self._projections(tokens)
        if self.budget(tokens).total == len(tokens):
            return everything(tokens, scorer=scorer)
        order = None
        if not bool((tokens.window[1:] >= tokens.window[:-1]).all()):
            order = tokens.window.argsort(stable=True)
            tokens = tokens.select(Selection(order))
        stream = Stream(self, query.embeddings, projections)
        stream.push(tokens)
        budget, kept = stream.budget(), stream.finish()
        if order is not None:
            kept = order[kept].sort().values
        report = {"budget": budget.to_dict(), "scorer": scorer}
        return Selection(kept, report=report, notes=self._notes(scorer, tokens))


__all__ = ["AvocStream"]
