"""Chosen frames are those of a full decode, pixel for pixel, whatever the file is like."""

import numpy as np
import pytest

import omnicli.media.video as video_module
from omnicli.errors import MediaError
from omnicli.media.probe import probe
from omnicli.media.sampling import frame_times
from omnicli.media.video import DecodeStats, read_frames
from omnicli.media.write import FilmWriter
from tests.support.slowly import slow_but
from tests.support.stamped import WIDTH, find_box, full_decode, patch, read_stamp, remux, rotate_mp4, stamp, tone, write

SIZE = (36, 52)


def read(path, fps, **options):
    """Return info, chosen times, [(time, rgb)], stats."""
    info = probe(path)
    times = frame_times(info.frames.time_s, fps)
    stats = DecodeStats()
    return info, times, list(read_frames(info, times, *SIZE, stats=stats, **options)), stats


def check_against_full_decode(path, fps):
    """All chosen frames come, in order, and equal those of a decode of everything. Returns the stats."""
    info, times, got, stats = read(path, fps)
    reference = full_decode(path, *SIZE, index=info.video.index)
    assert [t for t, _ in got] == times.tolist()
    assert len(got) == stats.frames_yielded > 0
    base = float(info.frames.time_base)
    for time_s, rgb in got:
        pts = round((time_s + info.origin_s) / base)
        assert np.array_equal(rgb, reference[pts]), f"frame of {time_s:.3f} s differs"
    assert stats.error_count == stats.missing == 0
    return stats


CODECS = {
    "h264-pyramid": ("mp4", {}, True),
    "h264-open-gop": ("mp4", {"options": {"x264-params": "open-gop=1:b-adapt=0:scenecut=0"}}, True),
    "h264-no-b": ("mp4", {"bframes": 0}, True),
    "h264-b-adapt-0": ("mkv", {"options": {"x264-params": "b-adapt=0:ref=4:b-pyramid=strict"}}, True),
    "h264-refresh": ("ts", {"options": {"x264-params": "intra-refresh=1:scenecut=0"}, "bframes": 0}, True),
    "h264-threads": ("ts", {"threads": 3}, True),
    "hevc": ("mp4", {"codec": "libx265", "options": {"x265-params": "log-level=none:pools=1:frame-threads=1"}}, True),
    "hevc-closed": (
        "mkv",
        {"codec": "libx265", "options": {"x265-params": "log-level=none:pools=1:frame-threads=1:open-gop=0"}},
        True,
    ),
    "mpeg4": ("mp4", {"codec": "mpeg4", "bframes": 2}, True),
    "mpeg2": ("ts", {"codec": "mpeg2video", "bframes": 2, "fps": 25.0}, True),
    "vp9": ("webm", {"codec": "libvpx-vp9", "bframes": 0, "sound": False, "options": {"cpu-used": "8"}}, False),
    "vp8": ("webm", {"codec": "libvpx", "bframes": 0, "sound": False, "options": {"cpu-used": "8"}}, False),
}


@pytest.fixture(
    scope="module",
    params=slow_but(
        sorted(CODECS), lambda name: name in ("h264-pyramid", "h264-open-gop", "h264-refresh", "hevc", "mpeg2", "vp9")
    ),
)
def coded(request, tmp_path_factory):
    suffix, options, strict = CODECS[request.param]
    path = tmp_path_factory.mktemp("coded") / f"{request.param}.{suffix}"
    return write(path, 130, **{"fps": 10.0, **options}), strict


@pytest.mark.parametrize("fps", [1.0, *(pytest.param(fps, marks=pytest.mark.slow) for fps in (0.2, 3.0, 100.0))])
def test_equals_full_decode(coded, fps):
    path, strict = coded
    stats = check_against_full_decode(path, fps)
    assert not (strict and stats.fell_back), stats.fallback_reason


def test_frames_are_the_chosen_ones(tmp_path):
    path = write(tmp_path / "a.mp4", 100)
    _, times, got, _ = read(path, 2.0)
    assert [read_stamp(rgb) for _, rgb in got] == [round(t * 10) for t in times] == list(range(0, 100, 5))


def test_skips_what_it_can(tmp_path):
    path = write(tmp_path / "a.mp4", 250, gop=50, options={"x264-params": "b-adapt=0"})
    _, _, _, sparse = read(path, 0.1)
    assert sparse.packets_sent < 250 / 4
    _, _, got, stats = read(path, 1.0)
    assert stats.frames_decoded < 0.65 * 250
    _, _, everything, full = read(path, 1.0, exact_skip=False)
    assert full.frames_decoded > 240
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(got, everything, strict=True))


