import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from omnicli.config.settings import MediaConfig
from omnicli.media import sampling
from omnicli.media.align import format_seconds, window_index
from omnicli.media.sampling import frame_times, linspace_times, mean_rate, pixel_bounds, smart_resize
from tests.support.slowly import slow_but


def naive(times, fps, start, end):
    chosen = []
    k = 0
    while start + k / fps <= times[-1] + 1e-3:
        later = [t for t in times if t >= start + k / fps - 1e-3 and (end is None or t < end - 1e-3)]
        if later and later[0] not in chosen:
            chosen.append(later[0])
        k += 1
    return chosen


@pytest.mark.parametrize("seed", range(8))
def test_first_frame_at_or_after_each_step(seed):
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.uniform(0.001, 0.4, 200)) + rng.uniform(0, 2)
    fps = float(rng.uniform(0.2, 12))
    start, end = (None, None) if seed % 2 else (3.0, 20.0)
    got = frame_times(times, fps, None, start, end)
    assert got.tolist() == naive(times.tolist(), fps, start or 0.0, end)


def test_constant_rate_gives_exact_seconds():
    got = frame_times(np.arange(90_000) / 25, 1.0)
    assert got.tolist() == list(range(3600))


def test_millisecond_stamps_lose_no_frame():
    exact = np.arange(240) / 24
    stamped = np.floor(exact * 1000) / 1000  # as Matroska writes them
    assert len(frame_times(stamped, 24.0)) == 240


def test_slow_film_gives_each_frame_once_and_a_gap_nothing():
    assert frame_times(np.array([0.0, 10.0, 20.0]), 1.0).tolist() == [0, 10, 20]
    gap = np.concatenate([np.arange(0, 5, 0.04), np.arange(3600, 3605, 0.04)])
    assert len(frame_times(gap, 1.0)) == 10


def test_max_frames_spreads_evenly():
    got = frame_times(np.arange(90_000) / 25, 1.0, max_frames=320)
    assert len(got) == 320
    assert got[0] == 0
    assert np.allclose(np.diff(got), 11.25, atol=0.04)
    assert len(frame_times(np.arange(90_000) / 25, 1.0, max_frames=1)) == 1
    few = frame_times(np.arange(100) / 10, 1.0, max_frames=4, start_s=2, end_s=6)
    assert few.tolist() == [2, 3, 4, 5]


def test_at_least_one_frame():
    slow = np.array([0.0, 10.0, 20.0])
    assert frame_times(slow, 1.0, None, 3, 5).tolist() == [0]  # on screen at 3 s
    assert frame_times(slow + 7, 1.0, None, 3, 5).tolist() == [7]
    assert frame_times(np.zeros(0), 1.0).size == 0


def released(total: int, rate: float, fps: float, max_frames: int | None, first: int = 0) -> list[int]:
    """Numbers of the frames that the papers' loader takes: the formula, a step at a time."""
    n = total / rate * fps
    n = max(n, 4)
    n = min(n, total if max_frames is None else max_frames)
    n = min(n, total)
    n = int(n) - int(n) % 2
    last = first + total - 1
    if n == 1:
        return [first]
    exact = [Fraction(first) + Fraction(last - first) * i / (n - 1) for i in range(n)]
    return [round(x) for x in exact]  # halves to even


RATES = {"24": 24.0, "25": 25.0, "30": 30.0, "12.5": 12.5, "23.976": 24000 / 1001, "29.97": 30000 / 1001, "1": 1.0}


@pytest.mark.parametrize("stamps", ["exact", "milliseconds"])
@pytest.mark.parametrize("name", slow_but(RATES, lambda name: name in ("25", "29.97")))
def test_linspace_takes_the_frames_of_the_papers_loader(name, stamps):
    rate = RATES[name]
    for total in (2, 3, 4, 5, 7, 50, 61, 1440, 1500, 1501, 1523, 1800, 1829, 3596, 100_003):
        times = np.arange(total) / rate
        end = total / rate
        if stamps == "milliseconds":
            times, end = np.floor(times * 1000) / 1000, round(end, 3)
        got_rate = mean_rate(times, end)
        if total > 61:
            assert got_rate == rate
        for fps, max_frames in ((2.0, 128), (2.0, 256), (2.0, 768), (2.0, None), (1.0, 33)):
            got = linspace_times(times, fps, max_frames, rate=got_rate)
            assert got.tolist() == times[released(total, rate, fps, max_frames)].tolist(), (total, fps, max_frames)


def test_linspace_counts_pairs_where_the_clock_counts_steps():
    for total, rate, clock, counted in (
        (1829, 30.0, 122, 120),
        (210, 30.0, 14, 14),
        (213, 30.0, 15, 14),
        (9, 30, 1, 4),
    ):
        times = np.arange(total) / rate
        assert len(frame_times(times, 2.0, 128)) == clock
        assert len(linspace_times(times, 2.0, 128, rate=mean_rate(times, total / rate))) == counted
    chosen = linspace_times(np.arange(1829) / 30, 2.0, 128, rate=30.0)
    assert chosen[0] == 0 and chosen[-1] == 1828 / 30  # the clock's last one is 60.5 s


