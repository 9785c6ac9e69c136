"""``omni doctor``: is this machine able to answer, and if not, what to do.

Most checks are `omnicli.doctor`'s; here are those of what belongs to the command line: presets, config file, caches.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from omnicli.cli import defaults, registry, render
from omnicli.cli import options as opt
from omnicli.cli.answering import POCKET_FOLDER, resolve
from omnicli.cli.commands.cache import show_size
from omnicli.errors import OmniError

if TYPE_CHECKING:
    from omnicli.doctor.check import Check

EXAMPLES = """\b
Examples:
  omni doctor
  omni doctor --json"""
SCHEMA = 1
LOW_DISK = 5 * 10**9
"""Less free space (bytes) where the caches lie is worth a word: a shard of a model's weights is as large."""

PLACE = 150
"""In the order of the help."""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("doctor", epilog=EXAMPLES)(doctor)


def doctor(json_out: opt.JsonFlag = False, verbose: opt.VerboseFlag = False) -> None:
    """Check this installation and machine, and tell which models fit; a remedy per problem.

    Exits with 0 if omni is usable (remarks do not count), with 1 if it is not.
    """
    from omnicli.doctor.check import guarded

    done = [guarded(check) for check in checks()]
    usable = all(c.status != "problem" for c in done)
    if json_out:
        render.print_json({"schema": SCHEMA, "usable": usable, "checks": [dataclasses.asdict(c) for c in done]})
    else:
        print(render.table([("check", "status", "found"), *((c.name, c.status, c.found) for c in done)]))
        for c in done:
            if c.details:
                print("\n" + render.table(_models_table(c.details)) + "\n")
        for c in done:
            if c.remedy:
                print(f"{c.name}: {c.remedy}")
        print("usable" if usable else "not usable as it is")
    if not usable:
        raise typer.Exit(1)


def checks() -> Sequence[Callable[[], Check]]:
    """Return all checks, in the order of the report."""
    from omnicli.doctor import hardware, software

    own = (pocket_model, models, methods, families, commands, presets, config_file, hub_cache, cache)
    return (*software.CHECKS, *hardware.CHECKS, *own)


def _models_table(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return the models as a table: weights, and per film whether it fits and what it would take."""
    titles = [f"{film['seconds'] // 60} min" for film in rows[0]["films"]]
    return [("model", "weights", *titles)] + [
        (r["name"], r["weights"], *(_verdict(film) for film in r["films"])) for r in rows
    ]


def _verdict(film: dict[str, Any]) -> str:
    from omnicli.planning.plan import show

    host, device = film["host_bytes"], film["device_bytes"]
    peak = "" if host is None else show(host) + (f" host, {show(device)} device" if device is not None else "")
    return f"fits ({peak})" if film["fits"] else "does not fit" + (f" ({peak})" if peak else "")


def pocket_model() -> Check:
    """Look for the weights inside the package."""
    from omnicli.doctor.check import result

    weights = POCKET_FOLDER / "model.safetensors"
    if (POCKET_FOLDER / "config.json").is_file() and weights.is_file():
        return result("pocket model", f"{weights} ({weights.stat().st_size / 2**20:.1f} MiB)")
    remedy = "its weights are not in this installation: reinstall, or make them with omni train pocket"
    return result("pocket model", f"no weights in {POCKET_FOLDER}", remedy, problem=True)


def models() -> Check:
    """Plan films of two lengths with every model, with the user's preset, device and number format."""
    from omnicli.doctor import models as survey

    return survey.models(resolve(opt.SharedOptions()))


def methods() -> Check:
    """Import every compression method."""
    from omnicli.config.registry import methods

    return _registered("methods", *methods().usable())


def families() -> Check:
    """Import every model family, and what is known of it without its code."""
    from omnicli.models.registry import facts, families

    found, problems = families().usable()
    return _registered("model families", found, problems + facts().usable()[1])


def commands() -> Check:
    """Import every command."""
    app = typer.Typer()
    problems = registry.add_all(app)
    names: Any = getattr(typer.main.get_command(app), "commands", {})
    return _registered("commands", names, problems)


def _registered(name: str, found: Collection[str], problems: Sequence[str]) -> Check:
    from omnicli.doctor.check import result

    remedy = "remove or mend it; the others are not affected" if problems else ""
    return result(name, "; ".join(problems) or f"{len(found)}: {', '.join(found)}", remedy)


def presets() -> Check:
    """Read the default preset."""
    from omnicli.config.config import DEFAULT_PRESET, load_config
    from omnicli.doctor.check import REINSTALL, result

    try:
        load_config(DEFAULT_PRESET, [])
    except OmniError as error:
        return result("presets", str(error), REINSTALL, problem=True)
    return result("presets", f"{DEFAULT_PRESET} can be read")


def config_file() -> Check:
    """Read the user's config file."""
    from omnicli.doctor.check import result

    path = defaults.config_path()
    try:
        mine = defaults.load_defaults()
    except OmniError as error:
        return result("config file", str(error), f"correct or remove {path}", problem=True)
    chosen = ", ".join(f"{k}={getattr(mine, k)}" for k in defaults.KEYS if getattr(mine, k))
    where = str(path) if path.is_file() else f"{path} (not there; not needed)"
    return result("config file", where + (f"; {chosen}" if chosen else ""))


def hub_cache() -> Check:
    """Tell where downloaded models lie, and which."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE)
    names = sorted(p.name.removeprefix("models--").replace("--", "/") for p in folder.glob("models--*"))
    found = f"{folder}: {', '.join(names[:8]) or 'no models'}" + (f" and {len(names) - 8} more" if names[8:] else "")
    return _place("hub cache", folder, found, "HF_HUB_CACHE")


def cache() -> Check:
    """Tell where encoded films lie, and how much room they have."""
    films = defaults.open_cache()
    try:
        found = f"{films.folder}: {show_size(films.size())} of {show_size(films.limit)}"
    except OSError as error:
        found = f"{films.folder}: {error.strerror}"
    return _place("cache", films.folder, found, "OMNI_CACHE_DIR")


def _place(name: str, folder: Path, found: str, variable: str) -> Check:
    """Tell whether a folder, or the nearest one above it that exists, can be written to and has room."""
    from omnicli.doctor.check import result

    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    try:
        free = shutil.disk_usage(there).free
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        return result(name, f"{found}; cannot be written: {error.strerror}", f"choose another folder with {variable}")
    remedy = f"little room is left on its disk: free some, or choose another folder with {variable}"
    return result(name, f"{found}; {show_size(free)} free on its disk", remedy if free < LOW_DISK else "")
