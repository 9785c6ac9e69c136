"""A worker with a tiny random model: one encode for many questions, and a row for everything that goes wrong."""

from __future__ import annotations

import dataclasses
import json
import pickle
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from omnicli import pipeline
from omnicli.batch import runner, worker
from omnicli.batch.errors import DeviceLostError
from omnicli.batch.items import Wanted, plan
from omnicli.batch.journal import Stream
from omnicli.batch.worker import Worker
from omnicli.config.config import load_config
from omnicli.errors import ConfigError, MemoryLimitError
from omnicli.media import pieces
from omnicli.planning import fit
from omnicli.utils.jsonl import dumps
from tests.support import films, schema, tiny


@pytest.fixture(scope="module")
def model():
    return tiny.model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("films")
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        films.write(made / name, 1)
    (made / "bad.mp4").write_text("a letter")
    return made


CONFIG = load_config("avoc", ["generate.max_new_tokens=2", "avoc.tokens=16"])
QUESTIONS = ("why?", "who?", "when?")


@pytest.fixture
def do(folder, model):
    """Return a function that asks films questions and returns the rows."""

    def call(*names, questions=QUESTIONS, config=CONFIG, **how):
        wanted = [Wanted(str(folder / name), question) for name in names for question in questions]
        rows: list[dict] = []
        jobs = plan(wanted, "settings")
        runner.run(
            jobs,
            Worker(config, load=lambda _: model, **how),
            Stream(lambda row: rows.append(json.loads(dumps(row)))),
            skipped=pytest.fail,
        )
        assert [r["key"] for r in rows] == [i.key for j in jobs for i in j.items]
        for row in rows:
            assert schema.row_problems(row) == []
        return rows

    return call


def statuses(rows):
    return [r["status"] for r in rows]


def counted(monkeypatch, name, change=lambda n, *a, **k: None):
    """Count calls of a step of the pipeline; ``change`` gets the number of the call first and may raise."""
    calls, real = [], getattr(pipeline, name)

    def step(*args, **kwargs):
        calls.append(args)
        change(len(calls), *args, **kwargs)
        return real(*args, **kwargs)

    monkeypatch.setattr(pipeline, name, step)
    return calls


def test_rows_are_those_of_ask(do, folder, model):
    (row,) = do("a.mp4", questions=["why?"])
    (answer,) = pipeline.ask(folder / "a.mp4", ["why?"], CONFIG, model)
    timed = ("stages", "busy", "wall_s", "time_to_first_token_s", "peak_memory")
    assert {k: v for k, v in row.items() if k not in (*schema.BATCH, *timed)} == {
        k: v for k, v in json.loads(dumps(answer.to_dict())).items() if k not in timed
    }


def test_a_film_is_encoded_once_and_the_next_one_looked_at_meanwhile(do, monkeypatch):
    encoded, threads, real = [], [], worker.probe
    load = worker.load_film
    monkeypatch.setattr(worker, "load_film", lambda *a, **k: (encoded.append(a), load(*a, **k))[1])

    def probe(path):
        threads.append((Path(path).name, threading.current_thread() is threading.main_thread()))
        return real(path)

    monkeypatch.setattr(worker, "probe", probe)
    assert statuses(do("a.mp4", "bad.mp4", "b.mp4")) == ["ok"] * 3 + ["failed"] * 3 + ["ok"] * 3
    assert len(encoded) == 2
    assert threads == [("bad.mp4", False), ("b.mp4", False)]


def test_the_next_film_is_decoded_while_this_one_is_answered(do, folder, model, monkeypatch):
    begun, real = {name: threading.Event() for name in ("a.mp4", "b.mp4", "c.mp4")}, pieces.video.read_frames

    def read_frames(info, *args, **kwargs):
        begun[info.path.name].set()
        return real(info, *args, **kwargs)

    def meanwhile(n, film, *_, **__):
        following = {"a.mp4": "b.mp4", "b.mp4": "c.mp4"}.get(film.info.path.name)
        assert following is None or begun[following].wait(60)

    monkeypatch.setattr(pieces.video, "read_frames", read_frames)
    counted(monkeypatch, "answer", meanwhile)
    rows = do("a.mp4", "b.mp4", "c.mp4", questions=["why?"])
    assert statuses(rows) == ["ok"] * 3
    for row in rows:
        stages = {name: s for name, s in row["stages"].items() if name != "select_in_llm"}
        assert sum(stages.values()) < 1.05 * row["wall_s"] + 0.02, "time is counted twice"
    (alone,) = do("c.mp4", questions=["why?"])
    assert alone["answer"] == rows[2]["answer"] and alone["media_used"] == rows[2]["media_used"]


