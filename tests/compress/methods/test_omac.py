"""OMAC against a slow loop written from the paper, its budgets, its merges and its corner cases."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from omnicli.compress.budget import spread
from omnicli.compress.methods.omac import Omac, share_audio
from omnicli.errors import ConfigError, ModelError
from omnicli.testing.clips import clip, query
from omnicli.types import MediaTokens, Modality, Query, Selection


def cosine(a, b) -> float:
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size > 0 else 0.0


def ragged(seed: int, blocks: int = 9, pictures: int = 1, sounds: int = 6, share: float = 0.7) -> MediaTokens:
    """A clip in which frames and intervals differ in size, some are empty."""
    whole = clip(blocks=blocks, frames=pictures, audio=sounds, seed=seed)
    g = torch.Generator().manual_seed(seed + 100)
    keep = torch.rand(len(whole), generator=g) < share
    keep &= ~((whole.window == 2) & (whole.modality == 1)) & ~((whole.window == 4) & (whole.modality == 0))
    return whole.select(Selection(torch.nonzero(keep).flatten()))


def naive_share(total: int, sizes: list[int], weights: list[float]) -> list[int]:
    """Equation 6: shares in the ratio n w; what does not fit goes to the others in their ratio."""
    full: set[int] = set()
    while True:
        left = total - sum(sizes[t] for t in full)
        free = [t for t in range(len(sizes)) if t not in full]
        mass = sum(sizes[t] * weights[t] for t in free)
        exact = {t: left * sizes[t] * weights[t] / mass for t in free}
        over = {t for t in free if exact[t] > sizes[t]}
        if not over:
            break
        full |= over
    shares = [sizes[t] if t in full else math.floor(exact[t]) for t in range(len(sizes))]
    for t in sorted(free, key=lambda t: (math.floor(exact[t]) - exact[t], t))[: total - sum(shares)]:
        shares[t] += 1
    return shares


def naive(
    tokens: MediaTokens, question: Query, video: int, audio: int, frame_keep: float | None = None, floor: float = 3.0
):
    """Section 4, one frame and one token at a time. Returns kept indices and their features in float64."""
    x = tokens.features.double()
    q = question.embeddings.double().mean(0) if len(question.embeddings) else torch.zeros(x.shape[1]).double()
    start, ends, saliency = tokens.start_s.tolist(), tokens.end_s.tolist(), tokens.saliency.tolist()
    modality, window = tokens.modality.tolist(), tokens.window.tolist()
    starts = sorted({t for t, m in zip(start, modality, strict=True) if m == 0})
    frames = [[i for i in range(len(x)) if modality[i] == 0 and start[i] == s] for s in starts]
    n_video = sum(len(f) for f in frames)
    features = {}
    quota = [0] * len(frames)
    if video:
        count = len(frames)
        share = math.sqrt(video / n_video) if frame_keep is None else frame_keep
        wanted = min(math.ceil(share * count - 1e-9), video, count)
        score = [cosine(x[f].mean(0), q) for f in frames]
        bins = max(1, wanted // 2) if any(s != 0 for s in score) else wanted
        end = max(ends[i] for f in frames for i in f)
        place = [min(bins - 1, int((s - starts[0]) * bins / (end - starts[0]))) for s in starts]
        by_score = sorted(range(count), key=lambda t: (-score[t], t))
        winners = []
        for b in range(bins):
            here = [t for t in by_score if place[t] == b]
            winners += here[:1]
        order = [t for t in by_score if t in winners] + [t for t in by_score if t not in winners]
        chosen = order[:wanted]
        for t in order[wanted:]:
            if sum(len(frames[c]) for c in chosen) < video:
                chosen.append(t)
        chosen.sort()
        sizes = [len(frames[t]) for t in chosen]
        for t, k in zip(chosen, spread(video, torch.tensor(sizes)).tolist(), strict=True):
            quota[t] = k
    for f, k in zip(frames, quota, strict=True):
        if k == 0:
            continue
        centre = x[f].mean(0)
        contrast = {i: 1 - cosine(x[i], centre) for i in f}
        kept = sorted(f, key=lambda i: (-contrast[i], i))[:k]
        features.update({i: x[i] for i in kept})
        if 1 < k < len(f):
            low, high = min(contrast.values()), max(contrast.values())
            weight = {i: math.exp((contrast[i] - low) / (high - low)) for i in kept}
            features[kept[-1]] = sum(weight[i] * x[i] for i in kept) / sum(weight.values())
    sound = [i for i in range(len(x)) if modality[i] == 1]
    if frames:
        interval = {i: max(0, sum(s <= start[i] for s in starts) - 1) for i in sound}
    else:
        interval = {i: window[i] for i in sound}
    salient = lambda some: sorted(some, key=lambda i: (-saliency[i], i))  # noqa: E731
    if audio in (0, len(sound)) or not frames:
        anchors = salient(sound)[:audio]
    else:
        weights = [max(k, floor * sum(quota) / len(quota)) for k in quota]
        weights = weights if any(weights) else [1.0] * len(quota)
        groups = [[i for i in sound if interval[i] == t] for t in range(len(frames))]
        shares = naive_share(audio, [len(g) for g in groups], weights)
        anchors = [i for g, b in zip(groups, shares, strict=True) for i in salient(g)[:b]]
    total = {i: x[i].clone() for i in anchors}
    mass = dict.fromkeys(anchors, 1.0)
    for i in sound:
        if i in total or not anchors:
            continue
        distance = lambda j: (abs(start[j] - start[i]), j)  # noqa: B023, E731
        nearest = min(anchors, key=distance)
        if abs(interval[nearest] - interval[i]) <= 1:
            weight = max(0.0, cosine(x[i], x[nearest]))
            total[nearest] += weight * x[i]
            mass[nearest] += weight
    features.update({i: total[i] / mass[i] for i in anchors})
    kept = sorted(features)
    return kept, torch.stack([features[i] for i in kept]).float()


CLIPS = {
    "even": clip(blocks=8, audio=7, seed=3),
    "two pictures": clip(blocks=5, frames=2, audio=6, seed=4),
    "odd": clip(blocks=7, frames=3, audio=11, seed=5),
    "ragged": ragged(6),
    "ragged, dense": ragged(7, blocks=12, pictures=2, sounds=9, share=0.5),
    "silent": clip(blocks=9, audio=0, seed=8),
    "sound only": clip(blocks=6, frames=0, audio=9, seed=9),
    "one frame": clip(blocks=1, audio=30, seed=10),
    "single cells": clip(blocks=9, audio=4, rows=1, cols=1, seed=11),
}


@pytest.mark.parametrize("shares", [(0.45, 0.45), (0.1, 0.8), (0.0, 0.5), (1.0, 0.3)])
@pytest.mark.parametrize("kind", list(CLIPS))
def test_equals_the_slow_loop(kind, shares):
    tokens, question = CLIPS[kind], query(seed=12)
    method = Omac(retention_video=shares[0], retention_audio=shares[1])
    if shares[0] == 0 and tokens.count(Modality.AUDIO) == 0:
        with pytest.raises(ConfigError, match="leaves nothing"):
            method.compress(tokens, question)
        return
    plan = method.budget(tokens)
    selection = method.compress(tokens, question)
    if plan.total == len(tokens):
        assert selection.features is None
        return
    kept, features = naive(tokens, question, plan.video, plan.audio)
    assert selection.indices.tolist() == kept
    torch.testing.assert_close(selection.features, features, rtol=1e-5, atol=1e-5)
    assert selection.report["budget"] == plan.to_dict()
    plain = dataclasses.replace(method, memory=False, merge_sound=False).compress(tokens, question)
    assert plain.indices.tolist() == kept and plain.features is None


@pytest.mark.parametrize("floor", [0.0, 0.1, 1.0, 3.0])
@pytest.mark.parametrize("frame_keep", [0.2, 0.6, 1.0])
def test_frame_keep_and_floor_equal_the_slow_loop(frame_keep, floor):
    tokens, question = CLIPS["ragged, dense"], query(seed=13)
    method = Omac(retention_video=0.4, retention_audio=0.4, frame_keep=frame_keep, floor=floor)
    plan = method.budget(tokens)
    selection = method.compress(tokens, question)
    kept, features = naive(tokens, question, plan.video, plan.audio, frame_keep, floor)
    assert selection.indices.tolist() == kept
    torch.testing.assert_close(selection.features, features, rtol=1e-5, atol=1e-5)


def frames_kept(tokens: MediaTokens, selection: Selection) -> list[float]:
    kept = tokens.select(selection)
    return sorted(set(kept.start_s[kept.modality == 0].tolist()))


def test_frames_and_tokens_share_the_ratio():
    tokens = clip(blocks=32, rows=8, cols=8, audio=4)
    selection = Omac(retention_video=0.3, retention_audio=0.3).compress(tokens, query())
    frames = frames_kept(tokens, selection)
    assert len(frames) == math.ceil(math.sqrt(0.3) * 32) == 18
    kept = tokens.select(selection)
    per_frame = torch.bincount(kept.window[kept.modality == 0])
    assert int(per_frame.sum()) == round(0.3 * 32 * 64) and set(per_frame[per_frame > 0].tolist()) == {34, 35}
    assert selection.report["frame_memories"] == 18


def test_without_a_question_frames_are_spread_over_the_clip():
    tokens = clip(blocks=32, audio=2)
    selection = Omac(retention_video=0.25, retention_audio=0.5).compress(tokens, query(tokens=0))
    assert frames_kept(tokens, selection) == [4.0 * i for i in range(16)]


def test_the_question_finds_its_frame_and_coverage_keeps_the_rest_of_the_clip():
    tokens, question = clip(blocks=40, audio=0), query()
    features = tokens.features.clone()
    features[tokens.window == 29] += 3 * question.embeddings.mean(0)
    features[tokens.window == 30] += 3 * question.embeddings.mean(0)
    tokens = dataclasses.replace(tokens, features=features)
    frames = frames_kept(tokens, Omac(retention_video=0.04).compress(tokens, question))
    assert len(frames) == 8 and {58.0, 60.0} <= set(frames)
    assert all(any(20 * b <= f < 20 * b + 20 for f in frames) for b in range(4))


@pytest.mark.parametrize(("memory", "merge_sound"), [(True, False), (False, True)])
def test_memories_and_merged_sound_are_made_one_by_one(memory, merge_sound):
    tokens = clip(blocks=9, audio=7)
    both = Omac(retention_video=0.4, retention_audio=0.4).compress(tokens, query())
    one = Omac(retention_video=0.4, retention_audio=0.4, memory=memory, merge_sound=merge_sound)
    one = one.compress(tokens, query())
    assert torch.equal(one.indices, both.indices)
    sound = tokens.modality[one.indices] == 1
    expected = torch.where(sound[:, None] == merge_sound, both.features, tokens.features[one.indices])
    assert torch.equal(one.features, expected)
    assert {"frame_memories", "merged_sound"} & set(one.report) == {"frame_memories" if memory else "merged_sound"}


def test_sound_is_shared_out_by_time_unless_the_floor_is_low():
    tokens = clip(blocks=10, audio=20)
    heard = Omac(retention_video=0.09, retention_audio=0.5).compress(tokens, query())
    kept = tokens.select(heard)
    assert torch.bincount(kept.window[kept.modality == 1]).tolist() == [10] * 10
    selection = Omac(retention_video=0.09, retention_audio=0.5, floor=0.1).compress(tokens, query())
    kept = tokens.select(selection)
    seen = torch.bincount(kept.window[kept.modality == 0], minlength=10) > 0
    heard = torch.bincount(kept.window[kept.modality == 1], minlength=10)
    assert int(seen.sum()) == 4 and int(heard.sum()) == 100
    assert int(heard[seen].min()) >= 17 and int(heard[~seen].max()) <= 5 and int(heard[~seen].min()) >= 1


@pytest.mark.parametrize("seed", range(5))
def test_shares_of_sound(seed):
    g = torch.Generator().manual_seed(seed)
    sizes = torch.randint(0, 9, (12,), generator=g)
    weights = torch.rand(12, generator=g) + 0.05
    for total in (0, 1, 5, int(sizes.sum()) // 2, int(sizes.sum()) - 1, int(sizes.sum())):
        share = share_audio(total, sizes, weights)
        assert int(share.sum()) == total and bool((share <= sizes).all()) and bool((share >= 0).all())
        assert share.tolist() == naive_share(total, sizes.tolist(), weights.double().tolist())
    assert share_audio(6, torch.tensor([4, 4, 4]), torch.zeros(3)).tolist() == [2, 2, 2]
    assert share_audio(9, torch.tensor([2, 4, 10]), torch.tensor([9.0, 1.0, 1.0])).tolist() == [2, 2, 5]


def test_rows_that_nothing_was_merged_into_are_bit_for_bit_the_same():
    tokens = clip(blocks=6, audio=8, dtype=torch.bfloat16)
    selection = Omac(retention=0.4).compress(tokens, query(dtype=torch.bfloat16))
    changed = (selection.features != tokens.features[selection.indices]).any(1)
    pictures = tokens.modality[selection.indices] == 0
    assert selection.features.dtype == torch.bfloat16
    assert int((changed & pictures).sum()) == selection.report["frame_memories"] > 0
    assert bool(changed[~pictures].any())
    whole = Omac(retention_video=1.0, retention_audio=0.5).compress(tokens, query(dtype=torch.bfloat16))
    pictures = tokens.modality[whole.indices] == 0
    assert torch.equal(whole.features[pictures], tokens.features[whole.indices][pictures])
    assert whole.report["frame_memories"] == 0


def test_opposite_sound_is_not_merged():
    tokens = clip(blocks=1, frames=0, audio=2, width=4)
    tokens.features[1] = -tokens.features[0]
    selection = Omac(tokens=1).compress(tokens, query(4))
    assert torch.equal(selection.features, tokens.features[selection.indices])
    assert selection.report["merged_sound"] == 0


def test_sound_merges_only_into_the_neighbourhood():
    tokens = clip(blocks=5, frames=0, audio=1, width=4)
    tokens.features[:] = tokens.features[0]
    tokens.saliency[:] = torch.tensor([9.0, 1.0, 1.0, 1.0, 1.0])
    selection = Omac(tokens=1).compress(tokens, query(4))
    assert selection.indices.tolist() == [0] and selection.report["merged_sound"] == 1


def test_black_frames_and_silence():
    tokens = clip(blocks=6, audio=5)
    black = dataclasses.replace(tokens, features=torch.zeros_like(tokens.features))
    selection = Omac(retention=0.3).compress(black, query())
    assert len(selection.indices) == share(0.3, len(tokens))
    assert torch.equal(selection.features, torch.zeros_like(selection.features))
    frames = frames_kept(black, selection)
    assert frames == frames_kept(black, Omac(retention=0.3).compress(black, query(tokens=0)))


def share(retention: float, n: int) -> int:
    return math.floor(retention * n + 0.5)


@pytest.mark.parametrize("kind", list(CLIPS))
def test_totals_are_met_exactly(kind):
    tokens = CLIPS[kind]
    for k in (1, 2, 3, 50, 101):
        selection = Omac(tokens=k).compress(tokens, query())
        kept = tokens.select(selection)
        assert len(kept) == min(k, len(tokens)), k
        assert selection.report["budget"] == {"video": kept.count(Modality.VIDEO), "audio": kept.count(Modality.AUDIO)}


def test_saliency_is_needed_for_sound_only():
    silent = dataclasses.replace(CLIPS["silent"], saliency=None)
    assert len(Omac(tokens=20).compress(silent, query()).indices) == 20
    both = dataclasses.replace(CLIPS["even"], saliency=None)
    assert len(Omac(retention_video=0.2).compress(both, query()).indices)
    with pytest.raises(ModelError, match="saliency"):
        Omac(tokens=20).compress(both, query())


def test_what_is_not_finite_is_an_error():
    tokens = clip()
    tokens.features[3, 2] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        Omac(tokens=5).compress(tokens, query())
    tokens = clip()
    tokens.saliency[-1] = torch.inf
    with pytest.raises(ModelError, match="not finite"):
        Omac(tokens=5).compress(tokens, query())


@pytest.mark.parametrize(
    "bad",
    [
        {"frame_keep": 0.0},
        {"frame_keep": 1.5},
        {"floor": -0.1},
        {"floor": float("inf")},
        {"split": "adaptive"},
        {"tokens": 0},
    ],
    ids=str,
)
def test_impossible_settings_are_config_errors(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Omac(**bad)
