"""What would make a run fit: more cards, offloading, smaller budgets, fewer or smaller frames, shorter spans, bits.

The one rule of ``--fit`` (`smaller`), what `omni plan` proposes (`changes`), and what `omni ask` does about a run that
does not fit (`fitted`). Every proposal is planned before it is made. Imports neither torch nor transformers.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from omnicli.compress.base import Compressor
from omnicli.config.config import Config, load_config
from omnicli.errors import ConfigError, MediaError, MemoryLimitError, ModelError, UnknownFamilyError
from omnicli.models.weights import devices as cards
from omnicli.planning import machine
from omnicli.planning.plan import Change, Plan, make_plan

if TYPE_CHECKING:
    from omnicli.media.probe import MediaInfo

_STEPS = 6
"""How often a budget is made smaller."""


def smaller(config: Config) -> tuple[Config, str]:
    """Return the settings with a smaller budget, and what to call them; what ``--fit`` tries first.

    Half of ``tokens`` or ``retention`` where the method has one of them set, chooses by it before the LLM, and can keep
    so little; else (``full``, ``fastv``, and methods with shares by modality) the method of the preset ``avoc``, which
    reads 10,240 tokens of a film however long it is.
    """
    chooses = type(config.compressor).compress is not Compressor.compress
    for name in ("tokens", "retention"):
        value = getattr(config.compressor, name, None)
        if value and chooses:
            half = max(1, value // 2) if isinstance(value, int) else value / 2
            try:
                small = dataclasses.replace(config.compressor, **{name: half})
            except ConfigError:  # DyCoke keeps a quarter at least
                break
            return dataclasses.replace(config, compressor=small), f"{config.method}.{name}={half:g}"
    return dataclasses.replace(config, preset="avoc", compressor=load_config("avoc").compressor), "preset avoc"


def changes(info: MediaInfo, config: Config, plan: Plan, limit: int = 3) -> list[Change]:
    """Return up to ``limit`` changes, each of which makes the run fit, the smallest first.

    Of each kind the first step that fits: more cards and offloading, which change no answer; a smaller budget, fewer
    frames, smaller frames, a shorter span; the LLM's weights in fewer bits, a smaller model, half the precision. Where
    none of them is enough, each together with a smaller budget; then with half the precision, fewer bits, offloading,
    one after the other.
    """
    for before, base in _bases(config, plan):
        found = list(itertools.islice(_fitting(info, base, plan), limit))
        if found:
            return [dataclasses.replace(change, text=f"{before}{change.text}") for change in found]
    return []


def _bases(config: Config, plan: Plan) -> Iterator[tuple[str, Config]]:
    """Yield settings to begin with and their options: the own ones, a smaller budget, then ever smaller weights."""
    yield "", config
    budget, text = smaller(config)
    yield f"{_flag(text)} ", budget
    options = ""
    if plan.dtype == "float32":
        config, options = dataclasses.replace(config, dtype="bfloat16"), "--dtype bfloat16 "
        yield options, config
    if config.quantize == "none":
        kind = _bit_kinds()[-1]
        config, options = dataclasses.replace(config, quantize=kind), f"{options}--quantize {kind} "
        yield options, config
    if len(plan.cards) == 1 and not config.offload:
        yield f"{options}--offload ", dataclasses.replace(config, offload=True)


def _fitting(info: MediaInfo, config: Config, plan: Plan) -> Iterator[Change]:
    for kind in _kinds(info, config, plan):
        for text, changed, model in kind:
            try:
                result = make_plan(info, changed)
            except (MediaError, ModelError):
                continue
            if result.fits:
                yield Change(text, changed, result, model)
                break


def _kinds(info: MediaInfo, config: Config, plan: Plan) -> Iterator[Iterator[tuple[str, Config, bool]]]:
    if len(plan.cards) == 1 and not config.offload and len(machine.devices()) > 1:
        yield iter([(f"--device {cards.ALL}", dataclasses.replace(config, device=cards.ALL), False)])
    if plan.device is not None and not config.offload:
        yield iter([("--offload", dataclasses.replace(config, offload=True), False)])
    yield _budgets(config)
    if plan.media.frames:
        yield (
            (f"--fps {fps:g}", _with(config, fps=fps), False) for fps in (config.media.fps / 2**i for i in range(1, 5))
        )
        area = plan.media.width * plan.media.height
        yield (
            (f"--set media.max_pixels={size}", _with(config, max_pixels=size, min_pixels=None), False)
            for size in (area // 2, area // 4)
        )
    start = config.media.start or 0.0
    end = info.duration_s if config.media.end is None else min(config.media.end, info.duration_s)
    ends = [round(start + (end - start) * part, 1) for part in (0.75, 0.5, 0.25, 0.125)]
    yield ((f"--end {stop:g}", _with(config, end=stop), False) for stop in ends if stop > start)
    if config.quantize == "none":
        yield _bits(config, plan)
    yield _models(config, plan)
    if plan.dtype == "float32" and config.dtype != "bfloat16":
        yield iter([("--dtype bfloat16", dataclasses.replace(config, dtype="bfloat16"), False)])


def _bits(config: Config, plan: Plan) -> Iterator[tuple[str, Config, bool]]:
    """Yield the LLM's weights in 8 and, where the library for it is there, 4 bits; then each with offloading."""
    kinds = _bit_kinds()
    for kind in kinds:
        yield f"--quantize {kind}", dataclasses.replace(config, quantize=kind), False
    if plan.device is not None and not config.offload:
        for kind in kinds:
            yield f"--quantize {kind} --offload", dataclasses.replace(config, quantize=kind, offload=True), False


