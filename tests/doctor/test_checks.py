"""The checks of `omni doctor` one by one: each bad pair is found, and each problem comes with its remedy."""

from __future__ import annotations

import importlib.metadata
import re

import pytest

from omnicli.config.config import load_config
from omnicli.doctor import hardware, pairs, software
from omnicli.doctor import models as survey
from omnicli.doctor.check import Check, guarded, result
from omnicli.planning import machine
from omnicli.planning import plan as planning
from tests.conftest import ROOT

GIB = 1 << 30


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


# ---- libraries ----


def test_missing_packages_are_named(installed):
    installed(rich=None, pillow=None)
    check = software.versions()
    assert check.status == "problem" and check.remedy.endswith("pip install rich pillow")


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
def test_every_bad_pair_is_found_with_its_remedy(installed, monkeypatch, change, driver, what, remedy):
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


def test_a_result_is_ok_exactly_without_a_remedy():
    assert result("a", "b") == Check("a", "ok", "b")
    assert result("a", "b", "c").status == "remark" and result("a", "b", "c", problem=True).status == "problem"
