"""A user's own defaults: the config file and the ``OMNI_*`` environment. Knows names of settings, not their meaning.

``~/.config/omni/config.yaml`` (or ``$XDG_CONFIG_HOME/omni/config.yaml``, or the file that ``OMNI_CONFIG`` names)::

    model: qwen2.5-omni-7b
    preset: avoc
    device: cuda
    dtype: bfloat16
    cache_dir: /fast/disk/omni
    cache_limit: 50 GB
    set: [media.fps=2, generate.max_new_tokens=128]

``OMNI_MODEL``, ``OMNI_PRESET``, ``OMNI_DEVICE``, ``OMNI_DTYPE``, ``OMNI_CACHE_DIR`` and ``OMNI_CACHE_LIMIT`` win over
the file; options win over both.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omnicli.cli import render
from omnicli.cli.options import parse_size
from omnicli.errors import ConfigError, near_names

if TYPE_CHECKING:
    from omnicli.encode.cache import Cache

KEYS = ("model", "preset", "device", "dtype", "cache_dir", "cache_limit")


@dataclass(frozen=True)
class Defaults:
    """What holds where no option was given; None means that nobody chose."""

    model: str | None = None
    preset: str | None = None
    device: str | None = None
    dtype: str | None = None
    cache_dir: str | None = None
    cache_limit: str | None = None
    set: tuple[str, ...] = ()


def config_path() -> Path:
    """Return where the config file is looked for, whether it exists or not."""
    if named := os.environ.get("OMNI_CONFIG"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "omni" / "config.yaml"


def open_cache() -> Cache:
    """Return the cache of encoded films: in the folder and up to the size that were chosen, or ~/.cache/omni and 20 GB.

    Raises
    ------
    ConfigError
        A wrong config file, or a limit that is no size.
    """
    from omnicli.encode.cache import LIMIT, Cache

    mine = load_defaults()
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "omni"
    try:
        limit = LIMIT if mine.cache_limit is None else parse_size(mine.cache_limit)
    except ValueError as error:
        raise ConfigError(f"cache_limit: {error}") from None
    return Cache(Path(mine.cache_dir or base).expanduser(), limit, render.note)


def load_defaults() -> Defaults:
    """Read the config file and the environment.

    Raises
    ------
    ConfigError
        The file is missing although ``OMNI_CONFIG`` names it, cannot be read, or holds unknown or wrong entries.
    """
    path = config_path()
    values: dict[str, object] = {}
    if path.is_file():
        values = _read(path)
    elif os.environ.get("OMNI_CONFIG"):
        raise ConfigError(f"{path}: no such config file (OMNI_CONFIG names it)")
    for key in KEYS:
        if text := os.environ.get(f"OMNI_{key.upper()}"):
            values[key] = text
    return Defaults(**values)  # type: ignore[arg-type]


def _read(path: Path) -> dict[str, object]:
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must hold `key: value` lines")
    problems = []
    for key, value in data.items():
        if key == "set":
            if not isinstance(value, list) or not all(isinstance(v, str) and "=" in v for v in value):
                problems.append(f"{path}: set: must be a list of key=value")
        elif key not in KEYS:
            problems.append(f"{path}: unknown key {key!r}{near_names(str(key), (*KEYS, 'set'))}")
        elif key == "cache_limit" and type(value) is int:
            data[key] = str(value)
        elif not isinstance(value, str):
            problems.append(f"{path}: {key}: must be text")
    if problems:
        raise ConfigError(problems)
    return {key: tuple(value) if key == "set" else value for key, value in data.items()}
