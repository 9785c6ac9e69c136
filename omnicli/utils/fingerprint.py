"""Telling files and checkpoints apart without reading all of them: size, time of change, and samples of the content.

A file is known by what it holds and not by its name, so that it may be renamed or moved. A change that keeps the size
and the time of change and misses all samples is not seen. Nothing here knows a format.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

_SAMPLES = 16
_SAMPLE = 1 << 16  # bytes; a file of up to 1 MiB is read as a whole
_NOT_READ = "card.json"  # a checkpoint's prose, which no encoder reads


def stamp(path: Path) -> tuple[int, int]:
    """Return a file's size in bytes and its time of change in nanoseconds; OSError if it is not there."""
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns


def file(path: Path, stamped: tuple[int, int]) -> str:
    """Return 32 hex digits of a file's `stamp`, its name's ending (which decoders heed) and samples of its content."""
    digest = hashlib.blake2b(f"{stamped} {path.suffix.lower()}".encode("utf-8", "surrogateescape"), digest_size=16)
    size = stamped[0]
    last = max(0, size - _SAMPLE)
    places = [last * i // (_SAMPLES - 1) for i in range(_SAMPLES)] if size > _SAMPLES * _SAMPLE else [0]
    with path.open("rb") as handle:
        for place in places:
            handle.seek(place)
            digest.update(handle.read(_SAMPLE if len(places) > 1 else _SAMPLES * _SAMPLE))
    return digest.hexdigest()


def checkpoint(folder: Path) -> str:
    """Return 32 hex digits of everything in a checkpoint folder that a model is made from."""
    found = sorted(p for kind in ("*.json", "*.jinja", "*.txt", "*.safetensors") for p in folder.glob(kind))
    facts = [f"{p.name} {file(p, stamp(p))}" for p in found if p.name != _NOT_READ]
    return hashlib.blake2b("\n".join(facts).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def source(files: Iterable[Path]) -> str:
    """Return 32 hex digits of the whole content of source files; one that is not there counts as empty."""
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def encoders() -> list[Path]:
    """Return the package's own source files that turn a film into tokens."""
    root = Path(__file__).parent.parent
    kept_out = ("subtitles.py", "write.py", "cut.py")  # they make no tokens
    media = [path for path in sorted(root.glob("media/*.py")) if path.name not in kept_out]
    return [root / "encode" / "encode.py", root / "types.py", *media, *sorted(root.glob("models/**/*.py"))]
