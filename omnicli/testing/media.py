"""Points about a model's sizes, its pictures and its sound, up to the assembled clip."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from omnicli.errors import ModelError
from omnicli.models.parts import CAPTURES, KEYS, EncodedAudio, EncodedVideo
from omnicli.testing.trial import FRAMES, QUESTION, RATE, SECONDS, Trial, close, joined
from omnicli.types import Modality


def attributes(t: Trial) -> Iterator[str]:
    """Everything that `OmniModel` lists is there and makes sense."""
    m = t.model
    names = (
        *("name", "revision", "folder", "fingerprint", "facts", "device", "dtype"),
        *("nominal_fps", "position_axes", "stop_ids", "tokenizer"),
    )
    for name in names:
        if not hasattr(m, name):
            yield f"{name} is not set"
    facts, d = m.facts, m.facts.llm
    if d.heads % d.kv_heads:
        yield f"{d.heads} heads cannot share {d.kv_heads} for keys"
    if facts.video_batch < facts.frame_group or facts.video_batch % facts.frame_group:
        yield f"facts.video_batch {facts.video_batch} is no multiple of frame_group {facts.frame_group}"
    if not min(facts.window_s, facts.audio_tokens_per_s, facts.positions_per_s, m.nominal_fps) > 0:
        yield "window_s, audio_tokens_per_s, positions_per_s and nominal_fps must be above 0"
    if facts.nominal_fps != m.nominal_fps:
        yield f"facts.nominal_fps is {facts.nominal_fps:g}, nominal_fps {m.nominal_fps:g}"
    if facts.family != m.family:
        yield f"facts are those of {facts.family}"


def frame_sizes(t: Trial) -> Iterator[str]:
    """Frame sizes fit the grid, keep the picture's shape and follow the limits."""
    m = t.model
    for width, height in ((1280, 720), (720, 1280), (641, 479)):
        high, wide = m.frame_size(width, height)
        if high % m.facts.pixel_unit or wide % m.facts.pixel_unit or min(high, wide) < m.facts.pixel_unit:
            yield f"{high} x {wide} is no multiple of pixel_unit {m.facts.pixel_unit}"
        if (wide > high) != (width > height):
            yield f"{width} x {height} becomes {wide} x {high}"
    high, wide = m.frame_size(1280, 720, max_pixels=90_000)
    if high * wide > 1.15 * 90_000:
        yield f"max_pixels=90000 gives {high} x {wide}"


