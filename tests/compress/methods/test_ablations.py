"""What the papers leave out of their methods, against loops and hand-computed numbers; every one keeps the budget."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from omnicli.compress.methods.avoc import Avoc, Projections, scores
from omnicli.compress.methods.avoc_stream import AvocStream
from omnicli.compress.methods.omac import Omac
from omnicli.compress.methods.omnizip import OmniZip
from omnicli.compress.methods.random import Random
from omnicli.compress.methods.seats import Seats
from omnicli.compress.methods.visionzip import VisionZip
from omnicli.compress.streaming import Stream
from omnicli.errors import ConfigError
from omnicli.testing.clips import clip, query
from omnicli.types import Modality, Selection
from tests.compress.methods.test_omac import cosine, naive_share
from tests.compress.methods.test_omac import ragged as ragged_for_omac
from tests.compress.methods.test_seats import naive_picks, naive_spread, uneven, view_of
from tests.compress.reference import greedy_ta_mmr, grid_vectors

# ---- AVOC: table 2, figures 4 and 5 ----


def z(values):
    values = torch.tensor(values, dtype=torch.float64)
    return (values - values.mean()) / values.std(unbiased=False)


def literal_alone(tokens, question, which):
    """One of the two scores with identity projections, z-scored over each modality (equations 1 to 6)."""
    x, out = tokens.features.double(), torch.zeros(len(tokens), dtype=torch.float64)
    for m in Modality:
        own, raw = tokens.indices(m).tolist(), []
        for i in own:
            others = (tokens.window == tokens.window[i]) & (tokens.modality != m)
            asking = question.embeddings.double() if which == "relevance" else x[others]
            raw.append(float((asking @ x[i] / x.shape[1] ** 0.5).mean()))
        out[own] = z(raw)
    return out.float()


@pytest.mark.parametrize("off", ["relevance", "importance"])
def test_avoc_without_one_score_goes_by_the_other_alone(off):
    tokens, question = clip(blocks=7, frames=2, audio=6), query()
    left = "importance" if off == "relevance" else "relevance"
    score = literal_alone(tokens, question, left)
    parts = (off != "relevance", off != "importance")
    got = scores(tokens.features, tokens.modality, tokens.window, question.embeddings, parts=parts)
    torch.testing.assert_close(got, score, rtol=1e-4, atol=1e-4)
    kept = Avoc(tokens=20, **{off: False}).compress(tokens, question).indices.tolist()
    expected = []
    for m, k in ((Modality.VIDEO, 13), (Modality.AUDIO, 7)):
        own = tokens.indices(m)
        picked = greedy_ta_mmr(grid_vectors(tokens.features[own]), got[own], tokens.window[own], k, 0.15, 3)
        expected += own[picked].tolist()
    assert kept == sorted(expected) != Avoc(tokens=20).compress(tokens, question).indices.tolist()


def test_avoc_without_relevance_ignores_the_question():
    tokens = clip()
    one, two = (Avoc(tokens=10, relevance=False).compress(tokens, query(seed=seed)) for seed in (1, 2))
    assert torch.equal(one.indices, two.indices) and one.notes == Avoc(tokens=10).compress(tokens, query()).notes
    silent = Avoc(tokens=10, relevance=False).compress(clip(audio=0), query())
    assert any("importance says nothing" in note for note in silent.notes) and len(silent.indices) == 10


def test_importance_without_relevance_is_0_where_it_is_undefined():
    tokens = clip(blocks=6, audio=4)
    tokens = tokens.select(Selection(torch.nonzero((tokens.window != 2) | (tokens.modality == 0)).flatten()))
    got = scores(tokens.features, tokens.modality, tokens.window, query().embeddings, parts=(False, True))
    lonely = tokens.window == 2
    assert bool((got[lonely] == 0).all()) and bool((got[~lonely] != 0).all())
    assert float(got[(tokens.modality == 0) & ~lonely].std(unbiased=False)) == pytest.approx(1, abs=1e-4)  # not halved


def test_avoc_without_diversity_keeps_the_best_scores():
    tokens, question = clip(blocks=8, audio=9), query()
    score = scores(tokens.features, tokens.modality, tokens.window, question.embeddings).tolist()
    expected = []
    for m, k in ((0, 10), (1, 5)):
        own = tokens.indices(Modality(m)).tolist()
        expected += sorted(own, key=lambda i: (-score[i], i))[:k]
    assert Avoc(tokens=15, diversity=0.0).compress(tokens, question).indices.tolist() == sorted(expected)


def test_avoc_without_a_window_compares_the_whole_clip():
    """Equation 8: in one modality, at whatever distance; blocks 30 apart, so that no radius of the paper sees them."""
    tokens, question = clip(blocks=8, frames=2, audio=6), query()
    tokens = dataclasses.replace(tokens, window=30 * tokens.window)
    score = scores(tokens.features, tokens.modality, tokens.window, question.embeddings)
    expected = []
    for m, k in ((Modality.VIDEO, 16), (Modality.AUDIO, 8)):
        own = tokens.indices(m)
        picked = greedy_ta_mmr(grid_vectors(tokens.features[own]), score[own], tokens.window[own], k, 0.6, 10**9)
        expected += own[picked].tolist()
    kept = Avoc(tokens=24, diversity=0.6, radius=None).compress(tokens, question).indices.tolist()
    assert kept == sorted(expected) != Avoc(tokens=24, diversity=0.6).compress(tokens, question).indices.tolist()


@pytest.mark.parametrize("off", ["relevance", "importance"])
def test_a_stream_leaves_out_the_same_score(off):
    """With room for all nothing is let go early, and the stream's choice is that of the whole clip."""
    tokens, question = clip(blocks=6, frames=2, audio=8), query()
    k = 3 * len(tokens) // 4
    settings = {off: False, "tokens": k, "diversity": 0.0, "split": "proportional"}
    whole, stream = (cls(**settings).compress(tokens, question).indices for cls in (Avoc, AvocStream))
    assert torch.equal(whole, stream)
    both = AvocStream(**{**settings, off: True}).compress(tokens, question).indices
    assert not torch.equal(stream, both)


