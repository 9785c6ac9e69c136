"""`omni models pull`: against a small hub on this machine, through huggingface_hub's own code, in its own process."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import ROOT
from tests.support import hub, tiny
from tests.support.waiting import PATIENCE_S, wait_until

NAME = "some/tiny"
CHUNK = 10 * 2**20
"""Bytes that huggingface_hub writes at once."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a checkpoint's files as on the hub: a thinker, a talker of 24 MB, and what is never read."""
    folder = tiny.build(tmp_path_factory.mktemp("hub") / "tiny", full=True)
    weights = load_file(folder / "model.safetensors")
    weights["talker.model.large.weight"] = torch.rand(6000, 1000, generator=torch.Generator().manual_seed(0))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    found = {file.name: file.read_bytes() for file in folder.iterdir()}
    return {
        **found,
        "README.md": b"# tiny",
        "spk_dict.pt": b"pickle",
        "modeling_x.py": b"raise SystemExit(9)",
        "assets/more.json": b"{}",
    }


@pytest.fixture
def server(files):
    with hub.Hub() as running:
        running.repos[NAME] = hub.Repo({"main": files})
        yield running


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "hub-cache"


@pytest.fixture
def env(server, cache, tmp_path):
    return {
        "HF_ENDPOINT": server.url,
        "HF_HUB_CACHE": str(cache),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "",
        "NO_PROXY": "127.0.0.1,localhost",
    }


@pytest.fixture
def there(omni, env, monkeypatch):
    """Return a function that runs a command in this process, where huggingface_hub uses what a new one would read."""
    from huggingface_hub import constants, utils

    def call(*argv, **more):
        settings = {**env, **more}
        with monkeypatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(name, value)
            site = settings["HF_ENDPOINT"]
            patch.setattr(constants, "ENDPOINT", site)
            patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", site + "/{repo_id}/resolve/{revision}/{filename}")
            patch.setattr(constants, "HF_HUB_CACHE", settings["HF_HUB_CACHE"])
            patch.setattr(constants, "HF_HUB_OFFLINE", settings["HF_HUB_OFFLINE"] == "1")
            with utils.disable_progress_bars():
                return omni(*argv)

    return call


@pytest.fixture
def pull(there):
    return lambda *argv, **more: there("models", "pull", *argv, **more)


def read(files):
    return {name for name in files if name.endswith((".json", ".jinja", ".txt", ".safetensors")) and "/" not in name}


def snapshot(cache, files):
    return cache / "models--some--tiny" / "snapshots" / hub.commit(files)


def test_what_is_read_is_fetched_and_found_without_the_hub(pull, there, omni_process, server, env, cache, files):
    result = omni_process("models", "pull", NAME, **env)
    assert (result.code, result.err) == (0, "")
    folder = snapshot(cache, files)
    assert result.out == f"{NAME}@{hub.commit(files)}\n{folder}\n"
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == {name: files[name] for name in read(files)}
    assert [s.range for s in server.weights_asked()] == [None]

    again = pull(NAME, "--json")
    assert json.loads(again.out)["fetched_bytes"] == 0 and again.err == ""
    assert len(server.weights_asked()) == 1

    asked = len(server.seen)
    told = json.loads(there("models", "info", f"{NAME}@{hub.commit(files)}", "--json").out)
    assert (told["revision"], told["weights"]) == (hub.commit(files), "complete")
    checked = there("models", "verify", NAME, "--json")
    assert checked.code == 0, checked.err
    found = json.loads(checked.out)
    assert (found["problems"], found["accounted"]) == ([], True)
    assert found["hashed"] == found["files"] == len(read(files))
    assert len(server.seen) == asked  # only pull asks the hub


@pytest.mark.slow
def test_a_connection_that_breaks_is_taken_up_again(pull, server, cache, files):
    server.drops = [CHUNK + 1000]
    result = pull(NAME)
    assert result.code == 0, result.err
    assert [s.range for s in server.weights_asked()] == [None, f"bytes={CHUNK}-"]
    assert (snapshot(cache, files) / "model.safetensors").read_bytes() == files["model.safetensors"]


