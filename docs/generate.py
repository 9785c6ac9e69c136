"""Make docs/cli.md from the command line's own help; ``--check`` only tells whether it is current.

Nothing is rendered by the argument parser, so that a newer version of it changes no page.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
SKIPPED = {"--help", "--install-completion", "--show-completion"}
WARNING = "<!-- Made by `make docs` from the code. Change the code, not this page. -->"


def commands(command: Any, path: str = "omni") -> list[tuple[str, Any]]:
    """Return (full name, command) of everything that can be called, groups included, in the order of the help."""
    out = [(path, command)]
    for name, child in getattr(command, "commands", {}).items():
        out.extend(commands(child, f"{path} {name}"))
    return out


def cli_page() -> str:
    """Return docs/cli.md: one section per command."""
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
    default = param.default
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


PAGES = {"cli.md": cli_page}


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
