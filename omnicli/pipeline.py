"""The flow: media -> encode -> compress -> prefill -> generate -> answer. Everything else is somewhere else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from omnicli.answer import result
from omnicli.answer.evidence import layers as middle
from omnicli.encode.film import EncodedFilm, load_film
from omnicli.errors import MemoryLimitError
from omnicli.llm.attention_recorder import AttentionRecorder
from omnicli.llm.decode import DecodeOptions, generate
from omnicli.llm.prefix_cache import PrefixCache
from omnicli.models import timescale
from omnicli.types import Answer, Modality
from omnicli.utils.timing import StageClock

if TYPE_CHECKING:
    from omnicli.config.config import Config
    from omnicli.encode.cache import Cache
    from omnicli.encode.encode import Progress
    from omnicli.media.probe import MediaInfo
    from omnicli.models.base import OmniModel
    from omnicli.models.parts import EncodedClip

OnText = Callable[[int, str], None]


def ask(
    source: str | Path | MediaInfo, questions: Sequence[str], config: Config, model: OmniModel, *,
    on_text: OnText | None = None, on_progress: Progress | None = None, clock: StageClock | None = None,
    cache: Cache | None = None, evidence: bool = False,
) -> list[Answer]:  # fmt: skip
    """Answer questions about one file; it is decoded and encoded once.

    Parameters
    ----------
    source : str, Path or MediaInfo
        The file, or what `probe` found in it.
    on_text : callable
        Called with the question's index and each piece of its answer as it is written.
    on_progress : callable
        Called with stage, done, total; see `omnicli.encode.encode.Progress`.
    clock : StageClock
        Already holds what was timed before, such as loading the model.
    cache : Cache
        Where encoded films are kept; None: nowhere.
    evidence : bool
        Tell which seconds the answers rest on.

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
    film = load_film(source, config.media, config.compressor.needs, model, progress=progress, clock=clock, cache=cache)
    asked = partial(
        answer, film, config=config, model=model, prefix_cache=PrefixCache(model), progress=progress, evidence=evidence
    )
    ends = len(questions) - 1
    return [asked(question, last=i == ends, on_text=partial(tell, i)) for i, question in enumerate(questions)]


@torch.inference_mode()
def answer(
    film: EncodedFilm, question: str, config: Config, model: OmniModel, *,
    prefix_cache: PrefixCache | None = None, last: bool = False, history: Sequence[tuple[str, str]] = (),
    evidence: bool = False,
    on_text: Callable[[str], None] = lambda text: None, progress: Progress = lambda stage, done, total: None,
) -> Answer:  # fmt: skip
    """Answer one question about an encoded file: compress, prefill, generate.

    ``prefix_cache`` keeps what questions share from one call to the next, up to the ``last`` one; ``history`` holds
    what was asked and answered before; ``evidence``: see `ask`.
    """
    info, media = film.info, film.media
    compressor = config.compressor if model.folder is None else config.compressor.bind(model.folder)
    clock = StageClock(cuda=model.device.type == "cuda")
    clip, options = media.clip, DecodeOptions(**vars(config.generate))
    prompt = model.prompt(question, video=clip.video, audio=clip.audio, history=history, preface=film.preface)
    with clock.stage("load"):
        model.activate("llm")
    with clock.stage("compress"):
        selection = compressor.compress(clip.tokens, model.query(prompt))  # by the film's own clock
        clip = _in_range(clip, config, model)
        kept = clip.tokens.select(selection)
    sequence = model.sequence(prompt, clip, kept)
    length = sequence.embeds.shape[0]
    if length + options.max_new_tokens > model.max_position:
        raise MemoryLimitError(
            f"{info.path}: {length:,} tokens do not fit the model's context of {model.max_position:,}; "
            "choose a preset that keeps fewer (--preset avoc), a lower --fps, or a shorter span (--start, --end)"
        )
    reads, recorder = (
        prefix_cache or PrefixCache(model),
        AttentionRecorder(middle(model.depth), len(kept)) if evidence else None,
    )
    with clock.stage("prefill"):
        read, kv = reads.read(
            sequence, kept, compressor, encoded=(clip.tokens.count(Modality.VIDEO), clip.tokens.count(Modality.AUDIO)),
            room=options.max_new_tokens, last=last or prefix_cache is None, recorder=recorder,
            progress=lambda share: progress("prefill", share * length, length), clock=clock,
        )  # fmt: skip
    with clock.stage("generate"):
        text = generate(model, kv, read.logits, sequence.next_position, options, recorder=recorder)
        first = next(iter(text), "")
        first_s = clock.elapsed()
        on_text(first)
        for piece in text:
            on_text(piece)
    return result.answer(
        film, question, config, model, clip=clip, prompt_length=length, kept=kept, selection=selection, read=read,
        reused=reads.reused, text=text, times=film.times + clock.report(), first_token_s=film.times.wall_s + first_s,
        recorder=recorder, history=history,
    )  # fmt: skip


def _in_range(clip: EncodedClip, config: Config, model: OmniModel) -> EncodedClip:
    """Return the clip with its positions in time scaled as the settings ask for."""
    last = clip.tokens.position_ids[0].max().item()
    scale = timescale.choose(config, origin=clip.origin, last=last, trained=model.max_position, name=model.name)
    return clip if scale is None or scale == 1 else clip.scaled(scale)
