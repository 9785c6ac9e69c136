"""Temporal blocks where frames are far apart: every family, the papers' own samplings, and what AVOC makes of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from omnicli.compress import tammr
from omnicli.compress.methods.avoc import Avoc, importance
from omnicli.compress.methods.avoc_stream import AvocStream
from omnicli.compress.methods.omnisift import OmniSIFT
from omnicli.compress.methods.omnizip import OmniZip
from omnicli.compress.methods.seats import Seats
from omnicli.models import layout
from omnicli.models.parts import EncodedAudio, EncodedVideo
from omnicli.testing import methods as contract
from omnicli.testing.clips import query
from omnicli.types import MediaTokens, Modality
from tests.support import tiny, tiny_minicpm, tiny_qwen3

FAMILIES = {"minicpm-o": tiny_minicpm.model, "qwen2-5-omni": tiny.model, "qwen3-omni-moe": tiny_qwen3.model}
SAMPLINGS = {"320 frames of an hour": (320, 3600.0), "128 frames of ten minutes": (128, 600.0)}
MODELS: dict[str, object] = {}


def model(family: str):
    if family not in MODELS:
        MODELS[family] = FAMILIES[family]()
    return MODELS[family]


def times_of(kind: str, n: int, seconds: float) -> np.ndarray:
    """Frame times: even, rounded to a film's frames, or anywhere within 40 % of where they should be."""
    even = np.arange(n) * seconds / n
    if kind == "even":
        return even
    if kind == "ntsc":
        return np.ceil(even * 24000 / 1001) * 1001 / 24000
    return even + np.random.default_rng(0).uniform(0, 0.4, n) * seconds / n


