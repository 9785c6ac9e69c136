"""Budgets: exact sums, sharing, rounding, and what is refused."""

from __future__ import annotations

import itertools

import pytest

from omnicli.compress.avoc import Avoc
from omnicli.compress.budget import Budget, Budgeted, largest_remainder, parse_ratio, share_of, split_tokens
from omnicli.compress.random import Random
from omnicli.errors import ConfigError
from tests.compress.clips import clip


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
    tokens = clip(blocks=10, sounds=5)  # 120 picture, 50 sound tokens
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
        Random(retention_video=0.0).budget(clip(sounds=0))
    with pytest.raises(ConfigError):
        split_tokens(0, 5, 5, (1, 1))


def test_alternatives_are_fields():
    names = set(Budgeted.__dataclass_fields__)
    assert all(name in names for group in Budgeted.alternatives for name in group)
    assert parse_ratio("2:1") == (2.0, 1.0) and parse_ratio("0.5 : 1") == (0.5, 1.0)
