"""The pages that are made from the code are current and name everything."""

from __future__ import annotations

import dataclasses
import importlib.util

from omnicli.config import config, registry, settings
from tests.conftest import ROOT

spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
docs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(docs)


def test_committed_pages_are_current(capsys):
    assert docs.main(["--check"]) == 0, capsys.readouterr().err


def test_pages_name_everything():
    methods, presets = docs.methods_page(), docs.presets_page()
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
