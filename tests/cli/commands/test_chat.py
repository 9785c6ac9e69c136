"""`omni chat` with a tiny random model: lines, commands, errors, and a terminal with Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import select
import signal
import subprocess
import sys
import time

import pytest

from omnicli.cli.commands import chat as module
from omnicli.cli.main import run
from tests.conftest import ROOT
from tests.support import schema, tiny
from tests.support.waiting import PATIENCE_S

TIMES = ("stages", "busy", "wall_s", "time_to_first_token_s", "peak_memory", "cached")


@pytest.fixture
def options(tiny_model):
    return ["--model", tiny_model, "--fps", "1", "--max-new-tokens", "4", "--device", "cpu"]


@pytest.fixture
def chat(omni, options, film):
    """Return a function that holds a conversation, given as lines."""

    def call(*lines, argv=(), media=film):
        return omni("chat", media, *options, *argv, stdin="".join(line + "\n" for line in lines))

    return call


def rows(result):
    assert result.code == 0, result.err
    return [json.loads(line, parse_constant=pytest.fail) for line in result.out.splitlines()]


def stable(row):
    return {key: value for key, value in row.items() if key not in (*TIMES, "history")}


def test_a_line_for_each_question_and_nothing_else_on_stdout(chat, omni, options, film):
    result = chat("", "one?", "  ", "/history", "two?")
    asked = omni("ask", film, "one?", *options)
    assert result.code == 0, result.err
    first, second, *more = result.out.split("\n")
    assert first == " ".join(asked.out.split()) and more == [""]
    assert result.err == f"> one?\n{asked.out}", "no prompt, and what /history shows"
    history = rows(chat("one?", "two?", argv=["--json"]))[1]
    assert " ".join(history["answer"].split()) == second


def test_the_first_answer_is_that_of_ask(chat, omni, options, film):
    (row,) = rows(chat("one?", argv=["--json"]))
    (asked,) = rows(omni("ask", film, "one?", *options, "--json"))
    assert row["history"] == []
    assert stable(row) == stable(asked)


@pytest.mark.parametrize("preset", ["full", "seats-35"])
def test_follow_ups_read_only_what_is_new(chat, preset):
    found = rows(chat("one?", "two?", "two?", argv=["--json", "--preset", preset]))
    assert all(schema.problems({k: v for k, v in row.items() if k != "history"}) == [] for row in found)
    turns = [{"question": row["question"], "answer": row["answer"]} for row in found]
    assert [row["history"] for row in found] == [[], turns[:1], turns[:2]]
    texts, reused = ([row["tokens"][key] for row in found] for key in ("text", "reused"))
    media = sum(found[0]["tokens"][m]["kept"] for m in ("video", "audio"))
    assert texts[0] < texts[1] < texts[2]
    assert reused[0] == 0 and media < reused[1] == reused[2] < media + texts[0]
    assert len({row["id"] for row in found}) == 3, "the history tells the last two apart"


def test_commands(chat, tmp_path):
    file = tmp_path / "an swers.jsonl"
    result = chat(
        "/help",
        "/history",
        "one?",
        "/stages",
        "/clear",
        "/history",
        "two?",
        "/stages",
        f"/save '{file}'",
        "three?",
        f"/save '{file}'",
        "/quit",
        "never asked?",
        argv=["--json"],
    )
    found = rows(result)
    assert [row["question"] for row in found] == ["one?", "two?", "three?"]
    assert [len(row["history"]) for row in found] == [0, 0, 1]
    assert [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] == found
    lines = result.err.splitlines()
    for name in module.COMMANDS:
        assert any(line.startswith(f"/{name}") for line in lines)
    assert lines.count("no turns") == 2
    assert [line for line in lines if "answers in" in line] == [f"2 answers in {file}", f"3 answers in {file}"]
    begins = [i for i, line in enumerate(lines) if line.startswith("stage ")]
    first, second = (lines[begin : begin + 16] for begin in begins)
    assert any(line.startswith("load the model") for line in first)
    second = second[: next(i for i, line in enumerate(second) if line.startswith("model "))]
    assert not any(line.startswith(("load the model", "encode")) for line in second), "the film's time is told once"
    assert any(line.startswith("wall time") for line in second)


def test_another_preset(chat, omni, options, film):
    asked = ["full", "seats-35", "random-10"]
    result = chat(
        *[text for name in asked for text in (f"/preset {name} generate.max_new_tokens=3", "/clear", "one?")],
        "/preset",
        argv=["--json", "--set", "generate.seed=5"],
    )
    found = rows(result)
    assert [row["preset"] for row in found] == asked
    same = ["--json", "--set", "generate.seed=5", "--max-new-tokens", "3"]
    for row in found:
        (alone,) = rows(omni("ask", film, "one?", *options, "--preset", row["preset"], *same))
        assert stable(row) == stable(alone)
    again = [line for line in result.err.splitlines() if "looking at the film again" in line]
    assert again == ["omni: seats needs saliency of the encoders: looking at the film again"]
    assert result.err.splitlines()[-1] == "preset random-10, method random"


def test_a_line_that_fails_stops_nothing(chat, omni, options, film, tmp_path):
    there = tmp_path / "there.jsonl"
    there.write_text("mine")
    bad = {
        "/histroy": "did you mean history?",
        "/": "no such command",
        "/clear all": "nothing may follow",
        "/stages": "nothing was answered yet",
        "/evidence": "nothing was answered yet",
        "/save a b": "one file",
        "/save 'a": "no closing quotation",
        f"/save {there}": "nothing was answered yet",
        "/preset avok": "did you mean avoc",
        "/preset full media.fps=2": "media.fps cannot change in a chat",
        "/preset full avoc.tokens=7": "avoc",
        "/preset fastv-25": "",  # half of the test model's four layers would read everything
        "fails?": "first 2 of 4 layers",
        "/preset full": "",
    }
    result = chat(*bad, "one?", f"/save {there}")
    assert result.code == 2, "that of the first one"
    assert there.read_text() == "mine"
    asked = omni("ask", film, "one?", *options, "--preset", "full")
    assert result.out == "\n" + " ".join(asked.out.split()) + "\n"
    notes = [line for line in result.err.splitlines() if line.startswith("omni: ")]
    words = [*filter(None, bad.values()), "File exists"]
    assert len(notes) == len(words)
    for note, word in zip(notes, words, strict=True):
        assert word in note
    assert "Traceback" not in result.err
    failed = omni("chat", film, *options, stdin=b"caf\xe9?\none?\n")
    assert (failed.code, failed.out.count("\n"), failed.err) == (
        2,
        2,
        "omni: stdin: a line is not UTF-8\n",
    )


def test_nothing_is_asked(chat, omni, film_folder):
    assert chat() == module_result(0)
    assert omni("chat", film_folder / "empty.mp4").code == 3
    assert omni("chat", film_folder / "film.mp4", "--start", "4", "--end", "2").code == 2


def module_result(code):
    from tests.conftest import Result

    return Result(code, "", "")


def test_notes_of_the_film_are_told_once(chat, film_folder):
    result = chat("one?", "two?", media=film_folder / "silent.mp4")
    assert len([line for line in result.err.splitlines() if "sound" in line]) == 1


def test_ctrl_c_ends_what_is_not_typed_by_anybody(chat, monkeypatch):
    def stop(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.Conversation, "_answer", stop)
    result = chat("one?", "two?")
    assert (result.code, result.out, result.err) == (130, "", "omni: interrupted\n")


def test_a_terminal_in_front_of_a_file(options, film, monkeypatch, capsys):
    """Prompts stay out of stdout, answers keep their lines, and a question that fails is no failure of the chat."""
    master, slave = os.openpty()
    os.write(master, b"one?\n/nothing\n\x04")
    with os.fdopen(slave, "r") as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        code = run([str(word) for word in ("chat", film, *options)])
    os.close(master)
    out, err = capsys.readouterr()
    assert code == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert run([str(word) for word in ("ask", film, "one?", *options)]) == 0
    assert out == capsys.readouterr().out
    assert err.startswith(f"omni: {film}: 6 s of pictures, 6 s of sound, ")
    assert err.count(module.PROMPT) == 3 and err.endswith("\n")


def test_an_interrupted_answer_does_not_end_the_chat(options, film, monkeypatch, capsys):
    from omnicli.llm import decode

    real, picked = decode.pick, []

    def pick(*args):
        picked.append(1)
        if len(picked) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(decode, "pick", pick)
    master, slave = os.openpty()
    os.write(master, b"one?\n/history\ntwo?\n\x04")
    with os.fdopen(slave, "r") as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        code = run([str(word) for word in ("chat", film, *options)])
    os.close(master)
    out, err = capsys.readouterr()
    assert code == 0 and len(picked) > 2
    assert err.count("omni: stopped") == 1 and "no turns" in err and err.count(module.PROMPT) == 4
    assert len(out.splitlines()) >= 1


SLOW = """
import fcntl, itertools, signal, sys, termios, time
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C is a signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from omnicli.llm import decode
ids = itertools.cycle({ids})
asked = []
def pick(*_):
    asked.append(1)
    if len(asked) == 9:
        print("asleep", file=sys.stderr, flush=True)
        time.sleep(3600)  # until Ctrl-C
    return next(ids)
