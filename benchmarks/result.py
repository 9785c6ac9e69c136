"""How benchmarks tell what they measured: with date and machine, as JSON on stdout and, if wanted, in a file."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any


def machine(device: str = "cpu") -> dict[str, Any]:
    """Return what the numbers depend on. torch is asked only if it is loaded: to load it would take memory."""
    names = [""]
    if (known := Path("/proc/cpuinfo")).is_file():
        names = [line.partition(":")[2].strip() for line in known.read_text().splitlines() if "model name" in line]
    found: dict[str, Any] = {
        "processor": next(iter(names), "") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
    }
    if torch := sys.modules.get("torch"):
        found |= {"torch": torch.__version__, "threads_used": torch.get_num_threads()}
        if device.startswith("cuda"):
            found["gpu"] = torch.cuda.get_device_name(device)
    return found


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add the option that `tell` takes."""
    parser.add_argument("--out", type=Path, help="write the JSON here as well")


def tell(benchmark: str, found: dict[str, Any], out: Path | None, *, device: str = "cpu", quiet: bool = False) -> None:
    """Print what was found, and write it to ``out``; ``quiet``: only write it."""
    head = {"benchmark": benchmark, "date": datetime.date.today().isoformat(), "machine": machine(device)}
    text = json.dumps(head | found, indent=1)
    if not quiet:
        print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")
