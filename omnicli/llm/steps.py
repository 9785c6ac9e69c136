"""From a token that was written to the logits of the next one: layer by layer, or as one recorded CUDA graph.

A step of one token is hundreds of small kernels, and launching them one by one takes a graphics card longer than the
work. After some steps the next one is recorded and from then on run again as a whole. Before it is relied on, the
recording must give the logits of the step before it; whatever goes wrong, steps go on layer by layer. Nothing here
chooses tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from omnicli.llm.kv import KVCache, LastRow

if TYPE_CHECKING:
    from omnicli.models.base import OmniModel
    from omnicli.utils.attention_recorder import AttentionRecorder

BEFORE = 8
"""Steps before one is recorded, which costs about two of them: short answers do without."""
WORTH = 8
"""Further steps that must be possible."""
ROWS = 32768
"""Rows of a layer's cache up to which launching takes longer than reading them."""
APART, APART_HALF = 1e-3, 0.05
"""How far its logits may be from those of the step before, relative to the largest: in float32, and in 16 bits, where
attention that is summed in another order is rounded in every layer."""

Step = Callable[[], None]


class Steps:
    """Writes tokens into a model's cache, one at a time.

    Parameters
    ----------
    recorder : AttentionRecorder
        Is shown what every token attends to. Steps are then not recorded.
    most : int
        Tokens that may come in all.
    record : callable, optional
        Turns a step into one that can be run again; None: as a CUDA graph, on a model that may (`can_record`).
    """

    def __init__(
        self,
        model: OmniModel,
        cache: KVCache,
        recorder: AttentionRecorder,
        most: int,
        record: Callable[[Step], Step] | None = None,
    ) -> None:
        self._model, self._cache, self._recorder, self._most = model, cache, recorder, most
        self._count = 0
        if record is None and can_record(model):
            record = as_graph(model.device)
        self._record = None if len(recorder.layers) else record
        self._recorded: Recorded | None = None

    @property
    def recorded(self) -> bool:
        """Whether steps are run from a recording by now."""
        return self._recorded is not None

    def __call__(self, token: int, position: float) -> Tensor:
        """Append ``token`` at rotary ``position``, the same on all axes; return logits (V,) float32.

        They are overwritten by the next step.
        """
        if self._recorded is not None:
            self._cache.extend()
            return self._recorded(token, position)
        logits = self._by_layer(token, position)
        self._count += 1
        if self._count == BEFORE and self._record is not None and self._pays():
            self._recorded = Recorded.proven(self._model, self._cache, self._record, (token, position), logits)
        return logits

    def _pays(self) -> bool:
        left = self._most - self._count
        return left >= WORTH and self._cache.room() >= left and max(self._cache.lengths) + left <= ROWS

    def _by_layer(self, token: int, position: float) -> Tensor:
        model = self._model
        hidden = model.embed(torch.tensor([token], device=model.device))
        rope = model.rope(torch.full((model.position_axes, 1), position, device=model.device))
        for layer in range(model.depth):
            ask = layer in self._recorder.layers
            hidden, rope = model.to_layer_device(layer, hidden, rope)
            hidden, attention = model.layer(layer, hidden, rope, self._cache, last_attention=ask)
            self._recorder.add(attention, layer)
        return model.logits(hidden.to(model.device))[0]


class Recorded:
    """A step that was recorded, and the tensors that it reads and writes."""

    def __init__(self, model: OmniModel, cache: KVCache, position: float) -> None:
        self._token = torch.zeros(1, dtype=torch.int64, device=model.device)
        self._position = torch.full((model.position_axes, 1), position, device=model.device)
        self._model, self._row = model, LastRow(cache)
        self._run: Step
        self._logits: Tensor

    @classmethod
    def proven(
        cls, model: OmniModel, cache: KVCache, record: Callable[[Step], Step], step: tuple[int, float], logits: Tensor
    ) -> Recorded | None:
        """Record a step; None if that fails, or if, run again for the last ``step``, it gives other ``logits``."""
        made = cls(model, cache, step[1])
        written = made._row.read()
        with contextlib.suppress(RuntimeError):
            made._run = record(made._step)
            limit = (APART if model.dtype is torch.float32 else APART_HALF) * float(logits.abs().max())
            if float((made(*step) - logits).abs().max()) <= limit:
                return made
        made._row.write(written)
        return None

    def __call__(self, token: int, position: float) -> Tensor:
        """Write ``token`` into the last row that the cache counts; return logits (V,) float32."""
        self._token.fill_(token)
        self._position.fill_(position)
        self._row.follow()
        self._run()
        return self._logits

    def _step(self) -> None:
        model = self._model
        hidden, rope = model.embed(self._token), model.rope(self._position)
        for layer in range(model.depth):
            cache: Any = self._row
            hidden, _ = model.layer(layer, hidden, rope, cache)
        self._logits = model.logits(hidden)[0]


def can_record(model: OmniModel) -> bool:
    """Tell whether a model's steps can be recorded here: on one graphics card, with all weights there."""
    return model.cuda_graph_safe and model.stays and model.device.type == "cuda"


def as_graph(device: torch.device) -> Callable[[Step], Step]:
    """Return what records a step as a CUDA graph. Run on no card yet."""

    def record(step: Step) -> Step:
        with torch.cuda.device(device):
            beside = torch.cuda.Stream(device)
            beside.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(beside):
                step()  # kernels are loaded and workspaces made before anything is recorded
            torch.cuda.current_stream(device).wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            # other threads may be scaling the next film's frames on the same card
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                step()
        return graph.replay

    return record
