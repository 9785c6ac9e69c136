"""Every sample at its true second: late starts, holes, containers without stamps, and nothing lost at the end."""

import av
import numpy as np
import pytest

from omnicli.errors import MediaError
from omnicli.media.audio import SAMPLE_RATE, integrated_loudness, match_loudness, read_audio
from omnicli.media.container import DecodeStats
from omnicli.media.probe import probe
from omnicli.media.write import FilmWriter
from tests.support.stamped import DATA, stamp, tone, write


def sound(path, *args, **options):
    blocks = list(read_audio(probe(path), *args, **options))
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def loud(samples, block=160):
    """Return (first, last) second at which something sounds."""
    n = len(samples) // block
    level = np.abs(samples[: n * block]).reshape(n, block).max(1)
    places = np.flatnonzero(level > 0.1)
    return places[0] * block / SAMPLE_RATE, (places[-1] + 1) * block / SAMPLE_RATE


def encode(path, codec, rate, seconds=3.0, layout="mono", samples=None):
    """Write a sound file."""
    data = tone(seconds, rate=rate) if samples is None else samples
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate, layout=layout)
        if codec == "libmp3lame":
            stream.codec_context.format = "fltp"
        stream.codec_context.open()
        name, size = stream.codec_context.format.name, stream.codec_context.frame_size or 1024
        layout = stream.codec_context.layout.name
        channels = len(stream.codec_context.layout.channels)
        for at in range(0, len(data), size):
            part = data[at : at + size]
            if len(part) < size and codec.startswith("adpcm"):
                part = np.pad(part, (0, size - len(part)))
            if name.startswith("s16"):
                part = (part * 32767).astype(np.int16)
            planar = name.endswith("p")
            part = np.tile(part, (channels, 1)) if planar else np.repeat(part, channels)[None]
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), format=name, layout=layout)
            frame.sample_rate, frame.pts = rate, at
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


FORMATS = {
    "a.wav": ("pcm_s16le", 44_100),
    "b.wav": ("adpcm_ms", 22_050),
    "c.wav": ("adpcm_ima_wav", 44_100),
    "d.flac": ("flac", 48_000),
    "e.mp3": ("libmp3lame", 44_100),
    "f.aac": ("aac", 44_100),
    "g.ogg": ("libopus", 48_000),
    "h.m4a": ("aac", 16_000),
    "i.wav": ("pcm_f32le", 16_000),
}


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("layout", ["mono", "stereo"])
def test_sound_only_files(tmp_path, name, layout):
    codec, rate = FORMATS[name]
    path = encode(tmp_path / name, codec, rate, 3.0, layout)
    info = probe(path)
    assert info.video is None and info.frames is None and info.audio is not None
    assert info.audio.channels == (2 if layout == "stereo" else 1)
    assert info.audio_span == pytest.approx((0, 3.0), abs=0.1)
    stats = DecodeStats()
    blocks = list(read_audio(info, stats=stats))
    assert [len(b) for b in blocks[:1]] == [32_000] and all(b.dtype == np.float32 for b in blocks)
    samples = np.concatenate(blocks)
    first, last = loud(samples)
    assert first < 0.06 and last == pytest.approx(3.0, abs=0.06)
    assert len(samples) == pytest.approx(48_000, abs=0.1 * SAMPLE_RATE)
    assert stats.error_count == 0
    middle = samples[16_000:32_000]  # the tone itself: 440 Hz at 0.5
    spectrum = np.abs(np.fft.rfft(middle))
    assert spectrum.argmax() == 440
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.08)


