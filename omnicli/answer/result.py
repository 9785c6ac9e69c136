"""What an answer says about its run beside the answer: identity, token counts, peak memory, versions.

Reads facts off and decides nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from omnicli.answer import evidence
from omnicli.answer.answer import Answer
from omnicli.models import identity, timescale
from omnicli.planning import flops
from omnicli.types import MediaTokens, Modality, Selection
from omnicli.utils import memory

if TYPE_CHECKING:
    from omnicli.compress.base import Compressor
    from omnicli.config.config import Config
    from omnicli.encode.film import EncodedFilm
    from omnicli.llm.decode import Generation
    from omnicli.llm.prefill import PrefillResult
    from omnicli.models.base import OmniModel
    from omnicli.models.parts import EncodedClip
    from omnicli.utils.context import RunContext


@dataclass(frozen=True)
class Run:
    """One question's way through the flow.

    Attributes
    ----------
    history : tuple of (str, str)
        Questions and answers that stood before the question, oldest first.
    clip : EncodedClip
        The film's tokens as the LLM's positions have them; ``kept``: those that entered it.
    before : sequence of (int, int)
        Positions and layers that the LLM read to choose them.
    length, reused : int
        Positions of the whole prompt, and how many of them an earlier question had read.
    first_s : float
        Seconds from the compression to the first token.
    """

    film: EncodedFilm
    question: str
    config: Config
    model: OmniModel
    history: tuple[tuple[str, str], ...]
    clip: EncodedClip
    selection: Selection
    kept: MediaTokens
    length: int
    before: Sequence[tuple[int, int]]
    read: PrefillResult
    reused: int
    text: Generation
    first_s: float
    context: RunContext


def answer(run: Run) -> Answer:
    """Return the answer with everything that is known of its run."""
    film, question, config, model = run.film, run.question, run.config, run.model
    clip, kept, text, times = run.clip, run.kept, run.text, run.film.times + run.context.clock.report()
    around = run.length - len(kept)
    counts = tokens(clip.tokens, kept, config.compressor, run.read.levels, model.depth)
    counts |= {"text": around, "reused": run.reused, "generated": len(text.token_ids)}
    counts |= {"selection": run.selection.report, "timeline": timeline(clip.tokens, kept)}
    return Answer(
        id=answer_id(film.info.path, question, config, run.history),
        media=str(film.info.path),
        question=question,
        answer=text.text.strip(),
        model=identity.of_model(model),
        preset=config.preset,
        config=config.to_dict(),
        media_used=film.media.used,
        tokens=counts,
        positions=positions(clip, model),
        stages={name: round(seconds, 4) for name, seconds in times.stages.items()},
        busy={name: round(seconds, 4) for name, seconds in times.busy.items()},
        wall_s=round(times.wall_s, 4),
        time_to_first_token_s=round(film.times.wall_s + run.first_s, 4),
        peak_memory=memory.process_peaks(*model.devices),
        flops=flops.prefill_flops(model.facts.llm, around, len(clip.tokens), run.read.by_layer, run.before),
        evidence=evidence.ranges(kept, run.context.recorder.scores()),
        warnings=[*film.media.warnings, *run.selection.notes, *cautions(model, clip, config, text.next_position - 1)],
        versions=identity.versions(),
        cached=film.cached,
    )


def answer_id(path: Path, question: str, config: Config, history: Sequence[tuple[str, str]] = ()) -> str:
    """Return 12 hex digits that are equal for the same file name and size, question, history and settings."""
    size = path.stat().st_size if path.is_file() else None
    facts = [path.name, size, question, config.to_dict(), *history]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def positions(clip: EncodedClip, model: OmniModel) -> dict[str, float | None]:
    """Return the largest position of the media, the model's range, and what time was multiplied with, if it is told."""
    scale = None if clip.origin is None else round(clip.time_scale, 6)
    return {"largest": round(clip.max_position, 3), "trained": model.max_position, "time_scale": scale}


def cautions(model: OmniModel, clip: EncodedClip, config: Config, reached: float) -> list[str]:
    """Return what to know of the model: that it is unproven, or what was done to keep to what it was trained for.

    ``reached``: the largest position of all, text and answer included.
    """
    found = [f"{model.name}: experimental, {model.experimental}"] if model.experimental else []
    scale = None if clip.origin is None else clip.time_scale
    return found + timescale.remarks(config, scale, reached=reached, trained=model.max_position, name=model.name)


def tokens(
    clip: MediaTokens, kept: MediaTokens, compressor: Compressor, levels: Sequence[tuple[int, int, int]], depth: int
) -> dict[str, Any]:
    """Return the tokens per modality that were encoded and kept, and what share the settings and the layers saw.

    ``levels``: picture and sound tokens from each layer on, of ``depth``. ``retention_nominal`` is what the settings
    ask for (null: no share), ``retention_layers`` the mean over the LLM's layers; per modality.
    """
    names = {m.name.lower(): m for m in Modality}
    counts: dict[str, Any] = {n: {"encoded": clip.count(m), "kept": kept.count(m)} for n, m in names.items()}
    ends = [first for first, *_ in levels[1:]] + [depth]
    read = [
        sum((end - level[0]) * level[1 + i] for level, end in zip(levels, ends, strict=True)) / depth
        for i in range(len(names))
    ]
    asked = compressor.nominal(clip.count(Modality.VIDEO), clip.count(Modality.AUDIO))
    there = [c["encoded"] for c in counts.values()]
    return counts | {
        "by_layer": [[first, video + audio] for first, video, audio in levels],
        "retention": round(len(kept) / len(clip), 6),
        "retention_nominal": None if asked is None else _shares(names, asked, there),
        "retention_layers": _shares(names, [r / max(1, n) for r, n in zip(read, there, strict=True)], there),
    }


STEPS = 100
"""Most steps of a timeline."""


def timeline(clip: MediaTokens, kept: MediaTokens) -> dict[str, Any]:
    """Return how many tokens there were and how many entered the LLM in each of at most `STEPS` steps of the film.

    ``start_s`` and ``step_s`` (whole seconds) in file seconds, and per modality ``encoded`` and ``kept``, one number a
    step.
    """
    start = math.floor(float(clip.start_s.min()))
    step = max(1, math.ceil((float(clip.start_s.max()) - start + 1e-9) / STEPS))
    count = int((float(clip.start_s.max()) - start) // step) + 1

    def counts(tokens: MediaTokens, kind: Modality) -> list[int]:
        at = ((tokens.start_s[tokens.modality == kind] - start) // step).long()
        found: list[int] = torch.bincount(at, minlength=count).tolist()
        return found

    by_kind = {m.name.lower(): {"encoded": counts(clip, m), "kept": counts(kept, m)} for m in Modality}
    return {"start_s": start, "step_s": step, **by_kind}


def _shares(names: Iterable[str], shares: Sequence[float], there: Sequence[int]) -> dict[str, float | None]:
    """Name shares; of what a file does not hold there is none."""
    return {name: round(s, 6) if n else None for name, s, n in zip(names, shares, there, strict=True)}
