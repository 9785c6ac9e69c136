"""Pictures and sound on one clock: a flash and a beep planted at one second share a window, late in a film too."""

import numpy as np
import pytest

from omnicli.media.align import window_index
from omnicli.media.audio import SAMPLE_RATE, read_audio
from omnicli.media.probe import probe
from omnicli.media.sampling import frame_times
from omnicli.media.video import read_frames
from omnicli.media.write import FilmWriter

SHORT = (60.6, 350.4, 690.7)
LONG = (60.6, 600.4, 3300.7)
"""Seconds at which a flash and a beep are planted, in films that end a minute later."""


def even(planted) -> np.ndarray:
    return np.arange(0, planted[-1] + 60, 0.5)


def uneven(planted) -> np.ndarray:
    """Return about two times a second, never the same distance apart, with half a minute in which there is none."""
    times = even(planted)
    times = times + np.random.default_rng(5).uniform(0, 0.45, len(times))
    times[0] = 0.0
    return np.delete(times, np.arange(400, 460))


def write(path, planted, times, start):
    """Write flashes and beeps of 0.9 s at the planted seconds; with a ``start`` of its own, the sound has a hole."""
    rate = 8000
    dark, light = np.full((48, 64, 3), 20, np.uint8), np.full((48, 64, 3), 230, np.uint8)
    beep = (0.5 * np.sin(2 * np.pi * 1000 * np.arange(round(0.9 * rate)) / rate)).astype(np.float32)
    with FilmWriter(path, 64, 48, 2, sample_rate=rate, preset="ultrafast", threads=1, audio_start_s=start) as writer:
        done = start
        for t in times:
            while done <= t:
                piece = np.zeros(20 * rate, np.float32)
                for second in planted:
                    begin = round((second - done) * rate)
                    if -len(beep) < begin < len(piece):
                        cut = beep[max(0, -begin) : len(piece) - begin]
                        piece[max(0, begin) : max(0, begin) + len(cut)] += cut
                if start and 400 <= done < 420:  # a hole in the sound
                    done += 20
                    continue
                gap = start and 420 <= done < 440
                writer.add_samples(piece, done if gap else None)
                done += 20
            flash = any(s <= t < s + 0.9 for s in planted)
            writer.add_frame(light if flash else dark, float(t))
    return path


@pytest.mark.parametrize("suffix", ["mp4", *(pytest.param(s, marks=pytest.mark.slow) for s in ("mkv", "ts"))])
def test_flash_and_beep_share_a_window(tmp_path, suffix):
    check(write(tmp_path / f"film.{suffix}", SHORT, uneven(SHORT), 7.3), SHORT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "times", "start"), [("even.mp4", even, 0.0), ("uneven.mkv", uneven, 7.3), ("uneven.ts", uneven, 7.3)]
)
def test_flash_and_beep_share_a_window_after_an_hour(tmp_path, name, times, start):
    check(write(tmp_path / name, LONG, times(LONG), start), LONG)


def check(film, planted):
    info = probe(film)
    assert info.duration_s == pytest.approx(planted[-1] + 60, abs=25)
    times = frame_times(info.frames.time_s, 2.0)
    flashes = [t for t, rgb in read_frames(info, times, 28, 28) if rgb.mean() > 120]
    loud = []
    for k, block in enumerate(read_audio(info)):
        level = np.abs(block[: len(block) // 80 * 80]).reshape(-1, 80).max(1, initial=0)
        loud += (k * 2.0 + np.flatnonzero(level > 0.1) * 80 / SAMPLE_RATE).tolist()
    flashes, beeps = np.array(flashes), np.array(loud)
    for second in planted:
        flash = flashes[np.abs(flashes - second) < 5]
        beep = beeps[np.abs(beeps - second) < 5]
        assert len(flash) and len(beep)
        assert second - 0.01 <= flash[0] - info.frames.time_s[0] < second + 1.0
        assert beep[0] - info.frames.time_s[0] == pytest.approx(second, abs=0.07)
        window = int(second // 2)
        assert window_index(flash[:1], 2.0)[0] == window_index(beep[:1], 2.0)[0] == window
    assert len(flashes) == sum(len(flashes[np.abs(flashes - s) < 2]) for s in planted)
