"""Nothing but `omni models pull` uses the network: attempts are refused and written down, in child processes too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

REFUSING = '''
"""Loaded by every Python process of the test before anything else."""
import os, socket

def refuse(name, real):
    def call(*args, **kwargs):
        if args and isinstance(args[0], socket.socket) and args[0].family == socket.AF_UNIX:
            return real(*args, **kwargs)  # between processes of this machine
        with open(os.environ["NETWORK_LOG"], "a") as log:
            log.write(f"{name} {args[-1:]}\\n")
        raise OSError(f"{name}: there is no network in this test")
    return call

for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, refuse(name, getattr(socket.socket, name)))
for name in ("create_connection", "getaddrinfo", "gethostbyname"):
    setattr(socket, name, refuse(name, getattr(socket, name)))
'''

DRIVER = """
import json, sys
from omnicli.cli.main import run
print(json.dumps([run(line) for line in json.load(open(sys.argv[1]))]), file=open(sys.argv[2], "w"))
"""


@pytest.fixture
def cut_off(tmp_path):
    """Return a function that runs command lines in a process without a network: exit codes, attempts, stderr."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(REFUSING)
    log = tmp_path / "attempts"

    def call(*lines):
        log.write_text("")
        (tmp_path / "lines").write_text(json.dumps([[str(a) for a in line] for line in lines]))
        paths = [str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "NETWORK_LOG": str(log), "OMP_NUM_THREADS": "1"}
        env |= {"HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(tmp_path / "hub")}
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, tmp_path / "lines", tmp_path / "codes"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=env,
            timeout=500,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stderr
        return json.loads((tmp_path / "codes").read_text()), log.read_text(), done.stderr

    return call


def test_a_plan_and_a_missing_model_ask_no_network(cut_off, film, tiny_model):
    codes, attempts, err = cut_off(("plan", film, "--model", tiny_model), ("models", "info", "some/model"))
    assert (codes, attempts) == ([0, 5], ""), err


@pytest.mark.slow
def test_nothing_asks_the_network(cut_off, film, tiny_model, tmp_path):
    short = ("--max-frames", "4", "--max-new-tokens", "2")
    lines = [
        ("ask", film, "why?", "--model", tiny_model, *short),
        ("ask", film, "why?", "--model", "pocket", *short),
        ("batch", film, "-q", "why?", "--model", tiny_model, "-o", tmp_path / "answers.jsonl", *short),
        ("report", tmp_path / "answers.jsonl", "-o", tmp_path / "answers.html"),
        ("probe", film),
        ("plan", film, "--model", tiny_model),
        ("models", "list"),
        ("models", "info", "pocket"),
        ("models", "verify", "pocket"),
        ("models", "verify", tiny_model),
        ("presets", "list"),
        ("presets", "validate", "avoc"),
        ("methods",),
        ("cache", "info"),
        ("cache", "verify"),
    ]
    absent = [
        ("models", "info", "some/model"),
        ("models", "verify", "some/model@v1"),
        ("ask", film, "why?", "--model", "some/model"),
        ("ask", film, "why?", "--model", "qwen2.5-omni-3b"),
    ]
    codes, attempts, err = cut_off(*lines, *absent, ("doctor",), ("plan", film, "--model", "qwen2.5-omni-7b"))
    assert attempts == ""
    assert codes[: len(lines)] == [0] * len(lines), err
    assert codes[len(lines) : -2] == [5] * len(absent), err
    assert codes[-2] in (0, 1) and codes[-1] in (0, 4), err  # whether the machine is able


def test_an_attempt_is_seen(cut_off):
    codes, attempts, err = cut_off(("models", "pull", "some/model"))
    assert codes == [5] and "cannot be reached" in err
    assert "getaddrinfo" in attempts or "connect" in attempts


def test_the_network_is_named_in_one_module():
    """Whatever could fetch something is in `omnicli/models/weights/hub.py`; all else says ``local_files_only``."""
    for file in sorted(Path(ROOT, "omnicli").rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if file.name != "hub.py":
            assert "snapshot_download(" not in text and "http_get" not in text and "HfApi" not in text, file
        assert text.count(".from_pretrained(") <= text.count("local_files_only=True"), file
