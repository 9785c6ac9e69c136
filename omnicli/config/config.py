"""The settings of a run: frozen dataclasses <- YAML preset <- ``key=value``. All problems are reported at once.

A preset is a YAML file::

    description: one line for `omni presets list`
    method: avoc                   # or a chain, avoc+seats
    params: {tokens: 10240}        # fields of the method; of a chain by method: {avoc: {tokens: 10240}, seats: {}}
    media: {fps: 1.0}              # fields of MediaConfig
    generate: {max_new_tokens: 64} # fields of GenerateConfig
    model: pocket                  # optional; so are device, dtype, quantize (none, int8, int4), offload (true)

Nothing here knows what a setting does. Importing this module and listing presets imports no torch; the method's own
file, which does, is imported when a preset is loaded.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omnicli.config import registry
from omnicli.config.schema import Text, convert, field_types, read_fields, read_mapping
from omnicli.config.settings import GenerateConfig, MediaConfig
from omnicli.errors import ConfigError, near_names

if TYPE_CHECKING:
    from omnicli.compress.base import Compressor

Dtype = Literal["auto", "float32", "bfloat16", "float16", "fp32", "bf16", "fp16"]
Quantize = Literal["none", "int8", "int4"]

DEFAULT_PRESET, DEFAULT_MODEL = "auto", "pocket"
"""What is taken where nobody chose."""


@dataclass(frozen=True)
class Config:
    """A resolved configuration.

    Attributes
    ----------
    preset : str
        Name of the preset, or the file it came from.
    compressor : Compressor
        The method with its settings.
    model : str or None
        The preset's own choice of model; None leaves it to the user.
    quantize, offload
        See `omnicli.models.loading.load_model`.
    """

    preset: str
    compressor: Compressor
    media: MediaConfig = field(default_factory=MediaConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    model: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    quantize: str = "none"
    offload: bool = False
    description: str = ""

    @property
    def method(self) -> str:
        """The method's name."""
        return self.compressor.name

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `load_config` reads them back."""
        return {
            "preset": self.preset,
            "method": self.method,
            "params": self.compressor.params(),
            "media": dataclasses.asdict(self.media),
            "generate": {**dataclasses.asdict(self.generate), "stop": list(self.generate.stop)},
            "model": self.model,
            "device": self.device,
            "dtype": self.dtype,
            "quantize": self.quantize,
            "offload": self.offload,
        }


@dataclass(frozen=True)
class PresetInfo:
    """A preset without its settings."""

    name: str
    description: str
    method: str
    path: Path


_SECTIONS: dict[str, type] = {"media": MediaConfig, "generate": GenerateConfig}
_SCALARS: dict[str, Any] = {
    "method": str,
    "model": str | None,
    "device": str,
    "dtype": Dtype,
    "quantize": Quantize,
    "offload": bool,
    "preset": str,
    "description": str,
}
LOADED = ("model", "device", "dtype", "quantize", "offload")
"""Fields of `Config` that say what is loaded, and where."""
_OVERRIDABLE = ("method", *LOADED)


def presets_folder() -> Path:
    """Return the folder of the presets: in the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "presets", package.parent / "presets"):
        if folder.is_dir():
            return folder
    raise ConfigError("no presets in this installation; reinstall: pip install --force-reinstall omnicli")


def preset_files() -> dict[str, Path]:
    """Return the presets' names and files; a preset in a folder is called ``folder/name``."""
    folder = presets_folder()
    named = {file.relative_to(folder).with_suffix("").as_posix(): file for file in folder.rglob("*.yaml")}
    return dict(sorted(named.items()))


def list_presets() -> list[PresetInfo]:
    """Return the presets with their descriptions, by name."""
    found = []
    for name, path in preset_files().items():
        data = read_mapping(path)
        text, method = (str(data.get(key) or "") for key in ("description", "method"))
        found.append(PresetInfo(name, " ".join(text.split()), method, path))
    return found


def find_preset(preset: str | Path) -> Path:
    """Return the file of a preset's name or path.

    Raises
    ------
    ConfigError
        There is no such preset or file.
    """
    text = str(preset)
    known = preset_files()
    if text in known:
        return known[text]
    path = Path(text).expanduser()
    if path.is_file():
        return path
    if isinstance(preset, Path) or path.suffix in (".yaml", ".yml") or text.startswith((".", "~", os.sep)):
        raise ConfigError(f"{text}: no such preset file")
    raise ConfigError(f"no preset called {text!r}{near_names(text, known)}")


