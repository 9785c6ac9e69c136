"""OmniZip against slow loops in both modes, the released counts, and what its rules cannot be applied to."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from omnicli.compress import redundancy
from omnicli.compress.budget import spread
from omnicli.compress.methods.omnizip import OmniZip, likeness_to_window
from omnicli.compress.redundancy import density_peaks, nearest
from omnicli.compress.released.omnizip import renormalised
from omnicli.errors import ConfigError, ModelError
from omnicli.testing.clips import clip, query
from omnicli.types import MediaTokens, Modality, Selection

every_mode = pytest.mark.parametrize("mode", ["clean", "official"])
PAIRS = [(0.4, 0.75), (0.3, 0.65), (0.12, 0.4), (0.5, 0.2)]


def choose(tokens: MediaTokens, video: float, audio: float, mode: str = "clean", **fields) -> Selection:
    method = OmniZip(retention_video=video, retention_audio=audio, mode=mode, **fields)
    return method.compress(tokens, query(tokens.features.shape[1]))


def without(tokens: MediaTokens, drop) -> MediaTokens:
    """The clip less every token for which ``drop(modality, window, number)`` holds."""
    kinds, windows = tokens.modality.tolist(), tokens.window.tolist()
    rows = [i for i in range(len(tokens)) if not drop(kinds[i], windows[i], i)]
    return tokens.select(Selection(torch.tensor(rows)))


def uneven(seed: int = 0) -> MediaTokens:
    """Windows with sound only, pictures only, little of either, and frames cut short."""
    tokens = clip(blocks=8, frames=3, audio=9, seed=seed, rows=3, cols=3)
    generator = torch.Generator().manual_seed(seed)
    gone = (torch.rand(len(tokens), generator=generator) < 0.15).tolist()

    def drop(kind, window, i):
        if window == 2:
            return kind == 0
        if window == 5:
            return kind == 1
        return (kind == 1 and gone[i]) or (window == 6 and kind == 0 and gone[i])

    return without(tokens, drop)


CLIPS = {
    "even": clip(blocks=7, frames=2, audio=11, seed=1),
    "one frame a window": clip(blocks=9, frames=1, audio=7, seed=2, rows=3, cols=5),
    "odd": clip(blocks=3, frames=5, audio=20, seed=3, rows=2, cols=6),
    "4:3": clip(blocks=3, frames=2, audio=25, seed=4, rows=10, cols=13),
    "uneven": uneven(),
}
every_clip = pytest.mark.parametrize("kind", list(CLIPS))


# --- slow loops -----------------------------------------------------------------------------------------------------


TABLES: dict[int, tuple[torch.Tensor, list[list[float]]]] = {}


def cos(tokens: MediaTokens, i: int, j: int) -> float:
    key = id(tokens.features)
    if key not in TABLES:
        x = tokens.features.double()
        x = x / (x.norm(dim=1, keepdim=True) + 1e-6)
        TABLES[key] = tokens.features, (x @ x.T).tolist()  # holding the tensor keeps its id from being used again
    return TABLES[key][1][i][j]


def largest(values: dict[int, float], k: int) -> list[int]:
    return sorted(sorted(values, key=lambda i: (-values[i], i))[:k])


def slow_spatial(tokens: MediaTokens, frame: list[int], k: int) -> list[int]:
    if len(frame) == 1:
        return frame[:k]
    distance = {i: {j: 1 - cos(tokens, i, j) for j in frame if j != i} for i in frame}
    density = {i: math.exp(-sum(sorted(d.values())[:5]) / min(5, len(d))) for i, d in distance.items()}
    score = {}
    for i, d in distance.items():
        denser = [d[j] for j in d if density[j] > density[i]]
        score[i] = density[i] * (min(denser) if denser else max(d.values()))
    return largest(score, k)


def slow_temporal(tokens: MediaTokens, frame: list[int], before: list[int], k: int) -> list[int]:
    return largest({i: -cos(tokens, i, j) for i, j in zip(frame, before, strict=True)}, k)


def slow_merge(
    tokens: MediaTokens, sound: list[int], anchors: list[int], seen: dict[int, list[int]], most: int, mode: str = ""
) -> dict[int, torch.Tensor]:
    """New features of the anchors; ``seen`` gives the picture tokens that rank each sound token.

    Without any, saliency ranks it in clean mode, and in official mode the cosine to its anchor.
    """
    taken: dict[int, list[int]] = {a: [] for a in anchors}
    for i in tokens.indices(Modality.AUDIO).tolist():
        if i not in sound:
            taken[max(anchors, key=lambda a: (cos(tokens, i, a), -a))].append(i)
    out = {}
    for a, mine in taken.items():
        if not mine:
            continue
        alone = {i: cos(tokens, i, a) if mode == "official" else float(tokens.saliency[i]) for i in mine}
        score = {i: max(cos(tokens, i, v) for v in seen[i]) if seen[i] else alone[i] for i in mine}
        best = sorted(mine, key=lambda i: (-score[i], i))[:most]
        mass = [math.exp(score[i]) for i in best]
        total = tokens.features[a].float().clone()
        for i, w in zip(best, mass, strict=True):
            total += w / sum(mass) * tokens.features[i].float()
        out[a] = total / 2
    return out


def slow_clean(tokens: MediaTokens, video: float, audio: float) -> tuple[list[int], dict[int, torch.Tensor]]:
    ears, eyes = tokens.indices(Modality.AUDIO).tolist(), tokens.indices(Modality.VIDEO).tolist()
    k_audio, k_video = (int(r * len(rows) + 0.5) for r, rows in ((audio, ears), (video, eyes)))
    n_anchors = int(0.05 * len(ears) + 0.5)
    dominant = largest({i: float(tokens.saliency[i]) for i in ears}, k_audio - n_anchors)
    pool = [i for i in ears if i not in dominant]
    anchors = [pool[(2 * j + 1) * len(pool) // (2 * n_anchors)] for j in range(n_anchors)]
    sound = sorted(dominant + anchors)
    window = tokens.window.tolist()
    by_window: dict[int, list[int]] = {}
    for i in eyes:
        by_window.setdefault(window[i], []).append(i)
    shown = {}
    for i in ears:
        earlier = [w for w in by_window if w <= window[i]]
        shown[i] = by_window[max(earlier) if earlier else min(by_window)]
    merged = slow_merge(tokens, sound, anchors, shown, 3)

    keep = {}
    for w in by_window:
        heard = [i for i in ears if window[i] == w]
        if heard:
            r = sum(i in sound for i in heard) / len(heard)
            keep[w] = 1 - min(0.75, max(0.35, 0.75 - 0.40 * r))
    mass = sum(len(by_window[w]) for w in keep)
    mean = sum(len(by_window[w]) * k for w, k in keep.items()) / mass
    weights = [keep.get(w, mean) / mean * len(rows) for w, rows in by_window.items()]
    sizes = torch.tensor([len(rows) for rows in by_window.values()])
    shares = spread(k_video, sizes, torch.tensor(weights, dtype=torch.float64)).tolist()
    kept = list(sound)
    for rows, share in zip(by_window.values(), shares, strict=True):
        film = frames_of(tokens, rows)
        seen = before = 0
        for t, frame in enumerate(film):
            seen += len(frame)
            k = math.ceil(share * seen / len(rows)) - before
            before += k
            previous = film[t - 1]
            places = [[(int(tokens.row[i]), int(tokens.col[i])) for i in f] for f in (frame, previous)]
            if t % 2 and places[0] == places[1]:
                kept += slow_temporal(tokens, frame, previous, k)
            else:
                kept += slow_spatial(tokens, frame, k)
    return sorted(kept), merged


def frames_of(tokens: MediaTokens, rows: list[int]) -> list[list[int]]:
    out: dict[float, list[int]] = {}
    for i in rows:
        out.setdefault(float(tokens.start_s[i]), []).append(i)
    return list(out.values())


def runs_of(rows: list[int]) -> list[list[int]]:
    out: list[list[int]] = []
    for i in rows:
        if out and out[-1][-1] == i - 1:
            out[-1].append(i)
        else:
            out.append([i])
    return out


def slow_renormalised(discard: list[float], sizes: list[int], target: float) -> list[float]:
    goal = target * sum(sizes)
    if len(discard) <= 2 or abs(sum(s * d for s, d in zip(sizes, discard, strict=True)) - goal) <= 1e-3:
        return discard
    frozen = {discard.index(min(discard)), discard.index(max(discard))}
    free = [i for i in range(len(discard)) if i not in frozen]
    out = list(discard)
    fixed = sum(sizes[i] * discard[i] for i in frozen)
    factor = (goal - fixed) / sum(sizes[i] * discard[i] for i in free)
    for i in free:
        out[i] = min(0.75, max(0.35, out[i] * factor))
    shift = (goal - sum(s * d for s, d in zip(sizes, out, strict=True))) / sum(sizes[i] for i in free)
    for i in free:
        out[i] = min(0.75, max(0.35, out[i] + shift))
    return out


def slow_official(tokens: MediaTokens, video: float, audio: float) -> tuple[list[int], dict[int, torch.Tensor]]:
    ears, eyes = tokens.indices(Modality.AUDIO).tolist(), tokens.indices(Modality.VIDEO).tolist()
    dominant = largest({i: float(tokens.saliency[i]) for i in ears}, round((audio - 0.05) * len(ears)))
    pool = [i for i in ears if i not in dominant]
    num = min(round(0.05 * len(ears)), len(pool))
    anchors = pool[:: max(1, len(pool) // num)][:num] if num else []
    sound = sorted(dominant + anchors)
    merged = slow_merge(tokens, sound, anchors, dict.fromkeys(ears, eyes), 3) if anchors else {}
    cells = len(frames_of(tokens, eyes)[0])
    seen, heard = runs_of(eyes), runs_of(ears)
    guided = min(len(seen), len(heard))
    discard = []
    for run in heard[:guided]:
        r = sum(i in sound for i in run) / len(run)
        discard.append(min(0.75, max(0.35, 0.75 - 0.40 * r)))
    discard = slow_renormalised(discard, [len(run) for run in seen[:guided]], 1 - video)
    discard += [1 - video] * (len(seen) - guided)
    kept = list(sound)
    for run, d in zip(seen, discard, strict=True):
        if len(run) < cells:
            kept += run
            continue
        for t in range(len(run) // cells):
            frame = run[t * cells : (t + 1) * cells]
            k = max(1, int(cells * (1 - d)))
            if t % 2:
                kept += slow_temporal(tokens, frame, run[(t - 1) * cells : t * cells], k)
            else:
                kept += slow_spatial(tokens, frame, k)
    return sorted(kept), merged


# --- equality -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("video", "audio"), PAIRS)
@every_clip
@every_mode
def test_choice_and_features_are_those_of_the_slow_loop(mode, kind, video, audio):
    tokens = CLIPS[kind]
    selection = choose(tokens, video, audio, mode)
    indices, merged = (slow_clean if mode == "clean" else slow_official)(tokens, video, audio)
    assert selection.indices.tolist() == indices
    kept = tokens.select(selection)
    counted = {"video": kept.count(Modality.VIDEO), "audio": kept.count(Modality.AUDIO)}
    assert selection.report["budget"] == counted
    if mode == "clean":
        sizes = [(video, tokens.count(Modality.VIDEO)), (audio, tokens.count(Modality.AUDIO))]
        assert list(counted.values()) == [int(r * n + 0.5) for r, n in sizes]
    features = kept.features
    for place, i in enumerate(indices):
        if i in merged:
            assert torch.allclose(features[place], merged[i], atol=1e-5)
        else:
            assert torch.equal(features[place], tokens.features[i])
    assert len(merged) > 0 or mode == "official"


def test_clean_budget_holds_below_what_the_released_clip_allows():
    tokens = CLIPS["even"]
    for share in (0.02, 0.06, 0.1, 0.2, 0.7, 0.9, 0.99):
        found = choose(tokens, share, 0.5).report["budget"]
        assert found == {"video": int(share * 168 + 0.5), "audio": 39}
    assert choose(tokens, 0.06, 0.5, "official").report["budget"]["video"] >= 0.25 * 168


# --- counts of the released code --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "ratio", "dominant", "anchors"),
    [(50, 0.75, 35, 2), (1600, 0.65, 960, 80), (50, 0.65, 30, 2), (30, 0.45, 12, 2), (5, 0.65, 3, 0)],
)
def test_official_sound_counts(n, ratio, dominant, anchors):
    tokens = clip(blocks=1, audio=n, frames=0)
    selection = choose(tokens, 0.5, ratio, "official")
    assert selection.report == {"budget": {"video": 0, "audio": dominant + anchors}, "anchors": anchors}


def test_official_pictures_follow_sound_within_the_clip_bounds():
    tokens = clip(blocks=2, frames=1, audio=20, rows=9, cols=16, seed=3)
    loud = torch.where(tokens.window == 0, tokens.saliency + 10, tokens.saliency)
    tokens = dataclasses.replace(tokens, saliency=loud)
    kept = tokens.select(choose(tokens, 0.3, 0.5, "official", group=0))
    sizes = [int(((kept.window == w) & (kept.modality == 0)).sum()) for w in (0, 1)]
    assert sizes == [93, 36]  # int(144 x 0.65) and int(144 x 0.25); two groups are not scaled to the target


def test_official_runs_without_sound_take_the_target_unclipped():
    tokens = without(clip(blocks=3, frames=1, audio=10, rows=9, cols=16), lambda kind, w, i: kind == 1 and w == 2)
    kept = tokens.select(choose(tokens, 0.1, 0.5, "official"))
    assert int(((kept.window == 2) & (kept.modality == 0)).sum()) == int(144 * (1 - (1 - 0.1))) == 14


def test_renormalising_hits_the_target_where_the_bounds_let_it():
    discard, sizes = torch.tensor([0.35, 0.4, 0.5, 0.6, 0.75], dtype=torch.float64), torch.tensor([3, 1, 2, 1, 3])
    out = renormalised(discard, sizes, 0.57, (0.35, 0.75))
    assert float((out * sizes).sum()) == pytest.approx(5.7)
    assert out[0] == 0.35 and out[4] == 0.75
    assert out.tolist() == pytest.approx(slow_renormalised(discard.tolist(), sizes.tolist(), 0.57))
    missed = renormalised(discard, sizes, 0.9, (0.35, 0.75))
    assert float((missed * sizes).sum()) < 9 and missed.tolist() == pytest.approx([0.35, 0.75, 0.75, 0.75, 0.75])
    assert renormalised(discard[:2], sizes[:2], 0.9, (0.35, 0.75)).tolist() == discard[:2].tolist()


# --- parts ----------------------------------------------------------------------------------------------------------


def test_sound_guides_the_pictures_of_its_window():
    tokens = clip(blocks=6, frames=2, audio=10)
    loud = torch.where(tokens.window == 3, tokens.saliency + 10, tokens.saliency)
    kept = dataclasses.replace(tokens, saliency=loud).select(
        choose(dataclasses.replace(tokens, saliency=loud), 0.4, 0.3)
    )
    sizes = [int(((kept.window == w) & (kept.modality == 0)).sum()) for w in range(6)]
    assert sizes[3] == max(sizes) and sizes[3] > sorted(sizes)[-2]


def test_windows_without_sound_get_the_even_share():
    tokens = without(clip(blocks=6, frames=2, audio=10), lambda kind, w, i: kind == 1 and w in (1, 4))
    kept = tokens.select(choose(tokens, 0.5, 0.3))
    sizes = [int(((kept.window == w) & (kept.modality == 0)).sum()) for w in range(6)]
    assert sum(sizes) == 72 and sizes[1] == sizes[4] == 12


@every_mode
def test_blocks_of_similarities_change_nothing(mode, monkeypatch):
    whole = choose(CLIPS["4:3"], 0.3, 0.5, mode)
    monkeypatch.setattr(redundancy, "QUERIES", 3)
    monkeypatch.setattr(redundancy, "KEYS", 5)
    monkeypatch.setattr(redundancy, "FRAMES_BYTES", 1)
    monkeypatch.setattr("omnicli.compress.methods.omnizip.FRAMES_BYTES", 1)
    parts = choose(CLIPS["4:3"], 0.3, 0.5, mode)
    assert torch.equal(whole.indices, parts.indices) and torch.allclose(whole.features, parts.features, atol=1e-5)


def test_nearest_takes_the_first_of_equal_ones(monkeypatch):
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0], [0.0, 0.0]])
    monkeypatch.setattr(redundancy, "KEYS", 1)
    cosine, place = nearest(x, torch.tensor([0, 3]), torch.tensor([1, 0, 2]))
    assert cosine.tolist() == pytest.approx([1.0, 0.0], abs=1e-5) and place.tolist() == [1, 0]


def test_sound_before_the_first_picture_is_compared_with_it():
    tokens = without(clip(blocks=3, audio=2), lambda kind, w, i: kind == 0 and w in (0, 2))
    rows, seen = tokens.indices(Modality.AUDIO), tokens.indices(Modality.VIDEO)
    assert torch.allclose(likeness_to_window(tokens, rows), nearest(tokens.features, rows, seen)[0], atol=1e-6)


def test_copies_count_as_one_peak_unless_as_released():
    x = torch.nn.functional.normalize(torch.eye(3)[[0, 0, 0, 1, 2]][None], dim=-1)
    assert density_peaks(x, 1)[0].tolist() == pytest.approx([1.0, 0.0, 0.0, math.exp(-1), math.exp(-1)])
    assert density_peaks(x, 1, ties_by_index=False)[0, :3].tolist() == [1.0, 1.0, 1.0]


def test_an_anchor_takes_up_at_most_so_many():
    tokens = CLIPS["4:3"]
    one, many = (choose(tokens, 0.3, 0.5, group=g) for g in (1, 1000))
    assert torch.equal(one.indices, many.indices) and not torch.allclose(one.features, many.features)
    none = choose(tokens, 0.3, 0.5, group=0)
    assert none.features is None and none.report["anchors"] == 0
    assert none.report["budget"] == one.report["budget"]
    assert choose(tokens, 0.3, 0.5, anchors=0.0).features is None


# --- edges ----------------------------------------------------------------------------------------------------------

EDGES = {
    "silent": clip(blocks=5, frames=2, audio=0),
    "sound only": clip(blocks=6, frames=0, audio=20),
    "one frame": clip(blocks=1, audio=0),
    "one window": clip(blocks=1, frames=3, audio=30),
    "one picture token": clip(blocks=1, audio=0, rows=1, cols=1),
    "one sound token": clip(blocks=1, frames=0, audio=1),
    "single cells": clip(blocks=5, frames=3, audio=30, rows=1, cols=1),
    "two cells": clip(blocks=3, frames=2, audio=30, rows=1, cols=2),
    "bf16": clip(blocks=4, frames=2, audio=20, dtype=torch.bfloat16),
    "uneven": uneven(7),
}


@pytest.mark.parametrize("kind", list(EDGES))
@every_mode
def test_edges_keep_something_and_report_it(mode, kind):
    tokens = EDGES[kind]
    copy = tokens.features.clone()
    for fields in ({"retention": 0.01}, {"retention": 0.3}, {"retention": 0.9}, {"tokens": 1}):
        method = OmniZip(mode=mode, **fields)
        selection = method.compress(tokens, query())
        kept = tokens.select(selection)
        assert len(kept) >= 1 and kept.features.dtype == tokens.features.dtype
        assert bool((selection.indices.diff() > 0).all()) and bool(torch.isfinite(kept.features).all())
        assert selection.report["budget"] == {
            "video": kept.count(Modality.VIDEO),
            "audio": kept.count(Modality.AUDIO),
        }
        if mode == "clean":
            assert selection.report["budget"] == method.plan(tokens).to_dict()
    assert torch.equal(copy, tokens.features)
    assert OmniZip(mode=mode, retention=1.0).compress(tokens, query()).indices.tolist() == list(range(len(tokens)))


@every_mode
def test_silent_films_are_thinned_evenly(mode):
    tokens = EDGES["silent"]
    kept = tokens.select(choose(tokens, 0.5, 0.5, mode))
    assert [int((kept.window == w).sum()) for w in range(5)] == [12] * 5


@every_mode
def test_without_pictures_saliency_ranks_what_is_merged_or_as_released_nearness_to_the_anchor(mode):
    tokens = EDGES["sound only"]
    selection = choose(tokens, 0.5, 0.5, mode)
    indices = selection.indices.tolist()
    changed = [i for place, i in enumerate(indices) if not torch.equal(selection.features[place], tokens.features[i])]
    ears = range(len(tokens))
    dominant = largest({i: float(tokens.saliency[i]) for i in ears}, 54)
    anchors = [i for i in indices if i not in dominant]
    merged = slow_merge(tokens, indices, anchors, {i: [] for i in ears}, 3, mode)
    assert len(anchors) == 6 and set(changed) == set(merged)
    for i, expected in merged.items():
        assert torch.allclose(selection.features[indices.index(i)], expected, atol=1e-5)


@every_mode
def test_black_and_identical_pictures(mode):
    tokens = CLIPS["even"]
    for value in (0.0, 1.0):
        features = torch.full_like(tokens.features, value)
        flat = dataclasses.replace(tokens, features=features)
        selection = choose(flat, 0.4, 0.5, mode)
        kept = flat.select(selection)
        assert bool(torch.isfinite(kept.features).all())
        first = kept.indices(Modality.VIDEO)[kept.window[kept.indices(Modality.VIDEO)] == 0]
        cells = (kept.col + 4 * kept.row)[first][kept.start_s[first] == 0].tolist()
        assert cells == list(range(len(cells)))  # ties go to the first


@every_mode
def test_a_modality_told_to_stay_whole_does(mode):
    tokens = CLIPS["even"]
    assert choose(tokens, 1.0, 0.5, mode).report["budget"]["video"] == 168
    ears = choose(tokens, 0.5, 1.0, mode)
    assert ears.report["budget"]["audio"] == 77 and ears.report["budget"]["video"] < 168
    assert ears.features is None and ears.report["anchors"] == 0
    gone = tokens.select(choose(tokens, 0.5, 0.0, mode))
    assert gone.count(Modality.AUDIO) == 0 and gone.count(Modality.VIDEO) > 0


@every_mode
def test_saliency_is_needed_only_to_choose_sound(mode):
    tokens = dataclasses.replace(CLIPS["even"], saliency=None)
    with pytest.raises(ModelError, match="omnizip: this model's encoders give no saliency"):
        choose(tokens, 0.4, 0.5, mode)
    assert len(choose(tokens, 0.4, 1.0, mode).indices) < len(tokens)
    assert OmniZip.needs == {"saliency"}


@every_mode
def test_a_picture_that_is_not_a_number_is_an_error(mode):
    for row in (0, 13):
        tokens = dataclasses.replace(CLIPS["even"], features=CLIPS["even"].features.clone())
        tokens.features[row] = torch.nan
        with pytest.raises(ModelError, match="not finite"):
            choose(tokens, 0.4, 0.5, mode)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"anchors": 1.0}, "anchors: must be at least 0 and below 1"),
        ({"anchors": -0.1}, "anchors: must"),
        ({"group": -1}, "group: must not be negative"),
        ({"discard_min": 0.8}, "discard_min: 0 <= discard_min <= discard_max"),
        ({"discard_max": 1.2}, "discard_min: 0 <= discard_min <= discard_max"),
        ({"neighbours": 0}, "neighbours: must be at least 1"),
    ],
)
def test_wrong_settings(fields, line):
    with pytest.raises(ConfigError, match=line):
        OmniZip(**fields)
