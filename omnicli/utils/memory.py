"""Peaks of memory since a moment, and telling that memory ran out. Knows nothing of what is measured."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from omnicli.errors import ConfigError, MemoryLimitError

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_RESET_PEAK = "5"  # Documentation/filesystems/proc.rst: sets the peak resident size to the present one


@dataclass(frozen=True)
class Peaks:
    """Largest bytes: resident in the process, and given out by the device's allocator (None on a CPU)."""

    host_bytes: int
    device_bytes: int | None


def reset(*devices: torch.device) -> None:
    """Begin anew: `peaks` tells of what comes. Where the system cannot, the host's peak is the process's so far.

    What was freed is given back to the system, or it would count for what comes; getting it again takes that some time.
    """
    free(devices[0])
    for device in devices if devices[0].type == "cuda" else ():
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    if _CLEAR.exists():
        with contextlib.suppress(OSError):
            _CLEAR.write_text(_RESET_PEAK)


def peaks(*devices: torch.device) -> Peaks:
    """Return the peaks since `reset`."""
    so_far = process_peaks(*devices)
    return Peaks(_resident_peak() or so_far["host_bytes"] or 0, so_far["device_bytes"])


def _resident_peak() -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def free(device: torch.device) -> None:
    """Give back to the system what an earlier run left behind."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc has it
        ctypes.CDLL(None).malloc_trim(0)
    if device.type == "cuda":
        torch.cuda.empty_cache()


def failure(error: Exception) -> tuple[str, int] | None:
    """Return one line and the exit code of what one variant may die of while the others go on; None: anything else.

    Memory that ran out on either side, a prompt too long, and settings that do not fit the model (`ConfigError`).
    """
    line = " ".join(str(error).split())
    if isinstance(error, (MemoryLimitError, ConfigError)):
        return line, error.exit_code
    on_host = isinstance(error, MemoryError) or "DefaultCPUAllocator" in line
    on_device = isinstance(error, torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "out of memory" in line.lower()  # the driver's own, or a library's
    )
    if on_host or on_device:
        where = "on the host" if on_host else "on the device"
        detail = line.split(". ")[0][:160]
        return f"out of memory {where}" + (f" ({detail})" if detail else ""), MemoryLimitError.exit_code
    return None


def process_peaks(*devices: torch.device) -> dict[str, int | None]:
    """Return the peaks in bytes so far: of the process, and of the devices' allocators, added up."""
    unit = 1 if sys.platform == "darwin" else 1024
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    cuda = [device for device in devices if device.type == "cuda"]
    on_device = sum(map(torch.cuda.max_memory_allocated, cuda)) if cuda else None
    return {"host_bytes": host, "device_bytes": on_device}
