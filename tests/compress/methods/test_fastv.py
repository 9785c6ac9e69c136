"""FastV against its rule written out, and the ratios that the design notes list."""

from __future__ import annotations

import pytest
import torch

from omnicli.compress.methods.fastv import FastV
from omnicli.compress.methods.fastv_om import FastVOm
from omnicli.errors import ConfigError
from omnicli.testing.clips import clip
from omnicli.types import LayerView, Modality

OUT = {True: FastVOm, False: FastV}


def view_of(tokens, attention, depth=28):
    n = (tokens.count(Modality.VIDEO), tokens.count(Modality.AUDIO))
    return LayerView(1, depth, tokens.features, attention, tokens, n, n)


def scores(n, seed=0):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed)) / n


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("mode", ["clean", "official"])
def test_the_best_of_each_modality_over_the_whole_clip_stay(seed, mode):
    tokens = clip(blocks=5 + seed, frames=2, audio=7, seed=seed)
    attention = scores(len(tokens), seed)
    kept = FastVOm(mode=mode, retention_video=0.3, retention_audio=0.65).prune(1, view_of(tokens, attention))
    expected = []
    for kind, share in ((Modality.VIDEO, 0.3), (Modality.AUDIO, 0.65)):
        own = tokens.indices(kind).tolist()
        average = int(share * len(own) + 0.5) if mode == "clean" else share * len(own)
        k = round((average * 28 - 2 * len(own)) / 26)
        expected += sorted(own, key=lambda i: (-float(attention[i]), i))[:k]
    assert kept.tolist() == sorted(expected)


@pytest.mark.parametrize(
    ("depth", "given", "after"),
    [
        (28, 0.30, 0.2462),
        (28, 0.65, 0.6231),
        (28, 0.20, 0.1385),
        (28, 0.10, 0.0308),
        (48, 0.32, 0.2904),
        (48, 0.70, 0.6870),
        (48, 0.07, 0.0296),
    ],
)
def test_the_share_after_the_drop_makes_the_average(depth, given, after):
    tokens = clip(blocks=100, rows=10, cols=10, audio=0, width=2)
    for mode in ("clean", "official"):
        method = FastVOm(mode=mode, retention_video=given, retention_audio=given)
        kept = method.prune(1, view_of(tokens, scores(len(tokens)), depth))
        assert kept.numel() / len(tokens) == pytest.approx(after, abs=1e-4)
        assert (2 + (depth - 2) * kept.numel() / len(tokens)) / depth == pytest.approx(given, abs=1e-4)


def test_sound_stays_whole_and_pictures_pay_for_it():
    tokens = clip(blocks=60, frames=1, rows=16, cols=18, audio=50, width=2)
    attention = scores(len(tokens))
    for mode, share in (("clean", 0.1807), ("official", 0.1807)):
        kept = FastV(mode=mode, retention_video=0.30, retention_audio=0.65).prune(1, view_of(tokens, attention))
        assert int((tokens.modality[kept] == Modality.AUDIO).sum()) == 60 * 50
        seen = int((tokens.modality[kept] == Modality.VIDEO).sum())
        assert seen / (60 * 288) == pytest.approx(share, abs=3e-4), mode


def test_a_budget_that_the_first_layers_alone_exceed():
    tokens = clip(blocks=100, rows=10, cols=10, audio=0, width=2)
    view = view_of(tokens, scores(len(tokens)))
    with pytest.raises(ConfigError, match=r"first 2 of 28 layers read everything.* at least 7.1 %"):
        FastVOm(retention=0.06).prune(1, view)
    assert FastVOm(mode="official", retention_video=0.06, retention_audio=0.35).prune(1, view).numel() == 1


def test_layers_needs_and_cache():
    assert FastV().layers(28) == (1,) and FastV(layer=3).layers(28) == (2,)
    with pytest.raises(ConfigError, match="the model has 2 layers"):
        FastV().layers(2)
    assert FastV().needs == {"last_query_attention"} and FastV(mode="official").needs == {"output_attention"}
    assert FastV().keeps_kv() and not FastV(mode="official").keeps_kv()
    assert (FastV.name, FastVOm.name) == ("fastv", "fastv-om")
    assert all(OUT[on]().audio == ("select" if on else "intact") for on in OUT)
