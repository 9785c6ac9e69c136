"""Where a model's weights are: on one device, on several cards, or in host memory until a part of them works.

What is moved stands here; which modules there are, a family says. Knows nothing of what they compute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from omnicli.errors import ModelError
from omnicli.models.weights.devices import split
from omnicli.models.weights.offload import OffloadedWeights

Part = Literal["encoders", "llm"]
"""What a model consists of, as far as weights can be apart."""


class PlacedModel:
    """A model whose weights may be apart. All results are the same wherever they are.

    Attributes
    ----------
    device : torch.device
        Where the model computes; the first card, if its layers are on several.
    """

    family: ClassVar[str]
    name: str
    device: torch.device
    _offloaded: Mapping[Part, OffloadedWeights] = MappingProxyType({})
    _spread: tuple[torch.device, ...] = ()

    def weights(self) -> dict[Part, list[nn.Module]]:
        """Return the modules of the encoders and of the LLM, together all that hold weights.

        Only `offload` and `spread` need it; a family that does not tell them apart can be neither.
        """
        raise ModelError(f"{self.name}: {self.family} cannot be offloaded: it does not tell its encoders from its LLM")

    def layers(self) -> Sequence[nn.Module]:
        """Return the LLM's layers, first to last, each with all its weights; only `spread` needs them."""
        raise ModelError(
            f"{self.name}: {self.family} cannot be on several cards: it does not tell the LLM's layers from the rest"
        )

    def offload(self, device: torch.device) -> None:
        """Compute on ``device`` from now on; only the part that was activated is there, the rest in host memory."""
        self.device = device
        self._offloaded = {part: OffloadedWeights(modules) for part, modules in self.weights().items()}

    def activate(self, part: Part) -> None:
        """Have the weights of one part on the device, and with `offload` those of the other in host memory only.

        A family calls it where it encodes and where it embeds, with which reading begins.
        """
        for other, weights in self._offloaded.items():
            if other != part:
                weights.to_host()
        if part in self._offloaded:
            self._offloaded[part].to_device(self.device)

    def spread(self, cards: Sequence[torch.device], free: Sequence[int]) -> None:
        """Move the weights to several cards: the LLM's layers in blocks, in order, everything else to the first.

        Parameters
        ----------
        cards : sequence of device
            With their indices.
        free : sequence of int
            Free bytes of each; see `omnicli.models.weights.devices.split`.
        """
        layers, modules = self.layers(), [module for part in self.weights().values() for module in part]
        each, every = (sum(map(_stored, some)) for some in (layers, modules))
        counts = split(len(layers), each // len(layers), every - each, free)
        self._spread = tuple(card for card, count in zip(cards, counts, strict=True) for _ in range(count))
        for layer, card in zip(layers, self._spread, strict=True):
            layer.to(card)
        inside = {id(module) for layer in layers for module in layer.modules()}
        for module in (m for top in modules for m in top.modules() if id(m) not in inside):
            module._apply(lambda tensor: tensor.to(cards[0]), recurse=False)
        self.device = cards[0]

    @property
    def stays(self) -> bool:
        """Whether all weights are on `device` and stay there."""
        return not self._spread and not self._offloaded

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """All devices that hold the model, `device` first."""
        return tuple(dict.fromkeys((self.device, *self._spread)))

    def to_layer_device(self, index: int, hidden: Tensor, rope: Any) -> tuple[Tensor, Any]:
        """Return hidden states and rotary values where layer ``index`` computes: as they are, but at a card's border.

        Rotary values are the pair of `OmniModel.slice_rope`.
        """
        if not self._spread or hidden.device == (there := self._spread[index]):
            return hidden, rope
        return hidden.to(there), tuple(part.to(there) for part in rope)


def _stored(module: nn.Module) -> int:
    """Return the bytes of a module's weights and buffers."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
