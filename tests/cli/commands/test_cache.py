"""`omni cache` and what `omni ask` keeps, with a tiny random model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.waiting import PATIENCE_S

QUESTION = "What is the secret number?"
MEASURED = ("stages", "busy", "wall_s", "time_to_first_token_s", "peak_memory", "cached")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Return where the tests' cache is (see conftest)."""
    assert os.environ["OMNI_CACHE_DIR"] == str(tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def ask(omni, tiny_model, film):
    def call(*argv, media=film):
        result = omni(
            "ask", media, QUESTION, "--model", tiny_model, "--fps", "1", "--max-new-tokens", "4", "--json", *argv
        )
        assert result.code == 0, result.err
        return json.loads(result.out), result.err

    return call


def content(value):
    return {key: v for key, v in value.items() if key not in MEASURED}


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def test_the_second_question_finds_the_film_in_the_cache(ask, folder, monkeypatch):
    first, _ = ask()
    assert len(entries(folder)) == 1

    def probe(path):
        raise AssertionError("the film was probed")

    monkeypatch.setattr("omnicli.media.probe.probe", probe)
    second, err = ask()
    assert (first["cached"], second["cached"]) == (False, True)
    assert content(first) == content(second)
    assert "read or keep tokens" in err or second["stages"]["cache"] < 0.01
    assert "decode" not in err


def test_no_cache_neither_reads_nor_keeps(ask, folder):
    cold, _ = ask("--no-cache")
    assert not folder.exists() and not cold["cached"]
    ask()
    before = {path: path.stat().st_mtime_ns for path in entries(folder)}
    again, _ = ask("--no-cache")
    assert not again["cached"]
    assert {path: path.stat().st_mtime_ns for path in entries(folder)} == before


def test_an_unreadable_film_is_told_of_before_the_model_is_loaded(omni, film_folder, tiny_model, monkeypatch):
    from omnicli.models import loading

    monkeypatch.setattr(loading, "load_model", lambda *a: pytest.fail("the model was loaded"))
    result = omni("ask", film_folder / "noise.mkv", QUESTION, "--model", tiny_model)
    assert result.code == 3
    result.error_line()


def test_ls_info_and_clear(omni, ask, film, film_folder, folder):
    assert json.loads(omni("cache", "ls", "--json").out) == []
    assert omni("cache", "ls").code == omni("cache", "verify").code == omni("cache", "clear").code == 0
    ask()
    ask("--start", "2")
    ask(media=film_folder / "name with ünïcode.mp4")
    facts = json.loads(omni("cache", "ls", "--json").out)
    assert [f["film"] for f in facts] == ["name with ünïcode.mp4", "film.mp4", "film.mp4"]
    assert {f["entry"] for f in facts} == {p.name for p in entries(folder)}
    for fact in facts:
        assert fact["duration_s"] == pytest.approx(6, abs=0.3) and not fact["damaged"]
        assert fact["size"] == (folder / fact["entry"]).stat().st_size
        assert fact["tokens"]["video"] > 0 and fact["model"]["dtype"] == "float32"
    assert facts[1]["media"]["start"] == 2.0 and facts[2]["media"]["start"] is None
    heads, *rows = omni("cache", "ls").out.splitlines()
    assert heads.split() == ["film", "length", "model", "size", "last", "used"]
    assert len(rows) == 3 and all("0:06" in row and "just now" in row for row in rows)
    total = sum(f["size"] for f in facts)
    info = json.loads(omni("cache", "info", "--json").out)
    assert (info["folder"], info["entries"], info["size"], info["limit"]) == (str(folder), 3, total, 20 * 10**9)
    assert str(folder) in omni("cache", "info").out and "20.0 GB" in omni("cache", "info").out
    assert str(folder) in omni("doctor").out
    os.utime(folder / facts[0]["entry"], (1000, 1000))
    assert json.loads(omni("cache", "clear", "--older-than", "1d", "--json").out) == {
        "removed": 1,
        "size": facts[0]["size"],
    }
    assert len(entries(folder)) == 2
    (folder / "model.safetensors").write_bytes(b"mine")
    assert "removed 2 of 2" in omni("cache", "clear").out
    assert [p.name for p in folder.iterdir()] == ["model.safetensors"]


def test_verify_finds_what_is_damaged(omni, ask, folder):
    ask()
    ask("--start", "2")
    assert omni("cache", "verify").code == 0
    bad = entries(folder)[0]
    data = bytearray(bad.read_bytes())
    data[len(data) // 2] ^= 1
    bad.write_bytes(data)
    result = omni("cache", "verify")
    assert result.code == 1 and bad.name in result.out and bad.exists()
    found = json.loads(omni("cache", "verify", "--json").out)
    assert [d["entry"] for d in found["damaged"]] == [bad.name] and (found["checked"], found["removed"]) == (2, 0)
    assert omni("cache", "verify", "--fix").code == 0
    assert not bad.exists() and len(entries(folder)) == 1
    bad.write_bytes(b"\xff" * 99)
    assert [f["damaged"] for f in json.loads(omni("cache", "ls", "--json").out)] == [True, False]
    assert "(damaged)" in omni("cache", "ls").out


def test_a_damaged_entry_is_one_line_and_the_answer_comes(ask, folder):
    first, _ = ask()
    (path,) = entries(folder)
    path.write_bytes(path.read_bytes()[:-1])
    second, err = ask()
    assert content(first) == content(second) and not second["cached"]
    assert sum("damaged" in line for line in err.splitlines()) == 1
    assert ask()[0]["cached"]


def test_a_folder_that_cannot_be(omni, ask, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OMNI_CACHE_DIR", str(tmp_path / "file" / "cache"))
    _, err = ask()
    assert sum("no films can be kept" in line for line in err.splitlines()) == 1
    for command in ("ls", "info", "clear", "verify"):
        result = omni("cache", command)
        assert result.code == 6
        assert "cannot be read" in result.error_line()
    assert "OMNI_CACHE_DIR" in omni("doctor").out


def test_a_limit_that_is_none_is_told_of_before_anything_is_done(omni, film, tiny_model, monkeypatch):
    monkeypatch.setenv("OMNI_CACHE_LIMIT", "much")
    result = omni("ask", film, QUESTION, "--model", tiny_model)
    assert result.code == 6 and "20 GB" in result.error_line()


def test_nothing_is_kept_with_a_limit_of_nothing(ask, folder, monkeypatch):
    monkeypatch.setenv("OMNI_CACHE_LIMIT", "0")
    assert not ask()[0]["cached"] and not ask()[0]["cached"]
    assert not folder.exists()


def test_bench_measures_the_film_itself(omni, ask, film, tiny_model, folder):
    ask()
    before = {path: path.stat().st_mtime_ns for path in entries(folder)}
    result = omni(
        "bench",
        film,
        "--model",
        tiny_model,
        "--preset",
        "random-10",
        "--fps",
        "1",
        "--repeat",
        "1",
        "--max-new-tokens",
        "2",
        "--json",
    )
    assert result.code == 0, result.err
    assert {path: path.stat().st_mtime_ns for path in entries(folder)} == before


@pytest.mark.slow
def test_two_processes_filling_one_cache_are_both_right(ask, film, tiny_model, folder):
    cold, _ = ask("--no-cache")
    command = [
        sys.executable,
        "-m",
        "omnicli.cli.main",
        "ask",
        film,
        QUESTION,
        "--model",
        tiny_model,
        "--fps",
        "1",
        "--max-new-tokens",
        "4",
        "--json",
    ]
    running = [subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outs = [process.communicate(timeout=PATIENCE_S)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    for out in outs:
        assert content(json.loads(out)) == content(cold)
    assert len(list(folder.iterdir())) == 1
    assert ask()[0]["cached"]


@pytest.mark.parametrize("argv", [["clear", "--older-than", "soon"], ["verify", "now"]])
def test_wrong_usage(omni, argv):
    result = omni("cache", *argv)
    assert result.code == 2
    result.error_line()
