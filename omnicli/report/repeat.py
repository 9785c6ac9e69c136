"""How to ask the same again: a command line for the shell, and the settings as YAML that is a preset itself.

Only what differs from the preset's own file is written into the command. Method files, which import torch, are not
looked at: a method's settings that the preset does not name are written out unless they are null.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from omnicli.config.config import find_preset
from omnicli.config.schema import read_mapping
from omnicli.config.settings import GenerateConfig, MediaConfig
from omnicli.errors import ConfigError
from omnicli.report.rows import Row

_FALLBACK = "avoc"
_SECTIONS = {"media": MediaConfig, "generate": GenerateConfig}


def command(row: Row) -> str:
    """Return the command line that asks this row's question with this row's settings."""
    config = row["config"]
    media = row["media"] if not row["media"].startswith("-") else f"./{row['media']}"
    question = row["question"]
    words = ["omni", "ask", media, *([f"--question={question}"] if question.startswith("-") else [question])]
    preset, base = _preset(row["preset"])
    words += ["--preset", preset]
    for key in ("model", "device", "dtype"):
        if config[key] is not None:
            words += [f"--{key}", config[key]]
    for key, plain in (("quantize", "none"), ("offload", False)):
        if config.get(key, plain) != base.get(key, plain):
            words += ["--set", f"{key}={_typed(config[key])}"]
    for key, value in settings(config, base):
        words += ["--set", f"{key}={_typed(value)}"]
    if row.get("evidence"):
        words.append("--evidence")
    return " ".join(_quoted(word) for word in words)


def settings(config: Mapping[str, Any], base: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the settings, named as ``--set`` takes them, in which ``config`` differs from a preset's file."""
    method, params = config["method"], config["params"]
    if method != base.get("method"):
        yield "method", method
    for section, cls in _SECTIONS.items():
        known = {**dataclasses.asdict(cls()), **(base.get(section) or {})}
        for key, value in config[section].items():
            if _plain(known.get(key)) != _plain(value):
                yield f"{section}.{key}", value
    given = base.get("params") or {}
    chained = "+" in method
    for name, own in params.items() if chained else [(method, params)]:
        kept = given.get(name) or {} if chained else given
        for key, value in own.items() if isinstance(own, dict) else ():
            if _plain(kept.get(key)) != _plain(value):
                yield f"{name}.{key}", value


def as_yaml(row: Row) -> str:
    """Return the configuration as YAML; saved in a file, it is a preset."""
    config = {key: value for key, value in row["config"].items() if key != "preset"}
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100)


@functools.cache
def _preset(name: str) -> tuple[str, dict[str, Any]]:
    """Return the preset to start from and what its file says; one that is not here is replaced by a known one."""
    for each in (name, _FALLBACK):
        try:
            return each, read_mapping(find_preset(each))
        except ConfigError:
            continue
    raise ConfigError(f"no preset called {_FALLBACK!r} in this installation")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _typed(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _quoted(word: str) -> str:
    """Quote a word for the shell; bytes that are not text, and control characters, as bash and zsh write them."""
    if not re.search(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", word):
        return shlex.quote(word)
    data = (
        os.fsencode(word) if not re.search(r"[\ud800-\udc7f\udd00-\udfff]", word) else word.encode("utf-8", "replace")
    )
    return "$'" + "".join(chr(b) if 32 <= b < 127 and b not in b"'\\" else f"\\{b:03o}" for b in data) + "'"
