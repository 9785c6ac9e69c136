"""Classes by name: a file's name in a folder that holds nothing else, or an entry point of another package.

Other packages offer methods under the entry point group ``omnicli.methods``. Listing names imports nothing; a class is
imported when it is asked for. What is built in cannot be replaced by an entry point. A file or an entry point that
gives no class is told of when it is asked for, and hurts no other.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from omnicli.errors import ConfigError, OmniError, near_names

if TYPE_CHECKING:
    from omnicli.compress.base import Compressor

METHOD_GROUP = "omnicli.methods"

T = TypeVar("T")


class Registry(Mapping[str, type[T]], Generic[T]):
    """Names and classes; a class is imported when its name is looked up.

    Parameters
    ----------
    what : str
        What the classes are, for messages.
    base : str
        ``module:Class`` that every class must derive from; imported when a class is.
    sources : mapping of str to callable
        What gives the class of a name; raises `OmniError` where there is none.
    """

    def __init__(self, what: str, base: str, sources: Mapping[str, Callable[[], Any]]) -> None:
        self.what, self._base = what, base
        self._sources = dict(sorted(sources.items()))

    def __getitem__(self, name: str) -> type[T]:
        try:
            source = self._sources[name]
        except KeyError:
            raise KeyError(name) from None
        found = source()
        module, _, base = self._base.partition(":")
        if not (isinstance(found, type) and issubclass(found, getattr(importlib.import_module(module), base))):
            raise ConfigError(f"{self.what} {name!r}: {found!r} is no class that derives from {base}")
        return found

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

    def __repr__(self) -> str:
        return f"<{len(self)} by name: {', '.join(self)}>"

    def usable(self) -> tuple[dict[str, type[T]], list[str]]:
        """Return the classes that can be had, by name, and one line for each name that gives none."""
        found, problems = {}, []
        for name in self:
            try:
                found[name] = self[name]
            except OmniError as error:
                problems.append(str(error))
        return found, problems


def methods() -> Registry[Compressor]:
    """Return the compression methods by name."""
    return Registry(
        "method", "omnicli.compress.base:Compressor", sources("omnicli.compress.methods", _method_class, METHOD_GROUP)
    )


def sources(
    package: str, find: Callable[[ModuleType], Any], group: str, names: Iterable[str] | None = None
) -> dict[str, Callable[[], Any]]:
    """Return what gives the class of each name: files of a package's folder, and entry points of a group.

    Parameters
    ----------
    find : callable
        Gives the class that a module of the folder defines, or raises `OmniError`.
    names : iterable of str
        The modules to take; None: all that are in the folder.
    """
    found: dict[str, Callable[[], Any]] = {point.name: partial(_load, point) for point in _entry_points(group)}
    for name in modules(package) if names is None else names:
        found[name.replace("_", "-")] = partial(_built_in, f"{package}.{name}", find)
    return found


def modules(package: str) -> list[str]:
    """Return the names of the modules in a package's folder; those that begin with an underscore are left out."""
    folders = importlib.import_module(package).__path__
    return sorted(f.stem for folder in folders for f in Path(folder).glob("*.py") if not f.stem.startswith("_"))


def _built_in(module: str, find: Callable[[ModuleType], Any]) -> Any:
    """Return the class of a file; where importing it fails, one line that names the file."""
    try:
        return find(importlib.import_module(module))
    except OmniError:
        raise
    except (Exception, SystemExit) as error:  # whatever a stray file raises while it is imported
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{module.replace('.', '/')}.py cannot be imported ({why})") from error


@cache
def _entry_points(group: str) -> tuple[importlib.metadata.EntryPoint, ...]:
    return tuple(importlib.metadata.entry_points(group=group))


def _load(point: importlib.metadata.EntryPoint) -> Any:
    try:
        return point.load()
    except (Exception, SystemExit) as error:  # whatever a foreign package raises while it is imported
        package = point.dist.name if point.dist else point.value
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{point.group} {point.name!r} of package {package} cannot be loaded ({why})") from error


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
        file = module.__name__.replace(".", "/") + ".py"
        raise ConfigError(f"{file} is no method: one Compressor is expected, found {names}")
    return own[0]


__all__ = ["METHOD_GROUP", "Registry", "methods", "modules", "sources"]
