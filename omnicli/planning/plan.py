"""Does it fit: tokens, positions and peak memory of a run, worked out before anything is loaded.

From what is in the file (`probe`), the settings, and what is known of the model without its code (`models/facts`).
Imports neither torch nor transformers. Tokens are exact but for methods whose budget follows the scores; memory is the
sum of the tensors that are alive at the same time, plus constants for what no tensor holds (`ROOM_BYTES`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omnicli.config.config import DEFAULT_MODEL, Config
from omnicli.config.settings import MediaConfig
from omnicli.errors import MediaError, ModelError
from omnicli.media import sampling
from omnicli.models import timescale
from omnicli.models.weights import devices as cards
from omnicli.planning import machine

if TYPE_CHECKING:
    from omnicli.media.probe import MediaInfo
    from omnicli.models.facts.base import Facts

SCHEMA = 1
TEXT_TOKENS = 64
"""Assumed for a question and the chat format around it; without the tokenizer they cannot be counted."""
MARKS = 16
"""Positions assumed before the media."""
CHUNK = 2048
"""Positions that the LLM reads at a time (`omnicli.llm.prefill`)."""
BATCHES_AHEAD = 5
"""Batches of frames in memory at once: waiting, in the making, being encoded, and one being put together."""
DECODER_FRAMES = 28
"""Source frames that a decoder holds, at 1.5 bytes a pixel, and one as RGB: 37 to 42 MB in `benchmarks/decode.py`."""
SELECT_BYTES, SELECT_TOKEN_BYTES = 16 << 20, 64
"""Working memory of a method: a few chunks of a pass over the tokens (`compress.ops.CHUNK_BYTES`), and per token."""
MAP_ELEMENTS = 1 << 23
"""Attention weights at once where saliency is captured (`omnicli.models.attention`)."""
ERROR = 1.15
"""How far a prediction may be off: only what exceeds free memory by more is refused."""

ROOM_BYTES = 64 << 20
"""What a run on a CPU takes besides its tensors: modules imported on the way, stacks and arenas of threads."""
LIBRARIES_BYTES = 750 << 20
"""Resident after importing torch, transformers and PyAV, before a model is loaded."""
CUDA_HOST_BYTES = 2 << 30
"""Resident on the host besides, once CUDA's libraries are in use; not yet measured."""
CUDA_CONTEXT_BYTES = 600 << 20
"""Taken on the device by the CUDA context and by libraries' workspaces."""
BITSANDBYTES_BYTES = 190 << 20
"""Resident after importing it, for weights in 4 bits."""
BLOCK = 64
"""Values of a weight in 4 bits that share a scale (`omnicli.models.weights.quantize`)."""
DECODE_S_PER_MEGAPIXEL = 0.0015
"""CPU seconds per million source pixels of the span, h264; 1.0 to 1.9 ms in `benchmarks/decode.py`."""


@dataclass(frozen=True)
class Media:
    """What is read of the file: frames, their size, and seconds; see `omnicli.types.MediaUsed`."""

    frames: int
    width: int
    height: int
    last_frame_s: float | None
    sound_s: float
    source_pixels: int
    source_frames: int


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
        checkpoint.check_weights(name, folder)
        values = checkpoint.count_weights(folder, facts.loads, facts.skips)
    return plan_for(info, config, facts, values, name)


