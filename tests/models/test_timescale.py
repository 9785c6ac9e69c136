"""Positions in time, fitted into the range a model was trained on: which factor, what it changes, what it leaves."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from omnicli import pipeline
from omnicli.config.config import list_presets, load_config
from omnicli.encode.cache import Cache
from omnicli.encode.encode import Encoded
from omnicli.encode.film import EncodedFilm
from omnicli.errors import ConfigError
from omnicli.llm.decode import DecodeOptions, generate
from omnicli.llm.kv import KVCache
from omnicli.llm.prefill import prefill
from omnicli.models import registry, timescale
from omnicli.models.loading import load_model
from omnicli.models.parts import CAPTURES, EncodedAudio, EncodedVideo
from omnicli.types import LayerView, MediaTokens, MediaUsed, Modality, Selection
from omnicli.utils.timing import Times
from tests.support import films, tiny, tiny_minicpm, tiny_qwen3

FAMILIES = {"qwen2.5": tiny, "qwen3": tiny_qwen3, "minicpm": tiny_minicpm}
FILM_S = 7.3


@pytest.fixture(scope="module", params=["qwen2.5", "qwen3"])
def omni(request):
    return FAMILIES[request.param].model()


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return films.write(tmp_path_factory.mktemp("film") / "film.mp4", FILM_S)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: family.build(root / name) for name, family in FAMILIES.items()}


def settings(*sets, preset="full"):
    return load_config(preset, ["generate.max_new_tokens=4", *sets])


def synthetic(omni, seconds, step_s=4.0, cells=(2, 3)):
    """Return a film as `pipeline.answer` takes it: random features, sound throughout, a pair every ``step_s``."""
    chance = torch.Generator().manual_seed(0)
    times = np.repeat(np.arange(0, seconds, step_s), 2) + np.tile([0.0, step_s / 2], len(np.arange(0, seconds, step_s)))
    groups, rows = len(times) // 2, cells[0] * cells[1]
    levels = omni.facts.levels
    video = EncodedVideo(
        torch.randn(groups * rows, omni.hidden_size, generator=chance),
        groups,
        *cells,
        layer_features=torch.zeros(levels, groups * rows, omni.hidden_size) if levels else None,
    )
    n = omni.facts.audio_tokens(seconds)
    sound = EncodedAudio(torch.randn(n, omni.hidden_size, generator=chance))
    clip = omni.assemble([video], times, [sound], 0.0, float(seconds))
    used = MediaUsed(seconds, seconds, seconds, seconds, len(times), len(times) / seconds, 84, 56)
    return EncodedFilm(SimpleNamespace(path=Path("long.mp4")), Encoded(clip, used, ()), Times())


# ---- the factor ----


def choose(*sets, last, trained=32768, origin=15):
    return timescale.choose(settings(*sets), origin=origin, last=last, trained=trained, name="m")


def test_a_film_that_fits_is_not_scaled():
    free = timescale.TEXT_POSITIONS + 4
    last = 32768 - 1 - free
    assert choose(last=last) == 1.0
    scale = choose(last=last + 1)
    assert scale == (last - 15) / (last + 1 - 15) < 1
    assert choose("media.time_scale=off", last=10**6) == 1.0
    assert choose("media.time_scale=0.25", last=100) == 0.25


def test_room_is_kept_for_subtitles_and_for_the_answer_but_never_more_than_half():
    base = timescale.room(settings(), 32768)
    assert timescale.room(settings("media.subtitles=auto", "media.subtitle_tokens=700"), 32768) == base + 700
    assert timescale.room(settings("media.subtitle_tokens=700"), 32768) == base
    assert timescale.room(settings("generate.max_new_tokens=104"), 32768) == base + 100
    assert timescale.room(settings("generate.max_new_tokens=30000"), 32768) == 16384
    for trained in (1, 10, 40, 2000):
        assert 0 < choose(last=5000, trained=trained, origin=30) < 1


def test_a_factor_for_positions_that_count_tokens_is_refused():
    for wanted in ("auto", "off"):
        assert choose(f"media.time_scale={wanted}", last=10**6, origin=None) is None
    with pytest.raises(ConfigError, match=r"media\.time_scale: positions of m count tokens"):
        choose("media.time_scale=1", last=5, origin=None)


@pytest.mark.parametrize("wanted", ["0", "-1", "1.01", "on", "nan"])
def test_factors_that_make_no_sense(wanted):
    with pytest.raises(ConfigError, match=r"media\.time_scale: must be "):
        settings(f"media.time_scale={wanted}")


def test_a_configuration_goes_through_json():
    for wanted in ("off", "0.5"):
        made = settings(f"media.time_scale={wanted}")
        assert load_config(made.to_dict()).media == made.media


# ---- what is scaled ----


@pytest.mark.parametrize("scale", [0.9, 0.29, 0.01])
@pytest.mark.parametrize("senses", ["both", "pictures", "sound"])
def test_scaled_positions_in_closed_form(omni, scale, senses):
    times = np.array([0.0, 0.31, 1.99, 2.4, 2.50, 7.0, 9.013]) + 3
    pictures = tiny.frames(7, 2 * omni.facts.pixel_unit, 3 * omni.facts.pixel_unit) if senses != "sound" else None
    sound = tiny.sound(10.0) if senses != "pictures" else None
    clip = tiny.encode(omni, pictures, times if senses != "sound" else (), sound, start_s=3.0, end_s=13.0)
    made, tokens, rate = clip.scaled(scale), clip.tokens, omni.facts.positions_per_s
    whole = omni.position_dtype == torch.int64
    origin = len(omni.prompt("", video=clip.video, audio=clip.audio).before) - (whole and senses == "both")
    ticks = {int(i): k for k, i in enumerate(tokens.indices(Modality.AUDIO))}
    expected = torch.zeros(3, len(tokens), dtype=torch.float64)
    for i in range(len(tokens)):
        time = ticks[i] if i in ticks else rate * (float(tokens.start_s[i]) - 3)
        time = np.floor(np.floor(time + 1e-5) * scale + 1e-6) if whole else time * scale
        rest = (time, time) if i in ticks else (float(tokens.row[i]), float(tokens.col[i]))
        expected[:, i] = origin + torch.tensor([time, *rest])
    if whole:
        assert torch.equal(made.tokens.position_ids, expected.long())
    else:
        assert (made.tokens.position_ids - expected).abs().max() < 1e-4
    assert made.tokens.position_ids.dtype == tokens.position_ids.dtype
    assert clip.last_run == (6 if senses == "pictures" else 50 if whole else 1)
    after = made.tokens.position_ids[:, -clip.last_run :].max().item() + 1
    assert (made.next_position, made.max_position) == (after, made.tokens.position_ids.max().item())
    for kind in Modality:  # the clock runs forward in either sense
        assert bool((made.tokens.position_ids[0, tokens.modality == kind].diff() >= 0).all())
    for field in dataclasses.fields(MediaTokens):  # and nothing else changed
        if field.name != "position_ids":
            assert getattr(made.tokens, field.name) is getattr(tokens, field.name)
    with pytest.raises(ValueError, match="scaled already"):
        made.scaled(scale)


def test_a_clip_that_counts_tokens_cannot_be_scaled():
    clip = tiny.encode(tiny_minicpm.model(), tiny.frames(2, 112, 112), [0.0, 1.0], tiny.sound(2.0))
    with pytest.raises(ValueError, match="count tokens"):
        clip.scaled(0.5)


def test_the_loop_reads_scaled_positions_as_the_stock_model_does(omni):
    """Pruned, scaled, and written on: every token equal to a full pass of the stock layers over the same positions."""
    pictures = tiny.frames(12, 2 * omni.facts.pixel_unit, 3 * omni.facts.pixel_unit)
    clip = tiny.encode(omni, pictures, np.arange(12) / 2, tiny.sound(6.0)).scaled(0.13)
    keep = torch.arange(0, len(clip.tokens), 3)
    kept = dataclasses.replace(clip.tokens.select(Selection(keep)), layer_features=None)
    assert torch.equal(kept.position_ids, clip.tokens.position_ids[:, keep])
    given = omni.sequence(omni.prompt("Who speaks last?", video=True, audio=True), clip, kept)
    behind = given.position_ids[:, given.media_span.stop]
    assert bool((behind == behind[0]).all()) and behind[0] == clip.next_position
    cache = KVCache(omni.depth, omni.kv_heads, omni.head_dim, dtype=omni.dtype, device=omni.device, capacity=300)
    read = prefill(omni, given.embeds, given.position_ids, cache, chunk=40)
    text = generate(omni, cache, read.logits, given.next_position, DecodeOptions(max_new_tokens=6))
    text.finish()
    ids = text.token_ids
    stock, embeds, positions = omni.thinker.model.language_model, given.embeds, given.position_ids
    for i, token in enumerate(ids):
        with torch.no_grad():
            out = stock(inputs_embeds=embeds[None], position_ids=positions[:, None], use_cache=False)
            logits = omni.thinker.lm_head(out.last_hidden_state[0, -1])
        assert int(logits.argmax()) == token
        embeds = torch.cat([embeds, omni.embed(torch.tensor([token]))])
        at = torch.full((3, 1), given.next_position + i, dtype=positions.dtype)
        positions = torch.cat([positions, at], 1)
    assert given.next_position < 100 < len(clip.tokens)


# ---- whole runs ----


def answer(film, model, *sets, question="Who speaks last?", **options):
    made = settings("method=random", "random.tokens=40", *sets)
    return pipeline.answer(film, question, made, model, **options)


def test_an_hour_stays_inside_the_range_of_the_7bs_depth():
    model = tiny.model(layers=28)
    hour = synthetic(model, 3600)
    assert hour.media.clip.max_position > 90_000
    auto = answer(hour, model)
    limit = 32767 - timescale.TEXT_POSITIONS - 4
    assert auto.positions["largest"] == limit and auto.positions["trained"] == 32768
    assert auto.positions["time_scale"] == pytest.approx((limit - 49) / 89_999, rel=0.01)
    assert [w for w in auto.warnings if "scaled by" in w and "media.time_scale: auto" in w]
    assert not [w for w in auto.warnings if "was trained" in w]
    off = answer(hour, model, "media.time_scale=off")
    assert off.positions["largest"] > 90_000 and off.positions["time_scale"] == 1
    assert [w for w in off.warnings if "was trained up to 32,768 (media.time_scale: off)" in w]
    half = answer(hour, model, "media.time_scale=0.5")
    assert 45_000 < half.positions["largest"] < 45_100 and half.positions["time_scale"] == 0.5
    assert len([w for w in half.warnings if "media.time_scale: 0.5" in w]) == 2
    assert hour.media.clip.time_scale == 1  # the film itself stays as it was


def test_qwen3_needs_it_behind_84_minutes_only():
    model = tiny_qwen3.model()
    for minutes, fits in ((60, True), (100, False)):
        found = answer(synthetic(model, minutes * 60), model)
        assert (found.positions["time_scale"] == 1) == fits
        assert found.positions["largest"] <= 65_535 - timescale.TEXT_POSITIONS - 4
        assert bool([w for w in found.warnings if "scaled by" in w]) != fits


@pytest.mark.slow
def test_a_film_of_half_an_hour_in_the_pocket_models_range_is_left_alone():
    model = load_model("pocket", device="cpu")
    assert answer(synthetic(model, 1800, cells=(1, 2)), model).positions["time_scale"] == 1


def test_positions_that_count_tokens_are_told_of():
    model = tiny_minicpm.model()
    clip = tiny.encode(model, tiny.frames(2, 112, 112), [0.0, 1.0], tiny.sound(2.0))
    found = EncodedFilm(SimpleNamespace(path=Path("a.mp4")), Encoded(clip, synthetic_used(), ()), Times())
    model.facts = dataclasses.replace(model.facts, max_position=100)
    told = answer(found, model)
    assert told.positions["time_scale"] is None
    assert [w for w in told.warnings if "was trained up to 100 (they count tokens, and no time_scale helps)" in w]
    with pytest.raises(ConfigError, match="count tokens"):
        answer(found, model, "media.time_scale=0.5")


def synthetic_used():
    return MediaUsed(2.0, 2.0, 2.0, 2.0, 2, 1.0, 112, 112)


def test_a_short_film_gives_the_same_bits_whether_or_not(film, omni, monkeypatch):
    read = []
    monkeypatch.setattr(omni, "rope", lambda ids, real=omni.rope: read.append(ids) or real(ids))
    runs = []
    for wanted in ("auto", "off"):
        found = pipeline.ask(film, ["Who?"], settings(f"media.time_scale={wanted}"), omni)[0]
        runs.append((found.answer, found.positions, found.warnings, found.tokens, list(read)))
        read.clear()
    assert runs[0][:4] == runs[1][:4] and runs[0][1]["time_scale"] == 1
    assert all(torch.equal(a, b) for a, b in zip(runs[0][4], runs[1][4], strict=True))


def test_later_questions_share_what_was_read(film, omni, monkeypatch):
    monkeypatch.setattr(omni, "facts", dataclasses.replace(omni.facts, max_position=140))
    questions = ["Who?", "What is the number that is shown in the second picture?"]
    made = settings("method=random", "random.tokens=12")
    together = pipeline.ask(film, questions, made, omni)
    assert together[1].tokens["reused"] > 12
    for i, question in enumerate(questions):
        assert together[i].positions["time_scale"] == together[0].positions["time_scale"] < 1
        alone = pipeline.ask(film, [question], made, omni)[0]
        assert (alone.answer, alone.positions) == (together[i].answer, together[i].positions)


@pytest.mark.parametrize("kind", [pytest.param("qwen2.5", marks=pytest.mark.slow), "qwen3"])
@pytest.mark.slow
def test_a_cached_film_serves_every_factor(folders, film, tmp_path, kind):
    model, cache = load_model(folders[kind], "cpu"), Cache(tmp_path / "cache")
    sets = [("media.time_scale=off",), ("media.time_scale=0.5",), (), ("media.time_scale=0.1",)]
    for i, one in enumerate(sets):
        kept = pipeline.ask(film, ["Who?"], settings(*one), model, cache=cache)[0]
        cold = pipeline.ask(film, ["Who?"], settings(*one), model)[0]
        assert kept.cached == (i > 0)
        assert (kept.answer, kept.positions) == (cold.answer, cold.positions)


# ---- methods ----


@pytest.fixture(scope="module")
def captured():
    """Return a model and clips by what was captured, made as they are needed."""
    model, made = tiny.model(), {}

    def clip(capture):
        if capture not in made:
            made[capture] = tiny.encode(
                model, tiny.frames(12, 112, 168), np.arange(12) / 2, tiny.sound(9.0), capture=capture
            )
        return made[capture]

    return model, clip


def _one_preset_for_each_method_and_mode():
    chosen = {}
    for preset in sorted(list_presets(), key=lambda p: p.name.startswith("ablation/")):
        method = load_config(preset.name).compressor
        chosen.setdefault((method.name, getattr(method, "mode", None)), preset.name)
    return sorted({*chosen.values(), "parity/omnisift-36"})


@pytest.mark.parametrize("preset", _one_preset_for_each_method_and_mode())
def test_no_method_takes_positions_for_time(captured, preset):
    """Before the LLM the pipeline shows methods the film's own clock; inside it they may not look at positions."""
    model, clip = captured
    method = load_config(preset).compressor
    tokens = clip(method.needs & CAPTURES).tokens
    slow = clip(method.needs & CAPTURES).scaled(0.02).tokens
    query = model.query(model.prompt("Who speaks last?", video=True, audio=True))
    by_position = preset == "parity/omnisift-36"
    chosen = method.compress(tokens, query)
    assert torch.equal(chosen.indices, method.compress(slow, query).indices) != by_position
    for layer in method.layers(28):
        attention = torch.rand(len(tokens), generator=torch.Generator().manual_seed(layer))
        count = (tokens.count(Modality.VIDEO), tokens.count(Modality.AUDIO))
        views = [LayerView(layer, 28, t.features, attention / len(t), t, count, count) for t in (tokens, slow)]
        assert torch.equal(*(method.prune(layer, view) for view in views))


def test_the_method_that_goes_by_positions_sees_the_films_own(film, captured):
    runs = [
        pipeline.ask(
            film,
            ["Who?"],
            settings(f"media.time_scale={wanted}", "media.fps=4", preset="parity/omnisift-36"),
            captured[0],
        )[0]
        for wanted in ("off", "0.02")
    ]
    assert runs[0].tokens["timeline"] == runs[1].tokens["timeline"]
    assert runs[0].tokens["selection"] == runs[1].tokens["selection"]


def test_every_family_says_whether_it_has_a_clock(folders):
    for name, facts in registry.facts().items():
        kind = {"qwen2-5-omni": "qwen2.5", "qwen3-omni-moe": "qwen3", "minicpm-o": "minicpm"}[name]
        model = load_model(folders[kind], "cpu")
        clip = tiny.encode(model, None, (), tiny.sound(2.0))
        assert facts.clocked == (clip.origin is not None)
        assert facts.nominal_fps == model.nominal_fps
