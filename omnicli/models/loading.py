"""From a model's name to a loaded model. Never touches the network; only safetensors are read.

A name is a short name, ``dummy:SIZE`` for random weights, a folder, or a hub id that is in the local hub cache. The
family is found by the ``model_type`` in ``config.json``. Nothing here knows what is inside a family, nor which there
are: short names and the names of random weights are the families' own (`OmniModel.short_names`, ``dummies``).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnicli import fingerprint, registry
from omnicli.errors import ModelError, UnknownFamilyError, near_names
from omnicli.lazy import torch

if TYPE_CHECKING:
    from omnicli.models.base import OmniModel
    from omnicli.models.facts.base import Facts

POCKET = Path(__file__).parent / "pocket"
"""Folder of the model inside the package; its short name is ``pocket``."""

DTYPES = {
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
    "float32": "float32",
    "fp32": "float32",
}
"""Names of number formats, and torch's."""

NO_OFFLOAD = "--offload: the model runs on the CPU, there is no device to offload from; leave it out"


def load_model(
    name: str | Path, device: str = "auto", dtype: str = "auto", quantize: str = "none", offload: bool = False
) -> OmniModel:
    """Load a model.

    Parameters
    ----------
    name : str or Path
        ``pocket``, another short name, a folder, a hub id in the local cache, or ``dummy:NAME[,layers=N][,scale=F]``
        for the architecture with random weights (fewer layers, smaller widths).
    device : str
        ``auto`` is CUDA if there is one, else the CPU.
    dtype : str
        ``auto`` is bfloat16 on CUDA and float32 on a CPU.
    quantize : str
        ``int8`` or ``int4``: the weights of the LLM's layers in so many bits (`omnicli.models.quantize`); ``none``.
    offload : bool
        Keep on the device what works and the rest in host memory (`OmniModel.work`).

    Raises
    ------
    ModelError
        In one line: an unknown name, missing or incomplete weights, an unsupported architecture or device, a library
        that is not installed, nothing to offload from.
    """
    name = str(name)
    where = resolve_device(device)
    what = resolve_dtype(dtype, where)
    if offload and where.type == "cpu":
        raise ModelError(NO_OFFLOAD)
    if name.startswith("dummy:"):
        model = _dummy(name, where, what, _quantizer(quantize, where, where))
    else:
        folder, revision = find_folder(name)
        config = _read_config(name, folder)
        family = _family(name, config)
        if quantize != "none" and _is_quantised(config):
            raise ModelError(f"{name}: the checkpoint is quantised already; leave out --quantize {quantize}")
        check_weights(name, folder)
        known_by = fingerprint.checkpoint(folder)  # before loading: what is read later may be newer, never older
        home = torch.device("cpu") if offload else where
        model = family.load(
            folder, name=name, revision=revision, device=home, dtype=what, **_quantizer(quantize, where, home)
        )
        model.fingerprint = known_by
    model.quantized = quantize
    if offload:
        model.offload(where)
    return model


def _is_quantised(config: dict[str, Any]) -> bool:
    """Tell whether a configuration, or a part of it, is of weights in few bits."""
    parts = (value for value in config.values() if isinstance(value, dict))
    return "quantization_config" in config or any(_is_quantised(part) for part in parts)


def _quantizer(kind: str, device: torch.device, home: torch.device) -> dict[str, Any]:
    """Return the argument of a family's ``load`` and ``dummy`` that quantises, or none: families may not know it."""
    if kind == "none":
        return {}
    from omnicli.models.quantize import Quantizer

    return {"quantizer": Quantizer(kind, device, home)}


def short_names() -> dict[str, str]:
    """Return every family's short names and the hub ids they stand for, and ``pocket``, which needs none.

    Imports the families that other packages bring. One that cannot be used with the installed libraries is left out.
    """
    known = {name: hub_id for facts in registry.facts().values() for name, hub_id in facts.short_names.items()}
    return {"pocket": ""} | known | {n: hub_id for family in _families() for n, hub_id in family.short_names.items()}


