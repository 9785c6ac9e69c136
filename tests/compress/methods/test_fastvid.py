from __future__ import annotations

import dataclasses
import math
from functools import partial
from itertools import pairwise

import pytest
import torch

from omnicli.compress.budget import spread
from omnicli.compress.methods.fastvid import FastVID
from omnicli.compress.released import fastvid as released
from omnicli.compress.segments import density_peaks, lay_out
from omnicli.errors import ConfigError, ModelError
from omnicli.testing.clips import clip, query
from omnicli.testing.methods import MethodTrial
from omnicli.types import MediaTokens, Modality, Selection

CLIPS = MethodTrial(FastVID).clips

MODES = ("clean", "official")


def film(seed: int = 0, blocks: int = 7, pictures: int = 2, scenes: int = 4, ragged: bool = True) -> MediaTokens:
    """A clip whose frames come in scenes, with frames and windows of different sizes."""
    tokens = clip(blocks, pictures, audio=4, seed=seed)
    g = torch.Generator().manual_seed(100 + seed)
    keep = torch.rand(len(tokens), generator=g) < (0.8 if ragged else 2)
    keep &= ~((tokens.window == 1) & (tokens.modality == 0) & ragged)
    tokens = tokens.select(Selection(torch.nonzero(keep).flatten()))
    scene = (torch.unique(tokens.start_s, return_inverse=True)[1] * scenes) // len(torch.unique(tokens.start_s))
    look = torch.randn(scenes, tokens.features.shape[1], generator=g)
    return dataclasses.replace(tokens, features=tokens.features + 2 * look[scene] * (tokens.modality == 0)[:, None])


