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
from tests.support.slowly import slow_but

PAIRS = reading.pairs()


def test_every_family_has_a_tiny_model_here():
    assert set(reading.FAMILIES) == set(registry.families())


@torch.inference_mode()
@pytest.mark.parametrize("preset", slow_but(reading.lightest(), lambda preset: "/" not in preset))
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
@pytest.mark.parametrize(
    ("preset", "family", "kind"),
    [pytest.param(*case, marks=pytest.mark.slow if i % 2 else ()) for i, case in enumerate(lacking())],
)
@pytest.mark.slow
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
            assert made.compressor.params()["mode"] == "official", preset.name
            assert (made.media.clock, made.media.sampling) == ("nominal", "linspace"), preset.name
        else:
            assert made.compressor.params().get("mode", "clean") == "clean", preset.name
            assert (made.media.clock, made.media.sampling) == ("true", "clock")
            assert made.media.audio_limit is None and made.media.total_pixels is None


PAIRS_OF_SEATS = {
    "qwen2.5": {35: (0.30, 0.65), 25: (0.20, 0.55), 15: (0.10, 0.45), 10: (0.06, 0.35)},
    "qwen3": {35: (0.32, 0.70), 25: (0.22, 0.60), 15: (0.12, 0.50), 10: (0.07, 0.45)},
}
"""Shares of pictures and sound by R (SEATS, table 7, both selected)."""

ROWS = {
    "seats": ((35, 25, 15, 10), (35, 25, 15, 10)),
    "divprune-om": ((35, 25, 15, 10), (35, 25, 15, 10)),
    "visionzip-om": ((35, 25, 15, 10), (35, 25, 15, 10)),
    "fastv-om": ((35, 25, 15), (35, 25, 15)),
    "divprune": ((35, 25), (35, 25, 15)),
    "visionzip": ((35, 25), (35, 25, 15)),
    "fastv": ((35, 25), (35, 25)),
    "fastvid": ((35, 25), (35, 25)),
    "dycoke": ((35,), (35,)),
    "omnizip": ((), (35,)),
}
"""R of each method on Qwen2.5-Omni and on Qwen3-Omni (SEATS, tables 3, 7 and 8)."""


def test_parity_presets_hold_the_pairs_and_frames_of_seats_on_both_models():
    of_seats = {p.name for p in config.list_presets() if "SEATS's scripts" in p.description}
    expected = set()
    for i, (model, tail, side) in enumerate((("qwen2.5", "", 28), ("qwen3", "-qwen3", 32))):
        for method, rows in ROWS.items():
            for r in rows[i]:
                name = f"parity/{method}-{r}{tail}"
                expected.add(name)
                made = config.load_config(name)
                params, media = made.compressor.params(), made.media
                if method == "dycoke":  # no share of sound: what whole sound leaves for pictures, at least 1 of 4
                    assert params["retention_video"] == {"qwen2.5": 0.25, "qwen3": 0.2929}[model]
                else:
                    pair = (params["retention_video"], params["retention_audio"])
                    assert pair == PAIRS_OF_SEATS[model][r], name
                assert params.get("temperature") == (0.3 if (method, model) == ("seats", "qwen3") else None)
                assert (media.fps, media.max_frames, media.audio_limit) == (2, 128, 300)
                pixels = (media.min_pixels, media.max_pixels, media.total_pixels)
                assert pixels == tuple(n * side**2 for n in (128, 144, 24576)), name
    assert of_seats == expected


def test_dycokes_share_on_qwen3_is_what_whole_sound_leaves():
    kept = 0.32 * 288 + 0.70 * 26
    assert (kept - 26) / 288 == pytest.approx(0.2929, abs=5e-5)
    assert int((4 * 0.2929 - 1) / 3 * 144) == 8