def test_linspace_in_a_span_counts_its_frames_at_the_films_rate():
    times = np.arange(3000) / 25
    got = linspace_times(times, 2.0, 128, 10.0, 31.0, rate=25.0)
    assert got.tolist() == times[released(525, 25.0, 2.0, 128, 250)].tolist() and len(got) == 42
    # 10 s at 10 a second, then 10 s at 40: a mean of 25, at which 400 frames are 16 s and 100 are 4 s
    varying = np.concatenate([np.arange(100) / 10, 10 + np.arange(400) / 40])
    rate = mean_rate(varying, 20.0)
    assert rate == 25.0 and len(linspace_times(varying, 2.0, rate=rate)) == 40
    assert [len(linspace_times(varying, 2.0, None, *span, rate=rate)) for span in ((0, 10), (10, 20))] == [8, 32]


def test_linspace_of_next_to_nothing():
    slow = np.array([0.0, 10.0, 20.0])
    assert linspace_times(slow, 1.0, None, 3, 5, rate=0.1).tolist() == [0]  # on screen at 3 s
    assert linspace_times(slow, 1.0, rate=0.1).tolist() == [0, 20]  # three are no whole number of pairs
    assert linspace_times(slow[:1], 1.0, rate=None).tolist() == [0]
    assert linspace_times(slow, 1.0, 1, rate=None).tolist() == [0]
    assert linspace_times(np.zeros(0), 1.0, rate=None).size == 0
    assert mean_rate(slow[:1], 10.0) is None and mean_rate(np.zeros(0), 0.0) is None
    assert mean_rate(slow, 30.0) == pytest.approx(0.1) and mean_rate(np.array([0.0, 0.3, 7.1]), 9.0) == 1 / 3
    for args in ((0.0,), (1.0, 0), (1.0, None, 5.0, 5.0)):
        with pytest.raises(ValueError):
            linspace_times(np.arange(10.0), *args, rate=1.0)


def test_settings_say_which_sampling():
    times = np.arange(1829) / 30
    table = SimpleNamespace(time_s=times, end_s=1829 / 30)
    for settings, count in ((MediaConfig(fps=2), 122), (MediaConfig(fps=2, sampling="linspace"), 120)):
        assert len(sampling.wanted_times(table, settings, 0.0, 1829 / 30)) == count


def test_total_pixels_lower_the_size_of_many_frames():
    """The table of SEATS's limits: 144 tokens a frame up to 341 frames, 134.4 from 366 on."""
    papers = MediaConfig(min_pixels=128 * 784, max_pixels=144 * 784, total_pixels=24576 * 784)
    for frames in (1, 2, 3, 128, 256, 340, 341, 342, 350, 364, 365, 366, 384, 768):
        cap = min(144 * 784, max(min(768 * 784, 24576 * 784 / frames * 2), int(1.05 * 128 * 784)))
        assert pixel_bounds(papers, frames) == {"min_pixels": 128 * 784, "max_pixels": int(cap)}
    for frames, size in ((341, (9 * 28, 16 * 28)), (384, (8 * 28, 15 * 28)), (768, (8 * 28, 15 * 28))):
        high = pixel_bounds(papers, frames)["max_pixels"]
        assert smart_resize(720, 1280, 28, 128 * 784, high) == size
    assert pixel_bounds(MediaConfig(), 9) == {"min_pixels": None, "max_pixels": None}
    assert pixel_bounds(MediaConfig(total_pixels=1000), 10) == {"min_pixels": None, "max_pixels": 200}


@pytest.mark.parametrize("args", [(0.0,), (-1.0,), (math.nan,), (math.inf,), (1.0, 0), (1.0, None, 5.0, 5.0)])
def test_nonsense_is_refused(args):
    with pytest.raises(ValueError):
        frame_times(np.arange(10.0), *args)


def test_sizes_of_the_stock_processors():
    # transformers 5.23, smart_resize of qwen2_vl, run on these sizes
    assert smart_resize(720, 1280, 28, 100_352, 602_112) == (560, 1008)
    assert smart_resize(1080, 1920, 32, 128 * 1024, 768 * 1024) == (640, 1152)
    assert smart_resize(480, 640, 28, 100_352, 602_112) == (476, 644)
    assert smart_resize(720, 1280, 28, 3136, 128 * 784) == (224, 420)
    assert smart_resize(480, 640, 28, 3136, 128 * 784) == (252, 364)
    assert smart_resize(48, 64, 28, 100_352, 602_112) == (280, 392)


def test_extreme_shapes_stay_within_bounds():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        height, width = (int(x) for x in rng.integers(1, 4000, 2))
        rows, columns = smart_resize(height, width, 28, 4 * 784, 256 * 784)
        assert rows % 28 == columns % 28 == 0
        assert rows >= 28 and columns >= 28
        assert rows * columns <= 256 * 784
    assert smart_resize(1, 5000, 28, 100_352, 602_112) == (28, 768 * 28)
    with pytest.raises(ValueError):
        smart_resize(0, 10, 28, 784, 7840)


def test_windows_and_clock_text():
    assert window_index(np.array([0, 1.9985, 1.9995, 2.0, 599.9996, 3300.7]), 2.0).tolist() == [0, 0, 1, 1, 300, 1650]
    assert window_index(np.array([0.0]), 2.0).dtype == np.int64
    assert [format_seconds(s) for s in (0, 59.99, 60, 3599.9, 3600, 36_000)] == [
        "00:00",
        "00:59",
        "01:00",
        "59:59",
        "1:00:00",
        "10:00:00",
    ]
    assert format_seconds(600.95, 1) == "10:00.9"
    assert format_seconds(-1.5, 1) == "-00:01.5"
    with pytest.raises(ValueError):
        window_index(np.array([1.0]), 0)