def test_nothing_is_lost_at_the_end(tmp_path):
    """Without telling the resampler that no more comes, its last samples stay inside."""
    path = encode(tmp_path / "a.wav", "pcm_s16le", 44_100, 2.0)
    assert len(sound(path)) == 32_000
    path = encode(tmp_path / "b.wav", "pcm_s16le", 48_000, 2.0)
    assert len(sound(path)) == 32_000


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "mov"])
@pytest.mark.parametrize("start", [0.0, 0.3, 2.5])
def test_late_sound(tmp_path, suffix, start):
    path = write(tmp_path / f"a.{suffix}", 60, audio_start_s=start)
    info = probe(path)
    samples = sound(path)
    # an AAC encoder begins with 64 ms of run-up, which some containers do not mark
    picture = info.frames.time_s[0]
    assert picture == pytest.approx(0, abs=0.07)
    assert loud(samples)[0] - picture == pytest.approx(start, abs=0.03)
    assert info.audio_span[0] - picture == pytest.approx(start, abs=0.07)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_hole_in_the_sound_is_silence(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    with FilmWriter(path, 64, 48, 10) as film:
        film.add_samples(tone(2.0))
        film.add_samples(tone(1.0), time_s=5.0)
        for k in range(70):
            film.add_frame(stamp(k), k / 10)
    info = probe(path)
    assert any("hole" in p for p in info.problems) and info.status == "ok"
    samples = sound(path)
    assert loud(samples[: 4 * SAMPLE_RATE])[1] == pytest.approx(2.0, abs=0.07)
    assert loud(samples[4 * SAMPLE_RATE :])[0] == pytest.approx(1.0, abs=0.07)
    assert not samples[int(2.2 * SAMPLE_RATE) : int(4.8 * SAMPLE_RATE)].any()


def test_sound_of_joined_recordings(tmp_path):
    a, b = write(tmp_path / "a.ts", 30), write(tmp_path / "b.ts", 50, audio_start_s=2.0)
    path = tmp_path / "both.ts"
    path.write_bytes(a.read_bytes() + b.read_bytes())
    info = probe(path)
    second = info.frames.time_s[30]
    samples = sound(path)
    assert loud(samples[: 4 * SAMPLE_RATE])[1] == pytest.approx(3.0, abs=0.15)
    assert loud(samples[4 * SAMPLE_RATE :])[0] + 4 == pytest.approx(second + 2.0, abs=0.05)
    assert len(samples) == pytest.approx((second + 5) * SAMPLE_RATE, abs=0.2 * SAMPLE_RATE)


def test_opus_run_up_does_not_move_the_pictures(tmp_path):
    path = write(
        tmp_path / "a.webm",
        30,
        codec="libvpx",
        bframes=0,
        options={"cpu-used": "8"},
        audio_codec="libopus",
        sample_rate=48_000,
    )
    info = probe(path)
    assert info.frames.time_s[0] == pytest.approx(0, abs=0.002)
    assert loud(sound(path))[0] < 0.03


def test_blocks_and_spans(tmp_path):
    path = DATA / "nasa_webb_narration_13s.mp4"
    info = probe(path)
    whole = sound(path)
    assert len(whole) == round(info.audio_span[1] * SAMPLE_RATE)
    for block_s in (0.1, 0.7, 2.0, 60.0):
        blocks = list(read_audio(info, block_s=block_s))
        assert {len(b) for b in blocks[:-1]} <= {round(block_s * SAMPLE_RATE)}
        assert 0 < len(blocks[-1]) <= round(block_s * SAMPLE_RATE)
        assert np.array_equal(np.concatenate(blocks), whole)
    part = sound(path, 3.25, 7.5)
    assert np.array_equal(part, whole[52_000:120_000])
    assert len(sound(path, 12.0, 60.0)) == len(whole) - 12 * SAMPLE_RATE
    assert len(sound(path, 20.0)) == 0
    stats = DecodeStats()
    assert len(np.concatenate(list(read_audio(info, 5.0, 6.0, stats=stats)))) == 16_000
    assert stats.packets_sent < 60, "packets far from the span were decoded"
    with pytest.raises(ValueError):
        read_audio(info, block_s=0)


def test_span_at_other_sample_rates():
    """From 44.1 kHz the grid of a span may lie up to half a sample beside that of the whole."""
    path = DATA / "jfk_inaugural_11s.flac"
    whole, part = sound(path), sound(path, 4.0, 6.0)
    assert len(whole) == 11 * SAMPLE_RATE and len(part) == 2 * SAMPLE_RATE
    match = [np.corrcoef(part[100:-100], whole[64_100 + lag : 95_900 + lag])[0, 1] for lag in range(-3, 4)]
    assert np.argmax(match) == 3 and match[3] > 0.9


def test_change_of_sample_rate(tmp_path):
    a = encode(tmp_path / "a.aac", "aac", 44_100, 2.0)
    b = encode(tmp_path / "b.aac", "aac", 22_050, 2.0, "stereo")
    path = tmp_path / "both.aac"
    path.write_bytes(a.read_bytes() + b.read_bytes())
    samples = sound(path)
    assert np.abs(np.fft.rfft(samples[8_000:24_000])).argmax() == 440
    assert len(samples) > 3 * SAMPLE_RATE


def test_no_sound_is_an_error(tmp_path):
    with pytest.raises(MediaError, match=r"a\.mp4: the file holds no sound"):
        read_audio(probe(write(tmp_path / "a.mp4", 10, sound=False)))


def test_damaged_sound_is_counted(tmp_path):
    source = write(tmp_path / "a.mkv", 100).read_bytes()
    errors = 0
    for seed in range(6):
        data = bytearray(source)
        rng = np.random.default_rng(seed)
        for at in rng.integers(2000, len(data), 150):
            data[at] ^= 1 << rng.integers(8)
        path = tmp_path / "damaged.mkv"
        path.write_bytes(bytes(data))
        stats = DecodeStats()
        samples = np.concatenate(list(read_audio(probe(path), stats=stats)))
        assert np.isfinite(samples).all()
        assert 8.5 * SAMPLE_RATE < len(samples) < 60 * SAMPLE_RATE  # damaged stamps may stretch it
        errors += stats.error_count
    assert errors > 0, "nothing was damaged: the test would show nothing"


def test_one_wild_time_stamp_does_not_last_for_days(tmp_path, monkeypatch):
    import omnicli.media.timeline as timeline

    path = write(tmp_path / "a.ts", 50)
    true = probe(path)

    class Wild:
        """A packet whose time stamp was hit."""

        def __init__(self, packet):
            self.packet = packet
            self.pts = packet.pts + 90_000 * 86_400

        def __getattr__(self, name):
            return getattr(self.packet, name)

    original = timeline.packets

    def damaged(container, streams, stats):
        found = list(original(container, streams, stats))
        hit = [k for k, p in enumerate(found) if p.stream.type == "audio"][where[0]]
        return [Wild(p) if k == hit else p for k, p in enumerate(found)]

    monkeypatch.setattr(timeline, "packets", damaged)
    where = [0]
    for place in (20, -1):
        where[0] = place
        info = probe(path)
        assert info.duration_s == pytest.approx(true.duration_s, abs=0.2)
        assert info.audio_span == pytest.approx(true.audio_span, abs=0.2)


def test_loudness():
    pytest.importorskip("torchaudio")
    # BS.1770: a full-scale 997 Hz sine in one channel measures -3.01 LUFS
    wave = tone(5, 997, level=1.0)
    assert integrated_loudness(wave) == pytest.approx(-3.01, abs=0.4)
    assert integrated_loudness(wave * 0.1) == pytest.approx(-23.01, abs=0.4)
    assert integrated_loudness(wave[:1000]) == pytest.approx(-3.0, abs=1.0)
    assert integrated_loudness(np.zeros(16_000, np.float32)) == -np.inf
    assert integrated_loudness(np.zeros(0, np.float32)) == -np.inf
    matched = match_loudness(wave * 0.01, -20.0)
    assert integrated_loudness(matched) == pytest.approx(-20.0, abs=0.2)
    assert np.abs(match_loudness(wave * 0.01, 20.0)).max() <= 0.991
    assert not match_loudness(np.zeros(100, np.float32), -20.0).any()
