"""The flow: media -> encode -> compress -> prefill -> generate -> answer. Everything else is somewhere else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from omnicli import cost, facts
from omnicli.encode import Encoded, Progress, encode
from omnicli.errors import MemoryLimitError
from omnicli.llm.decode import DecodeOptions, generate
from omnicli.llm.kv import KVCache
from omnicli.llm.prefill import prefill
from omnicli.media.probe import MediaInfo, probe
from omnicli.models.base import CAPTURES, OmniModel
from omnicli.timing import StageClock
from omnicli.types import Answer, Modality

if TYPE_CHECKING:
    from omnicli.config import Config, MediaConfig

OnText = Callable[[int, str], None]


@dataclass(frozen=True)
class Film:
    """One file, decoded and encoded: what questions are asked about. ``shared``: stages and wall time so far."""

    info: MediaInfo
    media: Encoded
    shared: tuple[dict[str, float], float]


def ask(
    source: str | Path | MediaInfo, questions: Sequence[str], config: Config, model: OmniModel, *,
    on_text: OnText | None = None, on_progress: Progress | None = None, clock: StageClock | None = None,
) -> list[Answer]:  # fmt: skip
    """Answer questions about one file; it is decoded and encoded once.

    Parameters
    ----------
    source : str, Path or MediaInfo
        The file, or what `probe` found in it.
    on_text : callable
        Called with the question's index and each piece of its answer as it is written.
    on_progress : callable
        Called with stage, done, total; see `omnicli.encode.Progress`.
    clock : StageClock
        Already holds what was timed before, such as loading the model.

    Returns
    -------
    list of Answer
        One per question. Stages and wall time of each hold the shared ones (probe to encode) as well.

    Raises
    ------
    OmniError
        What a user can mend; see `omnicli.errors`.
    """
    progress = on_progress or (lambda stage, done, total: None)
    tell = on_text or (lambda index, text: None)
    film = look(source, config.media, config.compressor.needs, model, progress=progress, clock=clock)
    return [
        answer(film, question, config, model, on_text=partial(tell, i), progress=progress)
        for i, question in enumerate(questions)
    ]


@torch.inference_mode()
def look(
    source: str | Path | MediaInfo, settings: MediaConfig, needs: frozenset[str], model: OmniModel, *,
    progress: Progress = lambda stage, done, total: None, clock: StageClock | None = None,
) -> Film:  # fmt: skip
    """Decode and encode a file, capturing what of ``needs`` the encoders can give."""
    clock = clock or StageClock(cuda=model.device.type == "cuda")
    with clock.stage("probe"):
        info = source if isinstance(source, MediaInfo) else probe(source)
    media = encode(info, settings, model, capture=needs & CAPTURES, clock=clock, progress=progress)
    return Film(info, media, clock.report())


@torch.inference_mode()
def answer(
    film: Film, question: str, config: Config, model: OmniModel, *,
    on_text: Callable[[str], None] = lambda text: None, progress: Progress = lambda stage, done, total: None,
) -> Answer:  # fmt: skip
    """Answer one question about an encoded file: compress, prefill, generate."""
    info, media, shared = film.info, film.media, film.shared
    compressor = config.compressor if model.folder is None else config.compressor.bind(model.folder)
    clock = StageClock(cuda=model.device.type == "cuda")
    clip, options = media.clip, DecodeOptions(**vars(config.generate))
    prompt = model.prompt(question, video=clip.video, audio=clip.audio)
    with clock.stage("compress"):
        selection = compressor.compress(clip.tokens, model.query(prompt))
        kept = clip.tokens.select(selection)
    sequence = model.sequence(prompt, clip, kept)
    length = sequence.embeds.shape[0]
    if length + options.max_new_tokens > model.max_position:
        raise MemoryLimitError(
            f"{info.path}: {length:,} tokens do not fit the model's context of {model.max_position:,}; "
            "choose a preset that keeps fewer (--preset avoc), a lower --fps, or a shorter span (--start, --end)"
        )
    cache = KVCache(
        model.depth, model.kv_heads, model.head_dim, dtype=model.dtype, device=model.device,
        capacity=length + options.max_new_tokens,
    )  # fmt: skip
    with clock.stage("prefill"):
        read = prefill(
            model, sequence.embeds, sequence.position_ids, cache, media_span=sequence.media_span, media=kept,
            pruner=compressor, encoded=(clip.tokens.count(Modality.VIDEO), clip.tokens.count(Modality.AUDIO)),
            progress=lambda share: progress("prefill", share * length, length), clock=clock,
        )  # fmt: skip
    with clock.stage("generate"):
        text = generate(model, cache, read.logits, sequence.next_position, options)
        pieces = (piece for piece in text)
        first = next(pieces, "")
        first_s = clock.elapsed()
        on_text(first)
        for piece in pieces:
            on_text(piece)
    stages, wall_s = clock.report()
    totals = {name: shared[0].get(name, 0.0) + seconds for name, seconds in (shared[0] | stages).items()}
    warnings = [*media.warnings]
    if clip.max_position >= model.max_position:
        warnings.append(f"positions reach {clip.max_position:,}; {model.name} was trained up to {model.max_position:,}")
    return Answer(
        id=facts.identity(info.path, question, config),
        media=str(info.path),
        question=question,
        answer=text.text.strip(),
        model=facts.model(model),
        preset=config.preset,
        config=config.to_dict(),
        media_used=media.used,
        tokens=facts.tokens(clip.tokens, kept, compressor, read.levels, model.depth)
        | {"text": length - len(kept), "generated": len(text.token_ids), "selection": selection.report},
        stages={name: round(seconds, 4) for name, seconds in totals.items()},
        wall_s=round(shared[1] + wall_s, 4),
        time_to_first_token_s=round(shared[1] + first_s, 4),
        peak_memory=facts.peak_memory(model.device),
        flops=cost.prefill_flops(model, length - len(kept), len(clip.tokens), read.by_layer),
        warnings=warnings,
        versions=facts.versions(),
    )  # fmt: skip