def test_what_avoc_cannot_leave_out_is_refused():
    with pytest.raises(ConfigError, match="nothing to choose by"):
        Avoc(relevance=False, importance=False)
    with pytest.raises(ConfigError, match=r"importance: .*has no such part"):
        Avoc(scorer="backbone", importance=False)
    asked = dataclasses.replace(query(), backbone=SimpleNamespace(depth=28))
    with pytest.raises(ConfigError, match=r"avoc\.relevance: .*has no such part; set scorer"):
        Avoc(relevance=False, tokens=9).compress(clip(), asked)  # auto, and no scorer beside the model
    Avoc(relevance=False, tokens=9, scorer="identity").compress(clip(), asked)
    with pytest.raises(ConfigError, match=r"radius: .*use avoc"):
        AvocStream(radius=None)
    with pytest.raises(ConfigError, match="radius"):
        Stream(Avoc(radius=None), query().embeddings, Projections(*[torch.eye(16)] * 4))


# ---- SEATS: table 5 ----

SHARES = {"retention_video": 0.30, "retention_audio": 0.65}
KINDS = {
    "Random": {"stage_one": "Random"},
    "w/o attention weighted": {"stage_one": "unweighted"},
    "VisionZip-om": {"stage_one": "VisionZip-om"},
    "OmniZip": {"stage_one": "OmniZip"},
    "w/o stage I": {"stage_one": "none", "drop_layers": "5-7-9"},
    "w/o stage II": {"drop_layers": "off"},
    "equal": {"decay": "equal"},
    "decouple": {"allocation": "decoupled"},
    "global": {"allocation": "global"},
    "w/o inter-window": {"allocation": "intra-window"},
    "w/o intra-window": {"allocation": "inter-window"},
    "w/o stage III": {"late_layer": "off"},
    "w/o stages II and III": {"drop_layers": "off", "late_layer": "off"},
}


