"""Presets, overrides, and that every problem is told at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from omnicli.compress.methods.avoc import Avoc
from omnicli.compress.methods.random import Random
from omnicli.config import config as c
from omnicli.errors import ConfigError
from tests.support.slowly import slow_but


def problems(preset, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        c.load_config(preset, overrides)
    assert caught.value.exit_code == 6
    return caught.value.problems


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_shipped_presets_are_what_they_say():
    assert {"full", "avoc", "avoc-10", "random-10"} <= set(c.preset_files())
    assert c.load_config("avoc").compressor == Avoc(tokens=10240, split="2:1", diversity=0.15, radius=3)
    assert c.load_config("avoc-10").compressor == Avoc(retention=0.1)
    assert c.load_config("random-10").compressor == Random(retention=0.1, seed=0)
    assert c.load_config("full").method == "full"


def test_every_shipped_preset_is_valid_and_described():
    for preset in c.list_presets():
        assert c.validate(preset.name) == []
        assert preset.description and "\n" not in preset.description and preset.method


def test_listing_and_method_names_need_no_torch():
    code = (
        "import sys; from omnicli.config import config, registry; from omnicli.models.registry import families;"
        "assert config.list_presets() and list(registry.methods()) and list(families());"
        "assert 'avoc' in registry.methods() and not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_overrides_are_read_as_their_fields_type():
    made = c.load_config(
        "avoc",
        [
            "media.fps=2",
            "media.max_frames=320",
            "media.audio=on",
            "media.require_audio=true",
            "media.end=1e2",
            "generate.stop=[a, 1]",
            "generate.seed = 7",
            "avoc.split=3:1",
            "params.radius=1",
            "model=pocket",
            "dtype=bf16",
        ],
    )
    assert made.media == c.MediaConfig(fps=2.0, max_frames=320, audio="on", require_audio=True, end=100.0)
    assert made.generate == c.GenerateConfig(stop=("a", "1"), seed=7)
    assert made.compressor == Avoc(tokens=10240, split="3:1", radius=1)
    assert (made.model, made.device, made.dtype) == ("pocket", "auto", "bf16")
    assert c.load_config("avoc", ["generate.stop=END"]).generate.stop == ("END",)
    assert c.load_config("avoc", ["media.max_frames=5", "media.max_frames=null"]).media.max_frames is None


def test_later_overrides_win_and_values_may_hold_equals_signs():
    assert c.load_config("avoc", ["media.fps=2", "media.fps=3"]).media.fps == 3
    assert c.load_config("avoc", ["generate.stop=a=b"]).generate.stop == ("a=b",)


def test_an_override_of_the_budget_replaces_the_presets_budget():
    assert c.load_config("avoc", ["avoc.retention=0.2"]).compressor == Avoc(retention=0.2)
    assert c.load_config("avoc-10", ["avoc.tokens=2048"]).compressor == Avoc(tokens=2048)
    made = c.load_config("avoc", ["avoc.retention_audio=0.5"]).compressor
    assert made == Avoc(retention_audio=0.5)
    assert any("contradict" in p for p in problems("avoc", "avoc.tokens=5", "avoc.retention=0.1"))


def test_another_method_keeps_what_it_shares():
    assert c.load_config("avoc", ["method=random"]).compressor == Random(tokens=10240)
    assert c.load_config("avoc", ["method=random", "random.seed=3"]).compressor == Random(tokens=10240, seed=3)
    assert c.load_config("avoc", ["method=full"]).method == "full"


def test_all_problems_at_once_with_near_names_and_types(tmp_path):
    preset = write(
        tmp_path / "bad.yaml",
        """
        descripton: typo
        method: avoc
        params: {tokns: 5, radius: far, diversity: 2}
        media: {fsp: 1, max_frames: 2.5, audio: of, end: -1, exact_mel: 1}
        generate: [1]
        dtype: float31
        """,
    )
    found = problems(preset, "generate.max_new_tokens=0", "fps=2", "nonsense", "random.seed=1", "avoc.scorer=gone.st")
    expected = [
        ("bad.yaml: descripton: unknown key", "did you mean description"),
        ("bad.yaml: avoc.tokns: unknown setting", "did you mean tokens"),
        ("bad.yaml: avoc.radius: must be a whole number", "'far'"),
        ("avoc.diversity: must be between 0 and 1", "2"),
        ("avoc.scorer: gone.st", "file"),
        ("bad.yaml: media.fsp: unknown setting", "fps"),
        ("bad.yaml: media.max_frames: must be a whole number or null", "2.5"),
        ("bad.yaml: media.audio: must be one of auto, on, off", "did you mean off"),
        ("bad.yaml: media.exact_mel: must be true or false", "1"),
        ("media.end", "not after start"),
        ("bad.yaml: generate: must hold settings", "[1]"),
        ("bad.yaml: dtype: must be one of auto, float32", "did you mean float32"),
        ("generate.max_new_tokens: must be at least 1", "0"),
        ("fps: unknown setting", "media.fps"),
        ("nonsense: must be key=value", "media.fps=2"),
        ("random.*: the method is avoc", "method=random"),
    ]
    for start, part in expected:
        assert any(p.startswith(start) and part in p for p in found), (start, found)
    assert len(found) == len(expected)
    assert c.validate(preset)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("method: [", "not valid YAML"),
        ("- a", "must hold `key: value` lines"),
        ("method: full\nmethod: avoc", "'method' is there twice"),
        ("method: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("media: {fps: 1}", "method: is missing; known: avoc"),
        ("method: avok", "did you mean avoc"),
        ("method: 3", "method: must be text"),
        ("", "method: is missing"),
        ("method: full\nparams: {tokens: 5}", "full.tokens: unknown setting"),
        ("method: avoc\nparams: {tokens: .inf}", "must be a whole number"),
        ("method: full\nmedia: {fps: .nan}", "must be a number"),
        ("method: full\nmedia: {fps: 0}", "above 0"),
        ("method: full\nmedia: {fps: true}", "must be a number, not true"),
        ("method: full\nmedia: {start: 5, end: 5}", "not after start"),
        ("method: full\nmedia: {audio: off, require_audio: true}", "contradicts"),
        ("method: full\nmedia: {min_pixels: 5, max_pixels: 4}", "above max_pixels"),
        ("method: full\ngenerate: {top_p: 0, temperature: -1, seed: -1}", "top_p"),
    ],
)
def test_wrong_presets(text, part, tmp_path):
    found = problems(write(tmp_path / "p.yaml", text))
    assert any(part in p for p in found), found
    assert all("\n" not in p for p in found)


def test_yaml_words_mean_what_they_look_like(tmp_path):
    """In YAML 1.1 ``2:1`` is 121 and ``on`` is true."""
    made = c.load_config(write(tmp_path / "p.yaml", "method: avoc\nparams: {split: 2:1}\nmedia: {audio: on}\n"))
    assert made.compressor == Avoc(split="2:1") and made.media.audio == "on"


def test_missing_presets():
    assert "did you mean avoc" in problems("avok")[0]
    assert "no such preset file" in problems("./avoc.yml")[0]
    assert "no such preset file" in problems(Path("nothing/here"))[0]


def test_unreadable_preset(tmp_path):
    (tmp_path / "p.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in problems(tmp_path / "p.yaml")[0]


@pytest.mark.parametrize("name", slow_but(c.preset_files(), lambda name: "/" not in name))
def test_resolved_settings_are_json_and_can_be_read_back(name):
    made = c.load_config(name, ["media.fps=2", "generate.stop=[x]"])
    data = made.to_dict()
    assert json.loads(json.dumps(data)) == data
    again = c.load_config(data)
    assert again.to_dict() == data and again.compressor == made.compressor and again.preset == name


def test_a_preset_in_a_folder_has_its_folders_name(tmp_path, monkeypatch):
    (tmp_path / "parity").mkdir()
    write(tmp_path / "parity" / "x.yaml", "method: full\ndescription: two\n  lines\n")
    monkeypatch.setattr(c, "presets_folder", lambda: tmp_path)
    assert [(p.name, p.description, p.method) for p in c.list_presets()] == [("parity/x", "two lines", "full")]
    assert c.load_config("parity/x").preset == "parity/x"


def test_a_chain_takes_settings_by_method():
    made = c.load_config("avoc-seats", ["avoc.tokens=2048", "seats.temperature=0.5"])
    assert made.method == "avoc+seats"
    assert made.compressor.params()["avoc"]["tokens"] == 2048
    assert made.compressor.params()["seats"]["temperature"] == 0.5
    assert c.load_config(made.to_dict()) == c.Config(**{**vars(made), "preset": "avoc-seats", "description": ""})
    assert json.loads(json.dumps(made.to_dict())) == made.to_dict()


def test_a_chain_made_of_a_preset_keeps_its_budget_before_the_llm():
    made = c.load_config("avoc-10", ["method=avoc+seats", "seats.late_layer=off"])
    assert made.compressor.params()["avoc"]["retention"] == 0.1
    assert made.compressor.params()["seats"]["retention"] is None
    assert made.compressor.late_removal(28) is None and made.compressor.layers(28) == (15, 17, 19)


@pytest.mark.parametrize(
    ("text", "overrides", "parts"),
    [
        ("method: avoc+nothing", (), ["unknown method 'nothing'"]),
        ("method: avoc+avoc", (), ["two different methods"]),
        ("method: avoc+seats+fastv", (), ["two different methods"]),
        ("method: seats+avoc", (), ["put it last", "put it first"]),
        ("method: fastv+avoc", (), ["fastv chooses nothing before the LLM", "avoc does nothing inside"]),
        ("method: avoc+seats\nparams: {tokens: 5}", (), ["params.tokens: not a method of avoc+seats"]),
        ("method: avoc+seats\nparams: {avoc: 5}", (), ["params.avoc: must hold settings, not 5"]),
        ("method: avoc+seats", ("params.tokens=5",), ["say which method, avoc.tokens or seats.tokens"]),
        (
            "method: avoc+seats\nparams: {avoc: {tokns: 5}, seats: {temperature: 0}}",
            (),
            ["avoc.tokns: unknown", "seats.temperature: must be above 0"],
        ),
        ("method: avoc+seats", ("random.seed=1",), ["the method is avoc+seats"]),
    ],
)
def test_what_is_wrong_with_a_chain(text, overrides, parts, tmp_path):
    found = c.validate(write(tmp_path / "p.yaml", text), overrides)
    assert all(any(part in problem for problem in found) for part in parts), found


def test_how_weights_are_kept_is_part_of_a_configuration(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text("method: full\nquantize: int4\noffload: true\n")
    made = c.load_config(file)
    assert (made.quantize, made.offload) == ("int4", True)
    again = c.load_config(made.to_dict(), ["quantize=none", "offload=false"])
    assert c.load_config(made.to_dict()).to_dict() == made.to_dict()
    assert (again.quantize, again.offload) == ("none", False)
    with pytest.raises(ConfigError, match="quantize: must be one of none, int8, int4"):
        c.load_config("full", ["quantize=int3"])
