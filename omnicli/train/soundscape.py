"""Sound of the generated world: tones, music and voices, and a film's sound between any two seconds.

Every sound is a pure function of the film and the seconds asked for. Knows what events sound like and neither why they
happen nor how they look.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from omnicli.train import speech
from omnicli.train.speech import SAMPLE_RATE

if TYPE_CHECKING:
    from omnicli.train.script import Event, Film

_AUDIBLE = ("voice", "sound", "music")


@lru_cache(maxsize=512)
def tone(kind: str, seed: int) -> np.ndarray:
    """Return one of the `SOUNDS` as a wave (n,) float32 at 16 kHz, varied by seed."""
    rng = np.random.default_rng([seed, 14])
    length = {"bell": 1.3, "beep": 0.6, "buzz": 0.8, "click": 0.5}[kind] * rng.uniform(0.8, 1.1)
    t = np.arange(int(length * SAMPLE_RATE)) / SAMPLE_RATE
    wave: np.ndarray
    if kind == "bell":
        f = rng.uniform(900, 1500)
        partials = (np.sin(2 * np.pi * f * r * t) * np.exp(-t * (2.5 + r)) / r for r in (1.0, 2.4, 3.9, 5.4))
        wave = np.asarray(sum(partials))
    elif kind == "beep":
        wave = np.sin(2 * np.pi * rng.uniform(700, 1300) * t) * np.minimum(1, np.minimum(t, t[::-1]) * 100)
    elif kind == "buzz":
        wave = np.sign(np.sin(2 * np.pi * rng.uniform(70, 130) * t)) * 0.6
    else:
        wave = np.zeros(len(t))
        for i in range(4):
            at = int(i * len(t) / 4)
            burst = rng.normal(0, 1, 200) * np.exp(-np.arange(200) / 25)
            wave[at : at + 200] += burst[: len(wave) - at]
    wave = wave * 0.14 / max(1e-6, float(np.sqrt(np.mean(wave**2))))
    return np.clip(wave, -0.9, 0.9).astype(np.float32)


def music(seed: int, seconds: float) -> np.ndarray:
    """Return a soft tune (n,) float32 at 16 kHz, one note a beat."""
    rng = np.random.default_rng([seed, 15])
    t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    wave = np.zeros(len(t))
    beat = rng.uniform(0.3, 0.7)
    for i in range(int(seconds / beat) + 1):
        f = 110 * 2 ** (rng.integers(0, 30) / 12)
        on = (t >= i * beat) & (t < (i + 1) * beat)
        local = t[on] - i * beat
        wave[on] = sum(np.sin(2 * np.pi * f * h * local) / h for h in (1, 2, 3)) * np.exp(-local * 3)
    return (wave * rng.uniform(0.01, 0.04)).astype(np.float32)


def voice_wave(event: Event) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """Return the wave of a ``voice`` event and each word's ``(word, start_s, end_s)`` in film seconds."""
    rng = np.random.default_rng([event.seed, 16])
    rate, pitch = ((155, 40), (180, 60))[int(rng.integers(2))]  # few distinct values: words are cached
    wave, spans = speech.sentence(event.text.split(), event.voice, rate, pitch, gap_s=(0.05, 0.16), rng=rng)
    return wave * rng.uniform(0.8, 1.6), [(w, event.start_s + a, event.start_s + b) for w, a, b in spans]


def warped(
    wave: np.ndarray, spans: list[tuple[str, float, float]], start_s: float, factor: float
) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """Play a voice ``factor`` times as fast, formants and pitch with it: voices that no synthesiser ships.

    ``spans`` as `voice_wave` gives them, for a voice that starts at ``start_s``; both come back changed.
    """
    n = round(len(wave) / factor)
    played = np.interp(np.arange(n) * factor, np.arange(len(wave)), wave).astype(np.float32)
    return played, [(w, start_s + (a - start_s) / factor, start_s + (b - start_s) / factor) for w, a, b in spans]


def _event_wave(film: Film, index: int) -> np.ndarray:
    """Return the wave of an audible event of the film, kept for the next stretch."""
    event = film.events[index]
    if index not in film.waves:
        if len(film.waves) > 64:
            film.waves.clear()
        if event.kind == "voice":
            film.waves[index] = voice_wave(event)[0]
        elif event.kind == "sound":
            film.waves[index] = tone(event.text, event.seed % 61)
        else:
            film.waves[index] = music(event.seed, event.end_s - event.start_s)
    return film.waves[index]


def render_audio(film: Film, start_s: float, end_s: float) -> np.ndarray:
    """Render the film's sound between two seconds: (n,) float32, 16 kHz mono."""
    first, last = round(start_s * SAMPLE_RATE), round(end_s * SAMPLE_RATE)
    out = np.random.default_rng([film.seed, 17, first]).normal(0, film.hiss, last - first).astype(np.float32)
    for i, event in enumerate(film.events):
        if event.kind in _AUDIBLE and event.start_s < end_s and event.end_s > start_s - 2:
            wave = _event_wave(film, i)
            at = round(event.start_s * SAMPLE_RATE) - first
            a, b = max(0, at), min(len(out), at + len(wave))
            if b > a:
                out[a:b] += wave[a - at : b - at]
    return np.clip(out, -1, 1)


def mix(wave: np.ndarray, part: np.ndarray, at_s: float) -> None:
    """Add ``part`` to ``wave`` in place from second ``at_s`` on (which may be negative); cut at both ends."""
    first = round(at_s * SAMPLE_RATE)
    a, b = max(0, first), min(len(wave), first + len(part))
    if b > a:
        wave[a:b] += part[a - first : b - first]