@pytest.mark.parametrize("depth", [28, 48])
@pytest.mark.parametrize("kind", list(KINDS))
def test_layers_read_the_retention_on_average_whatever_is_left_out(kind, depth):
    tokens, method = uneven(1), Seats(**SHARES, **KINDS[kind])
    asked = dataclasses.replace(query(12), backbone=SimpleNamespace(depth=depth))
    now = entered = tokens.select(method.compress(tokens, asked))
    encoded, first = ([t.count(m) for m in Modality] for t in (tokens, entered))
    read, late = [0, 0], method.late_removal(depth)
    for layer in range(depth):
        read = [r + now.count(m) for r, m in zip(read, Modality, strict=True)]
        if layer in method.layers(depth):
            attention = torch.rand(len(now), generator=torch.Generator().manual_seed(layer)) / 100
            keep = method.prune(layer, view_of(now, attention, depth, layer, tuple(encoded), tuple(first)))
            now = now.select(Selection(keep))
        if layer == late:
            now = now.select(Selection(torch.zeros(0, dtype=torch.int64)))
    plan = method.plan(tokens)
    assert read[0] / depth == pytest.approx(plan.video, abs=1)
    assert read[1] / depth == pytest.approx(plan.audio, abs=1)


def test_unweighted_windivprune_is_the_greedy_without_saliency():
    tokens, method = uneven(2), Seats(retention=0.3, stage_one="unweighted")
    bare = dataclasses.replace(tokens, saliency=None)
    expected = []
    for kind in Modality:
        own = tokens.indices(kind).tolist()
        rows = [r for r in ([i for i in own if int(tokens.window[i]) == w] for w in range(7)) if r]
        enter = round(1.4 * getattr(method.plan(tokens), kind.name.lower()))
        for r, k in zip(rows, naive_spread(enter, [len(r) for r in rows]), strict=True):
            picks = range(len(r)) if k == len(r) else naive_picks(tokens.features[r], [1.0] * len(r), k) if k else []
            expected += [r[i] for i in picks]
    assert method.compress(bare, query(12)).indices.tolist() == sorted(expected)
    assert (
        method.compress(bare, query(12)).indices.tolist()
        != Seats(retention=0.3).compress(tokens, query(12)).indices.tolist()
    )


@pytest.mark.parametrize(
    ("name", "other"),
    [("Random", Random()), ("VisionZip-om", VisionZip(audio="select")), ("OmniZip", OmniZip())],
)
def test_another_stage_one_is_that_method_with_as_many_tokens(name, other):
    tokens, method = uneven(3), Seats(**SHARES, stage_one=name)
    counts = [round(1.4 * n) for n in (method.plan(tokens).video, method.plan(tokens).audio)]
    shares = [k / tokens.count(m) for k, m in zip(counts, Modality, strict=True)]
    alone = dataclasses.replace(other, retention_video=shares[0], retention_audio=shares[1])
    mine, theirs = (m.compress(tokens, query(12)) for m in (method, alone))
    assert torch.equal(mine.indices, theirs.indices)
    assert [int((tokens.modality[mine.indices] == m).sum()) for m in Modality] == counts
    assert (mine.features is None) == (theirs.features is None)
    assert mine.features is None or torch.equal(mine.features, theirs.features)
    assert method.needs == other.needs | {"last_query_attention"}


def test_without_stage_two_so_much_enters_as_the_late_layer_makes_up_for():
    tokens, method = clip(blocks=20, frames=2, audio=25), Seats(retention=0.5, drop_layers="off")
    half = len(tokens) / 2
    for depth, read in ((28, 23), (36, 29), (48, 39)):
        asked = dataclasses.replace(query(), backbone=SimpleNamespace(depth=depth))
        assert len(method.compress(tokens, asked).indices) == pytest.approx(half * depth / read, abs=1)
        assert method.layers(depth) == () and method.late_removal(depth) == read - 1
    assert sum(method.entering(300, 200)) == pytest.approx(250 * 28 / 23, abs=1)
    assert method.needs == {"saliency"}
    both = dataclasses.replace(method, late_layer="off")
    assert len(both.compress(tokens, query()).indices) == half


