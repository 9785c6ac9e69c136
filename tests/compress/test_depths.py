"""Every preset on LLMs of other depths: what the layers read on average is what the settings ask for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from omnicli.answer import result
from omnicli.compress.chain import Chain
from omnicli.config import config, registry
from omnicli.errors import ConfigError
from omnicli.llm.kv import KVCache
from omnicli.llm.prefill import prefill
from omnicli.models.parts import CAPTURES, KEYS, EncodedAudio, EncodedVideo
from omnicli.planning import plan as planning
from omnicli.types import Modality
from tests.compress.test_presets import REFUSED
from tests.support import tiny, tiny_minicpm, tiny_qwen3

MODELS = {
    "qwen2.5-7b": (tiny.model, 28), "qwen2.5-3b": (tiny.model, 36), "qwen3-30b": (tiny_qwen3.model, 48),
    "minicpm-o": (tiny_minicpm.model, 36),
}  # fmt: skip
PRESETS = [p.name for p in config.list_presets()]
ROUNDING = 2.0
"""Tokens of a modality by which whole numbers may be off."""


@pytest.fixture(scope="module", params=sorted(MODELS))
def omni(request):
    family, layers = MODELS[request.param]
    return family(layers=layers)


@pytest.fixture(scope="module")
def clip(omni):
    """Return random tokens of 4 s in the papers' mix (288 : 50 on Qwen2.5-Omni), with saliency and keys."""
    chance = torch.Generator().manual_seed(0)
    side = 8 if omni.position_axes == 1 else 12  # MiniCPM-o has 64 tokens a frame, and no pairs
    groups, n_audio = 8 // omni.frame_group, omni.facts.sound_tokens(4.0)

    def random(n):
        made = [torch.randn(n, width, generator=chance) for width in (omni.hidden_size, 16)]
        return made[0], torch.rand(n, generator=chance) + 0.5, made[1]

    features, saliency, keys = random(groups * side * side)
    levels = torch.zeros(omni.facts.levels, len(features), omni.hidden_size) if omni.facts.levels else None
    video = EncodedVideo(features, groups, side, side, saliency, keys, levels)
    return omni.assemble([video], np.arange(8) / 2, [EncodedAudio(*random(n_audio))], 0.0, 4.0)


def captured(tokens, capture):
    """Return the tokens without what was not asked for."""
    return dataclasses.replace(
        tokens, keys=tokens.keys if KEYS in capture else None, saliency=tokens.saliency if capture - {KEYS} else None
    )


def expected(method, encoded, entered):
    """Return the tokens of each modality that layers shall read on average."""
    if isinstance(method, Chain):  # what the first let in stands for the level before SEATS's first drop
        return [n / method.second.encoder for n in entered]
    if getattr(method, "mode", "clean") == "official" and not method.layers(28):
        return list(entered)  # chosen before the LLM, with the released code's own rounding
    shares = method.nominal(*encoded)
    return [s * n for s, n in zip(shares, encoded, strict=True)] if shares else list(method.entering(*encoded))


@torch.inference_mode()
@pytest.mark.parametrize("preset", PRESETS)
def test_the_layers_read_what_was_asked_for(omni, clip, preset):
    if preset in REFUSED.get(omni.family.replace("_", "-"), ()):
        pytest.skip("the family's encoders or positions cannot give what it needs; test_presets has the error")
    method = config.load_config(preset).compressor
    tokens = captured(clip.tokens, method.needs & CAPTURES)
    prompt = omni.prompt("Who speaks last?", video=True, audio=True)
    kept = tokens.select(method.compress(tokens, omni.query(prompt)))
    given = omni.sequence(prompt, clip, kept)
    cache = KVCache(omni.depth, omni.kv_heads, omni.head_dim, dtype=omni.dtype, device=omni.device, capacity=2048)
    encoded, entered = ([t.count(m) for m in Modality] for t in (tokens, kept))
    read = prefill(
        omni, given.embeds, given.position_ids, cache, media_span=given.media_span, media=kept, pruner=method,
        encoded=tuple(encoded),
    )  # fmt: skip
    told = result.tokens(tokens, kept, method, read.levels, omni.depth)
    slack = [ROUNDING, ROUNDING]
    if getattr(method, "mode", "clean") == "official":  # rounds window by window, with floors
        slack = [0.03 * n + ROUNDING for n in encoded]
    for name, want, n, off in zip(("video", "audio"), expected(method, encoded, entered), encoded, slack, strict=True):
        assert abs(told["retention_layers"][name] * n - want) <= off, (name, want)
    assert min(encoded) >= 40


def test_schedules_by_depth():
    """SEATS's drops at the paper's fractions of the depth, FastV's after its second layer, wherever that is."""
    method = config.load_config("seats-25").compressor
    assert (method.layers(28), method.late_removal(28)) == ((15, 17, 19), 22)
    assert (method.layers(36), method.late_removal(36)) == ((19, 22, 25), 28)
    assert config.load_config("fastv-25").compressor.layers(36) == (1,)


def test_the_7bs_layers_on_the_3b_are_refused_before_anything_is_loaded(tmp_path):
    """The paper's layers for 28 cannot reach the retention on 36; the released code then spends less, silently."""
    from omnicli.media.probe import probe
    from tests.support import films

    sets = ["seats.drop_layers=16-18-20", "seats.late_layer=23"]
    info = probe(films.write(tmp_path / "film.mp4", 2.0))
    for model, fits in (("qwen2.5-omni-7b", True), ("qwen2.5-omni-3b", False)):
        made = config.load_config("seats-25", [*sets, f"model={model}"])
        if fits:
            assert planning.make_plan(info, made).kept[0] > 0
        else:
            with pytest.raises(ConfigError, match=r"over 36 layers .* other layers"):
                planning.make_plan(info, made)


def test_all_depths_of_released_models_are_here():
    depths = set()
    for family in registry.facts().values():
        for size in family.dummies.values():
            depths.add(family.read("x", family.released(size)).llm.depth)
    assert depths == {layers for _, layers in MODELS.values()}
