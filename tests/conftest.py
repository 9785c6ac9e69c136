"""What the tests of the command line share: a runner, a tiny random model, small films."""

from __future__ import annotations

import gc
import io
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import films

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    def error_line(self) -> str:
        """Return the one line of a failed run, after checking that there is only one and nothing on stdout."""
        assert "Traceback" not in self.err
        assert self.out == ""
        lines = [line for line in self.err.splitlines() if not line.startswith("omni: pocket is")]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("omni: ")
        return lines[0]


@pytest.fixture(autouse=True, scope="module")
def _settled_heap() -> None:
    """Take what is there by now, libraries above all, out of garbage collections: they are half of what a run takes."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _nobody_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the machine's own configuration and cache out of the tests."""
    for name in [n for n in os.environ if n.startswith("OMNI_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nobody"))
    monkeypatch.setenv("OMNI_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def omni(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Return a function that runs one command line in this process."""
    from omnicli.cli.main import run

    def call(*argv: object, stdin: str | bytes = "") -> Result:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        capsys.readouterr()
        code = run([str(a) for a in argv])
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return call


@pytest.fixture
def omni_process() -> Callable[..., Result]:
    """Return a function that runs one command line in a process of its own."""

    def call(*argv: object, stdin: str = "", **env: str) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "omnicli.cli.main", *map(str, argv)],
            input=stdin,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **env},
            timeout=300,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny Qwen2.5-Omni with random weights."""
    from tests.support import tiny

    return tiny.build(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def film_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of small films, good and bad ones; `films.GOOD` and `films.BAD` name them."""
    folder = tmp_path_factory.mktemp("films")
    films.write_all(folder)
    return folder


@pytest.fixture
def film(film_folder: Path) -> Path:
    """Return a good film of six seconds with pictures and sound."""
    return film_folder / "film.mp4"
