"""The flow from a file to answers, with a tiny random model: what is done once, what is told, what is refused."""

from __future__ import annotations

import dataclasses
import json
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from omnicli import pipeline
from omnicli.config.config import load_config
from omnicli.encode import film as film_module
from omnicli.encode.film import load_film
from omnicli.errors import MediaError, MemoryLimitError
from omnicli.media.write import FilmWriter
from omnicli.utils.context import RunContext
from omnicli.utils.timing import StageClock
from tests.support import schema, tiny, tiny_qwen3

QUESTIONS = ["What number is shown?", "Who speaks last?"]
SECONDS, FPS, RATE = 4, 4, 16_000
MEASURED = ("stages", "busy", "wall_s", "time_to_first_token_s", "peak_memory")


def write(path: Path, *, sound: bool = True) -> Path:
    ramp = np.add.outer(np.arange(112), np.arange(196))
    with FilmWriter(path, 196, 112, FPS, sample_rate=RATE if sound else None, gop=FPS, preset="ultrafast") as film:
        for i in range(SECONDS * FPS):
            film.add_frame(np.stack([(ramp * k + 9 * i) % 256 for k in (1, 2, 3)], -1).astype(np.uint8), i / FPS)
        if sound:
            film.add_samples(0.1 * tiny.sound(SECONDS))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("films")
    write(made / "film.mp4")
    write(made / "silent.mp4", sound=False)
    with wave.open(str(made / "sound.wav"), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes((tiny.sound(SECONDS).clip(-1, 1) * 32767).astype("<i2").tobytes())
    return made


@pytest.fixture(scope="module")
def model():
    return tiny.model()


@pytest.fixture(scope="module")
def moe(tmp_path_factory):
    """Return a tiny Qwen3-Omni, read from a full checkpoint's folder."""
    from omnicli.models.loading import load_model

    return load_model(tiny_qwen3.build(tmp_path_factory.mktemp("moe") / "tiny", full=True, layers=28), device="cpu")


@pytest.fixture(scope="module")
def two(folder, model):
    """Return the answers to both questions and what was told while they were written."""
    told: list[tuple[int, str]] = []
    answers = ask(folder / "film.mp4", model, on_text=lambda i, text: told.append((i, text)))
    return answers, told


def ask(path, model, *settings, questions=QUESTIONS, preset="full", **options):
    config = load_config(preset, ["media.fps=2", "generate.max_new_tokens=4", *settings])
    return pipeline.ask(path, questions, config, model, **options)


def stable(answer):
    return {key: value for key, value in answer.to_dict().items() if key not in MEASURED}


def test_two_questions_look_decode_and_encode_once(folder, model, monkeypatch):
    calls = {"probe": 0, "encode": 0, "encode_video": 0, "audio_encoder": 0}

    def counted(name, function):
        def call(*args, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        return call

    for owner, name in (
        (film_module, "probe"),
        (film_module, "encode"),
        (model, "encode_video"),
        (model, "audio_encoder"),
    ):
        monkeypatch.setattr(owner, name, counted(name, getattr(owner, name)))
    assert model.video_batch >= SECONDS * 2, "the film has to fit one call"
    assert len(ask(folder / "film.mp4", model)) == 2
    assert calls == {"probe": 1, "encode": 1, "encode_video": 1, "audio_encoder": 1}


def test_answers_carry_everything_the_schema_names(two, folder):
    answers, _ = two
    assert [a.question for a in answers] == QUESTIONS
    for answer in answers:
        assert schema.problems(json.loads(json.dumps(answer.to_dict(), allow_nan=False))) == []
        assert answer.media == str(folder / "film.mp4")
        assert answer.media_used.video_s == pytest.approx(SECONDS, abs=0.3)
        assert answer.media_used.audio_s == pytest.approx(SECONDS, abs=0.3)
        assert answer.media_used.frames == SECONDS * 2
        assert answer.tokens["retention"] == 1.0
        assert answer.flops["prefill"] == answer.flops["full_prefill"] > 0
        assert not answer.warnings
    assert answers[0].id != answers[1].id


def test_the_text_is_told_piece_by_piece_under_its_questions_number(two):
    answers, told = two
    assert [i for i, _ in told] == sorted(i for i, _ in told)
    for i, answer in enumerate(answers):
        assert "".join(text for which, text in told if which == i).strip() == answer.answer


def test_stages_add_up_to_the_wall_time_and_hold_the_shared_ones(two):
    answers, _ = two
    for answer in answers:
        stages = {name: s for name, s in answer.stages.items() if name != "select_in_llm"}
        assert sum(stages.values()) == pytest.approx(answer.wall_s, rel=0.05, abs=0.02)
        assert answer.time_to_first_token_s <= answer.wall_s
        for name in ("probe", "encode_video", "encode_audio", "prefill", "generate"):
            assert answer.stages[name] > 0, name
        assert answer.stages["decode_video"] + answer.stages["decode_audio"] > 0, "one of them comes first"
        assert set(answer.busy) == {"decode_video", "decode_audio", "preprocess"} and min(answer.busy.values()) > 0
    assert answers[0].stages["encode_video"] == answers[1].stages["encode_video"]


def test_what_was_timed_before_is_in_the_stages(folder, model):
    clock = StageClock()
    clock.start -= 5.0
    clock.stages["load"] += 5.0
    (answer,) = ask(folder / "film.mp4", model, questions=QUESTIONS[:1], context=RunContext(clock=clock))
    assert answer.stages["load"] == pytest.approx(5.0) and answer.wall_s > 5.0


def test_same_inputs_give_the_same_object(folder, model):
    settings = ("method=random", "random.retention=0.4", "generate.temperature=1", "generate.seed=3")
    first, second = (ask(folder / "film.mp4", model, *settings) for _ in range(2))
    assert [stable(a) for a in first] == [stable(a) for a in second]
    assert first[0].tokens["retention"] == pytest.approx(0.4, abs=0.02)
    (changed, _) = ask(folder / "film.mp4", model, *settings[:3], "generate.seed=4")
    assert changed.id != first[0].id


@pytest.mark.parametrize(
    ("name", "settings", "warning"),
    [
        ("silent.mp4", (), "no sound track"),
        ("sound.wav", (), "no pictures; answered from the sound only"),
        ("film.mp4", ("media.audio=off",), "the sound was not used"),
        ("film.mp4", ("media.start=1", "media.end=3"), "video used 2.0 of 4.0 s"),
        ("film.mp4", ("media.start=1", "media.end=3"), "audio used 2.0 of 4"),
    ],
)
def test_what_was_not_used_is_warned_of(folder, model, name, settings, warning):
    (answer,) = ask(folder / name, model, *settings, questions=QUESTIONS[:1])
    assert any(line.startswith(f"{name}: ") and warning in line for line in answer.warnings), answer.warnings


def test_a_film_without_sound_is_refused_where_sound_was_insisted_on(folder, model):
    for setting in ("media.require_audio=true", "media.audio=on"):
        with pytest.raises(MediaError, match=r"silent\.mp4: no sound track; .*--require-audio"):
            ask(folder / "silent.mp4", model, setting)
    assert ask(folder / "film.mp4", model, "media.require_audio=true")


def test_nothing_beyond_the_end(folder, model):
    with pytest.raises(MediaError, match="nothing from 60 s on"):
        ask(folder / "film.mp4", model, "media.start=60")


def test_what_does_not_fit_the_context_is_refused_with_the_knobs_that_help(folder, model, two, monkeypatch):
    tokens = two[0][0].tokens
    length = tokens["video"]["kept"] + tokens["audio"]["kept"] + tokens["text"]
    monkeypatch.setattr(model, "facts", dataclasses.replace(model.facts, max_position=length + 4))
    assert len(ask(folder / "film.mp4", model, questions=QUESTIONS[:1])) == 1
    monkeypatch.setattr(model, "facts", dataclasses.replace(model.facts, max_position=length + 3))
    with pytest.raises(MemoryLimitError) as error:
        ask(folder / "film.mp4", model, questions=QUESTIONS[:1])
    for words in (f"{length:,} tokens", f"{length + 3:,}", "--preset", "--fps", "--start", "--end"):
        assert words in str(error.value)


def test_positions_beyond_what_the_model_was_trained_on_are_warned_of(folder, model, monkeypatch):
    monkeypatch.setattr(model, "facts", dataclasses.replace(model.facts, max_position=80))
    settings = ("method=random", "random.tokens=8", "media.time_scale=off")
    (answer,) = ask(folder / "film.mp4", model, *settings, questions=["?"])
    assert any("was trained up to 80" in line for line in answer.warnings), answer.warnings


def test_only_so_much_sound_is_heard_as_the_limit_says(folder, model):
    (answer,) = ask(folder / "film.mp4", model, "media.audio_limit=2", questions=QUESTIONS[:1])
    assert answer.tokens["audio"]["encoded"] == 50
    assert answer.media_used.audio_s == 2.0 and answer.media_used.video_s == pytest.approx(SECONDS, abs=0.3)
    assert any("audio used 2.0 of 4.0 s" in w for w in answer.warnings)


def test_the_nominal_clock_lays_pictures_out_at_the_familys_rate(folder, model):
    from omnicli.config.config import load_config

    starts = {}
    for clock in ("true", "nominal"):
        settings = load_config("full", ["media.fps=1", f"media.clock={clock}"]).media
        tokens = load_film(folder / "film.mp4", settings, frozenset(), model).media.clip.tokens
        starts[clock] = sorted(set(tokens.start_s[tokens.modality == 0].tolist()))
    assert starts == {"true": [0.0, 2.0], "nominal": [0.0, 1.0]}  # pairs of frames 1 s apart; taken as 0.5 s apart


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        *(("film.mp4", preset) for preset in ("full", "avoc", "seats-10", "omnizip-35", "fastv-25")),
        *((name, preset) for name in ("silent.mp4", "sound.wav") for preset in ("full", "omnizip-35")),
    ],
)
def test_qwen3_omni_answers_from_a_file(folder, moe, name, preset):
    settings = ("media.min_pixels=4096", "media.max_pixels=30000")
    (answer,) = ask(folder / name, moe, *settings, preset=preset, questions=QUESTIONS[:1])
    assert schema.problems(json.loads(json.dumps(answer.to_dict(), allow_nan=False))) == []
    tokens, used = answer.tokens, answer.media_used
    heard = 0 if name == "silent.mp4" else 13 * SECONDS + (name == "film.mp4")  # its sound is a little longer
    pairs = 0 if name == "sound.wav" else SECONDS
    cells = used.width * used.height // 32**2
    assert (tokens["audio"]["encoded"], tokens["video"]["encoded"]) == (heard, pairs * cells)
    assert used.audio_s == pytest.approx(SECONDS if heard else 0, abs=0.1)
    assert answer.flops["prefill"] > 0 and not any("trained up to" in line for line in answer.warnings)
    if preset in ("full", "avoc"):  # avoc keeps 10,240 tokens: all of them
        assert tokens["retention"] == 1.0
    elif name == "film.mp4":
        assert answer.flops["prefill"] < answer.flops["full_prefill"]


