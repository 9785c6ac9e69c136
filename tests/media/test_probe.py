"""What `probe` says of odd, lying and damaged files: one clear line, or a usable description. Never another error."""

import json
import struct

import av
import numpy as np
import pytest

from omnicli.errors import MediaError
from omnicli.media import streams, video
from omnicli.media.audio import read_audio
from omnicli.media.container import DecodeStats
from omnicli.media.probe import probe
from omnicli.media.sampling import frame_times
from omnicli.media.video import read_frames
from omnicli.media.write import FilmWriter
from tests.support.stamped import DATA, find_box, patch, read_stamp, remux, stamp, tone, write, write_song


def fails(path, words):
    """Probing fails with one line that names the file."""
    with pytest.raises(MediaError) as caught:
        probe(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert words in message
    assert caught.value.exit_code == 3


def use(info, fps=2.0):
    """Read pictures and sound as the pipeline would; returns stamps and the number of samples."""
    numbers, samples = [], 0
    if info.frames is not None:
        times = frame_times(info.frames.time_s, fps)
        numbers = [read_stamp(rgb) for _, rgb in read_frames(info, times, 36, 52, stats=DecodeStats())]
    if info.audio is not None:
        samples = sum(len(b) for b in read_audio(info))
    return numbers, samples


def test_real_clip():
    info = probe(DATA / "nasa_webb_narration_13s.mp4")
    assert info.status == "ok" and info.problems == ()
    assert (info.video.width, info.video.height, info.video.codec) == (480, 270, "h264")
    assert info.video.fps == pytest.approx(30_000 / 1001)
    assert len(info.frames) == 390 and info.frames.pts.dtype == np.int64
    assert info.frames.time_s[1] == pytest.approx(1001 / 30_000)
    assert info.frames.end_s == pytest.approx(13.013) and info.duration_s == pytest.approx(13.056)
    assert info.audio.sample_rate == 16_000 and info.audio.channels == 2
    assert info.audio_span == pytest.approx((0, 13.056))
    text = json.dumps(info.to_dict())
    assert json.loads(text)["video"]["frames"] == 390 and len(text) < 2000
    assert probe(str(DATA / "jfk_inaugural_11s.flac")).duration_s == pytest.approx(11.0)


def test_silent_film(tmp_path):
    info = probe(write(tmp_path / "a.mp4", 30, sound=False))
    assert info.audio is None and info.audio_span is None and info.audio_present_s == 0
    assert info.duration_s == pytest.approx(3.0) and info.video_present_s == pytest.approx(3.0)
    assert info.to_dict()["audio"] is None


def test_cover_art_is_no_film(tmp_path):
    path = write_song(tmp_path / "song.mp3")
    with av.open(str(path)) as container:
        assert container.streams.best("video") is not None, "there is no cover: the test would show nothing"
    info = probe(path)
    assert info.video is None and info.frames is None
    assert info.duration_s == pytest.approx(80 * 1152 / 44_100, abs=0.06)


def test_best_of_several_streams(tmp_path):
    path = tmp_path / "two.ts"
    with av.open(str(path), "w") as out:
        small, large = (out.add_stream("libx264", rate=10, options={"threads": "1"}) for _ in range(2))
        for stream, (width, height) in ((small, (32, 24)), (large, (64, 48))):
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for k in range(20):
            for stream, base in ((small, 0), (large, 100)):
                frame = av.VideoFrame.from_ndarray(stamp(base + k, stream.width, stream.height), "rgb24")
                frame.pts = k
                out.mux(stream.encode(frame))
        for stream in (small, large):
            out.mux(stream.encode(None))
    info = probe(path)
    assert (info.video.index, info.video.width) == (1, 64)
    assert use(info)[0] == [100, 105, 110, 115]


def test_start_offset_is_taken_off(tmp_path):
    path = write(tmp_path / "a.ts", 30)
    info = probe(path)
    assert info.origin_s > 0.1
    assert info.frames.time_s[0] == pytest.approx(0, abs=0.07)
    assert info.duration_s == pytest.approx(3.0, abs=0.15)


@pytest.mark.parametrize(
    ("suffix", "keep"),
    [
        ("mp4", 0.9),
        ("mkv", 0.25),
        ("ts", 0.6),
        *(pytest.param(*f, marks=pytest.mark.slow) for f in (("mp4", 0.25), ("mkv", 0.6))),
    ],
)
def test_cut_off(tmp_path, suffix, keep):
    source = write(tmp_path / f"whole.{suffix}", 200, crf=18)
    if suffix == "mp4":
        source = remux(source, tmp_path / "fast.mp4", movflags="faststart")
    data = source.read_bytes()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(data[: int(len(data) * keep)])
    info = probe(path)
    assert 0 < info.duration_s < 20 * keep + 3
    numbers, samples = use(info)
    assert len(numbers) >= int(info.duration_s * 2) - 2
    assert samples > 0
    if suffix != "ts":  # a transport stream promises nothing
        assert info.status == "truncated"
        assert any("promises" in p for p in info.problems)


def test_cut_off_before_the_index(tmp_path):
    data = write(tmp_path / "whole.mp4", 50).read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(data[: len(data) // 2])
    fails(path, "index (moov) is missing")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.mp4", b"", "empty"),
        ("zero.mkv", bytes(100_000), "zero"),
        ("notes.mp4", b"These are my notes.\nNothing moves in them.\n" * 50, "text"),
        ("notes.txt", b"These are my notes.\nNothing moves in them.\n" * 50, "text"),
        ("umlaut.mp4", "Füße und Übermut\n".encode() * 400, "text"),
        ("noise.mp4", np.random.default_rng(0).integers(0, 256, 50_000).astype(np.uint8).tobytes(), "not a readable"),
        ("list.m3u8", b"#EXTM3U\n#EXTINF:1,\nhttp://example.invalid/a.ts\n#EXT-X-ENDLIST\n", ""),
        ("a.srt", b"1\n00:00:01,000 --> 00:00:02,000\nHello.\n\n", "text"),
        ("init.mp4", b"\0\0\0\x18ftypisom\0\0\x02\0isomiso2" + b"\0\0\0\x08moov", ""),
    ],
)
def test_no_media(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    fails(path, words)


def test_missing_and_folder(tmp_path):
    fails(tmp_path / "nothing.mp4", "no such file")
    fails(tmp_path, "not a file")


def test_name_like_a_network_address(tmp_path, monkeypatch):
    path = tmp_path / "http:"
    path.mkdir()
    write(path / "a.mp4", 5, sound=False)
    monkeypatch.chdir(tmp_path)
    assert len(probe("http:/a.mp4").frames) == 5


def test_opens_but_yields_nothing(tmp_path):
    """Streams with a description but unusable packets have a message of their own."""
    path = write(tmp_path / "a.mp4", 60, sound=False)
    data = bytearray(path.read_bytes())
    start = find_box(bytes(data), b"mdat") + 8
    end = find_box(bytes(data), b"moov")
    data[start:end] = b"\xff" * (end - start)
    path.write_bytes(bytes(data))
    fails(path, "opens but yields nothing")


def test_broken_sound_leaves_the_pictures(tmp_path):
    path = write(tmp_path / "a.mkv", 60)
    data = path.read_bytes().replace(b"A_AAC", b"A_XYZ")
    path.write_bytes(data)
    info = probe(path)
    assert info.audio is None and len(info.frames) == 60
    assert info.status == "damaged" and any("no decoder" in p or "nothing" in p for p in info.problems)


@pytest.mark.parametrize("box", [b"mdhd", b"mvhd", b"tkhd"])
def test_headers_that_lie(tmp_path, box):
    path = write(tmp_path / "a.mp4", 60, sound=False)
    at = find_box(path.read_bytes(), box)
    patch(path, at + (28 if box == b"tkhd" else 24), struct.pack(">I", 0x0FFFFFFF))
    info = probe(path)
    assert info.duration_s == pytest.approx(6.0, abs=0.01)
    assert len(use(info)[0]) == 12


def test_wav_that_promises_more(tmp_path):
    path = tmp_path / "a.wav"
    samples = (tone(3.0) * 32767).astype("<i2").tobytes()
    header = (
        b"RIFF" + struct.pack("<I", 0x7FFFFFFF) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)
    )
    path.write_bytes(header + b"data" + struct.pack("<I", 16000 * 2 * 60) + samples)
    info = probe(path)
    assert info.duration_s == pytest.approx(3.0, abs=0.01)
    assert use(info)[1] == 48_000


def test_gap_of_an_hour_invents_no_frames(tmp_path):
    times = np.concatenate([np.arange(50) / 10, 3600 + np.arange(50) / 10])
    info = probe(write(tmp_path / "gap.mkv", times=times, sound=False))
    assert info.duration_s == pytest.approx(3605, abs=0.2)
    assert any("no pictures between 4.9 s and 3600.0 s" in p for p in info.problems)
    assert len(use(info, 1.0)[0]) == 10


def test_odd_tags(tmp_path):
    """A title that is not UTF-8 must not stop anything."""
    path = write(tmp_path / "a.mp4", 10, sound=False)
    with av.open(str(path)) as old, av.open(str(tmp_path / "c.mkv"), "w") as new:
        new.metadata["title"] = "AAAAAAAA"
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    data = (tmp_path / "c.mkv").read_bytes()
    assert b"AAAAAAAA" in data
    (tmp_path / "c.mkv").write_bytes(data.replace(b"AAAAAAAA", b"\xff\xfe\xe9AAAAA"))
    assert len(probe(tmp_path / "c.mkv").frames) == 10


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "h264", "wav"])
def test_random_damage_never_raises_anything_else(tmp_path, suffix):
    if suffix == "wav":
        path = tmp_path / "a.wav"
        with FilmWriter(tmp_path / "a.mkv", 64, 48, audio_codec="pcm_s16le") as film:
            film.add_samples(tone(2.0))
        with av.open(str(tmp_path / "a.mkv")) as old, av.open(str(path), "w") as new:
            stream = new.add_stream_from_template(old.streams.audio[0])
            for packet in old.demux(audio=0):
                if packet.size:
                    packet.stream = stream
                    new.mux(packet)
    else:
        path = write(tmp_path / f"a.{suffix}", 40, sound=suffix != "h264")
    source = path.read_bytes()
    outcomes = set()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        data = bytearray(source)
        if seed % 3 == 0:
            data = data[: rng.integers(0, len(data))]
        else:
            low, high = ((0, min(2000, len(data))), (0, len(data)))[seed % 2]
            for at in rng.integers(low, high, 4 if seed % 2 == 0 else 60):
                data[at] = rng.integers(256)
        path.write_bytes(bytes(data))
        try:
            info = probe(path)
            outcomes.add(info.status)
            if info.duration_s < 600:
                use(info)
        except MediaError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            outcomes.add("error")
    assert "ok" in outcomes
    if suffix in ("mp4", "mkv"):
        assert len(outcomes) > 1, "no damage was ever noticed"


def test_probe_reads_packets_only(tmp_path, monkeypatch):
    """Every packet is read and next to none is decoded, so that an hour takes about a second."""
    path, decoded, real = write(tmp_path / "a.mkv", 600, fps=25.0), [], streams._decode
    monkeypatch.setattr(streams, "_decode", lambda packet, stats: decoded.append(packet) or real(packet, stats))
    monkeypatch.setattr(video, "read_frames", lambda *_, **__: pytest.fail("frames are decoded"))
    info = probe(path)
    assert 0 < len(decoded) < 60, "a decoder gives its first picture after a few packets"
    assert len(info.frames) == 600 and info.duration_s == pytest.approx(24, abs=0.1)
