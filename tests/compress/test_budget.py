"""Budgets: exact sums, sharing, rounding, and what is refused."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from omnicli.compress.budget import (
    Budget,
    Budgeted,
    intact,
    largest_remainder,
    parse_ratio,
    share_of,
    split_tokens,
    spread,
)
from omnicli.compress.methods.avoc import Avoc
from omnicli.compress.methods.random import Random
from omnicli.compress.published import reallocated
from omnicli.errors import ConfigError
from omnicli.testing.clips import clip


def test_the_papers_budget():
    assert split_tokens(10240, 50_400, 90_000, (2, 1)) == Budget(6827, 3413)


def test_a_short_modality_gives_its_rest_to_the_other():
    assert split_tokens(100, 20, 500, (2, 1)) == Budget(20, 80)
    assert split_tokens(100, 500, 20, (2, 1)) == Budget(80, 20)
    assert split_tokens(100, 0, 500, (2, 1)) == Budget(0, 100)
    assert split_tokens(100, 500, 0, (2, 1)) == Budget(100, 0)
    assert split_tokens(600, 500, 20, (2, 1)) == Budget(500, 20)


def test_every_modality_keeps_a_token_unless_k_or_the_split_says_otherwise():
    assert split_tokens(2, 50, 50, (1000, 1)) == Budget(1, 1)
    assert split_tokens(5, 50, 50, (1, 1000)) == Budget(1, 4)
    assert split_tokens(1, 50, 50, (2, 1)) == Budget(1, 0)
    assert split_tokens(5, 50, 50, (1, 0)) == Budget(5, 0)
    assert split_tokens(60, 50, 50, (1, 0)) == Budget(50, 10)


def test_sums_are_exact_everywhere():
    for k, v, a, w in itertools.product(
        (1, 2, 3, 7, 50), (0, 1, 4, 40), (0, 1, 5, 30), ((2, 1), (1, 1), (0, 1), (1, 9))
    ):
        if v + a == 0:
            continue
        budget = split_tokens(k, v, a, w)
        assert budget.total == min(k, v + a) and 0 <= budget.video <= v and 0 <= budget.audio <= a


def test_largest_remainder():
    assert largest_remainder(10, [1, 1, 1]) == [4, 3, 3]
    assert largest_remainder(10, [0.2, 0.5, 0.3]) == [2, 5, 3]
    assert largest_remainder(7, [0, 5]) == [0, 7]
    for total in range(40):
        assert sum(largest_remainder(total, [0.1, 3.7, 2.2, 1e-9])) == total
    with pytest.raises(ValueError):
        largest_remainder(3, [0, 0])


@pytest.mark.parametrize(
    ("retention", "n", "expected"), [(0.1, 100, 10), (0.25, 10, 3), (0.01, 3, 1), (1, 7, 7), (0, 7, 0), (0.5, 0, 0)]
)
def test_share_of(retention, n, expected):
    assert share_of(retention, n) == expected


def test_settings_come_to_budgets():
    tokens = clip(blocks=10, audio=5)  # 120 picture, 50 sound tokens
    assert Random(tokens=30).budget(tokens) == Budget(20, 10)
    assert Random(tokens=30, split="1:2").budget(tokens) == Budget(10, 20)
    assert Random(retention=0.1).budget(tokens) == Budget(11, 6)
    assert Random(retention=0.1, split="proportional").budget(tokens) == Budget(12, 5)
    assert Random(retention_video=0.1).budget(tokens) == Budget(12, 50)
    assert Random(retention_video=0.1, retention_audio=0.5).budget(tokens) == Budget(12, 25)
    assert Random().budget(tokens) == Budget(120, 50)
    assert Avoc(tokens=30, split="adaptive").budget(tokens, (1.0, 3.0)) == Budget(8, 22)
    assert Avoc(tokens=34, split="adaptive").budget(tokens, (0.0, 0.0)) == Budget(24, 10)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tokens": 0}, "tokens"),
        ({"tokens": -3}, "tokens"),
        ({"retention": 0.0}, "retention"),
        ({"retention": 1.1}, "retention"),
        ({"retention_video": -0.1}, "retention_video"),
        ({"retention_video": 0.0, "retention_audio": 0.0}, "leaves nothing"),
        ({"tokens": 5, "retention": 0.5}, "contradict"),
        ({"retention": 0.5, "retention_audio": 0.5}, "contradict"),
        ({"split": "2"}, "split"),
        ({"split": "a:b"}, "split"),
        ({"split": "0:0"}, "split"),
        ({"split": "-1:2"}, "split"),
        ({"split": "nan:1"}, "split"),
        ({"split": "adaptive"}, "no scores"),
    ],
    ids=str,
)
def test_impossible_budgets_are_config_errors(fields, named):
    with pytest.raises(ConfigError, match=named):
        Random(**fields)


def test_nothing_left_is_a_config_error():
    with pytest.raises(ConfigError, match="leaves nothing"):
        Random(retention_video=0.0).budget(clip(audio=0))
    with pytest.raises(ConfigError):
        split_tokens(0, 5, 5, (1, 1))


def test_alternatives_are_fields():
    names = set(Budgeted.__dataclass_fields__)
    assert all(name in names for group in Budgeted.exclusive_fields for name in group)
    assert parse_ratio("2:1") == (2.0, 1.0) and parse_ratio("0.5 : 1") == (0.5, 1.0)


def filled_by_bisection(total, sizes, weights):
    low, high = 0.0, 1e9
    for _ in range(200):
        level = (low + high) / 2
        filled = sum(min(n, level * w) for n, w in zip(sizes, weights, strict=True))
        low, high = (low, level) if filled > total else (level, high)
    return [min(n, level * w) for n, w in zip(sizes, weights, strict=True)]


def test_water_filling_is_exact_and_next_to_the_real_level():
    rng = random.Random(2)
    for case in range(200):
        sizes = [rng.randint(1, 30) for _ in range(rng.randint(1, 12))]
        weights = [rng.choice([0.01, 1, 5]) * rng.random() + 1e-3 for _ in sizes]
        total = rng.randint(0, sum(sizes))
        got = spread(total, torch.tensor(sizes), torch.tensor(weights, dtype=torch.float64)).tolist()
        assert sum(got) == total and all(0 <= g <= n for g, n in zip(got, sizes, strict=True))
        floor = 1 if total >= len(sizes) else 0
        assert min(got) >= floor
        real = filled_by_bisection(total - floor * len(sizes), [n - floor for n in sizes], weights)
        assert all(abs(g - floor - r) < 1 + 1e-6 for g, r in zip(got, real, strict=True)), case
        even = spread(total, torch.tensor(sizes)).tolist()
        assert sum(even) == total and even == spread(total, torch.tensor(sizes), torch.tensor(sizes)).tolist()


def test_water_filling_without_weight_or_room():
    sizes = torch.tensor([3, 0, 5])
    assert spread(0, sizes).tolist() == [0, 0, 0] and spread(99, sizes).tolist() == [3, 0, 5]
    assert spread(4, torch.tensor([2, 8]), torch.tensor([0.0, 0.0])).sum() == 4
    assert spread(9, torch.tensor([8, 8]), torch.tensor([0.0, 1.0])).tolist() == [1, 8]
    assert spread(12, torch.tensor([8, 8]), torch.tensor([0.0, 1.0])).tolist() == [4, 8]
    assert spread(3, torch.zeros(0, dtype=torch.int64)).tolist() == []


def test_sound_intact_leaves_pictures_their_floor():
    assert intact(Budget(30, 20), 100, 40) == Budget(10, 40)
    assert intact(Budget(30, 5), 100, 40) == Budget(5, 30)
    assert intact(Budget(30, 0), 100, 0) == Budget(30, 0)
    assert intact(Budget(0, 7), 0, 40) == Budget(0, 7)
    assert intact(Budget(90, 40), 100, 40) == Budget(90, 40)
    for n_video, n_audio, video, audio in itertools.product((0, 1, 7, 300), (0, 1, 9, 200), (0, 1, 5), (0, 1, 4)):
        given = Budget(min(video, n_video), min(audio, n_audio))
        out = intact(given, n_video, n_audio)
        assert out.total == given.total and out.video <= n_video and out.audio <= n_audio


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((0.30, 0.65), (0.2392, 1)),
        ((0.20, 0.55), (0.1219, 1)),
        ((0.10, 0.45), (0.05, 0.738)),
        ((0.06, 0.35), (0.05, 0.4076)),
    ],
)
def test_reallocation_gives_the_ratios_of_the_released_code(given, expected):
    """SEATS appendix B.2 at 288 picture and 50 sound tokens a window, 60 windows."""
    got = reallocated(*given, 288 * 60, 50 * 60)
    assert got == pytest.approx(expected, abs=6e-4)
