"""``omni methods``: the compression methods, their settings and their sources."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omnicli.cli import options as opt
from omnicli.cli import render
from omnicli.errors import ConfigError, near_names

if TYPE_CHECKING:
    from omnicli.compress.base import Compressor

EXAMPLES = """\b
Examples:
  omni methods
  omni methods avoc
  omni methods --json"""

PLACE = 80
"""In the order of the help."""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("methods", epilog=EXAMPLES)(methods)


def methods(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Only this one, with its settings.")] = None,
    json_out: opt.JsonFlag = False,
    verbose: opt.VerboseFlag = False,
) -> None:
    """List compression methods, settings and papers."""
    from omnicli.config import registry

    found = registry.methods()
    stray: list[str] = []
    if name is not None:
        if name not in found:
            raise ConfigError(f"unknown method {name!r}{near_names(name, found)}")
        chosen = {name: found[name]}
    else:
        chosen, stray = found.usable()
    for problem in stray:
        render.note(problem)
    facts = [describe(n, cls) for n, cls in chosen.items()]
    if json_out:
        render.print_json(facts)
    elif name is None:
        rows = [("method", "what it does", "acts", "source")]
        rows += [(f["name"], f["summary"], f["acts"], f["paper"]) for f in facts]
        print(render.table(rows))
    else:
        fact = facts[0]
        print(f"{fact['name']}: {fact['summary']}\nsource: {fact['paper'] or '-'}")
        print(f"selects by: {fact['selects_by'] or '-'}; acts {fact['acts']}")
        settings = [(f"{name}.{key}", str(value)) for key, value in fact["settings"].items()]
        print(render.table([("setting", "default"), *settings]))


def describe(name: str, cls: type[Compressor]) -> dict[str, Any]:
    """Return what is to be known about a method class; JSON-serialisable."""
    from omnicli.compress.base import acts

    doc = (cls.__doc__ or "").strip().splitlines()
    settings = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        value = field.default
        if value is dataclasses.MISSING:
            value = field.default_factory() if field.default_factory is not dataclasses.MISSING else None
        plain = value is None or isinstance(value, bool | int | float | str | list | tuple | dict)
        settings[field.name] = value if plain else str(value)
    return {
        "name": name,
        "summary": doc[0].rstrip(".") if doc else "",
        "paper": getattr(cls, "paper", ""),
        "selects_by": cls.criterion,
        "acts": acts(cls),
        "needs_question": cls.uses_question,
        "needs": sorted(cls().needs),
        "clean_changes": cls.clean_differs,
        "settings": settings,
    }
