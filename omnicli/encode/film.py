"""A film, looked at: probed, decoded and encoded, or read from the cache. Knows nothing of questions and methods."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from omnicli.encode.encode import DecodeJob, Encoded, encode
from omnicli.media import subtitles
from omnicli.media.pieces import HERE, Decoder
from omnicli.media.probe import MediaInfo, probe
from omnicli.models.base import OmniModel
from omnicli.models.parts import CAPTURES
from omnicli.utils.context import RunContext
from omnicli.utils.timing import Times

if TYPE_CHECKING:
    from omnicli.config.settings import MediaConfig
    from omnicli.encode.cache import Cache


@dataclass(frozen=True)
class EncodedFilm:
    """One file, decoded and encoded (``times``: what that took), and the text to put before questions about it."""

    info: MediaInfo
    media: Encoded
    times: Times
    cached: bool = False
    preface: str = ""


@torch.inference_mode()
def load_film(
    source: str | Path | MediaInfo | DecodeJob,
    settings: MediaConfig,
    needs: frozenset[str],
    model: OmniModel,
    context: RunContext | None = None,
    *,
    cache: Cache | None = None,
    decoder: Decoder = HERE,
) -> EncodedFilm:
    """Decode and encode a file, capturing what of ``needs`` the encoders can give; or read what the cache kept.

    ``source`` may be the film's decoding, begun before, with a context of its own; ``decoder``: where it is decoded
    otherwise.
    """
    begun, capture = source if isinstance(source, DecodeJob) else None, needs & CAPTURES
    if isinstance(source, DecodeJob):
        context = source.film.context
        source = source.film.info
    context = context or RunContext.on(model.device)
    clock = context.clock
    entry = cache and cache.entry(source, settings, capture, model, clock)
    kept = entry.read() if entry else None
    with clock.stage("probe"):
        info = kept[0] if kept else source if isinstance(source, MediaInfo) else probe(source)
        preface, notes = subtitles.preface(info, settings, lambda text: len(model.tokenizer.encode(text)))
    if kept:
        media = kept[1]
    else:
        media = encode(begun or DecodeJob(info, settings, model, context, decoder), capture)
        if entry:
            entry.write(info, media)
    media = replace(media, warnings=(*media.warnings, *notes))
    return EncodedFilm(info, media, clock.report(), cached=kept is not None, preface=preface)
