"""Clips and frames cut out of films hold what was on at these seconds."""

import av
import numpy as np
import pytest

from omnicli.errors import MediaError
from omnicli.media.cut import write_clip, write_frame
from omnicli.media.probe import probe
from tests.support.stamped import read_stamp, write


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_clip_begins_at_the_key_frame_before_and_ends_in_time(tmp_path, suffix):
    info = probe(write(tmp_path / f"film.{suffix}", 200, gop=20, fps=10))
    write_clip(info, 7.3, 9.1, tmp_path / "clip.mkv")
    made = probe(tmp_path / "clip.mkv")
    assert made.problems == () and made.audio is not None
    keys = info.frames.time_s[info.frames.is_key]
    first = float(keys[keys <= 7.3][-1])  # scene cuts make more of them than the encoder was asked for
    assert made.video_present_s == pytest.approx(9.2 - first, abs=0.15)
    assert made.audio_present_s == pytest.approx(9.1 - first, abs=0.2)
    with av.open(str(tmp_path / "clip.mkv")) as container:
        stamps = [read_stamp(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    shown = np.flatnonzero((info.frames.time_s >= first) & (info.frames.time_s <= 9.1))
    assert stamps == shown.tolist()


def test_sound_alone_and_a_film_that_starts_late(tmp_path):
    film = probe(write(tmp_path / "film.mkv", 100, fps=10, gop=10))
    write_clip(film, 0.0, 0.5, tmp_path / "begin.mkv")
    assert probe(tmp_path / "begin.mkv").video_present_s == pytest.approx(0.6, abs=0.15)
    with pytest.raises(MediaError, match="nothing between"):
        write_clip(film, 500.0, 501.0, tmp_path / "none.mkv")
    assert not (tmp_path / "none.mkv").exists()
    with pytest.raises(MediaError, match="cannot be written"):
        write_clip(film, 1.0, 2.0, tmp_path / "no folder" / "clip.mkv")


@pytest.mark.parametrize("time_s", [0.0, 0.05, 3.14, 9.9, 100.0])
def test_the_frame_on_the_screen_at_a_second(tmp_path, time_s):
    info = probe(write(tmp_path / "film.mp4", 100, fps=10))
    at_s = write_frame(info, time_s, tmp_path / "frame.jpg")
    number = min(99, int(time_s * 10 + 1e-6))
    assert at_s == pytest.approx(number / 10)
    with av.open(str(tmp_path / "frame.jpg")) as picture:
        rgb = next(picture.decode(video=0)).to_ndarray(format="rgb24")
    assert read_stamp(np.ascontiguousarray(rgb)) == number