def literal(tokens: MediaTokens, method: FastVID) -> tuple[list[int], dict[int, torch.Tensor]]:
    """Return kept rows and the features of merged ones; one frame, one token, one anchor at a time."""
    x, attention = tokens.features.double(), tokens.saliency.tolist()
    rows = tokens.indices(Modality.VIDEO).tolist()
    times = sorted({float(tokens.start_s[i]) for i in rows})
    frames = [[i for i in rows if float(tokens.start_s[i]) == t] for t in times]
    mean = [x[f].mean(0) for f in frames]
    alike = [float(torch.cosine_similarity(a, b, dim=0)) for a, b in pairwise(mean)]
    cuts = set(sorted(range(len(alike)), key=lambda f: (alike[f], f))[: method.segments - 1])
    cuts |= {f for f, t in enumerate(alike) if t < method.threshold}
    segments: list[list[int]] = [[]]
    for f in range(len(frames)):
        segments[-1].append(f)
        if f in cuts:
            segments.append([])
    segments = [s for s in segments if s]
    valid = [[f for f in s if f == s[-1] or method.ignore is None or alike[f] < method.ignore] for s in segments]
    anchors = [sorted(v[::-1][:: method.anchor_step]) for v in valid]
    plain, peaks = [0] * len(frames), [0] * len(frames)
    size = [len(f) for f in frames]
    if method.mode == "clean":
        total = method.plan(tokens).video
        wanted = math.floor(total * method.context + 1e-9)
        room = torch.tensor([n if any(f in v for v in valid) else 0 for f, n in enumerate(size)])
        plain = spread(total - wanted, room).tolist()
        weight = torch.zeros(len(frames)).double()
        left = torch.zeros(len(frames), dtype=torch.int64)
        for v, a in zip(valid, anchors, strict=True):
            for f in a:
                weight[f], left[f] = sum(size[i] for i in v) / len(a), size[f] - plain[f]
        peaks = spread(wanted, left, weight).tolist()
        for allowed in (room.tolist(), size):
            short = total - sum(plain) - sum(peaks)
            more = spread(
                short, torch.tensor([n - a - b for n, a, b in zip(allowed, plain, peaks, strict=True)]).clamp(0)
            )
            plain = [a + b for a, b in zip(plain, more.tolist(), strict=True)]
        assert sum(plain) + sum(peaks) == total
    else:
        ratio = method.ratios(tokens)[0]
        keep = [max(1, int(n * ratio)) for n in size]
        for s, v, a in zip(segments, valid, anchors, strict=True):
            if method.ignore is None:
                context = [int(keep[f] * method.context) for f in s]
                for f, c in zip(s, context, strict=True):
                    plain[f] = keep[f] - c
                for f in a:
                    peaks[f] = min(sum(context) // len(a), size[f] - plain[f])
            else:
                whole = sum(keep[f] for f in s)
                context = max(1, int(whole * method.context))
                each, more = divmod(whole - context, len(v))
                for i, f in enumerate(v):
                    plain[f] = min(size[f], each + (i < more))
                each, more = divmod(context, len(a))
                for i, f in enumerate(reversed(a)):
                    peaks[f] = min(each + (i < more), max(1, size[f] // 2))
                    plain[f] = min(plain[f], size[f] - peaks[f])
    salient = {i for f, rows_ in enumerate(frames) for i in sorted(rows_, key=lambda i: (-attention[i], i))[: plain[f]]}
    chosen: dict[int, list[int]] = {}
    for a in anchors:
        for f in a:
            rest = [i for i in frames[f] if i not in salient]
            distance = [[float((x[i] - x[j]).norm()) / x.shape[1] ** 0.5 for j in rest] for i in rest]
            near = [sorted(d * d for d in row)[:4] for row in distance]
            density = [math.exp(-sum(d) / len(d)) for d in near]
            score = []
            for i in range(len(rest)):
                denser = [distance[i][j] for j in range(len(rest)) if density[j] > density[i]]
                score.append(density[i] * (min(denser) if denser else max(max(row) for row in distance)))
            chosen[f] = [rest[i] for i in sorted(range(len(rest)), key=lambda i: (-score[i], i))[: peaks[f]]]
    merged = {}
    for s, a in zip(segments, anchors, strict=True):
        for f in a:
            pool = [i for g in s for i in frames[g] if i not in salient]
            if method.merge == "straightforward":
                pool = [i for i in pool if i not in chosen[f]]
            joined: dict[int, list[int]] = {i: [] for i in chosen[f]}
            for i in pool if chosen[f] else []:
                target = sorted(chosen[f])
                cosine = [float(torch.cosine_similarity(x[i], x[j], dim=0)) for j in target]
                joined[target[cosine.index(max(cosine))]].append(i)
            for i, members in joined.items():
                weight = max(1 / (len(members) + 1), method.keep_weight)
                merged[i] = weight * x[i] + (1 - weight) * x[members].mean(0) if members else x[i]
    return sorted(salient | set(merged)), merged


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"segments": 2, "threshold": -1.0, "anchor_step": 3},
        {"segments": 3, "threshold": 0.5, "merge": "parallel", "keep_weight": 0.2},
        {"segments": 2, "threshold": 0.6, "ignore": 0.9, "anchor_step": 2},
        {"segments": 1, "threshold": -1.0, "context": 1.0},
        {"context": 0.0},
    ],
    ids=str,
)
def test_equals_a_loop_over_frames_and_tokens(mode, fields):
    for seed, pictures, retention in ((0, 2, 0.4), (1, 3, 0.3), (2, 1, 0.65)):
        tokens = film(seed, pictures=pictures)
        method = FastVID.with_retention(retention, mode=mode, **fields)
        selection = method.compress(tokens, query())
        rows, merged = literal(tokens, method)
        video = [i for i in selection.indices.tolist() if tokens.modality[i] == 0]
        assert video == rows
        assert selection.report["merged"] == len(merged)
        kept = tokens.select(selection).features
        for place, row in enumerate(selection.indices.tolist()):
            if row in merged:
                torch.testing.assert_close(kept[place], merged[row].float(), rtol=1e-5, atol=1e-5)
            else:
                assert torch.equal(kept[place], tokens.features[row])


def test_small_batches_change_nothing(monkeypatch):
    tokens, method = film(3, blocks=12), FastVID.with_retention(0.4, segments=2, threshold=0.3, anchor_step=2)
    whole = method.compress(tokens, query())
    monkeypatch.setattr("omnicli.compress.segments.MEMORY", 400)
    parts = method.compress(tokens, query())
    assert torch.equal(whole.indices, parts.indices)
    torch.testing.assert_close(whole.features, parts.features, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("ratios", "sounds", "frame", "salient"),
    [
        ((0.30, 0.65), 50, 34, 21),
        ((0.20, 0.55), 50, 17, 11),
        ((0.32, 0.70), 26, 42, 26),
        ((0.22, 0.60), 26, 26, 16),
        ((0.12, 0.50), 26, 10, 6),
    ],
)
def test_official_counts_per_frame(ratios, sounds, frame, salient):
    """methods of the table: a frame of 144 tokens, ratios of both modalities reallocated to whole sound."""
    tokens = clip(blocks=60, frames=2, audio=sounds, width=4, rows=9, cols=16)
    method = FastVID(mode="official", retention_video=ratios[0], retention_audio=ratios[1], threshold=1.0)
    selection = method.compress(tokens, query(4))
    kept = tokens.select(selection)
    pictures = kept.start_s[kept.modality == 0]
    assert torch.unique(pictures, return_counts=True)[1].tolist() == [frame] * 120
    assert selection.report["merged"] == 120 * (frame - salient)
    assert kept.count(Modality.AUDIO) == tokens.count(Modality.AUDIO)


