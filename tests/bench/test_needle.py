"""Needles: splicing equals writing them into the film and encoding all of it; what is found, and what is refused."""

from __future__ import annotations

import json
import sys
import wave
from dataclasses import astuple
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from omnicli import pipeline
from omnicli.bench import needle as needles
from omnicli.bench import needle_film, needle_plot, needle_run
from omnicli.bench.needle import MODALITIES, Grid, Needle
from omnicli.bench.needle_journal import Journal
from omnicli.config.config import load_config
from omnicli.config.settings import MediaConfig
from omnicli.encode.film import load_film
from omnicli.errors import ConfigError, MediaError, MemoryLimitError, UsageError
from omnicli.media import audio, video
from omnicli.media.probe import probe
from omnicli.media.write import FilmWriter
from tests.support import tiny, tiny_qwen3

RATE = 16_000
SECONDS = 13
DURATIONS = (5.0, 8.0, 12.5)
NONE, BOTH, PAIRS = frozenset(), frozenset({"saliency", "keys"}), frozenset({"pair_saliency"})
CASES = [  # every capture once, and each family at every duration: their sound blocks are of 2 and of 8 seconds
    pytest.param(tiny, BOTH, DURATIONS, id="qwen2-5-omni-keys+saliency"),
    pytest.param(tiny, PAIRS, (5.0, 12.5), id="qwen2-5-omni-pair_saliency"),
    pytest.param(tiny_qwen3, NONE, DURATIONS, id="qwen3-omni-moe-plain"),
    pytest.param(tiny_qwen3, BOTH, (12.5,), id="qwen3-omni-moe-keys+saliency"),
]


def write(path: Path, *, sound: bool = True, pictures: bool = True, seconds: float = SECONDS) -> Path:
    """Write a film whose sound varies by 40 dB and is loudest in its last seconds."""
    samples = 0.02 * np.clip(tiny.sound(seconds, seed=3), -3, 3)
    samples[10 * RATE : round(10.4 * RATE)] *= 12
    if not pictures:
        with wave.open(str(path), "wb") as out:
            out.setparams((1, 2, RATE, 0, "NONE", ""))
            out.writeframes((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
        return path
    ramp = np.add.outer(np.arange(112), np.arange(196))
    with FilmWriter(path, 196, 112, 4, sample_rate=RATE if sound else None, gop=8, preset="ultrafast") as film:
        for i in range(round(seconds * 4)):
            film.add_frame(np.stack([(ramp * k + 9 * i) % 256 for k in (1, 2, 3)], -1).astype(np.uint8), i / 4)
        if sound:
            film.add_samples(samples)
    return path


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("needle") / "film.mp4")


MODELS = {family: cache(family.model) for family in (tiny, tiny_qwen3)}


@pytest.fixture(params=[tiny, tiny_qwen3], ids=["qwen2-5-omni", "qwen3-omni-moe"])
def either(request):
    """Return each family's model in turn, where what is tested depends on its blocks."""
    return MODELS[request.param]()


@pytest.fixture
def model():
    """Return one model, where what is tested does not depend on the family."""
    return MODELS[tiny]()


def burst(seconds: float, level: float, seed: int = 9) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * RATE)) / 3).astype(np.float32)


def haystack(film, model, capture=NONE, durations=DURATIONS, **grid):
    return needle_film.Haystack(probe(film), model, Grid(durations, (0.0, 0.5, 1.0), **grid), capture=capture)


@pytest.fixture(scope="module")
def encoded_once(film):
    """Return a function that gives the haystack of a family and a capture, encoded once."""
    return cache(lambda family, capture: haystack(film, MODELS[family](), capture))


def decoded(hay, duration_s):
    """Return the frames, their times and the samples of the first seconds, decoded on their own."""
    times = hay.times[hay.times < duration_s - 1e-3]
    frames = np.stack([rgb for _, rgb in video.read_frames(hay.info, times, *hay.size, device="cpu")])
    return frames, times, np.concatenate(list(audio.read_audio(hay.info, 0.0, duration_s)))


