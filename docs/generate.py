"""Make the reference pages from the code: commands, methods, presets; ``--check`` only tells whether they are current.

Knows classes' docstrings and fields and the commands' help: what is new appears by itself. Nothing is rendered by the
argument parser, so that a newer version of it changes no page.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from omnicli.compress.base import Compressor, acts
from omnicli.config import config, registry, settings
from omnicli.utils.docstrings import parameters

DOCS = Path(__file__).resolve().parent / "reference"
SKIPPED = {"--help", "--install-completion", "--show-completion"}
WARNING = "<!-- Made by `make docs` from the code. Change the code, not this page. -->"


def commands(command: Any, path: str = "omni") -> list[tuple[str, Any]]:
    """Return (full name, command) of everything that can be called, groups included, in the order of the help."""
    out = [(path, command)]
    for name, child in getattr(command, "commands", {}).items():
        out.extend(commands(child, f"{path} {name}"))
    return out


def cli_page() -> str:
    """Return the page of commands: one section per command."""
    import typer

    from omnicli.cli.main import app

    parts = ["# Commands", WARNING]
    for path, command in commands(typer.main.get_command(app)):
        parts.append(f"## `{_usage(path, command)}`")
        if command.help:
            parts.append(_plain(command.help))
        rows = [_row(p) for p in command.params if not SKIPPED & set(p.opts)]
        if rows:
            parts.append("\n".join(["| argument or option | meaning |", "|---|---|", *rows]))
        if command.epilog:
            parts.append(_epilog(command.epilog))
    return "\n\n".join(parts) + "\n"


def _usage(path: str, command: Any) -> str:
    words = [path]
    for p in command.params:
        if p.param_type_name == "argument":
            words.append(p.metavar if p.required else f"[{p.metavar}]")
    if getattr(command, "commands", None):
        words.append("COMMAND")
    return " ".join(words)


def _row(param: Any) -> str:
    if param.param_type_name == "argument":
        names = f"`{param.metavar}`"
    else:
        value = f" {param.metavar}" if param.metavar else ""
        names = f"`{', '.join([*param.opts, *param.secondary_opts])}{value}`"
    text = " ".join((param.help or "").split())
    default = param.default.value if isinstance(param.default, Enum) else param.default
    plain = isinstance(default, str | int | float | Path) and not isinstance(default, bool)
    if plain and getattr(param, "show_default", True) and default != "":
        text += f" Default: `{default:g}`." if isinstance(default, float) else f" Default: `{default}`."
    names = names.replace("|", "\\|")
    return f"| {names} | {text} |"


def _plain(text: str) -> str:
    """Return a docstring's paragraphs without their indentation."""
    return "\n\n".join(" ".join(p.split()) for p in text.replace("\b", "").split("\n\n") if p.strip())


def _epilog(text: str) -> str:
    """Return the examples as a code block, anything after them as text."""
    out = []
    for block in text.split("\n\n"):
        lines = block.replace("\b", "").strip("\n").splitlines()
        if lines and lines[0].strip() == "Examples:":
            body = "\n".join(line.strip() for line in lines[1:])
            out.append(f"```sh\n{body}\n```")
        else:
            out.append(" ".join(line.strip() for line in lines))
    return "\n\n".join(out)


METHODS_HEAD = f"""{WARNING}

# Compression methods

A method chooses which picture and sound tokens the LLM reads. Use one through a preset, or with `--set method=NAME`;
settings are changed with `--set NAME.SETTING=VALUE` or under `params:` of a preset.

Two methods are chained with a plus: `avoc+seats` chooses before the LLM by the first and inside it by the second.

A published method has two modes. `clean`, the default, keeps its idea and meets every budget exactly, in windows of
true time and in fp32; `mode=official` does what the released code does, rounding and quirks included, and is what the
presets under `parity/` use.

What the papers leave out of their methods to see what it is worth is a setting too, and a preset under `ablation/`,
which names the paper's table. Each keeps the retention; settings that would do nothing are refused.

| method | selects by | acts | needs the question | source |
|---|---|---|---|---|
"""
SHARED_HEAD = """## Settings that methods share

`METHOD` stands for the method's name, as in `--set avoc.tokens=2048`. Each method below says which of these groups it
has, and repeats a setting only where its default or its meaning is another one.
"""


