"""``omni models``: which models can be named, which of them are here, and what one of them is."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from omnicli.cli import options as opt
from omnicli.cli import render
from omnicli.errors import ModelError, UsageError

models = typer.Typer(
    name="models",
    help="List, fetch and check models.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog="\b\nExamples:\n  omni models list\n  omni models info pocket\n  omni models info ./my-checkpoint --json"
    "\n  omni models pull qwen2.5-omni-3b\n  omni models verify qwen2.5-omni-3b",
)
NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Short name, hub id (either @REVISION) or folder.", show_default=False)
]
QuietFlag = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]

PLACE = 90
"""In the order of the help."""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.add_typer(models)


@models.command("list", epilog="\b\nExamples:\n  omni models list\n  omni models list --json")
def list_models(json_out: opt.JsonFlag = False, verbose: opt.VerboseFlag = False) -> None:
    """List the short names and whether each model's weights are on this machine."""
    from omnicli.models.loading import find_folder, short_names
    from omnicli.models.weights.checkpoint import check_weights

    facts: list[dict[str, Any]] = []
    caveats = _caveats()
    for name, hub_id in short_names().items():
        try:
            folder, _ = find_folder(name)
            state, where = "here", str(folder)
            try:
                check_weights(name, folder)
            except ModelError as error:
                state, where = "incomplete", str(error)
        except ModelError as error:
            state, where = "missing", str(error)
        facts.append(
            {"name": name, "hub_id": hub_id or None, "state": state, "where": where, "experimental": caveats.get(name)}
        )
    if json_out:
        render.print_json(facts)
        return
    rows = [("model", "hub id", "weights")]
    rows += [
        (f["name"], f["hub_id"] or "(in the package)", f["where"] if f["state"] == "here" else f["state"])
        for f in facts
    ]
    print(render.table(rows))
    for name, why in caveats.items():
        print(f"{name}: experimental, {why}")
    print("Any checkpoint folder or hub id in the local cache of a supported architecture can be named as well.")


def _caveats() -> dict[str, str]:
    """Return why models are experimental, by short name, for those that are."""
    from omnicli.models import registry

    caveats: dict[str, str] = {}
    families = registry.families()
    for name in families:
        with contextlib.suppress(ModelError):  # a family's version guard; the others are listed
            family = families[name]
            if family.experimental:
                caveats |= dict.fromkeys(family.short_names, family.experimental)
    return caveats


@models.command("info", epilog="\b\nExamples:\n  omni models info pocket\n  omni models info ./my-checkpoint --json")
def info(
    name: NameArgument,
    json_out: opt.JsonFlag = False,
    verbose: opt.VerboseFlag = False,
) -> None:
    """Tell what a model is, from its folder, without loading it."""
    from omnicli.models.loading import find_folder
    from omnicli.models.weights.checkpoint import check_weights

    folder, revision = find_folder(name)
    facts = describe(name, folder, revision)
    try:
        check_weights(name, folder)
        facts["weights"] = "complete"
    except ModelError as error:
        facts["weights"] = str(error)
    if json_out:
        render.print_json(facts)
        return
    card = facts.pop("card")
    rows = [(key.replace("_", " "), str(value)) for key, value in facts.items() if value is not None]
    print(render.table(rows))
    for key, value in card.items():
        print(f"{key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")


