"""Every preset on every model family, from encoded pictures and sound through the LLM to a few generated tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from omnicli.config import config, registry
from omnicli.errors import ModelError
from omnicli.llm.decode import DecodeOptions, generate
from omnicli.llm.kv import KVCache
from omnicli.llm.prefill import prefill
from omnicli.models.parts import CAPTURES
from omnicli.types import Modality
from tests.support import tiny, tiny_minicpm, tiny_qwen3

DEPTH = 28
FAMILIES = {"minicpm-o": tiny_minicpm.model, "qwen2-5-omni": tiny.model, "qwen3-omni-moe": tiny_qwen3.model}
REFUSED = {
    "minicpm-o": {
        preset.name
        for preset in config.list_presets()
        if preset.name.startswith(("parity/seats", "parity/fastvid", "parity/omnisift"))
    }
}
"""Presets that ask for what a family's encoders or positions cannot give; both senses present."""
CLIPS = {"both": (12, 9.0), "silent": (7, None), "sound only": (0, 6.3), "one frame": (1, 2.0)}


def test_every_family_has_a_tiny_model_here():
    assert set(FAMILIES) == set(registry.families())


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def omni(request):
    return FAMILIES[request.param](layers=DEPTH)


def registry_name(omni):
    return omni.family.replace("_", "-")


def encoded(omni, kind, capture):
    frames, seconds = CLIPS[kind]
    pictures = tiny.frames(frames, 4 * omni.pixel_unit, 6 * omni.pixel_unit) if frames else None
    return tiny.encode(
        omni, pictures, np.arange(frames) / 2, None if seconds is None else tiny.sound(seconds), capture=capture
    )


@torch.inference_mode()
@pytest.mark.parametrize("kind", list(CLIPS))
@pytest.mark.parametrize("preset", [p.name for p in config.list_presets()])
def test_a_preset_runs_through_the_model(omni, preset, kind):
    method = config.load_config(preset).compressor
    if preset in REFUSED.get(registry_name(omni), ()):
        with pytest.raises(ModelError, match=r"use (its )?mode clean"):
            clip = encoded(omni, kind, method.needs & CAPTURES)
            method.compress(clip.tokens, omni.query(omni.prompt("q", video=clip.video, audio=clip.audio)))
        return
    clip = encoded(omni, kind, method.needs & CAPTURES)
    prompt = omni.prompt("Who speaks last?", video=clip.video, audio=clip.audio)
    selection = method.compress(clip.tokens, omni.query(prompt))
    kept = clip.tokens.select(selection)
    given = omni.sequence(prompt, clip, kept)
    cache = KVCache(omni.depth, omni.kv_heads, omni.head_dim, dtype=omni.dtype, device=omni.device, capacity=256)
    counts = tuple(clip.tokens.count(m) for m in Modality)
    read = prefill(
        omni, given.embeds, given.position_ids, cache, media_span=given.media_span, media=kept, pruner=method,
        encoded=counts, chunk=64,
    )  # fmt: skip
    assert bool(torch.isfinite(read.logits).all()) and len(kept) > 0
    text = given.embeds.shape[0] - len(kept)
    ends = [first for first, _ in read.by_layer[1:]] + [DEPTH]
    lengths = [n for (first, n), end in zip(read.by_layer, ends, strict=True) for _ in range(end - first)]
    if not method.keeps_kv():
        lengths = [0 if method.late_removal(DEPTH) is not None else len(read.kept)] * DEPTH
    assert cache.lengths == [text + n for n in lengths]
    writing = generate(omni, cache, read.logits, given.next_position, DecodeOptions(max_new_tokens=3))
    writing.finish()
    assert writing.token_ids or writing.finish_reason == "eos"


@pytest.mark.parametrize(
    ("preset", "share", "slack"),
    [("seats-35", 0.35, 0.03), ("seats-10", 0.10, 0.03), ("fastv-om-25", 0.25, 0.03), ("divprune-om-15", 0.15, 0.03),
     ("visionzip-om-35", 0.35, 0.03), ("omnizip-45", 0.45, 0.03), ("omnisift-36", 0.36, 0.03), ("omac-30", 0.30, 0.03)],
)  # fmt: skip
def test_a_presets_name_is_its_nominal_share_at_the_papers_mix(preset, share, slack):
    """288 picture and 50 sound tokens a window (SEATS, table 7)."""
    video, audio = config.load_config(preset).compressor.nominal(288 * 60, 50 * 60)
    assert (video * 288 + audio * 50) / 338 == pytest.approx(share, abs=slack)


def test_parity_presets_are_official_where_there_is_a_released_code():
    for preset in config.list_presets():
        made = config.load_config(preset.name)
        if preset.name.startswith("parity/") and not preset.method.startswith(("avoc", "omac")):
            assert made.compressor.params()["mode"] == "official" and made.media.clock == "nominal", preset.name
        else:
            assert made.compressor.params().get("mode", "clean") == "clean", preset.name
            assert made.media.clock == "true" and made.media.audio_limit is None