def methods_page() -> str:
    """Return the page of methods: what several share, then each one's idea, its source and its own settings."""
    found = registry.methods()
    overview = [
        f"| [{name}](#{name}) | {cls.criterion or '-'} | {acts(cls)} | {'yes' if cls.uses_question else 'no'} "
        f"| {cls.paper or '-'} |"
        for name, cls in found.items()
    ]
    parts = [METHODS_HEAD + "\n".join(overview), SHARED_HEAD.rstrip()]
    for base in _shared_bases(found):
        names = ", ".join(f"[{name}](#{name})" for name, cls in found.items() if issubclass(cls, base))
        parts += [f"### {base.__name__}", f"{_summary(base)}: {names}.", _settings(base, "METHOD", _own(base))]
    parts += [section for name, cls in found.items() for section in _method(name, cls, found)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _method(name: str, cls: type[Compressor], found: Mapping[str, type[Compressor]]) -> list[str]:
    """Return the section of one method."""
    parts = [f"## {name}", f"{_summary(cls)}."]
    if cls.paper:
        parts.append(f"Source: {cls.paper}.")
    if needs := cls().needs:
        parts.append(f"Captured for it: {', '.join(sorted(needs))}.")
    if cls.clean_differs:
        parts.append(f"What `clean` changes: {_cell(cls.clean_differs)}")
    like = next((other for other, base in found.items() if base in cls.__mro__[1:]), None)
    shared = [base.__name__ for base in _shared_bases({name: cls})] if like is None else [like]
    own = _own(cls)
    if shared:
        links = ", ".join(f"[{above}](#{above.lower()})" for above in shared)
        parts.append(f"Settings: those of {links}{'; and:' if own else '.'}")
    return [*parts, _settings(cls, name, own)]


def _shared_bases(found: Mapping[str, type[Compressor]]) -> list[type[Compressor]]:
    """Return the classes above the methods that have settings and are no method, the most general first."""
    bases = {base: None for cls in found.values() for base in reversed(cls.__mro__) if base not in found.values()}
    return [base for base in bases if issubclass(base, Compressor) and dataclasses.fields(base) and _own(base)]


def _own(cls: type[Compressor]) -> list[str]:
    """Return the settings that a class adds, or describes or presets in another way than what it derives from."""
    told = _rows(cls)
    above: dict[str, tuple[str, ...]] = {}
    for base in reversed(cls.__mro__[1:]):
        if dataclasses.is_dataclass(base):
            above |= _rows(base)
    return [field for field, row in told.items() if above.get(field) != row]


def _rows(cls: type) -> dict[str, tuple[str, ...]]:
    """Return default, type and meaning of each field, as the page shows them."""
    told = parameters(cls)
    return {f.name: (_shown(f.default), *map(_cell, told.get(f.name, ("", "")))) for f in dataclasses.fields(cls)}


def _settings(cls: type, name: str, fields: list[str]) -> str:
    """Return the table of some of a class's settings; nothing where there are none."""
    rows = _rows(cls)
    lines = [f"| `{name}.{field}` | {' | '.join(rows[field])} |" for field in fields]
    return "\n".join(["| setting | default | type | meaning |", "|---|---|---|---|", *lines]) if lines else ""


def presets_page() -> str:
    """Return the page of presets: each preset, what it is for, and what it sets."""
    found = config.list_presets()
    lines = [
        WARNING + "\n",
        "# Presets",
        "",
        "A preset is a YAML file; `--preset` takes a name from this table or a path. `omni presets show NAME` prints",
        "every setting that one comes to.",
        "",
        "| preset | method | for | settings |",
        "|---|---|---|---|",
    ]
    for preset in found:
        data = config.load_config(preset.name).to_dict()
        default = config.load_config({"method": preset.method}).to_dict()
        flat, plain = _flat(data, preset.method), _flat(default, preset.method)
        changed = [f"`{key}={_value(value)}`" for key, value in flat.items() if value != plain[key]]
        changed += [f"`{key}={data[key]}`" for key in config.LOADED if data[key] != default[key]]
        cell = ", ".join(changed) or "-"
        lines.append(f"| {preset.name} | {preset.method} | {_cell(preset.description)} | {cell} |")
    lines += ["", "## What every preset can set", "", "| setting | default | type | meaning |", "|---|---|---|---|"]
    for section, cls in (("media", settings.MediaConfig), ("generate", settings.GenerateConfig)):
        told = parameters(cls)
        for f in dataclasses.fields(cls):
            kind, text = told.get(f.name, ("", ""))
            lines.append(f"| `{section}.{f.name}` | {_shown(f.default)} | {_cell(kind)} | {_cell(text)} |")
    return "\n".join(lines) + "\n"


def _flat(data: dict[str, Any], method: str) -> dict[str, Any]:
    """Return settings by the names that ``--set`` takes."""
    flat: dict[str, Any] = {}
    for section in ("params", "media", "generate"):
        for key, value in data[section].items():
            if isinstance(value, dict):
                flat |= {f"{key}.{name}": v for name, v in value.items()}
            else:
                flat[f"{method if section == 'params' else section}.{key}"] = value
    return flat


def _summary(cls: type) -> str:
    return _cell((cls.__doc__ or "").strip().split("\n\n")[0]).rstrip(".")


def _value(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _shown(value: Any) -> str:
    return "[]" if value in ((), []) else f"`{_value(value)}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("``", "`")


PAGES = {"cli.md": cli_page, "methods.md": methods_page, "presets.md": presets_page}
"""File names in docs/reference, and what renders them."""


def main(arguments: list[str]) -> int:
    """Write the pages, or with ``--check`` return 1 if one is out of date."""
    stale = []
    for name, make in PAGES.items():
        file, text = DOCS / name, make()
        if "--check" in arguments:
            if not file.is_file() or file.read_text(encoding="utf-8") != text:
                stale.append(name)
        else:
            file.write_text(text, encoding="utf-8")
    if stale:
        print(f"out of date: {', '.join(stale)}; run: make docs", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