def test_without_stage_one_all_tokens_enter():
    tokens, method = uneven(4), Seats(**SHARES, stage_one="none", drop_layers="5-7-9")
    assert len(method.compress(tokens, query(12)).indices) == len(tokens) == sum(method.entering(*counts_of(tokens)))
    with pytest.raises(ConfigError, match="cannot reach the retention"):  # the paper's layers come too late for it
        Seats(**SHARES, stage_one="none").layers(28)


def counts_of(tokens):
    return tokens.count(Modality.VIDEO), tokens.count(Modality.AUDIO)


def test_equal_steps_are_14_112_84_56_hundredths_of_the_retention():
    """23 layers x 1.4 are 4.2 above 28, and 2 x 1 + 2 x 2 + 3 x 3 = 15 steps make up for it: 0.28 each."""
    tokens = clip(blocks=10, frames=4, audio=10)
    attention = torch.rand(len(tokens), generator=torch.Generator().manual_seed(0))
    method, n = Seats(retention=0.3, decay="equal"), counts_of(tokens)
    for layer, level in ((15, 1.12), (17, 0.84), (19, 0.56)):
        kept = method.prune(layer, view_of(tokens, attention, layer=layer, entered=n))
        expected = [round(level / 1.4 * count) for count in n]
        assert [int((tokens.modality[kept] == m).sum()) for m in Modality] == expected


def naive_allocation(tokens, attention, targets, kind):
    """Section 4.2.2 window by window, with one or both levels left out (table 5, rows 7 to 10)."""
    blocks = sorted({int(w) for w in tokens.window})
    rows = {
        (m, w): [i for i in range(len(tokens)) if int(tokens.modality[i]) == m and int(tokens.window[i]) == w]
        for m in (0, 1)
        for w in blocks
    }
    s = {}
    for m in (0, 1):
        there = [w for w in blocks if rows[m, w]]
        relevance = z([sum(float(attention[i]) for i in rows[m, w]) / len(rows[m, w]) for w in there])
        s.update({(m, w): float(v) for w, v in zip(there, torch.softmax(relevance, 0), strict=True)})
    kept = []
    for m in (0, 1):
        there = [w for w in blocks if rows[m, w]]
        weights = []
        for w in there:
            both = [s[k, w] for k in (0, 1) if (k, w) in s]
            joint, part = sum(both) / len(both), [s.get((k, w), 0.0) * targets[k] for k in (0, 1)]
            constant = [targets[k] for k in (0, 1)]
            weights.append(
                {
                    "decoupled": s[m, w],
                    "intra-window": part[m] / sum(part) / len(blocks),
                    "inter-window": constant[m] / sum(constant) * joint,
                }[kind]
            )
        quota = filled(targets[m], [len(rows[m, w]) for w in there], weights)
        for w, k in zip(there, quota, strict=True):
            kept += sorted(rows[m, w], key=lambda i: (-float(attention[i]), i))[:k]
    return sorted(kept)


def filled(total, sizes, weights):
    """One token each, then shares in the ratio of the weights up to a window's size; largest remainder."""
    base = 1 if total >= len(sizes) else 0
    low, high, left = 0.0, 1e9, total - base * len(sizes)
    for _ in range(300):
        level = (low + high) / 2
        share = [min(n - base, level * u) for n, u in zip(sizes, weights, strict=True)]
        low, high = (low, level) if sum(share) > left else (level, high)
    whole = [math.floor(x + 1e-7) for x in share]
    order = sorted(range(len(sizes)), key=lambda i: whole[i] - share[i])
    for i in [i for i in order if whole[i] + base < sizes[i]][: left - sum(whole)]:
        whole[i] += 1
    return [base + k for k in whole]