@pytest.mark.slow
def test_an_interrupted_pull_goes_on_where_it_stopped(pull, there, server, env, cache, files):
    server.stall = CHUNK + 1000
    script = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started us with it ignored\n"
        "from omnicli.cli.main import main\n"
        "main(sys.argv[1:])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, "models", "pull", NAME],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **env},
    )
    halves = "models--*/blobs/*.incomplete"

    def begun() -> bool:
        sizes = []
        for half in cache.glob(halves):
            with contextlib.suppress(FileNotFoundError):  # whole by now, and renamed
                sizes.append(half.stat().st_size)
        return any(sizes)

    wait_until(lambda: process.poll() is not None or begun(), "nothing comes")
    assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out, err) == (130, "", "omni: interrupted\n")

    half = there("models", "info", NAME)
    assert half.code == 5
    assert f"only partly in the local hub cache; go on with: omni models pull {NAME}" in half.error_line()

    server.stall = None
    assert pull(NAME).code == 0
    assert server.weights_asked()[-1].range == f"bytes={CHUNK}-"
    assert (snapshot(cache, files) / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert not list(cache.glob("models--*/blobs/*.incomplete"))


@pytest.mark.slow
def test_a_hub_that_knows_no_ranges_is_read_from_the_start(pull, server, cache, files):
    server.drops, server.ranges = [CHUNK + 1000], False
    assert pull(NAME).code == 0
    assert [s.range for s in server.weights_asked()] == [None, f"bytes={CHUNK}-"]
    assert (snapshot(cache, files) / "model.safetensors").read_bytes() == files["model.safetensors"]


def test_what_is_left_of_another_file_is_thrown_away(pull, cache, files):
    blobs = cache / "models--some--tiny" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / (hub.sha(files["model.safetensors"]) + ".incomplete")).write_bytes(b"other bytes than those")
    result = pull(NAME)
    assert result.code == 5 and "came damaged" in result.error_line()
    assert pull(NAME).code == 0


def test_damaged_content_is_told_and_not_kept(pull, server, cache, files):
    whole = files["model.safetensors"]
    server.repos[NAME].served = {"model.safetensors": whole[:-1] + b"x"}
    result = pull(NAME)
    assert result.code == 5 and "model.safetensors came damaged" in result.error_line()
    assert not list(cache.glob("models--*/blobs/" + hub.sha(whole) + "*"))


def test_gated(pull, server, cache, files):
    server.repos[NAME].token = "right"
    line = pull(NAME)
    assert line.code == 5
    assert f"is gated: ask for access at {server.url}/{NAME}, then log in with: hf auth login" in line.error_line()
    line = pull(NAME, HF_TOKEN="wrong")
    assert line.code == 5 and line.error_line().endswith(f"ask for access at {server.url}/{NAME}")
    assert not server.weights_asked()

    assert pull(NAME, HF_TOKEN="right").code == 0
    (asked,) = server.weights_asked()
    assert (asked.host, asked.token) == ("localhost", None)  # the token stays with the hub


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("some/none", "some/none is not on http"),
        (f"{NAME}@v9", f"{NAME} has no revision 'v9'"),
        ("some/llama", "model type 'llama' is not supported"),
        ("some/pickles", "holds no safetensors"),
        ("some/nothing", "holds no config.json"),
        ("some/large", "needs 10000000.0 GB more"),
        ("some/vl", "model type 'qwen2_5_vl' is not supported"),
    ],
)
def test_what_cannot_be_fetched(pull, server, files, name, words):
    server.repos["some/llama"] = hub.Repo({"main": {**files, "config.json": b'{"model_type": "llama"}'}})
    server.repos["some/vl"] = hub.Repo({"main": {**files, "config.json": b'{"model_type": "qwen2_5_vl"}'}})
    server.repos["some/pickles"] = hub.Repo({"main": {"config.json": b"{}", "pytorch_model.bin": b"x"}})
    server.repos["some/nothing"] = hub.Repo({"main": {"model.safetensors": b"x"}})
    server.repos["some/large"] = hub.Repo({"main": files}, sizes={"model.safetensors": 10**16})
    result = pull(name)
    assert result.code == 5
    assert words in result.error_line()
    assert not server.weights_asked()  # before anything large is fetched