def test_span_in_the_middle_decodes_only_there(tmp_path):
    path = write(tmp_path / "a.mp4", 250, gop=20)
    info = probe(path)
    times = frame_times(info.frames.time_s, 2.0, None, 14.0, 16.0)
    stats = DecodeStats()
    got = list(read_frames(info, times, *SIZE, stats=stats))
    assert [read_stamp(rgb) for _, rgb in got] == [140, 145, 150, 155]
    assert stats.packets_sent <= 40


def test_leading_pictures_keep_the_group_before(tmp_path):
    path = write(tmp_path / "a.mp4", 130, **CODECS["h264-open-gop"][1])
    table = probe(path).frames
    entry_pts = {int(table.packet[i]): int(table.pts[i]) for i in range(len(table))}
    group = np.searchsorted(table.entry, table.packet, side="right") - 1
    leading = np.array([table.pts[i] < entry_pts[int(table.entry[g])] for i, g in enumerate(group)])
    assert leading.any(), "the film has no leading pictures: the test would show nothing"
    reference = full_decode(path, *SIZE)
    for row in np.flatnonzero(leading):
        stats = DecodeStats()
        ((_, rgb),) = read_frames(probe(path), table.time_s[row : row + 1], *SIZE, stats=stats)
        assert np.array_equal(rgb, reference[int(table.pts[row])])


def test_gradual_refresh_is_no_entry(tmp_path):
    path = write(tmp_path / "a.ts", 130, **CODECS["h264-refresh"][1])
    table = probe(path).frames
    assert table.is_key.sum() > 1, "the container marks no refresh: the test would show nothing"
    assert table.entry.tolist() == [0]


def test_variable_rate(tmp_path):
    rng = np.random.default_rng(3)
    times = np.round(np.cumsum(rng.uniform(0.02, 0.6, 120)), 3)
    path = write(tmp_path / "vfr.mkv", times=times)
    info, _, got, _ = read(path, 1.0)
    assert np.allclose(info.frames.time_s, times, atol=1e-3)
    for time_s, rgb in got:
        assert read_stamp(rgb) == np.argmin(np.abs(times - time_s))
    check_against_full_decode(path, 1.0)


