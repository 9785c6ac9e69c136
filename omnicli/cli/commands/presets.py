"""``omni presets``: which presets there are, what one sets, whether a YAML file is a good one."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from omnicli.cli import options as opt
from omnicli.cli import render
from omnicli.errors import ConfigError

presets = typer.Typer(
    name="presets",
    help="List, show and validate presets.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog="\b\nExamples:\n  omni presets list\n  omni presets show avoc\n  omni presets validate mine.yaml",
)

PLACE = 70
"""In the order of the help."""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.add_typer(presets)


@presets.command("list", epilog="\b\nExamples:\n  omni presets list\n  omni presets list --json")
def list_presets(json_out: opt.JsonFlag = False, verbose: opt.VerboseFlag = False) -> None:
    """List the presets with what they are for."""
    from omnicli.config import config

    found = config.list_presets()
    if json_out:
        render.print_json([{"name": p.name, "method": p.method, "description": p.description} for p in found])
    else:
        print(render.table([("preset", "method", "for"), *((p.name, p.method, p.description) for p in found)]))


@presets.command(
    "show", epilog="\b\nExamples:\n  omni presets show avoc\n  omni presets show avoc --set avoc.tokens=512"
)
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Preset name or YAML file.", show_default=False)],
    sets: opt.SetOption = None,
    json_out: opt.JsonFlag = False,
    verbose: opt.VerboseFlag = False,
) -> None:
    """Show every setting that a preset comes to, as YAML that is a preset itself."""
    import yaml

    from omnicli.config.config import load_config

    resolved = load_config(name, sets or [])
    settings: dict[str, Any] = {"description": resolved.description, **resolved.to_dict()}
    if json_out:
        render.print_json(settings)
        return
    del settings["preset"]
    sys.stdout.write(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=110))


@presets.command("validate", epilog="\b\nExamples:\n  omni presets validate mine.yaml\n  omni presets validate avoc")
def validate(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="Preset names or YAML files.", show_default=False)
    ],
    verbose: opt.VerboseFlag = False,
) -> None:
    """Check presets; names every mistake, exits with 6 if there is one."""
    from omnicli.config import config

    bad = 0
    for name in names:
        problems = config.validate(name)
        bad += bool(problems)
        for problem in problems:
            render.note(f"{name}: {problem}")
        if not problems:
            print(f"{name}: good")
    if bad:
        raise typer.Exit(ConfigError.exit_code)
