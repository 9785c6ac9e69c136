"""``omni doctor``: is this machine able to answer, and if not, what to do. Each check stands alone and never raises."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from omnicli import __version__, machine, render
from omnicli.cli import defaults
from omnicli.cli import options as opt
from omnicli.cli.answering import POCKET_FOLDER
from omnicli.cli.cache import show_size
from omnicli.errors import OmniError

EXAMPLES = """\b
Examples:
  omni doctor
  omni doctor --json"""
PACKAGES = ("torch", "torchaudio", "transformers", "av", "numpy", "safetensors", "pyyaml", "rich", "typer", "pillow")
CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg2video", "aac", "mp3", "opus", "vorbis", "flac", "ac3")
LOW_MEMORY = 3 * 2**30
"""Less than this much free host memory (bytes) is worth a word: an hour of film needs about two GiB with pocket."""

Check = dict[str, Any]


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("doctor", epilog=EXAMPLES)(doctor)


def doctor(json_out: opt.JsonFlag = False, verbose: opt.VerboseFlag = False) -> None:
    """Check this installation; a remedy per problem.

    Exits with 0 if omni is usable (remarks do not count), with 1 if it is not.
    """
    checks = [_guarded(check) for check in CHECKS]
    usable = all(c["status"] != "problem" for c in checks)
    if json_out:
        render.print_json({"usable": usable, "checks": checks})
    else:
        print(render.table([("check", "status", "found"), *((c["name"], c["status"], c["found"]) for c in checks)]))
        for c in checks:
            if c["remedy"]:
                print(f"{c['name']}: {c['remedy']}")
        print("usable" if usable else "not usable as it is")
    if not usable:
        raise typer.Exit(1)


def _result(name: str, found: str, remedy: str = "", *, problem: bool = False) -> Check:
    """Return one check: no remedy is "ok", a remedy is a "remark" or, with ``problem``, a "problem"."""
    status = "problem" if problem else "remark" if remedy else "ok"
    return {"name": name, "status": status, "found": found, "remedy": remedy}


def _guarded(check: Callable[[], Check]) -> Check:
    """Run a check; one that fails itself is a problem, not a crash."""
    try:
        return check()
    except Exception as error:
        name = check.__name__.removeprefix("_check_").replace("_", " ")
        line = " ".join(str(error).split())[:200]
        remedy = "reinstall: pip install --force-reinstall omnicli"
        return _result(name, f"{type(error).__name__}: {line}", remedy, problem=True)


def _check_versions() -> Check:
    found, missing = [f"omni {__version__}", f"python {platform.python_version()}"], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    remedy = f"missing: {', '.join(missing)}; install: pip install {' '.join(missing)}" if missing else ""
    return _result("versions", ", ".join(found), remedy, problem=bool(missing))


def _check_torch_pair() -> Check:
    import torch

    cuda = torch.version.cuda or "no CUDA"
    versions = f"torch {torch.__version__} ({cuda}), torchaudio {importlib.metadata.version('torchaudio')}"
    try:
        importlib.import_module("torchaudio")
    except Exception as error:  # its import compares the CUDA versions that both were built for
        remedy = "install a pair built for the same CUDA: pip install --force-reinstall torch torchaudio"
        line = " ".join(str(error).split())[:160]
        return _result("torch pair", f"{versions}: {line}", remedy, problem=True)
    return _result("torch pair", versions)


def _check_codecs() -> Check:
    import av
    from av.codec import Codec

    missing = []
    for name in CODECS:
        try:
            Codec(name, "r")
        except ValueError:
            missing.append(name)
    here = ", ".join(name for name in CODECS if name not in missing)
    remedy = f"no decoder for {', '.join(missing)}; reinstall PyAV: pip install --force-reinstall av" if missing else ""
    needed = {"h264", "aac"} & set(missing)
    return _result("codecs", f"PyAV {av.__version__}: {here}", remedy, problem=bool(needed))


def _check_processor() -> Check:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return _result("processor", f"{usable} CPUs ({platform.machine()})")


def _check_memory() -> Check:
    free, total = machine.host_memory()
    if free is None:
        return _result("memory", "unknown on this system")
    found = f"{free / 2**30:.1f} GiB free" + (f" of {total / 2**30:.1f} GiB" if total else "")
    remedy = "little memory is free: close other programs, or use --max-frames" if free < LOW_MEMORY else ""
    return _result("memory", found, remedy)


def _check_gpu() -> Check:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda is not None
        return _result("gpu", "none in use" + (" (torch is built for CUDA, no device is found)" if built else ""))
    parts = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        parts.append(f"cuda:{index} {name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
    return _result("gpu", "; ".join(parts))


def _check_pocket_model() -> Check:
    weights = POCKET_FOLDER / "model.safetensors"
    if (POCKET_FOLDER / "config.json").is_file() and weights.is_file():
        return _result("pocket model", f"{weights} ({weights.stat().st_size / 2**20:.1f} MiB)")
    remedy = "its weights are not in this installation: reinstall, or make them with omni train pocket"
    return _result("pocket model", f"no weights in {POCKET_FOLDER}", remedy, problem=True)


def _check_presets() -> Check:
    from omnicli.config import load_config

    try:
        load_config(defaults.FALLBACK_PRESET, [])
    except OmniError as error:
        return _result("presets", str(error), "reinstall: pip install --force-reinstall omnicli", problem=True)
    return _result("presets", f"{defaults.FALLBACK_PRESET} can be read")


def _check_config_file() -> Check:
    path = defaults.config_path()
    try:
        mine = defaults.load_defaults()
    except OmniError as error:
        return _result("config file", str(error), f"correct or remove {path}", problem=True)
    chosen = ", ".join(f"{k}={getattr(mine, k)}" for k in defaults.KEYS if getattr(mine, k))
    where = str(path) if path.is_file() else f"{path} (not there; not needed)"
    return _result("config file", where + (f"; {chosen}" if chosen else ""))


def _check_hub_cache() -> Check:
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE)
    models = sorted(p.name.removeprefix("models--").replace("--", "/") for p in folder.glob("models--*"))
    found = f"{folder}: {', '.join(models[:8]) or 'no models'}" + (f" and {len(models) - 8} more" if models[8:] else "")
    return _result("hub cache", found)


def _check_cache() -> Check:
    cache = defaults.open_cache()
    try:
        return _result("cache", f"{cache.folder}: {show_size(cache.size())} of {show_size(cache.limit)}")
    except OSError as error:
        return _result("cache", f"{cache.folder}: {error.strerror}", "choose another folder with OMNI_CACHE_DIR")


CHECKS: tuple[Callable[[], Check], ...] = (
    _check_versions,
    _check_torch_pair,
    _check_codecs,
    _check_processor,
    _check_memory,
    _check_gpu,
    _check_pocket_model,
    _check_presets,
    _check_config_file,
    _check_hub_cache,
    _check_cache,
)
