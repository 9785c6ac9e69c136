"""`omni doctor`: every check stands alone, each bad pair is found, and each problem comes with its remedy."""

from __future__ import annotations

import json
import subprocess
import sys

from omnicli.cli.commands import doctor as room
from omnicli.doctor import software
from tests.support import schema

GIB = 1 << 30


def found(omni):
    """Run the command and return its checks by name."""
    value = json.loads(omni("doctor", "--json").out)
    return {c["name"]: c for c in value["checks"]}


# ---- the report ----


def test_the_report_follows_its_schema(omni):
    run = omni("doctor", "--json")
    value = json.loads(run.out)
    assert schema.problems(value, schema.DOCTOR, "doctor") == []
    assert run.code == (0 if value["usable"] else 1)
    for check in value["checks"]:
        assert schema.problems(check, schema.DOCTOR_CHECK, check["name"]) == []
        assert check["status"] in ("ok", "remark", "problem") and (check["status"] == "ok") == (check["remedy"] == "")
        assert "\n" not in check["found"] + check["remedy"]
    assert [c["name"] for c in value["checks"]] == [
        "versions",
        "pairs",
        "torch pair",
        "codecs",
        "processor",
        "memory",
        "gpu",
        "kernels",
        "video decoder",
        "pocket model",
        "models",
        "methods",
        "model families",
        "commands",
        "presets",
        "config file",
        "hub cache",
        "cache",
    ]
    (models,) = [c for c in value["checks"] if c["details"] is not None]
    for model in models["details"]:
        assert schema.problems(model, schema.DOCTOR_MODEL, model["name"]) == []
        assert [f["seconds"] for f in model["films"]] == [600, 3600]
        assert all(schema.problems(f, schema.DOCTOR_FILM, model["name"]) == [] for f in model["films"])
    text = omni("doctor").out
    assert "usable" in text and all(c["name"] in text for c in value["checks"])
    assert all(model["name"] in text for model in models["details"])


def test_a_remedy_is_shown_and_the_exit_code_says_so(omni, monkeypatch, tmp_path):
    monkeypatch.setattr(room, "POCKET_FOLDER", tmp_path)
    monkeypatch.setenv("OMNI_CONFIG", str(tmp_path / "none.yaml"))
    run = omni("doctor")
    assert run.code == 1
    assert "omni train pocket" in run.out and "none.yaml" in run.out and "not usable" in run.out


def test_a_check_that_breaks_breaks_no_other(omni, monkeypatch):
    def nothing_works():
        raise RuntimeError("broken\nbadly")

    monkeypatch.setattr(software, "CHECKS", (nothing_works, software.versions))
    value = json.loads(omni("doctor", "--json").out)
    first, second = value["checks"][:2]
    assert (first["name"], first["status"], first["found"]) == (
        "nothing works",
        "problem",
        "RuntimeError: broken badly",
    )
    assert second["name"] == "versions" and len(value["checks"]) == 2 + len(room.checks()) - 2


def test_describing_checks_imports_no_torch():
    code = "import sys; from omnicli.cli.commands import doctor; doctor.checks(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- places ----


def test_places_are_told_with_their_room(omni, tmp_path, monkeypatch):
    monkeypatch.setenv("OMNI_CACHE_DIR", str(tmp_path / "not" / "yet"))
    checks = found(omni)
    assert checks["cache"]["status"] == "ok" and str(tmp_path / "not" / "yet") in checks["cache"]["found"]
    assert "free on its disk" in checks["cache"]["found"] and "free on its disk" in checks["hub cache"]["found"]
    assert not (tmp_path / "not").exists(), "looking makes no folders"


def test_a_cache_folder_that_cannot_be_written_is_a_remark(omni, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("OMNI_CACHE_DIR", str(tmp_path / "file" / "cache"))
    check = found(omni)["cache"]
    assert check["status"] == "remark"
    assert "cannot be written" in check["found"] and "OMNI_CACHE_DIR" in check["remedy"]


def test_a_full_disk_is_a_remark(monkeypatch, tmp_path):
    usage = type("Usage", (), {"free": 10**9})
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: usage)
    check = room._place("cache", tmp_path, "x", "OMNI_CACHE_DIR")
    assert check.status == "remark" and "1.0 GB free" in check.found and "little room" in check.remedy