def test_a_film_that_was_announced_and_does_not_come_is_dropped(folder, model, monkeypatch):
    begun, closed, real = threading.Event(), threading.Event(), pieces.video.read_frames

    def read_frames(info, times, height, width, **how):
        if info.path.name != "b.mp4":
            yield from real(info, times, height, width, **how)
            return
        begun.set()
        try:
            while True:
                yield 0.0, np.zeros((height, width, 3), np.uint8)
        finally:
            closed.set()

    monkeypatch.setattr(pieces.video, "read_frames", read_frames)
    one = Worker(CONFIG, load=lambda _: model)
    one.open()
    names = [str(folder / name) for name in ("a.mp4", "b.mp4", "c.mp4")]
    first, _, third = plan([Wanted(name, "why?") for name in names], "s")
    rows = [*one.do(first, names[1])]
    assert begun.wait(60) and not closed.is_set()
    rows += one.do(third)
    assert closed.wait(60)
    assert [(r["media"], r["status"]) for r in rows] == [(names[0], "ok"), (names[2], "ok")]


def test_a_film_that_cannot_be_read(do):
    rows = do("bad.mp4", "a.mp4")
    assert {(r["error"]["code"], r["error"]["message"].partition("bad.mp4: ")[2]) for r in rows[:3]} == {
        (3, "this is text, not a video or sound file")
    }
    assert statuses(rows[3:]) == ["ok"] * 3


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
    MemoryLimitError("film.mp4: 50,000 tokens do not fit the model's context of 32,768"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda e: type(e).__name__)
def test_what_does_not_fit_fails_and_the_next_one_goes_on(do, monkeypatch, error):
    freed = []
    monkeypatch.setattr(worker.memory, "free", freed.append)

    def fail(n, *_, **__):
        if n == 2:
            raise error

    answers = counted(monkeypatch, "answer", fail)
    rows = do("a.mp4", "b.mp4")
    assert statuses(rows) == ["ok", "failed", "ok", "ok", "ok", "ok"] and len(answers) == 6
    assert rows[1]["error"]["code"] == 4
    assert len(freed) == 2 + (not isinstance(error, MemoryLimitError))  # before each film, and after the failure


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda e: type(e).__name__)
def test_fit_asks_once_more_with_less(do, monkeypatch, error):
    def fail(n, film, question, config, model, **kwargs):
        if config.compressor.tokens == 16:
            raise error

    answers = counted(monkeypatch, "answer", fail)
    rows = do("a.mp4", "b.mp4", fit=True, questions=QUESTIONS[:2])
    assert statuses(rows) == ["ok"] * 4
    assert len(answers) == 6, "further questions on a film go straight to the smaller budget, the next film does not"
    for row in rows:
        assert "avoc.tokens=8 (--fit)" in row["warnings"][0]
        assert row["config"]["params"]["tokens"] == 8
        assert sum(row["tokens"][m]["kept"] for m in ("video", "audio")) <= 8


def test_fit_does_not_ask_a_third_time(do, monkeypatch):
    def fail(*_, **__):
        raise MemoryLimitError("too long")

    answers = counted(monkeypatch, "answer", fail)
    rows = do("a.mp4", fit=True, questions=["why?"])
    assert statuses(rows) == ["failed"] and rows[0]["error"]["code"] == 4 and len(answers) == 2
    assert rows[0]["error"]["message"].endswith("too long; asked with avoc.tokens=8 (--fit)")


def test_what_fit_asks_with():
    for preset, setting, kept in (
        ("avoc-10", "avoc.retention=0.05", 0.05),
        ("random-10", "random.retention=0.05", 0.05),
        ("seats-10", "seats.retention=0.05", 0.05),
    ):
        config, what = fit.smaller(load_config(preset))
        assert what == setting and config.compressor.retention == kept and config.preset == preset
    for preset in ("full", "parity/seats-10", "fastv-25", "dycoke-35"):
        old = load_config(preset, ["media.fps=2"])
        config, what = fit.smaller(old)
        assert (config.method, config.preset, what) == ("avoc", "avoc", "preset avoc")
        assert config.media == old.media and config.generate == old.generate
        assert not config.compressor.needs - old.compressor.needs, "the film was encoded without what it needs"


def test_a_context_that_is_too_small_is_met_by_fit(do, model, monkeypatch):
    plain = load_config("full", ["generate.max_new_tokens=2", "media.fps=8"])
    (row,) = do("a.mp4", config=plain, questions=["why?"])
    small = dataclasses.replace(model.facts, max_position=row["tokens"]["text"] + 16 + 2)
    monkeypatch.setattr(model, "facts", small)
    rows = do("a.mp4", config=plain, questions=["why?"])
    assert statuses(rows) == ["failed"] and rows[0]["error"]["code"] == 4
    with monkeypatch.context() as patch:
        patch.setattr(fit, "load_config", lambda name: load_config(name, ["avoc.tokens=16"]))
        (row,) = do("a.mp4", config=plain, questions=["why?"], fit=True)
    assert row["status"] == "ok" and row["preset"] == "avoc"
    assert "do not fit the model's context" in row["warnings"][0] and "preset avoc (--fit)" in row["warnings"][0]