def assembled(family: str, times: np.ndarray, seconds: float, end_s: float, width: int | None = None) -> MediaTokens:
    """Two tokens a frame and all the sound of so many seconds."""
    omni, chance = model(family), torch.Generator().manual_seed(0)
    d = omni.hidden_size if width is None else width
    groups, n_audio = -(-len(times) // omni.frame_group), omni.facts.audio_tokens(seconds)

    def random(n: int):
        return torch.randn(n, d, generator=chance), torch.rand(n, generator=chance) + 0.5, None

    features, saliency, keys = random(2 * groups)
    levels = torch.zeros(omni.facts.levels, len(features), d) if omni.facts.levels else None
    video = [EncodedVideo(features, groups, 1, 2, saliency, keys, levels)] if groups else []
    return omni.assemble(video, times, [EncodedAudio(*random(n_audio))], 0.0, end_s).tokens


@pytest.mark.parametrize("kind", ["even", "ntsc", "jitter"])
@pytest.mark.parametrize("sampling", list(SAMPLINGS))
@pytest.mark.parametrize("family", list(FAMILIES))
def test_all_sound_between_pictures_has_an_importance_and_neighbours_are_compared(family, sampling, kind):
    n, seconds = SAMPLINGS[sampling]
    tokens = assembled(family, times_of(kind, n, seconds), seconds, seconds)
    video, audio = (tokens.indices(m) for m in Modality)
    assert bool((tokens.window[1:] >= tokens.window[:-1]).all())
    _, defined = importance(tokens.features[:, :4], tokens.modality, tokens.window)
    spanned = audio[
        (tokens.start_s[audio] >= tokens.start_s[video[0]]) & (tokens.start_s[audio] <= tokens.end_s[video[-1]])
    ]
    assert len(spanned) > 0.95 * len(audio) and bool(defined[spanned].all())
    assert bool(defined[video].all())
    blocks = tokens.window[video[::2]]
    assert blocks.diff().tolist() == [1] * (len(blocks) - 1)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_blocks_stay_the_models_where_pictures_are_near(family):
    omni = model(family)
    for step in (0.25, 0.5, 1.0, omni.facts.window_s / omni.frame_group):
        for kind in ("even", "ntsc", "jitter"):
            times = times_of(kind, round(40 / step), 40.0)
            if np.median(np.diff(times[:: omni.frame_group])) > omni.facts.window_s and kind == "jitter":
                continue
            tokens = assembled(family, times, 40.0, 40.0)
            assert torch.equal(tokens.window, torch.floor((tokens.start_s + 1e-6) / omni.facts.window_s).long())


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("times", [[], [7.3]], ids=["sound only", "one frame"])
def test_without_an_interval_blocks_stay_the_models(family, times):
    omni = model(family)
    tokens = assembled(family, np.array(times), 60.0, 60.0)
    assert torch.equal(tokens.window, torch.floor((tokens.start_s + 1e-6) / omni.facts.window_s).long())


def test_stretches_without_pictures_are_no_giant_blocks():
    groups = np.array([100.0, 110.0, 120.0, 190.0, 200.0, 210.0])
    begins = layout.block_begins(groups, 0.0, 300.0, 2.0).tolist()
    lead = [10.0 * i for i in range(10)]
    gap = [130.0, 140.0, 150.0, 160.0, 170.0, 180.0]
    tail = [220.0, 230.0, 240.0, 250.0, 260.0, 270.0, 280.0, 290.0]
    assert begins == [*lead, 100.0, 110.0, 120.0, *gap, 190.0, 200.0, 210.0, *tail]
    # Up to twice the interval is one block, sound shortly before the first picture belongs to it.
    assert layout.block_begins(np.array([4.0, 14.0, 24.0, 44.0, 54.0]), 0.0, 70.0, 2.0).tolist() == [4, 14, 24, 44, 54]
    # A group that comes too soon begins no block.
    assert layout.block_begins(np.array([0.0, 10.0, 11.0, 20.0, 30.0]), 0.0, 30.0, 2.0).tolist() == [0, 10, 20, 30]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_no_block_is_longer_than_twice_the_interval(family):
    omni = model(family)
    times = np.concatenate([np.arange(60.0, 120.0, 6.0), np.arange(400.0, 500.0, 6.0)])
    tokens = assembled(family, times, 900.0, 900.0)
    interval = 6.0 * omni.frame_group
    for block in torch.unique(tokens.window).tolist():
        inside = tokens.start_s[tokens.window == block]
        assert float(inside.max() - inside.min()) <= 2 * interval + omni.facts.window_s


def test_sound_that_is_read_behind_a_picture_is_in_its_block():
    """Qwen2.5-Omni reads the pictures of two seconds before all of their sound."""
    tokens = assembled("qwen2-5-omni", np.arange(10) * 5.5, 55.0, 55.0)
    video = tokens.indices(Modality.VIDEO)
    assert tokens.start_s[video[::2]].tolist() == [0.0, 11.0, 22.0, 33.0, 44.0]
    first = torch.nonzero(tokens.window == 1).flatten()
    assert int(first[0]) == int(video[2]) and float(tokens.start_s[first].min()) == 10.0
    assert float(tokens.start_s[tokens.window == 1].max()) == pytest.approx(21.96)


def test_avoc_compares_neighbouring_pictures_of_an_hour(monkeypatch):
    """Frames that repeat the one before are let go, which blocks of two seconds would not notice."""
    tokens = assembled("qwen2-5-omni", np.arange(320) * 11.25, 3600.0, 3600.0, width=24)
    features, video = tokens.features.clone(), tokens.indices(Modality.VIDEO)
    features[video[2:4]] = features[video[0:2]]
    tokens = dataclasses.replace(tokens, features=features)
    short = dataclasses.replace(tokens, window=torch.floor(tokens.start_s / 2).long())
    kept = {}
    for name, given in (("blocks", tokens), ("two seconds", short)):
        selection = Avoc(tokens=200, split="1:0", diversity=1.0, radius=3).compress(given, query(24))
        kept[name] = int(torch.isin(video[:4], selection.indices).sum())
    assert kept == {"blocks": 2, "two seconds": 4}
    near = importance(tokens.features, short.modality, short.window)[1][tokens.indices(Modality.AUDIO)]
    assert float(near.float().mean()) < 0.1, "91 % of the sound had no picture in its block"
    assert tammr.ta_mmr(features, torch.zeros(len(tokens)), tokens.window, 3).numel() == 3


@pytest.mark.parametrize("family", list(FAMILIES))
def test_other_methods_work_with_long_blocks(family):
    """Budgets are exact, and the choice block by block stays AVOC's."""
    tokens = assembled(family, times_of("jitter", 16, 96.0), 96.0, 96.0, width=16)
    for method in (Seats, OmniZip, OmniSIFT, AvocStream):
        run = contract.choose(method.with_retention(0.3), tokens)
        assert contract.missed(method.with_retention(0.3), run, int(0.3 * len(tokens) + 0.5), "retention") is None
    chosen = [m(tokens=len(tokens) // 3).compress(tokens, query()).indices for m in (Avoc, AvocStream)]
    assert float(torch.isin(*chosen).float().mean()) > 0.9
