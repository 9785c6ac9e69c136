"""What `import omnicli` gives: everything at its first use, nothing before; six lines of Python that answer."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
import textwrap

import pytest

import omnicli
from omnicli.errors import OmniError
from tests.conftest import ROOT
from tests.support import films

NAMES = ["ask", "load_model", "load_config", "methods", "Compressor", "Selection", "MediaTokens", "Answer"]
HEAVY = ["torch", "transformers", "numpy", "yaml", "av", "typer", "rich", "PIL", "safetensors", "huggingface_hub"]
LIMIT_S = 0.1


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return done.stdout.strip()


def cpu_s(code: str) -> float:
    """Return the CPU seconds of a Python process, its start included."""
    before = os.times()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_importing_the_package_imports_none_of_what_is_heavy():
    code = "import sys; before = set(sys.modules); import omnicli; print(*sorted(set(sys.modules) - before))"
    got = python(code).split()
    assert not {name.partition(".")[0] for name in got} & set(HEAVY)
    assert [name for name in got if name.startswith("omnicli")] == ["omnicli", "omnicli.version"]


def test_importing_the_package_takes_a_tenth_of_a_second_of_cpu():
    taken = []
    while len(taken) < 20 and min(taken, default=1.0) > LIMIT_S:  # the least: beside others a core does less a second
        taken.append(cpu_s("import omnicli"))
    assert min(taken) <= LIMIT_S


def test_the_door_names_what_it_gives(monkeypatch):
    assert set(omnicli.__all__) == {*NAMES, "__version__"} and set(omnicli.__all__) <= set(dir(omnicli))
    for name in NAMES:
        value = getattr(omnicli, name)
        assert value.__module__.startswith("omnicli.") and value.__name__ == name
        assert inspect.getdoc(value), name
    with pytest.raises(AttributeError, match="no attribute 'asks'"):
        omnicli.asks  # noqa: B018


def test_type_checkers_and_the_door_take_each_name_from_the_same_module():
    tree = ast.parse((ROOT / "omnicli" / "__init__.py").read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    imported = {name.name: node.module for node in checked.body for name in node.names}
    assert imported == omnicli._HOMES and set(imported) == set(NAMES)


def test_settings_and_methods_need_no_torch():
    code = "import sys, omnicli; omnicli.load_config('avoc'); len(omnicli.methods()); print('torch' in sys.modules)"
    assert python(code) == "False"


def example() -> str:
    """Return the lines of the package's own example."""
    lines = [line for line in omnicli.__doc__.splitlines() if line.startswith("    ")]
    return textwrap.dedent("\n".join(lines))


def test_six_lines_answer(tmp_path, monkeypatch, capsys):
    films.write(tmp_path / "film.mp4", 3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("omnicli.answer.evidence._OF_MEAN", 0.0)  # in three seconds nothing stands out
    assert len(example().splitlines()) == 6
    names: dict = {}
    exec(example(), names)
    answer, answers = names["answer"], names["answers"]
    assert isinstance(answer, omnicli.Answer)
    assert [a.question for a in answers] == ["What is shown?", "Who speaks last?"]
    assert capsys.readouterr().out == f"{answer.answer} {answer.evidence}\n"
    assert answer.preset == "auto" and answer.model["name"] == "pocket" and answer.evidence
    assert (
        answers[0].config["media"]["fps"] == 2 and answers[0].tokens["video"]["kept"] > answer.tokens["video"]["kept"]
    )


def test_names_stand_for_what_they_name(tmp_path):
    film = films.write(tmp_path / "film.mp4", 2)
    short = {"preset": "mine", "method": "full", "generate": {"max_new_tokens": 1}}
    by_name = omnicli.ask(film, "why?", short, "pocket")
    made = omnicli.ask(film, ["why?"], omnicli.load_config(short), omnicli.load_model("pocket"))
    assert (by_name.answer, by_name.id, by_name.preset) == (made[0].answer, made[0].id, "mine")
    assert by_name.stages["load"] > made[0].stages["load"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("nofilm.mp4", "Who?"), "nofilm.mp4: no such file"),
        ((__file__, [1]), "a question is text, not 1"),
        ((__file__, (q for q in ["Who?", None])), "a question is text, not None"),
        ((__file__, "Who?", None), "a preset is a name, a YAML file or a mapping, not None"),
        ((__file__, "Who?", "no-such-preset"), "no preset called 'no-such-preset'"),
    ],
)
def test_what_is_wrong_is_told_before_a_model_is_loaded(arguments, error, monkeypatch):
    monkeypatch.setattr("omnicli.pipeline.load_configured", lambda config: pytest.fail("a model is loaded"))
    with pytest.raises(OmniError, match=re.escape(error)):
        omnicli.ask(*arguments)


def test_a_configuration_is_loaded_as_it_is_and_changed_by_settings():
    config = omnicli.load_config("avoc", ["media.fps=2"])
    assert omnicli.load_config(config) is config
    changed = omnicli.load_config(config, ["avoc.tokens=2048"])
    assert (changed.media.fps, changed.compressor.tokens, changed.preset) == (2, 2048, "avoc")
    with pytest.raises(OmniError, match="settings are a list of texts"):
        omnicli.load_config("avoc", "media.fps=2")
    assert "avoc" in repr(omnicli.methods())
