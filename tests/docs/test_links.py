"""Every link on a page leads somewhere, and so does every page that the program names; the site builds without help."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.docs import pages


@pytest.mark.parametrize("page", pages.everything(), ids=pages.name)
def test_links_and_anchors_resolve(page):
    broken = []
    for target in pages.links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in pages.anchors(file)):
            broken.append(target)
    assert broken == []


def test_links_and_anchors_are_found_at_all(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A *page* (1.2)\n\n[a](b.md#c) ![d](e.png) [f](https://g) `[h](i)`\n\n```sh\n# [j](k)\n```\n")
    assert pages.links(page) == ["b.md#c", "e.png"]
    assert pages.anchors(page) == {"a-page-12"}
    assert sum(len(pages.links(p)) for p in pages.everything()) > 50


@pytest.mark.parametrize("page", pages.everything(), ids=pages.name)
def test_files_that_pages_name_are_there(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"(?<![\w/.-])(?:[\w-]+/)+[\w-]+\.(?:py|sh|json|yaml|toml)\b", text)
    named += re.findall(r"(?<![\w/.-])(?:omnicli|tests|benchmarks|presets)/[\w/-]*(?![\w/.-])", text)
    rooms = (ROOT, ROOT / "omnicli", ROOT / "omnicli" / "models", ROOT / "omnicli" / "compress")
    placeholder = re.compile("DATE|NAME|echo")  # the method that the page adds
    lost = {path for path in named if not (placeholder.search(path) or any((room / path).exists() for room in rooms))}
    assert lost == set()


def test_pages_that_the_program_names_are_there():
    named = {
        (path.relative_to(ROOT).as_posix(), page)
        for folder in ("omnicli", "tests", "benchmarks", "presets")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".sh", ".yaml")
        for page in re.findall(r"\bdocs/[\w/.-]+?\.md\b", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 5
    assert [pair for pair in sorted(named) if not (ROOT / pair[1]).is_file()] == []


def test_pages_of_the_site_link_to_nothing_outside_it():
    docs = ROOT / "docs"
    outside = [
        (pages.name(page), target)
        for page in docs.rglob("*.md")
        for target in pages.links(page)
        if not (page.parent / target.partition("#")[0]).resolve().is_relative_to(docs)
    ]
    assert outside == []


def test_the_site_names_every_page():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = re.findall(r": ([\w/.-]+\.md)$", text, re.M)
    there = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(named) == sorted(there)


@pytest.mark.slow
def test_the_site_is_built_strictly_from_docs_alone(tmp_path):
    pytest.importorskip("material", reason="mkdocs-material is not installed (the dev extra)")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", tmp_path / "site"],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    built = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*")}
    assert {"index.html", "guide/ask/index.html", "reference/methods/index.html"} <= built
    assert not [path for path in built if "generate" in path or path.endswith(".py")]
    for page in (tmp_path / "site").rglob("*.html"):
        fetched = re.findall(r"<(?:script|img|link)[^>]+(?:src|href)=\"?(?:https?:)?//[^\s\">]+", page.read_text())
        assert fetched == [], page.name


def test_the_readme_can_be_finished():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 110
