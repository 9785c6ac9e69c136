"""From a model's name to a loaded model. Never touches the network; only safetensors are read.

A name is a short name, ``dummy:SIZE`` for random weights, a folder, or a hub id that is in the local hub cache; a short
name or hub id may end in ``@REVISION``. The family is found by the ``model_type`` in ``config.json``. Not known here:
what is inside a family, nor which there are: short names and the names of random weights are the families' own
(`OmniModel.short_names`, ``dummies``).
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnicli.config.config import DEFAULT_MODEL
from omnicli.errors import ConfigError, ModelError, UnknownFamilyError, near_names
from omnicli.models import registry
from omnicli.models.weights import checkpoint, hub
from omnicli.models.weights import devices as cards
from omnicli.utils import fingerprint
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from omnicli.config.config import Config
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

DECLINED = {
    "gemma4": "Gemma 4 tells the time of a frame as text between its pictures and that of sound not at all; "
    "docs/reference/models.md says what that rules out",
}
"""Model types that were looked at and cannot be a family, and why."""

NO_OFFLOAD = "--offload: the model runs on the CPU, there is no device to offload from; leave it out"


def load_model(
    name: str | Path, device: str = "auto", dtype: str = "auto", quantize: str = "none", offload: bool = False
) -> OmniModel:
    """Load a model.

    Parameters
    ----------
    name : str or Path
        ``pocket``, another short name, a folder, a hub id in the local cache, either with ``@REVISION`` or not, or
        ``dummy:NAME[,layers=N][,scale=F]`` for the architecture with random weights (fewer layers, smaller widths).
    device : str
        ``auto`` is one card if there is one, else the CPU; ``cuda:0,cuda:1`` or ``cuda:all``: several cards, the LLM's
        layers spread over them (`OmniModel.spread`), by way of host memory.
    dtype : str
        ``auto`` is bfloat16 on CUDA and float32 on a CPU.
    quantize : str
        ``int8`` or ``int4``: the weights of the LLM's layers in so many bits (`omnicli.models.weights.quantize`);
        ``none``.
    offload : bool
        Keep on the device what works and the rest in host memory (`OmniModel.activate`).

    Raises
    ------
    ModelError
        In one line: an unknown name, missing or incomplete weights, an unsupported architecture or device, a library
        that is not installed, nothing to offload from.
    """
    name = str(name)
    where, *others = devices = resolve_devices(device)
    what = resolve_dtype(dtype, where)
    if offload and where.type == "cpu":
        raise ModelError(NO_OFFLOAD)
    if offload and others:
        raise ModelError(cards.ALONE)
    home = torch.device("cpu") if offload or others else where
    if name.startswith("dummy:"):
        model = _dummy(name, home if others else where, what, quantize, where)
    else:
        folder, revision = find_folder(name)
        family = find_family(name, folder)
        checkpoint.check_settings(name, folder)
        if quantize != "none" and _is_quantised(checkpoint.read_config(name, folder)):
            raise ModelError(f"{name}: the checkpoint is quantised already; leave out --quantize {quantize}")
        checkpoint.check_weights(name, folder)
        known_by = fingerprint.checkpoint(folder)  # before loading: what is read later may be newer, never older
        options = _quantizer(name, family.load, quantize, where, home)
        model = family.load(folder, name=name, revision=revision, device=home, dtype=what, **options)
        model.fingerprint = known_by
    model.quantized = quantize
    if offload:
        model.offload(where)
    if others:
        model.spread(devices, [torch.cuda.mem_get_info(card)[0] for card in devices])
    return model


def load_configured(config: Config) -> OmniModel:
    """Load the model that a configuration names, or the default one, as it says; see `load_model`."""
    return load_model(config.model or DEFAULT_MODEL, config.device, config.dtype, config.quantize, config.offload)


def _is_quantised(config: dict[str, Any]) -> bool:
    """Tell whether a configuration, or a part of it, is of weights in few bits."""
    parts = (value for value in config.values() if isinstance(value, dict))
    return "quantization_config" in config or any(_is_quantised(part) for part in parts)


def _quantizer(
    name: str, maker: Callable[..., OmniModel], kind: str, device: torch.device, home: torch.device
) -> dict[str, Any]:
    """Return the argument of a family's ``load`` or ``dummy`` that quantises, or none: families may not know it."""
    if kind == "none":
        return {}
    if "quantizer" not in inspect.signature(maker).parameters:
        raise ModelError(f"{name}: its family cannot be quantised; leave out --quantize {kind}")
    from omnicli.models.weights.quantize import Quantizer

    return {"quantizer": Quantizer(kind, device, home)}


