"""DyCoke against slow loops, the counts of the released code, and clips that are too short or of two sizes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from omnicli.compress.groups import counterparts, frames
from omnicli.compress.methods.dycoke import DyCoke, partners
from omnicli.compress.ops import distances
from omnicli.errors import ConfigError, ModelError
from omnicli.testing.clips import clip, query
from omnicli.types import MediaTokens, Modality, Selection

MODES = ("clean", "official")
every_mode = pytest.mark.parametrize("mode", MODES)


def choose(tokens: MediaTokens, share: float, mode: str = "clean") -> Selection:
    return DyCoke(retention_video=share, mode=mode).compress(tokens, query(tokens.features.shape[1]))


def frame_list(tokens: MediaTokens) -> list[list[int]]:
    """The frames' tokens, one list per start time, in reading order."""
    out: dict[float, list[int]] = {}
    for i in tokens.indices(Modality.VIDEO).tolist():
        out.setdefault(float(tokens.start_s[i]), []).append(i)
    return list(out.values())


def cells(tokens: MediaTokens, frame: list[int]) -> list[tuple[int, int]]:
    return [(int(tokens.row[i]), int(tokens.col[i])) for i in frame]


def similarity(tokens: MediaTokens, i: int, j: int) -> float:
    return float(torch.nn.functional.cosine_similarity(tokens.features[i].float(), tokens.features[j].float(), dim=0))


def least_similar(tokens: MediaTokens, frame: list[int], other: list[int], k: int) -> list[int]:
    return sorted(frame, key=lambda i: similarity(tokens, i, other[frame.index(i)]))[:k]


def compared(tokens: MediaTokens, film: list[list[int]]) -> dict[int, int]:
    """Frame -> frame it is compared with: 1 and 2 with 0, 3 with 2, in groups of four."""
    out = {}
    for begin in range(0, len(film), 4):
        for offset, back in ((1, 1), (2, 2), (3, 1)):
            f = begin + offset
            if f < len(film) and cells(tokens, film[f]) == cells(tokens, film[f - back]):
                out[f] = f - back
    return out


def naive_clean(tokens: MediaTokens, share: float) -> list[int]:
    film = frame_list(tokens)
    other = compared(tokens, film)
    n = sum(map(len, film))
    left = max(0, int(share * n + 0.5) - sum(len(film[f]) for f in range(len(film)) if f not in other))
    # One token at a time to the thinned frame that has the smallest part of its cells so far.
    quota = dict.fromkeys(other, 0)
    for _ in range(left):
        quota[min(other, key=lambda f: (quota[f] / len(film[f]), f))] += 1
    kept = [i for f, frame in enumerate(film) if f not in other for i in frame]
    for f, reference in other.items():
        kept += least_similar(tokens, film[f], film[reference], quota[f])
    return sorted(kept + tokens.indices(Modality.AUDIO).tolist())


def naive_official(tokens: MediaTokens, share: float) -> list[int]:
    """The released routine: pairs first, then every fourth frame with the one after next, stopping early."""
    film = frame_list(tokens)
    n, k = len(film), 1 - (4 * share - 1) / 3
    kept: dict[int, list[int]] = {}
    for f in range(0, n - 1, 2):
        kept[f] = film[f]
        kept[f + 1] = least_similar(tokens, film[f + 1], film[f], int((1 - k) * len(film[f + 1])))
    for f in range(0, n - 4, 4):
        kept[f + 2] = least_similar(tokens, film[f + 2], film[f], int((1 - k) * len(film[f + 2])))
    chosen = [i for f in kept.values() for i in f]
    return sorted(chosen + tokens.indices(Modality.AUDIO).tolist())


@pytest.mark.parametrize("share", [0.25, 0.31, 0.5, 0.83])
def test_both_modes_are_the_slow_loops(share):
    for count in (1, 2, 3, 4, 5, 6, 7, 8, 9, 13):
        tokens = clip(blocks=count, frames=1, audio=2, rows=3, cols=5, seed=count)
        assert choose(tokens, share).indices.tolist() == naive_clean(tokens, share), count
        if count > 4:
            assert choose(tokens, share, "official").indices.tolist() == naive_official(tokens, share), count


@pytest.mark.parametrize(("count", "share"), [(64, 17 / 64), (16, 5 / 16), (8, 3 / 8), (9, 2 / 9)])
def test_official_keeps_more_than_a_quarter_or_loses_the_last_frame(count, share):
    tokens = clip(blocks=count, audio=0)
    assert choose(tokens, 0.25, "official").report["budget"]["video"] == share * len(tokens)


@pytest.mark.parametrize(("share", "thinned"), [(0.25, 0), (0.2929, 8), (0.475, 43)])
def test_official_cells_of_a_thinned_frame(share, thinned):
    tokens = clip(blocks=5, audio=0, rows=9, cols=16)
    kept = tokens.select(choose(tokens, share, "official"))
    sizes = [int((kept.window == w).sum()) for w in range(5)]
    assert sizes == [144, thinned, thinned, thinned, 0]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_official_on_films_that_stop_the_released_code(count):
    tokens = clip(blocks=count, audio=0)
    kept = tokens.select(choose(tokens, 0.25, "official"))
    assert kept.window.tolist() == [0] * 12