def find_facts(name: str) -> tuple[Facts, str | None]:
    """Return what is known of a model without loading it, and the released size if only its name is known.

    The folder's ``config.json`` where the model is here; for ``dummy:NAME`` and short names of models that are not, the
    released size.

    Raises
    ------
    ModelError
        An unknown name, a damaged configuration, or a family of which nothing is known without its code.
    """
    short, _, shrunk = name.lower().removeprefix("dummy:").partition(",")
    size = next(((f, f.dummies[short]) for f in registry.facts().values() if short in f.dummies), None)
    if name.startswith("dummy:"):
        if size is None or shrunk:
            raise UnknownFamilyError(
                f"{name}: no plan for random weights but those of {', '.join(_released())} in full size"
            )
        return size[0].read(name, size[0].released(size[1])), size[1]
    try:
        folder, _ = find_folder(name)
    except ModelError:
        if size is None:
            raise
        return size[0].read(name, size[0].released(size[1])), size[1]
    config = _read_config(name, folder)
    for facts in registry.facts().values():
        if config.get("model_type") in facts.model_types:
            return facts.read(name, config, folder), None
    _family(name, config)  # an unknown type is told as in loading
    raise UnknownFamilyError(
        f"{name}: no plan for model type {config.get('model_type')!r}: nothing is known without its code"
    )


def _released() -> list[str]:
    return sorted(name for facts in registry.facts().values() for name in facts.dummies)


def _families(model_type: str = "", unusable: list[ModelError] | None = None) -> Iterator[type[OmniModel]]:
    """Import one family after the other, those named like ``model_type`` first.

    The errors of families that cannot be used with the installed libraries are added to ``unusable``: another family
    may be the right one.
    """
    families = registry.models()
    wanted = model_type.replace("_", "-")
    for name in sorted(families, key=lambda name: not wanted.startswith(name)):
        try:
            yield families[name]
        except ModelError as error:
            if unusable is not None:
                unusable.append(error)


def resolve_device(device: str) -> torch.device:
    """Return the device meant by ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; `ModelError` if it is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ModelError(f"unknown device {device!r}; use auto, cpu, cuda or cuda:N") from None
    if found.type == "cuda" and (not torch.cuda.is_available() or (found.index or 0) >= torch.cuda.device_count()):
        raise ModelError(f"device {device} is not available; {torch.cuda.device_count()} CUDA devices found, use cpu")
    return found


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype meant by ``auto`` or a name in `DTYPES`."""
    return getattr(torch, dtype_name(dtype, device.type == "cuda"))


def dtype_name(dtype: str, cuda: bool) -> str:
    """Return the name of the dtype meant by ``auto`` (on CUDA or not) or a name in `DTYPES`; or `ModelError`."""
    if dtype == "auto":
        return "bfloat16" if cuda else "float32"
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}{near_names(dtype, ['auto', *DTYPES])}")
    return DTYPES[dtype]


def find_folder(name: str) -> tuple[Path, str]:
    """Return the checkpoint folder of a name and its revision (hub commit, or ``local``)."""
    if name == "pocket":
        if not (POCKET / "config.json").is_file():
            raise ModelError("the pocket model is not in this installation; make it with: omni train pocket")
        return POCKET, "packaged"
    path = Path(name).expanduser()
    if path.is_dir():
        return path, "local"
    looks_like_path = name.startswith((".", "~", os.sep)) or name.count("/") > 1 or "\\" in name
    if looks_like_path or path.exists():
        what = "is not a folder" if path.exists() else "does not exist"
        raise ModelError(f"{name} {what}; give a checkpoint folder with config.json and *.safetensors")
    if "/" in name:
        return _from_cache(name)
    for facts in registry.facts().values():
        if name.lower() in facts.short_names:
            return _from_cache(facts.short_names[name.lower()])
    dummies: list[str] = []
    unusable: list[ModelError] = []
    for family in _families("", unusable):
        if name.lower() in family.short_names:
            return _from_cache(family.short_names[name.lower()])
        dummies += [f"dummy:{dummy}" for dummy in family.dummies]
    if unusable:
        raise unusable[0]
    raise ModelError(f"unknown model {name!r}{near_names(name, [*short_names(), *dummies])}")


