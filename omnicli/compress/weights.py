"""Trained weights that a method reads from a safetensors file. Knows no method and no network."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from omnicli.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
Parse = Callable[[Mapping[str, "Tensor"], Mapping[str, str]], T]
"""Makes something of tensors and the file's metadata; `ValueError` says what is wrong with them."""


def beside(model_folder: Path, name: str, otherwise: str) -> str:
    """Return the path of file ``name`` in a model's folder, or ``otherwise`` where there is none."""
    file = Path(model_folder) / name
    return str(file) if file.is_file() else otherwise


def load_weights(path: Path, parse: Parse[T], what: str, within: str = "") -> T:
    """Return what ``parse`` makes of a file; read again only after it has changed.

    Parameters
    ----------
    what : str
        What the file should hold, for the error: ``AVOC scorer``.
    within : str
        Only the tensors below this module, named from there on, where the file holds any such; others are not read.

    Raises
    ------
    ConfigError
        It cannot be read or does not hold what it should.
    """
    try:
        return _load(path, path.stat().st_mtime_ns, parse, what, within)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from None


@lru_cache(maxsize=4)
def _load(path: Path, changed_ns: int, parse: Parse[T], what: str, within: str) -> T:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            module = re.compile(rf"(^|\.){re.escape(within)}\." if within else "^")
            names = [name for name in file.keys() if module.search(name)] or list(file.keys())  # noqa: SIM118
            tensors = {
                name[found.end() if (found := module.search(name)) else 0 :]: file.get_tensor(name) for name in names
            }
            return parse(tensors, file.metadata() or {})
    except (SafetensorError, ValueError) as error:
        raise ConfigError(f"{path}: is no {what}: {error}") from None


__all__ = ["beside", "load_weights"]
