"""Small files with known content for the tests of omnicli.media, and decoding written independently of it.

Every frame carries its own number as eight light or dark fields, so that a test can tell which frame it was given,
whatever the codec did to the pixels.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import Interpolation

from omnicli.media.write import FilmWriter

DATA = Path(__file__).parent.parent / "data"
WIDTH, HEIGHT = 64, 48


def stamp(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Draw a number (0..255) as 2 rows of 4 fields, above a moving texture in colour."""
    image = np.zeros((height, width, 3), np.uint8)
    rng = np.random.default_rng(number // 40)
    field = rng.integers(60, 200, (height, width * 2, 3))
    image[:] = field[:, number % width : number % width + width]
    for bit in range(8):
        top, left = bit // 4 * (height // 2), bit % 4 * (width // 4)
        value = 235 if number >> bit & 1 else 20
        image[top + 2 : top + height // 2 - 4, left + 2 : left + width // 4 - 4] = value
    return image


def read_stamp(rgb: np.ndarray) -> int:
    """Read the number that `stamp` drew, at any size."""
    height, width = rgb.shape[:2]
    number = 0
    for bit in range(8):
        y, x = int((bit // 4 + 0.45) * height / 2), int((bit % 4 + 0.45) * width / 4)
        number |= int(rgb[max(0, y - 1) : y + 1, max(0, x - 1) : x + 1].mean() > 128) << bit
    return number


def tone(seconds: float, hertz: float = 440.0, rate: int = 16_000, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write(
    path: Path, n: int = 80, fps: float = 10.0, *, times: np.ndarray | None = None, sound: bool = True, **options: Any
) -> Path:
    """Write ``n`` stamped frames, with a tone from ``audio_start_s`` to the end unless ``sound`` is off."""
    times = np.arange(n) / fps if times is None else times
    width, height = options.pop("width", WIDTH), options.pop("height", HEIGHT)
    options = {"sample_rate": 16_000 if sound else None, "gop": 20, "threads": 1, **options}
    start = options.get("audio_start_s", 0.0)
    with FilmWriter(path, width, height, fps, **options) as film:
        done = start
        for k, t in enumerate(times):
            while sound and done < min(t + 1, times[-1] + 1 / fps):
                length = min(1.0, times[-1] + 1 / fps - done)
                film.add_samples(tone(length))
                done += length
            film.add_frame(stamp(k % 256, width, height), float(t))
    return path


def write_song(path: Path) -> Path:
    """Write 80 frames of a tone as MP3, with a picture on its cover."""
    with av.open(str(path), "w") as out:
        sound = out.add_stream("libmp3lame", rate=44_100, layout="mono")
        sound.codec_context.format = "fltp"
        cover = out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(stamp(3), "rgb24").reformat(format="yuvj420p")
        picture.pts = 0
        out.mux(cover.encode(picture))
        out.mux(cover.encode(None))
        for k in range(80):
            frame = av.AudioFrame.from_ndarray(tone(1152 / 44_100, rate=44_100)[None, :1152], "fltp", "mono")
            frame.sample_rate, frame.pts = 44_100, k * 1152
            out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
    return path


def full_decode(path: Path, height: int, width: int, index: int = 0) -> dict[int, np.ndarray]:
    """Decode every frame with nothing but PyAV: container pts -> rgb."""
    out: dict[int, np.ndarray] = {}
    with av.open(str(path)) as container:
        for frame in container.decode(video=index):
            picture = frame.reformat(width, height, "rgb24", interpolation=Interpolation.BICUBIC)
            out[frame.pts] = picture.to_ndarray()
    return out


def remux(source: Path, target: Path, **options: str) -> Path:
    """Copy all packets into another container."""
    with av.open(str(source)) as old, av.open(str(target), "w", container_options=options) as new:
        streams = {s.index: new.add_stream_from_template(s) for s in old.streams}
        for packet in old.demux():
            if packet.size:
                packet.stream = streams[packet.stream_index]
                new.mux(packet)
    return target


def find_box(data: bytes, name: bytes, nth: int = 0) -> int:
    """Return the offset of the nth mp4 box of that name."""
    at = -1
    for _ in range(nth + 1):
        at = data.index(name, at + 1)
    return at - 4


def patch(path: Path, offset: int, value: bytes) -> Path:
    data = bytearray(path.read_bytes())
    data[offset : offset + len(value)] = value
    path.write_bytes(bytes(data))
    return path


def rotate_mp4(path: Path, degrees_clockwise: int) -> Path:
    """Write a display matrix into the first track's header."""
    a, b, c, d = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees_clockwise]
    one = 1 << 16
    matrix = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    return patch(path, find_box(path.read_bytes(), b"tkhd") + 48, matrix)
