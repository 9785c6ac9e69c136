"""Manifests: what each line asks for, and that every wrong line is told of with its number."""

from __future__ import annotations

import json
import os

import pytest

from omnicli.batch.choices import chosen, with_choices
from omnicli.batch.items import Wanted
from omnicli.batch.manifest import read_manifest
from omnicli.errors import UsageError


def read(path, text, questions=()):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_manifest(path, questions)


def test_jsonl(tmp_path):
    lines = [
        {"media": "a.mp4", "question": " why? ", "id": 7, "choices": ["x", "y"], "answer": "B"},
        {"media": "/abs/b.mp4", "question": "who?"},
        {"media": "sub/c\nd.mp4"},
        {"media": "a.mp4", "question": "why?", "id": "8", "choices": None},
    ]
    text = "\n\n".join(json.dumps(line) for line in lines)
    wanted, problems = read(tmp_path / "m.jsonl", text, ["one", "two"])
    folder = str(tmp_path)
    assert problems == []
    assert wanted == [
        Wanted(f"{folder}/a.mp4", "why?", "7", ("x", "y")),
        Wanted("/abs/b.mp4", "who?"),
        Wanted(f"{folder}/sub/c\nd.mp4", "one"),
        Wanted(f"{folder}/sub/c\nd.mp4", "two"),
        Wanted(f"{folder}/a.mp4", "why?", "8"),
    ]


def test_csv(tmp_path):
    text = '\ufeffmedia,question,id,choices\r\na.mp4,"why,\nwhen?",1,x | y\r\nb.mp4,,,\r\n\r\n"c ""d"".mp4",who?,,\r\n'
    wanted, problems = read(tmp_path / "m.csv", text, ["default"])
    assert problems == []
    assert [(os.path.basename(w.media), *vars(w).values())[::1][0] for w in wanted] == ["a.mp4", "b.mp4", 'c "d".mp4']
    assert [(w.question, w.name, w.choices) for w in wanted] == [
        ("why,\nwhen?", "1", ("x", "y")),
        ("default", None, ()),
        ("who?", None, ()),
    ]


def test_every_wrong_line_of_a_jsonl_is_told_of(tmp_path):
    good = '{"media": "a.mp4", "question": "why?", "id": "1"}'
    bad = {
        "{": "not valid JSON",
        "[1]": "not a JSON object",
        '{"question": "why?"}': "no media",
        '{"media": "", "question": "why?"}': "media must be",
        '{"media": 5, "question": "why?"}': "media must be",
        '{"media": "a\\u0000.mp4", "question": "why?"}': "media must be",
        '{"media": "a\\ud800.mp4", "question": "why?"}': "media must be",
        '{"media": "a.mp4"}': "no question",
        '{"media": "a.mp4", "question": " "}': "question must be",
        '{"media": "a.mp4", "question": 5}': "question must be",
        '{"media": "a.mp4", "qestion": "why?"}': "did you mean question?",
        '{"media": "a.mp4", "question": "why?", "id": "1"}': "line 1 too",
        '{"media": "a.mp4", "question": "why?", "id": [1]}': "id must be",
        '{"media": "a.mp4", "question": "why?", "choices": "x|y"}': "choices must be",
        '{"media": "a.mp4", "question": "why?", "choices": ["x"]}': "choices must be",
        '{"media": "a.mp4", "question": "why?", "choices": ["x", ""]}': "choices must be",
        json.dumps({"media": "a.mp4", "question": "why?", "choices": ["x"] * 27}): "choices must be",
        '{"media": "a.mp4", "question": "why?", "choises": ["x", "y"]}': "did you mean choices?",
    }
    path = tmp_path / "m.jsonl"
    wanted, problems = read(path, "\n".join([good, *bad]))
    assert len(wanted) == 1
    assert len(problems) == len(bad)
    for number, (problem, words) in enumerate(zip(problems, bad.values(), strict=True), 2):
        assert problem.startswith(f"{path}: line {number}: ") and words in problem, problem
        assert "\n" not in problem


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("media,question\na.mp4,why?,more\n", ["line 2: 3 cells, but the head has 2"]),
        ("film,question\na.mp4,why?\n", ["line 1: the first line must name the columns"]),
        ('media,question\n"a\nb.mp4",\nc.mp4,why?\nd.mp4,\n', ["line 2: no question", "line 5: no question"]),
        ('media,question\na.mp4,why?\n"b.mp4,why?\n', ["line 3: not valid CSV"]),
        ("media,question,choices\na.mp4,why?,x\n", ["line 2: choices must be"]),
    ],
)
def test_wrong_lines_of_a_csv(tmp_path, text, words):
    _, problems = read(tmp_path / "m.csv", text)
    assert len(problems) == len(words)
    assert all(w in p for w, p in zip(words, problems, strict=True)), problems


def test_bytes_that_are_not_utf_8(tmp_path):
    wanted, problems = read(tmp_path / "m.csv", b"media,question\ncaf\xe9.mp4,why?\na.mp4,caf\xe9?\n")
    assert [os.fsencode(w.media) for w in wanted] == [os.fsencode(tmp_path) + b"/caf\xe9.mp4"]
    assert len(problems) == 1 and "line 3: question must be text" in problems[0]


def test_files_that_are_no_manifest(tmp_path):
    for name, text, words in (("m.txt", "", "must end in"), ("m.csv", "", "no line"), ("m.jsonl", "\n", "no line")):
        with pytest.raises(UsageError, match=words):
            read(tmp_path / name, text)
    with pytest.raises(UsageError, match="No such file"):
        read_manifest(tmp_path / "none.csv", [])
    with pytest.raises(UsageError, match="directory"):
        (tmp_path / "d.csv").mkdir()
        read_manifest(tmp_path / "d.csv", [])


CHOICES = ("A dog", "A cat", "Nobody", "Both a dog and a cat")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        (" (B) ", "B"),
        ("B.", "B"),
        ("B: A cat", "B"),
        ("(C) Nobody", "C"),
        ("D)", "D"),
        ("The answer is B.", "B"),
        ("Answer: (C)", "C"),
        ("I would choose option A", "A"),
        ("nobody", "C"),
        ("There is a cat in it.", "B"),
        ("E", None),
        ("The answer is Z", None),
        ("The answer is A or the answer is B", None),
        ("a dog, a cat", None),
        ("A man walks by", None),
        ("Because", None),
        ("the answer is a lamp", None),
        ("", None),
    ],
)
def test_the_letter_of_an_answer(answer, letter):
    assert chosen(answer, CHOICES) == letter


def test_choices_are_listed_below_the_question():
    assert with_choices("Who?", CHOICES[:2]) == "Who?\nA. A dog\nB. A cat"
    assert with_choices("Who?", ()) == "Who?"
