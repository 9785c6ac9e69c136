"""Help: quick, without torch, with examples for every command; usage errors; the version; completion."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import typer

from omnicli.cli.main import app
from omnicli.version import __version__

COMMANDS = (
    "ask",
    "chat",
    "batch",
    "report",
    "probe",
    "plan",
    "presets",
    "methods",
    "models",
    "demo",
    "train",
    "cache",
    "doctor",
)
HEAVY = ("torch", "transformers", "av", "numpy", "rich", "yaml", "PIL")


def all_commands() -> list[tuple[str, ...]]:
    out: list[tuple[str, ...]] = []

    def walk(command, path):
        out.append(path)
        for name, child in getattr(command, "commands", {}).items():
            walk(child, (*path, name))

    walk(typer.main.get_command(app), ())
    return out


def test_every_command_of_this_release_is_there():
    paths = set(all_commands())
    assert {(name,) for name in COMMANDS} <= paths
    assert {("presets", "list"), ("presets", "show"), ("presets", "validate")} <= paths
    assert {("models", "list"), ("models", "info"), ("train", "pocket")} <= paths


@pytest.mark.parametrize("path", all_commands(), ids=" ".join)
def test_help_ends_with_examples(omni, path):
    result = omni(*path, "--help")
    assert result.code == 0
    assert result.err == ""
    assert "\x1b" not in result.out
    tail = result.out.split("Examples:", 1)[1]
    assert f"omni {' '.join(path)}".strip() in tail


def test_no_help_imports_a_heavy_library():
    script = (
        "import sys, io, contextlib\n"
        "from omnicli.cli.main import run\n"
        f"for path in {all_commands()!r}:\n"
        "    with contextlib.redirect_stdout(io.StringIO()):\n"
        "        assert run([*path, '--help']) == 0\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_help_imports_little():
    """Modules are counted, not seconds: those are the machine's. 0.2 s of CPU on the slowest one tried."""
    script = "import sys; from omnicli.cli.main import run; run(['--help']); print(len(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stderr) < 420


def test_version(omni):
    result = omni("--version")
    assert (result.code, result.out) == (0, f"omni {__version__}\n")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["akk"], ["'ask'"]),
        (["ask", "film.mp4", "why?", "--presett", "avoc"], ["--presett", "--preset"]),
        (["ask"], ["MEDIA"]),
        (["ask", "film.mp4"], ["question"]),
        (["ask", "film.mp4", ""], ["empty"]),
        (["ask", "film.mp4", "-"], ["stdin"]),
        (["ask", "film.mp4", "-", "-q", "-"], ["stdin"]),
        (["ask", "film.mp4", "why?", "--fps", "many"], ["--fps"]),
        (["ask", "film.mp4", "why?", "--start", "1:99"], ["1:99"]),
        (["ask", "film.mp4", "why?", "--start", "10", "--end", "5"], ["--end"]),
        (["ask", "film.mp4", "why?", "--audio", "loud"], ["loud"]),
        (["chat"], ["MEDIA"]),
        (["chat", "film.mp4", "--start", "10", "--end", "5"], ["--end"]),
        (["demo", "--minutes", "0"], ["minutes"]),
        (["models", "info"], ["NAME"]),
        (["train", "pocket", "--stage", "picture"], ["pictures"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_usage_errors_are_one_line(omni, argv, words):
    result = omni(*argv)
    assert result.code == 2
    line = result.error_line()
    for word in words:
        assert word in line


def test_no_arguments_show_the_help_on_stderr(omni):
    result = omni()
    assert result.code == 2
    assert result.out == ""
    assert "Commands:" in result.err


def test_completion_offers_the_commands():
    env = {**os.environ, "_OMNI_COMPLETE": "complete_bash", "COMP_WORDS": "omni pr", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "omnicli.cli.main"], capture_output=True, text=True, env=env, check=False
    )
    assert done.stdout.split() == ["probe", "presets"]