@pytest.mark.parametrize("share", [0.25, 0.26, 0.4, 0.7, 0.99])
def test_clean_meets_the_total_where_whole_groups_allow_it(share):
    tokens = clip(blocks=8, frames=1, audio=3, rows=10, cols=13)
    assert choose(tokens, share).report["budget"] == {"video": int(share * 8 * 130 + 0.5), "audio": 24}


def test_clean_keeps_the_frames_that_must_stay_whole_where_they_are_more():
    tokens = clip(blocks=5, audio=0)
    kept = tokens.select(choose(tokens, 0.25))
    assert kept.window.tolist() == [0] * 12 + [4] * 12


@every_mode
def test_sound_stays_whole(mode):
    tokens = clip(blocks=7)
    assert tokens.select(choose(tokens, 0.25, mode)).count(Modality.AUDIO) == tokens.count(Modality.AUDIO)
    only = clip(frames=0)
    assert choose(only, 0.25, mode).indices.tolist() == list(range(len(only)))


@every_mode
def test_frames_of_another_grid_stay_whole(mode):
    small, large = clip(blocks=6, audio=0), clip(blocks=6, audio=0, rows=4, cols=3)
    turned = small.window % 4 == 1
    tokens = dataclasses.replace(
        small, row=torch.where(turned, large.row, small.row), col=torch.where(turned, large.col, small.col)
    )
    kept = tokens.select(choose(tokens, 0.25, mode))
    assert sorted(set(kept.window.tolist())) == [0, 1, 4, 5]
    fewer = tokens.select(Selection(torch.cat([torch.arange(12), torch.arange(15, 72)])))
    kept = fewer.select(choose(fewer, 0.25, mode))
    assert int((kept.window == 1).sum()) == 9


@every_mode
def test_identical_black_and_bf16_frames(mode):
    tokens = clip(blocks=6, audio=1, dtype=torch.bfloat16)
    for features in (torch.zeros_like(tokens.features), torch.ones_like(tokens.features)):
        flat = dataclasses.replace(tokens, features=features)
        kept = flat.select(choose(flat, 0.5, mode))
        second = kept.col[kept.window == 1][:-1] + 4 * kept.row[kept.window == 1][:-1]
        assert second.tolist() == list(range(second.numel()))
    assert len(tokens.select(choose(tokens, 0.5, mode))) < len(tokens)


@every_mode
def test_repeats_of_the_first_frame_go_first(mode):
    tokens = clip(blocks=6, audio=0)
    features = tokens.features.clone()
    features[12:20] = features[0:8]
    tokens = dataclasses.replace(tokens, features=features)
    kept = choose(tokens, 0.5, mode).indices
    second = [i for i in kept.tolist() if 12 <= i < 24]
    assert len(second) == 3 and set(second) < {20, 21, 22, 23}


@every_mode
def test_not_a_number_is_an_error(mode):
    tokens = clip(blocks=6)
    tokens.features[20] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        choose(tokens, 0.5, mode)


def test_settings():
    assert DyCoke.with_retention(0.1).retention == 0.25 and DyCoke.with_retention(0.6).retention == 0.6
    with pytest.raises(ConfigError, match="contradicts"):
        DyCoke(retention=0.5, retention_video=0.5)
    assert DyCoke.with_retention(0.6, mode="official").mode == "official"
    for share in (0.2, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="retention_video: must be between 0"):
            DyCoke(retention_video=share)


@every_mode
def test_a_share_of_one_keeps_everything(mode):
    tokens = clip(blocks=5)
    selection = choose(tokens, 1.0, mode)
    assert selection.features is None and selection.indices.tolist() == list(range(len(tokens)))


def test_partners_counterparts_and_distances():
    assert partners(7).tolist() == [-1, 0, 0, 2, -1, 4, 4]
    assert partners(8, skip_last=True).tolist() == [-1, 0, 0, 2, -1, 4, -1, 6]
    assert partners(0).tolist() == []
    tokens = clip(blocks=2, audio=1, rows=1, cols=2)
    pictures = frames(tokens)
    assert counterparts(tokens, pictures, torch.tensor([-1, 0])).tolist() == [-1, -1, 0, 1]
    found = distances(tokens.features, torch.tensor([0, 1]), torch.tensor([3, 1]))
    assert found.tolist() == [pytest.approx(1 - similarity(tokens, 0, 3), abs=1e-6), 0.0]


@pytest.mark.parametrize("cell", ["row", "col"])
def test_a_frame_on_other_cells_stays_whole(cell):
    tokens = clip(blocks=2, audio=0)
    moved = getattr(tokens, cell).clone()
    moved[len(tokens) // 2 :] += 1
    other = dataclasses.replace(tokens, **{cell: moved})
    assert len(DyCoke().compress(tokens, query()).indices) < len(tokens)
    assert len(DyCoke().compress(other, query()).indices) == len(tokens)
