"""Needles of the audio-video haystack test: the grid of questions, what the needles look and sound like, what counts.

AVOC's AV-NIAH (arXiv 2606.24286, section 4.3 and appendix A.1): a caption "The secret word is <6 digits>" on a single
frame, or the sentence spoken, at a controlled depth of clips of controlled length; "What is the secret number?" is
right if the answer names exactly these digits. Knows no tokens: `omnicli.bench.needle_film` splices needles into
encoded films, `omnicli.bench.needle_run` asks.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from omnicli.errors import MediaError, UsageError
from omnicli.media import audio
from omnicli.media.audio import SAMPLE_RATE
from omnicli.media.probe import probe

QUESTION = "What is the secret number?"
MODALITIES = ("vision", "audio")
FPS = 1.0
"""Frames looked at per second; the sound is heard in full."""
NEEDLES = 5
GRIDS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "coarse": ((100.0, 600.0, 1800.0, 3600.0), (0.0, 0.25, 0.5, 0.75, 1.0)),
    "paper": (tuple(100.0 * i for i in range(1, 37)), tuple(i / 10 for i in range(11))),
}
"""Durations in seconds and depths. The paper's range and step give 36 durations; it says 26."""
SILENT_LUFS = -23.0
"""Loudness of a spoken needle where the haystack is silent (EBU R 128)."""

_FADE = SAMPLE_RATE // 100
_DETAIL = 392  # pixels of width that a caption is drawn at, at least; the world is drawn at twice the pocket's 196


# --- the plan -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """What is asked of every haystack: durations in seconds (ascending), depths 0 to 1, needles a cell, modalities."""

    durations: tuple[float, ...]
    depths: tuple[float, ...]
    needles: int = NEEDLES
    modalities: tuple[str, ...] = MODALITIES
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.durations or min(self.durations) < 1:
            raise UsageError("--durations: at least one, none below 1 s")
        if not self.depths or min(self.depths) < 0 or max(self.depths) > 1:
            raise UsageError("--depths: at least one, between 0 (the beginning) and 1 (the end)")
        if self.needles < 1:
            raise UsageError(f"--needles: at least 1, not {self.needles}")
        for name in ("durations", "depths"):
            object.__setattr__(self, name, tuple(sorted(set(getattr(self, name)))))

    def cells(self, duration_s: float) -> Iterator[tuple[str, float, int]]:
        """Yield (modality, depth, needle) of one duration, in the order they are asked in."""
        return itertools.product(self.modalities, self.depths, range(self.needles))