def encoded(hay, frames, times, samples, duration_s):
    clip = tiny.encode(
        hay.model, torch.from_numpy(frames), times, samples, batch=8, capture=hay.capture, end_s=duration_s
    )
    return clip.tokens


def same(tokens, expected, tolerance=1e-5):
    for name in ("modality", "start_s", "end_s", "window", "row", "col", "position_ids"):
        assert torch.equal(getattr(tokens, name), getattr(expected, name)), name
    for name in ("features", "saliency", "keys", "layer_features"):
        got, want = getattr(tokens, name), getattr(expected, name)
        assert (got is None) == (want is None), name
        if got is not None:
            torch.testing.assert_close(got, want, rtol=0, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "capture", "durations"), CASES)
def test_prefixes_equal_looking_at_the_first_seconds_alone(film, encoded_once, family, capture, durations):
    hay = encoded_once(family, capture)
    for duration_s in durations:
        settings = MediaConfig(fps=needles.FPS, end=duration_s)
        alone = load_film(film, settings, capture, hay.model).media
        prefix = hay.prefix(duration_s)
        same(prefix.clip.tokens, alone.clip.tokens)
        assert prefix.clip.next_position == alone.clip.next_position
        assert prefix.clip.max_position == alone.clip.max_position
        assert prefix.film.media.used.frames == alone.used.frames


@pytest.mark.parametrize(("family", "capture", "durations"), CASES)
@pytest.mark.slow
def test_a_spliced_caption_equals_one_drawn_before_encoding(encoded_once, family, capture, durations):
    hay = encoded_once(family, capture)
    for duration_s in durations:
        prefix = hay.prefix(duration_s)
        frames, times, samples = decoded(hay, duration_s)
        before = prefix.clip.tokens.features.clone()
        for depth in (0.0, 1.0) if duration_s == 12.5 else (0.5,):
            needle = Needle("482913", 5)
            index = needles.caption_frame(len(frames), depth)
            drawn = frames.copy()
            drawn[index] = needle.drawn(frames[index])
            with prefix.with_needle("vision", depth, needle) as at_s:
                same(prefix.clip.tokens, encoded(hay, drawn, times, samples, duration_s))
                assert not torch.equal(prefix.clip.tokens.features, before)
            assert at_s == times[index]
            assert torch.equal(prefix.clip.tokens.features, before), "what was there has to come back"


@pytest.mark.parametrize(("family", "capture", "durations"), [case for case in CASES if PAIRS not in case.values])
@pytest.mark.slow
def test_a_spliced_sentence_equals_one_written_into_the_samples(encoded_once, monkeypatch, family, capture, durations):
    """Quiet, and louder than all, which raises the clip's maximum and is no local change."""
    hay = encoded_once(family, capture)
    for duration_s in durations:
        prefix = hay.prefix(duration_s)
        frames, times, samples = decoded(hay, duration_s)
        before = prefix.clip.tokens.features.clone()
        for lufs, depth in ((-30.0, 0.0), (-30.0, 0.37), (3.0, 0.37), (3.0, 1.0)):
            monkeypatch.setattr(hay, "lufs", lufs)
            needle = Needle("482913", 5, burst(2.3, 0.3))
            spoken, begin, _ = needles.speak(samples, lufs, depth, needle)
            with prefix.with_needle("audio", depth, needle) as at_s:
                same(prefix.clip.tokens, encoded(hay, frames, times, spoken, duration_s))
                assert not torch.equal(prefix.clip.tokens.features, before)
            assert at_s == begin / RATE
            assert torch.equal(prefix.clip.tokens.features, before)


