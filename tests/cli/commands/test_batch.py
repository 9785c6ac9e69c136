"""``omni batch``: one row per film and question whatever happens, resuming, lists, manifests, how runs end."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest

from omnicli.batch import worker
from tests.conftest import ROOT
from tests.support import films, schema
from tests.support import stamped as odd
from tests.support.waiting import PATIENCE_S, wait_until


@pytest.fixture
def batch(omni, tiny_model):
    """Return a function that runs the command in this process, with a model that answers at once."""

    def call(*argv, stdin="", preset=("--fps", "1", "--max-new-tokens", "2")):
        return omni("batch", *argv, "--model", tiny_model, "--no-isolate", *preset, stdin=stdin)

    return call


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """Go to a folder with two short films."""
    (tmp_path / "archive").mkdir()
    films.write(tmp_path / "archive" / "a.mp4", 0.5)
    films.write(tmp_path / "archive" / "b.mp4", 0.5, sound=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "archive"


def rows_of(text):
    rows = [json.loads(line, parse_constant=pytest.fail) for line in text.split("\n") if line]
    for row in rows:
        assert schema.row_problems(row) == []
    return rows


def read(path):
    return rows_of(path.read_text(encoding="utf-8"))


def statuses(rows):
    return {os.path.basename(r["media"]): r["status"] for r in rows}


def write_odd(folder):
    """Write films that are unusual or lie; returns what their rows must say (None: either)."""
    odd.write(folder / "gaps.mkv", times=np.array([0, 0.1, 0.15, 0.9, 1.0, 2.5]), sound=False)
    odd.rotate_mp4(odd.write(folder / "rotated.mp4", 10), 90)
    path = odd.write(folder / "lies.mp4", 10, sound=False)
    at = odd.find_box(path.read_bytes(), b"mvhd")
    odd.patch(path, at + 24, struct.pack(">I", 0x0FFFFFFF))
    odd.write_song(folder / "song with a cover.mp3")
    (folder / "sub").mkdir()
    shutil.copy(folder / "film.mp4", folder / "sub" / "again.mp4")
    return {
        **dict.fromkeys(films.GOOD, "ok"),
        **dict.fromkeys(films.BAD, "failed"),
        **dict.fromkeys(films.DAMAGED, None),
        **dict.fromkeys(("whole.mkv", "gaps.mkv", "rotated.mp4", "lies.mp4", "song with a cover.mp3"), "ok"),
        "again.mp4": "ok",
    }


@pytest.mark.parametrize("isolated", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["here", "two processes"])
def test_a_folder_of_good_and_damaged_files(omni, omni_process, tiny_model, film_folder, tmp_path, isolated):
    """One row each, none a traceback; in this process, and with the real command in its two."""
    folder, out = shutil.copytree(film_folder, tmp_path / "films"), tmp_path / "out.jsonl"
    expected = write_odd(folder)
    argv = ("batch", folder, "-q", "why?", "-q", "who?", "-o", out, "--model", tiny_model, "--fps", "1")
    short = ("--max-new-tokens", "2")
    result = omni_process(*argv, *short) if isolated else omni(*argv, *short, "--no-isolate")
    assert (result.code, result.out) == (7, ""), result.err
    assert "Traceback" not in result.err
    rows = read(out)
    assert [(r["media"], r["question"]) for r in rows] == sorted(
        ((r["media"], r["question"]) for r in rows), key=lambda pair: (pair[0].split("/"), pair[1] == "who?")
    )
    assert {name: status for name, status in statuses(rows).items() if expected[name]} == {
        name: status for name, status in expected.items() if status
    }
    assert len(rows) == 2 * len(expected)
    assert {r["error"]["code"] for r in rows if r["status"] == "failed"} == {3}
    for name in expected:
        for row in rows:
            if os.path.basename(row["media"]) == name and row["status"] == "failed":
                assert row["error"]["message"].startswith(row["media"])
    assert result.err.splitlines()[-1].startswith(f"omni: {sum(r['status'] == 'ok' for r in rows)} ok, ")


@pytest.mark.slow
def test_resuming(batch, archive, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    asked = []
    real = worker.pipeline.answer
    monkeypatch.setattr(
        worker.pipeline, "answer", lambda film, *a, **k: (asked.append(film.info.path.name), real(film, *a, **k))[1]
    )

    def again(*argv, code=0, names=("archive",)):
        asked.clear()
        result = batch(*names, "-q", "why?", "-o", out, *argv)
        assert (result.code, result.out) == (code, ""), result.err
        return list(asked)

    assert again() == ["a.mp4", "b.mp4"]
    assert again() == []
    os.rename(archive / "a.mp4", archive / "z.mp4")
    assert again() == []  # another name is no other film
    assert again(names=["archive/z.mp4", "archive/b.mp4"]) == []
    films.write(archive / "b.mp4", 0.6, sound=False)
    assert again() == ["b.mp4"]  # another content is
    assert again("--set", "media.min_pixels=3000") == ["b.mp4", "z.mp4"]
    assert again("--preset", "full") == ["b.mp4", "z.mp4"]
    assert again("--force") == ["b.mp4", "z.mp4"]
    assert len(read(out)) == 7
    (archive / "bad.mp4").write_text("a letter")
    assert again(code=7) == []
    before = out.read_bytes()
    assert again(code=7) == []  # a failed item is done too, and still failed
    assert out.read_bytes() == before
    assert again("--retry-failed", code=7) == []
    assert len(read(out)) == 8
    shutil.copy(archive / "z.mp4", archive / "bad.mp4")
    assert again() == ["bad.mp4"]


@pytest.mark.slow
def test_subtitles(batch, archive, tmp_path):
    def again(*argv):
        before = len(read(tmp_path / "out.jsonl")) if (tmp_path / "out.jsonl").exists() else 0
        assert batch("archive", "-q", "why?", "-o", "out.jsonl", *argv).code == 0
        return {os.path.basename(r["media"]): r for r in read(tmp_path / "out.jsonl")[before:]}

    text = "1\n00:00:00,000 --> 00:00:00,400\nHello\n"
    plain = again()
    (archive / "a.srt").write_text(text)
    assert again() == {}
    auto = again("--subtitles", "auto")
    assert set(auto) == {"a.mp4", "b.mp4"}, "the settings differ"
    assert auto["a.mp4"]["tokens"]["text"] > plain["a.mp4"]["tokens"]["text"]
    assert auto["a.mp4"]["warnings"] == plain["a.mp4"]["warnings"]
    assert auto["b.mp4"]["tokens"]["text"] == plain["b.mp4"]["tokens"]["text"]
    assert again("--subtitles", "auto") == {}
    (archive / "b.srt").write_text(text)
    assert set(again("--subtitles", "auto")) == {"b.mp4"}
    assert set(again("--subtitles", "archive/b.srt")) == {"a.mp4", "b.mp4"}
    (archive / "b.srt").write_text(text.replace("Hello", "Good bye"))
    assert set(again("--subtitles", "archive/b.srt")) == {"a.mp4", "b.mp4"}
    (archive / "b.srt").write_bytes(b"\xff\xfe\x00 no text")
    assert batch("archive", "-q", "why?", "--subtitles", "auto").code == 7, "a failed row"
    wrong = batch("archive", "-q", "why?", "--subtitles", "archive/c.srt")
    assert wrong.code == 3 and "did you mean" in wrong.error_line()


def test_rows_on_stdout_and_nothing_else(batch, archive):
    result = batch("archive", "-q", "why?")
    assert result.code == 0
    assert statuses(rows_of(result.out)) == {"a.mp4": "ok", "b.mp4": "ok"}
    assert result.err.splitlines()[-1].startswith("omni: 2 ok; ")
    quiet = batch("archive", "-q", "why?", "--quiet")
    assert (quiet.code, quiet.err) == (0, "")
    assert len(rows_of(quiet.out)) == 2


def test_progress_on_a_terminal(batch, archive, monkeypatch, capsys):
    os.rename(archive / "b.mp4", archive / "b\x1b[2J\n.mp4")
    master, slave = os.openpty()
    shown = []
    with os.fdopen(slave, "w") as terminal, capsys.disabled():
        for quiet in ([], ["--quiet"]):
            monkeypatch.setattr(sys, "stderr", terminal)
            assert batch("archive", "-q", "why?", "-o", f"out{len(quiet)}.jsonl", *quiet).code == 0
            print("end", file=terminal, flush=True)
            data = b""
            while not data.endswith(b"end\r\n"):
                data += os.read(master, 65536)
            shown.append(data.decode().removesuffix("end\r\n"))
    os.close(master)
    shown, quietly = shown
    assert quietly == ""
    assert "[0/2]" in shown and "[1/2] " in shown and "a minute, 0:00:" in shown and "left: a.mp4" in shown
    assert "\x1b[2J" not in shown
    assert shown.replace("\r\n", "\n").split("\r\x1b[K")[-1].startswith("omni: 2 ok; ")


def test_lists_on_stdin(batch, archive):
    os.rename(archive / "a.mp4", archive / "a\nb [c].mp4")
    os.rename(archive / "b.mp4", os.fsencode(archive) + b"/caf\xe9 *.mp4")
    os.link(archive / "a\nb [c].mp4", archive / "hard.mp4")
    names = b"archive/a\nb [c].mp4\0archive/caf\xe9 *.mp4\0archive/gone.mp4\0archive/hard.mp4\0archive/hard.mp4\0"
    result = batch("-0", "-q", "why?", stdin=names)
    rows = rows_of(result.out)
    assert result.code == 7
    assert [os.fsencode(r["media"]) for r in rows if r["status"] == "ok"] == names.split(b"\0")[:2]
    assert [(r["media"], r["status"], r["error"]["code"]) for r in rows if r["status"] != "ok"] == [
        ("archive/hard.mp4", "skipped", 0),
        ("archive/gone.mp4", "failed", 3),
    ]
    assert "archive/a\nb [c].mp4" in rows[0]["error"]["message"].replace("a b", "a\nb")
    lines = batch("-", "-q", "why?", stdin=b"archive/hard.mp4\r\n\narchive/caf\xe9 *.mp4\n")
    assert [r["status"] for r in rows_of(lines.out)] == ["ok", "ok"]


def test_a_manifest(batch, archive, tmp_path):
    lines = [
        {"media": "archive/a.mp4", "question": "Which?", "id": "q1", "choices": ["A dog", "A cat"]},
        {"media": "archive/b.mp4", "question": "Who?", "id": "q2"},
        {"media": "archive/a.mp4", "question": "Which?", "id": "q3", "choices": ["A dog", "A cat"]},
        {"media": "archive/none.mp4", "question": "Who?", "id": "q4"},
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = batch("--manifest", "m.jsonl")
    assert result.code == 7
    rows = {r["item"]: r for r in rows_of(result.out)}
    assert list(rows) == ["q1", "q3", "q2", "q4"]
    assert rows["q1"]["question"] == "Which?\nA. A dog\nB. A cat"
    assert rows["q1"]["choices"] == ["A dog", "A cat"] and rows["q1"]["choice"] in (None, "A", "B")
    assert rows["q4"]["status"] == "failed" and rows["q2"]["choices"] is None


def test_a_wrong_manifest_starts_nothing(batch, archive, tmp_path):
    (tmp_path / "m.csv").write_text("media,question\narchive/a.mp4,why?\narchive/b.mp4,\n,why?\n")
    result = batch("--manifest", "m.csv", "-o", "out.jsonl")
    assert (result.code, result.out) == (2, "")
    assert [line.split(": ")[:3] for line in result.err.splitlines()] == [
        ["omni", "m.csv", "line 3"],
        ["omni", "m.csv", "line 4"],
    ]
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        ([], 2, ["no film"]),
        (["archive"], 2, ["no question", "-q"]),
        (["archive", "-q", " "], 2, ["empty"]),
        (["archive", "-q", "caf\udce9"], 2, ["UTF-8"]),
        (["archve", "-q", "why?"], 2, ["archve", "did you mean archive"]),
        (["*.avi", "-q", "why?"], 2, ["no file matches"]),
        (["empty", "-q", "why?"], 2, ["no film or sound file in empty"]),
        (["-", "-q", "why?"], 2, ["no film"]),
        (["-", "-0", "-q", "why?"], 2, ["stdin"]),
        (["archive", "-q", "why?", "--manifest", "m.csv"], 2, ["either"]),
        (["archive", "-q", "why?", "--force"], 2, ["--force", "-o"]),
        (["archive", "-q", "why?", "--retry-failed"], 2, ["--retry-failed", "-o"]),
        (["archive", "-q", "why?", "-o", "none/out.jsonl"], 2, ["none", "folder"]),
        (["archive", "-q", "why?", "-o", "archive"], 2, ["plain file"]),
        (["archive", "-q", "why?", "-o", "letter.txt"], 2, ["letter.txt", "line 1"]),
        (["archive", "-q", "why?", "--timeout", "0"], 2, ["--timeout"]),
        (["archive", "-q", "why?", "--preset", "avok"], 6, ["avoc"]),
        (["archive", "-q", "why?", "--set", "media.fsp=1"], 6, ["fps"]),
        (["archive", "-q", "why?", "--model", "poket"], 5, ["pocket"]),
        (["archive", "-q", "why?", "--device", "gpu"], 5, ["gpu"]),
    ],
    ids=lambda v: " ".join(v).encode("ascii", "replace").decode() if isinstance(v, list) else "",
)
def test_what_starts_nothing(omni, tiny_model, archive, tmp_path, argv, code, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "letter.txt").write_text("Dear reader,\n")
    model = [] if "--model" in argv else ["--model", tiny_model]
    result = omni("batch", *argv, *model, "--no-isolate")
    assert result.code == code, result.err
    line = result.error_line()
    for word in words:
        assert word in line
    assert (tmp_path / "letter.txt").read_text() == "Dear reader,\n"


def test_a_model_without_weights_starts_nothing(omni, archive, tmp_path):
    result = omni("batch", "archive", "-q", "why?", "--model", tmp_path, "--no-isolate", "-o", "out.jsonl")
    assert result.code == 5
    assert "config.json" in result.error_line()
    assert (tmp_path / "out.jsonl").read_bytes() == b""


def test_ctrl_c_leaves_whole_rows(batch, archive, tmp_path, monkeypatch):
    real, calls = worker.pipeline.answer, []

    def answer(*argv, **how):
        calls.append(argv)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*argv, **how)

    monkeypatch.setattr(worker.pipeline, "answer", answer)
    result = batch("archive", "-q", "why?", "-q", "who?", "-o", "out.jsonl")
    assert result.code == 130
    assert result.err.splitlines() == [
        "omni: 1 of 4 items done; the same command goes on from here",
        "omni: interrupted",
    ]
    assert len(read(tmp_path / "out.jsonl")) == 1
    assert batch("archive", "-q", "why?", "-q", "who?", "-o", "out.jsonl").code == 0
    assert len({r["key"] for r in read(tmp_path / "out.jsonl")}) == len(read(tmp_path / "out.jsonl")) == 4


def start(*argv, cwd):
    script = (
        "import signal, sys\n"
        "from omnicli.cli.main import main\n"
        "if __name__ == '__main__':  # not in the worker, which imports this file too and ignores Ctrl-C\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started us with it ignored\n"
        "    main(sys.argv[1:])\n"
    )
    (cwd / "run.py").write_text(script)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, cwd / "run.py", *map(str, argv)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=cwd,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )


def wait_for_rows(path, count):
    wait_until(lambda: path.exists() and path.read_bytes().count(b"\n") >= count, f"no {count} rows came")


@pytest.mark.slow
@pytest.mark.parametrize(
    "kills",
    [(signal.SIGINT,), (signal.SIGKILL, signal.SIGKILL, signal.SIGINT)],
    ids=["stopped", "killed and stopped"],
)
def test_the_real_command_killed_stopped_and_refused(archive, tmp_path, tiny_model, batch, kills):
    out, rng = tmp_path / "out.jsonl", random.Random(5)
    questions = [part for n in range(60) for part in ("-q", f"why {n}?")]
    settings = ("--fps", "1", "--max-new-tokens", "2")
    argv = ("batch", "archive", *questions, "-o", out, "--model", tiny_model, *settings)
    for kill in kills:
        before = out.read_bytes().count(b"\n") if out.exists() else 0
        process = start(*argv, cwd=tmp_path)
        wait_for_rows(out, before + 3)
        if kill == signal.SIGINT:
            second = batch("archive", "-q", "why?", "-o", out)
            assert second.code == 2 and "another omni is writing it" in second.error_line()
            os.killpg(process.pid, kill)  # as a terminal does
        else:
            time.sleep(rng.uniform(0, 0.2))
            process.kill()
        err = process.communicate(timeout=PATIENCE_S)[1]
        assert process.returncode == (130 if kill == signal.SIGINT else -9), err
        if kill == signal.SIGINT:
            assert err.splitlines()[-1] == "omni: interrupted" and "Traceback" not in err
    assert batch("archive", *questions, "-o", out, preset=settings).code == 0
    keys = [r["key"] for r in read(out)]
    assert len(keys) == len(set(keys)) == 120
