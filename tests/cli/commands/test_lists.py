"""`presets`, `methods`, `models`: what they list is what there is; what memory there is."""

from __future__ import annotations

import json

import pytest

from omnicli.cli.answering import HONESTY, POCKET_FOLDER, honesty
from omnicli.planning import machine


def test_presets_list_names_what_ask_takes(omni):
    result = omni("presets", "list", "--json")
    assert result.code == 0, result.err
    names = [p["name"] for p in json.loads(result.out)]
    assert {"full", "avoc"} <= set(names)
    assert omni("presets", "validate", *names).code == 0
    assert omni("presets", "show", names[-1]).code == 0
    text = omni("presets", "list").out
    for p in json.loads(result.out):
        assert p["name"] in text
        assert p["description"]


def test_presets_show_what_a_setting_changes(omni):
    value = json.loads(omni("presets", "show", "avoc", "--set", "media.fps=3", "--json").out)
    assert value["media"]["fps"] == 3.0
    text = omni("presets", "show", "avoc", "--set", "media.fps=3").out
    assert "fps: 3.0" in text


def test_shown_preset_is_a_valid_preset(omni, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(omni("presets", "show", "avoc").out, encoding="utf-8")
    assert omni("presets", "validate", file).code == 0
    first, second = omni("presets", "show", "avoc", "--json"), omni("presets", "show", file, "--json")
    strip = [{k: v for k, v in json.loads(r.out).items() if k not in ("preset", "name")} for r in (first, second)]
    assert strip[0] == strip[1]


def test_validate_names_every_mistake(omni, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("method: avoc\nmedia: {fsp: 1}\ngenerate: {sede: 1}\n", encoding="utf-8")
    result = omni("presets", "validate", file, "avoc")
    assert result.code == 6
    assert "Traceback" not in result.err
    for word in ("fsp", "sede", "mine.yaml"):
        assert word in result.err


def test_methods(omni):
    result = omni("methods", "--json")
    assert result.code == 0, result.err
    facts = {f["name"]: f for f in json.loads(result.out)}
    assert {"full", "random", "uniform", "avoc"} <= set(facts)
    text = omni("methods").out
    for name, fact in facts.items():
        assert name in text
        assert fact["summary"]
        one = omni("methods", name).out
        for setting in fact["settings"]:
            assert f"{name}.{setting}" in one


def test_unknown_method_has_a_near_name(omni):
    result = omni("methods", "avok")
    assert result.code == 6
    assert "avoc" in result.error_line()


def test_models_list(omni):
    result = omni("models", "list", "--json")
    assert result.code == 0, result.err
    facts = {f["name"]: f for f in json.loads(result.out)}
    assert {"pocket", "qwen2.5-omni-7b"} <= set(facts)
    assert "pocket" in omni("models", "list").out


def test_models_info(omni, tiny_model, tmp_path):
    result = omni("models", "info", tiny_model, "--json")
    assert result.code == 0, result.err
    value = json.loads(result.out)
    assert (value["hidden_size"], value["layers"], value["weights"]) == (64, 4, "complete")
    assert "hidden size" in omni("models", "info", tiny_model).out
    (tmp_path / "config.json").write_text("[]")
    for name, code in ((tmp_path, 5), ("poket", 5), (tmp_path / "none", 5)):
        bad = omni("models", "info", name)
        assert bad.code == code
        bad.error_line()


def test_honesty_is_one_line():
    assert "\n" not in honesty()
    if not (POCKET_FOLDER / "card.json").is_file():
        assert honesty() == HONESTY


@pytest.mark.parametrize(("limit", "used", "left"), [("1000", "400", 730), ("100", "400", 0)])
def test_memory_of_a_container_counts(monkeypatch, limit, used, left):
    texts = {
        "meminfo": "MemTotal: 16 kB\nMemAvailable: 8 kB\n",
        "memory.max": limit,
        "memory.current": used,
        "memory.stat": "anon 270\ninactive_file 100\nactive_file 30\n",
    }
    monkeypatch.setattr(machine.Path, "read_text", lambda self, **_: texts[self.name])
    assert machine.host_memory() == (left, int(limit))