def test_a_needle_over_the_loudest_moment_lowers_the_maximum_exactly(film, either):
    hay = haystack(film, either, durations=(12.5,))
    prefix = hay.prefix(12.5)
    frames, times, samples = decoded(hay, 12.5)
    needle = Needle("482913", 5, burst(3.0, 0.05))
    depth = 9.0 / (12.5 - 3.0)  # over seconds 9 to 12
    spoken, begin, end = needles.speak(samples, -45.0, depth, needle)
    hay.lufs = -45.0
    change = hay.blocks.change(prefix.audio, spoken, begin, end)
    assert change.maximum < prefix.audio.maximum - 0.5
    with prefix.with_needle("audio", depth, needle):
        same(prefix.clip.tokens, encoded(hay, frames, times, spoken, 12.5))


def test_a_needle_costs_only_what_it_touches(film, either, monkeypatch):
    hay = haystack(film, either, durations=(12.5,))
    prefix, lengths = hay.prefix(12.5), []
    sound, picture = either.encode_audio_windows, either.encode_video
    monkeypatch.setattr(
        either, "encode_audio_windows", lambda w, *rest: (lengths.append(w.shape[0]), sound(w, *rest))[1]
    )
    monkeypatch.setattr(either, "encode_video", lambda f, c=frozenset(): (lengths.append(len(f)), picture(f, c))[1])
    with prefix.with_needle("vision", 0.5, Needle("482913", 5)):
        assert lengths == [2], "one frame pair"
    lengths.clear()
    hay.lufs = -40.0
    with prefix.with_needle("audio", 0.4, Needle("482913", 5, burst(1.0, 0.05))):
        assert sum(lengths) <= 4, "the blocks that a second of sound touches, and one on either side"


def test_a_family_of_unknown_windows_is_encoded_in_whole(film, model, monkeypatch):
    monkeypatch.setattr(model, "audio_block", None)
    hay = haystack(film, model, durations=(5.0, 12.5))
    for duration_s in (5.0, 12.5):
        prefix = hay.prefix(duration_s)
        frames, times, samples = decoded(hay, duration_s)
        needle = Needle("482913", 5, burst(1.0, 0.05))
        with prefix.with_needle("audio", 0.5, needle):
            spoken = needles.speak(samples, hay.lufs, 0.5, needle)[0]
            same(prefix.clip.tokens, encoded(hay, frames, times, spoken, duration_s))


def test_sound_block_statistics_are_those_of_the_whole(film, either):
    hay = haystack(film, either, durations=(12.5,))
    samples = hay.audio.samples
    assert hay.audio.maximum == pytest.approx(either.measure_log_mel_max([samples]), abs=1e-6)
    blocks = hay.blocks
    for n in (32_000, 32_020, 31_990, 64_000, 100_001, 159):
        part = blocks.prefix(hay.audio, n)
        assert part.maximum == pytest.approx(either.measure_log_mel_max([samples[:n]]), abs=1e-6), n
        alone = blocks.encode(samples[:n])
        torch.testing.assert_close(part.encoded.features, alone.encoded.features, rtol=0, atol=1e-5)
        np.testing.assert_allclose(part.low, alone.low, atol=1e-6)


# --- what needles are -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("482913", True),
        ("The secret number is 482913.", True),
        ("4 8 2 9 1 3", True),
        ("482,913", True),
        ("482914", False),
        ("4829135", False),
        ("482913 or 111111", False),
        ("482 913 is number 7", True),
        ("", False),
    ],
)
def test_what_counts_as_found(answer, right):
    assert needles.found(answer, "482913") is right


def test_a_caption_changes_its_box_and_nothing_else():
    frame = np.random.default_rng(0).integers(0, 256, (112, 196, 3), dtype=np.uint8)
    for seed in range(5):
        drawn = Needle("482913", seed).drawn(frame)
        changed = (drawn != frame).any(-1)
        rows, cols = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        high, wide = np.ptp(rows) + 1, np.ptp(cols) + 1
        assert changed[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1].mean() > 0.9
        assert 28 <= high <= 60 and 80 <= wide <= 130