def short_names() -> dict[str, str]:
    """Return every family's short names and the hub ids they stand for, and ``pocket``, which needs none.

    Imports the families that other packages bring. One that cannot be used with the installed libraries is left out.
    """
    known = {name: hub_id for facts in registry.known_facts() for name, hub_id in facts.short_names.items()}
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
    known = registry.known_facts()
    size = next(((f, f.dummies[short]) for f in known if f.dummies.get(short) in f.parameters), None)
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
    config = checkpoint.read_config(name, folder)
    checkpoint.check_settings(name, folder)
    found = _facts(name, config, folder)
    if found is not None:
        return found, None
    _family(name, config)  # an unknown type is told as in loading
    raise UnknownFamilyError(
        f"{name}: no plan for model type {config.get('model_type')!r}: nothing is known without its code"
    )


def _facts(name: str, config: dict[str, Any], folder: Path) -> Facts | None:
    """Return what a checkpoint's settings say, None for a family of which nothing is known without its code."""
    for facts in registry.known_facts():
        if config.get("model_type") in facts.model_types:
            try:
                return facts.read(name, config, folder)
            except ModelError as error:
                raise ModelError(f"{error}{checkpoint.later_version(config)}") from None
    return None


def find_family(name: str, folder: Path) -> type[OmniModel]:
    """Return the family of a checkpoint folder; `ModelError` if there is none for its ``model_type``."""
    return _family(name, checkpoint.read_config(name, folder))


def check_family(name: str, folder: Path) -> None:
    """Raise `ModelError` if there is no family for a checkpoint folder; of the built-in ones nothing is imported."""
    model_type = checkpoint.read_config(name, folder).get("model_type")
    if not any(model_type in facts.model_types for facts in registry.known_facts()):
        find_family(name, folder)


def _released() -> list[str]:
    return sorted(name for f in registry.known_facts() for name, size in f.dummies.items() if size in f.parameters)


def _families(model_type: str = "", unusable: list[ModelError] | None = None) -> Iterator[type[OmniModel]]:
    """Import one family after the other, those named like ``model_type`` first.

    The errors of families that cannot be used with the installed libraries are added to ``unusable``: another family
    may be the right one.
    """
    families = registry.families()
    wanted = model_type.replace("_", "-")
    for name in sorted(families, key=lambda name: not wanted.startswith(name)):
        try:
            yield families[name]
        except ModelError as error:
            if unusable is not None:
                unusable.append(error)
        except ConfigError:  # no family; `omni doctor` tells of it
            continue


def resolve_devices(device: str) -> list[torch.device]:
    """Return the cards meant by ``cuda:0,cuda:1`` or ``cuda:all``, or the one device of `resolve_device`."""
    if not cards.several(device):
        return [resolve_device(device)]
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.device("cuda", number) for number in cards.numbers(device, there)]


def resolve_device(device: str) -> torch.device:
    """Return the device meant by ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; `ModelError` if it is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ModelError(f"unknown device {device!r}; use {cards.NAMES}") from None
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
    try:
        there, is_folder = path.exists(), path.is_dir()
    except (OSError, ValueError) as error:  # no permission; a name that no file can have
        raise ModelError(f"{name} cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if is_folder:
        return path, "local"
    if there or looks_like_path(name):
        what = "is not a folder" if there else "does not exist"
        raise ModelError(f"{name} {what}; give a checkpoint folder with config.json and *.safetensors")
    return hub.cached(name, *hub_id(name))


def looks_like_path(name: str) -> bool:
    """Tell whether a name can only be meant for a folder."""
    base = name.partition("@")[0]
    return name.startswith((".", "~", os.sep)) or base.count("/") > 1 or "\\" in name


def hub_id(name: str) -> tuple[str, str | None]:
    """Return the hub id that a short name or hub id stands for, and the revision behind its ``@``, if any.

    Raises
    ------
    ModelError
        There is no such name.
    """
    base, at, revision = name.partition("@")
    if at and not revision:
        raise ModelError(f"{name}: no revision behind the @")
    if "/" in base:
        return base, revision or None
    for facts in registry.known_facts():
        if base.lower() in facts.short_names:
            return facts.short_names[base.lower()], revision or None
    if base == "pocket":
        raise ModelError("the pocket model is a part of omni: it is not on the hub and has no revisions")
    dummies: list[str] = []
    unusable: list[ModelError] = []
    for family in _families("", unusable):
        if base.lower() in family.short_names:
            return family.short_names[base.lower()], revision or None
        dummies += [f"dummy:{dummy}" for dummy in family.dummies]
    if unusable:
        raise unusable[0]
    raise ModelError(f"unknown model {base!r}{near_names(base, [*short_names(), *dummies])}")


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
    why = f"{DECLINED[model_type]}; " if model_type in DECLINED else ""
    raise ModelError(
        f"{name}: model type {model_type!r} is not supported; {why}supported: {', '.join(sorted(supported))}"
        f"{checkpoint.later_version(config)}"
    )


def _dummy(name: str, device: torch.device, dtype: torch.dtype, quantize: str, computes: torch.device) -> OmniModel:
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
    options = _quantizer(name, family.dummy, quantize, computes, device)
    return family.dummy(
        family.dummies[size.lower()], name=name, device=device, dtype=dtype, layers=layers, scale=scale, **options
    )
