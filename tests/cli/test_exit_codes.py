"""Every way a run can end has its exit code and one line on stderr."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from omnicli import errors
from omnicli.cli import answering
from omnicli.cli.main import is_out_of_memory
from tests.conftest import ROOT
from tests.support.waiting import PATIENCE_S


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (errors.UsageError("no"), 2, "omni: no"),
        (errors.MediaError("film.mp4: broken"), 3, "omni: film.mp4: broken"),
        (errors.MemoryLimitError("too long"), 4, "omni: too long"),
        (errors.ModelError("missing"), 5, "omni: missing"),
        (errors.ConfigError(["one", "two"]), 6, "omni: one; two"),
        (errors.OmniError("two\nlines"), 1, "omni: two lines"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 4, "--max-frames"),
        (MemoryError(), 4, "media.max_pixels"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate"), 4, "omni presets list"),
        (RuntimeError("boom\nbang"), 1, "RuntimeError: boom bang; run with -v for the traceback"),
        (KeyError(), 1, "KeyError"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, BaseException) else "",
)
def test_errors(omni, film, monkeypatch, error, code, words):
    def fail(*_):
        raise error

    monkeypatch.setattr(answering, "prepare", fail)
    result = omni("ask", film, "why?")
    assert result.code == code
    assert words in result.error_line()


def test_verbose_shows_the_traceback(omni, film, monkeypatch):
    def fail(*_):
        raise RuntimeError("boom")

    monkeypatch.setattr(answering, "prepare", fail)
    result = omni("ask", film, "why?", "-v")
    assert result.code == 1
    assert "Traceback" in result.err
    assert "run with -v" not in result.err
    assert result.err.splitlines()[-1] == "omni: internal error: RuntimeError: boom"


def test_a_broken_pipe_inside_a_command_is_quiet(omni, film, monkeypatch):
    def fail(*_):
        raise BrokenPipeError

    monkeypatch.setattr(answering, "prepare", fail)
    result = omni("ask", film, "why?")
    assert (result.code, result.out, result.err) == (141, "", "")


def test_a_reader_that_goes_away_is_no_error_message():
    process = subprocess.Popen(
        [sys.executable, "-m", "omnicli.cli.main", "ask", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(PATIENCE_S) == 141
    assert err == b""


def test_ctrl_c_ends_with_130(film):
    script = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started us with it ignored\n"
        "from omnicli.cli.main import main\n"
        "class Waiting:\n"
        "    def read(self):\n"
        "        print('reading', file=sys.stderr, flush=True)\n"
        "        time.sleep(3600)\n"
        "sys.stdin = Waiting()\n"
        "main(sys.argv[1:])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, "ask", str(film), "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "reading\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert (out, err) == ("", "omni: interrupted\n")


def test_an_ordinary_error_is_no_lack_of_memory():
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator"))
