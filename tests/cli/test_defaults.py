"""The user's own defaults, and what wins over what."""

from __future__ import annotations

import pytest

from omnicli.cli import defaults, options
from omnicli.errors import ConfigError, UsageError


def write(folder, text):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(text, encoding="utf-8")


def test_nothing_chosen_without_a_file(monkeypatch):
    monkeypatch.delenv("OMNI_CACHE_DIR")
    assert defaults.load_defaults() == defaults.Defaults()


def test_environment_wins_over_the_file(tmp_path, monkeypatch):
    monkeypatch.delenv("OMNI_CACHE_DIR")
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


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("20 GB", 20 * 10**9), ("1.5GiB", 3 << 29), ("500M", 500 * 10**6), ("12b", 12), ("2 tib", 2 << 40)],
)
def test_sizes(text, size):
    assert options.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "1 iB", "1e9", "20 gigs", "nan"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="not a size"):
        options.parse_size(text)


@pytest.mark.parametrize(("text", "seconds"), [("45s", 45), ("90m", 5400), ("1.5 h", 5400), ("30d", 2_592_000)])
def test_ages(text, seconds):
    assert options.parse_age(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1y", "soon"])
def test_what_is_no_age(text):
    with pytest.raises(Exception, match="not an age"):
        options.parse_age(text)


def test_where_the_cache_is_and_how_large(tmp_path, monkeypatch):
    monkeypatch.delenv("OMNI_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert (defaults.open_cache().folder, defaults.open_cache().limit) == (tmp_path / "x" / "omni", 20 * 10**9)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert defaults.open_cache().folder == tmp_path / ".cache" / "omni"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    write(tmp_path / "omni", "cache_dir: ~/films\ncache_limit: 2 GB\n")
    assert (defaults.open_cache().folder, defaults.open_cache().limit) == (tmp_path / "films", 2 * 10**9)
    write(tmp_path / "omni", "cache_limit: 0\n")
    assert defaults.open_cache().limit == 0
    monkeypatch.setenv("OMNI_CACHE_LIMIT", "much")
    with pytest.raises(ConfigError, match="cache_limit: 'much' is not a size"):
        defaults.open_cache()


def test_span_must_not_be_empty():
    options.check_span(None, 5.0)
    options.check_span(5.0, None)
    with pytest.raises(UsageError):
        options.check_span(5.0, 5.0)


def test_flags_come_after_settings():
    got = options.overrides(["media.fps=1", "a.b=c"], media__fps=2.0, media__start=None, media__require_audio=True)
    assert got == ["media.fps=1", "a.b=c", "media.fps=2.0", "media.require_audio=true"]
