"""Documentation that comes from the code: tables of methods and presets. ``python -m omnicli.docs`` writes them.

Knows classes' docstrings and fields; a new method or preset appears by itself.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

from omnicli.compress.base import Compressor
from omnicli.config import config, registry, settings

HEADER = "<!-- Made by `python -m omnicli.docs` from the code; change the code, not this file. -->\n"


def render_methods() -> str:
    """Return docs/methods.md: what each compression method does, its source and its settings."""
    found = registry.methods()
    lines = [
        HEADER,
        "# Compression methods",
        "",
        "A method chooses which picture and sound tokens the LLM reads. Use one through a preset, or with",
        "`--set method=NAME`; settings are changed with `--set NAME.SETTING=VALUE` or under `params:` of a preset.",
        "",
        "Two methods are chained with a plus: `avoc+seats` chooses before the LLM by the first and inside it by the",
        "second.",
        "",
        "A published method has two modes. `clean`, the default, keeps its idea and meets every budget exactly,",
        "in windows of true time and in fp32; `mode=official` does what the released code does, rounding and quirks",
        "included, and is what the presets under `parity/` use.",
        "",
        "| method | selects by | acts | needs the question | source |",
        "|---|---|---|---|---|",
        *(
            f"| [{name}](#{name}) | {cls.criterion or '-'} | {acts(cls)} | {'yes' if cls.uses_question else 'no'} "
            f"| {cls.paper or '-'} |"
            for name, cls in found.items()
        ),
        "",
    ]
    for name, cls in found.items():
        lines += [f"## {name}", "", f"{_summary(cls)}.", ""]
        if cls.paper:
            lines += [f"Source: {cls.paper}.", ""]
        needs = cls().needs
        if needs:
            lines += [f"Has captured: {', '.join(sorted(needs))}.", ""]
        if cls.clean_differs:
            lines += [f"What `clean` changes: {_cell(cls.clean_differs)}", ""]
        told = parameters(cls)
        fields = dataclasses.fields(cls)
        if fields:
            lines += ["| setting | default | type | meaning |", "|---|---|---|---|"]
            for f in fields:
                kind, text = told.get(f.name, ("", ""))
                lines.append(f"| `{name}.{f.name}` | {_shown(f.default)} | {_cell(kind)} | {_cell(text)} |")
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def acts(cls: type[Compressor]) -> str:
    """Return where a method works: before the LLM, inside it, or both."""
    where = [
        place
        for name, place in (("compress", "before the LLM"), ("prune", "inside the LLM"))
        if getattr(cls, name) is not getattr(Compressor, name)
    ]
    return " and ".join(where) or "-"


def render_presets() -> str:
    """Return docs/presets.md: each preset, what it is for, and what it sets."""
    found = config.list_presets()
    lines = [
        HEADER,
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
        changed = [f"`{key}={_plain(value)}`" for key, value in flat.items() if value != plain[key]]
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


def parameters(cls: type) -> dict[str, tuple[str, str]]:
    """Return type and meaning of each documented field of a dataclass, those of its bases included."""
    found: dict[str, tuple[str, str]] = {}
    for base in reversed(cls.__mro__):
        names: list[str] = []
        for line in _section(base.__dict__.get("__doc__") or ""):
            head = re.fullmatch(r"(\w[\w, ]*) : (.+)", line)
            if head and not line.startswith(" "):
                names = head[1].split(", ")
                found.update({name: (head[2], "") for name in names})
            else:
                for name in names:
                    found[name] = (found[name][0], f"{found[name][1]} {line.strip()}".strip())
    return found


def _section(doc: str) -> list[str]:
    """Return the lines of a docstring's Parameters or Attributes section, without their common indentation."""
    lines = doc.expandtabs().splitlines()
    for i, line in enumerate(lines[:-1]):
        if line.strip() in ("Parameters", "Attributes") and set(lines[i + 1].strip()) == {"-"}:
            indent = len(line) - len(line.lstrip())
            body = [text[indent:] for text in lines[i + 2 :]]
            ends = [k for k, text in enumerate(body) if text and set(text.strip()) == {"-"}]
            return [text for text in body[: ends[0] - 1 if ends else None] if text.strip()]
    return []


def _summary(cls: type) -> str:
    return _cell((cls.__doc__ or "").strip().split("\n\n")[0]).rstrip(".")


def _plain(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _shown(value: Any) -> str:
    return "[]" if value in ((), []) else f"`{_plain(value)}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("``", "`")


PAGES = {"methods.md": render_methods, "presets.md": render_presets}
"""File names under docs/ and what renders them."""


def main(folder: Path | None = None) -> None:
    """Write the pages into ``folder``, by default docs/ of the checkout."""
    folder = folder or Path(__file__).resolve().parent.parent / "docs"
    for name, render in PAGES.items():
        (folder / name).write_text(render(), encoding="utf-8")
        print(folder / name, file=sys.stderr)


if __name__ == "__main__":
    main()
