"""``omni cache``: what is kept of films that were looked at; list it, check it, clear it. Imports no torch."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omnicli.cli import defaults, render
from omnicli.cli import options as opt
from omnicli.errors import ConfigError

if TYPE_CHECKING:
    from omnicli.encode.cache import Cache, Item

cache = typer.Typer(
    name="cache",
    help="List, check and clear the encoded films that are kept for the next question.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog="\b\nExamples:\n  omni cache ls\n  omni cache info\n  omni cache clear --older-than 30d",
)

PLACE = 140
"""In the order of the help."""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.add_typer(cache)


@cache.command("ls", epilog="\b\nExamples:\n  omni cache ls\n  omni cache ls --json")
def ls(json_out: opt.JsonFlag = False, verbose: opt.VerboseFlag = False) -> None:
    """List the films that are kept, the last used first.

    A film that was encoded in several ways is there several times.
    """
    _, items = _open()
    facts = [describe(item) for item in reversed(items)]
    if json_out:
        render.print_json(facts)
        return
    rows = [("film", "length", "model", "size", "last used")]
    for fact in facts:
        if fact["damaged"]:
            rows.append(("(damaged)", "", "", show_size(fact["size"]), show_age(fact["age_s"])))
            continue
        length, model = show_length(fact["duration_s"]), fact["model"]["name"]
        rows.append((fact["film"], length, model, show_size(fact["size"]), show_age(fact["age_s"])))
    render.write_text(render.table(rows) + "\n")


@cache.command("info", epilog="\b\nExamples:\n  omni cache info\n  omni cache info --json")
def info(json_out: opt.JsonFlag = False, verbose: opt.VerboseFlag = False) -> None:
    """Tell where the cache is, how full it is, and what its limit is.

    Folder and limit are changed with cache_dir and cache_limit in the config file, or with OMNI_CACHE_DIR and
    OMNI_CACHE_LIMIT ("20 GB"; 0 keeps nothing).
    """
    kept, items = _open()
    folder = next(p for p in (kept.folder, *kept.folder.absolute().parents) if p.exists())
    facts: dict[str, Any] = {
        "folder": str(kept.folder),
        "entries": len(items),
        "size": sum(item.size for item in items),
        "limit": kept.limit,
        "disk_free": shutil.disk_usage(folder).free,
    }
    if json_out:
        render.print_json(facts)
        return
    rows = [
        (key.replace("_", " "), show_size(v) if key in ("size", "limit", "disk_free") else str(v))
        for key, v in facts.items()
    ]
    render.write_text(render.table(rows) + "\n")


@cache.command("clear", epilog="\b\nExamples:\n  omni cache clear\n  omni cache clear --older-than 30d")
def clear(
    older_than: Annotated[
        float | None,
        typer.Option(
            "--older-than", metavar="AGE", parser=opt.parse_age, help="Only what was not used for so long: 12h, 30d."
        ),
    ] = None,
    json_out: opt.JsonFlag = False,
    verbose: opt.VerboseFlag = False,
) -> None:
    """Remove what is kept. Other files in the folder stay."""
    kept, items = _open()
    gone = [item for item in items if older_than is None or time.time() - item.used_s > older_than]
    for item in gone:
        _remove(item)
    kept.sweep()
    freed = sum(item.size for item in gone)
    if json_out:
        render.print_json({"removed": len(gone), "size": freed})
    else:
        print(f"removed {len(gone)} of {len(items)}, {show_size(freed)}")


@cache.command("verify", epilog="\b\nExamples:\n  omni cache verify\n  omni cache verify --fix")
def verify(
    fix: Annotated[bool, typer.Option("--fix", help="Remove what is damaged.")] = False,
    json_out: opt.JsonFlag = False,
    verbose: opt.VerboseFlag = False,
) -> None:
    """Read everything that is kept and compare checksums.

    Exits with 1 if something is damaged and was not removed. What is damaged is never used: `omni ask` checks what it
    reads.
    """
    from omnicli.encode import tokenfile

    _, items = _open()
    damaged: list[dict[str, Any]] = []
    for item in items:
        try:
            tokenfile.check(item.path)
        except (tokenfile.DamagedError, OSError) as error:
            damaged.append({"entry": item.path.name, "reason": getattr(error, "strerror", None) or str(error)})
            if fix:
                _remove(item)
    if json_out:
        render.print_json({"checked": len(items), "damaged": damaged, "removed": len(damaged) if fix else 0})
    else:
        for each in damaged:
            print(f"{each['entry']}: {each['reason']}{'; removed' if fix else ''}")
        print(f"checked {len(items)}, damaged {len(damaged)}")
    if damaged and not fix:
        raise typer.Exit(1)


def _open() -> tuple[Cache, list[Item]]:
    """Return the cache and its entries, the least recently used first; `ConfigError` if its folder cannot be read."""
    kept = defaults.open_cache()
    try:
        return kept, kept.items()
    except OSError as error:
        raise ConfigError(f"{kept.folder}: cannot be read ({error.strerror}); choose another cache_dir") from error


def _remove(item: Item) -> None:
    try:
        item.path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{item.path}: cannot be removed ({error.strerror})") from error


def describe(item: Item) -> dict[str, Any]:
    """Return what is known of an entry; JSON-serialisable. With ``damaged`` there is nothing about the film."""
    from omnicli.encode import tokenfile

    facts: dict[str, Any] = {"entry": item.path.name, "size": item.size, "age_s": round(time.time() - item.used_s, 1)}
    with suppress(tokenfile.DamagedError, OSError):
        return {**facts, "damaged": False, **tokenfile.about(item.path)}
    return {**facts, "damaged": True}


def show_size(size: float) -> str:
    """Return bytes for a person, ``9.7 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def show_age(seconds: float) -> str:
    """Return an age for a person, ``3 h ago``."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return "just now"


def show_length(seconds: float) -> str:
    """Return a film's length as ``m:ss`` or ``h:mm:ss``."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
