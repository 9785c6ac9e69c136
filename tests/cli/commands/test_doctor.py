"""`omni doctor`: every check stands alone, each bad pair is found, and each problem comes with its remedy."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys

import pytest

from omnicli.cli.commands import doctor as room
from omnicli.config.config import load_config
from omnicli.doctor import hardware, pairs, software
from omnicli.doctor import models as survey
from omnicli.doctor.check import Check, guarded, result
from omnicli.planning import machine
from omnicli.planning import plan as planning
from tests.conftest import ROOT
from tests.support import schema

GIB = 1 << 30


def found(omni):
    """Run the command and return its checks by name."""
    value = json.loads(omni("doctor", "--json").out)
    return {c["name"]: c for c in value["checks"]}


@pytest.fixture
def installed(monkeypatch):
    """Return a function that changes the versions that packages say they have; None: not installed."""
    real = importlib.metadata.version

    def change(**versions):
        def version(name):
            if name not in versions:
                return real(name)
            if versions[name] is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(importlib.metadata, "version", version)

    return change


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


# ---- libraries ----


def test_missing_packages_are_named(omni, installed):
    installed(rich=None, pillow=None)
    check = found(omni)["versions"]
    assert check["status"] == "problem" and check["remedy"].endswith("pip install rich pillow")


GOOD = {"torch": "2.12.1+cu130", "torchaudio": "2.11.0+cu130", "transformers": "5.23.4", "av": "18.1.0", "numpy": "2.4"}


def test_what_is_allowed_is_no_bad_pair(installed, monkeypatch):
    monkeypatch.setattr(machine, "driver_cuda", lambda: (13, 0))
    installed(**GOOD)
    assert pairs.bad() == []
    installed(**(GOOD | {"torch": "2.11.0+cpu", "torchaudio": "2.11.0"}))
    assert pairs.bad() == []
    installed(**dict.fromkeys(GOOD))
    assert pairs.bad() == []


@pytest.mark.parametrize(
    ("change", "driver", "what", "remedy"),
    [
        ({"transformers": "5.24.0"}, None, "transformers is not 5.23.x", "transformers>=5.23,<5.24"),
        ({"transformers": "5.3.0"}, None, "transformers is not 5.23.x", "transformers>=5.23,<5.24"),
        ({"av": "17.0.1"}, None, "av is not 18.x", "av>=18,<19"),
        ({"av": "19.0.0rc1"}, None, "av is not 18.x", "av>=18,<19"),
        ({"torch": "2.13.0+cu130"}, None, "not built for torch 2.13", "torch>=2.11,<2.13"),
        ({"torchaudio": "2.11.0+cu126"}, None, "different CUDA", "both from the same index"),
        ({"torch": "2.2.2", "torchaudio": "2.2.2"}, None, "numpy 1", "numpy<2"),
        ({"torch": "2.10.0"}, None, "older than 2.11", "torch>=2.11"),
        ({}, (12, 8), "newer CUDA than the graphics card's driver", "update the driver"),
    ],
)
def test_every_bad_pair_is_found_with_its_remedy(omni, installed, monkeypatch, change, driver, what, remedy):
    monkeypatch.setattr(machine, "driver_cuda", lambda: driver)
    installed(**(GOOD | change))
    check = guarded(software.pairs)
    assert check.status == "problem" and what in check.found and remedy in check.remedy


def test_the_table_is_complete_and_follows_the_pins_of_the_package():
    text = (ROOT / "pyproject.toml").read_text()
    core = text[text.index("dependencies = [") : text.index("[project.optional-dependencies]")]
    needed = re.findall(r'^    "([a-z]+)>=([\d.]+),<([\d.]+)",$', core, re.M)
    assert {"av", "torch", "transformers"} <= {name for name, *_ in needed}

    class Fixed(pairs.Installed):
        def __init__(self, **versions):
            self.versions = versions

        def of(self, package):
            return self.versions.get(package, "")

    for name, low, high in needed:
        inside = {n: v for n, v, _ in needed}
        assert pairs.bad(Fixed(**inside)) == []
        if name != "torchaudio":  # told by its relation to torch
            assert pairs.bad(Fixed(**(inside | {name: high}))), f"{name} {high} is not in the table"
            below = f"{int(low.split('.')[0]) - 1}.0"
            assert pairs.bad(Fixed(**(inside | {name: below}))), f"{name} {below} is not in the table"


def test_torch_that_was_built_for_another_cuda_than_torchaudio(monkeypatch):
    def refuse(name):
        raise RuntimeError("Detected that PyTorch and TorchAudio were compiled with different CUDA versions.")

    monkeypatch.setattr(software.importlib, "import_module", refuse)
    check = software.torch_pair()
    assert (
        check.status == "problem" and "different CUDA versions" in check.found and "--force-reinstall" in check.remedy
    )


# ---- machine ----


def test_little_memory_is_a_remark(monkeypatch):
    monkeypatch.setattr(machine, "host_memory", lambda: (GIB, 16 * GIB))
    check = hardware.memory()
    assert check.status == "remark" and "1.0 GiB free of 16.0 GiB" in check.found


def test_a_card_that_torch_does_not_use_is_told(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "driver_cuda", lambda: (12, 4))
    for cuda, remedy in ((None, "built for CUDA"), ("13.0", "cannot use the driver's cards")):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        check = hardware.gpu()
        assert check.status == "remark" and remedy in check.remedy and "driver up to CUDA 12.4" in check.found
    monkeypatch.setattr(machine, "driver_cuda", lambda: None)
    assert hardware.gpu().status == "ok"


def test_kernels_are_tried(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check = hardware.kernels()
    assert check.found.startswith("cpu in float32: ") and "math" in check.found and "cuDNN" not in check.found

    def broken(*args, **kwargs):
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", broken)
    check = hardware.kernels()
    assert check.status == "problem" and "no kernels for this device" in check.remedy
    assert check.found == "cpu in float32: grouped products"


def test_a_card_that_decodes_nothing_is_a_remark(monkeypatch):
    from omnicli.media import container

    assert hardware.video_decoder().status == "ok" or machine.driver_cuda()
    monkeypatch.setattr(machine, "driver_cuda", lambda: (13, 0))
    monkeypatch.setattr(container, "nvdec", lambda codec: False)
    assert "NVIDIA_DRIVER_CAPABILITIES" in hardware.video_decoder().remedy
    monkeypatch.setattr(container, "nvdec", lambda codec: codec == "hevc")
    assert hardware.video_decoder().found.startswith("NVDEC: hevc;")


# ---- models ----


@pytest.fixture
def card(monkeypatch):
    """Return a function that puts a card with so much memory into this machine."""

    def put(size):
        monkeypatch.setattr(machine, "devices", lambda: [machine.Device(0, "a card", size, size)])
        monkeypatch.setattr(machine, "host_memory", lambda: (64 * GIB, 64 * GIB))

    return put


def fits(rows):
    return {row["name"]: [film["fits"] for film in row["films"]] for row in rows}


def test_models_that_fit_follow_the_card(card):
    config = load_config("avoc")
    card(24 * GIB)
    rows = survey.survey(config)
    assert [row["name"] for row in rows][:1] == ["pocket"]
    small = fits(rows)
    assert small["pocket"] == [True, True] and small["qwen3-omni-30b"] == [False, False]
    assert small["qwen2.5-omni-7b"][0]
    assert rows[0]["weights"] == "here" and {row["weights"] for row in rows[1:]} <= {"here", "missing"}
    card(160 * GIB)
    assert fits(survey.survey(config))["qwen3-omni-30b"][0]


def test_the_survey_is_what_a_plan_says(card):
    import dataclasses

    card(24 * GIB)
    config = load_config("full")
    row = next(r for r in survey.survey(config) if r["name"] == "qwen2.5-omni-7b")
    plan = planning.make_plan(survey.film(3600), dataclasses.replace(config, model="qwen2.5-omni-7b"))
    assert plan.media.frames == 3600 and plan.media.audio_s == 3600
    assert row["films"][1] == {
        "seconds": 3600,
        "fits": False,
        "host_bytes": plan.host,
        "device_bytes": plan.device,
        "problems": list(plan.problems),
    }
    assert "context" in row["films"][1]["problems"][0]


def test_no_room_for_anything_is_a_remark(monkeypatch):
    monkeypatch.setattr(machine, "devices", list)
    monkeypatch.setattr(machine, "host_memory", lambda: (GIB // 4, GIB))
    check = survey.models(load_config("avoc"))
    assert check.status == "remark" and "usable now: none" in check.found and check.details


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


def test_a_result_is_ok_exactly_without_a_remedy():
    assert result("a", "b") == Check("a", "ok", "b")
    assert result("a", "b", "c").status == "remark" and result("a", "b", "c", problem=True).status == "problem"
