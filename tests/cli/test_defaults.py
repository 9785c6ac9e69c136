"""The user's own defaults, and what wins over what."""

from __future__ import annotations

import pytest

from omnicli.cli import defaults, options
from omnicli.errors import ConfigError, UsageError


def write(folder, text):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(text, encoding="utf-8")


def test_nothing_chosen_without_a_file():
    assert defaults.load_defaults() == defaults.Defaults()


def test_environment_wins_over_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    write(tmp_path / "omni", "model: qwen2.5-omni-7b\npreset: full\nset: [media.fps=2]\n")
    assert defaults.load_defaults() == defaults.Defaults(model="qwen2.5-omni-7b", preset="full", set=("media.fps=2",))
    monkeypatch.setenv("OMNI_MODEL", "pocket")
    assert defaults.load_defaults().model == "pocket"
    assert defaults.load_defaults().preset == "full"


def test_every_mistake_in_the_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    write(tmp_path / "omni", "modle: pocket\ndevice: 3\nset: fps\n")
    with pytest.raises(ConfigError) as caught:
        defaults.load_defaults()
    assert len(caught.value.problems) == 3
    assert "did you mean model" in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "- a\n- b", "\x00"])
def test_a_file_that_is_no_mapping_is_an_error(tmp_path, monkeypatch, text):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    write(tmp_path / "omni", text)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        defaults.load_defaults()


def test_a_named_config_file_must_exist(tmp_path, monkeypatch):
    monkeypatch.setenv("OMNI_CONFIG", str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        defaults.load_defaults()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90.5", 90.5), ("1:30", 90), ("1:02:03.5", 3723.5), ("90:00", 5400), (".5", 0.5), ("12s", 12)],
)
def test_times(text, seconds):
    assert options.parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "-1", "1:60", "1:60:00", "1:2:3:4", "soon", "1:", "nan", "1e3"])
def test_what_is_no_time(text):
    with pytest.raises(Exception, match="not a time"):
        options.parse_time(text)


def test_span_must_not_be_empty():
    options.check_span(None, 5.0)
    options.check_span(5.0, None)
    with pytest.raises(UsageError):
        options.check_span(5.0, 5.0)


def test_flags_come_after_settings():
    got = options.overrides(["media.fps=1", "a.b=c"], media__fps=2.0, media__start=None, media__require_audio=True)
    assert got == ["media.fps=1", "a.b=c", "media.fps=2.0", "media.require_audio=true"]
