"""A model as the bench drives it: nothing ends an answer early, and the moment of the first token is known.

Works on a copy of the adapter that shares all weights with the original, which stays as it was. Knows no family.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
import time
from typing import Any

import torch
from torch import Tensor

from omnicli.models.base import OmniModel
from omnicli.models.parts import ModelInput


class FixedLengthModel:
    """The copy (``model``) and what it heard in the last run.

    - No id stops it, so that every variant writes the same number of tokens and its rate can be compared.
    - The end of prefill waits for the device, once, as picking the first token would: prefill's time is its own and
      that of the first token is taken there.
    - Random weights know no trained context, so that only memory limits their prompt.

    Attributes
    ----------
    read_at : float or None
        ``time.perf_counter()`` when the first token was known.
    ids : list of int
        Generated ids of the last run, if ``listen`` is on; it costs a device wait per token.
    """

    def __init__(self, model: OmniModel) -> None:
        self.listen = False
        self.read_at: float | None = None
        self.ids: list[int] = []
        self._source = model
        self.model = copy.copy(model)
        self.model.stop_ids = frozenset()
        if model.folder is None:
            self.model.facts = dataclasses.replace(model.facts, max_position=sys.maxsize)
        self.model.logits = self._logits  # type: ignore[method-assign]
        self.model.sequence = self._sequence  # type: ignore[method-assign]

    def start(self, *, listen: bool) -> None:
        """Forget the last run."""
        self.listen, self.read_at, self.ids = listen, None, []
        self.model.cuda_graph_safe = self._source.cuda_graph_safe and not listen  # what is recorded is not heard

    def answer_ids(self) -> list[int]:
        """Return the ids up to where the model itself would have stopped."""
        stops = [i for i, token in enumerate(self.ids) if token in self._source.stop_ids]
        return self.ids[: stops[0]] if stops else list(self.ids)

    def wait(self) -> None:
        """Wait for the device."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)

    def _sequence(self, *args: Any, **kwargs: Any) -> ModelInput:
        self.wait()  # else prefill would wait for what compression still has on the device
        return self._source.sequence(*args, **kwargs)

    def _logits(self, hidden: Tensor) -> Tensor:
        out = self._source.logits(hidden)
        if self.read_at is None:
            self.wait()
            self.read_at = time.perf_counter()
        if self.listen:
            self.ids.append(int(out[-1].argmax()))
        return out


def agreement(reference: list[int], ids: list[int]) -> float:
    """Return the share of tokens before the first difference, of the longer answer: 1 for equal answers."""
    longest = max(len(reference), len(ids))
    same = 0
    for a, b in zip(reference, ids, strict=False):
        if a != b:
            break
        same += 1
    return same / longest if longest else 1.0