def test_out_of_memory_leaves_nothing_of_the_failed_try(do, monkeypatch):
    """The failed try's tensors must be gone when the next one starts, or it would find no more room than the first."""
    import weakref

    left, alive = [], []

    def fail(n, *_, **__):
        alive.append(sum(ref() is not None for ref in left))
        big = torch.zeros(1000)
        left.append(weakref.ref(big))
        if n == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    counted(monkeypatch, "answer", fail)
    do("a.mp4", fit=True, questions=["why?"])
    assert alive == [0, 0]


def hang():
    """Hang, and bring the alarm that was set for later forward: this machine may be slow where nothing hangs."""
    signal.setitimer(signal.ITIMER_REAL, 0.05, 5)
    time.sleep(60)


def test_a_stuck_answer_is_interrupted(do, monkeypatch):
    def stuck(n, *_, **__):
        if n == 2:
            hang()

    counted(monkeypatch, "answer", stuck)
    rows = do("a.mp4", timeout_s=300)
    assert statuses(rows) == ["ok", "failed", "ok"]
    assert rows[1]["error"]["code"] == 124 and "a.mp4: took longer than 300 s" in rows[1]["error"]["message"]


def test_a_stuck_film_fails_with_all_its_questions(do, monkeypatch):
    real = worker.probe

    def stuck(path):
        if "b.mp4" in str(path):
            hang()
        return real(path)

    monkeypatch.setattr("omnicli.encode.film.probe", stuck)
    rows = do("b.mp4", "c.mp4", timeout_s=300)
    assert statuses(rows) == ["failed"] * 3 + ["ok"] * 3
    assert {r["error"]["code"] for r in rows[:3]} == {124}


def test_a_film_stuck_while_it_was_looked_at_ahead(do, monkeypatch):
    real, main = worker.probe, threading.main_thread()

    def stuck(path):
        if "b.mp4" in str(path):
            assert threading.current_thread() is not main
            monkeypatch.setattr(worker._Ahead, "result", soon)
            time.sleep(5)
        return real(path)

    def soon(self):
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        monkeypatch.setattr(worker._Ahead, "result", wait)
        return wait(self)

    wait = worker._Ahead.result
    monkeypatch.setattr(worker, "probe", stuck)
    rows = do("a.mp4", "b.mp4", "c.mp4", timeout_s=300, questions=["why?"])
    assert statuses(rows) == ["ok", "failed", "ok"]


def test_a_bug_is_one_row(do, monkeypatch):
    def fail(n, *_, **__):
        if n == 1:
            raise IndexError("index 5\nis out of bounds")

    counted(monkeypatch, "answer", fail)
    rows = do("a.mp4")
    assert statuses(rows) == ["failed", "ok", "ok"]
    assert rows[0]["error"]["code"] == 1
    assert rows[0]["error"]["message"].endswith("a.mp4: internal error: IndexError: index 5 is out of bounds")


def test_settings_that_do_not_fit_the_model_end_the_run_at_once(do, monkeypatch):
    def fail(n, *_, **__):
        raise ConfigError("needs weights trained for this model")

    with monkeypatch.context() as patch:
        counted(patch, "answer", fail)
        with pytest.raises(ConfigError):
            do("a.mp4")

    def later(n, *_, **__):
        if n == 3:
            raise ConfigError("odd film")

    counted(monkeypatch, "answer", later)
    rows = do("a.mp4", "b.mp4")
    assert statuses(rows) == ["ok", "ok", "failed", "ok", "ok", "ok"] and rows[2]["error"]["code"] == 6


def test_a_dead_device_is_told_after_the_row(folder, model, monkeypatch):
    one = Worker(CONFIG, load=lambda _: model)
    one.open()
    (job,) = plan([Wanted(str(folder / "a.mp4"), question) for question in QUESTIONS], "s")

    def dead(device):
        raise RuntimeError("CUDA error: device-side assert triggered")

    def fail(*_, **__):
        monkeypatch.setattr(worker.memory, "free", dead)
        raise RuntimeError("CUDA error: device-side assert triggered")

    counted(monkeypatch, "answer", fail)
    rows = one.do(job)
    assert next(rows)["status"] == "failed"
    with pytest.raises(DeviceLostError, match="device-side assert"):
        next(rows)


def test_a_worker_can_be_sent_to_another_process():
    again = pickle.loads(pickle.dumps(Worker(load_config("seats-10"), 5.0, True)))
    assert again.config.to_dict() == load_config("seats-10").to_dict() and again.timeout_s == 5.0
