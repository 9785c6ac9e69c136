"""Workers on a real Ray cluster of this machine: whatever dies, every item gets one row."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from omnicli.batch import runner
from omnicli.batch.attempt import Attempt
from omnicli.batch.decoders import PARCELS, Tasks
from omnicli.batch.items import Item, Job
from omnicli.batch.journal import Journal
from omnicli.batch.ray import Cluster, check, share
from omnicli.config.settings import MediaConfig
from omnicli.encode.film import load_film
from omnicli.errors import ConfigError, MediaError, OmniError, UsageError
from omnicli.media.container import DecodeStats
from omnicli.media.pieces import HERE
from tests.conftest import ROOT
from tests.support import films, schema, tiny
from tests.support import workers as fakes
from tests.support.waiting import ended, wait_until

pytestmark = pytest.mark.slow

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'omnicli[ray]'")


@pytest.fixture(scope="module")
def address():
    """Start a cluster with two CPUs and a GPU that is only a number; returns where it is."""
    with pytest.MonkeyPatch.context() as patch:
        path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        patch.setenv("PYTHONPATH", os.pathsep.join(path))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")  # or workers are killed for what else runs on this machine
        patch.setenv("RAY_worker_niceness", "0")  # nor do they come last
        for name in [n for n in os.environ if n.startswith("OMNI_") or n == "RAY_ADDRESS"]:
            patch.delenv(name)
        context = ray.init(
            "local",
            num_cpus=2,
            num_gpus=1,
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            log_to_driver=False,
            logging_level="ERROR",
        )
        yield context.address_info["gcs_address"]
        ray.shutdown()


@pytest.fixture
def cluster(address, tmp_path):
    """Return a function that makes a cluster's workers of the fake one."""

    def make(workers=1, timeout_s=None, fail_open="", **how):
        log = tmp_path / "log"
        log.write_text("")
        worker = fakes.Worker(log, fail_open)
        return Cluster(worker, fakes.failed, timeout_s, grace_s=0.2, workers=workers, gpus=False, **how)

    return make


def job(media, *questions):
    return Job(media, tuple(Item(media, q, f"{media} {q}") for q in questions or ("q",)))


def ask(cluster, *jobs):
    """Return the rows by their key, after checking that every item has one."""
    with cluster as workers:
        rows = list(workers.answer(jobs))
    assert sorted(r["key"] for r in rows) == sorted(i.key for j in jobs for i in j.items)
    return {r["key"]: r for r in rows}


def test_workers_killed_in_the_middle(cluster, tmp_path):
    """Forty items into a real journal; twice the process that gave the last row is killed, then a second run."""
    jobs, out, kills = fakes.jobs(20, 2), tmp_path / "out.jsonl", {9, 22}
    told: list[dict] = []

    def tell(row):
        told.append(row)
        if len(told) in kills:
            os.kill(row["pid"], signal.SIGKILL)

    def go():
        with Journal(out) as journal:
            if left := runner.pending(jobs, journal):
                with cluster(2) as workers:
                    runner.run(left, workers, journal, skipped=pytest.fail, tell=tell)
            return runner.tally(jobs, journal)

    assert go() == {"ok": 40}
    before = out.read_bytes()
    rows = [json.loads(line) for line in before.splitlines()]
    assert sorted(r["key"] for r in rows) == [i.key for j in jobs for i in j.items]
    assert len({r["pid"] for r in rows}) >= 3
    assert (tmp_path / "log").read_text().split("\n").count("open") >= 3
    assert go() == {"ok": 40} and out.read_bytes() == before
    out.write_bytes(b"".join(before.splitlines(keepends=True)[:30]))  # as a kill of the first run leaves it
    told.clear()
    kills.clear()
    assert go() == {"ok": 40}
    assert len(told) == 10 and out.read_bytes().count(b"\n") == 40


def test_what_always_kills_its_worker(cluster, tmp_path):
    rows = ask(cluster(2), job("a", "1", "crash", "2"), job("killed", "1", "2"), job("b"), job("c"))
    failed = {key: row["error"] for key, row in rows.items() if row["status"] == "failed"}
    assert set(failed) == {"a crash", "killed 1", "killed 2"}
    for key, error in failed.items():
        assert error["code"] == 1 and error["message"].startswith(f"{key.split()[0]}: ended its worker: a crash, ")
    log = (tmp_path / "log").read_text().splitlines()
    assert sum(line.startswith("killed ") for line in log) == 2  # twice with the film, not once per question