@pytest.mark.parametrize("kind", ["decoupled", "intra-window", "inter-window"])
@pytest.mark.parametrize("seed", range(3))
def test_the_levels_of_the_allocation_one_by_one(kind, seed):
    tokens = uneven(seed)
    attention = torch.rand(len(tokens), generator=torch.Generator().manual_seed(seed)) ** 3 / len(tokens)
    attention = attention * (1 + 4 * (tokens.window == seed)) * (1 + (tokens.modality == 1) * (tokens.window % 2))
    method, n = Seats(retention=0.3, allocation=kind), counts_of(tokens)
    kept = method.prune(17, view_of(tokens, attention, layer=17)).tolist()
    targets = [int((tokens.modality[kept] == m).sum()) for m in Modality]
    assert targets == [round(0.9298438 * 0.7949 * count) for count in n]
    assert kept == naive_allocation(tokens, attention, targets, kind)
    assert kept != Seats(retention=0.3).prune(17, view_of(tokens, attention, layer=17)).tolist()


def test_global_selection_ranks_a_modality_over_all_windows():
    tokens = uneven(5)
    attention = torch.rand(len(tokens), generator=torch.Generator().manual_seed(5)) * (1 + tokens.window)
    kept = Seats(retention=0.3, allocation="global").prune(19, view_of(tokens, attention, layer=19)).tolist()
    expected = []
    for m, n in zip(Modality, counts_of(tokens), strict=True):
        k = round(0.9298438 * 0.7949 * 0.2986 * n)
        expected += sorted(tokens.indices(m).tolist(), key=lambda i: (-float(attention[i]), i))[:k]
    assert kept == sorted(expected)
    assert len({int(w) for w in tokens.window[kept]}) < 7  # windows that the question does not attend to lose all


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"mode": "official", "stage_one": "Random"}, "stage_one"),
        ({"mode": "official", "decay": "equal"}, "decay"),
        ({"mode": "official", "allocation": "global"}, "allocation"),
        ({"mode": "official", "drop_layers": "off"}, "drop_layers"),
        ({"drop_layers": "off", "stage_one": "none"}, "stage_one"),
        ({"drop_layers": "off", "encoder": 1.3}, "encoder"),
        ({"stage_one": "none", "encoder": 1.3}, "encoder"),
        ({"drop_layers": "off", "decay": "equal"}, "decay"),
        ({"drop_layers": "off", "allocation": "global"}, "allocation"),
        ({"drop_layers": "off", "temperature": 1.0}, "temperature"),
        ({"allocation": "global", "temperature": 1.0}, "temperature"),
    ],
    ids=str,
)
def test_seats_settings_that_others_leave_nothing_to_do_for_are_refused(settings, named):
    with pytest.raises(ConfigError, match=f"^{named}: "):
        Seats(retention=0.3, **settings)


def test_without_drops_a_retention_above_what_layers_can_read_is_refused():
    tokens = clip(blocks=20, frames=2, audio=25)
    with pytest.raises(ConfigError, match="set late_layer to off"):
        Seats(retention=0.9, drop_layers="off").compress(tokens, query())
    with pytest.raises(ConfigError, match="the retention is 1"):
        Seats(retention=1.0, drop_layers="off")


# ---- OMAC: table 7 ----


