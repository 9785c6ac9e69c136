"""A checkpoint's folder in the hub's layout: what is in its files, and what is wrong with them, in one line.

Reads settings and the headers of safetensors, never a weight; imports no torch. Knows no family and no hub.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omnicli.errors import ModelError

INDEX = "model.safetensors.index.json"
READ = ("*.json", "*.jinja", "*.txt", "model*.safetensors")
"""What is read of a checkpoint, all of it at its top: settings, tokenizer, chat template, index and weights."""


def again(name: str) -> str:
    """Return what to do about a checkpoint that is damaged or not whole."""
    if name == "pocket" or os.path.exists(Path(name).expanduser()):
        return "copy or download the checkpoint again"
    return f"get it with: omni models pull {name}"


def read_config(name: str, folder: Path) -> dict[str, Any]:
    """Return a checkpoint's ``config.json``, or raise `ModelError`."""
    file = folder / "config.json"
    try:
        return _object(name, file)
    except FileNotFoundError:
        raise ModelError(f"{name}: no config.json in {folder}; {again(name)}") from None


def check_settings(name: str, folder: Path) -> None:
    """Raise `ModelError` unless every JSON file of a checkpoint can be read."""
    for file in sorted(folder.glob("*.json")):
        _parse(name, file)


def _object(name: str, file: Path) -> dict[str, Any]:
    """Return a JSON file's object; FileNotFoundError if there is no file, `ModelError` for all else."""
    value = _parse(name, file)
    if not isinstance(value, dict):
        raise ModelError(f"{name}: {file} is damaged (it holds no settings); {again(name)}")
    return value


def _parse(name: str, file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ModelError(f"{name}: {file} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{name}: {file} cannot be read ({error.__class__.__name__}); {again(name)}") from None


def later_version(config: dict[str, Any]) -> str:
    """Return a hint to end a message with if a later transformers than the installed one wrote ``config.json``."""
    here = importlib.metadata.version("transformers")
    wrote = str(config.get("transformers_version") or "")
    if _release(wrote) <= _release(here):
        return ""
    return f"; it was made with transformers {wrote}, newer than {here} here: a newer omni and transformers are needed"


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version)[:2])


def weight_files(name: str, folder: Path) -> list[Path]:
    """Return a checkpoint's safetensors files in order, as its index names them; `ModelError` if one is not there."""
    index = weight_index(name, folder)
    if index is not None:
        files = sorted({folder / file for file in index.values()})
    elif (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    elif any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        raise ModelError(f"{name}: {folder} holds no safetensors; other weight files are not read, convert them first")
    else:
        raise ModelError(f"{name}: no model.safetensors in {folder}; {again(name)}")
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelError(
            f"{name}: {len(missing)} of {len(files)} weight files are missing, {missing[0]} first; {again(name)}"
        )
    return files


def weight_index(name: str, folder: Path) -> dict[str, str] | None:
    """Return which file of the folder each weight is in; None where all are in one file."""
    file = folder / INDEX
    if not file.is_file():
        return None
    found = _object(name, file).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(f, str) and Path(f).name == f for f in found.values()):
        raise ModelError(f"{name}: {file} is damaged; {again(name)}")
    return found


def all_shapes(name: str, folder: Path) -> dict[str, tuple[int, ...]]:
    """Return `shapes` of all weight files of a checkpoint."""
    return {key: shape for file in weight_files(name, folder) for key, shape in shapes(name, file).items()}


def check_weights(name: str, folder: Path) -> None:
    """Raise `ModelError` unless every safetensors file of a checkpoint is there in full length."""
    all_shapes(name, folder)


def shapes(name: str, file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a safetensors file's weights; `ModelError` unless it is as long as its header promises."""
    try:
        size = file.stat().st_size
        begin, header = _header(file)
        whole = begin + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        found = {key: tuple(int(n) for n in tensor["shape"]) for key, tensor in header.items()}
    except OSError as error:
        raise ModelError(f"{name}: {file} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        size, whole, found = 0, 1, {}
    if size != whole:
        raise ModelError(f"{name}: {file} is damaged or only partly downloaded; {again(name)}")
    return found


def count_weights(folder: Path, loads: Sequence[str] = ("",), skips: Sequence[str] = ()) -> int:
    """Return how many values of a checkpoint's safetensors files are loaded, from their headers.

    Parameters
    ----------
    loads : sequence of str
        Prefixes of names; the first that occurs counts.
    skips : sequence of str
        Prefixes of names that are left out.
    """
    values = {
        key: math.prod(tensor["shape"])
        for file in folder.glob("model*.safetensors")
        for key, tensor in _header(file)[1].items()
        if not key.startswith(tuple(skips))
    }
    prefix = next((p for p in loads if any(key.startswith(p) for key in values)), "")
    return sum(n for key, n in values.items() if key.startswith(prefix))


def _header(file: Path) -> tuple[int, dict[str, Any]]:
    """Return where the weights of a safetensors file begin and what it says of each; ValueError if it is cut off."""
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > file.stat().st_size:
            raise ValueError("the header is cut off")
        header = json.loads(handle.read(length))
    header.pop("__metadata__", None)
    return 8 + length, header


def read_files(folder: Path) -> Iterator[Path]:
    """Yield the files of a checkpoint folder that are read."""
    for pattern in READ:
        yield from sorted(folder.glob(pattern))
