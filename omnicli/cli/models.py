"""``omni models``: which models can be named, which of them are here, and what one of them is."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from omnicli import render
from omnicli.cli import options as opt
from omnicli.errors import ModelError

models = typer.Typer(
    name="models",
    help="List models and tell what one is.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog="\b\nExamples:\n  omni models list\n  omni models info pocket\n  omni models info ./my-checkpoint --json",
)


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.add_typer(models)


@models.command("list", epilog="\b\nExamples:\n  omni models list\n  omni models list --json")
def list_models(json_out: opt.JsonFlag = False, verbose: opt.VerboseFlag = False) -> None:
    """List the short names and whether each model's weights are on this machine."""
    from omnicli.models.loading import find_folder, short_names

    facts: list[dict[str, Any]] = []
    caveats = _caveats()
    for name, hub_id in short_names().items():
        try:
            folder, _ = find_folder(name)
            state, where = "here", str(folder)
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
        (f["name"], f["hub_id"] or "(in the package)", f["where"] if f["state"] == "here" else "missing") for f in facts
    ]
    print(render.table(rows))
    for name, why in caveats.items():
        print(f"{name}: experimental, {why}")
    print("Any checkpoint folder or hub id in the local cache of a supported architecture can be named as well.")


def _caveats() -> dict[str, str]:
    """Return why models are experimental, by short name, for those that are."""
    from omnicli import registry

    caveats: dict[str, str] = {}
    families = registry.models()
    for name in families:
        with contextlib.suppress(ModelError):  # a family's version guard; the others are listed
            family = families[name]
            if family.experimental:
                caveats |= dict.fromkeys(family.short_names, family.experimental)
    return caveats


@models.command("info", epilog="\b\nExamples:\n  omni models info pocket\n  omni models info ./my-checkpoint --json")
def info(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Short name, hub id or folder.", show_default=False)],
    json_out: opt.JsonFlag = False,
    verbose: opt.VerboseFlag = False,
) -> None:
    """Tell what a model is, from its folder, without loading it."""
    from omnicli.models.loading import check_weights, find_folder

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


def describe(name: str, folder: Path, revision: str) -> dict[str, Any]:
    """Return the facts of a checkpoint folder; JSON-serialisable. ``card`` is its card.json, or empty.

    Raises
    ------
    ModelError
        There is no readable config.json.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        text = (config.get("thinker_config") or config).get("text_config") or config
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{name}: no readable config.json in {folder}") from error
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
