"""A preset's percentage is the share of all media tokens, averaged over the layers, whatever the mix."""

from __future__ import annotations

import re

import pytest
import torch

from omnicli.compress.base import MODALITIES
from omnicli.compress.budget import Budget, share_of
from omnicli.compress.methods.dycoke import DyCoke
from omnicli.compress.methods.fastv import FastV
from omnicli.compress.methods.fastv_om import FastVOm
from omnicli.compress.methods.random import Random
from omnicli.compress.methods.seats import Seats
from omnicli.config import config
from omnicli.errors import ConfigError
from omnicli.planning import plan as planning
from omnicli.testing import methods as contract
from omnicli.testing.clips import clip
from omnicli.types import LayerView, Modality
from tests.compress import reading
from tests.support.slowly import slow_but

NAMED = {
    preset.name: int(found[1]) / 100
    for preset in config.list_presets()
    if "/" not in preset.name and (found := re.search(r"-(\d+)$", preset.name))
}
GEOMETRIES = {
    "288+50": (2, 9, 16, 50),
    "720+50": (2, 18, 20, 50),
    "288+26": (2, 9, 16, 26),
    "pocket, 28+50": (1, 4, 7, 50),
}
"""Frame groups in 2 s, rows and columns of their cells, sound tokens in 2 s."""
LACKING = {
    "silent": (2, 9, 16, 0),
    "sound only": (0, 9, 16, 50),
    "silent pocket": (1, 4, 7, 0),
    "one pair": (1, 4, 7, 1),
}
CLIPS = {
    name: clip(blocks=1 if name == "one pair" else 3, frames=frames, rows=rows, cols=cols, audio=audio, width=8)
    for name, (frames, rows, cols, audio) in (GEOMETRIES | LACKING).items()
}


def method_of(preset: str):
    return config.load_config(preset).compressor


def test_every_percentage_is_looked_at():
    assert len(NAMED) == 48
    for preset, share in NAMED.items():
        assert method_of(preset).params()["retention"] == share, preset


@pytest.mark.parametrize("kind", slow_but(CLIPS, lambda kind: kind in (*list(CLIPS)[:2], "silent")))
@pytest.mark.parametrize("preset", list(NAMED))
def test_a_presets_name_is_the_share_of_all_tokens(preset, kind):
    tokens, method = CLIPS[kind], method_of(preset)
    asked = share_of(NAMED[preset], len(tokens))
    run = contract.choose(method, tokens)
    assert contract.missed(method, run, asked, preset) is None
    there = tokens.count(Modality.VIDEO), tokens.count(Modality.AUDIO)
    entered = run.entered.count(Modality.VIDEO), run.entered.count(Modality.AUDIO)
    assert method.entering(*there) == entered, "the plan tells what enters the LLM"
    per_layer = planning._layer_tokens(method, contract.DEPTH, there, entered)
    assert abs(per_layer - asked) <= 1
    if getattr(method, "audio", "") == "intact" or isinstance(method, DyCoke):
        check_sound_is_intact(method, there, asked)


def check_sound_is_intact(method, there: tuple[int, int], asked: int) -> None:
    """Sound keeps all, or pictures no more than their floor, and at least that."""
    plan = method.plan_of(*there)
    least = 0.25 if isinstance(method, DyCoke) else method.floor
    assert plan.total == asked and plan.video >= min(0.05 * there[0], asked)
    assert plan.audio == there[1] or plan.video <= least * there[0] + 1


