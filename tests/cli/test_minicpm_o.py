"""The whole way with a tiny random MiniCPM-o: every stage from a film to an answer, and the family's marks."""

from __future__ import annotations

import json

import pytest

from omnicli import pipeline
from omnicli.config.config import load_config
from omnicli.models.loading import load_model
from tests.support import schema, tiny_minicpm


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_minicpm.build(tmp_path_factory.mktemp("minicpm") / "tiny", layers=36)


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder, "cpu")


@pytest.mark.parametrize(
    ("preset", "kept"),
    [
        ("full", (384, 60)),
        ("seats-10", None),
        pytest.param("avoc", (384, 60), marks=pytest.mark.slow),
        pytest.param("fastv-25", None, marks=pytest.mark.slow),
        pytest.param("parity/avoc-minicpm", None, marks=pytest.mark.slow),
    ],
)
def test_a_film_is_answered(model, film, preset, kept):
    settings = load_config(preset, ["media.fps=1", "generate.max_new_tokens=6"])
    (answer,) = pipeline.ask(film, ["What is the secret number?"], settings, model)
    counts = answer.tokens
    assert (counts["video"]["encoded"], counts["audio"]["encoded"]) == (6 * 64, 60)
    assert (answer.media_used.height, answer.media_used.width) == (336, 588)
    assert answer.media_used.audio_s == pytest.approx(6, abs=0.1)
    assert 0 < counts["generated"] <= 6
    if kept is not None:
        assert (counts["video"]["kept"], counts["audio"]["kept"]) == kept
    else:
        assert counts["retention_layers"]["video"] <= 1
    if preset in ("seats-10", "fastv-25"):
        shares = counts["retention_nominal"]
        assert counts["retention_layers"]["video"] == pytest.approx(shares["video"], abs=0.06)
    assert [w for w in answer.warnings if "experimental" in w and "not yet run on the released weights" in w]


def test_the_command_line_takes_the_folder(omni, folder, film):
    result = omni(
        "ask", film, "Who?", "--model", folder, "--fps", "1", "--max-new-tokens", "3", "--preset", "avoc-10", "--json"
    )
    assert result.code == 0, result.err
    value = json.loads(result.out)
    assert schema.problems(value) == [] and value["tokens"]["retention"] == pytest.approx(0.1, abs=0.01)
    assert omni("ask", film, "Who?", "--model", folder, "--preset", "avoc-10", "--max-new-tokens", "3").code == 0


def test_what_it_cannot_give_is_one_line_and_exit_5(omni, folder, film):
    result = omni("ask", film, "Who?", "--model", folder, "--preset", "parity/seats-10")
    assert result.code == 5
    assert "MiniCPM-o's encoders give no pair_saliency" in result.error_line()


@pytest.mark.parametrize(
    "media",
    [
        "one_frame.mp4",
        "sound.wav",
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("silent.mp4", "late_sound.mkv")),
    ],
)
def test_unusual_films(omni, folder, film_folder, media):
    result = omni(
        "ask", film_folder / media, "Who?", "--model", folder, "--fps", "1", "--max-new-tokens", "2", "--json"
    )
    assert result.code == 0, result.err


def test_it_is_listed_with_its_caveat(omni, folder):
    listed = {fact["name"]: fact for fact in json.loads(omni("models", "list", "--json").out)}
    assert listed["minicpm-o-4.5"]["hub_id"] == "openbmb/MiniCPM-o-4_5"
    assert "not yet run" in listed["minicpm-o-4.5"]["experimental"] and listed["pocket"]["experimental"] is None
    assert "minicpm-o-4.5: experimental" in omni("models", "list").out
    facts = json.loads(omni("models", "info", folder, "--json").out)
    assert (facts["hidden_size"], facts["layers"], facts["weights"]) == (64, 36, "complete")


def test_needles_are_hidden_and_asked_for(omni, folder, film):
    result = omni(
        "needle",
        film,
        "--model",
        folder,
        "--preset",
        "avoc-10",
        "--durations",
        "4",
        "--depths",
        "0.5",
        "--needles",
        "1",
        "--modality",
        "vision",
        "--json",
    )
    assert result.code == 0, result.err
    assert "avoc-10" in result.out


@pytest.mark.slow
def test_bench_measures_random_weights(omni):
    result = omni(
        "bench",
        "--dummy-weights",
        "minicpm-o-4.5",
        "--layers",
        "2",
        "--scale",
        "0.04",
        "--duration",
        "12",
        "--preset",
        "avoc-10",
        "--repeat",
        "1",
        "--max-new-tokens",
        "4",
        "--json",
    )
    assert result.code == 0, result.err
    assert "minicpm-o-4.5" in result.out
