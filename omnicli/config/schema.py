"""Strict reading of YAML and of typed dataclass fields. Knows types and near names, not what any setting means.

YAML is read with the scalars of YAML 1.2: ``2:1``, ``on`` and ``no`` are text, not 121, true and false as in YAML 1.1.
Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from omnicli.errors import ConfigError, near_names


class Text(str):
    """A value as it was typed on a command line; it is read as the type of its field."""

    __slots__ = ()


class _Loader(yaml.SafeLoader):
    """Safe YAML without the surprises of 1.1, and without silently overwritten keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict):
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is there twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(str(loader.construct_scalar(node))))  # type: ignore[arg-type]


def parse_yaml(text: str, name: str) -> Any:
    """Return the value of one YAML document.

    Raises
    ------
    ConfigError
        It is no YAML; one line, beginning with ``name``.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ConfigError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from None


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; an empty file is an empty mapping.

    Raises
    ------
    ConfigError
        The file cannot be read, is no YAML, or holds something else than ``key: value`` lines.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read ({reason})") from None
    value = parse_yaml(text, str(path))
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
        raise ConfigError(f"{path}: must hold `key: value` lines")
    return value


def field_types(cls: type) -> dict[str, Any]:
    """Return the dataclass fields of ``cls`` and their types, in order."""
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]


def read_fields(
    cls: type, values: Mapping[str, Any], prefix: str, problems: list[str], origin: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the values that fit the fields of ``cls``; what does not fit is told in ``problems``.

    Parameters
    ----------
    cls : type
        A dataclass.
    values : mapping
        Field names and values; `Text` is read as the type of the field.
    prefix : str
        Goes before a name in a problem, ``"media."``.
    origin : mapping
        Where a name's value came from, ``"mine.yaml: "``.
    """
    known = field_types(cls)
    good = {}
    for name, value in values.items():
        where = (origin or {}).get(name, "") + prefix + str(name)
        if name not in known:
            problems.append(f"{where}: unknown setting{near_names(str(name), known)}")
            continue
        try:
            good[name] = convert(value, known[name])
        except ValueError as error:
            problems.append(f"{where}: {error}")
    return good


def convert(value: Any, kind: Any) -> Any:
    """Return ``value`` as the type ``kind`` of a field.

    Supported are bool, int, float, str, Literal of text, ``tuple[str, ...]`` and each of them or None.

    Raises
    ------
    ValueError
        It is something else; the message says what is expected and what was found.
    """
    options = [k for k in _options(kind) if k is not type(None)]
    optional = len(options) < len(_options(kind))
    if isinstance(value, Text):
        value = _typed(value, options, optional)
    if value is None and optional:
        return None
    for option in options:
        found, result = _match(value, option)
        if found:
            return result
    expected = " or ".join([_describe(o) for o in options] + (["null"] if optional else []))
    near = ""
    if isinstance(value, str) and get_origin(options[0]) is Literal:
        near = near_names(value, get_args(options[0]))
        near = near if near.startswith("; did") else ""
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    raise ValueError(f"must be {expected}, not {shown}{near}")


def _options(kind: Any) -> list[Any]:
    return list(get_args(kind)) if get_origin(kind) in (Union, types.UnionType) else [kind]


def _typed(text: Text, options: list[Any], optional: bool) -> Any:
    """Read typed text: as it stands for text fields, as YAML for all others."""
    plain = str(text)
    if optional and plain in ("null", "~", "none", "None"):
        return None
    if all(o is str or get_origin(o) is Literal for o in options):
        return plain
    try:
        value = parse_yaml(plain, "value")
    except ConfigError:
        value = plain
    if any(get_origin(o) is tuple for o in options) and not isinstance(value, list):
        return [plain]
    if isinstance(value, list):
        return [str(v) if not isinstance(v, dict | list) else v for v in value]
    return plain if value is None else value


def _match(value: Any, kind: Any) -> tuple[bool, Any]:
    if get_origin(kind) is Literal:
        return value in get_args(kind) and isinstance(value, str), value
    if get_origin(kind) is tuple:
        fits = isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)
        return fits, tuple(value) if fits else None
    if kind is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return fits, float(value) if fits else None
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    if kind in (bool, str):
        return isinstance(value, kind), value
    raise TypeError(f"settings of type {kind} are not supported")


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if get_origin(kind) is tuple:
        return "a list of texts"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]


__all__ = ["Text", "convert", "field_types", "parse_yaml", "read_fields", "read_mapping"]
