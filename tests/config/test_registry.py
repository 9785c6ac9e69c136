"""Names come from files and entry points; nothing is imported before it is asked for."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

import pytest

from omnicli.compress import methods
from omnicli.compress.base import Compressor
from omnicli.compress.methods.full import Full
from omnicli.config import registry
from omnicli.errors import ConfigError
from omnicli.models.registry import families

METHOD = """
from dataclasses import dataclass
from omnicli.compress import methods
from omnicli.compress.base import Compressor

@dataclass(frozen=True)
class Something(Compressor):
    "Keep something."
    share: float = 0.5
"""


def test_every_file_is_a_method():
    found = registry.methods()
    files = {f.stem.replace("_", "-") for f in Path(methods.__path__[0]).glob("*.py")}
    assert set(found) == files - {"--init--"}
    assert {"full", "random", "uniform", "avoc"} <= set(found)
    assert all(issubclass(cls, Compressor) and cls.name == name for name, cls in found.items())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder that is searched for methods beside the package's own."""
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith(methods.__name__):
            del sys.modules[name]


def test_a_new_file_is_a_new_method(folder):
    (folder / "brand_new.py").write_text(METHOD)
    (folder / "_private.py").write_text("raise RuntimeError")
    assert "brand-new" in registry.methods() and "-private" not in registry.methods()
    assert "omnicli.compress.methods.brand_new" not in sys.modules
    method = registry.methods()["brand-new"]()
    assert method.name == "brand-new" and method.params() == {"share": 0.5}


STRAY = [
    ("x = 1", "one Compressor is expected, found none"),
    (METHOD + METHOD.replace("Something", "More"), "one Compressor is expected, found Something, More"),
    ("1 / 0", "cannot be imported (ZeroDivisionError: division by zero)"),
    ("def f(:", "cannot be imported (SyntaxError: "),
    ("raise SystemExit(3)", "cannot be imported (SystemExit: 3)"),
    ("METHOD = 3", ": 3 is no class that derives from Compressor"),
    ("import no_such_library", "cannot be imported (ModuleNotFoundError: No module named 'no_such_library')"),
]


@pytest.mark.parametrize(("text", "why"), STRAY)
def test_a_stray_file_is_one_line_and_hurts_no_other(text, why, folder, omni):
    (folder / "odd.py").write_text(text)
    with pytest.raises(ConfigError) as caught:
        registry.methods()["odd"]
    assert "odd" in str(caught.value) and why in str(caught.value)
    usable, problems = registry.methods().usable()
    assert "avoc" in usable and "odd" not in usable and problems == [str(caught.value)]
    listed = omni("methods")
    assert listed.code == 0 and "avoc" in listed.out and listed.err.splitlines() == [f"omni: {caught.value}"]
    checked = omni("doctor", "--json")
    assert [c["found"] for c in json.loads(checked.out)["checks"] if c["name"] == "methods"] == [str(caught.value)]
    asked = omni("methods", "odd")
    assert (asked.code, asked.error_line()) == (6, f"omni: {caught.value}")


def points(*pairs: tuple[str, str]):
    made = tuple(importlib.metadata.EntryPoint(n, v, registry.METHOD_GROUP) for n, v in pairs)
    return lambda group: made if group == registry.METHOD_GROUP else ()


def test_entry_points_add_methods_but_replace_none(monkeypatch):
    monkeypatch.setattr(
        registry,
        "_entry_points",
        points(("mine", "omnicli.compress.methods.full:Full"), ("avoc", "omnicli.compress.methods.full:Full")),
    )
    found = registry.methods()
    assert found["mine"] is Full
    assert found["avoc"].__name__ == "Avoc"


def test_a_broken_entry_point_breaks_only_itself(monkeypatch):
    monkeypatch.setattr(registry, "_entry_points", points(("broken", "no.such.module:Thing")))
    found = registry.methods()
    assert "broken" in found and found["full"] is Full
    with pytest.raises(ConfigError, match="'broken'"):
        found["broken"]


@pytest.mark.parametrize("value", ["omnicli.errors:ConfigError", "omnicli.errors:near_names"])
def test_an_entry_point_to_something_else_is_one_line_and_hurts_no_other(value, monkeypatch, omni):
    monkeypatch.setattr(registry, "_entry_points", points(("other", value)))
    with pytest.raises(ConfigError, match=r"method 'other': .* is no class that derives from Compressor"):
        registry.methods()["other"]
    listed = omni("methods")
    assert listed.code == 0 and "avoc" in listed.out and "'other'" in listed.err and listed.err.count("\n") == 1


def test_unknown_names():
    with pytest.raises(ConfigError, match=r"unknown method 'avok'; did you mean avoc"):
        registry.methods().find("avok")
    with pytest.raises(KeyError):
        registry.methods()["avok"]
    assert "avok" not in registry.methods()


def test_model_families():
    found = families()
    assert "qwen2-5-omni" in found
    assert all(cls.model_types for cls in found.values())