def test_segments_and_anchors():
    alike = torch.tensor([0.99, 0.2, 0.95, 0.98, 0.97, 0.99, 0.5, 0.99])
    layout = lay_out(alike, segments=2, threshold=0.6, step=2)
    assert layout.segment.tolist() == [0, 0, 1, 1, 1, 1, 1, 2, 2]
    assert layout.anchor.tolist() == [False, True, True, False, True, False, True, False, True]
    assert lay_out(alike, 4, 0.6, 4).segment.tolist() == [0, 0, 1, 2, 2, 2, 2, 3, 3]
    assert lay_out(alike, 99, 0.6, 4).segment.tolist() == list(range(9))
    assert lay_out(alike, 1, 0.5, 4).segment.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1]  # strictly below
    still = lay_out(alike, 2, 0.6, 2, ignore=0.97)
    assert still.valid.tolist() == [False, True, True, False, False, False, True, False, True]
    assert still.anchor.tolist() == [False, True, False, False, False, False, True, False, True]
    assert lay_out(torch.zeros(0), 8, 0.9, 4).anchor.tolist() == [True]


def test_density_peaks_do_not_underflow_and_equal_tokens_tie():
    g = torch.Generator().manual_seed(4)
    x = torch.randn(2, 12, 6, generator=g)
    order = density_peaks(x).argsort(descending=True)
    assert bool(torch.isfinite(density_peaks(1000 * x)).all())
    assert len(torch.unique(density_peaks(1000 * x)[0])) == len(torch.unique(density_peaks(x)[0])) == 12
    assert torch.equal(density_peaks(x + 5).argsort(descending=True), order)
    same = density_peaks(x[:, :1].expand(-1, 12, -1).contiguous() * 31.7)
    assert bool((same == same[0, 0]).all())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [0.0, 3.3])
def test_black_frames_keep_their_first_tokens(mode, value):
    tokens = clip(blocks=5, audio=2)
    flat = dataclasses.replace(
        tokens, features=torch.full_like(tokens.features, value), saliency=torch.ones_like(tokens.saliency)
    )
    method = FastVID(mode=mode, retention_video=0.5, retention_audio=1.0, audio="intact", segments=99)
    selection = method.compress(flat, query())
    cells = (flat.row * 4 + flat.col)[selection.indices]
    for start in torch.unique(flat.start_s[flat.modality == 0]).tolist():
        mine = cells[(flat.start_s[selection.indices] == start) & (cells >= 0)].tolist()
        assert mine == list(range(len(mine))) and mine
    torch.testing.assert_close(tokens.select(selection).features.shape, flat.select(selection).features.shape)
    torch.testing.assert_close(flat.select(selection).features, torch.full_like(selection.features, value))


@pytest.mark.parametrize("mode", MODES)
def test_every_clip_works_where_like_frames_are_ignored(mode):
    """Without ``ignore`` the contract of all methods has it."""
    for kind, tokens in CLIPS.items():
        method = FastVID.with_retention(0.3, mode=mode, ignore=0.5)
        selection = method.compress(tokens, query(dtype=tokens.features.dtype))
        kept = tokens.select(selection)
        assert len(kept) >= 1 and bool((selection.indices[1:] > selection.indices[:-1]).all()), kind
        budget = {"video": kept.count(Modality.VIDEO), "audio": kept.count(Modality.AUDIO)}
        assert selection.report["budget"] == budget
        assert mode == "official" or budget == method.plan(tokens).to_dict()
        assert kept.features.dtype == tokens.features.dtype and bool(torch.isfinite(kept.features).all())
        whole = FastVID.with_retention(1.0, mode=mode, ignore=0.5).compress(tokens, query())
        assert whole.features is None and whole.indices.numel() == len(tokens)


