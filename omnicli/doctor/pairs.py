"""Libraries that do not go together, as one table: a new pair is one entry of `PAIRS`.

Versions come from the packages' metadata, so that what cannot even be imported is found as well.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from omnicli.planning import machine

Numbers = tuple[int, ...]


class Installed:
    """The versions that are there. What is missing is neither inside nor outside of any range."""

    def of(self, package: str) -> str:
        """Return a package's version; empty if it is not installed."""
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(package)
        return ""

    def before(self, package: str, limit: str) -> bool:
        """Tell whether a package is installed in a version below ``limit``."""
        version = _numbers(self.of(package))
        return bool(version) and version < _numbers(limit)

    def since(self, package: str, limit: str) -> bool:
        """Tell whether a package is installed in version ``limit`` or above."""
        version = _numbers(self.of(package))
        return bool(version) and version >= _numbers(limit)

    def outside(self, package: str, low: str, high: str) -> bool:
        """Tell whether a package is installed below ``low``, or in ``high`` or above."""
        return self.before(package, low) or self.since(package, high)

    def build(self, package: str) -> str:
        """Return what a package was built for, such as ``cu130`` or ``cpu``; empty if its version does not say."""
        return self.of(package).partition("+")[2]

    def builds_differ(self, one: str, other: str) -> bool:
        """Tell whether two packages say that they were built for different CUDA versions."""
        builds = {self.build(one), self.build(other)} - {"", "cpu"}
        return len(builds) > 1

    @property
    def torch_cuda(self) -> int:
        """Major version of the CUDA that torch was built for; 0: none, or torch cannot be imported."""
        if tag := re.fullmatch(r"cu(\d+)\d", self.build("torch")):
            return int(tag[1])
        with suppress(Exception):  # a torch that cannot be imported is another check's
            import torch

            return int((torch.version.cuda or "0").partition(".")[0])
        return 0


@dataclass(frozen=True)
class Pair:
    """What does not go together, when that is the case, and what to do."""

    what: str
    holds: Callable[[Installed], bool]
    remedy: str


_TORCH = "pip install --force-reinstall 'torch>=2.11,<2.13' 'torchaudio>=2.11,<2.12'"

PAIRS = (
    Pair(
        "transformers is not 5.23.x, for which the model families are written",
        lambda i: i.outside("transformers", "5.23", "5.24"),
        "pip install 'transformers>=5.23,<5.24'",
    ),
    Pair(
        "av is not 18.x, for which decoding is written",
        lambda i: i.outside("av", "18", "19"),
        "pip install 'av>=18,<19'",
    ),
    Pair("torch is older than 2.11", lambda i: i.before("torch", "2.11"), _TORCH),
    Pair(
        "torchaudio 2.11 is not built for torch 2.13 and later",
        lambda i: i.since("torch", "2.13") and i.before("torchaudio", "2.12"),
        _TORCH,
    ),
    Pair(
        "torch and torchaudio are built for different CUDA versions",
        lambda i: i.builds_differ("torch", "torchaudio"),
        _TORCH + ", both from the same index",
    ),
    Pair(
        "torch before 2.3 is built for numpy 1",
        lambda i: i.before("torch", "2.3") and i.since("numpy", "2"),
        "pip install 'numpy<2', or a newer torch",
    ),
    Pair(
        "torch is built for a newer CUDA than the graphics card's driver knows",
        lambda i: 0 < (machine.driver_cuda() or (0, 0))[0] < i.torch_cuda,
        "update the driver, or install torch and torchaudio for the driver's CUDA from https://download.pytorch.org/whl",
    ),
)
"""Every pair that is known to be bad. Newer minor versions of CUDA run on older drivers of the same major version."""


def bad(installed: Installed | None = None) -> list[Pair]:
    """Return the bad pairs of this installation."""
    installed = installed or Installed()
    return [pair for pair in PAIRS if pair.holds(installed)]


def _numbers(version: str) -> Numbers:
    """Return the leading numbers of a version, at least two: those of ``2.12.1+cu130`` are (2, 12, 1)."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    numbers = tuple(int(part) for part in found[0].split(".")) if found else ()
    return (*numbers, 0) if len(numbers) == 1 else numbers


__all__ = ["PAIRS", "Installed", "Pair", "bad"]
