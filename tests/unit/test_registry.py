"""Names come from files and entry points; nothing is imported before it is asked for."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

import omnicli.compress
from omnicli import registry
from omnicli.compress.base import Compressor
from omnicli.compress.full import Full
from omnicli.errors import ConfigError

METHOD = """
from dataclasses import dataclass
from omnicli.compress.base import Compressor

@dataclass(frozen=True)
class Something(Compressor):
    "Keep something."
    share: float = 0.5
"""


def test_every_file_is_a_method_and_no_helper_is():
    found = registry.methods()
    files = {f.stem.replace("_", "-") for f in Path(registry.__file__).parent.joinpath("compress").glob("*.py")}
    helpers = {name.replace("_", "-") for name in registry.METHOD_HELPERS}
    assert set(found) == files - helpers - {"--init--"}
    assert {"full", "random", "uniform", "avoc"} <= set(found)
    assert all(issubclass(cls, Compressor) and cls.name == name for name, cls in found.items())


def test_a_new_file_is_a_new_method(tmp_path, monkeypatch):
    package = tmp_path / "omnicli"
    (package / "compress").mkdir(parents=True)
    (package / "compress" / "brand_new.py").write_text(METHOD)
    (package / "compress" / "_private.py").write_text("raise RuntimeError")
    monkeypatch.setattr(registry, "__file__", str(package / "registry.py"))
    monkeypatch.setattr(omnicli.compress, "__path__", [*omnicli.compress.__path__, str(package / "compress")])
    assert list(registry.methods()) == ["brand-new"]
    assert "omnicli.compress.brand_new" not in sys.modules
    method = registry.methods()["brand-new"]()
    assert method.name == "brand-new" and method.params() == {"share": 0.5}
    del sys.modules["omnicli.compress.brand_new"]


@pytest.mark.parametrize(
    ("text", "found"), [("x = 1", "none"), (METHOD + METHOD.replace("Something", "More"), "Something, More")]
)
def test_a_method_file_defines_one_method(text, found, tmp_path, monkeypatch):
    (tmp_path / "compress").mkdir()
    (tmp_path / "compress" / "odd.py").write_text(text)
    monkeypatch.setattr(registry, "__file__", str(tmp_path / "registry.py"))
    monkeypatch.setattr(omnicli.compress, "__path__", [str(tmp_path / "compress")])
    with pytest.raises(ConfigError, match=f"one Compressor per file is expected, found {found}"):
        registry.methods()["odd"]
    del sys.modules["omnicli.compress.odd"]


def points(*pairs: tuple[str, str]):
    made = tuple(importlib.metadata.EntryPoint(n, v, registry.METHOD_GROUP) for n, v in pairs)
    return lambda group: made if group == registry.METHOD_GROUP else ()


def test_entry_points_add_methods_but_replace_none(monkeypatch):
    monkeypatch.setattr(
        registry,
        "_entry_points",
        points(("mine", "omnicli.compress.full:Full"), ("avoc", "omnicli.compress.full:Full")),
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


def test_unknown_names():
    with pytest.raises(ConfigError, match=r"unknown method 'avok'; did you mean avoc"):
        registry.methods().find("avok")
    with pytest.raises(KeyError):
        registry.methods()["avok"]
    assert "avok" not in registry.methods()


def test_model_families():
    found = registry.models()
    assert "qwen2-5-omni" in found
    assert all(cls.model_types for cls in found.values())
