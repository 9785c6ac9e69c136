"""Commands by folder: what is in it is there, and a file that is no command hurts no other."""

from __future__ import annotations

import json

import pytest
import typer

from omnicli.cli import commands, registry


@pytest.fixture
def stray(monkeypatch, tmp_path):
    """Return a function that puts a file into the folder of commands, for the length of a test."""
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    return lambda name, text: (tmp_path / f"{name}.py").write_text(text)


def names(app):
    """Return the names in the order of the help."""
    command = typer.main.get_command(app)
    return command.list_commands(typer.Context(command))


def test_commands_come_in_their_own_order():
    app = typer.Typer()
    assert registry.add_all(app) == []
    assert names(app)[:3] == ["ask", "chat", "batch"] and set(names(app)[3:]) > {"doctor", "models"}


def test_files_that_are_no_commands_are_told_of_by_doctor_alone(stray, omni, monkeypatch):
    before = typer.Typer()
    registry.add_all(before)
    stray("stray_syntax", "def register(:")
    stray("stray_import", "import no_such_module")
    stray("stray_empty", "")
    stray("stray_order", "PLACE = 'first'\ndef register(app): ...")
    stray("stray_breaks", "PLACE = 5\ndef register(app): raise RuntimeError('two\\nlines')")
    stray("stray_good", "PLACE = 5\ndef register(app): app.command('mine')(lambda: None)")
    app = typer.Typer()
    problems = registry.add_all(app)
    assert names(app) == ["mine", *names(before)]
    told = ("breaks", "empty", "import", "order", "syntax")
    assert sorted(p.split()[0] for p in problems) == [f"omnicli/cli/commands/stray_{name}.py" for name in told]
    assert all("\n" not in p and " is no command (" in p for p in problems)

    from omnicli.cli.commands import doctor

    monkeypatch.setattr(doctor, "checks", lambda: [doctor.commands])
    value = json.loads(omni("doctor", "--json").out)
    (check,) = value["checks"]
    assert value["usable"] and check["status"] == "remark" and "not affected" in check["remedy"]
    assert all(f"stray_{name}.py" in check["found"] for name in told)
    assert omni("presets", "show", "avoc").err == ""
