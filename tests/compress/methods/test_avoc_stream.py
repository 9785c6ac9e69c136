"""Streaming AVOC against a slow loop of the same rules, against the offline choice, and its bounds on memory."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from omnicli.compress import streaming
from omnicli.compress.methods.avoc import Avoc, Projections, scores
from omnicli.compress.methods.avoc_stream import AvocStream
from omnicli.compress.streaming import Stream
from omnicli.errors import ConfigError, ModelError
from omnicli.testing.clips import clip, query
from omnicli.types import MediaTokens, Modality, Query, Selection


def ragged(seed: int = 9, blocks: int = 12) -> MediaTokens:
    """A clip in which blocks differ in size and some lack sound, pictures or both."""
    whole = clip(blocks=blocks, frames=2, audio=6, seed=seed)
    g = torch.Generator().manual_seed(seed)
    keep = torch.rand(len(whole), generator=g) < 0.6
    keep &= ~((whole.window == 2) & (whole.modality == 1)) & ~((whole.window == 5) & (whole.modality == 0))
    keep &= whole.window != 7
    return whole.select(Selection(torch.nonzero(keep).flatten()))


def blocks_of(tokens: MediaTokens) -> list[MediaTokens]:
    return [tokens.select(Selection(torch.nonzero(tokens.window == b).flatten())) for b in torch.unique(tokens.window)]


def naive(tokens: MediaTokens, question: Query, method: AvocStream) -> list[int]:
    """The module's rules, one token at a time in float64, statistics from scratch with every block."""
    x, window, modality = tokens.features.double(), tokens.window.tolist(), tokens.modality.tolist()
    weight, radius = method.diversity, method.radius
    held: dict[int, list[int]] = {0: [], 1: []}
    frozen: dict[int, float] = {}
    penalty: dict[int, float] = {}
    seen: dict[int, list[int]] = {0: [], 1: []}

    def gains(m: int) -> dict[int, float]:
        upto = max(seen[0] + seen[1]) + 1
        some = tokens.select(Selection(torch.arange(upto)))
        all_ = scores(some.features, some.modality, some.window, question.embeddings).double()
        return {i: (1 - weight) * float(all_[i]) for i in seen[m]}

    def similarities(of: list[int], live: list[int]) -> dict[tuple[int, int], float]:
        unit = torch.nn.functional.normalize(x[live] - x[of].mean(0), dim=1)
        pairs = (unit @ unit.T).clamp_min(0).tolist()
        return {(i, j): pairs[a][b] for a, i in enumerate(live) for b, j in enumerate(live)}

    live_of: dict[int, list[int]] = {0: [], 1: []}
    for block in sorted(set(window)):
        come = {m: [i for i in range(len(x)) if window[i] == block and modality[i] == m] for m in (0, 1)}
        before = {m: list(seen[m]) for m in (0, 1)}
        for m in (0, 1):
            seen[m] += come[m]
        counts = (len(seen[0]), len(seen[1]))
        candidates = (len(held[0]) + len(come[0]), len(held[1]) + len(come[1]))
        shares = method.shares_of(*counts, (1.0, 1.0), candidates)
        for m, share in ((0, shares.video), (1, shares.audio)):
            if not come[m]:
                continue
            gain = gains(m)
            leaving = [i for i in live_of[m] if window[i] < block - radius]
            staying = [i for i in live_of[m] if window[i] >= block - radius]
            # What leaves is frozen with the new scores and the old mean.
            similar = similarities(before[m], live_of[m])
            for i in staying:
                for j in leaving:
                    if (gain[j] - weight * penalty[j], -j) > (gain[i] - weight * penalty[i], -i):
                        frozen[i] = max(frozen[i], similar[i, j])
            live = staying + come[m]
            frozen.update(dict.fromkeys(come[m], 0.0))
            similar = similarities(seen[m], live)
            lowered, left = {i: frozen[i] for i in live}, set(live)
            while left:
                first = max(left, key=lambda i: (gain[i] - weight * lowered[i], -i))
                left.remove(first)
                penalty[first] = lowered[first]
                for i in left:
                    lowered[i] = max(lowered[i], similar[i, first])
            room = min(method.total_of(*counts), math.ceil(streaming.SLACK * share))
            best = sorted(held[m] + come[m], key=lambda i: (-(gain[i] - weight * penalty[i]), i))
            held[m] = sorted(best[:room])
            live_of[m] = [i for i in live if i in held[m]]
    budget = method.shares_of(len(seen[0]), len(seen[1]), (1.0, 1.0), (len(held[0]), len(held[1])))
    kept: list[int] = []
    for m, k in ((0, budget.video), (1, budget.audio)):
        gain = gains(m) if seen[m] else {}
        kept += sorted(held[m], key=lambda i: (-(gain[i] - weight * penalty[i]), i))[:k]
    return sorted(kept)