@dataclass(frozen=True)
class Needle:
    """One hidden number: six digits, and the seed that settles how they look or sound.

    ``wave``: a recording of the sentence, (n,) float32 at 16 kHz, instead of a synthetic voice.
    """

    digits: str
    seed: int
    wave: np.ndarray | None = None

    def spoken(self) -> np.ndarray:
        """Return the sentence as it is said, (n,) float32 at 16 kHz, in a voice that no model was trained on."""
        if self.wave is not None:
            return self.wave
        from omnicli.train import script, soundscape, speech, world

        voice = speech.HELD_OUT_VOICES[self.seed % len(speech.HELD_OUT_VOICES)]
        event = script.Event("voice", 0.0, 0.0, world.number_words(self.digits), seed=self.seed, voice=voice)
        return soundscape.voice_wave(event)[0]

    def drawn(self, frame: np.ndarray) -> np.ndarray:
        """Return the frame (H, W, 3) uint8 with the caption; pixels it does not cover are unchanged."""
        from omnicli.train import scene

        rng = np.random.default_rng([self.seed, 31])
        height, width = frame.shape[:2]
        k = -(-_DETAIL // width)
        wide = frame.repeat(k, 0).repeat(k, 1)
        centre = (rng.uniform(0, scene.UNITS_WIDE), rng.uniform(0, height * scene.UNITS_WIDE / width))
        look = dataclasses.replace(scene.caption_look(self.seed), lead=True)
        scene.draw_caption(wide, self.digits, centre, look)
        small = wide.reshape(height, k, width, k, 3).mean((1, 3))
        return np.clip(np.rint(small), 0, 255).astype(np.uint8)


def make_needle(
    grid: Grid, modality: str, *, duration_s: float, depth: float, number: int, recordings: Sequence[Needle] = ()
) -> Needle:
    """Return the needle of one question: its own digits and looks in every cell, the same for every preset.

    The paper hides the same five everywhere; fresh ones make the cells independent, as intervals assume.
    """
    if modality == "audio" and recordings:
        return recordings[number % len(recordings)]
    key = zlib.crc32(f"{modality} {duration_s:g} {depth:g} {number}".encode())
    rng = np.random.default_rng([grid.seed, key])
    return Needle("".join(str(d) for d in rng.integers(0, 10, 6)), int(rng.integers(1 << 30)))


def read_recording(text: str) -> Needle:
    """Read ``FILE=DIGITS``, or a file whose name holds the six digits: a recording of the spoken needle.

    Raises
    ------
    UsageError
        The digits are not told.
    MediaError
        The file cannot be read or holds no sound.
    """
    name, equals, digits = text.rpartition("=")
    if not equals:
        name, found = text, re.findall(r"(?<!\d)\d{6}(?!\d)", Path(text).stem)
        digits = found[0] if len(found) == 1 else ""
    if not re.fullmatch(r"\d{6}", digits):
        raise UsageError(f"--needle-wav {text}: say which six digits are spoken: --needle-wav {name}=482913")
    wave = np.concatenate([np.zeros(0, np.float32), *audio.read_audio(probe(name))])
    if not np.abs(wave).max(initial=0.0) > 0:
        raise MediaError(f"{name}: the recording is silent")
    return Needle(digits, 0, wave)


def caption_frame(frames: int, depth: float) -> int:
    """Return which of so many frames carries the caption at a depth."""
    return round(depth * (frames - 1))


def loudness(samples: np.ndarray) -> float:
    """Return the integrated loudness of a haystack's sound (n,) float32 in LUFS (ITU-R BS.1770), -inf for silence.

    Of more than five minutes, which would take gigabytes at once, sixty stretches of five seconds are measured, spread
    evenly from the first to the last.
    """
    stretch = 5 * SAMPLE_RATE
    if len(samples) > 60 * stretch:
        starts = np.linspace(0, len(samples) - stretch, 60).round().astype(int)
        samples = np.concatenate([samples[a : a + stretch] for a in starts])
    return audio.integrated_loudness(samples)


def speak(samples: np.ndarray, lufs: float, depth: float, needle: Needle) -> tuple[np.ndarray, int, int]:
    """Return a copy of a sound with the sentence in place of what was there, and the samples it begins and ends at.

    It has the loudness ``lufs`` (ITU-R BS.1770; -inf, a silent haystack, takes `SILENT_LUFS`) as far as the peak
    allows, and fades in and out of the haystack over 10 ms.
    """
    wave = audio.match_loudness(needle.spoken(), lufs if np.isfinite(lufs) else SILENT_LUFS)
    n, m = len(samples), len(wave)
    if m > n:
        raise UsageError(
            f"a spoken needle takes {m / SAMPLE_RATE:.1f} s, the haystack's sound {n / SAMPLE_RATE:.1f} s: "
            "choose longer --durations"
        )
    begin = round(depth * (n - m))
    share = np.ones(m, np.float32)
    fade = min(_FADE, m // 2)
    share[:fade] = np.linspace(0, 1, fade, endpoint=False, dtype=np.float32)
    share[m - fade :] = share[:fade][::-1]
    out = samples.copy()
    out[begin : begin + m] = np.clip(samples[begin : begin + m] * (1 - share) + wave * share, -1, 1)
    return out, begin, begin + m


def found(answer: str, digits: str) -> bool:
    """Tell whether an answer names exactly this number: digits may be spaced, and no other long number may be there."""
    for text in (answer, re.sub(r"(?<=\d)[\s,.\-]{1,2}(?=\d)", "", answer)):
        if set(re.findall(r"\d{6,}", text)) == {digits}:
            return True
    return False


def write_haystack(path: Path, duration_s: float, seed: int = 0, progress: Any = None) -> None:
    """Write a generated film with people, shapes and noises, and no number seen or said: nothing competes."""
    from omnicli.train import films, speech, world

    film = world.make_film(
        7_000_003 + seed, max(12.0, duration_s), tasks=("who", "cross"), voices=speech.HELD_OUT_VOICES
    )
    films.write_film(film, path, fps=2.0, progress=progress)
