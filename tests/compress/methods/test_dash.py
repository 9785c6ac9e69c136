"""DASH against slow loops in both modes, its cuts, what guidance moves, and what its rules cannot be applied to."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch

from omnicli.compress.budget import spread
from omnicli.compress.groups import frames
from omnicli.compress.methods.dash import Dash
from omnicli.compress.outliers import crowding
from omnicli.compress.segments import spaced
from omnicli.errors import ConfigError, ModelError
from omnicli.testing.clips import clip, query
from omnicli.types import MediaTokens, Modality, Selection

every_mode = pytest.mark.parametrize("mode", ["clean", "official"])


def speech(tokens: MediaTokens, stretch: int = 13) -> MediaTokens:
    """The clip with sound whose neighbours are alike but for every so-manieth token."""
    features, generator = tokens.features.clone(), torch.Generator().manual_seed(9)
    last = torch.zeros(features.shape[1])
    for n, i in enumerate(tokens.indices(Modality.AUDIO).tolist()):
        if n % stretch == 0:
            last = torch.randn(features.shape[1], generator=generator)
        features[i] = last + 0.3 * features[i]
    return dataclasses.replace(tokens, features=features)


def ragged(seed: int) -> MediaTokens:
    """Windows with sound only, pictures only, little of either, and frames cut short."""
    tokens = clip(blocks=8, frames=3, audio=20, seed=seed, rows=3, cols=3)
    gone = torch.rand(len(tokens), generator=torch.Generator().manual_seed(seed)) < 0.15
    gone &= (tokens.modality == 1) | (tokens.window == 6)
    gone |= ((tokens.window == 2) & (tokens.modality == 0)) | ((tokens.window == 5) & (tokens.modality == 1))
    return tokens.select(Selection(torch.nonzero(~gone).flatten()))


CLIPS = {
    "noise": clip(blocks=5, frames=2, audio=30, seed=1, rows=4, cols=4),
    "speech": speech(clip(blocks=6, frames=3, audio=50, seed=2, rows=3, cols=4)),
    "ragged": speech(ragged(3), 7),
    "one channel in ten": clip(blocks=4, frames=1, audio=25, seed=4, width=10),
    "little sound": clip(blocks=6, frames=5, audio=2, seed=5, rows=2, cols=6),
    "much sound": clip(blocks=3, frames=1, audio=90, seed=6, rows=2, cols=2),
    "4:3": clip(blocks=2, frames=3, audio=25, seed=7, rows=10, cols=13),
}
every_clip = pytest.mark.parametrize("kind", list(CLIPS))


# --- slow loops -----------------------------------------------------------------------------------------------------


class Slow:
    """What both modes share, by literal loops over rows in double precision."""

    def __init__(self, tokens: MediaTokens) -> None:
        self.tokens = tokens
        self.ears, self.eyes = (tokens.indices(m).tolist() for m in (Modality.AUDIO, Modality.VIDEO))
        x = tokens.features.double()
        self.x = x / (x.norm(dim=1, keepdim=True) + 1e-8)
        self.table = (self.x @ self.x.T).tolist()
        self.start = tokens.start_s.tolist()

    def cos(self, i: int, j: int) -> float:
        return self.table[i][j]

    def cuts(self, at: list[float], least: float) -> list[int]:
        """First sound tokens of segments: greedily, left to right; ``at`` is where sound tokens are."""
        out = [0]
        for t in range(len(self.ears) - 1):
            if self.cos(self.ears[t], self.ears[t + 1]) < 0.4 and at[t + 1] - at[out[-1]] >= least:
                out.append(t + 1)
        return out

    def scores(self) -> dict[int, float]:
        rows, f = self.ears, self.tokens.features.double()
        width = f.shape[1]
        channels = list(range(width))
        if width > 10:
            var = {c: float(f[rows, c].var(correction=0)) for c in channels}
            channels = sorted(channels, key=lambda c: (var[c], c))[: width // 2]
        v = {i: f[i, channels] / (f[i, channels].norm() + 1e-8) for i in rows}
        middle = sum(v.values()) / len(rows)
        k = {}
        for i in rows:
            square = float((v[i] - middle).square().sum())
            k[i] = sum(math.exp(-square / (2 * a)) for a in (1 / 8, 1 / 4, 1 / 2, 1, 2))
        heard = {i: float(self.tokens.saliency[i]) for i in rows}
        out = {}
        for t, i in enumerate(rows):
            b = 1.0 if t == 0 else min(1.0, max(0.0, (1 - self.cos(rows[t - 1], i)) / 2))
            out[i] = 0.4 * b + 0.3 * (1 - k[i] / max(k.values())) + 0.3 * heard[i] / max(heard.values())
        return out

    def ranked(self, k: int) -> list[int]:
        score = self.scores()
        return sorted(sorted(score, key=lambda i: (-score[i], i))[:k])

    def merged(self, sound: list[int], anchors: list[int], seen: dict[int, list[int]]) -> dict[int, torch.Tensor]:
        taken: dict[int, list[int]] = {a: [] for a in anchors}
        for i in self.ears:
            if i not in sound and anchors:
                taken[max(anchors, key=lambda a: (round(self.cos(i, a), 9), -a))].append(i)
        out, f = {}, self.tokens.features.float()
        for a, mine in taken.items():
            if mine:
                score = {i: max(self.cos(i, v) for v in seen[i]) for i in mine}
                best = sorted(mine, key=lambda i: (-score[i], i))[:3]
                mass = [math.exp(score[i]) for i in best]
                total = f[a] + sum(w / sum(mass) * f[i] for i, w in zip(best, mass, strict=True))
                out[a] = total / 2
        return out

    def spatial(self, frame: list[int], k: int) -> list[int]:
        crowd = {}
        for i in frame:
            near = sorted((self.cos(i, j) for j in frame if j != i), reverse=True)[:5]
            crowd[i] = sum(near) / len(near) if near else -1.0
        return sorted(frame, key=lambda i: (crowd[i], i))[:k]

    def temporal(self, frame: list[int], before: list[int], k: int) -> list[int]:
        like = {i: self.cos(i, j) for i, j in zip(frame, before, strict=True)}
        return sorted(frame, key=lambda i: (like[i], i))[:k]


def slow_official(tokens: MediaTokens, video: float, audio: float) -> tuple[list[int], dict[int, torch.Tensor]]:
    slow = Slow(tokens)
    n_a, n_v = len(slow.ears), len(slow.eyes)
    n_anchors = round(0.05 * n_a)
    dominant = slow.ranked(round((audio - 0.05) * n_a))
    pool = [i for i in slow.ears if i not in dominant]
    anchors = pool[:: max(1, len(pool) // n_anchors)][:n_anchors] if n_anchors else []
    sound = sorted(dominant + anchors)
    begins = slow.cuts([float(t) for t in range(n_a)], 30)
    edges: list[tuple[int, int]] = []  # picture token, sound token
    for begin in begins:
        if not edges or edges[-1][0] != begin * n_v // n_a:
            edges.append((begin * n_v // n_a, begin))
    edges.append((n_v, n_a))
    cells = max(1, n_v // (2 * len(frames(tokens))))
    kept = list(sound)
    for (first, first_a), (end, end_a) in itertools.pairwise(edges):
        heard = slow.ears[first_a:end_a]
        r = sum(i in sound for i in heard) / len(heard)
        discard = min(0.95, max(0.1, (1 - video) + 0.1 * (0.5 - r)))
        rows = slow.eyes[first:end]
        if len(rows) < 2 * cells:
            kept += rows
            continue
        for t in range(len(rows) // cells):
            k = max(1, int(cells * (1 - discard)))
            frame = rows[t * cells : (t + 1) * cells]
            before = rows[(t - 1) * cells : t * cells]
            kept += slow.temporal(frame, before, k) if t % 2 else slow.spatial(frame, k)
    return sorted(kept), slow.merged(sound, anchors, dict.fromkeys(slow.ears, slow.eyes))


def slow_clean(tokens: MediaTokens, video: float, audio: float) -> tuple[list[int], dict[int, torch.Tensor]]:
    slow = Slow(tokens)
    ears, eyes, window = slow.ears, slow.eyes, tokens.window.tolist()
    k_a, k_v = (max(1, int(r * len(rows) + 0.5)) for r, rows in ((audio, ears), (video, eyes)))
    n_anchors = min(int(0.05 * len(ears) + 0.5), k_a - 1)
    dominant = slow.ranked(k_a - n_anchors)
    pool = [i for i in ears if i not in dominant]
    anchors = [pool[(2 * j + 1) * len(pool) // (2 * n_anchors)] for j in range(n_anchors)]
    sound = sorted(dominant + anchors)
    shown = {}
    for i in ears:
        there = sorted({window[v] for v in eyes})
        own = max([w for w in there if w <= window[i]], default=there[0])
        shown[i] = [v for v in eyes if window[v] == own]
    begins = slow.cuts([slow.start[i] for i in ears], 1.2 - 1e-6)
    times = [slow.start[ears[b]] for b in begins]
    film: dict[float, list[int]] = {}
    for i in eyes:
        film.setdefault(slow.start[i], []).append(i)
    segments: dict[int, list[list[int]]] = {}
    for start, frame in film.items():
        middle = (start + float(tokens.end_s[frame[0]])) / 2
        segments.setdefault(max([j for j, t in enumerate(times) if t <= middle], default=0), []).append(frame)
    weights, sizes = [], []
    for j, own in segments.items():
        heard = ears[begins[j] : [*begins, len(ears)][j + 1]]
        r = sum(i in sound for i in heard) / len(heard)
        sizes.append(sum(map(len, own)))
        weights.append(sizes[-1] * (1 - min(0.95, max(0.1, 1 - k_v / len(eyes) + 0.1 * (0.5 - r)))))
    shares = spread(k_v, torch.tensor(sizes), torch.tensor(weights, dtype=torch.float64)).tolist()
    kept = list(sound)
    for own, share, size in zip(segments.values(), shares, sizes, strict=True):
        seen = given = 0
        for t, frame in enumerate(own):
            seen += len(frame)
            k = -(-share * seen // size) - given
            given += k
            cells = [[(int(tokens.row[i]), int(tokens.col[i])) for i in f] for f in (frame, own[t - 1])]
            same = t % 2 == 1 and cells[0] == cells[1]
            kept += slow.temporal(frame, own[t - 1], k) if same else slow.spatial(frame, k)
    return sorted(kept), slow.merged(sound, anchors, shown)


@every_mode
@every_clip
@pytest.mark.parametrize(("video", "audio"), [(0.24, 0.6), (0.5, 0.3), (0.1, 0.9)])
def test_choices_are_those_of_the_slow_loop(kind, mode, video, audio):
    tokens = CLIPS[kind]
    chosen = Dash(mode=mode, retention_video=video, retention_audio=audio).compress(
        tokens, query(tokens.features.shape[1])
    )
    expected, merged = (slow_clean if mode == "clean" else slow_official)(tokens, video, audio)
    assert chosen.indices.tolist() == expected
    kept = tokens.select(chosen)
    budget = {"video": kept.count(Modality.VIDEO), "audio": kept.count(Modality.AUDIO)}
    assert chosen.report["budget"] == budget
    features = tokens.features[chosen.indices]
    for row, new in merged.items():
        features[expected.index(row)] = new
    torch.testing.assert_close(kept.features, features, rtol=1e-4, atol=1e-5)
    assert bool(merged) == (chosen.report["anchors"] > 0)
    assert kind not in ("noise", "speech", "ragged", "much sound") or chosen.report["segments"] > 2


def test_cuts_are_spaced_greedily():
    assert spaced([3, 5, 9, 10, 20], [3.0, 5.0, 9.0, 10.0, 20.0], 0.0, 5.0) == [5, 10, 20]
    assert spaced([3, 5], [0.5, 1.2], 0.0, 1.2) == [5] and spaced([], [], 0.0, 1.0) == []
    tokens = clip(blocks=3, audio=50)  # 25 sound tokens a second
    features = tokens.features.clone()
    ears = tokens.indices(Modality.AUDIO)
    features[ears] = torch.eye(16)[[0] * 29 + [1] * 1 + [2] * 31 + [3] * 89]
    tokens = dataclasses.replace(tokens, features=features)
    # Changes before tokens 29, 30 and 61: the first comes a token too early.
    for mode in ("clean", "official"):
        report = Dash(mode=mode, retention=0.5).compress(tokens, query()).report
        assert report["segments"] == 3, mode
        assert Dash(mode=mode, retention=0.5, cut=-1).compress(tokens, query()).report["segments"] == 1
    assert Dash(retention=0.5, least_s=0.04).compress(tokens, query()).report["segments"] == 4
    assert Dash(retention=0.5, least_s=2.0).compress(tokens, query()).report["segments"] == 2


def test_guidance_moves_pictures_and_not_their_number():
    tokens = clip(blocks=4, frames=4, audio=40, rows=5, cols=5)
    features = tokens.features.clone()
    ears = tokens.indices(Modality.AUDIO)
    features[ears] = torch.eye(16)[torch.arange(4)].repeat_interleave(40, 0)
    saliency = torch.where(tokens.window < 2, 1.0, 0.1)
    tokens = dataclasses.replace(tokens, features=features, saliency=saliency)
    counts = {}
    for guidance in (0.0, 0.1, 1.0):
        chosen = Dash(retention_video=0.4, retention_audio=0.5, guidance=guidance).compress(tokens, query())
        kept = tokens.select(chosen)
        assert kept.count(Modality.VIDEO) == 160
        counts[guidance] = int(((kept.window < 2) & (kept.modality == 0)).sum())
    assert counts[0.0] == 80 < counts[0.1] < counts[1.0]


def test_the_published_shares():
    """288 picture and 50 sound tokens in 2 s, two grids: 0.3/0.6 and 0.45/0.76 discarded, anchors on top."""
    tokens = clip(blocks=6, frames=2, audio=50, rows=9, cols=16)
    features = tokens.features.clone()
    ears = tokens.indices(Modality.AUDIO)
    features[ears] = 1.0 + 0.1 * features[ears]
    whole = dataclasses.replace(tokens, features=features)
    for video, audio, kept_video in ((0.4, 0.75, 41.7), (0.24, 0.6, 25.0)):
        report = Dash(mode="official", retention_video=video, retention_audio=audio).compress(whole, query()).report
        assert report["budget"]["audio"] == round(audio * 300) and report["segments"] == 1
        assert 100 * report["budget"]["video"] / 1728 == pytest.approx(kept_video, abs=0.05)
    features[ears] = torch.eye(16)[torch.arange(10)].repeat_interleave(30, 0)  # a cut every 1.2 s
    often = dataclasses.replace(tokens, features=features.clone(), saliency=(torch.arange(len(tokens)) % 4 > 0).float())
    report = Dash(mode="official", retention_video=0.4, retention_audio=0.75).compress(often, query()).report
    assert report["segments"] == 10
    assert 100 * report["budget"]["video"] / 1728 == pytest.approx(34.7, abs=0.3), "a sixth lies in tails"
    features[ears] = torch.eye(16)[torch.arange(6)].repeat_interleave(50, 0)  # a cut every 2 s
    cut = dataclasses.replace(tokens, features=features)
    report = Dash(mode="official", retention_video=0.4, retention_audio=0.75).compress(cut, query()).report
    assert report["segments"] == 6
    report = Dash(retention_video=0.4, retention_audio=0.75).compress(cut, query()).report
    assert report["budget"] == {"video": 691, "audio": 225}


@every_mode
def test_one_sense_alone(mode):
    silent = clip(blocks=5, frames=2, audio=0, rows=4, cols=4)
    chosen = Dash(mode=mode, retention_video=0.4).compress(silent, query())
    assert chosen.report["segments"] == 1 and chosen.features is None
    # Released: 160 tokens, "frames" of 8; 0.6 - 0.15 = 0.45 discarded.
    assert chosen.report["budget"]["video"] == (64 if mode == "clean" else 20 * int(8 * 0.55))
    bare = dataclasses.replace(silent, saliency=None)
    assert torch.equal(Dash(mode=mode, retention_video=0.4).compress(bare, query()).indices, chosen.indices)
    heard = speech(clip(blocks=5, frames=0, audio=40))
    chosen = Dash(mode=mode, retention_audio=0.4).compress(heard, query())
    assert chosen.report["budget"] == {"video": 0, "audio": 80} and chosen.report["anchors"] == 10
    assert chosen.features is not None


def test_crowding_in_groups_of_any_size():
    tokens = clip(blocks=2, frames=1, audio=0, rows=1, cols=7)
    few = tokens.select(Selection(torch.tensor([0, 1, 2, 3, 4, 5, 6, 7])))
    groups = frames(few)
    x = torch.nn.functional.normalize(few.features.double(), dim=1)
    expected = [sorted(((x[i] @ x[j]).item() for j in range(7) if j != i), reverse=True)[:5] for i in range(7)]
    every = torch.ones(2, dtype=torch.bool)
    assert crowding(few.features, groups, every).tolist() == pytest.approx([sum(e) / 5 for e in expected] + [-1.0])
    assert crowding(few.features, groups, ~every).tolist() == [0.0] * 8
    same = torch.ones(8, 16) * torch.linspace(0.1, 9, 8)[:, None]
    assert crowding(same, groups, every).tolist() == [1.0] * 7 + [-1.0]


EDGES = {
    "silent": clip(audio=0),
    "audio only": clip(frames=0),
    "one picture token": clip(blocks=1, audio=0, rows=1, cols=1),
    "one sound token": clip(blocks=1, frames=0, audio=1),
    "one of each": clip(blocks=1, audio=1, rows=1, cols=1),
    "bf16": clip(dtype=torch.bfloat16),
    "black and still": dataclasses.replace(clip(), features=torch.zeros_like(clip().features)),
    "ragged": ragged(2),
}


@every_mode
@pytest.mark.parametrize("kind", list(EDGES))
def test_edges(kind, mode):
    tokens = EDGES[kind]
    for retention in (0.05, 0.3, 0.99):
        for merge in (0, 3):
            method = Dash(mode=mode, retention=retention, split="proportional", merge=merge)
            chosen = method.compress(tokens, query())
            kept = tokens.select(chosen)
            budget = {"video": kept.count(Modality.VIDEO), "audio": kept.count(Modality.AUDIO)}
            assert chosen.report["budget"] == budget and len(kept) > 0
            assert mode == "official" or budget == method.plan(tokens).to_dict()
            assert kept.features.dtype == tokens.features.dtype and bool(torch.isfinite(kept.features).all())


@every_mode
def test_what_is_missing_or_broken_is_an_error(mode):
    method = Dash(mode=mode, retention_video=0.4, retention_audio=0.5)
    with pytest.raises(ModelError, match="give no saliency"):
        method.compress(dataclasses.replace(clip(), saliency=None), query())
    for row in (0, 13):
        tokens = clip()
        tokens.features[row] = torch.nan
        with pytest.raises(ModelError, match="not finite"):
            method.compress(tokens, query())


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"cut": 1.5}, "cut: must be between"),
        ({"least_s": -1.0}, "least_s: must not be negative"),
        ({"context": 1.0}, "context: must be at least 0 and below 1"),
        ({"merge": -1}, "merge: must not be negative"),
        ({"outlier_weight": -1.0}, "outlier_weight: must not be negative"),
        ({"guidance": -0.1}, "guidance: must not be negative"),
    ],
)
def test_wrong_settings(fields, line):
    with pytest.raises(ConfigError, match=line):
        Dash(**fields)
