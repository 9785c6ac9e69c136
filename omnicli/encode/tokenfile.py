"""An encoded film as one safetensors file with a checksum over every byte. Knows the layout, not where files are kept.

Dataclasses, tuples and plain values become JSON in the file's metadata; tensors and arrays become its tensors, larger
number formats first so that all of them are aligned. The last four bytes are a tensor of their own: the CRC-32 of all
bytes before them. Only packing and reading tensors imports torch.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_CHECK = "crc32"
_CHECK_BYTES = 4
_CHUNK = 1 << 20
_LONGEST_HEAD = 100 << 20  # as in the safetensors library
_WORDS: dict[str, type] = {"path": Path, "fraction": Fraction}


class DamagedError(Exception):
    """A file is not what was written; the message says how it shows."""


@dataclass(frozen=True)
class Packed:
    """A file before it is written: ``head`` is its length prefix and header, ``tensors`` follow in this order."""

    head: bytes
    tensors: tuple[Tensor, ...]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.head) + sum(t.numel() * t.element_size() for t in self.tensors) + _CHECK_BYTES

    def write(self, file: BinaryIO) -> None:
        """Write the file from beginning to end; one tensor at a time comes from its device."""
        check = 0
        for piece in (self.head, *self._chunks()):
            file.write(piece)
            check = zlib.crc32(piece, check)
        file.write(check.to_bytes(_CHECK_BYTES, "little"))

    def _chunks(self) -> Iterator[bytes | memoryview]:
        import torch

        for tensor in self.tensors:
            flat = memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore
            for at in range(0, len(flat), _CHUNK):
                yield flat[at : at + _CHUNK]


def pack(value: Any, about: dict[str, Any]) -> Packed:
    """Lay out a file.

    Parameters
    ----------
    value : dataclass, tuple or plain value
        What `read` gives back: `classes` inside each other, with tensors of any number format. Lists become tuples.
    about : dict
        JSON values that can be read without the rest.
    """
    tensors: dict[str, Tensor] = {}
    tree = _flatten(value, "value", tensors)
    order = sorted(tensors, key=lambda name: -tensors[name].element_size())
    kinds = {kind: code for code, kind in _dtypes().items()}
    header: dict[str, Any] = {"__metadata__": {"about": json.dumps(about), "tree": json.dumps(tree)}}
    at = 0
    for name in order:
        tensor = tensors[name]
        end = at + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": kinds[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    header[_CHECK] = {"dtype": "U8", "shape": [_CHECK_BYTES], "data_offsets": [at, at + _CHECK_BYTES]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return Packed(len(text).to_bytes(8, "little") + text, tuple(tensors[name] for name in order))


def read(path: Path, device: torch.device) -> Any:
    """Check a file and return its value; on a CPU tensors are mapped, and writing into them never reaches the file.

    Raises
    ------
    DamagedError
        The checksum does not agree.
    OSError
        The file is not there or cannot be read.
    """
    from safetensors import safe_open

    check(path)
    with safe_open(path, "pt", device="cpu") as file:
        return _rebuild(json.loads(file.metadata()["tree"]), file.get_tensor, device)


def check(path: Path) -> None:
    """Read a whole file and raise `DamagedError` unless its checksum agrees."""
    found, chunk = 0, memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        left = path.stat().st_size - _CHECK_BYTES
        while left > 0 and (n := file.readinto(chunk[:left])):
            found = zlib.crc32(chunk[:n], found)
            left -= n
        promised = file.read(_CHECK_BYTES)
    if left or len(promised) < _CHECK_BYTES or found != int.from_bytes(promised, "little"):
        raise DamagedError("its checksum does not agree")


def about(path: Path) -> dict[str, Any]:
    """Return what was said about a file when it was packed; reads only its header, which is not checked."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            head = file.read(length) if length <= _LONGEST_HEAD else b""
        found = json.loads(json.loads(head)["__metadata__"]["about"])
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError("its header cannot be read") from error
    if not isinstance(found, dict):
        raise DamagedError("its header cannot be read")
    return found


def classes() -> tuple[type, ...]:
    """Return the dataclasses that a file may hold."""
    from omnicli.encode.encode import Encoded
    from omnicli.media.frames import FrameTable
    from omnicli.media.probe import AudioStream, MediaInfo, SubtitleStream, VideoStream
    from omnicli.models.parts import EncodedClip
    from omnicli.types import MediaTokens, MediaUsed

    return Encoded, EncodedClip, MediaTokens, MediaUsed, MediaInfo, VideoStream, AudioStream, SubtitleStream, FrameTable


def _dtypes() -> dict[str, torch.dtype]:
    """Return the number formats by their names in safetensors."""
    import torch

    return {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }


def _flatten(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return a value as JSON; its tensors and arrays go into ``tensors`` under their path."""
    import torch

    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, torch.Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, np.ndarray):
        tensors[name] = torch.from_numpy(np.ascontiguousarray(value))
        return {"array": name}
    if isinstance(value, tuple | list):
        return [_flatten(each, f"{name}.{i}", tensors) for i, each in enumerate(value)]
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {type(value).__name__: {k: _flatten(each, f"{name}.{k}", tensors) for k, each in fields.items()}}
    for kind, cls in _WORDS.items():
        if isinstance(value, cls):
            return {kind: str(value)}
    if value is not None and not isinstance(value, bool | int | float | str):
        raise TypeError(f"{name}: {type(value).__name__} cannot be kept in a file")
    return value


def _rebuild(tree: Any, tensor: Callable[[str], Tensor], device: torch.device) -> Any:
    """Return the value that `_flatten` made ``tree`` of; ``tensor`` gives those of the file by name."""
    if isinstance(tree, list):
        return tuple(_rebuild(each, tensor, device) for each in tree)
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensor(content).to(device)
    if kind == "array":
        return tensor(content).numpy()
    if kind in _WORDS:
        return _WORDS[kind](content)
    cls = next(c for c in classes() if c.__name__ == kind)
    return cls(**{name: _rebuild(each, tensor, device) for name, each in content.items()})
