"""OmniScope against slow loops in both modes, its rectangles, shares and merging, and what it lacks."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from omnicli.compress import tome
from omnicli.compress.budget import spread
from omnicli.compress.groups import group
from omnicli.compress.methods.omniscope import OmniScope, bounded
from omnicli.compress.released.omniscope import picture_quota, rectangle, sound_quota
from omnicli.compress.tome import merged_in_groups, reachable
from omnicli.errors import ConfigError, ModelError
from omnicli.testing.clips import clip, query
from omnicli.types import MediaTokens, Modality, Query, Selection

every_mode = pytest.mark.parametrize("mode", ["clean", "official"])


def ragged(seed: int) -> MediaTokens:
    """Windows without sound or pictures, seconds of all lengths, frames cut short."""
    tokens = clip(blocks=7, frames=3, audio=30, seed=seed)
    gone = torch.rand(len(tokens), generator=torch.Generator().manual_seed(seed)) < 0.2
    gone &= (tokens.modality == 1) | (tokens.window == 6)
    gone |= ((tokens.window == 2) & (tokens.modality == 0)) | ((tokens.window == 4) & (tokens.modality == 1))
    return tokens.select(Selection(torch.nonzero(~gone).flatten()))


CLIPS = {
    "even": clip(blocks=6, frames=2, audio=50, seed=1),
    "odd frames": clip(blocks=3, frames=5, audio=37, seed=2, rows=4, cols=5),
    "another rate": clip(blocks=5, frames=1, audio=26, seed=3, rows=3, cols=7),
    "ragged": ragged(4),
}
every_clip = pytest.mark.parametrize("kind", list(CLIPS))


# --- slow loops -----------------------------------------------------------------------------------------------------


class Slow:
    """Steps of the spec by literal loops, in double precision."""

    def __init__(self, tokens: MediaTokens, question: Query) -> None:
        self.tokens, self.f = tokens, tokens.features.double()
        self.ears, self.eyes = (tokens.indices(m).tolist() for m in (Modality.AUDIO, Modality.VIDEO))
        self.q = question.embeddings.double()
        x = self.f / (self.f.norm(dim=1, keepdim=True) + 1e-8)
        self.table = (x @ x.T).tolist()
        self.cells = [(int(r), int(c)) for r, c in zip(tokens.row, tokens.col, strict=True)]
        film: dict[float, list[int]] = {}
        for i in self.eyes:
            film.setdefault(float(tokens.start_s[i]), []).append(i)
        self.film = list(film.values())

    @staticmethod
    def cos(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(a @ b) / ((float(a.norm()) + 1e-8) * (float(b.norm()) + 1e-8))

    def frame_scores(self) -> list[float]:
        return [max(0.0, 100 * self.cos(self.f[frame].mean(0), self.q.mean(0))) ** 3 for frame in self.film]

    def pictures(self, quota: list[int]) -> list[int]:
        kept = []
        for t, (frame, k) in enumerate(zip(self.film, quota, strict=True)):
            before = self.film[t - 1]
            score = {}
            for place, i in enumerate(frame):
                others = [self.table[i][j] for j in frame if j != i]
                if t % 2 == 0 or [self.cells[j] for j in frame] != [self.cells[j] for j in before]:
                    near = sorted(others, reverse=True)[:5]
                    score[i] = sum(near) / len(near) if near else -1.0
                elif k / len(frame) > 0.4:
                    score[i] = (max(others) if others else 0.0) * max(self.table[i][j] for j in before)
                else:
                    score[i] = self.table[i][before[place]]
            kept += sorted(frame, key=lambda i: (score[i], i))[:k]
        return kept

    def sound_scores(self) -> dict[int, float]:
        out = {}
        longest = max(float(v.norm()) for v in self.q)
        for i in self.ears:
            cosine = [self.cos(self.f[i], v) for v in self.q]
            raised = [math.exp(float(v.norm()) / longest * c / 0.05) for v, c in zip(self.q, cosine, strict=True)]
            out[i] = sum(r / sum(raised) * c for r, c in zip(raised, cosine, strict=True))
        return out

    def weights(self, seconds: list[list[int]], numbers: list[int]) -> list[float]:
        score = self.sound_scores()
        s = []
        for second in seconds:
            top = sorted((score[i] for i in second), reverse=True)[:5]
            s.append(max(0.0, 10 * sum(top) / len(top)) ** 2)
        ranked = sorted(s)
        at = 0.8 * (len(s) - 1)
        low = ranked[int(at)]
        threshold = low + (at - int(at)) * (ranked[min(int(at) + 1, len(s) - 1)] - low)
        peaks = [n for n, v in zip(numbers, s, strict=True) if v >= threshold * (1 - 1e-9)]
        out = []
        for n, v in zip(numbers, s, strict=True):
            factors = [1.0] + [1.2 if n == p else 1 + 0.5 * 0.5 ** abs(n - p) for p in peaks if abs(n - p) <= 3]
            out.append(v * max(factors))
        return out

    def merge(self, second: list[int], quota: int, released: bool) -> dict[int, torch.Tensor | None]:
        """What is left of a second: the row at which it stands, and its features if any were merged into it."""
        if quota == 0:
            return {}
        now = [(self.f[i], [i], i) for i in second]
        while len(now) > quota:
            most = max(0 if released else 1, len(now) // 2 - 1)
            gone = min(len(now) - quota, most)
            if gone == 0:
                break
            even, odd = range(0, len(now), 2), range(1, len(now), 2)
            best = {a: max(odd, key=lambda b: (self.cos(now[a][0], now[b][0]), -b)) for a in even}
            leaving = sorted(even, key=lambda a: (-self.cos(now[a][0], now[best[a]][0]), a))[:gone]
            after = []
            for b, own in enumerate(now):
                if b in leaving:
                    continue
                parts = [own, *(now[a] for a in leaving if best[a] == b)]
                sizes = [1 if released else len(m) for _, m, _ in parts]
                mean = sum(n * v for n, (v, _, _) in zip(sizes, parts, strict=True)) / sum(sizes)
                after.append((mean, [m for _, ms, _ in parts for m in ms], own[2]))
            now = after
        out: dict[int, torch.Tensor | None] = {}
        for x, members, at in now:
            start = {m: float(self.tokens.start_s[m]) for m in members}
            mean = sum(start.values()) / len(start)
            near = min(members, key=lambda m: (round(abs(start[m] - mean), 7), m))
            out[at if released else near] = x.float() if len(members) > 1 else None
        return out


def slow_official(tokens: MediaTokens, question: Query, video: float, audio: float) -> dict[int, torch.Tensor | None]:
    slow = Slow(tokens, question)
    scores = [round(s, 3) for s in slow.frame_scores()]
    quota = []
    for frame, s in zip(slow.film, scores, strict=True):
        n = min(math.floor(s / sum(scores) * video * len(slow.eyes) + 0.5), len(frame))
        h, w = (max(slow.cells[i][axis] for i in frame) + 1 for axis in (0, 1))
        high = min(max(round(math.sqrt(n / (w / h))), 2), h)
        quota.append(min(high * min(max(round(high * w / h), 2), w), len(frame)))
    out: dict[int, torch.Tensor | None] = dict.fromkeys(slow.pictures(quota))
    whole = len(slow.ears) // 25
    seconds = [slow.ears[25 * n : 25 * n + 25] for n in range(whole)]
    weights = slow.weights(seconds, list(range(whole))) if whole else []
    for second, k in zip(seconds, sound_quota(weights, audio, 25, 10), strict=True):
        out |= slow.merge(second, k, True)
    return out | dict.fromkeys(slow.ears[25 * whole :])


def slow_clean(tokens: MediaTokens, question: Query, video: float, audio: float) -> dict[int, torch.Tensor | None]:
    slow = Slow(tokens, question)
    k_video, k_audio = (max(1, int(r * len(n) + 0.5)) for r, n in ((video, slow.eyes), (audio, slow.ears)))
    sizes = torch.tensor([len(frame) for frame in slow.film])
    scores = torch.tensor(slow.frame_scores(), dtype=torch.float64)
    out: dict[int, torch.Tensor | None] = dict.fromkeys(slow.pictures(spread(k_video, sizes, scores * sizes).tolist()))
    seconds: dict[int, list[int]] = {}
    for i in slow.ears:
        seconds.setdefault(math.floor(float(tokens.start_s[i]) + 1e-6), []).append(i)
    weights = slow.weights(list(seconds.values()), list(seconds))
    high = [len(s) for s in seconds.values()]
    low = [min(2 * n // 5, n * k_audio // len(slow.ears)) for n in high]
    mass = [w * n for w, n in zip(weights, high, strict=True)]
    for second, k in zip(seconds.values(), slow_bounded(k_audio, low, high, mass), strict=True):
        out |= slow.merge(second, k, False)
    return out


def slow_bounded(total: int, low: list[int], high: list[int], weight: list[float]) -> list[int]:
    """Raise one level little by little until the shares within bounds add up."""

    def shares(level: float) -> list[float]:
        return [min(max(level * w, a), b) for w, a, b in zip(weight, low, high, strict=True)]

    level, step = 0.0, max((b / w for b, w in zip(high, weight, strict=True) if w > 0), default=0.0)
    while step > 1e-18 * (level + 1e-9):
        if sum(shares(level + step)) < total:
            level += step
        step /= 2
    exact = shares(level)
    whole = [math.floor(e + 1e-7) for e in exact]
    order = sorted(range(len(low)), key=lambda i: (round(whole[i] - exact[i], 6), i))
    for i in [i for i in order if whole[i] < high[i]][: total - sum(whole)]:
        whole[i] += 1
    return whole


@every_mode
@every_clip
@pytest.mark.parametrize(
    ("video", "audio"), [(0.4, 0.75), *(pytest.param(*s, marks=pytest.mark.slow) for s in ((0.2, 0.5), (0.7, 0.2)))]
)
def test_choices_are_those_of_the_slow_loop(kind, mode, video, audio):
    tokens, question = CLIPS[kind], query(seed=5)
    chosen = OmniScope(mode=mode, retention_video=video, retention_audio=audio).compress(tokens, question)
    expected = (slow_clean if mode == "clean" else slow_official)(tokens, question, video, audio)
    assert chosen.indices.tolist() == sorted(expected)
    kept = tokens.select(chosen)
    budget = {"video": kept.count(Modality.VIDEO), "audio": kept.count(Modality.AUDIO)}
    assert chosen.report["budget"] == budget
    features = tokens.features[chosen.indices]
    for row, new in expected.items():
        if new is not None:
            features[sorted(expected).index(row)] = new
    torch.testing.assert_close(kept.features, features, rtol=1e-4, atol=1e-5)
    assert chosen.report["merged"] == sum(new is not None for new in expected.values()) > 0


def test_rectangles_of_the_release():
    assert [rectangle(n, 9, 16) for n in (36, 58, 100)] == [28, 66, 112]
    assert rectangle(0, 9, 16) == 8 and rectangle(10**6, 9, 16) == 144 and rectangle(5, 1, 1) == 1
    quota = picture_quota([1.0] * 8, [(144, 9, 16)] * 8, 0.4)
    assert quota == [66] * 8 and abs(66 / 144 - 0.46) < 0.002
    assert picture_quota([0.0, 0.0], [(144, 9, 16)] * 2, 0.4) == [66, 66]
    assert picture_quota([1.0, 0.0004, 3.0], [(144, 9, 16)] * 3, 0.4) == [
        rectangle(43, 9, 16),
        8,
        rectangle(130, 9, 16),
    ]


def test_shares_of_sound_in_the_release():
    assert sound_quota([], 0.5, 25, 10) == []
    assert sound_quota([1.0] * 4, 0.65, 25, 10) == [17, 16, 16, 16]
    assert sound_quota([0.0] * 3, 0.6, 25, 10) == [15, 15, 15]
    assert sound_quota([1.0, 1.0, 98.0], 0.6, 25, 10) == [10, 10, 25]
    assert sound_quota([1.0, 2.0, 100.0], 0.7, 25, 3) == [10, 17, 25]  # 3 + 21.5 / 3, 3 + 43 / 3, 25
    assert sound_quota([1.0, 1.0], 0.1, 25, 10) == [10, 10], "never under the least"


def test_shares_within_bounds_are_exact():
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        high = torch.randint(0, 26, (7,), generator=generator)
        low = (high * torch.rand(7, generator=generator) * 0.5).long()
        weight = torch.rand(7, generator=generator).double() ** 4
        span = int(high.sum() - low.sum())
        total = int(low.sum()) + int(torch.randint(0, span + 1, (), generator=generator))
        got = bounded(total, low, high, weight)
        assert int(got.sum()) == total and bool((got >= low).all()) and bool((got <= high).all())
        assert got.tolist() == slow_bounded(total, low.tolist(), high.tolist(), weight.tolist())
    two = torch.tensor([4, 4])
    assert bounded(5, two * 0, two, torch.tensor([1.0, 0.0]).double()).tolist() == [4, 1]
    assert bounded(5, two * 0, two, torch.zeros(2).double()).tolist() == [3, 2]


def test_rounds_of_merging():
    assert reachable(25, 10, True) == [14, 10] and reachable(25, 14, True) == [14] and reachable(25, 25, True) == []
    assert reachable(25, 1, True) == [14, 8, 5, 4, 3], "three are never merged"
    assert reachable(25, 1, False) == [14, 8, 5, 4, 3, 2, 1] and reachable(1, 1, False) == []


def test_merging_by_hand():
    # Tokens 0 and 2 are like token 1, token 4 is like token 5.
    x = torch.tensor([[1.0, 0.1], [1.0, 0.0], [3.0, 0.0], [0.0, -1.0], [-1.0, 0.1], [-1.0, 0.0]])
    groups = group(torch.arange(6), torch.zeros(6))
    time = torch.arange(6).double()
    two = merged_in_groups(x, groups, [4], time)
    assert two.places.tolist() == [1, 3, 4, 5], "two of the three evens, the best first, then the earlier"
    assert two.changed.tolist() == [0]
    torch.testing.assert_close(two.features, torch.tensor([[5.0, 0.1]]) / 3)
    # Then (0 1 2), 3, 4, 5: evens are the first and 4; 4 is more like 5 than the first like 3.
    weighted = merged_in_groups(x, groups, [3], time)
    assert weighted.places.tolist() == [1, 3, 4] and weighted.changed.tolist() == [0, 2]
    assert merged_in_groups(x, groups, [3], time, released=True).places.tolist() == [1, 3, 5], "where the odd one stood"
    one = merged_in_groups(x, groups, [1], time)
    assert one.places.numel() == 1
    torch.testing.assert_close(one.features, x.mean(0, keepdim=True), msg="all tokens count the same")
    assert merged_in_groups(x, groups, [0], time).places.numel() == 0
    assert merged_in_groups(x, groups, [6], time).changed.numel() == 0


def test_what_the_question_asks_for_keeps_more():
    tokens = clip(blocks=6, frames=1, audio=50, rows=4, cols=6)
    features = tokens.features.clone()
    ask = torch.zeros(16)
    ask[3] = 1.0
    there = (tokens.window == 4) & (tokens.modality == 0)
    features[there] += 3 * ask
    said = (tokens.window == 1) & (tokens.modality == 1)
    features[said] += 3 * ask
    tokens = dataclasses.replace(tokens, features=features)
    for mode in ("clean", "official"):
        method = OmniScope(mode=mode, retention_video=0.25, retention_audio=0.5)
        kept = tokens.select(method.compress(tokens, Query(ask[None])))
        pictures = torch.bincount(kept.window[kept.modality == 0], minlength=6).tolist()
        sound = torch.bincount(kept.window[kept.modality == 1], minlength=6).tolist()
        assert pictures[4] == max(pictures) > 2 * sorted(pictures)[-2], (mode, pictures)
        assert sound[1] == max(sound) >= 40, (mode, sound)


@every_mode
def test_a_question_without_tokens_counts_all_alike(mode):
    tokens = clip(blocks=4, frames=1, audio=50, rows=4, cols=6)
    method = OmniScope(mode=mode, retention_video=0.25, retention_audio=0.6)
    kept = tokens.select(method.compress(tokens, query(tokens=0)))
    for modality in Modality:
        counts = torch.bincount(kept.window[kept.modality == modality], minlength=4)
        assert int(counts.max()) == int(counts.min())


def test_batches_change_nothing(monkeypatch):
    tokens, question = CLIPS["ragged"], query(seed=5)
    whole = OmniScope(retention=0.3).compress(tokens, question)
    monkeypatch.setattr(tome, "MEMORY", 2000)
    monkeypatch.setattr("omnicli.compress.methods.omniscope.MEMORY", 2000)
    small = OmniScope(retention=0.3).compress(tokens, question)
    assert torch.equal(small.indices, whole.indices)
    torch.testing.assert_close(small.features, whole.features)


EDGES = {
    "silent": clip(audio=0),
    "audio only": clip(frames=0),
    "one picture token": clip(blocks=1, audio=0, rows=1, cols=1),
    "one sound token": clip(blocks=1, frames=0, audio=1),
    "one of each": clip(blocks=1, audio=1, rows=1, cols=1),
    "one cell a frame": clip(blocks=6, audio=60, rows=1, cols=1),
    "bf16": clip(dtype=torch.bfloat16, audio=60),
    "black and still": dataclasses.replace(clip(audio=60), features=torch.zeros_like(clip(audio=60).features)),
    "ragged": ragged(2),
}


@every_mode
@pytest.mark.parametrize("kind", list(EDGES))
def test_edges(kind, mode):
    tokens = EDGES[kind]
    for retention in (0.02, 0.3, 0.99):
        method = OmniScope(mode=mode, retention=retention, split="proportional")
        chosen = method.compress(tokens, query(dtype=tokens.features.dtype))
        kept = tokens.select(chosen)
        budget = {"video": kept.count(Modality.VIDEO), "audio": kept.count(Modality.AUDIO)}
        assert chosen.report["budget"] == budget and len(kept) > 0
        assert mode == "official" or budget == method.plan(tokens).to_dict()
        assert kept.features.dtype == tokens.features.dtype and bool(torch.isfinite(kept.features).all())


@every_mode
def test_broken_embeddings_are_an_error(mode):
    for row in (0, 13):
        tokens = clip(audio=60)
        tokens.features[row] = torch.nan
        for asked in (query(), query(tokens=0)):
            with pytest.raises(ModelError, match="not finite"):
                OmniScope(mode=mode, retention_video=0.4, retention_audio=0.5).compress(tokens, asked)


@pytest.mark.parametrize(
    ("fields", "line"),
    [({"least": 1.1}, "least: must be between 0 and 1"), ({"audio_second": 0}, "audio_second: must be at least 1")],
)
def test_wrong_settings(fields, line):
    with pytest.raises(ConfigError, match=line):
        OmniScope(**fields)
