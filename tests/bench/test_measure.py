"""Variants in turns, what is kept of every run, what one may die of, and what is made of it."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from omnicli import pipeline
from omnicli.bench import fixed_length, rows
from omnicli.bench import measure as room
from omnicli.bench.measure import Measured, Run, Variant, comparable, measure, passes
from omnicli.config.config import load_config
from omnicli.config.settings import MediaConfig
from omnicli.encode import film as film_module
from omnicli.errors import ConfigError, MediaError, MemoryLimitError, ModelError
from omnicli.llm import prefix_cache as reader
from omnicli.utils import memory
from tests.support import tiny

MEDIA = MediaConfig(fps=8.0, max_frames=4)
TOKENS = 5


def variant(name: str, *settings: str) -> Variant:
    return Variant(name, comparable(load_config(name, settings), MEDIA, TOKENS))


@pytest.fixture
def film(film_folder):
    """Return a film of half a second: what is measured here is not how long it takes."""
    return film_folder / "short.mp4"


@pytest.fixture(scope="module")
def model():
    return tiny.model()


@pytest.fixture(scope="module")
def three():
    return [variant("full"), variant("random-10"), variant("avoc")]


class Time:
    """A clock that only moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def fake(monkeypatch, model):
    """Let time pass by script: `fake.takes[name]` yields what a variant's prefill takes, round by round."""
    clock = Time()
    clock.calls, clock.takes = [], {}
    for module in (room, fixed_length):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr("omnicli.utils.timing.time", clock)
    real_prefill, real_encode = reader.prefill, film_module.encode

    def encode(decoding, capture):
        fake_.calls.append("film")
        with decoding.film.context.clock.stage("encode_video"):
            fake_.now += 7.0
        return real_encode(decoding, capture)

    def prefill(*args, pruner, **kwargs):
        fake_.calls.append(pruner.name)
        fake_.now += next(fake_.takes[pruner.name])
        return real_prefill(*args, pruner=pruner, **kwargs)

    fake_ = clock
    monkeypatch.setattr(film_module, "encode", encode)
    monkeypatch.setattr(reader, "prefill", prefill)
    return clock


def test_variants_take_turns_and_the_film_is_encoded_once_a_round(fake, film, model, three):
    fake.takes = {name: iter([1.0] * 9) for name in ("full", "random", "avoc")}
    told: list[str] = []
    measure(film, three, "why?", model, repeat=3, warmup=2, tell=told.append)
    assert fake.calls == ["film", "full", "random", "avoc"] * 5
    assert told[:2] == ["warm-up 1 of 2: decode and encode", "warm-up 1 of 2: full"]
    assert told[-1] == "round 3 of 3: avoc"


def test_medians_spread_and_factors(fake, film, model, three):
    fake.takes = {
        "full": iter([99.0, 8.0, 10.0, 30.0]),  # the first one warms up and does not count
        "random": iter([99.0, 1.0, 2.0, 9.0]),
        "avoc": iter([99.0, 5.0, 5.0, 5.0]),
    }
    outcome = measure(film, three, "why?", model, repeat=3)
    full, random, avoc = (rows.row(m, outcome.measured[0]) for m in outcome.measured)
    found = full["seconds"]["prefill"]
    assert (found["median"], found["min"], found["max"], found["q1"], found["q3"]) == (10, 8, 30, 9, 20)
    assert found["values"] == [8, 10, 30]
    assert [r["factor"]["prefill"] for r in (full, random, avoc)] == [1, 5, 2]
    assert full["seconds"]["encode"]["median"] == 7
    assert random["seconds"]["time_to_first_token"]["median"] == 9  # 7 s of film and 2 s of prefill
    assert random["factor"]["time_to_first_token"] == pytest.approx(17 / 9, rel=1e-5)
    assert full["stage_gap"] == 0


def test_spread_of_one_value():
    assert rows.spread([2.5]) == {"median": 2.5, "q1": 2.5, "q3": 2.5, "min": 2.5, "max": 2.5, "values": [2.5]}


def test_stages_add_up_to_the_wall_time_and_misses_are_told():
    run = Run({"encode_video": 2.0, "prefill": 6.0, "select_in_llm": 1.0, "other": 0.5}, 8.5, 8.0)
    assert run.gap == pytest.approx(0.5 / 8.5)  # selection inside the LLM is a part of prefill
    assert run.seconds()["prefill"] == 6.0
    good = {"error": None, "preset": "seats-10", "captured": []}
    assert rows._notes([{**good, "stage_gap": 0.04}]) == []
    assert rows._notes([{**good, "stage_gap": 0.059}]) == ["seats-10: stages miss 5.9 % of the wall time"]
    assert rows._notes([{**good, "stage_gap": -0.2}]) == ["seats-10: stages overlap by 20.0 % of the wall time"]