def test_what_every_layer_read_is_reported(folder):
    deep = tiny.model(layers=28)
    (answer,) = ask(folder / "film.mp4", deep, preset="seats-35", questions=QUESTIONS[:1])
    told = answer.tokens
    assert told["retention_nominal"] == pytest.approx({"video": 0.30, "audio": 0.65}, abs=0.02)
    for name, asked in told["retention_nominal"].items():
        entered = told[name]["kept"] / told[name]["encoded"]
        assert entered == pytest.approx(min(1, 1.4 * asked), abs=0.03)
        assert told["retention_layers"][name] == pytest.approx(asked, abs=0.03)
    assert told["by_layer"][-1] == [23, 0] and len(told["by_layer"]) == 5
    (plain,) = ask(folder / "silent.mp4", deep, preset="avoc-10", questions=QUESTIONS[:1])
    assert plain.tokens["retention_nominal"]["audio"] is None and plain.tokens["retention_layers"]["audio"] is None
    assert plain.tokens["retention_layers"]["video"] == pytest.approx(plain.tokens["retention"], abs=1e-6)


def _encoded(path, model, **settings):
    from omnicli.config.settings import MediaConfig

    return load_film(path, MediaConfig(**settings), frozenset(), model).media


def _same(first, second) -> bool:
    return torch.equal(first.clip.tokens.features, second.clip.tokens.features) and torch.equal(
        first.clip.tokens.start_s, second.clip.tokens.start_s
    )


