"""SEATS's layer schedule: the published ratios, the mean over the layers, and any depth."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction

import pytest

from omnicli.compress.schedule import Schedule, auto_layers, official, solve
from omnicli.errors import ConfigError

SEVEN, THIRTY = (28, (15, 17, 19), 22), (48, (26, 30, 34), 38)


def mean(schedule: Schedule, depth: int) -> float:
    """Walk through the layers as tokens do."""
    level, total = schedule.encoder, 0.0
    for layer in range(depth):
        total += level
        if layer in schedule.drops:
            level *= schedule.keep[schedule.drops.index(layer)]
        if layer == schedule.late:
            level = 0.0
    return total / depth


def by_equations(depth, first, second, third, late, encoder, r):
    """Equations 2 and 3 with the paper's boundaries, which name the first layer of the second and later levels."""
    e = math.e
    c = first + 1 + e * second + e * e * third - (1 + e + e * e) * late
    delta = (depth - late * encoder + encoder) * r / c
    levels = [encoder * r]
    for i in range(3):
        levels.append(levels[-1] - delta * e**i)
    return c, delta, levels


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (SEVEN, (0.9298, 0.7949, 0.2986)),
        (THIRTY, (0.9255, 0.7813, 0.2390)),
        ((28, (15, 17, 19), None), (0.9186, 0.7592, 0.1377)),
    ],
)
def test_the_published_ratios(layers, expected):
    assert official(*layers).keep == expected
    exact = solve(*layers)
    assert exact.keep == pytest.approx(expected, abs=5.0001e-5)
    assert exact.drops == layers[1] and exact.late == layers[2] and exact.encoder == 1.4


@pytest.mark.parametrize("r", [0.06, 0.3, 0.65])
def test_the_closed_form_is_equation_3(r):
    c, delta, levels = by_equations(28, 16, 19, 21, 24, 1.4, r)
    assert c == pytest.approx(-42.759, abs=5e-4)
    if r == 0.3:
        assert delta == pytest.approx(0.02947, abs=5e-6)
    found = [level * r for level in solve(*SEVEN).levels(28)]
    assert found == pytest.approx([levels[0]] * 16 + [levels[1]] * 2 + [levels[2]] * 2 + [levels[3]] * 3 + [0] * 5)
    _, _, levels = by_equations(48, 27, 32, 36, 40, 1.4, r)
    assert [levels[i + 1] / levels[i] for i in range(3)] == pytest.approx(solve(*THIRTY).keep)


def test_levels_relative_to_the_retention():
    levels = [round(x, 4) for x in solve(*SEVEN).levels(28)]
    assert levels == [1.4] * 16 + [1.3018] * 2 + [1.0348] * 2 + [0.3090] * 3 + [0] * 5
    levels = solve(*THIRTY).levels(48)
    assert levels == pytest.approx([1.4] * 27 + [1.2957] * 4 + [1.0123] * 4 + [0.2420] * 4 + [0] * 9, abs=1e-4)


@pytest.mark.parametrize("encoder", [1.25, 1.30, 1.35, 1.40, 1.45])
def test_the_encoder_levels_of_the_papers_sweep_can_all_be_reached(encoder):
    assert mean(solve(*SEVEN, encoder=encoder), 28) == pytest.approx(1, abs=1e-13)


def test_the_mean_is_the_retention_exactly():
    chance, met = random.Random(0), 0
    for _ in range(300):
        depth = chance.randint(3, 90)
        picks = sorted(chance.sample(range(depth - 1), min(depth - 1, chance.randint(1, 6))))
        late = picks.pop() if len(picks) > 1 and chance.random() < 0.5 else None
        encoder, growth = chance.uniform(1, 2), chance.choice([1.0, math.e, 0.5, 3.0])
        try:
            schedule = solve(depth, picks, late, encoder, growth)
        except ConfigError:
            continue
        met += 1
        assert mean(schedule, depth) == pytest.approx(1, abs=1e-12)
        assert math.fsum(schedule.levels(depth)) / depth == pytest.approx(1, abs=1e-12)
        assert all(0 <= keep <= 1 for keep in schedule.keep) and len(schedule.keep) == len(picks)
        levels = [schedule.encoder * math.prod(schedule.keep[:i]) for i in range(len(picks) + 1)]
        steps = [a - b for a, b in itertools.pairwise(levels)]
        assert steps == pytest.approx([steps[0] * growth**i for i in range(len(steps))], abs=1e-9)
    assert met > 60


def test_it_is_exact_in_rational_numbers_too():
    # Equal steps, so that all numbers are rational: 10 layers, levels x, x - d, x - 2d over 4, 2 and 2 layers.
    schedule = solve(10, (3, 5), 7, encoder=1.5, growth=1)
    encoder = Fraction(3, 2)
    step = (8 * encoder - 10) / (2 * 1 + 2 * 2)
    assert schedule.keep == pytest.approx(
        [float((encoder - step) / encoder), float((encoder - 2 * step) / (encoder - step))]
    )


