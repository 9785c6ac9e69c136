"""What is known of scores that have gone by, in bounded memory: mean, deviation, and a sample. Knows no method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

SAMPLE = 32768
"""Most tokens of a modality that are sampled: twenty minutes of Qwen2.5-Omni's sound. 384 KiB."""

_GOLDEN, _RANGE = 2654435761, 1 << 32  # multiples of the golden section spread evenly whatever the period of a film


@dataclass
class Moments:
    """Running count, mean, sum of squared deviations and largest magnitude of a score (Welford, block by block)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    largest: float = 0.0

    def add(self, values: Tensor) -> None:
        """Take in values (n,)."""
        if values.numel() == 0:
            return
        v = values.double()
        mean = float(v.mean())
        apart, total = mean - self.mean, self.count + v.numel()
        self.squares += float((v - mean).square().sum()) + apart * apart * self.count * v.numel() / total
        self.mean += apart * v.numel() / total
        self.count, self.largest = total, max(self.largest, float(v.abs().max()))

    def z(self, values: Tensor) -> Tensor:
        """Return z-scores (n,) float32; all 0 where the values were equal up to rounding, as `ops.zscore` has it."""
        variance = self.squares / max(1, self.count)
        if variance <= (1e-6 * self.largest) ** 2:
            return torch.zeros_like(values)
        return ((values.double() - self.mean) / variance**0.5).float()


class Sample:
    """Values of tokens that came, all of them up to `SAMPLE`, then an even sample that depends on their numbers only.

    Attributes
    ----------
    values : Tensor (n,) float32
        In no order.
    """

    def __init__(self, device: torch.device) -> None:
        self.values = torch.zeros(0, device=device)
        self._key = torch.zeros(0, dtype=torch.int64, device=device)

    def add(self, number: Tensor, values: Tensor) -> None:
        """Take in tokens by their ``number`` (n,) int64, none of them twice, and what is to be remembered (n,)."""
        self._key = torch.cat([self._key, number * _GOLDEN % _RANGE])
        self.values = torch.cat([self.values, values])
        if len(self._key) > SAMPLE:
            stay = self._key.argsort(stable=True)[:SAMPLE]
            self._key, self.values = self._key[stay], self.values[stay]


__all__ = ["SAMPLE", "Moments", "Sample"]