def test_reading_in_stretches_gives_the_same_tokens(folder, monkeypatch):
    small = tiny.model()
    small.facts = dataclasses.replace(small.facts, video_batch=2)
    plain = _encoded(folder / "film.mp4", small, fps=4)
    monkeypatch.setattr("omnicli.media.video.stretches", lambda batches: 3)
    assert _same(_encoded(folder / "film.mp4", small, fps=4), plain) and plain.used.frames == 16


def test_a_damaged_film_is_read_as_in_one_stretch(tmp_path, monkeypatch):
    """Missing frames shift all pairs behind them, so that stretches of a damaged film would not fit together."""
    small = tiny.model()
    small.facts = dataclasses.replace(small.facts, video_batch=2)
    data = bytearray(write(tmp_path / "whole.mp4").read_bytes())
    torn = 0
    for seed in range(4):
        damaged = bytearray(data)
        places = np.random.default_rng(seed).integers(len(data) // 8, len(data) * 7 // 8, 60)
        for at in places:
            damaged[at] ^= 0xFF
        path = tmp_path / "damaged.mp4"
        path.write_bytes(bytes(damaged))
        with monkeypatch.context() as one:
            one.setattr("omnicli.media.video.stretches", lambda batches: 1)
            try:
                plain = _encoded(path, small, fps=4, audio="off")
            except MediaError:
                continue
        monkeypatch.setattr("omnicli.media.video.stretches", lambda batches: 3)
        assert _same(_encoded(path, small, fps=4, audio="off"), plain)
        assert plain.used.frames <= 16
        torn += plain.used.frames < 16
    assert torn > 0, "no frame was ever missing: the test would show nothing"