def test_a_sentence_has_the_loudness_of_its_haystack_or_a_fixed_one():
    sound = burst(20, 0.2)
    lufs = audio.integrated_loudness(sound)
    needle = Needle("482913", 4)
    out, begin, end = needles.speak(sound, lufs, 0.5, needle)
    assert audio.integrated_loudness(out[begin:end]) == pytest.approx(lufs, abs=0.5)
    assert np.array_equal(out[:begin], sound[:begin]) and np.array_equal(out[end:], sound[end:])
    silent, begin, end = needles.speak(np.zeros(20 * RATE, np.float32), float("-inf"), 1.0, needle)
    assert end == 20 * RATE
    assert audio.integrated_loudness(silent[begin:end]) == pytest.approx(needles.SILENT_LUFS, abs=0.5)
    with pytest.raises(UsageError, match="longer --durations"):
        needles.speak(sound[:RATE], lufs, 0.5, needle)


def test_a_long_haystack_is_measured_in_stretches_spread_over_it():
    sound = np.tile(burst(10, 0.2), 40) * np.linspace(0.5, 1.5, 400 * RATE, dtype=np.float32)
    assert needles.loudness(sound) == pytest.approx(audio.integrated_loudness(sound), abs=0.3)
    assert needles.loudness(np.zeros(400 * RATE, np.float32)) == float("-inf")


def test_needles_are_fresh_in_every_cell_and_the_same_in_every_run():
    grid = Grid((100.0, 600.0), (0.0, 1.0))
    made = [
        needles.make_needle(grid, m, duration_s=t, depth=d, number=i)
        for t in grid.durations
        for m, d, i in grid.cells(t)
    ]
    assert len({n.digits for n in made}) == len(made) == 40
    again = needles.make_needle(grid, "vision", duration_s=100.0, depth=0.0, number=0)
    assert again == made[0]


def test_grids():
    assert [len(x) for x in needles.GRIDS["coarse"]] == [4, 5]
    durations, depths = needles.GRIDS["paper"]
    assert (durations[0], durations[-1], len(durations), len(depths)) == (100.0, 3600.0, 36, 11)
    for bad in (((), (0.5,)), ((10.0,), (1.5,)), ((0.0,), (0.5,))):
        with pytest.raises(UsageError, match="--d"):
            Grid(*bad)


def test_a_recording_tells_its_digits(tmp_path):
    path = write(tmp_path / "secret_482913.wav", pictures=False, seconds=1)
    assert needles.read_recording(str(path)).digits == "482913"
    other = needles.read_recording(f"{path}=111222")
    assert other.digits == "111222" and len(other.spoken()) == RATE
    with pytest.raises(UsageError, match="which six digits"):
        needles.read_recording(str(write(tmp_path / "secret.wav", pictures=False, seconds=1)))
    with pytest.raises(MediaError):
        needles.read_recording(f"{tmp_path / 'none.wav'}=111222")


def test_a_generated_haystack_says_and_shows_no_number(tmp_path, monkeypatch):
    from omnicli.train import films

    written = []
    monkeypatch.setattr(films, "write_film", lambda film, path, **rest: written.append(film))
    needles.write_haystack(tmp_path / "x.mp4", 600.0)
    (film,) = written
    assert not [e for e in film.events if e.kind == "caption"]
    said = " ".join(e.text for e in film.events if e.kind == "voice").split()
    from omnicli.train import speech

    assert said and not set(said) & {*speech.DIGITS, "secret", "number"}


# --- the run --------------------------------------------------------------------------------------------------------


def contender(label, preset="random-10", *settings, up_to_s=None):
    config = needle_run.sampled_alike(load_config(preset, ["generate.max_new_tokens=2", *settings]))
    return needle_run.Contender(label, config, up_to_s)


def source(path):
    return needle_run.Source({"name": path.name}, lambda: probe(path))


GRID = Grid((8.0, 12.5), (0.0, 1.0), needles=1)