@models.command(
    "pull",
    epilog="\b\nExamples:\n  omni models pull qwen2.5-omni-3b\n  omni models pull Qwen/Qwen2.5-Omni-7B --revision main"
    "\n  HF_TOKEN=... omni models pull OWNER/GATED",
)
def pull(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Short name or hub id, either @REVISION.", show_default=False)
    ],
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="REV", help="Branch, tag or commit.  [default: main]")
    ] = None,
    quiet: QuietFlag = False,
    json_out: opt.JsonFlag = False,
    verbose: opt.VerboseFlag = False,
) -> None:
    """Fetch a model from the hub into its local cache.

    Nothing else in omni uses the network. Fetches settings, tokenizer and all safetensors, those of a talker too, which
    is never loaded; no other files. What is here is not fetched again, and what was interrupted goes on. Prints the
    commit, which NAME@COMMIT pins everywhere.
    """
    from omnicli.models import loading
    from omnicli.models.weights import hub
    from omnicli.models.weights.verify import is_read

    if loading.looks_like_path(name):
        raise UsageError(f"{name} is a path; give a short name (omni models list) or a hub id, OWNER/NAME")
    hub_id, pinned = loading.hub_id(name)
    if pinned is not None and revision is not None and pinned != revision:
        raise UsageError(f"{name} and --revision {revision} contradict each other")
    with _bytes_bar("fetching", quiet or json_out) as report:
        got = hub.pull(
            hub_id, revision or pinned, is_read, lambda folder: loading.check_family(name, folder), report=report
        )
    if json_out:
        facts = {"name": name, "hub_id": hub_id, "commit": got.commit, "folder": str(got.folder)}
        render.print_json({**facts, "fetched_bytes": got.fetched})
        return
    print(f"{hub_id}@{got.commit}")
    print(got.folder)


@models.command(
    "verify", epilog="\b\nExamples:\n  omni models verify pocket\n  omni models verify ./my-checkpoint --json"
)
def verify(
    name: NameArgument,
    quiet: QuietFlag = False,
    json_out: opt.JsonFlag = False,
    verbose: opt.VerboseFlag = False,
) -> None:
    """Check a model's files against the hub's records, and that each weight is known and none is missing.

    Uses no network: digests and sizes are those that were kept when the model was fetched; a folder that was copied
    here has none. Exits with 5 and a line for each problem.
    """
    from omnicli.models.weights.verify import verify as check

    with _bytes_bar("reading", quiet or json_out) as report:
        found = check(name, report)
    if json_out:
        facts = {"name": name, "folder": str(found.folder), "revision": found.revision, "files": found.files}
        facts |= {"hashed": found.hashed, "weights": found.weights, "accounted": found.accounted}
        render.print_json({**facts, "problems": found.problems})
    else:
        for problem in found.problems:
            render.note(f"{name}: {problem}")
    if found.problems:
        raise typer.Exit(ModelError.exit_code)
    if not json_out:
        known = "all accounted for" if found.accounted else "not compared: the family cannot tell which belong there"
        print(f"{name} ({found.revision}): good")
        print(f"{found.files} files, {found.hashed} as recorded by the hub; {found.weights} weights, {known}")


@contextlib.contextmanager
def _bytes_bar(what: str, hidden: bool) -> Iterator[Callable[[int, int], None]]:
    """Give a function that draws bytes done and all of them on a terminal's stderr, or does nothing."""
    if hidden or not render.on_terminal():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(what), BarColumn(24), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def describe(name: str, folder: Path, revision: str) -> dict[str, Any]:
    """Return the facts of a checkpoint folder; JSON-serialisable. ``card`` is its card.json, or empty.

    Raises
    ------
    ModelError
        There is no readable config.json.
    """
    from omnicli.models.weights.checkpoint import read_config

    config = read_config(name, folder)
    text = config.get("thinker_config") or config
    text = (text.get("text_config") if isinstance(text, dict) else None) or config
    text = text if isinstance(text, dict) else {}
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        card = {}
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    return {
        "name": name,
        "folder": str(folder),
        "revision": revision,
        "model_type": config.get("model_type"),
        "weights_mib": round(size / 2**20, 1),
        "hidden_size": text.get("hidden_size"),
        "layers": text.get("num_hidden_layers"),
        "heads": text.get("num_attention_heads"),
        "kv_heads": text.get("num_key_value_heads"),
        "max_position": text.get("max_position_embeddings"),
        "card": card if isinstance(card, dict) else {},
    }
