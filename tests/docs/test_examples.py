"""Every example of README, guide and help is run as it stands, in a folder that holds what it names: short films.

Command lines run in this process; pipes, redirections and the few other programs in them are real. What needs weights,
a network, a cluster or a graphics card is not run, but its options have to exist.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from omnicli.cli.main import app, run
from omnicli.models import loading
from tests.docs import pages
from tests.support import films

NOT_RUN = {
    r"\bpip install\b": "installs packages",
    r"\bmodels pull\b": "needs a network",
    r"\bmodels verify qwen|@COMMIT\b": "needs released weights",
    r"--ray\b": "needs a cluster",
    r"\bcuda:|--offload\b": "needs graphics cards",
    r"\btrain pocket\b": "trains for hours",
}
"""What is in an example that is not run, and why."""

SLOW = ("demo", "bench", "needle")
"""Commands that take seconds on the shortest film."""

INSTEAD = {"10:00": "1", "12:30": "4", "30:00": "5", "full=600": "full=8"}
"""Times in a film of an hour, and what they are in one of six seconds."""

MORE = {
    "batch": ("--no-isolate",),
    "demo": ("--minutes", "0.5"),
    "bench": ("--repeat", "1", "--warmup", "1", "--max-new-tokens", "2"),
    "needle": ("--needles", "1", "--durations", "8", "--depths", "0.5"),
}
"""Options that are added to a command to shorten it; of two, the last one counts."""

SMALL = ("--layers", "1", "--scale", "0.05", "--duration", "12")
"""The same where random weights are measured."""

CODES = {"plan": (0, 4), "doctor": (0, 1)}
"""Exit codes of commands whose verdict is about the machine; those of all others are 0."""

QUESTIONS = "media,question,choices\nfilms/first.mp4,Who speaks?,red|green\nfilms/night/second.mp4,Who speaks last?,\n"
SUBTITLES = "1\n00:00:01,000 --> 00:00:02,000\nWe agree.\n"


class Stage(NamedTuple):
    """One program of a pipeline: its words, and the files that its stdin and stdout are."""

    words: list[str]
    stdin: str | None
    stdout: str | None


def pipeline(line: str) -> list[Stage]:
    """Return the programs of a command line as a shell reads it: quotes, ``|``, ``<``, ``>``, comments, variables."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|<>")
    lexer.whitespace_split = True
    stages: list[Stage] = []
    words: list[str] = []
    files: dict[str, str] = {}
    into = ""
    for token in [*lexer, "|"]:
        if token == "|":
            stages.append(Stage(words, files.get("<"), files.get(">")))
            words, files = [], {}
        elif token in ("<", ">"):
            into = token
        elif into:
            files[into], into = token, ""
        elif words or not re.match(r"[A-Z_]+=", token):
            words.append("omni" if token == ".venv/bin/omni" else token)
    return stages


def test_lines_are_read_as_a_shell_reads_them():
    assert pipeline("""A=1 omni ask f.mp4 'a | b' -q "c > d" < in.txt | jq -r '.a | .b' > out.txt  # e | f""") == [
        Stage(["omni", "ask", "f.mp4", "a | b", "-q", "c > d"], "in.txt", None),
        Stage(["jq", "-r", ".a | .b"], None, "out.txt"),
    ]


def commands(command, path=("omni",)) -> dict[tuple[str, ...], Any]:
    """Return a command and all below it, by the words that call them."""
    found = {path: command}
    for name, child in getattr(command, "commands", {}).items():
        found |= commands(child, (*path, name))
    return found


KNOWN = commands(typer.main.get_command(app))


def lines(text: str) -> list[str]:
    """Return the command lines of a block; one that ends with a backslash goes on."""
    joined = [line.strip() for line in text.replace("\\\n", " ").splitlines()]
    return [line for line in joined if line and not line.startswith("#")]


def cases() -> list:
    """Return each command line once, called by the place where it stands first."""
    shell = [block for page in pages.guide() for block in pages.blocks(page) if block.language == "sh"]
    found = [(block.page, line) for block in shell for line in lines(block.text)]
    for path, command in KNOWN.items():
        block = command.epilog.split("Examples:\n", 1)[1].split("\n\n")[0]
        found += [(f"{' '.join(path)} --help", line) for line in lines(block)]
    first: dict[str, tuple[str, str]] = {}
    for place, line in found:
        first.setdefault(shlex.join(shlex.split(line, comments=True)), (place, line))
    slow = {key for key, (_, line) in first.items() if {stage.words[1] for stage in pipeline(line)} & {*SLOW}}
    slow |= {key for key, (place, _) in list(first.items())[::2] if not place.startswith("README")}
    return [
        pytest.param(line, id=f"{place}: {key}", marks=[pytest.mark.slow] if key in slow else [])
        for key, (place, line) in first.items()
    ]