SETTINGS = {
    "tokens": {"tokens": 20},
    "many tokens": {"tokens": 70},
    "retention": {"retention": 0.3},
    "by modality": {"retention_video": 0.2, "retention_audio": 0.5},
    "proportional": {"tokens": 25, "split": "proportional"},
}


@pytest.mark.parametrize(
    ("setting", "radius"),
    [("tokens", 3), ("many tokens", 1), ("retention", 0), ("retention", 3), ("by modality", 1), ("proportional", 3)],
)
def test_equals_the_slow_loop(setting, radius):
    tokens, question = ragged(), query()
    method = AvocStream(**SETTINGS[setting], diversity=0.4, radius=radius)
    assert method.compress(tokens, question).indices.tolist() == naive(tokens, question, method)


@pytest.mark.parametrize("tokens", [ragged(), clip(blocks=8, audio=12)], ids=["ragged", "even"])
def test_equals_avoc_where_nothing_had_to_be_let_go_or_frozen(tokens):
    k = len(tokens) * 2 // 3 + 1
    for fields in ({"tokens": k}, {"tokens": k, "split": "1:3"}, {"retention": 0.7, "split": "proportional"}):
        fields.update(diversity=0.4, radius=50)
        offline = Avoc(**fields).compress(tokens, query())
        online = AvocStream(**fields).compress(tokens, query())
        assert torch.equal(online.indices, offline.indices) and online.report == offline.report


def test_scores_are_at_any_time_those_of_what_was_seen():
    tokens, question = ragged(), query().embeddings
    g = torch.Generator().manual_seed(5)
    projections = Projections(*(torch.randn(16, 5, generator=g) / 4 for _ in range(4)))
    stream, done = Stream(AvocStream(tokens=30), question, projections), 0
    for block in blocks_of(tokens):
        stream.push(block)
        done += len(block)
        some = tokens.select(Selection(torch.arange(done)))
        expected = scores(some.features, some.modality, some.window, question, projections)
        for side in stream._sides:
            got = side.score(side.tokens)
            torch.testing.assert_close(got, expected[side.tokens.number], rtol=1e-4, atol=1e-4)


def test_blocks_may_come_alone_or_together_and_what_is_let_go_may_be_forgotten():
    tokens, question = ragged(blocks=30), query()
    method = AvocStream(tokens=24)
    stream, memory, done = Stream(method, question.embeddings), {}, 0
    for block in blocks_of(tokens):
        memory.update({done + i: block.features[i] for i in range(len(block))})
        done += len(block)
        for number in stream.push(block).tolist():
            del memory[number]
        assert len(memory) == sum(stream.held)
        assert set(stream.finish().tolist()) <= set(memory)
    chosen = stream.finish()
    assert torch.equal(chosen, method.compress(tokens, question).indices)
    assert torch.equal(torch.stack([memory[i] for i in chosen.tolist()]), tokens.features[chosen])


