"""The journal survives whatever stops a run: every row whole, each item once, nobody else's file touched."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from omnicli.batch import runner
from omnicli.batch.journal import Journal
from omnicli.errors import UsageError
from omnicli.utils.jsonl import JsonLines, dumps
from tests.support import workers as fakes


def go(path, jobs, answering=None, **how):
    with Journal(path) as journal:
        left = runner.pending(jobs, journal, **how)
        runner.run(left, answering or fakes.Slow(0), journal, skipped=fakes.row)
        return sum(len(job.items) for job in left), runner.tally(jobs, journal)


def keys(path):
    return [json.loads(line)["key"] for line in path.read_text().splitlines()]


def in_a_fork(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


JOBS = fakes.jobs(20, 2)
KEYS = [item.key for job in JOBS for item in job.items]


def rows(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def killed_at(path, count):
    """Run in a fork that is killed as soon as the journal holds so many rows, however fast the machine is."""
    pid = in_a_fork(lambda: go(path, JOBS, fakes.Slow(0.0005)))
    while rows(path) < count:
        if os.waitpid(pid, os.WNOHANG)[0]:  # it ended by itself
            return
        time.sleep(0.0002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_killed_at_any_point(tmp_path):
    seen = set()
    for count in (0, 1, 2, 5, 11, 17, 23, 29, 34, 38):
        path = tmp_path / f"{count}.jsonl"
        killed_at(path, count)
        before = rows(path)
        seen.add(before)
        did, _ = go(path, JOBS)
        assert did == 40 - before
        assert keys(path) == KEYS
    assert len(seen & set(range(1, 40))) > 3, f"the kills all came at the ends: {seen}"


def test_one_journal_killed_again_and_again(tmp_path):
    path, kills = tmp_path / "out.jsonl", 0
    while (held := rows(path)) < 40:
        killed_at(path, min(40, held + 1 + kills % 5))
        kills += 1
    assert kills > 3
    assert keys(path) == KEYS


def test_cut_off_at_any_byte(tmp_path):
    """What a power failure leaves: some beginning of the file, perhaps with zeros after it."""
    whole = tmp_path / "whole.jsonl"
    go(whole, fakes.jobs(5))
    data = whole.read_bytes()
    rng = random.Random(1)
    for end in [0, 1, 2, len(data) - 1, *(rng.randrange(len(data)) for _ in range(50))]:
        for tail in (b"", b"\0" * 100):
            path = tmp_path / "cut.jsonl"
            path.write_bytes(data[:end] + tail)
            go(path, fakes.jobs(5))
            assert path.read_bytes().splitlines() == data.splitlines(), (end, tail)


def test_a_last_line_without_its_end_counts(tmp_path):
    path = tmp_path / "out.jsonl"
    go(path, fakes.jobs(3))
    path.write_bytes(path.read_bytes()[:-1])
    assert go(path, fakes.jobs(4))[0] == 1
    assert len(keys(path)) == 4


@pytest.mark.parametrize(
    "text", ["hello\n", "hello", "[1]\n", '{"a": 1}\n', '{"key": "k", "status": "ok"}\nhello\n', "1\n"]
)
def test_another_file_is_not_touched(tmp_path, text):
    path = tmp_path / "letter.txt"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"line [12] is no row"):
        go(path, JOBS)
    assert path.read_text() == text
    os.truncate(path, 0)
    go(path, JOBS[:1])  # and the refused one was unlocked


def test_no_plain_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", "/dev/null"):
        with pytest.raises(UsageError, match="not a plain file"):
            Journal(path)
    with pytest.raises(UsageError, match="No such file"):
        Journal(tmp_path / "none" / "out.jsonl")


def test_a_second_writer_is_refused(tmp_path):
    path = tmp_path / "out.jsonl"
    with Journal(path):
        code = "import sys, pathlib, omnicli.batch.journal as j\nj.Journal(pathlib.Path(sys.argv[1]))"
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
        assert "another omni is writing it" in done.stderr
        with pytest.raises(UsageError, match="another omni"):
            Journal(path)
    Journal(path).__exit__(None)


def test_the_lock_is_that_of_the_file_with_the_name(tmp_path, monkeypatch):
    """The other run put a new file in place between opening and locking: the new one is locked, not the old."""
    import fcntl

    path, real = tmp_path / "out.jsonl", fcntl.flock
    go(path, JOBS[:1])

    def replaced(fd, how):
        real(fd, how)
        monkeypatch.setattr(fcntl, "flock", real)
        (tmp_path / "new").write_bytes(path.read_bytes())
        os.replace(tmp_path / "new", path)

    monkeypatch.setattr(fcntl, "flock", replaced)
    go(path, JOBS[:2])
    assert len(keys(path)) == 4


def test_a_full_disk_leaves_no_half_row(tmp_path, monkeypatch):
    path, real, calls = tmp_path / "out.jsonl", os.pwrite, []

    def full(fd, data, at):
        calls.append(at)
        if len(calls) < 4:
            return real(fd, data, at)
        if len(calls) == 4:
            return real(fd, data[:100], at)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UsageError, match="No space left"):
        go(path, JOBS)
    monkeypatch.undo()
    assert keys(path) == KEYS[:3]


def test_retry_and_force(tmp_path):
    path, todo = tmp_path / "out.jsonl", fakes.jobs(4)

    class Bad(fakes.Slow):
        def answer(self, jobs):
            for job in jobs:
                yield fakes.row(job.items[0], "failed" if job.media[0] in "12" else "ok")

    assert go(path, todo, Bad(0)) == (4, {"ok": 2, "failed": 2})
    assert go(path, todo) == (0, {"ok": 2, "failed": 2})
    assert go(path, todo, retry_failed=True) == (2, {"ok": 4})
    assert sorted(keys(path)) == [job.items[0].key for job in todo]
    assert path.with_name("out.jsonl.new").exists() is False
    path.chmod(0o640)
    assert go(path, todo, force=True) == (4, {"ok": 4})
    assert len(keys(path)) == 4 and path.stat().st_mode & 0o777 == 0o640


def test_a_kill_while_redoing_loses_no_answer(tmp_path):
    path, todo = tmp_path / "out.jsonl", fakes.jobs(4)
    go(path, todo)

    class Dies(fakes.Slow):
        def answer(self, jobs):
            yield fakes.row(jobs[0].items[0], answer="new")
            os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(in_a_fork(lambda: go(path, todo, Dies(0), force=True)), 0)
    assert len(keys(path)) == 5
    assert go(path, todo) == (0, {"ok": 4})  # and tidies up: the newest row stays
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["answer"][:3] for r in rows if r["media"] == "0.mp4"] == ["new"]
    assert len(rows) == 4


def test_a_link_to_the_journal_stays_one(tmp_path):
    real, link = tmp_path / "real.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(real)
    go(link, JOBS[:1])
    go(link, JOBS[:1], force=True)
    assert link.is_symlink() and len(keys(real)) == 2


def test_rows_of_names_that_are_not_text(tmp_path):
    assert dumps({"a": "ü"}) == '{"a": "ü"}'
    line = dumps({"media": os.fsdecode(b"caf\xe9.mp4")})
    line.encode("ascii")
    assert os.fsencode(json.loads(line)["media"]) == b"caf\xe9.mp4"
    lines = JsonLines(tmp_path / "x", "-o")
    lines.append({"media": os.fsdecode(b"caf\xe9.mp4")})
    assert [os.fsencode(v["media"]) for v in lines.values()] == [b"caf\xe9.mp4"]