def plan_for(info: MediaInfo, config: Config, facts: Facts, values: int, name: str) -> Plan:
    """Return the plan for a model of which these are the facts, with so many weights."""
    from omnicli.models.loading import dtype_name

    devices = _devices(config.device, config.offload)
    dtype = dtype_name(config.dtype, bool(devices))
    item = 4 if dtype == "float32" else 2
    media = read(info, config.media, facts)
    n_video = -(-media.frames // facts.frame_group) * facts.group_tokens(media.height, media.width)
    n_audio = facts.audio_tokens(media.sound_s)
    if n_video + n_audio == 0:
        raise MediaError(f"{info.path}: no picture and no sound in the chosen span")
    method, n = config.compressor, n_video + n_audio
    kept = method.entering(n_video, n_audio)
    layer_tokens = sum(kept)
    if method.keeps_kv() and method.layers(facts.llm.depth) and (shares := method.nominal(n_video, n_audio)):
        layer_tokens = min(layer_tokens, round(shares[0] * n_video + shares[1] * n_audio))
    parts = _parts(facts, config, media, counts=(n, sum(kept), layer_tokens), item=item)
    weights = Weights.of(facts, config.quantize, item, values)
    parts = {"weights": weights.total, "encoder_weights": weights.encoders} | parts
    parts["prefill"] += weights.restored
    pruned = bool(method.layers(facts.llm.depth)) or method.late_removal(facts.llm.depth) is not None
    selecting = SELECT_BYTES + n * SELECT_TOKEN_BYTES if sum(kept) < n else 0
    free = [card.free_bytes for card in devices] or [1]
    counts, works = _peaks(
        parts, weights, facts.llm.depth, free, selecting=selecting, whole=pruned, offload=config.offload
    )
    length = sum(kept) + TEXT_TOKENS
    problems = []
    if length + config.generate.max_new_tokens > facts.max_position:
        problems.append(f"{length:,} tokens do not fit the context of {name}, {facts.max_position:,}")
    above = ROOM_BYTES + parts["frames"] + works[0]
    libraries = LIBRARIES_BYTES + (BITSANDBYTES_BYTES if config.quantize == "int4" else 0)
    if devices:
        libraries += CUDA_HOST_BYTES
        waiting = weights.total if config.offload or len(devices) > 1 else 0
        if facts.through_host and size_on_disk(name):  # what is quantised goes to the device at once
            waiting = max(waiting, weights.total - weights.packed)
        above = ROOM_BYTES + parts["frames"] + waiting
    used = [
        CardPlan(f"cuda:{card.index} {card.name}", layers, work + CUDA_CONTEXT_BYTES, card.free_bytes)
        for card, layers, work in zip(devices, counts, works, strict=False)  # on a CPU there are no cards
    ]
    problems += [
        f"{show(on.peak)} on {on.name}, where {show(on.free)} are free" for on in used if on.peak > ERROR * on.free
    ]
    host_free, _ = machine.host_memory()
    if host_free is not None and above + libraries > ERROR * host_free:
        problems.append(f"{show(above + libraries)} of host memory, where {show(host_free)} are free")
    seconds = None if media.last_frame_s is None else media.last_frame_s - (config.media.start or 0.0)
    last = facts.last_position(MARKS, seconds, n_audio, n)
    origin = MARKS if facts.clocked else None
    scale = timescale.choose(config, origin=origin, last=last, trained=facts.max_position, name=name)
    if scale is not None:
        last = MARKS + int((last - MARKS) * scale + timescale.EPSILON)
    return Plan(
        media=media, encoded=(n_video, n_audio), kept=kept, layer_tokens=layer_tokens,
        position=last, trained=facts.max_position, time_scale=scale,
        parts=parts, host=above + libraries, above_libraries=above, host_free=host_free,
        device=sum(on.peak for on in used) if used else None, device_free=sum(free) if used else None,
        device_name=", ".join(on.name for on in used) or "cpu", cards=tuple(used),
        decode_cpu_s=media.source_pixels * media.source_frames / 1e6 * DECODE_S_PER_MEGAPIXEL, dtype=dtype,
        quantize=config.quantize, offload=config.offload, problems=tuple(problems),
    )  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """Bytes of weights: of all, of the encoders, of the LLM's layers, of those in few bits, and of what is restored of
    them at a time."""

    total: int
    encoders: int
    layers: int
    packed: int
    restored: int

    @classmethod
    def of(cls, facts: Facts, quantize: str, item: int, values: int) -> Weights:
        """Work them out for ``values`` weights of ``item`` bytes; norms and biases count as the encoders'."""
        layers, around = facts.llm_values()
        encoders = max(0, values - layers - around) * item
        if quantize == "none":
            return cls(values * item, encoders, layers * item, 0, 0)
        sizes = facts.layer_matrices
        rows = facts.llm.depth * sum(n * high for n, high, _ in sizes)
        packed = layers + 4 * rows if quantize == "int8" else layers // 2 + 4 * layers // BLOCK
        restored = max(high * wide for _, high, wide in sizes)
        if facts.experts_per_token:  # all of a layer's, if a chunk is routed to all
            restored = sum(n * high * wide for n, high, wide in sizes[2:])
        return cls((values - layers) * item + packed, encoders, packed, packed, restored * item)


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
    frames, size, last, source, inside, sound = 0, (0, 0), None, 0, 0, 0.0
    if info.video is not None and info.frames is not None and start < info.frames.end_s:
        times = sampling.frame_times(info.frames.time_s, settings.fps, settings.max_frames, start, end)
        frames = len(times)
        size = facts.frame_size(
            info.video.width, info.video.height, frames,
            min_pixels=settings.min_pixels, max_pixels=settings.max_pixels,
        )  # fmt: skip
        last = float(times[(frames - 1) // facts.frame_group * facts.frame_group])
        if settings.clock == "nominal":
            last = start + (frames - 1) / settings.fps
        source = info.video.coded_width * info.video.coded_height
        inside = int(((info.frames.time_s >= start) & (info.frames.time_s < end)).sum())
    if settings.audio != "off" and info.audio_span is not None and start < info.audio_span[1]:
        limit = end if settings.audio_limit is None else min(end, start + settings.audio_limit)
        sound = min(limit, info.audio_span[1]) - start
    return Media(frames, size[1], size[0], last, max(0.0, sound), source, inside)


def _parts(facts: Facts, config: Config, media: Media, *, counts: tuple[int, int, int], item: int) -> dict[str, int]:
    """Return bytes by what holds them; ``counts``: tokens encoded, kept, and held per layer."""
    d, (n, kept, per_layer), needs = facts.llm, counts, config.compressor.needs
    token = d.hidden_size * item * (1 + facts.levels) + 64  # times, places and positions of a token: 64 bytes
    saliency = any(name.endswith("saliency") for name in needs)
    token += 4 * saliency
    token += item * max(facts.vision.key_width, facts.audio.key_width) * ("keys" in needs)
    pixels = min(facts.video_batch, media.frames) * media.height * media.width
    patches = pixels // facts.patch**2 // facts.frame_group
    rows = 3 * pixels * (1 + 4 + (item if item < 4 else 0))  # uint8 and normalised float32, cast where that is not it
    seen = rows + patches * facts.vision.position_values * item if media.frames else 0
    heard_s = min(facts.audio_batch_s, media.sound_s)
    stem = heard_s * 100 * (facts.mel_bands * 4 + facts.stem_values * item)
    positions = heard_s * facts.audio_positions_per_s
    heard = int(max(stem, positions * facts.audio.position_values * item))
    per_group = media.height * media.width // facts.patch**2
    maps = 3 * 4 * min(MAP_ELEMENTS, max(patches * per_group, int(positions**2)))  # scores, softmax, and a copy
    length, chunk = kept + TEXT_TOKENS, min(CHUNK, kept + TEXT_TOKENS)
    mlp = 4 * d.intermediate_size + 2 * facts.experts_per_token * d.hidden_size
    chunked = chunk * (6 * d.hidden_size + max(mlp, 3 * d.query_width + 4 * d.kv_width)) * item
    spread = 2 * length * d.query_width * item if d.heads > d.kv_heads else 0  # keys and values repeated for all heads
    return {
        "encoders": max(seen, heard) + (maps if saliency else 0),
        "tokens": n * token,
        "kept": kept * token + length * d.hidden_size * item,
        "kv": 2 * d.depth * (per_layer + TEXT_TOKENS + config.generate.max_new_tokens) * d.kv_width * item,
        "prefill": chunked + spread,
        "frames": BATCHES_AHEAD * 3 * pixels + (DECODER_FRAMES * media.source_pixels * 3 // 2 if media.frames else 0),
        "hidden": length * (2 * d.hidden_size + 2 * d.head_dim) * item,
    }


def _peak(parts: dict[str, int], selecting: int, whole: bool, offload: bool) -> int:
    """Return the largest sum of what is alive at the same time, where the model computes.

    Encoding: weights, tokens so far, working memory. Assembling: the tokens twice. Choosing: tokens, the copies that
    are kept, and the method's own. Reading: tokens, copies, KV cache, and a chunk's working memory; hidden states of
    all positions where a method prunes inside the LLM (``whole``).
    With ``offload`` only the weights that work are there.
    """
    encoding = parts["tokens"] + max(parts["encoders"], parts["tokens"])
    choosing = parts["tokens"] + parts["kept"] + selecting
    reading = parts["tokens"] + parts["kept"] + parts["kv"] + parts["prefill"] + (parts["hidden"] if whole else 0)
    llm = parts["weights"] - parts["encoder_weights"]
    if offload:
        return max(parts["encoder_weights"] + encoding, llm + max(choosing, reading))
    return parts["weights"] + max(encoding, choosing, reading)


def _peaks(
    parts: dict[str, int], weights: Weights, depth: int, free: list[int], *, selecting: int, whole: bool, offload: bool
) -> tuple[list[int], list[int]]:
    """Return how many layers each card holds, and `_peak` of each: behind the first there are only layers at work."""
    first, *others = counts = cards.split(depth, weights.layers // depth, weights.total - weights.layers, free)
    away = depth - first
    here = parts | {
        "weights": parts["weights"] - weights.layers * away // depth,
        "kv": parts["kv"] - parts["kv"] * away // depth,
    }
    working = parts["prefill"] + (parts["hidden"] if whole else 0)
    behind = [(weights.layers + parts["kv"]) * n // depth + working for n in others]
    return counts, [_peak(here, selecting, whole, offload), *behind]


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
            "audio_s": round(plan.media.sound_s, 3),
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