def test_the_film_announced_is_blamed_on_nobody_else(cluster, tmp_path):
    rows = ask(cluster(1), job("a"), job("crash ahead"), job("b"))
    assert {key: row["status"] for key, row in rows.items()} == {"a q": "ok", "crash ahead q": "failed", "b q": "ok"}
    log = (tmp_path / "log").read_text().splitlines()
    assert log[:4] == ["open", "a 1 crash ahead", "open", "a 1 -"]


def test_a_worker_that_hangs_is_ended(cluster):
    rows = ask(cluster(1, timeout_s=6), job("a", "1", "hang", "2"), job("b"))
    assert {key for key, row in rows.items() if row["status"] == "failed"} == {"a hang"}
    assert rows["a hang"]["error"]["code"] == 124
    assert "a: took longer than 6 s and could not be interrupted" in rows["a hang"]["error"]["message"]


def test_what_ends_the_run(cluster, monkeypatch):
    with pytest.raises(ConfigError) as caught:
        ask(cluster(fail_open="config"), job("a"))
    assert caught.value.problems == ["one", "two"]
    with pytest.raises(ConfigError, match="does not fit the model"):
        ask(cluster(), job("config"))
    monkeypatch.setattr("omnicli.batch.ray.OPENINGS", 2)
    with pytest.raises(OmniError, match="could not be loaded: it ended its worker"):
        ask(cluster(fail_open="die"), job("a"))
    monkeypatch.setattr("omnicli.batch.ray.os.getcwd", lambda: "/not/shared")
    with pytest.raises(UsageError, match=r"/not/shared: No such file.* on node .*; start in a folder all nodes share"):
        ask(cluster(), job("a"))


def test_ctrl_c_ends_the_workers(cluster, tmp_path):
    out, pids = tmp_path / "out.jsonl", []

    def tell(row):
        pids.append(row["pid"])
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()  # while the driver waits for the next row

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), Journal(out) as journal, cluster(1) as workers:
            runner.run([job("a"), job("hang")], workers, journal, skipped=pytest.fail, tell=tell)
    finally:
        signal.signal(signal.SIGINT, before)
    assert [json.loads(line)["key"] for line in out.read_bytes().splitlines()] == ["a q"]
    wait_until(lambda: ended(*pids), "the worker goes on")


def test_one_worker_for_each_gpu(address, tmp_path):
    with Cluster(fakes.Worker(tmp_path / "log"), fakes.failed) as workers:
        assert (workers.count, workers.told()) == (1, "Ray: 1 worker, 1 GPU each, films decoded on 2 CPUs each")
        assert [row["status"] for row in workers.answer([job("a")])] == ["ok"]


