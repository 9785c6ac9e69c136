"""Every preset through one model, and each method and mode of theirs on every family and on clips that lack something.

What the layers read on average is what the settings ask for; see `tests.compress.test_depths` for other depths.
"""

from __future__ import annotations

import pytest
import torch

from omnicli.config import config
from omnicli.errors import ModelError
from omnicli.models import registry
from omnicli.models.parts import CAPTURES
from tests.compress import reading

PAIRS = reading.pairs()


def test_every_family_has_a_tiny_model_here():
    assert set(reading.FAMILIES) == set(registry.families())


@torch.inference_mode()
@pytest.mark.parametrize("preset", reading.PRESETS)
def test_a_presets_layers_read_what_it_asks_for(preset):
    method = config.load_config(preset).compressor
    clip = reading.random_clip("qwen2-5-omni")
    reading.check_layers_read_what_was_asked_for(reading.model("qwen2-5-omni"), clip, method)


def lacking() -> list[tuple[str, str, str]]:
    """Return preset, family and clip: all clips for what drops tokens inside the LLM, one of them for the others."""
    kinds, inside, out = list(reading.CLIPS), reading.pruning(), []
    for i, preset in enumerate(PAIRS):
        families = [f for f in sorted(reading.FAMILIES) if not reading.refused(f, preset)]
        for j in range(len(kinds) if preset in inside else 1):
            out.append((preset, families[(i + j) % len(families)], kinds[(i // len(families) + j) % len(kinds)]))
    return out


@torch.inference_mode()
@pytest.mark.parametrize(("preset", "family", "kind"), lacking())
def test_a_clip_that_lacks_something_is_read_and_answered(preset, family, kind):
    method = config.load_config(preset).compressor
    clip = reading.encoded(family, kind, method.needs & CAPTURES)
    reading.read(reading.model(family), clip, method, write=True)


@pytest.mark.parametrize(
    ("family", "preset"), [(f, p) for f in reading.FAMILIES for p in PAIRS if reading.refused(f, p)]
)
def test_what_a_family_cannot_give_is_one_error(family, preset):
    omni, method = reading.model(family), config.load_config(preset).compressor
    with pytest.raises(ModelError, match=r"use (its )?mode clean"):
        clip = reading.encoded(family, "one frame", method.needs & CAPTURES)
        method.compress(clip.tokens, omni.query(omni.prompt("q", video=clip.video, audio=clip.audio)))


@pytest.mark.parametrize(
    ("preset", "share", "slack"),
    [
        ("seats-35", 0.35, 0.03),
        ("seats-10", 0.10, 0.03),
        ("fastv-om-25", 0.25, 0.03),
        ("divprune-om-15", 0.15, 0.03),
        ("visionzip-om-35", 0.35, 0.03),
        ("omnizip-45", 0.45, 0.03),
        ("omnisift-36", 0.36, 0.03),
        ("omac-30", 0.30, 0.03),
    ],
)
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
