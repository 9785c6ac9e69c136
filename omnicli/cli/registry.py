"""The commands: the folder ``commands`` is their registry, and ``PLACE`` in each file their order in the help.

A file there that is no command, or that cannot be imported, hurts no other one; `omni doctor` tells of it.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

import typer

from omnicli.cli import commands


def add_all(app: typer.Typer) -> list[str]:
    """Add every command to ``app``; returns one line for each file that gives none."""
    found: list[ModuleType] = []
    problems: list[str] = []
    for _, name, _ in pkgutil.iter_modules(commands.__path__):
        try:
            found.append(_load(f"{commands.__name__}.{name}"))
        except (Exception, SystemExit) as error:  # whatever a stray file raises while it is imported
            problems.append(_line(name, error))
    for module in sorted(found, key=lambda module: module.PLACE):
        try:
            module.register(app)
        except (Exception, SystemExit) as error:
            problems.append(_line(module.__name__.rpartition(".")[2], error))
    return problems


def _load(name: str) -> ModuleType:
    module = importlib.import_module(name)
    if not isinstance(getattr(module, "PLACE", None), int) or not callable(getattr(module, "register", None)):
        raise TypeError("a number PLACE and a function register are expected")
    return module


def _line(name: str, error: BaseException) -> str:
    path = f"{commands.__name__.replace('.', '/')}/{name}.py"
    return " ".join(f"{path} is no command ({type(error).__name__}: {error})".split())
