"""Reads the project's pages: their fenced blocks, links and headings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from tests.conftest import ROOT

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)


class Block(NamedTuple):
    """A fenced block: the page, the line of its fence, its language, and what stands in it."""

    page: str
    line: int
    language: str
    text: str


def name(page: Path) -> str:
    """Return a page's path as it is told: from the top of the repository."""
    return page.relative_to(ROOT).as_posix()


def guide() -> list[Path]:
    """Return the pages whose examples are run."""
    docs = ROOT / "docs"
    return [
        ROOT / "README.md",
        docs / "index.md",
        *sorted((docs / "guide").glob("*.md")),
        docs / "reference" / "models.md",
    ]


def everything() -> list[Path]:
    """Return the pages whose links are followed."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """Return a page's fenced blocks."""
    text = page.read_text(encoding="utf-8")
    return [Block(name(page), text.count("\n", 0, m.start()) + 1, m[1], m[2]) for m in FENCE.finditer(text)]


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    """Return the targets of a page's links and images, web addresses left out."""
    text = re.sub(r"`[^`]*`", "", prose(page))
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"\w+:", target)]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.M):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        found.add(re.sub(r"[^\w -]", "", words).strip().replace(" ", "-"))
    return found
