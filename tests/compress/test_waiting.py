"""No method waits for the device inside a loop: what stops the host does not become more with the film.

On a graphics card each of these calls waits until everything before it is done. A CPU shows how often they are made.
"""

from __future__ import annotations

import pytest
import torch
from torch.overrides import TorchFunctionMode

from omnicli.config import registry
from omnicli.testing.clips import clip, query
from omnicli.types import LayerView, MediaTokens, Modality, Selection

DEPTH = 28
ROUNDS = 12
"""Waits that may come on top: TA-MMR and OmniZip work in rounds, whose number grows with the logarithm of the film."""

BY_NATURE = {"avoc-stream": "chooses window by window, as the film comes"}

WAITS = {"item", "tolist", "cpu", "numpy", "nonzero", "masked_select", "unique", "unique_consecutive"}
WAITS |= {"__bool__", "__int__", "__float__", "__index__"}


class Waits(TorchFunctionMode):
    """Counts the calls that would wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name == "__getitem__":
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            self.count += any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in index)
        elif name == "repeat_interleave":
            self.count += "output_size" not in kwargs and isinstance(args[1], torch.Tensor)
        elif name == "to":
            self.count += any(str(a) == "cpu" for a in [*args[1:], *kwargs.values()])
        else:
            self.count += name in WAITS
        return function(*args, **kwargs)


def counts(tokens: MediaTokens) -> tuple[int, int]:
    return tokens.count(Modality.VIDEO), tokens.count(Modality.AUDIO)


def waits(name: str, blocks: int) -> list[int]:
    """Return how often `compress`, and then `prune` at each layer, would wait on a film of so many windows."""
    method = registry.methods().find(name).with_retention(0.25)
    tokens = clip(blocks, 1, 50, rows=6, cols=6)
    with Waits() as seen:
        chosen = method.compress(tokens, query())
    found = [seen.count]
    media = entered = tokens.select(chosen)
    generator = torch.Generator().manual_seed(0)
    for layer in sorted(method.layers(DEPTH)):
        hidden, attention = torch.randn(len(media), 16, generator=generator), torch.rand(len(media))
        view = LayerView(layer, DEPTH, hidden, attention, media, entered=counts(entered), encoded=counts(tokens))
        with Waits() as seen:
            keep = method.prune(layer, view)
        found.append(seen.count)
        media = media.select(Selection(keep))
    return found


def test_the_count_sees_what_would_wait():
    x = torch.arange(4)
    with Waits() as seen:
        int(x[0]), bool(x[1] > 0), x.tolist(), x[x > 1], x.nonzero(), x.to("cpu"), x.sum().item()
        x[:2], x + 1, x[torch.tensor([0])]
    assert seen.count == 7


@pytest.mark.parametrize("name", sorted(registry.methods()))
def test_a_longer_film_waits_no_more_often(name):
    short, long = waits(name, 12), waits(name, 60)
    if name in BY_NATURE:
        assert long[0] > 4 * short[0], "it does not choose window by window any more: take it out of BY_NATURE"
        return
    for at, (few, many) in enumerate(zip(short, long, strict=True)):
        assert many <= few + ROUNDS, f"{'compress' if at == 0 else f'prune {at}'}: {few} waits, then {many}"