def test_a_real_run(film, model, three):
    outcome = measure(film, three, "why?", model, repeat=2)
    for one in outcome.measured:
        assert all(0 < run.first_token_s <= run.wall_s for run in one.runs)
    full = rows.row(outcome.measured[0], outcome.measured[0])
    assert (full["agreement"], full["factor"]) == (1.0, {"prefill": 1.0, "time_to_first_token": 1.0})
    assert full["retention"] == {"door": 1.0, "layers": 1.0}
    assert full["flops"]["factor"] == 1
    assert outcome.used.frames == 4


def test_every_answer_has_the_same_length_though_the_model_would_stop(film, model, three):
    """The reference's own ids become stop ids: the run goes on, its answer is cut before the first of them."""
    first = measure(film, three[:1], "why?", model, repeat=1).measured[0]
    assert len(first.ids) == TOKENS
    stop = next((i for i in first.ids if i != first.ids[0]), first.ids[0])
    model.stop_ids, before = frozenset([stop]), model.stop_ids
    try:
        again = measure(film, three[:1], "why?", model, repeat=1).measured[0]
        alone = pipeline.ask(film, ["why?"], three[0].config, model)[0]
    finally:
        model.stop_ids = before
    assert again.answer.tokens["generated"] == TOKENS
    assert again.ids == first.ids[: first.ids.index(stop)]
    assert alone.tokens["generated"] == len(again.ids)
    assert alone.answer == again.text


def test_the_model_is_left_as_it_was(film, model, three):
    before = dict(vars(model))
    measure(film, three[1:2], "why?", model, repeat=1)
    assert vars(model) == before


def test_random_weights_know_no_trained_context(film, model, three, monkeypatch):
    monkeypatch.setattr(model, "facts", dataclasses.replace(model.facts, max_position=50))
    assert measure(film, three[:1], "why?", model, repeat=1).measured[0].error is None
    with pytest.raises(MemoryLimitError):
        pipeline.ask(film, ["why?"], three[0].config, model)


def test_what_a_variant_may_die_of_and_what_ends_the_run():
    bench = room._Bench("film.mp4", "why?", None, room.Outcome([]))
    for error, words, code in (
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "on the device", 4),
        (RuntimeError("CUDA error: out of memory"), "on the device (CUDA error: out of memory)", 4),
        (MemoryError(), "on the host", 4),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate"), "on the host", 4),
        (MemoryLimitError("film.mp4: 300,000 tokens\ndo not fit"), "300,000 tokens do not fit", 4),
        (ConfigError(["one", "two"]), "one; two", 6),
    ):
        one = Measured(variant("full"))
        with bench.failing([one]):
            raise error
        assert words in one.error[0] and one.error[1] == code and "film.mp4" not in one.error[0]
    for error in (MediaError("broken"), ModelError("missing"), RuntimeError("boom"), KeyError("x")):
        with pytest.raises(type(error)), bench.failing([Measured(variant("full"))]):
            raise error


def test_one_variant_fails_and_the_others_go_on(film, model, three, monkeypatch):
    calls = _fails(monkeypatch, "random", MemoryError(), after=2)
    outcome = measure(film, three, "why?", model, repeat=2)
    full, random, avoc = outcome.measured
    assert random.error == ("out of memory on the host", 4)
    assert calls.count("random") == 2  # once it has failed it is left out
    assert (full.error, avoc.error) == (None, None)
    assert (len(full.runs), len(avoc.runs)) == (2, 2)
    row = rows.row(random, full)
    assert row["error"] == random.error[0] and "seconds" not in row


def test_full_tokens_fail_and_nothing_is_compared(film, model, three, monkeypatch):
    _fails(monkeypatch, "full", MemoryError(), after=1)
    outcome = measure(film, three, "why?", model, repeat=1)
    config = three[0].config
    made = rows.report(
        outcome, model, config, media={"name": "film.mp4"}, question="why?", expected=None, repeat=1, warmup=1
    )
    assert made["rows"][0]["error"] == "out of memory on the host"
    for row in made["rows"][1:]:
        assert row["factor"] == {"prefill": None, "time_to_first_token": None}
        assert row["agreement"] is None and row["seconds"]["prefill"]["median"] > 0