@pytest.mark.parametrize("ignore", [None, -1.0])
@pytest.mark.parametrize("retention", [0.05, 0.5, 0.97])
def test_clean_budget_is_exact_on_a_static_film(retention, ignore):
    tokens = film(5, blocks=9, pictures=3, scenes=1)
    method = FastVID.with_retention(retention, segments=1, threshold=-1.0, ignore=ignore)
    assert method.compress(tokens, query()).report["budget"] == method.plan(tokens).to_dict()


def test_ignored_frames_keep_nothing_in_official_mode():
    tokens = film(6, scenes=1, ragged=False)
    method = FastVID.with_retention(0.5, mode="official", segments=1, threshold=-1.0, ignore=-1.0)
    kept = tokens.select(method.compress(tokens, query()))
    assert torch.unique(kept.start_s[kept.modality == 0]).tolist() == [13.0]  # of 14 frames, one a second, the last


def test_what_does_not_divide_goes_to_the_first_frames_and_the_last_anchors():
    """Port for Qwen2.5-VL: 6 frames of 40 tokens at 0.15 are 36 tokens, 14 of them merged; 5 frames are valid."""
    layout = lay_out(torch.tensor([0.7, 0.7, 0.99, 0.7, 0.7]), 1, -1.0, 2, ignore=0.9)
    counts = partial(released.quotas, layout=layout, context=0.4, by_segment=True)
    salient, peaks = counts(0.15, torch.full((6,), 40))
    assert salient.tolist() == [5, 5, 0, 4, 4, 4]
    assert peaks.tolist() == [4, 0, 0, 5, 0, 5]
    salient, peaks = counts(0.15, torch.tensor([40, 40, 40, 40, 4, 8]))  # 6 6 6 6 1 1: 16 + 10
    assert salient.tolist() == [4, 3, 0, 3, 3, 3]
    assert peaks.tolist() == [3, 0, 0, 3, 0, 4]
    salient, peaks = counts(0.9, torch.full((6,), 8))  # 42: 26 + 16, merged at most 4 of a frame, salient the rest
    assert salient.tolist() == [4, 5, 0, 4, 5, 4]
    assert peaks.tolist() == [4, 0, 0, 4, 0, 4]


def test_merged_tokens_come_before_salient_ones_where_a_frame_cannot_hold_both():
    """Port for Qwen2.5-VL: 5 like frames of 36 tokens at .2392 are 8 each, 40 in the last: 16 merged, 24 salient."""
    tokens = clip(blocks=5, frames=1, audio=0, rows=6, cols=6)
    still = dataclasses.replace(tokens, features=tokens.features / 1000 + tokens.features[:1])
    ignoring = {"segments": 1, "threshold": 0.5, "ignore": 0.95}
    method = FastVID(mode="official", retention_video=0.2392, audio="intact", **ignoring)
    selection = method.compress(still, query())
    assert selection.report["budget"] == {"video": 36, "audio": 0} and selection.report["merged"] == 16
    one = lay_out(torch.zeros(0), 1, 0.5, 4, 0.95)
    # 1 of 1; 2 of 2 and 3 of 3 would be more merged than half
    for n, expected in ((1, (0, 1)), (2, (1, 1)), (3, (2, 1)), (8, (5, 3))):
        pair = released.quotas(1.0, torch.tensor([n]), one, 0.4, by_segment=True)
        assert tuple(int(q) for q in pair) == expected


def test_needs_follow_the_mode():
    assert FastVID().needs == {"saliency"} and FastVID(mode="official").needs == {"pooled_saliency"}


@pytest.mark.parametrize("mode", MODES)
def test_missing_saliency_and_broken_embeddings_are_model_errors(mode):
    tokens, method = clip(), FastVID.with_retention(0.3, mode=mode)
    with pytest.raises(ModelError, match="saliency"):
        method.compress(dataclasses.replace(tokens, saliency=None), query())
    tokens.features[2, 3] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        method.compress(tokens, query())


@pytest.mark.parametrize(
    "bad",
    [
        {"audio": "select"},
        {"segments": 0},
        {"anchor_step": 0},
        {"context": 1.1},
        {"keep_weight": -0.1},
        {"threshold": 2.0},
        {"ignore": -2.0},
    ],
    ids=str,
)
def test_impossible_settings_are_config_errors(bad):
    with pytest.raises(ConfigError, match=f"^{next(iter(bad))}: "):
        FastVID(**bad)
