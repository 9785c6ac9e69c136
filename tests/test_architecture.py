"""The house as docs/design.md draws it: imports only go downwards, no circles, small modules, folders as registries.

Every module is parsed, not imported: imports inside functions and under TYPE_CHECKING count as much as others.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "omnicli"
LINES, BODY = 400, 60


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Return every module of the package by its dotted name; a package's own file has the package's name."""
    found = (root / "omnicli").rglob("*.py")
    return {".".join(f.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): f for f in found}


def imports(text: str, known: set[str]) -> set[str]:
    """Return the package's modules that a module's text imports, wherever in it."""
    out = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            for name in node.names:
                out.add(f"{node.module}.{name.name}" if f"{node.module}.{name.name}" in known else str(node.module))
        elif isinstance(node, ast.Import):
            out |= {name.name for name in node.names}
    return out & known


def named(text: str, known: set[str]) -> set[str]:
    """Return the package's modules that whole strings of a module's text name: a way to import unseen."""
    strings = {n.value for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return {s.partition(":")[0] for s in strings if re.fullmatch(r"omnicli(\.\w+)+(:\w+)?", s)} & known


def room(module: str) -> str:
    """Return the room of a module as the page names it."""
    parts = module.split(".")
    if len(parts) == 1:
        return "__init__.py"
    return f"{parts[1]}/" if (PACKAGE / parts[1]).is_dir() else f"{parts[1]}.py"


def order(page: str) -> list[str]:
    """Return the rooms in the order of the design page's table."""
    section = page.split("## Rooms\n")[1].split("\n## ", maxsplit=1)[0]
    return re.findall(r"^\| `([\w/.]+)` \|", section, re.M)


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    files = modules()
    return {name: imports(file.read_text(), set(files)) - {name} for name, file in files.items()}


@pytest.fixture(scope="module")
def rooms() -> list[str]:
    return order((ROOT / "docs" / "design.md").read_text())


def upward(graph: dict[str, set[str]], rooms: list[str]) -> list[str]:
    return [
        f"{module} imports {other}"
        for module, others in graph.items()
        for other in others
        if rooms.index(room(module)) > rooms.index(room(other))
    ]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other, directly or not; a package contains what is below it."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        wanted = [start]
        while wanted:
            for other in graph[wanted.pop()] - seen:
                seen.add(other)
                wanted.append(other)
        reach[start] = seen
    return sorted({tuple(sorted(o for o in reach[m] if m in reach[o])) for m in graph if m in reach[m]})


def test_the_page_names_every_room_once_and_no_other(rooms):
    there = {room(module) for module in modules()}
    assert len(rooms) == len(set(rooms)) and set(rooms) == there


def test_the_page_names_every_file_of_a_room():
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+/)` \| (.*) \|", page, re.M))
    missing = [
        str(path.relative_to(PACKAGE))
        for name, row in rows.items()
        for path in sorted((PACKAGE / name).glob("*.py"))
        if path.stem != "__init__" and path.name not in row and not re.search(rf"`{path.stem.split('_')[0]}\*", row)
    ]
    assert not missing


def test_imports_only_go_downwards(graph, rooms):
    assert sum(map(len, graph.values())) > 500, "imports are found at all"
    assert upward(graph, rooms) == []


def test_no_modules_import_each_other_in_a_circle(graph):
    assert circles(graph) == []


@pytest.mark.parametrize(
    "text",
    [
        "from omnicli.cli import render",
        "def f():\n    from omnicli.cli.render import note",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import omnicli.cli.render",
    ],
)
def test_every_kind_of_import_is_seen(text, graph, rooms):
    found = imports(text, set(graph))
    assert found == {"omnicli.cli.render"}
    assert upward(graph | {"omnicli.types": found}, rooms) == ["omnicli.types imports omnicli.cli.render"]
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [("a", "b", "c")]


def test_no_module_imports_another_by_a_string():
    files = modules()
    registries = {"omnicli", "omnicli.config.registry", "omnicli.models.registry"}
    found = {name: named(file.read_text(), set(files)) for name, file in files.items() if name not in registries}
    assert {name: others for name, others in found.items() if others} == {}
    assert named("import_module('omnicli.cli.render')", set(files)) == {"omnicli.cli.render"}


@pytest.mark.parametrize("script", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.stem)
def test_programs_in_strings_import_what_is_there(script):
    """Benchmarks run some code in processes of their own, where no checker sees it."""
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "from omnicli" in node.value:
            for part in ast.walk(ast.parse(node.value)):
                if isinstance(part, ast.ImportFrom) and str(part.module).startswith("omnicli"):
                    there = importlib.import_module(str(part.module))
                    for name in part.names:
                        assert hasattr(there, name.name) or f"{part.module}.{name.name}" in modules(), name.name


def bodies(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield every function with the lines of its body, its docstring apart."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            if body:
                yield node.name, (body[-1].end_lineno or 0) - body[0].lineno + 1


def test_modules_and_functions_are_short():
    long = []
    for name, file in modules().items():
        text = file.read_text()
        if (lines := text.count("\n")) > LINES:
            long.append(f"{name}: {lines} lines")
        long += [f"{name}.{f}: a body of {n} lines" for f, n in bodies(ast.parse(text)) if n > BODY]
    assert long == []


def test_folders_that_are_registries_hold_nothing_else():
    from omnicli.config.registry import methods
    from omnicli.models.registry import facts, families

    for registry in (methods(), families(), facts()):
        assert registry.usable()[1] == []
    registered = {
        "compress/methods": "@dataclass(",
        "cli/commands": "def register(app",
        "models/families": "\nMODEL = ",
    }
    for folder, marker in registered.items():
        files = [f for f in (PACKAGE / folder).iterdir() if f.name not in ("__init__.py", "__pycache__")]
        assert files and [f.name for f in files if f.suffix != ".py" or marker not in f.read_text()] == []
