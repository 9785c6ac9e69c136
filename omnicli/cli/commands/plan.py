"""``omni plan``: does it fit, before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from omnicli.cli import options as opt
from omnicli.cli import render

if TYPE_CHECKING:
    from omnicli.planning.fit import Change
    from omnicli.planning.plan import Plan

EXAMPLES = """\b
Examples:
  omni plan film.mp4 --model qwen2.5-omni-7b
  omni plan film.mp4 --model qwen3-omni-30b --preset full --fps 2 --json"""

PLACE = 60
"""In the order of the help."""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("plan", epilog=EXAMPLES)(plan)


@opt.shared(*opt.PRESET, "fps", "max_frames", "start", "end", "audio", "max_new_tokens", *opt.DEVICE)
def plan(
    *,
    media: Annotated[str, typer.Argument(metavar="MEDIA", help="Film or sound file.", show_default=False)],
    json_out: opt.JsonFlag = False,
    given: opt.SharedOptions,
    verbose: opt.VerboseFlag = False,
) -> None:
    """Tell whether a question about a file would fit this machine, and what would make it fit.

    Nothing is decoded or loaded; models whose weights are not here can be named too. Exit 0: it fits, 4: it does not.
    """
    from omnicli.cli import answering
    from omnicli.errors import MemoryLimitError
    from omnicli.media.probe import probe
    from omnicli.planning import fit
    from omnicli.planning import plan as planning

    path = answering.check_media(media)
    config = answering.resolve(given)
    info = probe(path)
    made = planning.make_plan(info, config)
    found = [] if made.fits else fit.changes(info, config, made)
    if json_out:
        render.print_json(planning.to_dict(info, config, made, found))
    else:
        render.write_text("\n".join(describe(made, found)) + "\n")
    if not made.fits:
        raise typer.Exit(MemoryLimitError.exit_code)


def describe(plan: Plan, found: list[Change]) -> list[str]:
    """Return a plan as lines for a person."""
    from omnicli.planning.plan import show

    m, (v, a), (kv, ka) = plan.media, plan.encoded, plan.kept
    scaled = f", time scaled by {plan.time_scale:.4f}" if plan.time_scale not in (None, 1) else ""
    free = {"host": plan.host_free, "device": plan.device_free}
    rows = [
        ("frames", f"{m.frames:,} of {m.width} x {m.height}" if m.frames else "none"),
        ("picture tokens", f"{v:,} encoded, {kv:,} kept"),
        ("sound tokens", f"{a:,} encoded, {ka:,} kept"),
        (
            "largest position",
            f"{plan.position:,}{scaled}, trained up to {plan.trained:,}"
            + (" (beyond it)" if plan.position >= plan.trained else ""),
        ),
        (
            "weights",
            f"{show(plan.parts['weights'])} in {plan.dtype}"
            + (f", the LLM's layers in {plan.quantize}" if plan.quantize != "none" else "")
            + (f"; {show(plan.parts['encoder_weights'])} of the encoders in turn with the LLM" if plan.offload else ""),
        ),
        ("encoders, working", show(plan.parts["encoders"])),
        ("encoded tokens", show(plan.parts["tokens"])),
        ("kept tokens, copied", show(plan.parts["kept"])),
        ("KV cache", f"{show(plan.parts['kv'])}, {plan.layer_tokens:,} media tokens in a layer"),
        ("prefill, working", show(plan.parts["prefill"])),
        ("frames waiting", show(plan.parts["frames"])),
        ("decoding, estimate", f"{plan.decode_cpu_s:.0f} s of CPU time"),
    ]
    for where, peak in (("host", plan.host), ("device", plan.device)):
        if peak is not None:
            left = free[where]
            known = "unknown what is free" if left is None else f"{show(left)} free"
            name = f" on {plan.device_name}" if where == "device" else ""
            rows.append((f"peak, {where}", f"{show(peak)}{name}, {known}"))
    if len(plan.cards) > 1:
        rows += [(on.name, f"{show(on.peak)} with {on.layers} layers, {show(on.free)} free") for on in plan.cards]
    rows.append(("verdict", "fits" if plan.fits else "does not fit: " + "; ".join(plan.problems)))
    rows += [("would fit", f"{c.text} ({sum(c.plan.kept):,} tokens kept, {_peak(c.plan)})") for c in found]
    if not plan.fits and not found:
        rows.append(("would fit", "no change of settings"))
    return render.table(rows).splitlines()


def _peak(plan: Plan) -> str:
    from omnicli.planning.plan import show

    return f"{show(plan.host)} of host memory" + (f", {show(plan.device)} on the device" if plan.device else "")
