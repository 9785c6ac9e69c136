"""What memory this machine has free and which CUDA its driver runs, without importing torch.

Knows nothing of what shall fit.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


def host_memory() -> tuple[int | None, int | None]:
    """Return (free, total) bytes of host memory, the limit of a container included; None where it cannot be told."""
    fields = {}
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            key, _, rest = line.partition(":")
            fields[key] = int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return None, None
    free, total = fields.get("MemAvailable"), fields.get("MemTotal")
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text()) - _cached_files(group / "memory.stat")
    except (OSError, ValueError):  # no container, another kind of one, or "max"
        return free, total
    left = max(0, limit - used)
    return (left if free is None else min(free, left)), (limit if total is None else min(total, limit))


def _cached_files(file: Path) -> int:
    """Return the bytes that a container holds of files only to have them at hand; they are given up when needed."""
    fields = dict(line.split() for line in file.read_text().splitlines())
    return int(fields.get("inactive_file", 0)) + int(fields.get("active_file", 0))


@dataclass(frozen=True)
class Device:
    """A graphics card: its number, name, free and total bytes."""

    index: int
    name: str
    free_bytes: int
    total_bytes: int


def devices() -> list[Device]:
    """Return the graphics cards that torch could use, as the driver's own tool tells of them; none where it is missing.

    A torch that was built without CUDA uses none.
    """
    try:
        if "+cpu" in importlib.metadata.version("torch"):
            return []
    except importlib.metadata.PackageNotFoundError:
        return []
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.free,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
        found = [(r[0], r[1], Device(i, r[2], int(r[3]) << 20, int(r[4]) << 20)) for i, r in enumerate(rows)]
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [device for *_, device in found]
    chosen: list[Device] = []
    for wanted in (part.strip() for part in visible.split(",")):
        match = next((d for number, uuid, d in found if wanted and (wanted == number or uuid.startswith(wanted))), None)
        if match is None:  # as the driver does: what follows an unknown one is not seen either
            break
        chosen.append(Device(len(chosen), match.name, match.free_bytes, match.total_bytes))
    return chosen


def driver_cuda() -> tuple[int, int] | None:
    """Return the newest CUDA version that the NVIDIA driver runs; None where there is no driver."""
    version = ctypes.c_int()
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return version.value // 1000, version.value % 1000 // 10
