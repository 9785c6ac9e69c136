"""A preset through a model: encoded or random media, the method, the LLM's layers, a few generated tokens."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import torch

from omnicli.answer import result
from omnicli.compress.base import Compressor
from omnicli.compress.chain import Chain
from omnicli.config import config
from omnicli.llm.decode import DecodeOptions, generate
from omnicli.llm.kv import KVCache
from omnicli.llm.prefill import prefill
from omnicli.models.parts import CAPTURES, KEYS, EncodedAudio, EncodedVideo
from omnicli.types import MediaTokens, Modality
from tests.support import tiny, tiny_minicpm, tiny_qwen3

FAMILIES = {"minicpm-o": tiny_minicpm.model, "qwen2-5-omni": tiny.model, "qwen3-omni-moe": tiny_qwen3.model}
PRESETS = [preset.name for preset in config.list_presets()]
REFUSED = {"minicpm-o": ("parity/seats", "parity/fastvid", "parity/omnisift")}
"""Presets that ask for what a family's encoders or positions cannot give; both senses present."""
CLIPS = {"silent": (7, None), "sound only": (0, 6.3), "one frame": (1, 2.0)}
ROUNDING = 2.0
"""Tokens of a modality by which whole numbers may be off."""


def pairs() -> list[str]:
    """Return one preset for every method and mode that presets hold, of those without anything left out."""
    found: dict[tuple[str, str], str] = {}
    for preset in sorted(config.list_presets(), key=lambda p: p.name.startswith("ablation/")):
        params = config.load_config(preset.name).compressor.params()
        found.setdefault((preset.method, str(params.get("mode"))), preset.name)
    return list(found.values())


def lightest() -> list[str]:
    """Return the presets; of those that are only another model's shares of the same method the smallest share."""
    found = {name.split("-qwen3")[0].rpartition("-")[0]: name for name in reversed(PRESETS) if name.endswith("-qwen3")}
    return [name for name in PRESETS if not name.endswith("-qwen3") or name in found.values()]


@cache
def model(family: str, layers: int = 28):
    """Return tiny random weights of a family, with so many layers."""
    return FAMILIES[family](layers=layers)


def pruning() -> list[str]:
    """Return those of `pairs` that drop tokens inside the LLM."""
    return [preset for preset in pairs() if config.load_config(preset).compressor.layers(28)]


def refused(family: str, preset: str) -> bool:
    """Tell whether a family cannot give what a preset needs."""
    return preset.startswith(REFUSED.get(family, ("-",)))


@cache
def encoded(family: str, kind: str, capture: frozenset[str]):
    """Return a clip that a family's towers encode."""
    frames, seconds = CLIPS[kind]
    omni = model(family)
    pictures = tiny.frames(frames, 4 * omni.facts.pixel_unit, 6 * omni.facts.pixel_unit) if frames else None
    sound = None if seconds is None else tiny.sound(seconds)
    return tiny.encode(omni, pictures, np.arange(frames) / 2, sound, capture=capture)


@cache
def random_clip(family: str, layers: int = 28):
    """Return random tokens of 4 s, more video than sound, with saliency and keys."""
    omni = model(family, layers)
    side = 8 if omni.position_axes == 1 else 10  # MiniCPM-o has 64 tokens a frame, and no pairs
    return random_tokens(omni, 8, 4.0, (side, side), max(40, omni.facts.audio_tokens(3.2)))


def random_tokens(omni, frames: int, seconds: float, grid: tuple[int, int], n_audio: int):
    """Return random tokens of so many frames, spread over the time, and sound, with saliency and keys."""
    chance, groups = torch.Generator().manual_seed(0), frames // omni.frame_group

    def random(n):
        made = [torch.randn(n, width, generator=chance) for width in (omni.hidden_size, 16)]
        return made[0], torch.rand(n, generator=chance) + 0.5, made[1]

    features, saliency, keys = random(groups * grid[0] * grid[1])
    levels = torch.zeros(omni.facts.levels, len(features), omni.hidden_size) if omni.facts.levels else None
    video = [EncodedVideo(features, groups, *grid, saliency, keys, levels)] if groups else []
    audio = [EncodedAudio(*random(n_audio))] if n_audio else []
    return omni.assemble(video, np.arange(frames) * seconds / max(1, frames), audio, 0.0, seconds)