def a_run(film, model, contenders, journal=None, grid=GRID):
    return needle_run.Run(grid, contenders, [source(film)], journal or Journal(None, {}), lambda: model)


def test_a_run_asks_every_cell_and_resumes(film, model, tmp_path):
    path = tmp_path / "journal.jsonl"
    contenders = [contender("full", "full", up_to_s=8.0), contender("random")]
    told = []
    run = a_run(film, model, contenders, Journal(path, {"a": 1.5}))
    run.tell = lambda *args: told.append(args)
    run.run()
    with pytest.raises(UsageError, match="another omni"):
        Journal(path, {"a": 1.5})
    run.journal.close()
    report = run.report()
    assert [t[:2] for t in told] == [(i, 12) for i in range(12)]
    assert told[0][3] is None and told[-1][3] is not None
    json.dumps(report, allow_nan=False)
    totals = {(s["preset"], s["modality"]): s["total"] for s in report["scores"]}
    assert totals == {("full", m): 2 for m in MODALITIES} | {("random", m): 4 for m in MODALITIES}
    cell = report["cells"][0]
    assert (cell["total"], cell["right"], cell["low"]) == (1, 0, 0.0) and 0.5 < cell["high"] < 1
    assert [r[3:] for r in needle_run.table(report)[1:]] == [["0 % (0/2)", "-"]] * 2 + [["0 % (0/2)"] * 2] * 2
    lines = path.read_text().splitlines()
    assert len(lines) == 13

    path.write_text("\n".join(lines[:8]) + '\n{"haystack": 0, "pre')  # stopped while writing
    again = a_run(film, model, contenders, Journal(path, {"a": 1.5}))
    asked = []
    again.tell = lambda *args: asked.append(args)
    again.run()
    again.journal.close()
    assert len(asked) == 5

    def timeless(rows):
        return [{k: v for k, v in json.loads(row).items() if k != "seconds"} for row in rows]

    assert timeless(path.read_text().splitlines()) == timeless(lines)
    nothing = a_run(film, None, contenders, Journal(path, {"a": 1.5}))
    nothing.run()  # needs no model: everything is there
    assert nothing.report()["cells"] == report["cells"]
    nothing.journal.close()

    with pytest.raises(UsageError, match="other a"):
        Journal(path, {"a": 2})
    (tmp_path / "other").write_text("hello\n")
    with pytest.raises(UsageError, match="line 1 is no row"):
        Journal(tmp_path / "other", {})
    assert (tmp_path / "other").read_text() == "hello\n"
    (tmp_path / "other").write_text('{"a": 1}\n')
    with pytest.raises(UsageError, match="no needle journal"):
        Journal(tmp_path / "other", {})
    assert (tmp_path / "other").read_text() == '{"a": 1}\n'


def test_presets_share_one_encoding(film, model, monkeypatch):
    calls, real = [], needle_film.Haystack
    monkeypatch.setattr(needle_run, "Haystack", lambda *a, **k: (calls.append(k["capture"]), real(*a, **k))[1])
    presets = ("seats-10", "omnizip-35", "random-10", "visionzip-om-10", "avoc", "divprune-om-10", "omac-30")
    run = a_run(film, model, [contender(p, p) for p in presets], grid=Grid((8.0,), (0.5,), needles=1))
    run.run()
    assert calls == [frozenset({"saliency", "keys"})]
    assert not run.errors
    assert all(s["total"] == 1 for s in run.report()["scores"])


def test_an_answer_is_that_of_the_pipeline(film, model):
    """Full tokens and no needle: what the prefix answers is what `ask` answers about these seconds."""
    config = load_config("full", ["generate.max_new_tokens=4", "media.end=8"])
    (alone,) = pipeline.ask(film, [needles.QUESTION], config, model)
    prefix = haystack(film, model).prefix(8.0)
    assert pipeline.answer(prefix.film, needles.QUESTION, config, model).answer == alone.answer