@pytest.mark.parametrize("blocks", [40, 80])
def test_memory_does_not_grow_with_the_clip(blocks):
    k, radius, per_block = 60, 3, 24 + 10
    tokens = clip(blocks=blocks, frames=2, audio=10)
    stream = Stream(AvocStream(tokens=k, radius=radius), query().embeddings)
    live = 0
    for block in blocks_of(tokens):
        stream.push(block)
        live = max(live, sum(side.live for side in stream._sides))
        for side in stream._sides:
            assert side._vectors.shape == (side.live, 16) and side._products.shape == (side.live, side.live)
    assert stream.seen == (blocks * 24, blocks * 10)
    assert stream.peak <= 2 * k + per_block and live <= (radius + 1) * per_block
    assert stream.finish().numel() == k


@pytest.mark.parametrize(
    ("split", "k"), [("2:1", 1), ("2:1", 40), ("1:4", 7), ("1:0", 2), ("proportional", 40), ("adaptive", 40)]
)
def test_a_number_of_tokens_is_met_exactly(split, k):
    late = clip(blocks=14, frames=2, audio=6)
    late = late.select(Selection(torch.nonzero((late.window < 7) == (late.modality == 0)).flatten()))
    for tokens in (ragged(), late, clip(blocks=3, audio=0), clip(blocks=3, frames=0), clip(blocks=1)):
        selection = AvocStream(tokens=k, split=split).compress(tokens, query())
        kept = tokens.select(selection)
        assert len(kept) == min(k, len(tokens))
        assert selection.report["budget"] == {"video": kept.count(Modality.VIDEO), "audio": kept.count(Modality.AUDIO)}
        if split != "adaptive":
            assert selection.report["budget"] == Avoc(tokens=k, split=split).budget(tokens).to_dict()


@pytest.mark.parametrize("retention", [0.01, 0.37])
def test_a_share_is_met_exactly_even_where_one_modality_stops(retention):
    late = clip(blocks=20, frames=2, audio=6)
    for first in (0, 1):
        halves = late.select(Selection(torch.nonzero((late.window < 10) == (late.modality == first)).flatten()))
        for tokens in (halves, ragged(), clip(blocks=1)):
            selection = AvocStream(retention=retention).compress(tokens, query())
            assert len(selection.indices) == max(1, int(retention * len(tokens) + 0.5))
        own = AvocStream(retention_video=retention, retention_audio=0.5)
        assert own.compress(halves, query()).report["budget"] == own.budget(halves).to_dict()


def test_leaving_nothing_is_an_error():
    with pytest.raises(ConfigError, match="leaves nothing"):
        AvocStream(retention_video=0.0).compress(clip(audio=0), query())
    assert Stream(AvocStream(), query().embeddings).finish().numel() == 0


def test_without_diversity_the_best_scores_stay():
    tokens, question = clip(blocks=10, audio=12), query()
    k = len(tokens) * 2 // 3 + 1
    online = AvocStream(tokens=k, diversity=0.0).compress(tokens, question)
    assert torch.equal(online.indices, Avoc(tokens=k, diversity=0.0).compress(tokens, question).indices)


def test_few_live_tokens_still_meet_the_budget(monkeypatch):
    monkeypatch.setattr(streaming, "LIVE", 10)
    tokens = clip(blocks=3, frames=4, audio=30)
    stream = Stream(AvocStream(tokens=60), query().embeddings)
    for block in blocks_of(tokens):
        stream.push(block)
        assert all(side.live <= 10 for side in stream._sides)
    assert stream.finish().numel() == 60


def test_repeated_pictures_are_kept_once():
    tokens = clip(blocks=6, audio=0, rows=2, cols=2, width=32)
    scene = torch.randn(4, 32, generator=torch.Generator().manual_seed(3))
    tokens = dataclasses.replace(tokens, features=scene.repeat(6, 1))
    question = Query(torch.zeros(1, 32))
    chosen = AvocStream(tokens=4, diversity=0.5, radius=9).compress(tokens, question).indices
    assert chosen.tolist() == [0, 1, 2, 3]


