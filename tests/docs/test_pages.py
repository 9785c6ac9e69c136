"""The pages that are made from the code are current and name everything."""

from __future__ import annotations

import dataclasses
import importlib.util
import re

from omnicli.config import config, registry, settings
from tests.conftest import ROOT

spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
docs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(docs)


def test_committed_pages_are_current(capsys):
    assert docs.main(["--check"]) == 0, capsys.readouterr().err


def test_pages_name_everything():
    sections = dict(re.findall(r"^##+ (\S+)\n(.*?)(?=^##|\Z)", docs.methods_page(), re.M | re.S))
    for name, cls in registry.methods().items():
        for field in dataclasses.fields(cls):
            assert described(name, field.name, sections), f"{name}.{field.name}"
    presets = docs.presets_page()
    for name in config.preset_files():
        assert f"| {name} |" in presets


def described(section: str, field: str, sections: dict[str, str]) -> bool:
    """Tell whether a section of the methods' page describes a setting, or one of those that it refers to does."""
    text = sections[section]
    if re.search(rf"^\| `[\w-]+\.{field}` \|", text, re.M):
        return True
    shared = re.findall(r"\[([\w-]+)\]\(#", "".join(re.findall(r"^Settings: .*", text, re.M)))
    return any(described(name, field, sections) for name in shared)


def test_a_setting_is_described_once_unless_it_differs():
    page = docs.methods_page()
    assert page.count("`METHOD.tokens`") == 1 and ".tokens` |" not in page.replace("`METHOD.tokens`", "")
    assert "| `seats.split` | `proportional` |" in page and "| `avoc.split` |" not in page


def test_every_setting_is_documented_with_a_type():
    for cls in (settings.MediaConfig, settings.GenerateConfig, *registry.methods().values()):
        told = docs.parameters(cls)
        for field in dataclasses.fields(cls):
            kind, text = told[field.name]
            assert kind and text, f"{cls.__name__}.{field.name}"
    assert docs.parameters(registry.methods()["avoc"])["radius"] == ("int", "Blocks up to this far apart are compared.")
