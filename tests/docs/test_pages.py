"""The pages that are made from the code are current and name everything."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path

from omnicli.config import config, registry, settings
from tests.conftest import ROOT


def script(path: str):
    """Return a file that belongs to no package as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


docs, fit = script("docs/generate.py"), script("benchmarks/fit.py")


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
    kind, text = docs.parameters(registry.methods()["avoc"])["stretch_s"]
    assert kind == "float" and text.startswith("Seconds that the backbone reads at a time; ")


def test_the_tables_of_cards_are_what_is_planned(monkeypatch):
    monkeypatch.setattr(fit.machine, "devices", lambda: fit.ASSUMED)
    hour, short = fit.table("avoc", 3600), fit.table("avoc", 600)
    guide = (ROOT / "docs" / "guide" / "fitting-a-card.md").read_text(encoding="utf-8")
    assert "\n".join(hour) in guide and "\n".join(short) in guide
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \d+ GiB.*\|$", readme, re.M)
    assert len(rows) > 3
    assert [
        row for row in rows if row.replace(", ten minutes", "") not in (short if "ten minutes" in row else hour)
    ] == []