@torch.inference_mode()
@pytest.mark.parametrize(
    "kind", slow_but(["288+50", "pocket, 28+50", "silent", "sound only"], lambda kind: kind == "pocket, 28+50")
)
@pytest.mark.parametrize("preset", list(NAMED))
def test_the_layers_read_that_share(preset, kind):
    """Through a model of 28 layers; rounding is a token a drop."""
    frames, rows, cols, audio = (GEOMETRIES | LACKING)[kind]
    omni, method = reading.model("qwen2-5-omni"), method_of(preset)
    made = reading.random_tokens(omni, 2 * frames, 2.0, (rows // 3 or 1, cols // 2), audio // 6)
    if kind.startswith("pocket"):
        made = reading.random_tokens(omni, 4, 4.0, (rows, cols), 2 * audio)
    tokens, _, told = reading.read(omni, made, method)
    read = sum((told["retention_layers"][name] or 0) * tokens.count(kind_) for kind_, name in MODALITIES)
    assert abs(read - share_of(NAMED[preset], len(tokens))) <= 1 + len(method.layers(28))


@torch.inference_mode()
@pytest.mark.parametrize("preset", [name for name in NAMED if name.startswith("seats")])
def test_the_pockets_six_layers_read_that_share(preset):
    omni, method = reading.model("qwen2-5-omni", 6), method_of(preset)
    tokens, _, told = reading.read(omni, reading.random_tokens(omni, 4, 4.0, (4, 7), 100), method)
    read = sum(told["retention_layers"][name] * tokens.count(kind) for kind, name in MODALITIES)
    assert abs(read - share_of(NAMED[preset], len(tokens))) <= 1 + len(method.layers(6))


def view(depth: int, n_video: int, n_audio: int) -> LayerView:
    tokens = clip(blocks=1, rows=1, cols=n_video, audio=n_audio)
    attention = torch.rand(len(tokens), generator=torch.Generator().manual_seed(0))
    return LayerView(1, depth, tokens.features, attention, tokens, (n_video, n_audio), (n_video, n_audio))


def test_fastv_of_few_layers_meets_a_total_or_says_why_not():
    """The first two of six layers read a third: 35 % leave a little, 25 % nothing."""
    for method in (FastV(retention=0.35), FastVOm(retention=0.35, split="rates 30:65")):
        kept = method.prune(1, view(6, 280, 500))
        assert abs((2 * 780 + 4 * kept.numel()) / 6 - 0.35 * 780) <= 1 and kept.numel() > 0
        assert int((kept < 280).sum()) > 0 and int((kept >= 280).sum()) > 0
    with pytest.raises(ConfigError, match=r"first 2 of 6 layers .* 25.0 % of all tokens asked for; at least 33.3 %"):
        FastV(retention=0.25).prune(1, view(6, 280, 500))
    with pytest.raises(ConfigError, match=r"first 2 of 28 layers .* 5.0 % of video asked for; at least 7.1 %"):
        FastVOm(retention_video=0.05, retention_audio=0.9).prune(1, view(28, 280, 500))


def test_rates_are_scaled_to_the_total():
    method = Random(retention=0.1, split="rates 6:35")
    for n_video, n_audio in ((288, 50), (720, 50), (288, 26), (28, 50)):
        budget = method.budget_of(100 * n_video, 100 * n_audio)
        assert budget.total == 10 * (n_video + n_audio)
        scale = budget.total / (0.06 * 100 * n_video + 0.35 * 100 * n_audio)
        assert budget.video == pytest.approx(scale * 6 * n_video, abs=1)
        assert budget.audio == pytest.approx(scale * 35 * n_audio, abs=1)
    # A modality that would get more than it has gives the rest to the other, and one that is not there all.
    assert Random(retention=0.9, split="rates 6:35").budget_of(100, 100) == Budget(80, 100)
    assert method.budget_of(100, 0) == Budget(10, 0) and method.budget_of(0, 100) == Budget(0, 10)
    assert Random(retention=0.1, split="rates 0:1").budget_of(100, 0) == Budget(10, 0)
    assert Random(tokens=30, split="rates 1:1").budget_of(120, 60) == Random(tokens=30, split="proportional").budget_of(
        120, 60
    )
    for n in range(1, 60):
        for k in range(1, n + 1):
            assert Random(tokens=k, split="rates 3:7").budget_of(n, n // 2).total == min(k, n + n // 2)


@pytest.mark.parametrize(
    "split", ["rates", "rates 6", "rates 6:x", "rates 0:0", "rates -1:2", "rate 6:35", "rates 6:35:1"]
)
def test_wrong_rates_are_one_line(split):
    with pytest.raises(ConfigError, match=r"^split: (must be VIDEO:AUDIO such as 2:1, rates VIDEO|needs two weights)"):
        Random(split=split)


def test_settings_that_say_shares_another_way_replace_the_presets():
    made = config.load_config("seats-10", ["seats.retention_video=0.3", "seats.retention_audio=0.5"]).compressor
    assert made == Seats(retention_video=0.3, retention_audio=0.5)
    made = config.load_config("seats-10", ["seats.retention=0.2"]).compressor
    assert made == Seats(retention=0.2, split="rates 6:35")
    made = config.load_config("seats-10", ["seats.tokens=200"]).compressor
    assert made == Seats(tokens=200, split="rates 6:35")
    made = config.load_config("seats-10", ["method=fastv"]).compressor
    assert made == FastV(retention=0.1), "where sound stays whole there is nothing to split"
    assert config.load_config("seats-10", ["method=fastv-om"]).compressor == FastVOm(retention=0.1, split="rates 6:35")
    with pytest.raises(ConfigError, match=r"seats.split: retention_video and retention_audio say"):
        config.load_config("parity/seats-10", ["seats.split=1:1"])


def test_dycoke_thins_what_it_has_to():
    for blocks, frames, audio in ((1, 1, 0), (2, 1, 0), (5, 1, 0), (1, 0, 9), (3, 2, 40), (8, 1, 1)):
        tokens = clip(blocks=blocks, frames=frames, audio=audio)
        run = contract.choose(DyCoke(retention=0.35), tokens)
        assert len(run.entered) == share_of(0.35, len(tokens))
    with pytest.raises(ConfigError, match=r"retention: must be between 0.25 and 1"):
        DyCoke(retention=0.2)
