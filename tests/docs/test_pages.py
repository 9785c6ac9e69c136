"""The committed tables of methods and presets are those of the code."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from omnicli import docs
from omnicli.config import config, registry, settings

FOLDER = Path(docs.__file__).resolve().parent.parent / "docs"


@pytest.mark.parametrize("name", list(docs.PAGES))
def test_committed_page_is_current(name):
    assert (FOLDER / name).read_text(encoding="utf-8") == docs.PAGES[name](), "run: python -m omnicli.docs"


def test_pages_name_everything():
    methods, presets = docs.render_methods(), docs.render_presets()
    for name, cls in registry.methods().items():
        assert f"## {name}\n" in methods
        for field in dataclasses.fields(cls):
            assert f"`{name}.{field.name}`" in methods
    for name in config.preset_files():
        assert f"| {name} |" in presets


def test_every_setting_is_documented_with_a_type():
    for cls in (settings.MediaConfig, settings.GenerateConfig, *registry.methods().values()):
        told = docs.parameters(cls)
        for field in dataclasses.fields(cls):
            kind, text = told[field.name]
            assert kind and text, f"{cls.__name__}.{field.name}"
    assert docs.parameters(registry.methods()["avoc"])["radius"] == ("int", "Blocks up to this far apart are compared.")


def test_pages_are_written(tmp_path):
    docs.main(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(docs.PAGES)
