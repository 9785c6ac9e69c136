"""The user's own defaults, and what wins over what."""

from __future__ import annotations

import inspect

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


def given(**said):
    """Return what a command is given whose user says this."""

    @options.shared(*said)
    def command(*, other: int, given: options.SharedOptions) -> options.SharedOptions:
        assert other == 1
        return given

    return command(other=1, **said)


def test_span_must_not_be_empty():
    assert given(start=None, end=5.0).settings == ("media.end=5.0",)
    assert given(start=5.0, end=None).settings == ("media.start=5.0",)
    with pytest.raises(UsageError, match=r"--end 5 s is not after --start 5 s"):
        given(start=5.0, end=5.0)


def test_flags_come_after_settings():
    got = given(
        sets=["media.fps=1", "a.b=c"],
        preset="full",
        fps=2.0,
        start=None,
        require_audio=True,
        seed=3,
        offload=False,
        audio=options.AudioChoice.off,
        quantize="int8",
        device="cpu",
    )
    settings = ("media.fps=1", "a.b=c", "media.fps=2.0", "media.require_audio=true", "generate.seed=3")
    assert got == options.SharedOptions("full", (*settings, "media.audio=off", "quantize=int8"), None, "cpu", None)


def test_a_command_has_the_shared_options_in_the_place_of_what_it_is_given():
    @options.shared("model", "offload")
    def command(*, other: int, given: options.SharedOptions, last: bool = False) -> None: ...

    parameters = inspect.signature(command).parameters
    assert list(parameters) == ["other", "model", "offload", "last"]
    assert parameters["model"].default is None and parameters["offload"].default is False
