"""What an answer says about its run beside the answer: identity, token counts, peak memory, versions.

Reads facts off and decides nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from omnicli.answer import evidence
from omnicli.models import identity, timescale
from omnicli.planning import flops as cost
from omnicli.types import Answer, MediaTokens, Modality, Selection
from omnicli.utils import memory

if TYPE_CHECKING:
    from omnicli.compress.base import Compressor
    from omnicli.config.config import Config
    from omnicli.encode.film import EncodedFilm
    from omnicli.llm.attention_recorder import AttentionRecorder
    from omnicli.llm.decode import Generation
    from omnicli.llm.prefill import PrefillResult
    from omnicli.models.base import OmniModel
    from omnicli.models.parts import EncodedClip
    from omnicli.utils.timing import Times


def answer(
    film: EncodedFilm, question: str, config: Config, used: OmniModel, *,
    clip: EncodedClip, prompt_length: int, kept: MediaTokens, selection: Selection, read: PrefillResult, reused: int,
    text: Generation, times: Times, first_token_s: float, recorder: AttentionRecorder | None = None,
    history: Sequence[tuple[str, str]] = (),
) -> Answer:  # fmt: skip
    """Return the answer with everything that is known of its run; ``clip``: as the LLM's positions have it."""
    around = prompt_length - len(kept)
    counts = tokens(clip.tokens, kept, config.compressor, read.levels, used.depth)
    counts |= {"text": around, "reused": reused, "generated": len(text.token_ids), "selection": selection.report}
    counts |= {"timeline": timeline(clip.tokens, kept)}
    return Answer(
        id=answer_id(film.info.path, question, config, history),
        media=str(film.info.path),
        question=question,
        answer=text.text.strip(),
        model=identity.of_model(used),
        preset=config.preset,
        config=config.to_dict(),
        media_used=film.media.used,
        tokens=counts,
        positions=positions(clip, used),
        stages={name: round(seconds, 4) for name, seconds in times.stages.items()},
        busy={name: round(seconds, 4) for name, seconds in times.busy.items()},
        wall_s=round(times.wall_s, 4),
        time_to_first_token_s=round(first_token_s, 4),
        peak_memory=memory.process_peaks(*used.devices),
        flops=cost.prefill_flops(used.facts.llm, around, len(clip.tokens), read.by_layer),
        evidence=[] if recorder is None else evidence.ranges(kept, recorder.scores()),
        warnings=[*film.media.warnings, *cautions(used, clip, config, text.next_position - 1)],
        versions=identity.versions(),
        cached=film.cached,
    )


def answer_id(path: Path, question: str, config: Config, history: Sequence[tuple[str, str]] = ()) -> str:
    """Return 12 hex digits that are equal for the same file name and size, question, history and settings."""
    size = path.stat().st_size if path.is_file() else None
    facts = [path.name, size, question, config.to_dict(), *history]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def positions(clip: EncodedClip, used: OmniModel) -> dict[str, float | None]:
    """Return the largest position of the media, the model's range, and what time was multiplied with, if it is told."""
    scale = None if clip.origin is None else round(clip.time_scale, 6)
    return {"largest": round(clip.max_position, 3), "trained": used.max_position, "time_scale": scale}


def cautions(used: OmniModel, clip: EncodedClip, config: Config, reached: float) -> list[str]:
    """Return what to know of the model: that it is unproven, or what was done to keep to what it was trained for.

    ``reached``: the largest position of all, text and answer included.
    """
    found = [f"{used.name}: experimental, {used.experimental}"] if used.experimental else []
    scale = None if clip.origin is None else clip.time_scale
    return found + timescale.remarks(config, scale, reached=reached, trained=used.max_position, name=used.name)


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