def test_presets_of_different_saliency_are_refused():
    ours, theirs = contender("seats-10", "seats-10"), contender("parity", "parity/seats-10")
    with pytest.raises(UsageError, match=r"seats-10 \(saliency\) need different kinds"):
        needle_run.shared_needs([theirs, ours])


def test_a_preset_that_cannot_run_is_told_of_and_the_others_go_on(film, model, monkeypatch):
    real = pipeline.answer

    def answer(film, question, config, model):
        if config.method == "full" and film.media.used.frames > 8:
            raise MemoryLimitError("too long")
        if config.method == "avoc":
            raise ConfigError("no scorer")
        if config.method == "uniform":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(film, question, config, model)

    monkeypatch.setattr(needle_run.pipeline, "answer", answer)
    names = {"full": "full", "avoc": "avoc", "random": "random-10"}
    contenders = [contender(*pair) for pair in names.items()] + [contender("uni", "random-10", "method=uniform")]
    run = a_run(film, model, contenders)
    run.run()
    found = [(e["preset"], e["duration_s"], e["code"]) for e in run.errors]
    assert sorted(found, key=str) == [("avoc", None, 6), ("full", 12.5, 4), ("uni", 12.5, 4), ("uni", 8.0, 4)]
    totals = {s["preset"]: s["total"] for s in run.report()["scores"]}
    assert totals == {"full": 2, "avoc": 0, "random": 4, "uni": 0}
    assert needle_run.table(run.report())[3][2:] == ["-", "failed", "failed"]
    alone = a_run(film, model, contenders[1:2])
    with pytest.raises(ConfigError, match="no scorer"):
        alone.run()


@pytest.mark.slow
def test_heat_maps(tmp_path, film, model):
    pytest.importorskip("matplotlib")
    run = a_run(film, model, [contender("random"), contender("full", "full", up_to_s=8.0)])
    run.run()
    report = run.report()
    needle_plot.draw(report, tmp_path / "map.png")
    needle_plot.draw(report | {"presets": report["presets"] * 3}, tmp_path / "many.png")  # two side by side
    few, many = ((tmp_path / name).read_bytes() for name in ("map.png", "many.png"))
    assert few[:4] == many[:4] == b"\x89PNG"
    (wide, high), (wider, higher) = (np.frombuffer(data[16:24], ">u4").astype(int) for data in (few, many))
    assert wider > 1.7 * wide and high < higher < 2 * high  # three rows of two presets, not six


def test_heat_maps_without_matplotlib_name_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"omnicli\[plots\]"):
        needle_plot.check(tmp_path / "map.png")


# --- the command ----------------------------------------------------------------------------------------------------


SMALL = ("--depths", "0,1", "--needles", "1", "--set", "generate.max_new_tokens=2")


def test_the_command(omni, film, tiny_model, tmp_path):
    argv = ("needle", film, "--model", tiny_model, "--durations", "8,0:12", *SMALL, "--journal", tmp_path / "j.jsonl")
    argv += ("--preset", "full", "--up-to", "full=8", "--preset", "random-10:random.retention=0.5")
    code, out, err = astuple(omni(*argv))
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert rows[0][:3] == ["preset", "modality", "all"]
    assert [row[0] for row in rows[1:]] == ["full", "full"] + ["random-10:random.retention=0.5"] * 2
    code, out, err = astuple(omni(*argv, "--json"))
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["kind"] == "needle" and report["haystacks"][0]["name"] == "film.mp4"
    assert sum(s["total"] for s in report["scores"]) == 12
    before = (tmp_path / "j.jsonl").read_bytes()
    code, out, err = astuple(omni(*argv, "--depths", "0,0.5,1", "--report"))
    assert (code, err) == (0, "") and "(3/" not in out and len(out.splitlines()) == 5
    assert (tmp_path / "j.jsonl").read_bytes() == before, "it only tells what is there"
    code, out, err = astuple(omni(*argv, "--seed", "3"))
    assert (code, out) == (2, "")
    assert err.startswith("omni: --journal") and "other seed" in err and len(err.splitlines()) == 1