def _bit_kinds() -> list[str]:
    return ["int8", *(["int4"] if importlib.util.find_spec("bitsandbytes") else [])]


def _with(config: Config, **media: Any) -> Config:
    return dataclasses.replace(config, media=dataclasses.replace(config.media, **media))


def _budgets(config: Config) -> Iterator[tuple[str, Config, bool]]:
    for _ in range(_STEPS):
        config, text = smaller(config)
        yield _flag(text), config, False


def _flag(text: str) -> str:
    """Return what `smaller` calls its settings as an option."""
    setting = text.removeprefix("preset ")
    return f"--set {text}" if setting == text else f"--preset {setting}"


def _models(config: Config, plan: Plan) -> Iterator[tuple[str, Config, bool]]:
    """Yield the released models with fewer weights, the largest first."""
    from omnicli.models import registry

    item = 4 if plan.dtype == "float32" else 2
    sizes = {name: values * item for facts in registry.known_facts() for name, values in facts.known_weights().items()}
    before = sizes.get(config.model or "", plan.parts["weights"])  # in full precision where that is known
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        if sizes[name] < before:
            yield f"--model {name}", dataclasses.replace(config, model=name), True


def explain(info: MediaInfo, plan: Plan, found: list[Change]) -> str:
    """Return one line: why a run does not fit, and what would."""
    advice = f"try {', or '.join(change.text for change in found)}" if found else "no change of settings helps"
    return f"{info.path}: does not fit: {'; '.join(plan.problems)}; {advice}"


def fitted(info: MediaInfo, config: Config, fit: bool) -> tuple[Config, str | None]:
    """Return the settings to go on with, and a note if they are others.

    Parameters
    ----------
    fit : bool
        Take the smallest change that fits, but never another model.

    A model of which nothing is known without its code is not planned.

    Raises
    ------
    MemoryLimitError
        It does not fit.
    """
    try:
        plan = make_plan(info, config)
    except UnknownFamilyError:
        return config, None
    if plan.fits:
        return config, None
    found = changes(info, config, plan)
    usable = next((change for change in found if not change.model), None)
    if not fit or usable is None:
        raise MemoryLimitError(explain(info, plan, found))
    return usable.config, f"did not fit ({'; '.join(plan.problems)}); answered with {usable.text} (--fit)"


__all__ = ["Change", "changes", "explain", "fitted", "smaller"]
