"""Time limits: in this process by a signal, around a process by ending it; and what else a process may die of."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time

import pytest

from omnicli.batch.errors import TimeLimitError
from omnicli.batch.isolate import Isolated
from omnicli.batch.items import Item, Job
from omnicli.batch.limit import time_limit
from omnicli.errors import ConfigError, OmniError
from tests.conftest import ROOT
from tests.support import workers as fakes
from tests.support.waiting import ended, wait_until


def swallow_everything():
    while True:
        with contextlib.suppress(Exception):
            time.sleep(0.001)


def in_a_destructor():
    class Slow:
        def __del__(self):
            time.sleep(0.15)

    Slow()
    time.sleep(60)


@pytest.mark.parametrize(
    "stuck", [lambda: time.sleep(60), swallow_everything, queue.Queue().get, queue.SimpleQueue().get, in_a_destructor]
)
def test_python_is_interrupted(stuck, monkeypatch):
    monkeypatch.setattr("omnicli.batch.limit._AGAIN_S", 0.1)
    monkeypatch.setattr(sys, "unraisablehook", lambda *_: None)
    before, handler = time.monotonic(), signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeLimitError, match=r"longer than 0\.1 s"), time_limit(0.1):
        stuck()
    assert time.monotonic() - before < 50, "it was not interrupted: it ended by itself"
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_what_is_in_time_is_left_alone():
    with time_limit(60):
        pass
    with time_limit(None):
        time.sleep(0.1)
    with pytest.raises(ValueError, match="mine"), time_limit(5):
        raise ValueError("mine")
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_another_thread_is_refused():
    caught = []

    def run():
        try:
            with time_limit(1):
                pass
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert caught


def job(media, *questions):
    return Job(media, tuple(Item(media, q, f"{media} {q}") for q in questions or ("q",)))


@pytest.fixture
def isolated(tmp_path, monkeypatch):
    log = tmp_path / "log"

    def call(*jobs, timeout_s=None, fail_open=""):
        log.write_text("")
        with Isolated(fakes.Worker(log, fail_open), fakes.failed, timeout_s, grace_s=0.2) as process:
            rows = list(process.answer(jobs))
        assert [r["key"] for r in rows] == [i.key for j in jobs for i in j.items]
        return rows, log.read_text().splitlines()

    return call


def statuses(rows):
    return [r["status"] for r in rows]


def test_one_process_does_everything(isolated, capfd):
    rows, log = isolated(job("a", "1", "2"), job("b"))
    assert len({r["pid"] for r in rows} | {os.getpid()}) == 2
    assert log == ["open", "a 2 b", "b 1 -"]
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(("name", "words"), [("crash", "SIGSEGV"), ("killed", "SIGKILL; the system does this")])
def test_a_film_that_kills_its_process(isolated, name, words):
    rows, log = isolated(job("a"), job(name, "1", "2", "3"), job("b", "1", "2"))
    assert statuses(rows) == ["ok", *["failed"] * 3, "ok", "ok"]
    assert all(words in r["error"]["message"] and name in r["error"]["message"] for r in rows[1:4])
    assert rows[1]["error"]["code"] == 1
    # twice with the film, the second time without looking at the next one, not once per question
    assert log == ["open", f"a 1 {name}", f"{name} 3 b", "open", f"{name} 3 -", "open", "b 2 -"]


def test_a_question_that_kills_its_process_costs_no_other(isolated):
    rows, _ = isolated(job("a", "1", "crash", "2"), job("b"))
    assert statuses(rows) == ["ok", "failed", "ok", "ok"]


def test_the_film_looked_at_ahead_is_blamed_on_nobody_else(isolated):
    rows, log = isolated(job("a"), job("crash ahead"), job("b"))
    assert statuses(rows) == ["ok", "failed", "ok"]
    assert log[:4] == ["open", "a 1 crash ahead", "open", "a 1 -"]


@pytest.mark.slow
def test_a_process_that_hangs_is_ended(isolated):
    rows, log = isolated(job("hang", "1", "2"), job("a", "1", "hang", "2"), timeout_s=2)
    assert statuses(rows) == ["failed", "failed", "ok", "failed", "ok"]
    assert {r["error"]["code"] for r in rows if r["status"] == "failed"} == {124}
    assert "could not be interrupted" in rows[0]["error"]["message"]
    assert log.count("open") == 3


def test_a_lost_device_takes_a_new_process_and_no_item(isolated):
    rows, log = isolated(job("lost", "1"), job("b"))
    assert statuses(rows) == ["ok", "ok"]
    assert log.count("open") == 2


def test_what_ends_the_run(isolated):
    with pytest.raises(ConfigError) as caught:
        isolated(job("a"), fail_open="config")
    assert caught.value.problems == ["one", "two"]
    with pytest.raises(OmniError, match=r"could not be loaded: .*SIGKILL"):
        isolated(job("a"), fail_open="die")
    with pytest.raises(ConfigError, match="does not fit the model"):
        isolated(job("config"))


def test_the_worker_ends_with_its_parent(tmp_path):
    script = (
        "import sys\nfrom pathlib import Path\nfrom tests.support import workers as fakes\n"
        "from tests.batch.test_limit import job\n"
        "from omnicli.batch.isolate import Isolated\n"
        "if __name__ == '__main__':\n"
        "    with Isolated(fakes.Worker(Path(sys.argv[1])), fakes.failed) as process:\n"
        "        for row in process.answer([job('a'), job('hang')]):\n"
        "            print(row['pid'], flush=True)\n"
    )
    (tmp_path / "run.py").write_text(script)
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "run.py", tmp_path / "log"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    try:
        wait_until(lambda: ended(pid), "the worker outlived its parent")
    finally:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
