"""VisionZip against a slow loop, its published counts, both merges, and what it does without captures."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from omnicli.compress import ops
from omnicli.compress.groups import group
from omnicli.compress.methods import visionzip
from omnicli.compress.methods.visionzip import VisionZip
from omnicli.compress.methods.visionzip_om import VisionZipOm
from omnicli.errors import ConfigError, ModelError
from omnicli.testing.clips import clip, query
from omnicli.types import MediaTokens, Modality, Selection
from tests.compress.methods.test_divprune import even_shares, pieces, ragged


def zipped(tokens: MediaTokens, rows: list[int], dominant: int, contextual: int, merge: str) -> dict[int, torch.Tensor]:
    """Return row -> feature of what one group keeps, one token at a time."""
    by_score = sorted(rows, key=lambda r: (-float(tokens.saliency[r]), r))
    kept = {r: tokens.features[r] for r in by_score[:dominant]}
    rest = [r for r in rows if r not in kept]
    if not contextual:
        return kept
    targets = rest[:: max(1, len(rest) // contextual)][:contextual]
    assigned: dict[int, list[int]] = {t: [] for t in targets}
    keys = {r: tokens.keys[r].float() / (float(tokens.keys[r].float().norm()) + 1e-6) for r in rest}
    for r in rest:
        if r not in assigned:
            alike = [float(keys[r] @ keys[t]) for t in targets]
            assigned[next(t for t, a in zip(targets, alike, strict=True) if a >= max(alike) - 1e-6)].append(r)
    for t, others in assigned.items():
        kept[t] = tokens.features[t]
        if others:
            total, own = sum(tokens.features[r].float() for r in others), tokens.features[t].float()
            new = own + total / len(others) if merge == "add" else (own + total) / (1 + len(others))
            kept[t] = new.to(tokens.features.dtype)
    return kept


def check(selection: Selection, tokens: MediaTokens, expected: dict[int, torch.Tensor]) -> None:
    rows = sorted(expected)
    assert selection.indices.tolist() == rows
    kept = tokens.select(selection)
    assert kept.features.dtype == tokens.features.dtype
    torch.testing.assert_close(kept.features, torch.stack([expected[r] for r in rows]), rtol=1e-5, atol=1e-5)
    same = torch.tensor([torch.equal(expected[r], tokens.features[r]) for r in rows])
    assert torch.equal(kept.features[same], tokens.features[selection.indices][same])
    assert selection.report["budget"] == {"video": kept.count(Modality.VIDEO), "audio": kept.count(Modality.AUDIO)}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("retention", "contextual", "merge"),
    [(0.1, 0.05, "add"), (0.4, 0.05, "mean"), (0.5, 0.2, "add"), (0.5, 0.0, "add")],
)
def test_clean_is_the_slow_loop_and_meets_the_budget(seed, retention, contextual, merge):
    tokens = ragged(seed, rows=4, cols=6)
    method = VisionZipOm(retention=retention, contextual=contextual, merge=merge)
    plan = method.plan(tokens)
    expected = {}
    for modality, total in ((Modality.VIDEO, plan.video), (Modality.AUDIO, plan.audio)):
        groups = pieces(tokens, modality)
        for rows, k in zip(groups, even_shares(total, [len(g) for g in groups]), strict=True):
            few = min(max(1, round(contextual * len(rows))), max(0, k - 1)) if contextual and k < len(rows) else 0
            expected |= zipped(tokens, rows, k - few, few, merge)
    selection = method.compress(tokens, query())
    assert selection.report["budget"] == plan.to_dict()
    check(selection, tokens, expected)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("video", "audio", "contextual"), [(0.3, 0.65, 0.05), (0.04, 0.2, 0.1), (0.5, 1.0, 0.2)])
def test_official_is_the_slow_loop(seed, video, audio, contextual):
    tokens = ragged(seed, rows=4, cols=6)
    method = VisionZipOm(
        mode="official", retention_video=video, retention_audio=audio, contextual=contextual, audio_window=8
    )
    expected = {}
    for modality, ratio, stretch in ((Modality.VIDEO, video, None), (Modality.AUDIO, audio, 8)):
        for rows in pieces(tokens, modality, stretch):
            n = len(rows)
            dominant = max(1, int((ratio - contextual) * n)) if ratio > contextual else 0
            few = min(max(1, round(contextual * n)), n - dominant)
            if ratio >= 1:
                dominant, few = n, 0
            expected |= zipped(tokens, rows, dominant, few, "add")
    check(method.compress(tokens, query()), tokens, expected)


def test_published_counts():
    picture = {0.30: (36, 7), 0.20: (21, 7), 0.10: (7, 7), 0.06: (1, 7), 0.2392: (27, 7), 0.1219: (10, 7)}
    picture |= {0.05: (0, 7), 1.0: (144, 0), 0.0: (0, 0)}
    for ratio, total in ((0.32, 45), (0.22, 31), (0.12, 17), (0.07, 9), (0.2929, 41), (0.1839, 26), (0.0748, 10)):
        picture[ratio] = (total - 7, 7)
    sound = {50: {0.65: (30, 2), 0.55: (25, 2), 0.45: (20, 2), 0.35: (15, 2)}}
    sound[26] = {0.70: (16, 1), 0.60: (14, 1), 0.50: (11, 1), 0.45: (10, 1)}
    for size, table in ({144: picture} | sound).items():
        groups = group(torch.arange(size), torch.zeros(size))
        for ratio, expected in table.items():
            got = VisionZip(mode="official")._official(groups, ratio)
            assert tuple(int(x) for x in got) == expected, (size, ratio)


def test_merges_keep_places_and_add_doubles_lengths():
    tokens = clip(blocks=3, audio=0, rows=6, cols=8)
    flat = dataclasses.replace(tokens, features=torch.ones_like(tokens.features))
    added = VisionZip(retention=0.2).compress(flat, query())
    mean = VisionZip(retention=0.2, merge="mean").compress(flat, query())
    assert torch.equal(added.indices, mean.indices)
    torch.testing.assert_close(mean.features, torch.ones_like(mean.features))
    assert sorted(set(added.features[:, 0].tolist())) == [1.0, 2.0]
    assert int((added.features[:, 0] == 2).sum()) == 3 * round(0.05 * 48)


def test_equal_scores_and_keys_go_to_the_earlier():
    tokens = clip(blocks=1, audio=0, rows=4, cols=10)
    same = dataclasses.replace(
        tokens, saliency=torch.ones(40), keys=torch.full((40, 8), 0.37), features=torch.arange(40.0)[:, None]
    )
    selection = VisionZip(retention=0.25).compress(same, query(1))
    # 8 dominant, then 32 left: targets every 16th.
    assert selection.indices.tolist() == [*range(8), 8, 24]
    others = [r for r in range(9, 40) if r != 24]
    assert selection.features[:, 0].tolist() == pytest.approx([*range(8), 8 + sum(others) / 30, 24])


def test_sound_stays_whole_and_unchanged():
    tokens = clip(blocks=4, frames=2, audio=5)
    for mode, video in (("clean", 38), ("official", 40)):
        selection = VisionZip(mode=mode, retention=0.5).compress(tokens, query())
        assert selection.report["budget"] == {"video": video, "audio": 20}
        kept, own = tokens.select(selection), tokens.indices(Modality.AUDIO)
        assert torch.equal(kept.features[kept.modality == 1], tokens.features[own])
    tight = VisionZip(tokens=14).compress(tokens, query())
    assert tight.report["budget"] == {"video": 5, "audio": 9}


EDGES = {
    "silent": clip(audio=0),
    "audio only": clip(frames=0),
    "one picture token": clip(blocks=1, audio=0, rows=1, cols=1),
    "one sound token": clip(blocks=1, frames=0, audio=1),
    "one of each": clip(blocks=1, audio=1, rows=1, cols=1),
    "one frame": clip(blocks=1, audio=0),
    "odd frames, 10 x 13": clip(blocks=3, frames=3, rows=10, cols=13, audio=4),
    "bf16": clip(dtype=torch.bfloat16),
    "black": dataclasses.replace(
        clip(), features=torch.zeros(102, 16), keys=torch.zeros(102, 8), saliency=torch.ones(102)
    ),
    "ragged": ragged(),
}


@pytest.mark.parametrize("kind", list(EDGES))
@pytest.mark.parametrize("cls", [VisionZip, VisionZipOm])
def test_edges_in_both_modes(cls, kind):
    tokens = EDGES[kind]
    question = query(dtype=tokens.features.dtype)
    before = tokens.features.clone()
    for retention in (0.05, 0.3, 0.99):
        for mode in ("clean", "official"):
            method = cls(mode=mode, retention=retention)
            selection = method.compress(tokens, question)
            idx = selection.indices
            assert idx.numel() >= 1 and bool((idx.diff() > 0).all())
            kept = tokens.select(selection)
            assert kept.features.dtype == tokens.features.dtype and bool(kept.features.isfinite().all())
            assert selection.report["budget"] == {"video": kept.count(Modality(0)), "audio": kept.count(Modality(1))}
            assert mode == "official" or selection.report["budget"] == method.plan(tokens).to_dict()
            again = method.compress(tokens, question)
            assert torch.equal(idx, again.indices) and torch.equal(kept.features, tokens.select(again).features)
    for mode in ("clean", "official"):
        whole = cls(mode=mode, retention=1.0).compress(dataclasses.replace(tokens, saliency=None, keys=None), question)
        assert whole.indices.tolist() == list(range(len(tokens))) and whole.features is None
    assert torch.equal(before, tokens.features)


def test_merging_in_bf16_rounds_once():
    tokens = clip(dtype=torch.bfloat16, rows=6, cols=6)
    wide = dataclasses.replace(tokens, features=tokens.features.float(), keys=tokens.keys.float())
    narrow, exact = (VisionZipOm(retention=0.2).compress(t, query()) for t in (tokens, wide))
    assert torch.equal(narrow.indices, exact.indices) and torch.equal(narrow.features, exact.features.bfloat16())


def test_chunks_change_nothing(monkeypatch):
    tokens = ragged(rows=4, cols=6)
    method = VisionZipOm(retention=0.4, contextual=0.2)
    whole = method.compress(tokens, query())
    monkeypatch.setattr(visionzip, "_MEMORY", 500)
    monkeypatch.setattr(ops.row_chunks, "__defaults__", (4, 200))
    parts = method.compress(tokens, query())
    assert torch.equal(whole.indices, parts.indices)
    torch.testing.assert_close(whole.features, parts.features, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("missing", ["saliency", "keys"])
def test_a_missing_capture_is_named(missing):
    for mode in ("clean", "official"):
        with pytest.raises(ModelError, match=f"visionzip.*no {missing}"):
            VisionZip(mode=mode, retention=0.6).compress(dataclasses.replace(clip(), **{missing: None}), query())
    assert VisionZip.needs == VisionZipOm.needs == {"saliency", "keys"}


@pytest.mark.parametrize("broken", ["features", "saliency", "keys"])
def test_broken_embeddings_are_an_error(broken):
    tokens = clip()
    getattr(tokens, broken)[:] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        VisionZip(retention=0.5).compress(tokens, query())


@pytest.mark.parametrize("bad", [{"contextual": 1.0}, {"contextual": -0.1}, {"audio_window": 0}], ids=str)
def test_impossible_settings_are_config_errors(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        VisionZip(**bad)
