"""Predicted peak memory against what a process takes that asks about three minutes of film."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from omnicli.config.config import load_config
from omnicli.media.probe import probe
from omnicli.planning import plan as planning
from tests.support import tiny

RUN = """
import json, sys
from pathlib import Path
import torch
from omnicli import pipeline
from omnicli.models import registry
from omnicli.config.config import load_config
from omnicli.models.loading import load_model
from omnicli.utils import memory
list(registry.families().values())
if sys.argv[4] == "int4":
    from omnicli.models.weights import quantize
    quantize._bitsandbytes()  # counted with the libraries
device = torch.device("cpu")
config = load_config(sys.argv[2])
memory.reset(device)
lines = Path("/proc/self/status").read_text().splitlines()
base = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))
model = load_model(sys.argv[3], "cpu", quantize=sys.argv[4])
answer = pipeline.ask(sys.argv[1], ["Who speaks last?"], config, model)[0]
print(json.dumps({"peak": memory.peaks(device).host_bytes - base, "tokens": answer.tokens}))
"""


MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(4 << 20), "MALLOC_TRIM_THRESHOLD_": str(4 << 20)}
"""What is freed goes back to the system. Otherwise glibc keeps blocks of up to 32 MB, and how many of them depends on
which thread was ahead of which: on how busy the machine is."""


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    from omnicli.train.films import write_film
    from omnicli.train.world import make_film

    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_film(make_film(77, 180), path, fps=4.0)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "preset", "quantize"),
    [
        ("pocket", "full", "none"),
        ("pocket", "avoc", "none"),
        ("pocket", "full", "int8"),
        ("pocket", "avoc", "int4"),
        ("tiny", "full", "none"),
        ("tiny", "seats-10", "int8"),
    ],
)
def test_peak_memory_of_three_minutes(film, tmp_path, model, preset, quantize):
    least = 0.85 if model == "pocket" else 0.75
    model = str(tiny.build(tmp_path / "tiny")) if model == "tiny" else model
    settings = dataclasses.replace(load_config(preset, [f"quantize={quantize}"]), model=model, device="cpu")
    plan = planning.make_plan(probe(film), settings)
    command = [sys.executable, "-c", RUN, str(film), preset, model, quantize]
    done = json.loads(
        subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | MALLOC).stdout
    )
    assert [done["tokens"][m]["kept"] for m in ("video", "audio")] == list(plan.kept)
    assert least * plan.above_libraries < done["peak"] < 1.15 * plan.above_libraries
