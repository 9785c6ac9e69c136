"""Two methods in a row, written ``avoc+seats``: the first chooses before the LLM, the second inside it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from omnicli.compress.base import Compressor, ignored
from omnicli.types import LayerView, MediaTokens, Query, Selection

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Chain(Compressor):
    """What enters the LLM is the choice of ``first``; ``second`` drops more on the way through the layers.

    A first stage that ``second`` has as well (SEATS) is left out: its shares are those of what entered.
    """

    first: Compressor
    second: Compressor

    @property
    def name(self) -> str:  # type: ignore[override]
        """Both names, as the chain is asked for."""
        return f"{self.first.name}+{self.second.name}"

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """What either needs."""
        return self.first.needs | self.second.needs

    def problems(self) -> list[str]:
        """Return why the two cannot be chained."""
        found = []
        if type(self.first).compress is Compressor.compress:
            found.append(f"method: {self.first.name} chooses nothing before the LLM; put it last")
        if type(self.first).prune is not Compressor.prune:
            found.append(f"method: {self.first.name} works inside the LLM too, which would be left out; put it last")
        if type(self.second).prune is Compressor.prune:
            found.append(f"method: {self.second.name} does nothing inside the LLM; put it first")
        found += [f"{self.second.name}.{line}" for line in ignored(self.second, self.second.idle_behind())]
        return found

    def bind(self, model_folder: Path) -> Self:
        """Return both bound."""
        return dataclasses.replace(self, first=self.first.bind(model_folder), second=self.second.bind(model_folder))

    def compress(self, tokens: MediaTokens, query: Query) -> Selection:
        """Choose as the first does."""
        return self.first.compress(tokens, query)

    def reads_first(self, depth: int) -> tuple[int, float] | None:
        """Return what the first asks of the LLM."""
        return self.first.reads_first(depth)

    def layers(self, depth: int) -> tuple[int, ...]:
        """Return the second's layers."""
        return self.second.layers(depth)

    def prune(self, layer: int, view: LayerView) -> Tensor:
        """Drop as the second does, with what entered the LLM as its whole."""
        return self.second.prune(layer, dataclasses.replace(view, encoded=None))

    def late_removal(self, depth: int) -> int | None:
        """Return the second's late layer."""
        return self.second.late_removal(depth)

    def keeps_kv(self) -> bool:
        """Return what the second says."""
        return self.second.keeps_kv()

    def nominal(self, n_video: int, n_audio: int) -> tuple[float, float] | None:
        """Return the first's shares."""
        return self.first.nominal(n_video, n_audio)

    def entering(self, n_video: int, n_audio: int) -> tuple[int, int]:
        """Return what the first lets in."""
        return self.first.entering(n_video, n_audio)

    def params(self) -> dict[str, Any]:
        """Return the settings by method."""
        return {part.name: part.params() for part in (self.first, self.second)}


__all__ = ["Chain"]
