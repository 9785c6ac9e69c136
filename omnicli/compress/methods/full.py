"""No compression: the LLM reads every token. The yardstick for all other methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from omnicli.compress.base import Compressor, everything
from omnicli.types import MediaTokens, Query, Selection


@dataclass(frozen=True)
class Full(Compressor):
    """Keep every token."""

    criterion: ClassVar[str] = "nothing"

    def compress(self, tokens: MediaTokens, query: Query) -> Selection:
        """Choose all tokens."""
        return everything(tokens)