def test_black_film_and_silence():
    tokens = clip(blocks=9)
    black = dataclasses.replace(tokens, features=torch.zeros_like(tokens.features))
    assert len(AvocStream(retention=0.3).compress(black, query()).indices) == int(0.3 * len(tokens) + 0.5)
    flat = dataclasses.replace(tokens, features=torch.full_like(tokens.features, 37.3))
    assert len(AvocStream(tokens=11).compress(flat, query()).indices) == 11


def test_tokens_out_of_order_are_sorted_by_block_first():
    tokens, question = clip(blocks=9, audio=7), query()
    mixed = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    order = torch.cat([torch.nonzero(tokens.window == b).flatten() for b in mixed.tolist()])
    chosen = AvocStream(tokens=20).compress(tokens.select(Selection(order)), question).indices
    assert bool((chosen[1:] > chosen[:-1]).all())
    assert sorted(order[chosen].tolist()) == AvocStream(tokens=20).compress(tokens, question).indices.tolist()


def test_wrong_input_is_an_error():
    tokens = clip()
    stream = Stream(AvocStream(tokens=5), query().embeddings)
    stream.push(blocks_of(tokens)[2])
    with pytest.raises(ValueError, match="block 2 came after block 2"):
        stream.push(blocks_of(tokens)[2])
    tokens.features[3, 2] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        AvocStream(tokens=5).compress(tokens, query())


def planted(seed: int = 0, blocks: int = 120, width: int = 48) -> tuple[MediaTokens, Query, torch.Tensor]:
    """Scenes of ten blocks that hardly change, and short events that the question is about; which tokens those are."""
    tokens = clip(blocks=blocks, frames=1, audio=8, width=width, rows=4, cols=4, seed=seed)
    g = torch.Generator().manual_seed(seed + 1)
    asked = torch.randn(1, width, generator=g)
    places = 16 + 8
    scene = torch.randn(blocks // 10 + 1, places, width, generator=g)
    scene[:, 16:] += torch.randn(width, generator=g)
    place = torch.arange(len(tokens)) % places
    features = scene[tokens.window // 10, place] + 0.3 * tokens.features
    event = torch.isin(tokens.window, torch.randperm(blocks, generator=g)[: blocks // 8])
    event &= torch.rand(len(tokens), generator=g) < 0.4
    features[event] += 0.7 * asked
    return dataclasses.replace(tokens, features=features), Query(asked.repeat(3, 1)), event


@pytest.mark.parametrize(
    "setting",
    ["tokens=288", *(pytest.param(s, marks=pytest.mark.slow) for s in ("retention=0.1", "retention=0.3", "adaptive"))],
)
def test_overlap_with_the_offline_choice(setting, capsys):
    fields = {"tokens=288": {"tokens": 288}, "adaptive": {"tokens": 288, "split": "adaptive"}}.get(
        setting, {"retention": float(setting.rpartition("=")[2] or 0) if "ret" in setting else 0.1}
    )
    shares, found = [], []
    for seed in range(2):
        tokens, question, event = planted(seed, blocks=60 if setting == "tokens=288" else 120)
        offline = Avoc(**fields).compress(tokens, question).indices
        online = AvocStream(**fields).compress(tokens, question).indices
        shares.append(float(torch.isin(online, offline).float().mean()))
        found.append(int(event[online].sum()) / int(event[offline].sum()))
    with capsys.disabled():
        print(f"\navoc-stream {setting}: {min(shares):.3f} to {max(shares):.3f} of its tokens are AVOC's;", end=" ")
        print(f"tokens of events: {min(found):.2f} to {max(found):.2f} of AVOC's")
    assert min(shares) >= 0.9 and min(found) >= 0.95
