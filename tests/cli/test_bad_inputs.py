"""Unusual and damaged files: an answer with a note, or exit code 3 with one line; never a traceback."""

from __future__ import annotations

import json

import pytest

from tests.support import films, schema


@pytest.fixture
def ask(omni, tiny_model, film_folder):
    def call(name, *argv):
        path = film_folder / name
        return omni("ask", path, "why?", "--model", tiny_model, "--fps", "2", "--max-new-tokens", "2", *argv)

    return call


@pytest.mark.parametrize("name", films.GOOD)
def test_unusual_files_are_answered(ask, name):
    result = ask(name, "--json")
    assert result.code == 0, result.err
    value = json.loads(result.out)
    assert schema.problems(value) == []
    assert value["tokens"]["video"]["kept"] + value["tokens"]["audio"]["kept"] > 0


@pytest.mark.parametrize("name", films.BAD)
@pytest.mark.parametrize("command", ["ask", "probe"])
def test_files_that_hold_nothing_are_refused(ask, omni, film_folder, name, command):
    result = ask(name) if command == "ask" else omni("probe", film_folder / name)
    assert result.code == 3, (result.out, result.err)
    assert name in result.error_line()


@pytest.mark.parametrize("name", films.DAMAGED)
def test_damaged_files_are_answered_with_a_note(ask, name):
    result = ask(name, "--json")
    assert "Traceback" not in result.err
    if result.code == 3:
        assert name in result.error_line()
        return
    assert result.code == 0, result.err
    value = json.loads(result.out)
    assert schema.problems(value) == []
    assert value["warnings"], "damage was not reported"


def test_a_truncated_film_is_used_as_far_as_it_goes(ask):
    value = json.loads(ask("truncated.mkv", "--json").out)
    used = value["media_used"]
    assert 1 < used["video_present_s"] < 5.5
    assert used["video_s"] <= used["video_present_s"] + 0.01


def test_a_silent_film_is_said_to_be_one(ask):
    value = json.loads(ask("silent.mp4", "--json").out)
    assert value["media_used"]["audio_s"] == value["media_used"]["audio_present_s"] == 0
    assert any("sound" in text for text in value["warnings"])


def test_a_sound_file_is_answered_from_sound(ask):
    value = json.loads(ask("sound.wav", "--json").out)
    assert value["media_used"]["frames"] == 0
    assert value["tokens"]["video"] == {"encoded": 0, "kept": 0}
    assert value["media_used"]["audio_s"] == pytest.approx(films.SECONDS, abs=0.05)


def test_one_frame(ask):
    assert json.loads(ask("one_frame.mp4", "--json").out)["media_used"]["frames"] == 1


def test_a_stretch_after_the_end_is_refused(ask):
    result = ask("film.mp4", "--start", "10:00")
    assert result.code in (2, 3)
    assert "10:00" in result.err or "600" in result.err
    result.error_line()


@pytest.mark.parametrize("name", [".", "no/such/folder/film.mp4", "http://example.org/film.mp4", "film\0.mp4"])
def test_what_is_no_file(omni, film_folder, monkeypatch, name):
    monkeypatch.chdir(film_folder)
    for command in (["ask", name, "why?"], ["probe", name]):
        result = omni(*command)
        assert result.code == 3
        result.error_line()


@pytest.mark.parametrize("name", films.GOOD)
def test_probe_tells_what_is_there(omni, film_folder, name):
    as_text, as_json = omni("probe", film_folder / name), omni("probe", film_folder / name, "--json")
    assert as_text.code == as_json.code == 0, as_text.err
    assert as_text.err == as_json.err == ""
    assert "status" in as_text.out
    value = json.loads(as_json.out, parse_constant=pytest.fail)
    assert value["status"] == "ok"
    assert value["duration_s"] > 0


def test_probe_tells_what_is_wrong(omni, film_folder):
    value = json.loads(omni("probe", film_folder / "truncated.mkv", "--json").out)
    assert value["status"] != "ok"
    assert value["problems"]
    text = omni("probe", film_folder / "truncated.mkv").out
    assert value["problems"][0] in text
