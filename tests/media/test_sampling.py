import math

import numpy as np
import pytest

from omnicli.media.align import format_seconds, window_index
from omnicli.media.sampling import frame_times, smart_resize


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
