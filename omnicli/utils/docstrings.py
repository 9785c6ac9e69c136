"""What docstrings say of a class's fields."""

from __future__ import annotations

import re


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


__all__ = ["parameters"]
