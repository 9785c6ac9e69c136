"""Checks of the machine: processor, memory, graphics cards, and which kernels really run on them."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from omnicli.doctor.check import Check, result
from omnicli.planning import machine

if TYPE_CHECKING:
    import torch

LOW_MEMORY = 3 * 2**30
"""Less than this much free host memory (bytes) is worth a word: an hour of film needs about two GiB with pocket."""
VIDEO_CODECS = ("h264", "hevc", "vp9", "av1", "vp8", "mpeg4", "mpeg2video")


def processor() -> Check:
    """Tell how many CPUs may be used."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return result("processor", f"{usable} CPUs ({platform.machine()})")


def memory() -> Check:
    """Tell how much host memory is free."""
    free, total = machine.host_memory()
    if free is None:
        return result("memory", "unknown on this system")
    found = f"{free / 2**30:.1f} GiB free" + (f" of {total / 2**30:.1f} GiB" if total else "")
    remedy = "little memory is free: close other programs, or use --max-frames" if free < LOW_MEMORY else ""
    return result("memory", found, remedy)


def gpu() -> Check:
    """Tell which graphics cards torch uses, and why none if there is one."""
    import torch

    driver = machine.driver_cuda()
    known = "" if driver is None else f"; driver up to CUDA {driver[0]}.{driver[1]}"
    if torch.cuda.is_available():
        parts = []
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            major, minor = torch.cuda.get_device_capability(index)
            parts.append(
                f"cuda:{index} {torch.cuda.get_device_name(index)} (capability {major}.{minor}), "
                f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
            )
        return result("gpu", "; ".join(parts) + known)
    if torch.version.cuda is None:
        remedy = "install a torch built for CUDA to use the card: see https://pytorch.org/get-started" if driver else ""
        return result("gpu", "none in use: torch is built without CUDA" + known, remedy)
    remedy = "torch cannot use the driver's cards: see CUDA_VISIBLE_DEVICES, nvidia-smi and pairs" if driver else ""
    return result("gpu", "none in use: torch is built for CUDA, no device is found" + known, remedy)


def kernels() -> Check:
    """Try attention and expert kernels on the device and in the number format that ``auto`` chooses."""
    from omnicli.models.loading import resolve_device, resolve_dtype

    device = resolve_device("auto")
    dtype = resolve_dtype("auto", device)
    ran = [name for name, call in _kernels(device, dtype).items() if _runs(call)]
    found = f"{device.type} in {str(dtype).removeprefix('torch.')}: {', '.join(ran) or 'none'}"
    remedy = ""
    if "math" not in ran:
        remedy = "torch has no kernels for this device: install a build that has, see https://pytorch.org/get-started"
    elif device.type == "cuda" and not _bfloat16():
        remedy = "this card has no bfloat16 arithmetic: use --dtype float16"
    elif not {"flash attention", "memory-efficient attention"} & set(ran):
        remedy = "attention holds whole maps, which takes memory: use smaller budgets (--set METHOD.tokens=N)"
    elif "grouped products" not in ran:
        remedy = "models with experts (qwen3-omni-30b) run slowly: install a newer torch"
    return result("kernels", found, remedy, problem="math" not in ran)


def _kernels(device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Return small calls that only run where a kernel does, by its name."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    def attend(backend: SDPBackend) -> object:
        x = torch.zeros(1, 2, 16, 64, device=device, dtype=dtype)
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(x, x, x, is_causal=True).sum().item()

    def group() -> object:
        rows = torch.zeros(16, 16, device=device, dtype=torch.bfloat16)
        weights = torch.zeros(2, 16, 16, device=device, dtype=torch.bfloat16)
        ends = torch.tensor([8, 16], device=device, dtype=torch.int32)
        return torch.nn.functional.grouped_mm(rows, weights, offs=ends).sum().item()

    return {
        "flash attention": lambda: attend(SDPBackend.FLASH_ATTENTION),
        "memory-efficient attention": lambda: attend(SDPBackend.EFFICIENT_ATTENTION),
        "cuDNN attention": lambda: attend(SDPBackend.CUDNN_ATTENTION),
        "math": lambda: attend(SDPBackend.MATH),
        "grouped products": group,
    }


def _runs(call: Callable[[], object]) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch gives its reasons for refusing as warnings
        try:
            call()
        except (RuntimeError, AttributeError):  # no such kernel here; no such function in this torch
            return False
    return True


def _bfloat16() -> bool:
    import torch

    return torch.cuda.is_bf16_supported(including_emulation=False)


def video_decoder() -> Check:
    """Tell what a graphics card decodes (NVDEC), through the hardware acceleration of PyAV's FFmpeg."""
    from av.codec.hwaccel import hwdevices_available

    from omnicli.media.container import nvdec

    built = ", ".join(hwdevices_available()) or "none"
    if machine.driver_cuda() is None:
        return result("video decoder", f"software (hardware that PyAV is built for: {built})")
    able = [codec for codec in VIDEO_CODECS if nvdec(codec)]
    if able:
        return result("video decoder", f"NVDEC: {', '.join(able)}; others in software")
    remedy = "decoding takes CPU time: in a container, let the driver's video part in (NVIDIA_DRIVER_CAPABILITIES=all)"
    return result("video decoder", f"software; the card decodes nothing (PyAV is built for: {built})", remedy)


CHECKS = (processor, memory, gpu, kernels, video_decoder)
