"""EVS against a slow loop in both modes, the servers' counts, ties, new grids, and sound."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from omnicli.compress.methods.evs import EVS, released_count
from omnicli.compress.methods.uniform import evenly_spaced
from omnicli.errors import ConfigError, ModelError
from omnicli.testing.clips import clip, query
from omnicli.types import MediaTokens, Modality, Selection


def silent(frames: int, rows: int = 3, cols: int = 4, **fields) -> MediaTokens:
    return clip(blocks=frames, frames=1, audio=0, rows=rows, cols=cols, **fields)


def ragged(seed: int) -> MediaTokens:
    """Frames of two sizes that follow each other, an odd number of them, windows without sound or pictures."""
    parts = [
        clip(blocks=4, frames=3, audio=9, seed=seed, rows=3, cols=4),
        clip(blocks=3, frames=1, audio=4, seed=seed + 1, rows=2, cols=6),
    ]
    late = [dataclasses.replace(p, start_s=p.start_s + 8 * i, window=p.window + 4 * i) for i, p in enumerate(parts)]
    fields = [f.name for f in dataclasses.fields(MediaTokens) if f.name != "layer_features"]
    whole = MediaTokens(
        **{n: torch.cat([getattr(p, n) for p in late], -1 if n == "position_ids" else 0) for n in fields}
    )
    keep = ~((whole.window == 1) & (whole.modality == 1)) & ~((whole.window == 2) & (whole.modality == 0))
    return whole.select(Selection(torch.nonzero(keep).flatten()))


def slow_changes(tokens: MediaTokens, exact: bool) -> dict[int, float]:
    """Change of every picture token: against the same cell one grid earlier."""
    grids: dict[float, dict[tuple[int, int], int]] = {}
    for i in range(len(tokens)):
        if int(tokens.modality[i]) == 0:
            cell = int(tokens.row[i]), int(tokens.col[i])
            grids.setdefault(float(tokens.start_s[i]), {})[cell] = i
    out: dict[int, float] = {}
    before: dict[tuple[int, int], int] = {}
    for grid in grids.values():
        for cell, i in grid.items():
            out[i] = 255.0
            if list(grid) == list(before):
                x, y = tokens.features[i], tokens.features[before[cell]]
                if exact:
                    x, y = x.double(), y.double()
                    out[i] = 1 - float(x @ y) / ((float(x.norm()) + 1e-8) * (float(y.norm()) + 1e-8))
                    out[i] = 0.0 if out[i] < 2e-6 else out[i]
                else:
                    out[i] = float(1 - torch.nn.functional.cosine_similarity(x[None], y[None]))
        before = grid
    return out


def most_changed(change: dict[int, float], k: int) -> list[int]:
    return sorted(sorted(change, key=lambda i: (-change[i], i))[:k])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("retention", [0.9, 0.75, 0.6])
@pytest.mark.parametrize("seed", range(3))
def test_clean_is_the_slow_loop_and_meets_the_budget(seed, retention, dtype):
    tokens = ragged(seed)
    tokens = dataclasses.replace(tokens, features=tokens.features.to(dtype))
    method = EVS(retention=retention)
    chosen = method.compress(tokens, query())
    plan = method.plan(tokens)
    assert chosen.report["budget"] == plan.to_dict() and chosen.features is None
    change = slow_changes(tokens, exact=True)
    assert sum(c == 255 for c in change.values()) == 24, "the first grid and the first of the other size"
    expected = most_changed(change, plan.video) + tokens.indices(Modality.AUDIO).tolist()
    assert plan.audio == tokens.count(Modality.AUDIO) and chosen.indices.tolist() == sorted(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.8, 0.5, 0.1])
@pytest.mark.parametrize("seed", range(3))
def test_official_is_the_slow_loop_in_the_models_dtype(seed, share, dtype):
    tokens = ragged(seed)
    tokens = dataclasses.replace(tokens, features=tokens.features.to(dtype))
    chosen = EVS(mode="official", retention_video=share).compress(tokens, query())
    change = slow_changes(tokens, exact=False)
    k = max(12, int(len(change) * (1 - (1 - share))))
    expected = most_changed(change, k) + tokens.indices(Modality.AUDIO).tolist()
    assert chosen.indices.tolist() == sorted(expected)
    kept = tokens.select(chosen)
    assert chosen.report["budget"] == {"video": kept.count(Modality.VIDEO), "audio": kept.count(Modality.AUDIO)}


def test_the_servers_counts():
    assert released_count(100, 1, 0.1) == 9 and released_count(100, 1, 1 - 0.8) == 19
    assert released_count(64 * 144, 144, 1 - 0.99) == 144
    table = {0.1: 90, 0.2: 80, 0.3: 70, 0.4: 60, 0.5: 50, 0.6: 40, 0.7: 30, 0.75: 25, 0.8: 19, 0.9: 9, 0.99: 1}
    assert {q: released_count(100, 1, 1 - q) for q in table} == {q: max(1, int(100 * (1 - q))) for q in table} == table
    assert released_count(7, 7, 0.2) == 7 and released_count(0, 0, 0.5) == 0 and released_count(9, 3, 0.0) == 0
    official = EVS(mode="official", retention_video=0.1)
    film = silent(25, 2, 2)  # 100 tokens
    assert official.compress(film, query()).report["budget"] == {"video": 9, "audio": 0}
    sounding = clip(blocks=25, audio=3, rows=2, cols=2)
    assert official.compress(sounding, query()).report["budget"] == {"video": 9, "audio": 75}
    long = silent(64, 9, 16, width=4)
    chosen = EVS(mode="official", retention_video=0.01).compress(long, query())
    assert chosen.indices.tolist() == list(range(144))


@pytest.mark.parametrize("mode", ["clean", "official"])
def test_a_static_film_keeps_its_first_grid_and_then_the_earliest(mode):
    film = silent(5)
    still = dataclasses.replace(film, features=torch.eye(12, 16).repeat(5, 1))  # cosines are exact in any dtype
    chosen = EVS(mode=mode, retention=0.5).compress(still, query())
    assert chosen.indices.tolist() == list(range(30))


@pytest.mark.parametrize("mode", ["clean", "official"])
def test_what_moves_stays_and_a_grid_may_keep_nothing(mode):
    film = silent(5)
    features = film.features[:12].repeat(5, 1)
    features[26:29] = -features[26:29]  # cells 2 to 4 of the third grid turn round, and back in the fourth
    moved = dataclasses.replace(film, features=features)
    chosen = EVS(mode=mode, tokens=18).compress(moved, query())
    assert chosen.indices.tolist() == [*range(12), 26, 27, 28, 38, 39, 40]


def test_a_drift_is_compared_with_the_grid_before():
    film = silent(9, 1, 2)
    turn = torch.arange(9).float() * 0.1
    features = torch.zeros(18, 16)
    features[0::2, 0], features[0::2, 1] = turn.cos(), turn.sin()  # cell 0 turns by 0.1 a grid
    features[1::2, 2] = 1.0
    features[17] = 0  # a vector of zeros is at distance 1
    film = dataclasses.replace(film, features=features)
    assert EVS(tokens=3).compress(film, query()).indices.tolist() == [0, 1, 17]


def test_a_budget_below_the_first_grid_thins_it_evenly_in_space():
    film = silent(6, 8, 8)
    kept = film.select(EVS(tokens=16).compress(film, query()))
    assert bool((kept.start_s == 0).all())
    quarters = torch.bincount(4 * (kept.row // 2) + kept.col // 2, minlength=16)
    assert quarters.tolist() == [1] * 16
    cuts = ragged(0)
    new = sorted(i for i, c in slow_changes(cuts, exact=True).items() if c == 255)
    rows = torch.tensor(new)
    even = evenly_spaced(cuts.start_s[rows], cuts.row[rows], cuts.col[rows], 10)
    chosen = EVS(retention_video=10 / cuts.count(Modality.VIDEO), retention_audio=0.0, audio="select").compress(
        cuts, query()
    )
    assert chosen.indices.tolist() == sorted(rows[even].tolist())


def test_a_refresh_makes_grids_new():
    film = silent(6)  # a grid every 2 s
    still = dataclasses.replace(film, features=torch.eye(12, 16).repeat(6, 1))
    chosen = EVS(tokens=36, refresh_s=4.0).compress(still, query())
    assert chosen.indices.tolist() == [*range(12), *range(24, 36), *range(48, 60)]
    assert EVS(tokens=36, mode="official").compress(still, query()).indices.tolist() == list(range(36))
    with pytest.raises(ConfigError, match="refresh_s: the released code has no refresh"):
        EVS(tokens=36, refresh_s=4.0, mode="official")


def test_sound_is_compared_with_the_token_before_it_where_it_is_chosen():
    tokens = ragged(1)
    method = EVS(retention_video=0.5, retention_audio=0.4, audio="select")
    plan = method.plan(tokens)
    ears = tokens.indices(Modality.AUDIO).tolist()
    x = tokens.features.double()
    change = {i: 1 - float(torch.cosine_similarity(x[i], x[j], dim=0)) for j, i in itertools.pairwise(ears)}
    change[ears[0]] = 255.0
    expected = most_changed(change, plan.audio) + most_changed(slow_changes(tokens, exact=True), plan.video)
    assert method.compress(tokens, query()).indices.tolist() == sorted(expected)


EDGES = {
    "silent": clip(audio=0),
    "audio only": clip(frames=0),
    "one picture token": clip(blocks=1, audio=0, rows=1, cols=1),
    "one of each": clip(blocks=1, audio=1, rows=1, cols=1),
    "much sound": clip(audio=200),
    "bf16": clip(dtype=torch.bfloat16),
    "black": dataclasses.replace(clip(), features=torch.zeros_like(clip().features)),
    "ragged": ragged(2),
}


@pytest.mark.parametrize("kind", list(EDGES))
@pytest.mark.parametrize("audio", ["intact", "select"])
def test_edges(kind, audio):
    tokens, shared = EDGES[kind], {"split": "proportional"} if audio == "select" else {}
    for retention in (0.05, 0.3, 0.99):
        method = EVS(retention=retention, audio=audio, **shared)
        chosen = method.compress(tokens, query())
        kept = tokens.select(chosen)
        budget = {"video": kept.count(Modality.VIDEO), "audio": kept.count(Modality.AUDIO)}
        assert chosen.report["budget"] == budget == method.plan(tokens).to_dict()
        released = EVS(retention=retention, audio=audio, **shared, mode="official")
        assert len(tokens.select(released.compress(tokens, query()))) >= 1


@pytest.mark.parametrize("mode", ["clean", "official"])
def test_broken_embeddings_are_an_error(mode):
    tokens = clip()
    tokens.features[20, 2] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        EVS(retention=0.6, mode=mode).compress(tokens, query())


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf")])
def test_impossible_settings_are_config_errors(value):
    with pytest.raises(ConfigError, match="refresh_s: must be above 0"):
        EVS(refresh_s=value)