def load_config(preset: Config | str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Resolve a preset and the settings that change it.

    Parameters
    ----------
    preset : Config, str, Path or mapping
        A configuration, a preset's name, a YAML file, or what such a file holds (so also `Config.to_dict`).
    overrides : sequence of str
        ``media.fps=2``, ``generate.max_new_tokens=8``, ``avoc.tokens=2048`` or ``params.tokens=2048``,
        ``method=random``, ``model=...``; later ones win. With another method, the preset's params that this method has
        too (the budget) stay.

    Raises
    ------
    ConfigError
        Something is wrong; ``problems`` lists everything that is.
    """
    if isinstance(overrides, str) or not isinstance(overrides, Sequence):
        raise ConfigError(f"settings are a list of texts, such as ['media.fps=2'], not {overrides!r}")
    if isinstance(preset, Config):
        if not overrides:
            return preset
        preset = preset.to_dict()
    if isinstance(preset, Mapping):
        name, where, data = str(preset.get("preset", "inline")), "", dict(preset)
    elif not isinstance(preset, str | Path):
        raise ConfigError(f"a preset is a name, a YAML file or a mapping, not {preset!r}")
    else:
        path = find_preset(preset)
        name, where, data = str(preset), f"{path.name}: ", read_mapping(path)
    return _Resolver(name, where).resolve(data, overrides)


def validate(preset: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> list[str]:
    """Return all problems of a preset; empty if it is fine."""
    try:
        load_config(preset, overrides)
    except ConfigError as error:
        return error.problems
    return []


def precision(model: Mapping[str, Any]) -> str:
    """Return in words in what a model is that an answer or a report names: number format, and the LLM's own bits."""
    few = model.get("quantize", "none")
    return str(model.get("dtype")) + ("" if few == "none" else f", LLM in {few}")


class _Resolver:
    """One pass over a preset and its overrides; ``problems`` fills on the way."""

    def __init__(self, name: str, where: str) -> None:
        self.name = name
        self.where = where
        self.problems: list[str] = []
        self.scalars: dict[str, Any] = {}
        self.values: dict[str, dict[str, Any]] = {"media": {}, "generate": {}, "params": {}}
        self.changed: dict[str, dict[str, Any]] = {"media": {}, "generate": {}, "params": {}}
        self.by_method: dict[str, dict[str, Any]] = {}
        self.method_changed = False

    def resolve(self, data: Mapping[str, Any], overrides: Sequence[str]) -> Config:
        self._read(data)
        for text in overrides:
            self._override(text)
        made = {section: self._build(cls, section) for section, cls in _SECTIONS.items()}
        compressor = self._method()
        if self.problems or compressor is None:
            raise ConfigError(self.problems)
        rest = {k: v for k, v in self.scalars.items() if k not in ("method", "preset")}
        return Config(preset=self.name, compressor=compressor, **made, **rest)

    def _read(self, data: Mapping[str, Any]) -> None:
        for key, value in data.items():
            if key in self.values:
                if isinstance(value, Mapping):
                    self.values[key] = {str(k): v for k, v in value.items()}
                elif value is not None:
                    self.problems.append(f"{self.where}{key}: must hold settings, not {value!r}")
            elif key in _SCALARS:
                self._scalar(key, value, self.where)
            else:
                near = near_names(str(key), [*_SCALARS, *self.values])
                self.problems.append(f"{self.where}{key}: unknown key{near}")

    def _scalar(self, key: str, value: Any, where: str) -> None:
        try:
            self.scalars[key] = convert(value, _SCALARS[key])
        except ValueError as error:
            self.problems.append(f"{where}{key}: {error}")

    def _override(self, text: str) -> None:
        key, equals, value = text.partition("=")
        key = key.strip()
        section, _, name = key.partition(".")
        if not equals or not key:
            self.problems.append(f"{text}: must be key=value, such as media.fps=2")
        elif not name and section in _OVERRIDABLE:
            self._scalar(section, Text(value.strip()), "")
            self.method_changed |= section == "method"
        elif name and section in self.changed:
            self.changed[section][name] = Text(value.strip())
        elif name and section in registry.methods():
            self.by_method.setdefault(section, {})[name] = Text(value.strip())
        else:
            self.problems.append(f"{key}: unknown setting{near_names(key, self._known())}")

    def _known(self) -> list[str]:
        known = [*_OVERRIDABLE, *(f"{s}.{f}" for s, cls in _SECTIONS.items() for f in field_types(cls))]
        method = self.scalars.get("method", "")
        if method in registry.methods():
            known += [f"{method}.{f}" for f in field_types(registry.methods()[method])]
        return known

    def _build(self, cls: type, section: str, label: str | None = None) -> Any:
        """Return ``cls`` of a section's values, or None when its values contradict each other."""
        prefix = f"{label or section}."
        good = read_fields(
            cls, self.values[section], prefix, self.problems, dict.fromkeys(self.values[section], self.where)
        )
        good |= read_fields(cls, self.changed[section], prefix, self.problems)
        try:
            return cls(**good)
        except ConfigError as error:
            self.problems.extend(prefix + problem for problem in error.problems)
            return None

    def _method(self) -> Compressor | None:
        name = self.scalars.get("method")
        if name is None:
            if not any("method: " in p for p in self.problems):
                self.problems.append(f"{self.where}method: is missing{near_names('', registry.methods())}")
            return None
        parts = [part.strip() for part in name.split("+")]
        for other in self.by_method:
            if other not in parts:
                self.problems.append(f"{other}.*: the method is {name}; add method={other} to change it")
        classes = [cls for part in parts if (cls := self._find(part)) is not None]
        if len(classes) < len(parts):
            return None
        if len(parts) == 1:
            self.changed["params"] |= self.by_method.get(name, {})
            self._drop_replaced(classes[0], "params")
            return self._build(classes[0], "params", name)
        return self._chain(parts, classes)

    def _find(self, name: str) -> type[Compressor] | None:
        try:
            return registry.methods().find(name)
        except ConfigError as error:
            where = "" if self.method_changed else self.where
            self.problems.extend(f"{where}method: {problem}" for problem in error.problems)
            return None

    def _chain(self, parts: list[str], classes: list[type[Compressor]]) -> Compressor | None:
        """Build ``first+second``; a chain's params are kept by method."""
        from omnicli.compress.chain import Chain

        if len(parts) != 2 or parts[0] == parts[1]:
            self.problems.append(f"{self.where}method: a chain is two different methods, such as avoc+seats")
            return None
        first, second = parts
        for key in self.changed["params"]:
            self.problems.append(f"params.{key}: say which method, {first}.{key} or {second}.{key}")
        given = self.values["params"]
        if self.method_changed:  # params of the one method before: the budget stays with the first
            given = {parts[0]: given} if not given.keys() & set(parts) else given
        for key in given.keys() - set(parts):
            self.problems.append(f"{self.where}params.{key}: not a method of {'+'.join(parts)}; nest it under one")
        made = []
        for part, cls in zip(parts, classes, strict=True):
            own = given.get(part) or {}
            if not isinstance(own, Mapping):
                self.problems.append(f"{self.where}params.{part}: must hold settings, not {own!r}")
                own = {}
            self.values[part], self.changed[part] = dict(own), self.by_method.get(part, {})
            self._drop_replaced(cls, part)
            made.append(self._build(cls, part, part))
        try:
            return None if None in made else Chain(*made)
        except ConfigError as error:
            self.problems.extend(self.where + problem for problem in error.problems)
            return None

    def _drop_replaced(self, cls: type[Compressor], section: str) -> None:
        """Forget preset values that an override says in another way, or that belong to another method."""
        values, changed = self.values[section], self.changed[section]
        if self.method_changed:
            values = {k: v for k, v in values.items() if k in field_types(cls) and k not in cls.not_carried}
        for group in cls.exclusive_fields:
            if any(name in changed for name in group):
                others = {n for g in cls.exclusive_fields if g is not group for n in g}
                others |= {name for name, beside in cls.acts_beside.items() if not set(beside) & set(group)}
                values = {k: v for k, v in values.items() if k not in others}
        self.values[section] = values


__all__ = [
    "DEFAULT_MODEL",
    "DEFAULT_PRESET",
    "Config",
    "PresetInfo",
    "find_preset",
    "list_presets",
    "load_config",
    "precision",
    "preset_files",
    "presets_folder",
    "validate",
]