def test_one_frame_and_a_very_slow_film(tmp_path):
    _, _, got, _ = read(write(tmp_path / "one.mp4", 1, sound=False), 1.0)
    assert [read_stamp(rgb) for _, rgb in got] == [0]
    path = write(tmp_path / "slow.mp4", 7, fps=0.1, sound=False)
    info, _, got, _ = read(path, 1.0)
    assert [t for t, _ in got] == [0, 10, 20, 30, 40, 50, 60]
    assert info.duration_s == pytest.approx(70, abs=0.1)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation(tmp_path, degrees):
    plain = write(tmp_path / "plain.mp4", 10, sound=False)
    path = rotate_mp4(write(tmp_path / "turned.mp4", 10, sound=False), degrees)
    info = probe(path)
    sideways = degrees != 180
    assert (info.video.width, info.video.height) == ((48, 64) if sideways else (64, 48))
    size = (64, 48) if sideways else (48, 64)
    got = [rgb for _, rgb in read_frames(info, info.frames.time_s, *size)]
    upright = [rgb for _, rgb in read_frames(probe(plain), info.frames.time_s, 48, 64)]
    for a, b in zip(got, upright, strict=True):
        assert np.array_equal(a, np.rot90(b, -degrees // 90))  # rot90 turns counter-clockwise


def test_rotation_agrees_with_ffmpeg(tmp_path):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    import subprocess

    path = rotate_mp4(write(tmp_path / "turned.mp4", 3, sound=False), 90)
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        "-i",
        str(path),
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-",
    ]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    theirs = np.frombuffer(raw, np.uint8).reshape(-1, 64, 48, 3)[0]
    ours = next(rgb for _, rgb in read_frames(probe(path), np.array([0.0]), 64, 48))
    assert np.abs(theirs.astype(int) - ours).mean() < 4
    assert np.abs(theirs.astype(int) - ours[::-1]).mean() > 20


@pytest.mark.parametrize(("aspect", "shape"), [((4, 3), (85, 48)), ((1, 2), (64, 96)), ((1, 1), (64, 48))])
def test_sample_aspect(tmp_path, aspect, shape):
    info = probe(write(tmp_path / "a.mp4", 5, sound=False, sample_aspect=aspect))
    assert (info.video.width, info.video.height) == shape
    assert (info.video.coded_width, info.video.coded_height) == (64, 48)


def test_size_change_in_raw_h264_without_time_stamps(tmp_path):
    large = write(tmp_path / "a.h264", 20, sound=False, width=128, height=96, fps=25.0)
    small = write(tmp_path / "b.h264", 20, sound=False, fps=25.0)
    path = tmp_path / "both.h264"
    path.write_bytes(large.read_bytes() + small.read_bytes())
    info, _, got, stats = read(path, 5.0)
    assert not info.frames.ordered and len(info.frames) == 40
    assert info.frames.time_s == pytest.approx(np.arange(40) / 25)
    assert {rgb.shape for _, rgb in got} == {(*SIZE, 3)}
    assert [read_stamp(rgb) for _, rgb in got] == [0, 5, 10, 15] * 2
    assert stats.missing == 0


def test_joined_transport_streams_play_in_a_row(tmp_path):
    a = write(tmp_path / "a.ts", 30, width=128, height=96)
    b = write(tmp_path / "b.ts", 50)
    path = tmp_path / "both.ts"
    path.write_bytes(a.read_bytes() + b.read_bytes())
    info, times, got, stats = read(path, 2.0)
    assert len(info.frames) == 80
    assert info.duration_s == pytest.approx(8.0, abs=0.25)
    assert any("start over" in p for p in info.problems)
    assert (np.diff(info.frames.time_s) > 0).all()
    assert [read_stamp(rgb) for _, rgb in got][:6] == [0, 5, 10, 15, 20, 25]
    second = [(t, read_stamp(rgb)) for t, rgb in got][6:]
    start = info.frames.time_s[30]
    assert start == pytest.approx(3.0, abs=0.25)
    assert all(abs(t - start - n / 10) < 0.01 for t, n in second)
    assert len(got) == len(times) and stats.missing == 0


def test_edit_list(tmp_path):
    """Cut 1.3 s off in mid-GOP by the edit list alone: hidden frames are decoded but never shown."""
    path = write(tmp_path / "a.mp4", 60, sound=False)
    elst = find_box(path.read_bytes(), b"elst")
    delay = int.from_bytes(path.read_bytes()[elst + 20 : elst + 24], "big")
    patch(path, elst + 20, (delay + 117_000).to_bytes(4, "big"))
    info, _, got, _ = read(path, 2.0)
    assert len(info.frames) == 47
    assert info.frames.time_s[0] == 0
    assert [read_stamp(rgb) for _, rgb in got] == [13 + round(t * 10) for t, _ in got]
    check_against_full_decode(path, 2.0)


def test_other_containers_agree(tmp_path):
    source = write(tmp_path / "a.mp4", 60)
    for name in ("b.mkv", "c.ts", "d.mov", "e.flv", "f.avi"):
        if name == "f.avi":  # stamps only the order of decoding
            path = write(tmp_path / name, 60, codec="mpeg4", bframes=2)
        else:
            path = remux(source, tmp_path / name)
        info, times, got, stats = read(path, 3.0)
        assert len(info.frames) == 60, name
        start = info.frames.time_s[0]
        assert [read_stamp(rgb) for _, rgb in got] == [round((t - start) * 10) for t in times], name
        assert info.duration_s == pytest.approx(6.0, abs=0.35), name
        assert stats.missing == stats.error_count == 0, name


def test_damage_falls_back_without_duplicates(tmp_path):
    source = write(tmp_path / "a.mkv", 240, crf=18).read_bytes()
    fell = 0
    for seed in range(12):
        data = bytearray(source)
        rng = np.random.default_rng(seed)
        for at in rng.integers(len(data) // 4, len(data), 25):
            data[at] ^= 1 << rng.integers(8)
        path = tmp_path / "damaged.mkv"
        path.write_bytes(bytes(data))
        _, times, got, stats = read(path, 4.0)
        seen = [t for t, _ in got]
        assert (np.diff(seen) > 0).all()
        assert len(got) + stats.missing == len(times)
        assert len(got) > 0.5 * len(times)
        fell += stats.fell_back
    assert fell > 0, "nothing was ever damaged: the test would show nothing"


def test_fallback_continues_where_it_stopped(tmp_path, monkeypatch):
    """Frames already handed on do not come again, and the rest equals a full decode."""
    path = write(tmp_path / "a.mp4", 120)
    original = video_module._Reader._decode

    def fails_once(self, packet, sparing):
        if sparing and self.stats.packets_sent == 60:
            raise video_module._Fallback("planted")
        return original(self, packet, sparing)

    monkeypatch.setattr(video_module._Reader, "_decode", fails_once)
    _, times, got, stats = read(path, 5.0)
    assert stats.fell_back and stats.fallback_reason == "planted"
    assert [t for t, _ in got] == times.tolist()
    reference = list(full_decode(path, *SIZE).values())
    assert all(np.array_equal(rgb, reference[round(t * 10)]) for t, rgb in got)


def test_errors_are_counted_and_the_rest_is_read(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", 120, gop=10)
    original = video_module._Reader._decode
    import av

    class Broken:
        def __init__(self, packet):
            self.packet = packet

        def decode(self):
            raise av.error.InvalidDataError(1, "planted")

    count = 0

    def fails_at(self, packet, sparing):
        nonlocal count
        count += 1
        return original(self, Broken(packet) if count % 50 == 49 else packet, sparing)

    monkeypatch.setattr(video_module._Reader, "_decode", fails_at)
    _, times, got, stats = read(path, 10.0)
    assert stats.fell_back and stats.error_count >= 1 and "planted" in stats.errors[0]
    assert len(got) + stats.missing == len(times)
    assert len(got) > 90


def test_no_frame_at_all_is_its_own_message(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", 20)
    info = probe(path)
    monkeypatch.setattr(video_module._Reader, "_decode", lambda *_: [])
    with pytest.raises(MediaError, match=r"a\.mp4: .*not one chosen frame"):
        list(read_frames(info, info.frames.time_s[:3], *SIZE))


def test_refuses_times_of_no_frame_and_files_without_pictures(tmp_path):
    info = probe(write(tmp_path / "a.mp4", 20))
    with pytest.raises(ValueError, match="no frame begins"):
        read_frames(info, np.array([0.05]), *SIZE)
    with pytest.raises(ValueError, match="ascend"):
        read_frames(info, np.array([0.5, 0.1]), *SIZE)
    assert list(read_frames(info, np.zeros(0), *SIZE)) == []
    with FilmWriter(tmp_path / "b.mp4", WIDTH, 48) as film:
        film.add_samples(tone(1))
    with pytest.raises(MediaError, match="no pictures"):
        read_frames(probe(tmp_path / "b.mp4"), np.array([0.0]), *SIZE)


def test_memory_does_not_grow_with_the_film(tmp_path):
    """Reading keeps one picture at a time: a generator that is not drained has decoded next to nothing."""
    path = write(tmp_path / "a.mp4", 250)
    info = probe(path)
    stats = DecodeStats()
    frames = read_frames(info, info.frames.time_s, *SIZE, stats=stats, threads=1)
    next(frames)
    assert stats.packets_sent < 40
    frames.close()
    assert stamp(0).shape == (48, 64, 3)


def test_a_graphics_card_that_fails_is_as_if_there_were_none(tmp_path, monkeypatch):
    path = write(tmp_path / "film.mp4", 80, fps=20)
    _, _, plain, _ = read(path, 2)
    monkeypatch.setattr(video_module, "nvdec", lambda codec: True)  # opening it fails: there is none here
    _, _, got, stats = read(path, 2, hardware=True)
    assert [t for t, _ in got] == [t for t, _ in plain] and not stats.fell_back
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(got, plain, strict=True))


def test_a_graphics_card_that_stops_in_the_middle_is_relieved(tmp_path, monkeypatch):
    path = write(tmp_path / "film.mp4", 80, fps=20)
    _, _, plain, _ = read(path, 4)
    real, opened = video_module._Reader._run, []

    def run(self, plan, hardware=False):
        opened.append(hardware)
        if not hardware:
            yield from real(self, plan)
            return
        for count, item in enumerate(real(self, plan)):
            if count == 5:
                raise video_module._Fallback("the card stopped")
            yield item

    monkeypatch.setattr(video_module, "nvdec", lambda codec: True)
    monkeypatch.setattr(video_module._Reader, "_run", run)
    _, _, got, stats = read(path, 4, hardware=True)
    assert opened == [True, False] and stats.missing == 0
    assert [t for t, _ in got] == [t for t, _ in plain]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(got, plain, strict=True))


def test_the_cards_picture_format_scales_to_the_same_pixels(tmp_path):
    """NVDEC gives nv12 where the software decoder gives yuv420p: the same samples in another order."""
    scaler = video_module.VideoReformatter()
    with video_module.open_media(write(tmp_path / "film.mp4", 8, fps=4)) as container:
        for frame in container.decode(video=0):
            both = [
                scaler.reformat(
                    f, width=52, height=36, format="rgb24", interpolation=video_module.Interpolation.BICUBIC
                )
                for f in (frame, frame.reformat(format="nv12"))
            ]
            assert frame.format.name == "yuv420p"
            assert np.array_equal(*(f.to_ndarray() for f in both))
