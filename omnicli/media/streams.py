"""Choosing the streams: the best one of each kind that really yields something, never cover art.

Decodes one frame of a stream, since only a frame tells the rotation, the size and whether there is a decoder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from omnicli.media.container import FAILURES, DecodeStats, open_media, packets

# Disposition bits: cover art, thumbnails of chapters.
_NO_FILM = 1024 | 2048
# Packets in which a first picture or sound must turn up.
_PATIENCE = 400


@dataclass
class Track:
    """What the header and the first decoded frame say of one stream."""

    index: int
    kind: str
    codec: str
    time_base: Fraction
    header_s: float | None
    facts: dict[str, Any] = field(default_factory=dict)
    first_s: float | None = None


def is_art(stream: Any) -> bool:
    """Tell cover art and chapter pictures from film."""
    return bool(int(stream.disposition) & _NO_FILM)


def candidates(container: Any, kind: str) -> list[int]:
    """Return the stream indices of one kind, the best first, without cover art."""
    streams = [s for s in container.streams if s.type == kind and not is_art(s)]
    best = container.streams.best(kind)

    def rank(stream: Any) -> tuple[int, ...]:
        context = stream.codec_context
        if context is None:
            return (-1,)
        default, chosen = bool(int(stream.disposition) & 1), best is not None and stream.index == best.index
        if kind == "video":
            return (default, context.width * context.height, chosen)
        return (chosen, default, context.sample_rate)

    return [s.index for s in sorted(streams, key=rank, reverse=True)][:8]


def first_that_decodes(path: Path, indices: list[int], problems: list[str]) -> tuple[Track | None, bool]:
    """Return the first of the streams that yields a frame, and whether one before it did not."""
    for place, index in enumerate(indices):
        found, trouble = _try(path, index)
        if trouble:
            problems.append(trouble)
        if found is not None:
            return found, place > 0
    return None, bool(indices)


def _try(path: Path, index: int) -> tuple[Track | None, str | None]:
    """Decode one frame of a stream. Returns what is known of it, None if nothing comes, and what went wrong."""
    stats = DecodeStats()
    with open_media(path) as container:
        stream = container.streams[index]
        kind = stream.type
        what = "pictures" if kind == "video" else "sound"
        if stream.codec_context is None or not stream.time_base:
            return None, f"no decoder for the {what} (stream {index})"
        out = Track(
            index=index,
            kind=kind,
            codec=stream.codec_context.name,
            time_base=Fraction(stream.time_base),
            header_s=None if stream.duration is None else float(stream.duration * stream.time_base),
        )
        sent = 0
        for packet in packets(container, [stream], stats):
            sent += 1
            decoded = _decode(packet, stats)
            if not decoded and sent == _PATIENCE:
                break
            if decoded:
                return _known(out, stream, decoded[0]), None
        try:
            decoded = stream.decode(None)
        except FAILURES as error:
            stats.fail("decoding", error)
            decoded = []
        if decoded:
            return _known(out, stream, decoded[0]), None
    reason = stats.errors[0] if stats.errors else "no error is reported" if sent else "it holds no data"
    return None, f"the {out.codec} {what} (stream {index}) yield nothing after {sent} packets: {reason}"


def _decode(packet: Any, stats: DecodeStats) -> list[Any]:
    try:
        return packet.decode()
    except FAILURES as error:
        stats.fail("decoding", error)
        return []


def _known(out: Track, stream: Any, frame: Any) -> Track:
    """Fill in what the first frame tells."""
    if frame.pts is not None:
        out.first_s = float(frame.pts * Fraction(frame.time_base or out.time_base))
    if out.kind == "audio":
        out.facts = {
            "sample_rate": frame.sample_rate,
            "channels": frame.layout.nb_channels,
            "language": stream.language,
        }
        return out
    aspect = stream.sample_aspect_ratio
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    out.facts = {
        "coded_width": frame.width,
        "coded_height": frame.height,
        "pix_fmt": frame.format.name,
        "rotation": round(frame.rotation / 90) % 4 * 90,
        "sample_aspect": float(aspect) if aspect and 0.05 < aspect < 20 else 1.0,
        "rate": float(rate) if rate and 0.01 < rate < 1000 else 25.0,
    }
    return out