def test_the_command(address, omni_process, tiny_model, tmp_path):
    """The real command and a real model of random weights, on the cluster that runs here; paths that are relative."""
    for n in range(3):
        films.write(tmp_path / f"{n}.mp4", 0.5 + n / 8, sound=n > 0)
    (tmp_path / "bad.mp4").write_text("a letter")
    names = [os.path.relpath(tmp_path / name, ROOT) for name in ("0.mp4", "1.mp4", "2.mp4", "bad.mp4")]
    argv = ("batch", *names, "-q", "why?", "-q", "who?", "--model", tiny_model, "--fps", "1", "--max-new-tokens", "2")
    ray_ = ("--ray", "--address", address, "--workers", "1", "--device", "cpu")
    env = {"OMNI_CACHE_DIR": str(tmp_path / "cache"), "XDG_CONFIG_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    first = omni_process(*argv, *ray_, "--timeout", 300, "-o", tmp_path / "out.jsonl", **env)
    assert (first.code, first.out) == (7, ""), first.err
    lines = first.err.splitlines()
    assert lines[0] == "omni: Ray: 1 worker, 2 CPUs each" and lines[-1].startswith("omni: 6 ok, 2 failed; ")
    assert len(lines) == 3 and re.search(r"failed: .*bad\.mp4: this is text", lines[1])
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for row in rows:
        assert schema.row_problems(row) == []
    assert [(r["media"], r["question"]) for r in rows] == [(name, q) for name in names for q in ("why?", "who?")]
    assert {r["error"]["code"] for r in rows if r["status"] == "failed"} == {3}


@pytest.fixture
def stream(address, tmp_path):
    """Return a function that makes a stream of twelve pieces which something happens to."""

    def make(trouble=""):
        (tmp_path / f"film{trouble}").touch()
        return fakes.Stream(fakes.Info(tmp_path / f"film{trouble}"), 12, trouble)

    return make


TASKS = Tasks(2, os.getcwd())


def numbers(pieces):
    """Return the pieces' numbers and processes, and check that what decoding met with came last."""
    *pieces, stats = pieces
    assert isinstance(stats, DecodeStats) and stats.missing == 7
    assert all(piece.data.flags.writeable and (piece.data == piece.data[0]).all() for piece in pieces)
    return [int(piece.data[0]) for piece in pieces], {int(piece.times[0]) for piece in pieces}


def test_a_stream_is_decoded_elsewhere(stream):
    got, pids = numbers(TASKS.read(stream()))
    assert got == list(range(12)) and len(pids) == 1 and os.getpid() not in pids
    with pytest.raises(MediaError, match=r"broken$"):
        numbers(TASKS.read(stream("error")))
    gone = fakes.Stream(fakes.Info(Path("gone.mp4")), 3)
    with pytest.raises(MediaError, match=r"gone\.mp4: no such file on node .*, which was to decode it"):
        next(TASKS.read(gone))


def test_a_stream_stays_a_bounded_number_of_pieces_ahead_and_ends_when_nobody_wants_it(stream):
    film = stream()
    pieces = TASKS.read(film)
    first = next(pieces)

    def count():
        return film.log.read_text().count("\n")

    wait_until(lambda: count() > PARCELS, "nothing is decoded ahead")
    time.sleep(1)  # whatever would come without a bound comes now, or at least on a machine that is not busy
    assert count() <= 1 + PARCELS + 1
    pieces.close()
    wait_until(lambda: ended(int(first.times[0])), "it decodes on")


def test_a_decoder_killed_in_the_middle(stream):
    film = stream("once")
    got, pids = numbers(TASKS.read(film))
    assert got == list(range(12)) and len(pids) == 2
    with pytest.raises(OmniError, match=r"filmalways: ended its decoder twice \(a crash, ") as caught:
        numbers(TASKS.read(stream("always")))
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("trouble", ["", "once", "actor"])
def test_workers_whose_films_are_decoded_elsewhere(stream, address, tmp_path, trouble):
    film = stream(trouble).info.path
    worker = fakes.PrefixCache(tmp_path / "log", trouble=trouble)
    rows = ask(Cluster(worker, fakes.failed, workers=1), job(str(film), "1", "2"))
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert [row["got"] for row in rows.values()] == [list(range(12))] * 2
    assert (tmp_path / "log").read_text().split("\n").count("open") == 1 + (trouble == "actor")
    pids = {int(line.split()[1]) for line in film.with_suffix(".log").read_text().splitlines()}
    assert len(pids) == 1 + (trouble != "")
    if trouble == "actor":  # the task of the actor that died is gone too
        first = int(film.with_suffix(".log").read_text().split()[1])
        wait_until(lambda: ended(first), "the first task goes on")


NAMES = ("film.mp4", "late_sound.mkv", "bit_flips.mp4")


@pytest.mark.parametrize(
    "names",
    [NAMES, pytest.param(set(films.GOOD + films.DAMAGED) - set(NAMES), marks=pytest.mark.slow)],
    ids=["some", "the others"],
)
def test_tokens_are_the_same_wherever_a_film_is_decoded(address, film_folder, monkeypatch, names):
    """Good and damaged films, in one and in several stretches."""
    model = tiny.model()
    model.facts = dataclasses.replace(model.facts, video_batch=2)
    monkeypatch.setattr(Tasks, "stretches", lambda self, batches: min(self.cpus, batches))
    several = 0
    for name in sorted(names):
        plain = encoded(film_folder / name, model, HERE)
        for cpus in (1, 3):
            other = encoded(film_folder / name, model, Tasks(cpus, os.getcwd()))
            if isinstance(plain, str):
                assert other == plain
                continue
            assert torch.equal(other.clip.tokens.features, plain.clip.tokens.features)
            assert torch.equal(other.clip.tokens.start_s, plain.clip.tokens.start_s)
            assert (other.used, other.warnings) == (plain.used, plain.warnings)
            several += cpus > 1 and plain.used.frames > 4
    assert several >= 2


def encoded(path, model, decoder):
    try:
        return load_film(path, MediaConfig(fps=4), frozenset(), model, decoder=decoder).media
    except MediaError as error:
        return str(error)


TIMED = ("stages", "busy", "wall_s", "time_to_first_token_s", "peak_memory")


@pytest.mark.slow
def test_rows_are_those_of_a_batch_without_ray(address, omni, tiny_model, tmp_path, monkeypatch):
    """Decoded by tasks or by the worker itself: good, damaged and unreadable films."""
    folder = tmp_path / "films"
    folder.mkdir()
    films.write_all(folder)
    monkeypatch.setenv("OMNI_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    argv = ("batch", folder, "-q", "why?", "-q", "who?", "--model", tiny_model, "--fps", "2", "--max-new-tokens", "2")
    ways = {"plain": ("--no-isolate",), "tasks": ("--ray", "--address", address), "cpus": ("--ray", "--device", "cpu")}
    rows = {}
    for way, how in ways.items():
        result = omni(*argv, "--no-cache", *how, "-o", tmp_path / f"{way}.jsonl")
        assert result.code == 7, result.err
        assert ("films decoded on 2 CPUs" in result.err) == (way == "tasks")
        lines = [json.loads(line) for line in (tmp_path / f"{way}.jsonl").read_text().splitlines()]
        lines.sort(key=lambda row: (row["media"], row["question"]))
        assert all(schema.row_problems(row) == [] for row in lines)
        rows[way] = [{k: v for k, v in row.items() if k not in (*TIMED, "config", "id", "key")} for row in lines]
    assert rows["tasks"] == rows["plain"] and rows["cpus"] == rows["plain"]
    assert len(rows["plain"]) == 2 * len(list(folder.iterdir()))


def test_a_journal_begun_without_ray_is_the_same(address, omni, tiny_model, tmp_path, monkeypatch):
    films.write(tmp_path / "a.mp4", 0.5)
    monkeypatch.setenv("OMNI_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    argv = ("batch", tmp_path, "-q", "why?", "-o", tmp_path / "out.jsonl", "--model", tiny_model)
    settings = ("--fps", "1", "--max-new-tokens", "2", "--device", "cpu")
    assert omni(*argv, *settings, "--no-isolate").code == 0
    before = (tmp_path / "out.jsonl").read_bytes()
    result = omni(*argv, *settings, "--ray", "--address", address)
    assert result.code == 0 and "1 of 1 items are done already" in result.err
    assert (tmp_path / "out.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--workers", "2"], ["--workers", "--ray"]),
        (["--address", "auto"], ["--address", "--ray"]),
        (["--ray", "--no-isolate"], ["--no-isolate"]),
        (["--ray", "--device", "cuda:1"], ["cuda:1", "write cuda"]),
        (["--ray", "--address", "here"], ["here", "HOST:PORT"]),
        (["--ray", "--address", "ray://head:10001"], ["ray://head:10001", "HOST:PORT"]),
        (["--ray", "--address", "127.0.0.1:1"], ["127.0.0.1:1", "no Ray cluster"]),
        (["--ray", "--workers", "0"], ["--workers"]),
    ],
    ids=" ".join,
)
def test_what_starts_nothing(omni, argv, words):
    result = omni("batch", ".", "-q", "why?", *argv)
    assert result.code == 2
    line = result.error_line()
    assert all(word in line for word in words)


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'omnicli\[ray\]'"):
        check()


