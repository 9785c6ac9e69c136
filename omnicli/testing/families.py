"""The contract of a loaded model, of a family's class, and of reading its checkpoints."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnicli.errors import ModelError
from omnicli.models.base import OmniModel
from omnicli.testing import media, reading
from omnicli.testing.trial import Stock, Trial, first

POINTS = (*media.POINTS, *reading.POINTS)
TYPES = (*media.TYPES, *reading.TYPES)


@torch.no_grad()
def of_model(model: OmniModel, stock: Stock | None = None, points: Iterable[Callable[..., Any]] = POINTS) -> list[str]:
    """Return what a loaded model does not keep, one line per point; ``stock``: see `Stock`."""
    trial = Trial(model, stock)
    return [line for point in points for line in first(point, partial(point, trial))]


def of_class(family: type[OmniModel]) -> list[str]:
    """Return what a family's class does not keep; its smallest random weights are built for it."""
    from omnicli.models import registry

    families = registry.families()
    others = [families[name] for name in families if families[name] is not family]

    def names() -> Iterator[str]:
        if not isinstance(family.model_types, tuple) or not family.model_types:
            yield "model_types is no tuple of names"
        for name in (*family.short_names, *family.dummies):
            if name != name.lower():
                yield f"{name} is not in lower case"
        for other in others:
            for field in ("model_types", "short_names", "dummies"):
                if both := set(getattr(family, field)) & set(getattr(other, field)):
                    yield f"{field}: {min(both)} is {other.family}'s already"
        missing = sorted(getattr(family, "__abstractmethods__", ()))
        if missing:
            yield f"{', '.join(missing)} is not written"

    def dummies() -> Iterator[str]:
        if not family.dummies:
            yield "there are none: nobody can measure or try the family without its weights"
        where = {"device": torch.device("cpu"), "dtype": torch.bfloat16, "layers": 2, "scale": 0.01}
        for name, size in family.dummies.items():
            model = family.dummy(size, name=name, **where)  # type: ignore[arg-type]
            if (model.depth, model.dtype, model.name) != (2, torch.bfloat16, name):
                yield f"{name}: layers, dtype or name is not what was asked for"
            yield from (f"{name}: {line}" for line in of_model(model, points=TYPES))
        try:
            family.dummy("no such size", name="x", **where)  # type: ignore[arg-type]
        except ModelError:
            return
        yield "an unknown size is no ModelError"

    def facts() -> Iterator[str]:
        for name, size in family.dummies.items():
            whole = family.dummy(
                size, name=name, device=torch.device("meta"), dtype=torch.bfloat16, layers=None, scale=1.0
            )
            told = type(whole.facts)
            for field in ("model_types", "short_names", "dummies"):
                if getattr(told, field) != getattr(family, field):
                    yield f"{field} are not the family's"
            if type(whole).weights is not OmniModel.weights:
                modules = [module for part in whole.weights().values() for module in part]
                weights = {id(p): p.numel() for module in modules for p in module.parameters()}
                if (n := sum(weights.values())) != told.parameters.get(size):
                    yield f"parameters[{size!r}] is {told.parameters.get(size)}, the model has {n} weights"

    return [line for point in (names, dummies, facts) for line in first(point, point)]


def of_folder(family: type[OmniModel], folder: Path) -> list[str]:
    """Return what a family does not keep in reading a checkpoint folder in the hub's layout, which stays as it is."""

    def load(path: Path, dtype: torch.dtype = torch.float32) -> OmniModel:
        return family.load(path, name="some name", revision="abc", device=torch.device("cpu"), dtype=dtype)

    def loading() -> Iterator[str]:
        model, half = load(folder), load(folder, torch.bfloat16)
        if (model.name, model.revision, model.folder) != ("some name", "abc", folder):
            yield "name, revision and folder are not kept"
        if (model.dtype, half.dtype) != (torch.float32, torch.bfloat16):
            yield "dtype is not respected"
        frames = Trial(model).frames(1)
        if not torch.equal(model.encode_video(frames).features, load(folder).encode_video(frames).features):
            yield "loading twice gives two models"
        if json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"] not in family.model_types:
            yield "config.json's model_type is not among model_types"

    def damage() -> Iterator[str]:
        for what, change in _DAMAGES.items():
            with tempfile.TemporaryDirectory() as place:
                path = shutil.copytree(folder, Path(place) / "model")
                change(path)
                try:
                    load(path)
                except ModelError as error:
                    if "\n" in str(error) or error.exit_code != ModelError.exit_code:
                        yield f"{what}: the error is more than a line"
                except Exception as error:
                    yield f"{what}: {type(error).__name__} instead of a ModelError"
                else:
                    yield f"{what}: loads all the same"

    return [line for point in (loading, damage) for line in first(point, point)]


def _weights(path: Path, change: Callable[[dict[str, Tensor], str], None], last: bool) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(path / "model.safetensors")
    change(state, sorted(state)[-1 if last else 0])
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})


def _remove(state: dict[str, Tensor], key: str) -> None:
    del state[key]


def _stretch(state: dict[str, Tensor], key: str) -> None:
    state[key] = torch.cat([state[key], state[key]])


def _forget_tokenizer(path: Path) -> None:
    for file in [*path.glob("tokenizer*"), *path.glob("vocab*"), *path.glob("merges*")]:
        file.unlink()


def _forget_sizes(path: Path) -> None:
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    (path / "config.json").write_text(json.dumps({"model_type": config["model_type"]}), encoding="utf-8")


_DAMAGES: dict[str, Callable[[Path], None]] = {
    "the first weight is missing": lambda path: _weights(path, _remove, last=False),
    "the last weight is missing": lambda path: _weights(path, _remove, last=True),
    "a weight has another shape": lambda path: _weights(path, _stretch, last=False),
    "the tokenizer is missing": _forget_tokenizer,
    "config.json holds no sizes": _forget_sizes,
}