@pytest.mark.parametrize("guidance", ["none", "visual"])
@pytest.mark.parametrize("seed", [7, 8])
def test_other_guidance_shares_sound_by_size_or_by_the_frames_scores(guidance, seed):
    tokens, question = ragged_for_omac(seed, blocks=12, sounds=60), query(seed=3)
    floor = {"floor": 0.1} if guidance == "visual" else {}
    method = Omac(retention_video=0.4, retention_audio=0.3, guidance=guidance, **floor)
    kept = method.compress(tokens, question).indices
    start, saliency = tokens.start_s.tolist(), tokens.saliency.tolist()
    pictures, sound = (tokens.indices(m).tolist() for m in Modality)
    starts = sorted({start[i] for i in pictures})
    groups = [[i for i in sound if max(0, sum(s <= start[i] for s in starts) - 1) == t] for t in range(len(starts))]
    weights = [1.0] * len(starts)
    if guidance == "visual":
        asked = question.embeddings.double().mean(0)
        frames = [[i for i in pictures if start[i] == s] for s in starts]
        score = [cosine(tokens.features[f].double().mean(0), asked) for f in frames]
        scaled = [(s - min(score)) / (max(score) - min(score)) for s in score]
        weights = [max(s, 0.1 * sum(scaled) / len(scaled)) for s in scaled]
    shares = naive_share(math.floor(0.3 * len(sound) + 0.5), [len(g) for g in groups], weights)
    expected = [i for g, b in zip(groups, shares, strict=True) for i in sorted(g, key=lambda i: (-saliency[i], i))[:b]]
    assert kept[tokens.modality[kept] == 1].tolist() == sorted(expected)
    full = dataclasses.replace(method, guidance="memory", floor=0.1).compress(tokens, question).indices
    assert kept[tokens.modality[kept] == 0].tolist() == full[tokens.modality[full] == 0].tolist()
    assert not torch.equal(kept, full)


def test_visual_guidance_without_a_question_is_none():
    tokens = ragged_for_omac(6)
    one, two = (Omac(retention=0.4, guidance=g).compress(tokens, query(tokens=0)).indices for g in ("visual", "none"))
    assert torch.equal(one, two)


def test_memory_tokens_and_merged_sound_go_one_by_one():
    tokens, question = clip(blocks=8, audio=7, seed=3), query(seed=12)
    kept = {
        (memory, merge): Omac(retention=0.4, memory=memory, merge_sound=merge).compress(tokens, question)
        for memory in (True, False)
        for merge in (True, False)
    }
    full, plain = kept[True, True], kept[False, False]
    sound = tokens.modality[full.indices] == 1
    assert plain.features is None and all(torch.equal(one.indices, full.indices) for one in kept.values())
    originals = tokens.features[full.indices]
    for (memory, merge), one in kept.items():
        if one.features is not None:
            assert torch.equal(one.features[~sound], (full.features if memory else originals)[~sound])
            assert torch.equal(one.features[sound], (full.features if merge else originals)[sound])
    assert not torch.equal(full.features[sound], originals[sound])
    assert not torch.equal(full.features[~sound], originals[~sound])
    assert "frame_memories" not in kept[False, True].report and "merged_sound" not in kept[True, False].report


# ---- OmniZip ----


def test_without_audio_guidance_windows_keep_the_same_share_of_their_pictures():
    tokens = uneven(6)
    tokens = dataclasses.replace(tokens, saliency=tokens.saliency * (1 + 9 * (tokens.window < 3)))
    method = OmniZip(retention_video=0.5, retention_audio=0.3, guidance="none")
    kept, guided = (
        m.compress(tokens, query(12)).indices for m in (method, dataclasses.replace(method, guidance="audio"))
    )
    pictures = [int(((tokens.modality == 0) & (tokens.window == w)).sum()) for w in range(7)]
    of_window = [int(((tokens.modality[kept] == 0) & (tokens.window[kept] == w)).sum()) for w in range(7)]
    there = [n for n in pictures if n]
    assert [k for k, n in zip(of_window, pictures, strict=True) if n] == naive_spread(sum(of_window), there)
    assert sum(of_window) == method.plan(tokens).video
    assert torch.equal(kept[tokens.modality[kept] == 1], guided[tokens.modality[guided] == 1])
    assert not torch.equal(kept, guided)


def test_settings_of_a_guidance_that_is_off_are_refused():
    with pytest.raises(ConfigError, match=r"discard_slope: .*guidance none"):
        OmniZip(guidance="none", discard_slope=0.5)
    with pytest.raises(ConfigError, match="guidance: mode official"):
        OmniZip(guidance="none", mode="official")