def test_the_official_bisection_rounds_and_nothing_more():
    for depth in range(4, 65):
        drops, late = auto_layers(depth)
        exact, rounded = solve(depth, drops, late), official(depth, drops, late)
        assert rounded.keep == tuple(round(k, 4) for k in exact.keep)
        assert mean(rounded, depth) == pytest.approx(1, abs=2e-4)


# ---- layers ----


def test_the_papers_layers_come_from_the_depth():
    assert auto_layers(28) == ((15, 17, 19), 22)
    assert auto_layers(48) == ((26, 30, 34), 38)
    assert auto_layers(36) == ((19, 22, 25), 28)


def test_layers_fit_every_depth_and_reach_the_retention():
    moved = []
    for depth in range(4, 129):
        drops, late = auto_layers(depth)
        assert len(drops) == (2 if depth == 4 else 3)
        chain = [*drops, late]
        assert chain == sorted(set(chain)) and chain[0] >= 0 and chain[-1] < depth - 1
        if depth >= 11:
            nearest = [math.floor(Fraction(depth * part, 48) + Fraction(1, 2)) - 1 for part in (27, 31, 35, 39)]
            if chain != nearest:
                moved.append(depth)
                assert chain == [layer - 1 for layer in nearest[:3]] + nearest[3:]
        schedule = solve(depth, drops, late)
        assert mean(schedule, depth) == pytest.approx(1, abs=1e-12)
        assert all(0.1 < keep < 1 for keep in schedule.keep)
    assert moved == [12, 24]


def test_tiny_depths_have_as_many_drops_as_fit():
    assert auto_layers(5) == ((0, 1, 2), 3)
    assert auto_layers(4) == ((0, 1), 2)
    assert auto_layers(3) == ((0, 1), None)
    assert auto_layers(2) == ((0,), None)
    assert auto_layers(1) == ((), None)
    for depth in (1, 2, 3):
        assert mean(solve(depth, *auto_layers(depth)), depth) == pytest.approx(1)


# ---- what cannot be ----


def test_36_layers_with_the_layers_of_28_are_out_of_reach():
    for find in (solve, official):
        with pytest.raises(ConfigError, match=r"0\.745 to 0\.894 times") as raised:
            find(36, (15, 17, 19), 22)
        # 23 of 36 layers read at most 1.4 R: what the released code spends there without saying so is 0.268 at 0.30.
        assert round(0.30 * 1.4 * 23 / 36, 3) == 0.268
        low, high = (float(x) for x in str(raised.value).split("encoder from ")[1].split(",")[0].split(" to "))
        for encoder in (low + 1e-3, high - 1e-3):
            assert mean(solve(36, (15, 17, 19), 22, encoder), 36) == pytest.approx(1)
        for encoder in (low - 1e-3, high + 1e-3):
            with pytest.raises(ConfigError):
                solve(36, (15, 17, 19), 22, encoder)


def test_the_ends_of_the_reach():
    # All 4 layers at 1 R: nothing needs to go.
    assert solve(4, (1,), None, encoder=1.0).keep == (1.0,)
    # 2 of 4 layers at 2 R: nothing may stay.
    assert solve(4, (1,), None, encoder=2.0).keep == (0.0,)
    with pytest.raises(ConfigError, match=r"use an encoder from 1\.000 to 2\.000"):
        solve(4, (1,), None, encoder=2.01)
    with pytest.raises(ConfigError, match="cannot reach"):
        solve(4, (1,), None, encoder=0.99)


def test_no_drops():
    assert solve(28, (), None) == Schedule((), None, (), 1.0)
    late = solve(28, (), 22)
    assert late.keep == () and late.encoder == pytest.approx(28 / 23) and mean(late, 28) == pytest.approx(1)
    # The released code leaves the level as it is and so misses the retention.
    assert official(28, (), 22) == Schedule((), 22, (), 1.4)


@pytest.mark.parametrize(
    ("drops", "late"),
    [
        ((3, 3), None),
        ((5, 2), None),
        ((2,), 2),
        ((4,), 3),
        ((-1,), None),
        ((9,), None),
        ((12,), None),
        ((2,), 10),
        ((), -1),
    ],
)
def test_layers_that_make_no_sense(drops, late):
    for find in (solve, official):
        with pytest.raises(ConfigError, match="must ascend"):
            find(10, drops, late)


@pytest.mark.parametrize(
    ("encoder", "growth"), [(0.0, 2.0), (-1.0, 2.0), (math.inf, 2.0), (math.nan, 2.0), (1.4, 0.0), (1.4, math.nan)]
)
def test_numbers_that_make_no_sense(encoder, growth):
    with pytest.raises(ConfigError, match="must be a number above 0"):
        solve(28, (15, 17, 19), 22, encoder, growth)