def video(t: Trial) -> Iterator[str]:
    """Picture tokens have the promised number, width, number format and device."""
    m = t.model
    for n in (1, FRAMES):
        frames = t.frames(n)
        got, before = m.encode_video(frames), frames.clone()
        groups = -(-n // m.frame_group)
        if got.groups != groups:
            yield f"{n} frames make {got.groups} groups, not {groups}"
        if tuple(got.features.shape) != (got.groups * got.rows * got.cols, m.hidden_size):
            yield f"features are {tuple(got.features.shape)}, not (groups * rows * cols, hidden_size)"
        if got.rows * got.cols != (expected := m.facts.group_tokens(*t.size)):
            yield f"a group has {got.rows * got.cols} tokens, facts.group_tokens says {expected}"
        if (got.features.dtype, got.features.device) != (m.dtype, m.device):
            yield f"features are {got.features.dtype} on {got.features.device}, not {m.dtype} on {m.device}"
        if not bool(got.features.isfinite().all()) or float(got.features.float().std()) == 0:
            yield "features are not finite, or all the same"
        if got.saliency is not None or got.keys is not None:
            yield "saliency or keys are there though nobody asked"
        if not torch.equal(frames, before):
            yield "the frames that were given are changed"


def video_in_pieces(t: Trial) -> Iterator[str]:
    """Pieces of whole groups give what one call gives; a last group is filled up with its last frame."""
    m = t.model
    whole, pieces = t.encode_video(FRAMES, FRAMES), t.encode_video(FRAMES, m.frame_group)
    if not close(joined(pieces), joined(whole)):
        yield "group by group is not the same as all at once"
    if whole[0].layer_features is not None:
        levels = torch.cat([p.layer_features for p in pieces if p.layer_features is not None], 1)
        if not close(levels, whole[0].layer_features):
            yield "group by group, layer_features are not the same as all at once"
    last = t.frames(1)
    filled = last.expand(m.frame_group, -1, -1, -1)
    if not close(m.encode_video(last).features, m.encode_video(filled).features):
        yield "one frame is not the same as that frame repeated to a whole group"
    if not torch.equal(joined(whole), joined(t.encode_video(FRAMES, FRAMES))):
        yield "twice the same frames give different tokens"


def audio(t: Trial) -> Iterator[str]:
    """Sound tokens have the promised number, width, number format and device."""
    m = t.model
    for seconds in (0.5, 3.37, 9.0):
        pieces = t.encode_audio(seconds, 32_000)
        n, expected = sum(len(p.features) for p in pieces), m.facts.audio_tokens(seconds)
        if n != expected:
            yield f"{seconds} s make {n} tokens, facts.audio_tokens says {expected}"
        if abs(n - seconds * m.audio_tokens_per_s) > 1 + 0.1 * m.audio_tokens_per_s:
            yield f"{seconds} s make {n} tokens, which is far from audio_tokens_per_s {m.audio_tokens_per_s:g}"
        for piece in pieces:
            if tuple(piece.features.shape[1:]) != (m.hidden_size,):
                yield f"features are {tuple(piece.features.shape)}, not (n, hidden_size)"
            if (piece.features.dtype, piece.features.device) != (m.dtype, m.device):
                yield f"features are {piece.features.dtype} on {piece.features.device}, not {m.dtype} on {m.device}"
            if not bool(piece.features.isfinite().all()):
                yield "features are not finite"
            if piece.saliency is not None or piece.keys is not None:
                yield "saliency or keys are there though nobody asked"


def audio_in_pieces(t: Trial) -> Iterator[str]:
    """How sound is cut into blocks changes nothing; none at all is no token."""
    whole = joined(t.encode_audio(SECONDS, round(SECONDS * RATE)))
    for block in (777, 32_000):
        if not close(joined(t.encode_audio(SECONDS, block)), whole):
            yield f"blocks of {block} samples are not the same as all samples at once"
    for batch_s in (1.0, 60.0):
        samples = t.samples(SECONDS)
        stream = t.model.audio_encoder(t.model.measure_log_mel_max([samples]), batch_s=batch_s)
        if not close(joined([*stream.feed(samples), *stream.finish()]), whole):
            yield f"batches of {batch_s:g} s are not the same as others"
    if t.model.audio_encoder().finish():
        yield "no sound makes tokens"
    running = t.model.audio_encoder()
    if not [*running.feed(t.samples(SECONDS)), *running.finish()]:
        yield "without log_mel_max, in one pass, nothing comes out"


def captures(t: Trial) -> Iterator[str]:
    """What ``capture`` names comes with a row per token, or is refused as a `ModelError`."""
    for name in sorted(CAPTURES):
        wanted = frozenset({name})
        try:
            pieces: list[EncodedVideo | EncodedAudio] = [
                *t.encode_video(FRAMES, FRAMES, wanted),
                *t.encode_audio(2.0, 32_000, wanted),
            ]
        except ModelError:
            continue
        for piece in pieces:
            got, n = piece.keys if name == KEYS else piece.saliency, len(piece.features)
            if got is None or got.shape[0] != n or got.ndim != (2 if name == KEYS else 1):
                yield f"{name} of {n} tokens: {None if got is None else tuple(got.shape)}"
            elif name != KEYS and got.dtype != torch.float32:
                yield f"{name} is {got.dtype}, not float32"


def order(t: Trial) -> Iterator[str]:
    """Tokens come in time order, with true times inside the film and places inside the grid."""
    m = t.model
    for start in (0.0, 600.0):
        tokens = t.clip(start).tokens
        if bool((tokens.window[1:] < tokens.window[:-1]).any()):
            yield "window goes back"
        plain = torch.floor((tokens.start_s + 1e-6) / m.facts.window_s).long()
        if m.frame_group <= m.facts.window_s and not torch.equal(tokens.window, plain):
            yield "window is not floor(start_s / window_s) where frame groups are at most window_s apart"
        for modality in Modality:
            begin = tokens.start_s[tokens.indices(modality)]
            if bool((begin[1:] < begin[:-1]).any()):
                yield f"{modality.name.lower()} goes back in time"
        late = start + FRAMES + 1.0 / m.audio_tokens_per_s
        if bool((tokens.start_s < start - 1e-6).any()) or bool((tokens.end_s > late).any()):
            yield f"times leave the clip, {start:g} to {start + FRAMES:g} s"
        if bool((tokens.end_s <= tokens.start_s).any()):
            yield "a token ends before it begins"
        video, audio = (tokens.indices(modality) for modality in (Modality.VIDEO, Modality.AUDIO))
        piece = t.encode_video(FRAMES, FRAMES)[0]
        cells = torch.arange(len(video)) % (piece.rows * piece.cols)
        if not (
            torch.equal(tokens.row[video], (cells // piece.cols).int())
            and torch.equal(tokens.col[video], (cells % piece.cols).int())
        ):
            yield "row and col of pictures do not count the grid line by line"
        if bool((tokens.row[audio] != -1).any()) or bool((tokens.col[audio] != -1).any()):
            yield "row and col of sound are not -1"


def blocks(t: Trial) -> Iterator[str]:
    """Where frame groups are farther apart than ``window_s``, blocks follow them: `omnicli.models.layout` has how."""
    apart_s = 5 * t.model.facts.window_s
    times = np.arange(float(FRAMES)) * apart_s
    pieces = t.encode_video(FRAMES, t.model.video_batch), t.encode_audio(SECONDS, 32_000)
    tokens = t.model.assemble(pieces[0], times, pieces[1], end_s=FRAMES * apart_s).tokens
    video, audio = (tokens.indices(modality) for modality in (Modality.VIDEO, Modality.AUDIO))
    begun = audio[tokens.start_s[audio] < tokens.start_s[video].max()]
    if not bool(torch.isin(tokens.window[begun], tokens.window[video]).all()):
        yield f"with frames {apart_s:g} s apart, sound between pictures is in blocks without pictures"
    steps = torch.unique(tokens.window[video]).diff()
    if steps.numel() and not bool((steps == 1).all()):
        yield f"with frames {apart_s:g} s apart, neighbouring frame groups are not in neighbouring blocks"


def tokens_are_their_own(t: Trial) -> Iterator[str]:
    """Features and captures of a clip are those of the pieces, whatever was captured."""
    m = t.model
    for name in sorted(CAPTURES):
        wanted = frozenset({name})
        try:
            video, audio = t.encode_video(FRAMES, m.video_batch, wanted), t.encode_audio(2.0, 32_000, wanted)
        except ModelError:
            continue
        tokens = m.assemble(video, np.arange(float(FRAMES)), audio, end_s=float(FRAMES)).tokens
        field = "keys" if name == KEYS else "saliency"
        for modality, pieces in ((Modality.VIDEO, video), (Modality.AUDIO, audio)):
            rows = tokens.indices(modality)
            if not torch.equal(tokens.features[rows], joined(pieces)):
                yield f"features of {modality.name.lower()} are not those of the pieces, in their order"
            held, given = getattr(tokens, field), torch.cat([getattr(p, field) for p in pieces])
            if held is None or not torch.equal(held[rows][:, : given.shape[1]] if name == KEYS else held[rows], given):
                yield f"{name} of {modality.name.lower()} does not follow its tokens"
    tokens, own = t.both.tokens, t.encode_video(FRAMES, FRAMES)[0].layer_features
    if (levels := tokens.layer_features) is None or own is None:
        if levels is not own:
            yield "layer_features of the pictures are lost"
    elif levels.shape[1:] != tokens.features.shape:
        yield f"layer_features are {tuple(levels.shape)}, not (levels, tokens, hidden_size)"
    elif not torch.equal(levels[:, tokens.indices(Modality.VIDEO)], own):
        yield "layer_features do not follow their pictures"
    elif bool(levels[:, tokens.indices(Modality.AUDIO)].any()):
        yield "layer_features of sound are not zero"


def one_modality_alone(t: Trial) -> Iterator[str]:
    """Pictures without sound and sound without pictures are clips; nothing at all, and wrong times, are errors."""
    m = t.model
    for video, audio in ((True, False), (False, True)):
        clip = t.clip(video=video, audio=audio)
        if (clip.video, clip.audio) != (video, audio) or len(clip.tokens) == 0:
            yield f"a clip with video={video}, audio={audio} says video={clip.video}, audio={clip.audio}"
        given = m.sequence(m.prompt(QUESTION, video=video, audio=audio), clip)
        if given.media_span.stop - given.media_span.start != len(clip.tokens):
            yield "media_span is not where the tokens are"
    for pieces, times in (([], []), (t.encode_video(2 * m.frame_group, m.video_batch), [0.0])):
        try:
            m.assemble(pieces, times, [])
        except ValueError:
            continue
        yield "assemble takes " + ("frame times that do not fit the frames" if pieces else "nothing at all")


def positions(t: Trial) -> Iterator[str]:
    """Positions increase with time, count from the clip's start, and the text behind the media follows them."""
    m, clip = t.model, t.both
    ids = clip.tokens.position_ids
    if tuple(ids.shape) != (m.position_axes, len(clip.tokens)):
        yield f"position_ids are {tuple(ids.shape)}, not (position_axes, tokens)"
    for modality in Modality:
        time = ids[0, clip.tokens.indices(modality)]
        if bool((time[1:] < time[:-1]).any()):
            yield f"positions of {modality.name.lower()} go back"
    if m.facts.clocked != (clip.origin is not None):
        yield f"facts.clocked is {m.facts.clocked}, but the clip's positions have " + (
            "no origin in time" if clip.origin is None else "an origin in time"
        )
    if clip.max_position != float(ids.max()):
        yield f"max_position is {clip.max_position}, the largest is {float(ids.max())}"
    if clip.next_position <= float(ids[0, -1]):
        yield f"next_position {clip.next_position} is not behind the last token's {float(ids[0, -1])}"
    late = t.clip(600.0).tokens
    if not close(late.position_ids.double(), ids.double()):
        yield "a clip from second 600 on has other positions than one from 0 on"
    if not close(late.start_s - 600, clip.tokens.start_s):
        yield "a clip from second 600 on has other times, but for the 600 s, than one from 0 on"
    last = m.facts.last_position(
        int(m.prompt("", video=True, audio=True).before.numel()),
        float((FRAMES - 1) // m.frame_group * m.frame_group),
        clip.tokens.count(Modality.AUDIO),
        len(clip.tokens),
    )
    if abs(last - clip.max_position) > 2:
        yield f"max_position is {clip.max_position}, facts.last_position says {last}"


POINTS = (
    attributes,
    frame_sizes,
    video,
    video_in_pieces,
    audio,
    audio_in_pieces,
    captures,
    order,
    blocks,
    tokens_are_their_own,
    one_modality_alone,
    positions,
)
TYPES = (attributes, frame_sizes, video, audio, captures, order)
"""Those that hold in every number format."""
