"""Checks of libraries: which are there, which do not go together, what PyAV can decode."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform

from omnicli.doctor.check import Check, line, result
from omnicli.doctor.pairs import PAIRS, bad
from omnicli.version import __version__

PACKAGES = ("torch", "torchaudio", "transformers", "av", "numpy", "safetensors", "pyyaml", "rich", "typer", "pillow")
CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg2video", "aac", "mp3", "opus", "vorbis", "flac", "ac3")


def versions() -> Check:
    """Tell which libraries are installed."""
    found, missing = [f"omni {__version__}", f"python {platform.python_version()}"], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    remedy = f"missing: {', '.join(missing)}; install: pip install {' '.join(missing)}" if missing else ""
    return result("versions", ", ".join(found), remedy, problem=bool(missing))


def pairs() -> Check:
    """Look for known bad pairs of libraries."""
    found = bad()
    if not found:
        return result("pairs", f"none of {len(PAIRS)} known bad pairs")
    remedy = "; ".join(dict.fromkeys(pair.remedy for pair in found))
    return result("pairs", "; ".join(pair.what for pair in found), remedy, problem=True)


def torch_pair() -> Check:
    """Import torch and torchaudio, which compare what they were built for."""
    import torch

    cuda = torch.version.cuda or "no CUDA"
    found = f"torch {torch.__version__} ({cuda}), torchaudio {importlib.metadata.version('torchaudio')}"
    try:
        importlib.import_module("torchaudio")
    except Exception as error:  # its import compares the CUDA versions that both were built for
        remedy = "install a pair built for the same CUDA: pip install --force-reinstall torch torchaudio"
        return result("torch pair", f"{found}: {line(error)}", remedy, problem=True)
    return result("torch pair", found)


def codecs() -> Check:
    """Tell what PyAV decodes in software."""
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
    return result("codecs", f"PyAV {av.__version__}: {here}", remedy, problem=bool({"h264", "aac"} & set(missing)))


CHECKS = (versions, pairs, torch_pair, codecs)
