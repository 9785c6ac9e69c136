"""Small films for the tests of the command line: good ones, unusual ones, damaged ones."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

RATE = 16_000
SECONDS = 6
FPS = 8

GOOD = ("film.mp4", "silent.mp4", "sound.wav", "one_frame.mp4", "late_sound.mkv", "short.mp4", "name with ünïcode.mp4")
"""Answered with exit code 0."""

DAMAGED = ("truncated.mkv", "bit_flips.mp4")
"""Answered as far as they go, with a warning, or refused with exit code 3."""

BAD = ("empty.mp4", "text.mp4", "no_moov.mp4", "noise.mkv", "header_only.mkv", "zeros.mp4")
"""Refused with exit code 3 and one line."""


def picture(i: int, width: int = 196, height: int = 112) -> np.ndarray:
    """Return a picture (height, width, 3) uint8 that differs from frame to frame."""
    ramp = np.add.outer(np.arange(height), np.arange(width)) + 5 * i
    return np.stack([ramp % 256, (2 * ramp) % 256, (3 * ramp) % 256], axis=-1).astype(np.uint8)


def tone(seconds: float) -> np.ndarray:
    """Return a tone, float32 at 16 kHz."""
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def write(
    path: Path, seconds: float = SECONDS, *, sound: bool = True, frames: int | None = None, late: float = 0
) -> Path:
    """Write a film of moving ramps and a tone."""
    from omnicli.media.write import FilmWriter

    count = int(seconds * FPS) if frames is None else frames
    with FilmWriter(
        path, 196, 112, FPS, sample_rate=RATE if sound else None, gop=FPS, audio_start_s=late, preset="ultrafast"
    ) as film:
        for i in range(count):
            film.add_frame(picture(i), i / FPS)
        if sound:
            film.add_samples(tone(seconds - late))
    return path


def write_wave(path: Path, seconds: float = SECONDS) -> Path:
    """Write a sound file."""
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes((tone(seconds) * 32767).astype("<i2").tobytes())
    return path


def write_all(folder: Path) -> None:
    """Write every film that the lists above name."""
    good = write(folder / "film.mp4").read_bytes()
    write(folder / "silent.mp4", sound=False)
    write_wave(folder / "sound.wav")
    write(folder / "one_frame.mp4", 0.2, sound=False, frames=1)
    write(folder / "late_sound.mkv", late=2.5)
    write(folder / "short.mp4", 0.5)
    (folder / "name with ünïcode.mp4").write_bytes(good)

    matroska = write(folder / "whole.mkv").read_bytes()
    (folder / "truncated.mkv").write_bytes(matroska[: len(matroska) * 6 // 10])
    rng = np.random.default_rng(5)
    damaged = np.frombuffer(good, np.uint8).copy()
    body = slice(len(damaged) // 8, len(damaged) // 2)  # picture and sound data, neither the head nor the index
    spots = rng.integers(body.start, body.stop, 60)
    damaged[spots] ^= 1 << rng.integers(0, 8, 60).astype(np.uint8)
    (folder / "bit_flips.mp4").write_bytes(damaged.tobytes())

    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("This is a letter, not a film.\n" * 40)
    (folder / "no_moov.mp4").write_bytes(good[: good.rindex(b"moov") - 4])
    (folder / "noise.mkv").write_bytes(rng.bytes(20_000))
    (folder / "header_only.mkv").write_bytes(matroska[: matroska.index(b"\x1f\x43\xb6\x75")])  # up to the first cluster
    (folder / "zeros.mp4").write_bytes(bytes(10_000))