def test_no_hub(pull, server):
    for more, words in (
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "http://127.0.0.1:9 cannot be reached"),
        ({"HF_ENDPOINT": "nonsense"}, "cannot be reached"),
    ):
        result = pull(NAME, **more)
        assert result.code == 5 and words in result.error_line()
    server.broken = True
    result = pull(NAME)
    assert result.code == 5 and "answered 500" in result.error_line()


def test_a_disk_that_runs_full_and_a_folder_that_may_not_be_written():
    from omnicli.errors import ModelError
    from omnicli.models.weights.hub import _told

    for error, words in (
        (OSError(errno.ENOSPC, "No space left on device"), "is full; make room and pull again to go on"),
        (PermissionError(errno.EACCES, "Permission denied", "/hub/blobs"), "some/tiny: /hub/blobs: Permission denied"),
    ):
        with pytest.raises(ModelError, match=re.escape(words)), _told(NAME, None):
            raise error


def test_names_that_are_no_models(pull):
    for argv, code, words in (
        (("qwen25-omni-7b",), 5, "did you mean qwen2.5-omni-7b"),
        (("pocket",), 5, "pocket model is a part of omni"),
        (("./some",), 2, "is a path"),
        (("a/b@",), 5, "no revision behind the @"),
        (("a b/c",), 5, "is no hub id"),
        ((f"{NAME}@a", "--revision", "b"), 2, "contradict"),
    ):
        result = pull(*argv)
        assert result.code == code and words in result.error_line(), argv


@pytest.mark.slow
def test_a_revision_is_pinned(pull, there, server, cache, files):
    older = {**files, "generation_config.json": b'{"eos_token_id": 1}'}
    server.repos[NAME].revisions["v1"] = older
    assert hub.commit(older) in pull(NAME, "--revision", "v1").out
    absent = there("models", "info", NAME)
    assert absent.code == 5 and "is not in the local hub cache" in absent.error_line()
    assert hub.commit(files) in pull(NAME).out
    assert len(server.weights_asked()) == 1  # the same weights in both
    for name, expected in ((NAME, files), (f"{NAME}@v1", older), (f"{NAME}@{hub.commit(older)}", older)):
        told = json.loads(there("models", "info", name, "--json").out)
        assert told["revision"] == hub.commit(expected)


@pytest.mark.slow
def test_progress_on_a_terminal_only(server, env):
    shown = {}
    for flags in ((), ("--quiet",)):
        ours, theirs = pty.openpty()
        done = threading.Event()
        text: list[bytes] = []
        watcher = threading.Thread(target=_drain, args=(ours, text, done))
        watcher.start()
        code = subprocess.run(
            [sys.executable, "-m", "omnicli.cli.main", "models", "pull", NAME, *flags],
            stdout=subprocess.PIPE,
            stderr=theirs,
            cwd=ROOT,
            env={**os.environ, **env, "TERM": "xterm"},
            check=False,
        ).returncode
        os.close(theirs)
        watcher.join(PATIENCE_S)
        os.close(ours)
        assert code == 0
        shown[flags] = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(text).decode())
    assert "fetching" in shown[()] and "MB" in shown[()]
    assert shown[("--quiet",)] == ""


def _drain(descriptor, text, done):
    try:
        while block := os.read(descriptor, 4096):
            text.append(block)
    except OSError:  # the other end is closed
        done.set()
