"""Does it fit: tokens, positions and peak memory of a run, worked out before anything is loaded.

From what is in the file (`probe`), the settings, and what is known of the model without its code (`models/facts`).
Imports neither torch nor transformers. Tokens are exact but for methods whose budget follows the scores; memory is the
sum of the tensors that are alive at the same time (`peaks`), plus constants for what no tensor holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from omnicli.config.config import DEFAULT_MODEL, Config
from omnicli.config.settings import MediaConfig
from omnicli.errors import MediaError, ModelError
from omnicli.media import sampling
from omnicli.models import timescale
from omnicli.models.weights import devices as cards
from omnicli.planning import machine, peaks
from omnicli.planning.constants import (
    BITSANDBYTES_BYTES,
    CUDA_CONTEXT_BYTES,
    CUDA_HOST_BYTES,
    DECODE_S_PER_MEGAPIXEL,
    ERROR,
    LIBRARIES_BYTES,
    MARKS,
    ROOM_BYTES,
    TEXT_TOKENS,
)
from omnicli.planning.peaks import Media, Weights

if TYPE_CHECKING:
    from omnicli.compress.base import Compressor
    from omnicli.media.probe import MediaInfo
    from omnicli.models.facts.base import Facts

SCHEMA = 1


@dataclass(frozen=True)
class CardPlan:
    """What a run would take of one graphics card: how many of the LLM's layers, peak and free bytes."""

    name: str
    layers: int
    peak: int
    free: int


@dataclass(frozen=True)
class Plan:
    """What a run would take.

    Attributes
    ----------
    encoded, kept : (int, int)
        Picture and sound tokens out of the encoders, and into the LLM.
    position : int
        Largest rotary position of the media; ``trained`` is the model's range.
    time_scale : float or None
        What positions in time are multiplied with; None: the model's count tokens.
    parts : dict of str to int
        Bytes: ``weights``, ``encoder_weights`` (of them, those of the encoders), ``encoders`` (working memory),
        ``tokens`` (encoded, captures included), ``kept`` (copies for the LLM), ``kv``, ``prefill`` (working memory),
        ``asking`` (a stretch that the LLM reads before the choice, where a method asks it),
        ``hidden`` (of all positions, where a method prunes inside the LLM), ``frames`` (decoded frames waiting, and
        the decoder).
    host, device : int or None
        Peaks in bytes, libraries included; ``device`` is None on a CPU, the sum of several cards.
    cards : tuple of CardPlan
        The cards one by one; empty on a CPU.
    above_libraries : int
        The host's peak without the libraries.
    problems : tuple of str
        Why it does not fit; empty if it does.
    """

    media: Media
    encoded: tuple[int, int]
    kept: tuple[int, int]
    layer_tokens: int
    position: int
    trained: int
    time_scale: float | None
    parts: dict[str, int]
    host: int
    above_libraries: int
    device: int | None
    host_free: int | None
    device_free: int | None
    device_name: str
    cards: tuple[CardPlan, ...]
    decode_cpu_s: float
    dtype: str
    quantize: str
    offload: bool
    problems: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether it fits this machine and the model's context."""
        return not self.problems


@dataclass(frozen=True)
class Change:
    """A change of settings that makes a run fit: in words, and the settings; ``model`` if that is what changes."""

    text: str
    config: Config
    plan: Plan
    model: bool = False


def make_plan(info: MediaInfo, config: Config) -> Plan:
    """Return the plan of asking about a file.

    Raises
    ------
    MediaError
        Nothing to encode in the span.
    ModelError
        An unknown or damaged model, or one of which nothing is known without its code.
    """
    from omnicli.models import loading
    from omnicli.models.weights import checkpoint

    name = config.model or DEFAULT_MODEL
    facts, size = loading.find_facts(name)
    if size is not None:
        values = facts.parameters[size]
    else:
        folder, _ = loading.find_folder(name)
        config = replace(config, compressor=config.compressor.bind(folder))
        checkpoint.check_weights(name, folder)
        values = checkpoint.count_weights(folder, facts.loads, facts.skips)
    return plan_for(info, config, facts, values, name)