def test_the_command_makes_its_own_haystack(omni, tiny_model):
    argv = ("needle", "--model", tiny_model, "--durations", "12", *SMALL, "--depths", "1", "--preset", "random-10")
    code, out, err = astuple(omni(*argv, "--json"))
    assert code == 0 and err.splitlines() == ["omni: writing a generated haystack of 12 s"]
    assert sum(s["total"] for s in json.loads(out)["scores"]) == 2


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["film", "--durations", "100"], 2, ["lasts 13", "--durations"]),
        (["silent", "--durations", "8"], 2, ["no sound track", "--modality vision"]),
        (["sound", "--durations", "8"], 2, ["no pictures", "--modality audio"]),
        (["film", "--durations", "8,x"], 2, ["'x' is not a number"]),
        (["film", "--durations", "8", "--depths", "2"], 2, ["--depths"]),
        (["film", "--durations", "8", "--needles", "0"], 2, ["--needles"]),
        (["film", "--durations", "8", "--preset", "avok"], 6, ["avok", "avoc"]),
        (["film", "--durations", "8", "--preset", "full", "--preset", "full"], 2, ["twice"]),
        (["film", "--durations", "8", "--preset", "avoc:media.fps=2"], 2, ["media.fps=2", "--max-pixels"]),
        (["film", "--durations", "8", "--preset", "avoc", "--up-to", "avo=8"], 2, ["avo", "avoc"]),
        (["film", "--durations", "8", "--report"], 2, ["--report", "--journal"]),
        (["film", "--durations", "8", "--journal", "none/j.jsonl"], 2, ["--journal", "none"]),
        (["film", "--durations", "8", "--plot", "none/j.png"], 2, ["--plot", "none"]),
        (["film", "--durations", "8", "--needle-wav", "secret.wav"], 2, ["six digits"]),
        (["nothing.mp4"], 3, ["no such file"]),
        (["film", "--durations", "8", "--preset", "seats-10", "--preset", "parity/seats-10"], 2, ["different kinds"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_wrong_use_is_one_line(omni, film, tiny_model, tmp_path_factory, argv, code, words):
    first, *rest = argv
    if first in ("silent", "sound"):
        kind = {"sound": first == "sound", "pictures": first == "silent"}
        path = write(tmp_path_factory.mktemp("one") / f"{first}.{'wav' if first == 'sound' else 'mp4'}", **kind)
    else:
        path = film if first == "film" else first
    got, out, err = astuple(omni("needle", path, *rest, "--model", tiny_model))
    lines = [line for line in err.splitlines() if "its own sampling" not in line]
    assert (got, out, len(lines)) == (code, "", 1), err
    assert lines[0].startswith("omni: ")
    for word in words:
        assert word in lines[0]


def test_a_wider_run_asks_only_what_the_journal_lacks(film, model, tmp_path):
    path = tmp_path / "journal.jsonl"
    small = Grid((8.0,), (0.0,), needles=1)
    run = a_run(film, model, [contender("random"), contender("gone", "full")], Journal(path, {}), small)
    run.run()
    run.journal.close()
    changed = contender("random", "random-10", "random.retention=0.5")
    for contenders, grid, new in (
        ([contender("random")], GRID, 6),  # two durations x two depths x two modalities, less the two that are there
        ([contender("random"), contender("avoc", "avoc-10")], small, 2),
        ([changed], small, 2),  # the same label with other settings is another preset
        ([contender("gone", "full")], small, 0),
    ):
        before = len(path.read_text().splitlines())
        run = a_run(film, model, contenders, Journal(path, {}), grid)
        run.run()
        run.journal.close()
        assert len(path.read_text().splitlines()) - before == new
        assert sum(s["total"] for s in run.report()["scores"]) == len(contenders) * len(grid.durations) * len(
            grid.depths
        ) * len(MODALITIES)