def test_a_film_that_does_not_fit_fails_for_all_that_share_it(film, model, three, monkeypatch):
    monkeypatch.setattr(film_module, "encode", _raise(MemoryError()))
    outcome = measure(film, three, "why?", model, repeat=2)
    assert [m.error for m in outcome.measured] == [("out of memory on the host", 4)] * 3


def test_other_errors_are_not_hidden(film, model, three, monkeypatch):
    monkeypatch.setattr(reader, "prefill", _raise(KeyError("x")))
    with pytest.raises(KeyError):
        measure(film, three, "why?", model, repeat=1)


def _raise(error):
    def fail(*_, **__):
        raise error

    return fail


def _fails(monkeypatch, name, error, after):
    """Let one method's ``after``-th prefill fail; return the names of the methods that were run."""
    real, calls = reader.prefill, []

    def prefill(*args, pruner, **kwargs):
        calls.append(pruner.name)
        if pruner.name == name and calls.count(name) == after:
            raise error
        return real(*args, pruner=pruner, **kwargs)

    monkeypatch.setattr(reader, "prefill", prefill)
    return calls


def test_passes_share_what_can_be_captured_together():
    @dataclasses.dataclass(frozen=True)
    class Needing:
        needs: frozenset[str]

    def wants(name: str, *needs: str) -> Measured:
        config = dataclasses.replace(load_config("full"), compressor=Needing(frozenset(needs)))
        return Measured(Variant(name, config))

    asked = [
        wants("full"),
        wants("visionzip", "saliency", "keys"),
        wants("seats", "pair_saliency", "last_query_attention"),
        wants("omac", "saliency"),
        wants("keys", "keys"),
        wants("fastvid", "pooled_saliency", "keys"),
    ]
    found = [(set(capture), [m.variant.name for m in members]) for capture, members in passes(asked)]
    assert found == [
        ({"saliency", "keys"}, ["full", "visionzip", "omac", "keys"]),
        ({"pair_saliency"}, ["seats"]),
        ({"pooled_saliency", "keys"}, ["fastvid"]),
    ]
    assert asked[0].captured == ("keys", "saliency")


def test_presets_with_different_saliency_are_measured_side_by_side(film, model):
    names = ("full", "omnizip-35", "parity/fastvid-35")
    outcome = measure(film, [variant(n) for n in names], "why?", model, repeat=1)
    assert [m.error for m in outcome.measured] == [None] * 3
    assert outcome.measured[1].captured == ("saliency",)
    assert "pooled_saliency" in outcome.measured[2].captured


@pytest.mark.parametrize(
    ("reference", "ids", "share"),
    [([1, 2, 3, 4], [1, 2, 9, 4], 0.5), ([], [], 1.0), ([1], [], 0.0), ([1, 2], [1, 2, 3, 4], 0.5), ([7], [7], 1.0)],
)
def test_agreement(reference, ids, share):
    assert fixed_length.agreement(reference, ids) == share


def test_peaks_are_of_what_came_after_the_reset():
    cpu = torch.device("cpu")
    held = torch.ones(60 << 20, dtype=torch.uint8)
    del held
    memory.reset(cpu)
    low = memory.peaks(cpu)
    assert low.device_bytes is None and low.host_bytes > 0
    held = torch.ones(60 << 20, dtype=torch.uint8)
    assert memory.peaks(cpu).host_bytes >= low.host_bytes + (40 << 20)
    del held


def test_the_same_sampling_and_a_greedy_answer_for_all():
    config = comparable(load_config("parity/seats-10", ["generate.temperature=1", "generate.seed=3"]), MEDIA, 9)
    assert config.media is MEDIA
    assert (config.generate.max_new_tokens, config.generate.temperature, config.generate.seed) == (9, 0.0, 0)
    assert config.compressor == load_config("parity/seats-10").compressor


def test_retention_is_averaged_over_the_layers(film, model):
    outcome = measure(film, [variant("full"), variant("seats-10")], "why?", model, repeat=1)
    row = rows.row(outcome.measured[1], outcome.measured[0])
    encoded = sum(row["tokens"][m]["encoded"] for m in ("video", "audio"))
    ends = [first for first, _ in row["tokens"]["by_layer"][1:]] + [model.depth]
    read = sum((end - first) * n for (first, n), end in zip(row["tokens"]["by_layer"], ends, strict=True))
    assert row["retention"]["layers"] == pytest.approx(read / model.depth / encoded, abs=1e-6)
    assert 0 < row["retention"]["layers"] < row["retention"]["door"] < 1
    assert json.loads(json.dumps(row)) == row