def test_what_workers_share():
    def of(workers, *nodes, gpus=True):
        return share([{"CPU": cpus, "GPU": g} for cpus, g in nodes], workers, gpus=gpus)

    assert of(None, (16, 2), (64, 0)) == (2, {"num_gpus": 1}, 40)
    assert of(None, (16, 2), (16, 2)) == (4, {"num_gpus": 1}, 8)
    assert of(None, (3, 2)) == (2, {"num_gpus": 1}, 0)
    assert of(1, (16, 2)) == (1, {"num_gpus": 1}, 16)
    assert of(None, (16, 2), gpus=False) == (8, {"num_cpus": 2}, 0)
    assert of(None, (1, 0)) == (1, {"num_cpus": 1}, 0)
    assert of(1, (8, 0), (0, 0)) == (1, {"num_cpus": 8}, 0)
    assert of(2, (4, 0), (4, 0), (4, 0)) == (2, {"num_cpus": 4}, 0)
    assert of(None, (4, 0), (16, 0)) == (10, {"num_cpus": 1}, 0)
    for workers, nodes in ((3, [(16, 2)]), (5, [(4, 0)]), (None, [(0, 0)])):
        with pytest.raises(UsageError, match="the cluster has"):
            of(workers, *nodes)


def test_what_a_lost_process_costs():
    film = job("a", "1", "2", "3")
    attempt = Attempt(film)
    assert attempt.dropped(1) == [] and attempt.rest() == film
    assert attempt.dropped(1) == list(film.items) and not attempt.left
    attempt = Attempt(film)
    attempt.left.pop(0)
    assert [i.question for i in attempt.dropped(124)] == ["2"]
    assert attempt.dropped(1) == [] and [i.question for i in attempt.dropped(1)] == ["3"]
