"""The flow: media -> encode -> compress -> prefill -> generate -> answer. Everything else is somewhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch

from omnicli.answer import evidence as basis
from omnicli.answer import result
from omnicli.config.config import DEFAULT_PRESET, Config, load_config
from omnicli.encode.film import EncodedFilm, load_film
from omnicli.errors import MediaError, MemoryLimitError, UsageError
from omnicli.llm.decode import DecodeOptions, generate
from omnicli.llm.prefix_cache import PrefixCache
from omnicli.llm.stretches import StretchReader
from omnicli.media.probe import MediaInfo
from omnicli.models import timescale
from omnicli.models.base import OmniModel
from omnicli.models.loading import load_configured
from omnicli.types import Modality
from omnicli.utils.attention_recorder import AttentionRecorder
from omnicli.utils.context import Progress, RunContext, untold

if TYPE_CHECKING:
    from omnicli.answer.answer import Answer
    from omnicli.encode.cache import Cache
    from omnicli.models.parts import EncodedClip

Source = str | Path | MediaInfo
Preset = Config | str | Path | Mapping[str, Any]
Model = OmniModel | str | Path | None


@overload
def ask(  # type: ignore[overload-overlap]  # one text is a sequence of texts, too
    source: Source,
    questions: str,
    config: Preset = ...,
    model: Model = ...,
    *,
    on_text: Callable[[int, str], None] | None = ...,
    context: RunContext | None = ...,
    cache: Cache | None = ...,
    evidence: bool = ...,
) -> Answer: ...


@overload
def ask(
    source: Source,
    questions: Sequence[str],
    config: Preset = ...,
    model: Model = ...,
    *,
    on_text: Callable[[int, str], None] | None = ...,
    context: RunContext | None = ...,
    cache: Cache | None = ...,
    evidence: bool = ...,
) -> list[Answer]: ...


def ask(
    source: Source,
    questions: str | Sequence[str],
    config: Preset = DEFAULT_PRESET,
    model: Model = None,
    *,
    on_text: Callable[[int, str], None] | None = None,
    context: RunContext | None = None,
    cache: Cache | None = None,
    evidence: bool = False,
) -> Answer | list[Answer]:
    """Answer questions about one film or sound file, which is decoded and encoded once.

    ``ask("film.mp4", "Who speaks last?")`` uses the preset ``auto`` and the small model that comes with the package.

    Parameters
    ----------
    source : str, Path or MediaInfo
        The file, or what `omnicli.media.probe.probe` found in it.
    questions : str or sequence of str
        One question or several.
    config : Config, str, Path or mapping
        A configuration from `omnicli.load_config`, or a preset's name, YAML file or values.
    model : OmniModel, str or Path
        A model from `omnicli.load_model`, or a name that it would take; by default the configuration's own, else
        ``pocket``. Load a model once where more calls follow.
    on_text : callable
        Called with the question's index and each piece of its answer as it is written.
    context : RunContext
        Who is told of progress, and a clock that may already hold what was timed before.
    cache : Cache
        Where encoded films are kept; None: nowhere.
    evidence : bool
        Tell which seconds the answers rest on.

    Returns
    -------
    Answer or list of Answer
        An answer for one question, a list of them for several. Stages and wall time of each, in seconds, hold the
        shared ones (probe to encode) as well.

    Raises
    ------
    OmniError
        What a user can mend; see `omnicli.errors`.
    """
    context = context or RunContext()
    several = [questions] if isinstance(questions, str) else list(questions)
    if wrong := [question for question in several if not isinstance(question, str)]:
        raise UsageError(f"a question is text, not {wrong[0]!r}")
    if not isinstance(source, MediaInfo) and not Path(source).exists():  # before a model is loaded
        raise MediaError(f"{source}: no such file")
    config = load_config(config)
    if not isinstance(model, OmniModel):
        with context.clock.stage("load"):
            model = load_configured(config if model is None else replace(config, model=str(model)))
    context.clock.cuda = model.device.type == "cuda"
    film = load_film(source, config.media, config.compressor.needs, model, context, cache=cache)
    reader, progress = PrefixCache(model), context.progress
    asked = partial(answer, film, config=config, model=model, prefix_cache=reader, progress=progress, evidence=evidence)
    tell, ends = on_text or (lambda index, text: None), len(several) - 1
    answers = [asked(question, last=i == ends, on_text=partial(tell, i)) for i, question in enumerate(several)]
    return answers[0] if isinstance(questions, str) else answers


@torch.inference_mode()
def answer(
    film: EncodedFilm,
    question: str,
    config: Config,
    model: OmniModel,
    *,
    prefix_cache: PrefixCache | None = None,
    last: bool = False,
    history: Sequence[tuple[str, str]] = (),
    evidence: bool = False,
    on_text: Callable[[str], None] = lambda text: None,
    progress: Progress = untold,
) -> Answer:
    """Answer one question about an encoded film: compress, prefill, generate.

    ``prefix_cache`` keeps what questions share from one call to the next, up to the ``last`` one; ``history`` holds
    what was asked and answered before; ``evidence``: see `ask`.
    """
    context = RunContext.on(model.device, progress)
    stage, clip, options = context.clock.stage, film.media.clip, DecodeOptions(**vars(config.generate))
    compressor = config.compressor if model.folder is None else config.compressor.bind(model.folder)
    reader, last = prefix_cache or PrefixCache(model), last or prefix_cache is None
    words = partial(model.prompt, question, video=clip.video, audio=clip.audio, history=history)
    prompt = words(preface=film.preface)
    with stage("load"):
        model.activate("llm")
    with stage("compress"):
        backbone = StretchReader(model, words() if film.preface else prompt, clip, context)
        selection = compressor.compress(clip.tokens, replace(model.query(prompt), backbone=backbone))
        clip = _in_range(clip, config, model)
        kept = clip.tokens.select(selection)
    sequence = model.sequence(prompt, clip, kept)
    length = sequence.embeds.shape[0]
    if length + options.max_new_tokens > model.max_position:
        raise MemoryLimitError(
            f"{film.info.path}: {length:,} tokens do not fit the model's context of {model.max_position:,}; "
            "choose a preset that keeps fewer (--preset avoc), a lower --fps, or a shorter span (--start, --end)"
        )
    if evidence:
        context = replace(context, recorder=AttentionRecorder(basis.layers(model.depth), len(kept)))
    encoded = clip.tokens.count(Modality.VIDEO), clip.tokens.count(Modality.AUDIO)
    with stage("prefill"):
        read, kv = reader.read(
            sequence, kept, compressor, encoded=encoded, room=options.max_new_tokens, last=last, context=context
        )
    with stage("generate"):
        text = generate(model, kv, read.logits, sequence.next_position, options, recorder=context.recorder)
        first = next(iter(text), "")
        first_s = context.clock.elapsed()
        on_text(first)
        for piece in text:
            on_text(piece)
    run = result.Run(
        film,
        question,
        config,
        model,
        tuple(history),
        clip=clip,
        selection=selection,
        kept=kept,
        length=length,
        before=backbone.work,
        read=read,
        reused=reader.reused,
        text=text,
        first_s=first_s,
        context=context,
    )
    return result.answer(run)


def _in_range(clip: EncodedClip, config: Config, model: OmniModel) -> EncodedClip:
    """Return the clip with its positions in time scaled as the settings ask for."""
    last = clip.tokens.position_ids[0].max().item()
    scale = timescale.choose(config, origin=clip.origin, last=last, trained=model.max_position, name=model.name)
    return clip if scale is None or scale == 1 else clip.scaled(scale)
