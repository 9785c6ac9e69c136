"""Methods and model families by name: a file's name in ``compress/`` or ``models/``, or an entry point.

Other packages offer theirs under the entry point groups ``omnicli.methods`` and ``omnicli.models``. Listing names
imports nothing; a class is imported when it is asked for. What is built in cannot be replaced by an entry point.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from omnicli.errors import ConfigError, near_names

if TYPE_CHECKING:
    from omnicli.compress.base import Compressor
    from omnicli.models.base import OmniModel
    from omnicli.models.facts.base import Facts

METHOD_GROUP = "omnicli.methods"
MODEL_GROUP = "omnicli.models"
METHOD_HELPERS = frozenset(
    {
        "base", "budget", "chain", "groups", "max_min", "ops", "published", "schedule", "selector", "streaming",
        "tammr", "weights",
    }
)  # fmt: skip
"""Modules in ``compress/`` that are no methods; so are names that begin with an underscore."""

MODEL_HELPERS = frozenset(
    {
        "account", "attention", "base", "chat", "checkpoint", "dummy", "hub", "layout", "loading", "mel",
        "minicpm_o_towers", "minicpm_o_weights", "parts", "preprocessing", "quantize", "quantize_loading", "qwen_omni",
        "shelf", "towers", "verify",
    }
)  # fmt: skip
"""Modules in ``models/`` that are no families."""

T = TypeVar("T")


class Plugins(Mapping[str, type[T]], Generic[T]):
    """Names and classes; a class is imported when its name is looked up."""

    def __init__(self, what: str, sources: Mapping[str, Callable[[], Any]]) -> None:
        self.what = what
        self._sources = dict(sorted(sources.items()))

    def __getitem__(self, name: str) -> type[T]:
        try:
            source = self._sources[name]
        except KeyError:
            raise KeyError(name) from None
        return source()

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def __contains__(self, name: object) -> bool:
        return name in self._sources

    def find(self, name: str) -> type[T]:
        """Return the class called ``name``.

        Raises
        ------
        ConfigError
            There is none (with near names), or it cannot be imported.
        """
        if name not in self._sources:
            raise ConfigError(f"unknown {self.what} {name!r}{near_names(name, self)}")
        return self[name]


def methods() -> Plugins[Compressor]:
    """Return the compression methods by name."""
    return Plugins("method", _sources("compress", METHOD_HELPERS, _method_class, METHOD_GROUP))


def models() -> Plugins[OmniModel]:
    """Return the model families by name."""
    return Plugins("model family", _sources("models", MODEL_HELPERS, _model_class, MODEL_GROUP))


def facts() -> Plugins[Facts]:
    """Return what is known of the built-in families without their code, by the families' names."""
    return Plugins("model family", _sources("models/facts", frozenset({"__init__", "base", "qwen_omni"}), _facts_class))


def _sources(
    room: str, helpers: frozenset[str], find: Callable[[ModuleType], Any], group: str | None = None
) -> dict[str, Callable[[], Any]]:
    sources: dict[str, Callable[[], Any]] = {}
    for point in _entry_points(group) if group else ():
        sources[point.name] = partial(_load, point)
    package = f"omnicli.{room.replace('/', '.')}"
    for file in (Path(__file__).parent / room).glob("*.py"):
        if file.stem not in helpers and not file.stem.startswith("_"):
            sources[file.stem.replace("_", "-")] = partial(_built_in, f"{package}.{file.stem}", find)
    return sources


def _built_in(module: str, find: Callable[[ModuleType], Any]) -> Any:
    return find(importlib.import_module(module))


@cache
def _entry_points(group: str) -> tuple[importlib.metadata.EntryPoint, ...]:
    return tuple(importlib.metadata.entry_points(group=group))


def _load(point: importlib.metadata.EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as error:  # whatever a foreign package raises while it is imported
        package = point.dist.name if point.dist else point.value
        raise ConfigError(f"{point.group} {point.name!r} of package {package} cannot be loaded: {error}") from error


def _method_class(module: ModuleType) -> type[Compressor]:
    """Return the one method that a module defines (or names as ``METHOD``)."""
    from omnicli.compress.base import Compressor

    if hasattr(module, "METHOD"):
        return module.METHOD
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Compressor) and value.__module__ == module.__name__
    ]
    if len(own) != 1:
        names = ", ".join(c.__name__ for c in own) or "none"
        raise ConfigError(f"{module.__name__}: one Compressor per file is expected, found {names}")
    return own[0]


def _model_class(module: ModuleType) -> type[OmniModel]:
    """Return the family that a module names as ``MODEL``."""
    try:
        return module.MODEL
    except AttributeError:
        raise ConfigError(f"{module.__name__}: defines no MODEL") from None


def _facts_class(module: ModuleType) -> type[Facts]:
    return module.FACTS


__all__ = ["METHOD_GROUP", "MODEL_GROUP", "Plugins", "facts", "methods", "models"]
