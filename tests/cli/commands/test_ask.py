"""`omni ask` with a tiny random model: streams, JSON, order of checks. True answers are the pocket model's tests."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from omnicli.config.config import preset_files
from tests.support import schema

QUESTION = "What is the secret number?"


@pytest.fixture
def ask(omni, tiny_model, film):
    """Return a function that asks the tiny model, briefly and at few frames."""

    def call(*argv, media=film, **kwargs):
        return omni(
            "ask",
            media,
            "--model",
            tiny_model,
            "--fps",
            "1",
            "--max-new-tokens",
            "4",
            "--device",
            "cpu",
            *argv,
            **kwargs,
        )

    return call


def test_stdout_holds_the_answer_alone(ask):
    plain, as_json = ask(QUESTION), ask(QUESTION, "--json")
    assert plain.code == as_json.code == 0, plain.err + as_json.err
    assert plain.out == json.loads(as_json.out)["answer"] + "\n"
    assert "wall time" in plain.err
    assert "tokens:" in plain.err
    assert "\x1b" not in plain.err
    assert "pocket" not in plain.err


def test_json_follows_the_schema(ask, film, tiny_model):
    result = ask(QUESTION, "--json")
    (line,) = result.out.splitlines()
    value = json.loads(line, parse_constant=pytest.fail)
    assert schema.problems(value) == []
    assert value["media"] == str(film)
    assert value["question"] == QUESTION
    assert value["media_used"]["video_present_s"] == pytest.approx(6, abs=0.3)
    assert value["media_used"]["audio_s"] == pytest.approx(6, abs=0.3)
    assert value["tokens"]["video"]["encoded"] > 0
    assert value["tokens"]["audio"]["encoded"] > 0
    assert value["tokens"]["generated"] <= 4
    named = sum(seconds for name, seconds in value["stages"].items() if name != "select_in_llm")
    assert 0 < named < 1.05 * value["wall_s"]


def test_the_schema_notices_what_is_wrong(ask):
    good = json.loads(ask(QUESTION, "--json").out)
    for change in (
        {"answer": 3},
        {"extra": 1},
        {"wall_s": float("nan")},
        {"stages": {"prefill": -1.0}},
        {"media_used": {}},
        {"tokens": {**good["tokens"], "video": {"encoded": 1, "kept": 2}}},
    ):
        assert schema.problems({**good, **change}), change
    assert schema.problems({k: v for k, v in good.items() if k != "config"})


def test_several_questions_give_one_line_each(ask):
    result = ask("one?", "-q", "two?", "-q", "-", "--json", stdin="three?\n\nfour?\n")
    assert result.code == 0, result.err
    rows = [json.loads(line) for line in result.out.splitlines()]
    assert [row["question"] for row in rows] == ["one?", "two?", "three?", "four?"]
    assert all(schema.problems(row) == [] for row in rows)
    assert len({row["id"] for row in rows}) == 4


def test_a_question_among_others_is_answered_as_if_it_were_alone(ask):
    together = [json.loads(line)["answer"] for line in ask("one?", "-q", "two?", "--json").out.splitlines()]
    alone = json.loads(ask("two?", "--json").out)["answer"]
    assert together[1] == alone


def test_same_inputs_give_the_same_object(ask):
    def stable(text):
        value = json.loads(text)
        for key in ("stages", "busy", "wall_s", "time_to_first_token_s", "peak_memory", "cached"):
            del value[key]
        return value

    argv = (QUESTION, "--json", "--temperature", "1", "--seed", "3", "--set", "method=random")
    first, second = ask(*argv), ask(*argv)
    assert first.code == 0, first.err
    assert stable(first.out) == stable(second.out)


def test_a_stretch_of_the_film(ask):
    whole = json.loads(ask(QUESTION, "--json").out)
    part = json.loads(ask(QUESTION, "--json", "--start", "0:02", "--end", "4").out)
    assert part["media_used"]["video_s"] == pytest.approx(2, abs=0.3)
    assert part["media_used"]["audio_s"] == pytest.approx(2, abs=0.3)
    assert part["tokens"]["video"]["encoded"] < whole["tokens"]["video"]["encoded"]
    assert (part["config"]["media"]["start"], part["config"]["media"]["end"]) == (2.0, 4.0)


def test_flags_win_over_settings_and_are_reported(ask):
    result = ask(QUESTION, "--json", "--set", "media.max_frames=3", "--set", "media.fps=4", "--set", "generate.seed=5")
    value = json.loads(result.out)
    assert value["config"]["media"]["fps"] == 1.0  # the flag
    assert value["config"]["generate"]["seed"] == 5
    assert value["media_used"]["frames"] == 3


def test_no_sound_wanted(ask):
    value = json.loads(ask(QUESTION, "--json", "--audio", "off").out)
    assert value["media_used"]["audio_s"] == 0
    assert value["tokens"]["audio"] == {"encoded": 0, "kept": 0}


@pytest.mark.parametrize("option", [["--require-audio"], ["--audio", "on"]])
def test_sound_insisted_on(ask, film_folder, option):
    assert ask(QUESTION, *option).code == 0
    result = ask(QUESTION, *option, media=film_folder / "silent.mp4")
    assert result.code == 3
    assert "sound" in result.error_line()


BRIEFLY = ("full", "avoc", "seats-10", "fastv-25")  # none inside the LLM, none, some, and one that is refused here


REFUSED = {
    "ablation/avoc-no-relevance": ("has no such part", "avoc.scorer=identity"),
    "ablation/avoc-no-importance": ("has no such part", "avoc.scorer=identity"),
    "ablation/seats-encoder-125": ("use an encoder from 1.333", "seats.late_layer=off"),
    "ablation/seats-encoder-130": ("use an encoder from 1.333", "seats.late_layer=off"),
    "ablation/seats-no-stage-1": ("no layer 9 of 4", "seats.drop_layers=1"),
}
"""Presets that a model of four layers without a scorer refuses, why, and what makes them answer."""


@pytest.mark.parametrize(
    "preset", [pytest.param(p, marks=() if p in BRIEFLY else pytest.mark.slow) for p in preset_files()]
)
def test_presets_answer(ask, preset):
    result = ask(QUESTION, "--json", "--preset", preset)
    if preset.startswith("fastv-"):  # half of the test model's four layers would read everything
        assert result.code == 6 and "first 2 of 4 layers read everything" in result.error_line()
        result = ask(QUESTION, "--json", "--preset", preset, "--set", "params.retention=0.7")
    if preset in REFUSED:
        words, change = REFUSED[preset]
        assert result.code == 6 and words in result.error_line()
        result = ask(QUESTION, "--json", "--preset", preset, "--set", change)
    assert result.code == 0, result.err
    assert json.loads(result.out)["preset"] == preset


def test_cheap_mistakes_are_found_without_torch(film):
    """A wrong file or preset is told at once, not after the libraries are loaded."""
    script = (
        "import sys\n"
        "from omnicli.cli.main import run\n"
        "code = run(sys.argv[1:])\n"
        "sys.exit(99 if 'torch' in sys.modules else code)\n"
    )
    for argv, code in (
        (["ask", "no_such_film.mp4", "why?"], 3),
        (["ask", str(film), "why?", "--preset", "avok"], 6),
    ):
        done = subprocess.run([sys.executable, "-c", script, *argv], capture_output=True, text=True, check=False)
        assert done.returncode == code, (argv, done.stderr)
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["--preset", "avok"], 6, ["avok", "avoc"]),
        (["--preset", "none.yaml"], 6, ["none.yaml"]),
        (["--set", "media.fsp=2"], 6, ["media.fsp", "fps"]),
        (["--set", "media.fps=-1"], 6, ["fps"]),
        (["--set", "media.fps"], 6, ["media.fps"]),
        (["--set", "media.fsp=2", "--set", "generate.sede=2"], 6, ["fsp", "sede"]),
        (["--model", "poket"], 5, ["poket", "pocket"]),
        (["--model", "./no/such/folder"], 5, ["no/such/folder"]),
        (["--device", "gpu"], 5, ["gpu"]),
        (["--dtype", "float8"], 5, ["float8"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_wrong_names_are_one_line_with_a_near_name(omni, film, tiny_model, argv, code, words):
    model = [] if "--model" in argv else ["--model", tiny_model]
    result = omni("ask", film, QUESTION, *model, *argv)
    assert result.code == code
    line = result.error_line()
    for word in words:
        assert word in line


def test_a_missing_file_has_near_names(omni, film):
    result = omni("ask", film.with_name("flim.mp4"), QUESTION)
    assert result.code == 3
    assert "did you mean film.mp4" in result.error_line()


def test_a_model_folder_without_weights(omni, film, tmp_path):
    result = omni("ask", film, QUESTION, "--model", tmp_path)
    assert result.code == 5
    assert "config.json" in result.error_line()


def test_the_configured_model_is_used(omni, film, tiny_model, monkeypatch):
    monkeypatch.setenv("OMNI_MODEL", str(tiny_model))
    monkeypatch.setenv("OMNI_PRESET", "full")
    result = omni("ask", film, QUESTION, "--json", "--fps", "1", "--max-new-tokens", "2")
    assert result.code == 0, result.err
    value = json.loads(result.out)
    assert value["model"]["name"] == str(tiny_model)
    assert value["preset"] == "full"


@pytest.mark.slow
def test_a_process_of_its_own_writes_the_same_streams(omni_process, film, tiny_model):
    result = omni_process(
        "ask", film, QUESTION, "--model", tiny_model, "--fps", "1", "--max-new-tokens", "2", FORCE_COLOR="1"
    )
    assert result.code == 0, result.err
    assert result.out.endswith("\n")
    assert "\x1b" not in result.out + result.err
    assert "wall time" in result.err
    assert "arning" not in result.err


def test_subtitles_come_before_the_question(ask, film, tmp_path):
    file = tmp_path / "said.srt"
    file.write_text("1\n00:00:01,000 --> 00:00:02,000\nout of the blue\n")
    plain, said = (json.loads(ask(QUESTION, "--json", *argv).out) for argv in ([], ["--subtitles", file]))
    assert said["tokens"]["text"] - plain["tokens"]["text"] > len("out of the blue") / 2
    assert (said["cached"], said["warnings"]) == (True, plain["warnings"])
    assert said["config"]["media"]["subtitles"] == str(file)
    none = json.loads(ask(QUESTION, "--json", "--subtitles", "auto").out)
    assert none["warnings"] == [f"{film.name}: subtitles: none in the film, none beside it"]
    assert none["tokens"]["text"] == plain["tokens"]["text"]
    wrong = ask(QUESTION, "--subtitles", tmp_path / "sayd.srt")
    assert wrong.code == 3 and "did you mean said.srt" in wrong.error_line()


@pytest.mark.parametrize("kind", ["int8", pytest.param("int4", marks=pytest.mark.slow)])
def test_weights_in_few_bits(ask, kind):
    value = json.loads(ask("Who?", "--json", "--quantize", kind).out)
    assert value["model"]["quantize"] == value["config"]["quantize"] == kind and not value["config"]["offload"]
    from omnicli.report import repeat

    assert f"--set quantize={kind}" in repeat.command(value)
    assert f"LLM in {kind})" in ask("Who?", "--quantize", kind).err and "LLM in" not in ask("Who?").err


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (("--quantize", "int5"), 6, "quantize: must be one of none, int8, int4"),
        (("--offload", "--device", "cpu"), 5, "no device to offload from"),
        (("--set", "offload=true", "--device", "cpu"), 5, "no device to offload from"),
    ],
)
def test_weights_that_cannot_be_kept_so(omni, film, tiny_model, argv, code, words):
    result = omni("ask", film, "Who?", "--model", tiny_model, *argv)
    assert result.code == code and words in result.err and result.err.count("\n") == 1 and result.out == ""
