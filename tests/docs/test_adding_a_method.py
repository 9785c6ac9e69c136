"""The page for newcomers: its code keeps the contract and its commands run, in the tree and from another package."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest

from omnicli import testing
from omnicli.compress import methods
from omnicli.config import config, registry
from omnicli.errors import ConfigError
from omnicli.testing import methods as contract
from tests.conftest import ROOT
from tests.support import films

PAGE = (ROOT / "docs" / "extending" / "adding-a-method.md").read_text(encoding="utf-8")


def code(language: str) -> list[str]:
    """Return the page's blocks of one language, without the indentation of a list."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", PAGE, re.S | re.M)
    return [re.sub(rf"^{indent}", "", text, flags=re.M) for indent, text in found]


METHOD, PROBLEMS, TEST, PRUNING = code("python")
COMMANDS = [shlex.split(line[2:])[1:] for block in code("console") for line in block.splitlines()]


def loaded(file: Path, text: str):
    """Write a module and import it from its file."""
    file.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = sys.modules[file.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Return a folder to work in, with the page's preset and a film; modules of it are forgotten afterwards."""
    before = set(sys.modules)
    films.write(tmp_path / "film.mp4", 2.0)
    (tmp_path / "echo-10.yaml").write_text(code("yaml")[0], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name in ("echo", "glance") or name.startswith(methods.__name__):
            del sys.modules[name]


@pytest.fixture
def ready(tiny_model):
    """Return a function that adds to a command of the page, where it asks, a model that every machine has."""
    more = ["--model", str(tiny_model), "--device", "cpu", "--max-new-tokens", "2", "--fps", "0.5"]
    return lambda arguments: [*arguments, *more] if arguments[0] == "ask" else arguments


def test_a_file_in_the_folder_is_a_method(place, monkeypatch, omni, ready):
    folder = place / "methods"
    folder.mkdir()
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(folder)])
    (folder / "echo.py").write_text(METHOD + "\n" + PROBLEMS, encoding="utf-8")
    echo = registry.methods()["echo"]
    assert echo.name == "echo" and testing.of_method(echo) == []
    with pytest.raises(ConfigError, match=r"echo\.length: must not be negative"):
        config.load_config("full", ["method=echo", "echo.length=-1"])
    out = []
    for arguments in COMMANDS:
        done = omni(*ready(arguments), *(["--json"] if arguments[0] == "ask" else []))
        assert done.code == 0, (arguments, done.err)
        out.append(done.out)
    assert "echo.length" in out[0] and '"length": 0.5' in out[1] and '"length": 0.0' in out[3]


@pytest.fixture
def package(place):
    """Return a folder that, once on the path, is the page's package, installed."""
    (place / "echo.py").write_text(METHOD, encoding="utf-8")
    points = re.search(r'^\[project\.entry-points\."(omnicli\.methods)"\]\n(\w+) = "([\w:]+)"$', code("toml")[0], re.M)
    made = place / "omni_echo-0.1.dist-info"
    made.mkdir()
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: omni-echo\nVersion: 0.1\n", encoding="utf-8")
    (made / "entry_points.txt").write_text(f"[{points[1]}]\n{points[2]} = {points[3]}\n", encoding="utf-8")
    return place


def outside(package, arguments, omni_process):
    """Run a command of the page in a process that has the package on its path; return what it prints."""
    absolute = [str(package / a) if a in ("film.mp4", "echo-10.yaml") else a for a in arguments]
    done = omni_process(*absolute, PYTHONPATH=str(package))
    assert done.code == 0, (arguments, done.err)
    return done.out


def test_a_package_of_ones_own_offers_it(package, omni_process):
    shown = outside(package, COMMANDS[0], omni_process)
    assert "Keep the tokens that point where the question points" in shown and "echo.length" in shown
    outside(package, COMMANDS[2], omni_process)


@pytest.mark.slow
def test_a_package_of_ones_own_answers(package, omni_process, ready):
    answered = outside(package, [*ready(COMMANDS[1]), "--json"], omni_process)
    assert '"length": 0.5' in answered


def test_the_pages_test_passes_and_its_pruning_method_keeps_the_contract(place):
    loaded(place / "echo.py", METHOD)
    loaded(place / "test_echo.py", TEST).test_the_contract_is_kept()
    assert testing.of_method(loaded(place / "glance.py", PRUNING).Glance) == []


def test_an_entry_point_under_another_name_is_told(place, monkeypatch):
    echo = loaded(place / "echo.py", METHOD).Echo
    point = importlib.metadata.EntryPoint("reply", "echo:Echo", registry.METHOD_GROUP)
    monkeypatch.setattr(contract, "entry_points", lambda group: [point] if group == registry.METHOD_GROUP else [])
    assert testing.of_method(echo, [contract.name]) == [
        'name: the entry point is called reply, the class echo; write `name: ClassVar[str] = "reply"` into it'
    ]
