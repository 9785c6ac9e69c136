"""Weights that wait in host memory and are on a device while they work. Knows no model."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class OffloadedWeights:
    """The weights and buffers of some modules, which are in host memory when it is made, and stay there.

    Weights never change, so going back means to forget the copy on the device: nothing is written.

    Parameters
    ----------
    modules : iterable of Module
        Moved to host memory if they are not there.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._here: list[tuple[Tensor, Tensor]] = []
        for module in modules:
            module.to("cpu")
            self._here += [(tensor, tensor.data) for tensor in (*module.parameters(), *module.buffers())]
        self._away = False

    def to_device(self, device: torch.device) -> None:
        """Copy the weights to the device, unless they are there."""
        if not self._away:
            with torch.inference_mode(False):  # what is made in it could not be used outside of it
                for tensor, host in self._here:
                    tensor.data = host.to(device)
            self._away = True

    def to_host(self) -> None:
        """Take the weights in host memory again; the device's memory is free for others."""
        if self._away:
            for tensor, host in self._here:
                tensor.data = host
            self._away = False
