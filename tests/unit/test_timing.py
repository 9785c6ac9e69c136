"""The stage clock: what is counted where, on a clock that the tests turn by hand."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from omnicli import timing
from omnicli.timing import STAGES, StageClock


class Hand:
    """A clock that goes on only when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> Hand:
    made = Hand()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=made.perf_counter))
    return made


def test_stages_and_the_rest_add_up_to_the_wall_time(hand):
    clock = StageClock()
    hand.wait(0.5)
    with clock.stage("probe"):
        hand.wait(1.0)
    hand.wait(0.25)
    for _ in range(2):
        with clock.stage("prefill"):
            hand.wait(2.0)
    stages, wall = clock.report()
    assert wall == pytest.approx(5.75)
    assert stages["probe"] == pytest.approx(1.0)
    assert stages["prefill"] == pytest.approx(4.0)
    assert stages["other"] == pytest.approx(0.75)
    assert sum(stages.values()) == pytest.approx(wall)
    assert set(stages) == {*STAGES, "other"}


def test_on_the_real_clock_they_add_up_within_five_percent():
    clock = StageClock()
    begin = time.perf_counter()
    with clock.stage("encode_video"):
        with clock.stage("preprocess"):
            time.sleep(0.03)
        time.sleep(0.03)
    time.sleep(0.03)
    stages, wall = clock.report()
    measured = time.perf_counter() - begin
    assert sum(stages.values()) == pytest.approx(wall, rel=0.05)
    assert 0.09 <= wall <= measured + 0.01
    assert min(stages["encode_video"], stages["preprocess"], stages["other"]) >= 0.029


def test_a_stage_inside_another_is_taken_out_of_the_outer_one(hand):
    clock = StageClock()
    with clock.stage("preprocess"):
        hand.wait(1.0)
        with clock.stage("decode_audio"):
            hand.wait(3.0)
            with clock.stage("probe"):
                hand.wait(0.5)
        with clock.stage("decode_audio"):
            hand.wait(2.0)
    stages, wall = clock.report()
    assert stages["preprocess"] == pytest.approx(1.0)
    assert stages["decode_audio"] == pytest.approx(5.0)
    assert stages["probe"] == pytest.approx(0.5)
    assert stages["other"] == pytest.approx(0.0)
    assert sum(stages.values()) == pytest.approx(wall) == pytest.approx(6.5)


def test_selection_inside_the_llm_stays_counted_in_its_stage(hand):
    clock = StageClock()
    with clock.stage("prefill"):
        hand.wait(2.0)
        with clock.stage("select_in_llm"):
            hand.wait(1.0)
    stages, wall = clock.report()
    assert stages["select_in_llm"] == pytest.approx(1.0)
    assert stages["prefill"] == pytest.approx(3.0)
    assert sum(s for name, s in stages.items() if name != "select_in_llm") == pytest.approx(wall)


def test_another_threads_stage_is_busy_but_covers_nothing(hand):
    clock = StageClock()

    def decode() -> None:
        with clock.stage("decode_video"):
            hand.wait(4.0)

    thread = threading.Thread(target=decode)
    with clock.stage("encode_video"):
        hand.wait(1.0)
    thread.start()
    thread.join()
    stages, wall = clock.report()
    assert wall == pytest.approx(5.0)
    assert stages["decode_video"] == pytest.approx(4.0)
    assert stages["other"] == pytest.approx(4.0), "the calling thread was in no stage meanwhile"


def test_another_threads_stage_is_not_taken_out_of_ours(hand):
    clock = StageClock()

    def decode() -> None:
        with clock.stage("decode_video"):
            hand.wait(4.0)

    thread = threading.Thread(target=decode)
    with clock.stage("encode_video"):
        thread.start()
        thread.join()
    stages, wall = clock.report()
    assert stages["encode_video"] == stages["decode_video"] == pytest.approx(4.0)
    assert stages["other"] == pytest.approx(0.0) and wall == pytest.approx(4.0)


def test_a_stage_that_fails_is_counted_and_leaves_the_clock_usable(hand):
    clock = StageClock()
    with pytest.raises(KeyError), clock.stage("prefill"):
        hand.wait(1.0)
        with clock.stage("compress"):
            hand.wait(1.0)
            raise KeyError
    with clock.stage("generate"):
        hand.wait(2.0)
    stages, wall = clock.report()
    assert (stages["prefill"], stages["compress"], stages["generate"]) == pytest.approx((1.0, 1.0, 2.0))
    assert stages["other"] == pytest.approx(0.0) and wall == pytest.approx(4.0)


def test_a_report_may_be_read_twice(hand):
    clock = StageClock()
    with clock.stage("probe"):
        hand.wait(1.0)
    first, _ = clock.report()
    hand.wait(3.0)
    second, wall = clock.report()
    assert first["probe"] == second["probe"] == pytest.approx(1.0)
    assert second["other"] == pytest.approx(3.0) and wall == clock.elapsed() == pytest.approx(4.0)
