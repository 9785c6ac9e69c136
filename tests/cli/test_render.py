"""What goes to which stream, and what it looks like."""

from __future__ import annotations

import io
import json
import sys

import pytest

from omnicli.cli import render
from tests.support.answers import make_answer


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_stage_table_of_one_answer():
    lines = render.stage_table([make_answer()]).splitlines()
    assert lines[0].split() == ["stage", "seconds", "share"]
    assert lines[1].split() == ["decode", "pictures", "1.00", "50", "%"]
    assert not any(line.startswith("compress") for line in lines)
    assert "wall time" in lines[5]
    text = "\n".join(lines)
    assert "pictures 5/6 s (5 frames 196x112), sound 4/6 s" in text
    assert "pictures 100 -> 10, sound 50 -> 20 (20.0 % kept)" in text
    assert "host 1.00 GiB" in text
    assert "device" not in text
    assert "\x1b" not in text


def test_stage_table_of_several_answers_counts_shared_work_once():
    lines = render.stage_table([make_answer(), make_answer(prefill=0.7)], 4.0).splitlines()
    rows = {line.split("  ")[0]: line.split() for line in lines}
    assert rows["stage"] == ["stage", "Q1", "Q2", "all", "2", "share"]
    assert rows["decode pictures"][2:] == ["1.00", "25", "%"]
    assert rows["prefill"][1:] == ["0.50", "0.70", "1.20", "30", "%"]
    assert rows["other"][1:] == ["1.30", "32", "%"]
    assert rows["wall time"][2:] == ["4.00", "100", "%"]
    assert "Q5" in render.stage_table([make_answer()] * 8, 9.0)
    assert "Q6" not in render.stage_table([make_answer()] * 8, 9.0)


def test_answers_stream_to_stdout_and_questions_to_stderr(capsys):
    stream = render.AnswerStream(["one?", "two?", "three?"])
    for index, piece in [(0, ""), (0, " a"), (0, " \n"), (0, "b "), (0, "\n"), (1, "c")]:
        stream(index, piece)
    stream.finish([make_answer("a \nb"), make_answer("c"), make_answer("")])
    out, err = capsys.readouterr()
    assert out == "a \nb\nc\n\n"
    assert err.splitlines() == ["[1/3] one?", "[2/3] two?", "[3/3] three?"]


def test_a_single_question_is_not_repeated(capsys):
    stream = render.AnswerStream(["one?"])
    stream(0, "a")
    stream.finish([make_answer("a")])
    assert capsys.readouterr() == ("a\n", "")


def test_control_characters_do_not_reach_a_terminal(capsys):
    screen = Terminal()
    render.write_text("a\x1b[31mb\n\u202ec", screen)
    assert screen.getvalue() == "a\ufffd[31mb\n\ufffdc"
    render.write_text("a\x1b[31mb")
    assert capsys.readouterr().out == "a\x1b[31mb"


def test_json_is_one_line_in_any_encoding(monkeypatch):
    for encoding in ("utf-8", "ascii", "latin-1"):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
        render.print_json({"answer": "ü 語 \udc80\nx"})
        sys.stdout.flush()
        (line,) = raw.getvalue().decode(encoding).splitlines()
        assert json.loads(line) == {"answer": "ü 語 \udc80\nx"}
        monkeypatch.undo()


@pytest.mark.parametrize("enabled", [None, False])
def test_no_progress_without_a_terminal(capsys, enabled):
    with render.ProgressDisplay(enabled) as progress:
        progress("decode_video", 1.0, 2.0)
    assert capsys.readouterr() == ("", "")


def test_progress_on_a_terminal_shows_rate_and_vanishes(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    with render.ProgressDisplay() as progress:
        for second in range(0, 61, 20):
            progress("decode_video", second, 60)
        progress("prefill", 2048, 4096)
        progress("generate", 1, 2)
        progress._bars.refresh()
        progress.pause()
        progress("prefill", 4096, 4096)
    text = screen.getvalue()
    assert "decode pictures" in text
    assert "60 / 60 s" in text
    assert "2,048 / 4,096 tokens" in text
    assert "generate" not in text
    assert "\x1b[3" not in text.replace("\x1b[3J", "")  # cursor movements only, no colours


def test_bars_do_not_wipe_out_an_answer(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with render.ProgressDisplay() as progress:
        stream = render.AnswerStream(["one?", "two?"], progress)
        progress("prefill", 1, 2)
        stream(0, "red")
        progress("prefill", 1, 2)
        stream(1, "blue")
        stream.finish([make_answer("red"), make_answer("blue")])
    text = screen.getvalue()
    assert "red\n" in text
    assert text.endswith("blue\n")
    assert text.index("red\n") < text.rindex("prefill") < text.index("blue\n")


def test_no_progress_on_a_dumb_terminal(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "dumb")
    with render.ProgressDisplay() as progress:
        progress("decode_video", 1, 2)
    assert screen.getvalue() == ""