decode.pick = pick
from omnicli.cli.main import main
main(sys.argv[1:])
"""


class Terminal:
    """A program at a pseudo-terminal: what it shows is waited for."""

    def __init__(self, *argv):
        self.master, slave = os.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", *map(str, argv)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb"},
            start_new_session=True,
        )
        os.close(slave)
        self.seen = ""

    def expect(self, text, seconds=PATIENCE_S):
        """Wait until ``text`` appears behind what was expected before, and return what stands before it."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"no {text!r} in {self.seen!r}"
            try:
                data = os.read(self.master, 65536)
            except OSError:  # the other side is closed
                data = b""
            assert data, f"no {text!r} in {self.seen!r}"
            self.seen += data.decode()
        before, _, self.seen = self.seen.partition(text)
        return before

    def send(self, text):
        os.write(self.master, text.encode())

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        os.close(self.master)


@pytest.mark.slow
def test_ctrl_c_stops_an_answer_and_not_the_chat(options, film):
    ids = tiny.thinker(0)[1]("ab", add_special_tokens=False)["input_ids"]
    program = Terminal(SLOW.format(ids=ids), "chat", film, *options, "--max-new-tokens", "40")
    try:
        assert "tokens; /help for commands" in program.expect("\n> ")
        program.send("one?\n")
        assert "abab" in program.expect("asleep")
        program.send("\x03")
        program.expect("omni: stopped")
        program.expect("\n> ")
        program.send("/history\n")
        program.expect("no turns")
        program.expect("> ")
        program.send("two?\n")
        assert program.expect("\r\n> ").strip().endswith("ab" * (20 if len(ids) == 2 else 40))
        program.send("/history\n")
        program.expect("> two?\r\nab")
        program.expect("\n> ")
        program.send("half a question\x03")
        program.expect("Ctrl-C again or Ctrl-D to leave")
        program.expect("> ")
        program.send("/preset\n")
        program.expect("preset auto, method avoc")
        program.expect("> ")
        program.send("\x03")
        program.expect("Ctrl-C again or Ctrl-D to leave")
        program.expect("> ")
        program.send("\x03")
        program.expect("omni: interrupted")
        assert program.process.wait(PATIENCE_S) == 130
    finally:
        program.close()