@pytest.fixture(scope="module", autouse=True)
def _once():
    """Load each model and build the parser once for all examples: that takes longer than a film of six seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load_model", functools.cache(loading.load_model))
        patch.setattr(typer.main, "get_command", functools.cache(typer.main.get_command))
        yield


@pytest.fixture(scope="module")
def shelf(tmp_path_factory, tiny_model) -> Iterator[Path]:
    """Yield a folder with everything that examples name."""
    here = tmp_path_factory.mktemp("examples")
    for folder in ("films/night", "archive/1999"):
        (here / folder).mkdir(parents=True)
    film = films.write(here / "film.mp4")
    for copy in ("films/first.mp4", "archive/1999/third.mkv"):
        shutil.copy(film, here / copy)
    films.write(here / "films" / "night" / "second.mp4", 2)
    films.write(here / "haystack.mp4", 9)
    (here / "my-checkpoint").symlink_to(tiny_model)
    (here / "subtitles.srt").write_text(SUBTITLES)
    (here / "questions.txt").write_text("Who speaks first?\nWho speaks last?\n")
    (here / "questions.csv").write_text(QUESTIONS)
    (here / "mine.yaml").write_text("method: avoc\nparams: {tokens: 64}\n")
    short = ["--model", str(tiny_model), "--set", "generate.max_new_tokens=2"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()):
        assert run(["ask", str(film), "Who speaks last?", *short, "--evidence", "--no-cache", "--json"]) == 0
        rows = ["-o", str(here / "answers.jsonl"), "--no-isolate"]
        assert run(["batch", str(film), "-q", "Who speaks last?", *short, *rows]) == 0
    for name in ("answers.json", "avoc.json", "seats.json", "full.json"):
        (here / name).write_text(out.getvalue())
    gc.freeze()  # a batch collects after each film, which need not look at all that pytest holds
    yield here
    gc.unfreeze()


@pytest.fixture
def desk(shelf, tmp_path, monkeypatch) -> Path:
    """Be in a copy of that folder."""
    here = tmp_path / "desk"
    shutil.copytree(shelf, here, symlinks=True)
    monkeypatch.chdir(here)
    return here


@pytest.mark.parametrize("line", cases())
def test_examples_run(line, omni, desk):
    stages = pipeline(line)
    for stage in stages:
        if stage.words[0] == "omni":
            assert unknown_options(stage.words) == []
    for pattern, reason in NOT_RUN.items():
        if re.search(pattern, line):
            pytest.skip(reason)
    text = ""
    for stage in stages:
        given = Path(stage.stdin).read_text() if stage.stdin else text
        text = answer(stage.words, given, omni) if stage.words[0] == "omni" else other(stage.words, given)
        if stage.stdout:
            Path(stage.stdout).write_text(text)
            assert text


def answer(words: list[str], given: str, omni) -> str:
    """Run one of omni's commands, shortened; return its stdout."""
    result = omni(*shortened(words), stdin=given)
    assert result.code in CODES.get(words[1], (0,)), result.err
    assert "Traceback" not in result.err
    return result.out


def shortened(words: list[str]) -> list[str]:
    """Return a command's arguments for short films, with random weights in place of released ones."""
    name, *rest = words[1:]
    out = [INSTEAD.get(word, word) for word in rest]
    if name == "needle":
        out = ["haystack.mp4" if word == "film.mp4" else word for word in out]
    if name != "plan":
        out = [
            "my-checkpoint" if before in ("--model", "-m") and word.startswith(("qwen", "minicpm")) else word
            for before, word in zip(["", *out], out, strict=False)
        ]
    return [name, *out, *MORE.get(name, ()), *(SMALL if "--dummy-weights" in out else ())]


def other(words: list[str], given: str) -> str:
    """Run another program; return its stdout."""
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not on this machine")
    return subprocess.run(words, input=given, capture_output=True, text=True, check=True).stdout


def unknown_options(words: list[str]) -> list[str]:
    """Return the options in a command line that the command does not have."""
    path = tuple(words[: 1 if words[1].startswith("-") else 3 if tuple(words[:3]) in KNOWN else 2])
    assert path in KNOWN, f"no such command: {' '.join(path)}"
    names = {name for param in KNOWN[path].params for name in (*param.opts, *param.secondary_opts)}
    return [word for word in words if re.match(r"--?[a-zA-Z0]", word) and word not in names]


def test_options_that_do_not_exist_are_seen():
    assert unknown_options(["omni", "ask", "film.mp4", "why?", "--presett", "avoc"]) == ["--presett"]
    with pytest.raises(AssertionError, match="no such command"):
        unknown_options(["omni", "fetch", "pocket"])


PYTHON = [block for page in pages.guide() for block in pages.blocks(page) if block.language == "python"]


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"{block.page}:{block.line}")
def test_python_examples_run(block, desk, capsys):
    exec(compile(block.text, block.page, "exec"), {"__name__": "example"})
    assert capsys.readouterr().out


def test_the_readme_says_how_it_goes_from_python():
    (block,) = [block for block in PYTHON if block.page == "README.md"]
    assert len([line for line in block.text.splitlines() if line.strip()]) <= 6