def _from_cache(hub_id: str) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, local_files_only=True))
    except HFValidationError:
        raise ModelError(f"{hub_id!r} is neither a folder nor a hub id") from None
    except (LocalEntryNotFoundError, OSError):
        raise ModelError(f"{hub_id} is not in the local hub cache; get it with: hf download {hub_id}") from None
    return folder, folder.name


def _read_config(name: str, folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{name}: no config.json in {folder}; {_again(name)}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{name}: {file} cannot be read ({error.__class__.__name__}); {_again(name)}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{name}: {file} is not a model configuration; {_again(name)}")
    return config


def _family(name: str, config: dict[str, Any]) -> type[OmniModel]:
    model_type = str(config.get("model_type"))
    supported: list[str] = []
    unusable: list[ModelError] = []
    for family in _families(model_type, unusable):
        if model_type in family.model_types:
            return family
        supported.extend(family.model_types)
    if unusable:
        raise unusable[0]
    raise ModelError(f"{name}: model type {model_type!r} is not supported; supported: {', '.join(sorted(supported))}")


def check_weights(name: str, folder: Path) -> None:
    """Raise `ModelError` unless every safetensors file of a checkpoint is there in full length."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ModelError(f"{name}: {index} is damaged; {_again(name)}") from None
    elif (folder / "model.safetensors").is_file():
        files = ["model.safetensors"]
    elif any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        raise ModelError(f"{name}: {folder} holds no safetensors; other weight files are not read, convert them first")
    else:
        raise ModelError(f"{name}: no model.safetensors in {folder}; {_again(name)}")
    missing = [f for f in files if not (folder / f).is_file()]
    if missing:
        raise ModelError(
            f"{name}: {len(missing)} of {len(files)} weight files are missing, {missing[0]} first; {_again(name)}"
        )
    for file in files:
        if not _is_complete(folder / file):
            raise ModelError(f"{name}: {folder / file} is damaged or only partly downloaded; {_again(name)}")


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
        for file in folder.glob("*.safetensors")
        if file.name.startswith("model")
        for key, tensor in _header(file).items()
        if key != "__metadata__" and not key.startswith(tuple(skips))
    }
    prefix = next((p for p in loads if any(key.startswith(p) for key in values)), "")
    return sum(n for key, n in values.items() if key.startswith(prefix))


def _header(file: Path) -> dict[str, Any]:
    with file.open("rb") as handle:
        return json.loads(handle.read(int.from_bytes(handle.read(8), "little")))


def _is_complete(file: Path) -> bool:
    """Compare a safetensors file's size with what its header promises."""
    size = file.stat().st_size
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or length > size - 8:
            return False
        try:
            header = json.loads(handle.read(length))
            promised = max((t["data_offsets"][1] for k, t in header.items() if k != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return False
    return size == 8 + length + promised


def _again(name: str) -> str:
    if Path(name).expanduser().exists():
        return "copy or download the checkpoint again"
    hub_id = name if "/" in name else short_names().get(name.lower())
    return f"get it with: hf download {hub_id}" if hub_id else "copy or download the checkpoint again"


def _dummy(name: str, device: torch.device, dtype: torch.dtype, options: dict[str, Any]) -> OmniModel:
    size, *sizes = name.removeprefix("dummy:").split(",")
    unusable: list[ModelError] = []
    found = {dummy: family for family in _families("", unusable) for dummy in family.dummies}
    if size.lower() not in found:
        if unusable:
            raise unusable[0]
        raise ModelError(f"no dummy weights called {size!r}{near_names(size, found)}")
    layers, scale = None, 1.0
    for option in sizes:
        key, _, value = option.partition("=")
        try:
            if key == "layers":
                layers = int(value)
                continue
            if key == "scale":
                scale = float(value)
                continue
        except ValueError:
            pass
        raise ModelError(f"{name}: cannot read {option!r}; options are layers=N and scale=F")
    family = found[size.lower()]
    return family.dummy(
        family.dummies[size.lower()], name=name, device=device, dtype=dtype, layers=layers, scale=scale, **options
    )
