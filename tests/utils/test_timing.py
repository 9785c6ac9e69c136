"""The stage clock: what is counted where, on a clock that the tests turn by hand."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from omnicli.utils import timing
from omnicli.utils.timing import STAGES, StageClock, Times


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
    stages, wall, _ = vars(clock.report()).values()
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
    stages, wall, _ = vars(clock.report()).values()
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
    stages, wall, _ = vars(clock.report()).values()
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
    stages, wall, _ = vars(clock.report()).values()
    assert stages["select_in_llm"] == pytest.approx(1.0)
    assert stages["prefill"] == pytest.approx(3.0)
    assert sum(s for name, s in stages.items() if name != "select_in_llm") == pytest.approx(wall)


def in_a_thread(work) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_another_threads_stages_are_busy_time_beside_ours(hand):
    clock = StageClock()

    def decode() -> None:
        with clock.stage("preprocess"):
            hand.wait(1.0)
            with clock.stage("decode_video"):
                hand.wait(4.0)

    in_a_thread(decode)
    with clock.stage("encode_video"):
        in_a_thread(decode)
        hand.wait(1.0)
    times = clock.report()
    assert times.busy == pytest.approx({"preprocess": 2.0, "decode_video": 8.0})
    assert times.stages["decode_video"] == times.stages["preprocess"] == 0.0
    assert times.stages["encode_video"] == pytest.approx(6.0)
    assert times.stages["other"] == pytest.approx(5.0), "the calling thread was in no stage meanwhile"
    assert sum(times.stages.values()) == pytest.approx(times.wall_s) == pytest.approx(11.0)


def test_waiting_for_another_thread_is_a_stage_of_ours(hand):
    clock = StageClock()
    hand.wait(3.0)
    clock.waited("decode_video", 3.0)
    with clock.stage("encode_video"):
        hand.wait(2.0)
        clock.waited("decode_audio", 0.5)
    times = clock.report()
    assert (times.stages["decode_video"], times.stages["decode_audio"]) == pytest.approx((3.0, 0.5))
    assert times.stages["encode_video"] == pytest.approx(1.5) and times.stages["other"] == pytest.approx(0.0)
    assert sum(times.stages.values()) == pytest.approx(times.wall_s)


def test_times_of_two_runs_add_up():
    first, second = Times({"probe": 1.0}, 1.5, {"decode_video": 2.0}), Times({"probe": 0.5, "prefill": 1.0}, 2.0)
    assert first + second == Times({"probe": 1.5, "prefill": 1.0}, 3.5, {"decode_video": 2.0})


def test_a_stage_that_fails_is_counted_and_leaves_the_clock_usable(hand):
    clock = StageClock()
    with pytest.raises(KeyError), clock.stage("prefill"):
        hand.wait(1.0)
        with clock.stage("compress"):
            hand.wait(1.0)
            raise KeyError
    with clock.stage("generate"):
        hand.wait(2.0)
    stages, wall, _ = vars(clock.report()).values()
    assert (stages["prefill"], stages["compress"], stages["generate"]) == pytest.approx((1.0, 1.0, 2.0))
    assert stages["other"] == pytest.approx(0.0) and wall == pytest.approx(4.0)


def test_a_report_may_be_read_twice(hand):
    clock = StageClock()
    with clock.stage("probe"):
        hand.wait(1.0)
    first = clock.report().stages
    hand.wait(3.0)
    second, wall, _ = vars(clock.report()).values()
    assert first["probe"] == second["probe"] == pytest.approx(1.0)
    assert second["other"] == pytest.approx(3.0) and wall == clock.elapsed() == pytest.approx(4.0)
