"""`omni demo`: the film, the verdicts, the exit code."""

from __future__ import annotations

import json

import pytest

from omnicli.cli.answering import POCKET_FOLDER
from omnicli.cli.commands import demo as room
from tests.support import schema


@pytest.mark.slow
def test_wrong_answers_are_called_wrong_and_exit_1(omni, tiny_model, tmp_path):
    film = tmp_path / "demo.mp4"
    argv = ("demo", "--minutes", "0.5", "--model", tiny_model, "--set", "media.fps=0.25", "--keep", film)
    result = omni(*argv, "--set", "generate.max_new_tokens=2", "--json")
    assert result.code == 1, result.err
    rows = [json.loads(line) for line in result.out.splitlines()]
    assert len(rows) == 3
    for row in rows:
        assert row.pop("expected")
        assert row.pop("correct") is False
        assert schema.problems(row) == []
    assert film.stat().st_size > 10_000
    assert "3 of 3 answers are wrong" in result.err
    assert "wall time" in result.err


def test_keep_needs_a_folder(omni, tmp_path):
    result = omni("demo", "--minutes", "0.5", "--keep", tmp_path / "none" / "demo.mp4")
    assert result.code == 3
    result.error_line()


@pytest.mark.parametrize(
    ("answer", "expected", "good"),
    [(" 482913\n", "482913", True), ("Red.", "red", True), ("482914", "482913", False), ("", "red", False)],
)
def test_verdicts(answer, expected, good):
    assert room.same(answer, expected) is good


@pytest.mark.slow
@pytest.mark.skipif(not (POCKET_FOLDER / "model.safetensors").is_file(), reason="the pocket weights are not here")
def test_the_pocket_model_answers_its_film(omni):
    result = omni("demo", "--minutes", "1")
    assert result.code == 0, result.out + result.err
    assert result.out.count("(right)") == 3
    assert "omni: pocket" in result.err