def captured(tokens: MediaTokens, capture: frozenset[str]) -> MediaTokens:
    """Return the tokens without what was not asked for."""
    return dataclasses.replace(
        tokens, keys=tokens.keys if KEYS in capture else None, saliency=tokens.saliency if capture - {KEYS} else None
    )


def read(omni, clip, method: Compressor, *, write: bool = False, capacity: int = 1024):
    """Choose among a clip's tokens, read what is left through all layers, ``write`` three tokens; check all.

    Returns the tokens, those that entered, and what the answer says about tokens.
    """
    tokens = captured(clip.tokens, method.needs & CAPTURES)
    prompt = omni.prompt("Who speaks last?", video=clip.video, audio=clip.audio)
    kept = tokens.select(method.compress(tokens, omni.query(prompt)))
    given = omni.sequence(prompt, clip, kept)
    cache_ = KVCache(omni.depth, omni.kv_heads, omni.head_dim, dtype=omni.dtype, device=omni.device, capacity=capacity)
    counts = (tokens.count(Modality.VIDEO), tokens.count(Modality.AUDIO))
    span = given.media_span
    out = prefill(
        omni, given.embeds, given.position_ids, cache_, media_span=span, media=kept, pruner=method, encoded=counts
    )
    assert bool(torch.isfinite(out.logits).all()) and len(kept) > 0
    text = given.embeds.shape[0] - len(kept)
    ends = [first for first, _ in out.by_layer[1:]] + [omni.depth]
    lengths = [n for (first, n), end in zip(out.by_layer, ends, strict=True) for _ in range(end - first)]
    if not method.keeps_kv():
        lengths = [0 if method.late_removal(omni.depth) is not None else len(out.kept)] * omni.depth
    assert cache_.lengths == [text + n for n in lengths]
    if write:
        writing = generate(omni, cache_, out.logits, given.next_position, DecodeOptions(max_new_tokens=3))
        writing.finish()
        assert writing.token_ids or writing.finish_reason == "eos"
    return tokens, kept, result.tokens(tokens, kept, method, out.levels, omni.depth)


def check_layers_read_what_was_asked_for(omni, clip, method: Compressor) -> None:
    """Read a clip and compare the tokens that layers read on average with the settings."""
    tokens, kept, told = read(omni, clip, method)
    encoded_, entered = ([t.count(m) for m in Modality] for t in (tokens, kept))
    assert min(encoded_) >= 40
    slack = [ROUNDING, ROUNDING]
    if getattr(method, "mode", "clean") == "official":  # rounds window by window, with floors
        slack = [0.03 * n + ROUNDING for n in encoded_]
    wanted = expected(method, encoded_, entered)
    for name, want, n, off in zip(("video", "audio"), wanted, encoded_, slack, strict=True):
        assert abs(told["retention_layers"][name] * n - want) <= off, (name, want)


def expected(method: Compressor, encoded_: list[int], entered: list[int]) -> list[float]:
    """Return the tokens of each modality that layers shall read on average."""
    if isinstance(method, Chain):  # what the first let in stands for the level before SEATS's first drop
        return [n / method.second.encoder for n in entered]
    if getattr(method, "mode", "clean") == "official" and not method.layers(28):
        return list(entered)  # chosen before the LLM, with the released code's own rounding
    shares = method.nominal(*encoded_)
    return [s * n for s, n in zip(shares, encoded_, strict=True)] if shares else list(method.entering(*encoded_))
