"""Is a checkpoint what it should be: every file, every digest the hub recorded, every weight. Without the network.

Loads no weight, but reads every byte. Knows no family: which weights belong there, `OmniModel.check_weights` tells.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from omnicli.errors import ModelError, UnknownFamilyError
from omnicli.models import loading
from omnicli.models.weights import checkpoint, hub


@dataclass
class Verdict:
    """What `verify` found.

    Attributes
    ----------
    folder : Path
    revision : str
        Hub commit, ``local`` or ``packaged``.
    files : int
        Files that were looked at.
    hashed : int
        Those whose digest was compared; the others have none on record.
    weights : int
        Weights in them.
    accounted : bool or None
        Whether each weight is one that the family knows and none is missing; None: the family cannot tell.
    problems : list of str
        A line each.
    """

    folder: Path
    revision: str
    files: int = 0
    hashed: int = 0
    weights: int = 0
    accounted: bool | None = None
    problems: list[str] = field(default_factory=list)


def is_read(name: str) -> bool:
    """Tell whether a file of that name is read from a checkpoint, and so is fetched and verified."""
    return any(fnmatch(name, pattern) for pattern in checkpoint.READ)


def verify(name: str, report: Callable[[int, int], None] = lambda done, total: None) -> Verdict:
    """Check a checkpoint; ``report`` is told the bytes that were read, and all.

    Raises
    ------
    ModelError
        There is no such model here.
    """
    folder, revision = loading.find_folder(name)
    found = Verdict(folder, revision)
    try:
        _check_files(folder, found, report)
        _check_weights(name, folder, found)
    except OSError as error:
        found.problems.append(f"{error.filename or folder}: cannot be read ({error.strerror or error})")
    except ModelError as error:
        found.problems.append(str(error).removeprefix(f"{name}: "))
    return found


def _check_files(folder: Path, found: Verdict, report: Callable[[int, int], None]) -> None:
    """Compare the files with what the hub recorded of them."""
    recorded = hub.recorded(folder)
    here = {file.name: file for file in checkpoint.read_files(folder) if file.is_file()}
    gone = sorted(name for name in recorded if "/" not in name and is_read(name) and name not in here)
    found.problems += [f"{name}: is not here" for name in gone]
    total, done = sum(file.stat().st_size for file in here.values()), 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        report(done, total)

    for name, file in here.items():
        found.files += 1
        size, known = file.stat().st_size, recorded.get(name, hub.Recorded(None, None))
        if known.size is not None and size != known.size:
            found.problems.append(f"{name}: has {size} bytes, not {known.size}")
        elif known.digest is not None:
            found.hashed += 1
            if hub.digest(file, known.digest, count) != known.digest:
                found.problems.append(f"{name}: its content is not what the hub has ({known.digest[:12]}...)")


def _check_weights(name: str, folder: Path, found: Verdict) -> None:
    """Check settings, headers, the index, and that the family knows each weight and misses none."""
    from safetensors import SafetensorError, safe_open

    family = loading.find_family(name, folder)
    with suppress(UnknownFamilyError):
        loading.find_facts(name)
    shapes: dict[str, tuple[int, ...]] = {}
    where: dict[str, str] = {}
    index, whole = checkpoint.weight_index(name, folder), True
    for file in checkpoint.weight_files(name, folder):
        try:
            inside = checkpoint.shapes(name, file)
            with safe_open(file, "numpy"):  # checks every offset against type and shape
                pass
        except ModelError as error:
            found.problems.append(str(error).removeprefix(f"{name}: "))
            whole = False
            continue
        except SafetensorError as error:
            found.problems.append(f"{file.name}: its header is damaged ({error})")
            whole = False
            continue
        found.problems += [f"{file.name}: holds {key} again" for key in sorted(inside.keys() & shapes.keys())[:1]]
        shapes |= inside
        where |= dict.fromkeys(inside, file.name)
    found.weights = len(shapes)
    if not whole:
        return
    if index is not None and index != where:
        wrong = sorted(key for key in index.keys() | where.keys() if index.get(key) != where.get(key))
        found.problems.append(
            f"{checkpoint.INDEX}: {len(wrong)} weights are not where it says, the first is {wrong[0]}"
        )
        return
    problems = family.check_weights(name, folder, shapes)
    if problems is not None:
        found.accounted = not problems
        found.problems += problems
