"""Which model for which card: what `omni plan` says of a film, for cards that need not be here.

    python benchmarks/fit.py [--preset NAME] [--seconds N]

Prints a Markdown table. For each size of card and each model it names the first way of keeping the weights that fits,
in the order none, `--offload`, `--quantize int8`, both, `--quantize int4`, both: what changes no answer comes first.
The film is the one that `omni doctor` assumes, 1280 x 720 at 25 frames a second with sound, looked at once a second.
Nothing is loaded and nothing is measured.
"""

from __future__ import annotations

import argparse
import dataclasses

from omnicli.config.config import load_config
from omnicli.doctor.models import film
from omnicli.planning import machine, plan

GIB = 1 << 30
CARDS_GIB = (8, 12, 16, 24, 32, 48, 80)
FREE = 0.95
"""Share of a card's memory that counts as free: drivers and displays take some."""
MODELS = ("qwen2.5-omni-3b", "qwen2.5-omni-7b", "minicpm-o-4.5", "qwen3-omni-30b")
WAYS = (("none", False), ("none", True), ("int8", False), ("int8", True), ("int4", False), ("int4", True))


def make_plan(seconds: int, model: str, preset: str, quantize: str, offload: bool) -> plan.Plan:
    """Return the plan of one question in bfloat16, on a card that is large enough for anything."""
    config = dataclasses.replace(
        load_config(preset), model=model, quantize=quantize, offload=offload, device="cuda:0", dtype="bfloat16"
    )
    return plan.make_plan(film(seconds), config)


def options(quantize: str, offload: bool) -> str:
    """Return a way of keeping the weights as options of the command line."""
    words = [f"--quantize {quantize}"] * (quantize != "none") + ["--offload"] * offload
    return f"`{' '.join(words)}`" if words else ""


ASSUMED = [machine.Device(0, "assumed", 1 << 40, 1 << 40)]
"""A card on which everything fits: what a plan needs there is then compared with the sizes of real ones."""


def table(preset: str, seconds: int) -> list[str]:
    """Return the lines of the table; `machine.devices` has to give `ASSUMED`."""
    lines = [
        "| card | model | options | of its tokens the LLM reads | planned peak on the card |",
        "|---|---|---|---|---|",
    ]
    plans = {(model, way): make_plan(seconds, model, preset, *way) for model in MODELS for way in WAYS}
    for card in CARDS_GIB:
        for model in MODELS:
            for way in WAYS:
                made = plans[model, way]
                peak, kept = made.device or 0, 100 * sum(made.kept) / sum(made.encoded)
                if peak <= FREE * card * GIB and not any("context" in problem for problem in made.problems):
                    lines.append(f"| {card} GiB | `{model}` | {options(*way)} | {kept:.1f} % | {peak / GIB:.1f} GiB |")
                    break
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--preset", default="avoc")
    parser.add_argument("--seconds", type=int, default=3600)
    given = parser.parse_args()
    machine.devices = lambda: ASSUMED
    print("\n".join(table(given.preset, given.seconds)))


if __name__ == "__main__":
    main()