def plan_for(info: MediaInfo, config: Config, facts: Facts, values: int, name: str) -> Plan:
    """Return the plan for a model of which these are the facts, with so many weights."""
    from omnicli.models.loading import dtype_name

    devices = _devices(config.device, config.offload)
    dtype = dtype_name(config.dtype, bool(devices))
    item, depth = 4 if dtype == "float32" else 2, facts.llm.depth
    media = read(info, config.media, facts)
    pairs = -(-media.frames // facts.frame_group)
    encoded = pairs * facts.group_tokens(media.height, media.width), facts.audio_tokens(media.audio_s)
    if sum(encoded) == 0:
        raise MediaError(f"{info.path}: no picture and no sound in the chosen span")
    kept = config.compressor.entering(*encoded)
    layer_tokens = _layer_tokens(config.compressor, depth, encoded, kept)
    weights = Weights.of(facts, config.quantize, item, values)
    counts = sum(encoded), sum(kept)
    parts = peaks.parts(facts, config, media, weights, counts=(*counts, layer_tokens), item=item)
    free = [card.free_bytes for card in devices] or [1]
    layers, works = peaks.peaks(parts, weights, config, depth=depth, counts=counts, free=free)
    used = [
        CardPlan(f"cuda:{card.index} {card.name}", n, work + CUDA_CONTEXT_BYTES, card.free_bytes)
        for card, n, work in zip(devices, layers, works, strict=False)  # on a CPU there are no cards
    ]
    held = _through_host(config, facts, weights, name, len(devices)) if devices else works[0]
    above = ROOM_BYTES + parts["frames"] + held
    host = above + LIBRARIES_BYTES + (BITSANDBYTES_BYTES if config.quantize == "int4" else 0)
    host += CUDA_HOST_BYTES if devices else 0
    host_free, _ = machine.host_memory()
    position, scale = _position(config, facts, media, encoded, name)
    return Plan(
        media=media,
        encoded=encoded,
        kept=kept,
        layer_tokens=layer_tokens,
        position=position,
        trained=facts.max_position,
        time_scale=scale,
        parts=parts,
        host=host,
        above_libraries=above,
        host_free=host_free,
        device=sum(on.peak for on in used) if used else None,
        device_free=sum(free) if used else None,
        device_name=", ".join(on.name for on in used) or "cpu",
        cards=tuple(used),
        decode_cpu_s=media.source_pixels * media.source_frames / 1e6 * DECODE_S_PER_MEGAPIXEL,
        dtype=dtype,
        quantize=config.quantize,
        offload=config.offload,
        problems=tuple(_problems(config, facts, name, kept=sum(kept), used=used, host=host, host_free=host_free)),
    )


def _layer_tokens(method: Compressor, depth: int, encoded: tuple[int, int], kept: tuple[int, int]) -> int:
    """Return the media tokens that a layer's cache holds, in the mean over the layers."""
    drops = method.layers(depth) or method.late_removal(depth) is not None
    if method.keeps_kv() and drops and (shares := method.nominal(*encoded)):
        return min(sum(kept), round(shares[0] * encoded[0] + shares[1] * encoded[1]))
    return sum(kept)


def _through_host(config: Config, facts: Facts, weights: Weights, name: str, count: int) -> int:
    """Return the bytes of weights that pass through host memory on their way to ``count`` cards, or stay there."""
    waiting = weights.total if config.offload or count > 1 else 0
    if facts.through_host and size_on_disk(name):  # what is quantised goes to the device at once
        waiting = max(waiting, weights.total - weights.packed)
    return waiting


def _problems(
    config: Config, facts: Facts, name: str, *, kept: int, used: list[CardPlan], host: int, host_free: int | None
) -> Iterator[str]:
    """Yield why a run does not fit."""
    length = kept + TEXT_TOKENS
    if length + config.generate.max_new_tokens > facts.max_position:
        yield f"{length:,} tokens do not fit the context of {name}, {facts.max_position:,}"
    for on in used:
        if on.peak > ERROR * on.free:
            yield f"{show(on.peak)} on {on.name}, where {show(on.free)} are free"
    if host_free is not None and host > ERROR * host_free:
        yield f"{show(host)} of host memory, where {show(host_free)} are free"


def _position(
    config: Config, facts: Facts, media: Media, encoded: tuple[int, int], name: str
) -> tuple[int, float | None]:
    """Return the largest position of the media, and what positions in time are multiplied with; see `Plan`."""
    seconds = None if media.last_frame_s is None else media.last_frame_s - (config.media.start or 0.0)
    last = facts.last_position(MARKS, seconds, encoded[1], sum(encoded))
    origin = MARKS if facts.clocked else None
    scale = timescale.choose(config, origin=origin, last=last, trained=facts.max_position, name=name)
    return (last if scale is None else MARKS + int((last - MARKS) * scale + timescale.EPSILON)), scale


def size_on_disk(name: str) -> bool:
    """Tell whether weights are read from files, and not made up on the device."""
    return not name.startswith("dummy:")


def read(info: MediaInfo, settings: MediaConfig, facts: Facts) -> Media:
    """Return what `omnicli.encode.encode` will read of a file.

    Raises
    ------
    MediaError
        The span begins behind the file's end.
    """
    start = settings.start or 0.0
    end = info.duration_s if settings.end is None else min(settings.end, info.duration_s)
    if start >= info.duration_s:
        raise MediaError(f"{info.path}: lasts {info.duration_s:.2f} s; there is nothing from {start:g} s on")
    frames, size, last, source, inside, audio_s = 0, (0, 0), None, 0, 0, 0.0
    if info.video is not None and info.frames is not None and start < info.frames.end_s:
        times = sampling.wanted_times(info.frames, settings, start, end)
        frames = len(times)
        bounds = sampling.pixel_bounds(settings, frames)
        size = facts.frame_size(info.video.width, info.video.height, frames, **bounds)
        group = (frames - 1) // facts.frame_group * facts.frame_group
        last = start + group / facts.nominal_fps if settings.clock == "nominal" else float(times[group])
        source = info.video.coded_width * info.video.coded_height
        inside = int(((info.frames.time_s >= start) & (info.frames.time_s < end)).sum())
    if settings.audio != "off" and info.audio_span is not None and start < info.audio_span[1]:
        limit = end if settings.audio_limit is None else min(end, start + settings.audio_limit)
        audio_s = min(limit, info.audio_span[1]) - start
    return Media(frames, size[1], size[0], last, max(0.0, audio_s), source, inside)


def _devices(wanted: str, offload: bool) -> list[machine.Device]:
    """Return the graphics cards that a device's name means; none: the CPU. `ModelError` if they cannot offload."""
    from omnicli.models.loading import NO_OFFLOAD

    found = _named(wanted)
    if offload and len(found) != 1:
        raise ModelError(cards.ALONE if found else NO_OFFLOAD)
    return found


def _named(wanted: str) -> list[machine.Device]:
    if wanted == "cpu":
        return []
    there = machine.devices()
    if wanted == "auto":
        return there[:1]
    if cards.several(wanted):
        return [there[number] for number in cards.numbers(wanted, len(there))]
    kind, _, number = wanted.partition(":")
    if kind != "cuda" or (number and not number.isdigit()):
        raise ModelError(f"unknown device {wanted!r}; use {cards.NAMES}")
    index = int(number or 0)
    if index >= len(there):
        raise ModelError(f"device {wanted} is not available; {len(there)} CUDA devices found, use cpu")
    return [there[index]]


def show(size: int) -> str:
    """Return bytes as GiB or MiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 1 << 30 else f"{size / 2**20:.0f} MiB"


def to_dict(info: MediaInfo, config: Config, plan: Plan, found: list[Change]) -> dict[str, Any]:
    """Return what `omni plan --json` prints."""
    (v, a), (kv, ka) = plan.encoded, plan.kept
    return {
        "schema": SCHEMA,
        "media": str(info.path),
        "model": {
            "name": config.model or DEFAULT_MODEL,
            "dtype": plan.dtype,
            "device": plan.device_name,
            "quantize": plan.quantize,
            "offload": plan.offload,
        },
        "preset": config.preset,
        "media_used": {
            "frames": plan.media.frames,
            "width": plan.media.width,
            "height": plan.media.height,
            "audio_s": round(plan.media.audio_s, 3),
        },
        "tokens": {
            "video": {"encoded": v, "kept": kv},
            "audio": {"encoded": a, "kept": ka},
            "text": TEXT_TOKENS,
            "per_layer": plan.layer_tokens,
        },
        "positions": {
            "largest": plan.position,
            "trained": plan.trained,
            "time_scale": None if plan.time_scale is None else round(plan.time_scale, 6),
        },
        "bytes": dict(plan.parts),
        "peak": {
            "host_bytes": plan.host,
            "host_above_libraries_bytes": plan.above_libraries,
            "device_bytes": plan.device,
        },
        "free": {"host_bytes": plan.host_free, "device_bytes": plan.device_free},
        "cards": [
            {"device": on.name, "layers": on.layers, "peak_bytes": on.peak, "free_bytes": on.free} for on in plan.cards
        ],
        "decode_cpu_s_estimate": round(plan.decode_cpu_s, 1),
        "fits": plan.fits,
        "problems": list(plan.problems),
        "changes": [
            {"change": c.text, "host_bytes": c.plan.host, "device_bytes": c.plan.device, "kept": sum(c.plan.kept)}
            for c in found
        ],
    }
