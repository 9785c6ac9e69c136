"""Spoken words for the generated world, from the espeak-ng library that the ``espeakng-loader`` package bundles.

Each word is synthesised singly, trimmed and cached, so that a film knows to the sample when every word is said.
Nothing here knows about films, tokens or models.
"""

from __future__ import annotations

import ctypes
import threading
from functools import lru_cache

import numpy as np

SAMPLE_RATE = 16_000
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LEAD = ("the", "secret", "number", "word", "is")
_WORDS = (
    "hello morning garden window yellow people music water letter travel evening doctor market river "
    "summer forest kitchen answer orange paper mountain always really because never maybe listen coffee "
    "table story around little under house"
)
CHATTER = tuple(_WORDS.split())
TRAIN_VOICES = tuple(
    f"{accent}{variant}"
    for accent in ("en-us", "en-gb-x-rp", "en-gb-scotland", "en-029", "en-gb-x-gbclan")
    for variant in ("", "+m1", "+m3", "+m4", "+m6", "+m7", "+m8", "+f1", "+f2", "+f5")
)
HELD_OUT_VOICES = ("en-us+m2", "en-gb-scotland+f3", "en-gb-x-rp+m5", "en-us+f4")

_LOCK = threading.Lock()
_SYNCHRONOUS = 2
_PITCH, _RATE = 3, 1


@lru_cache(maxsize=1)
def _engine() -> tuple[ctypes.CDLL, int, list[np.ndarray], object]:
    import espeakng_loader

    lib = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = lib.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
    if rate <= 0:
        raise RuntimeError("espeak-ng did not start; reinstall the package espeakng-loader")
    sink: list[np.ndarray] = []
    prototype = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

    def collect(wave: ctypes._Pointer, count: int, _events: int) -> int:
        if wave and count > 0:
            sink.append(np.ctypeslib.as_array(wave, shape=(count,)).copy())
        return 0

    callback = prototype(collect)
    lib.espeak_SetSynthCallback(callback)
    return lib, rate, sink, callback


@lru_cache(maxsize=20_000)
def say(text: str, voice: str = "en-us", rate: int = 165, pitch: int = 50) -> np.ndarray:
    """Synthesise one word or sentence.

    Parameters
    ----------
    text : str
        What to say, in English.
    voice : str
        An espeak-ng voice with an optional variant: ``"en-gb+f2"``.
    rate : int
        Words per minute.
    pitch : int
        0 to 100.

    Returns
    -------
    ndarray (n,) float32
        16 kHz mono, silence trimmed at both ends, RMS 0.1. Read-only: it is shared by all callers.
    """
    with _LOCK:
        lib, source_rate, sink, _ = _engine()
        sink.clear()
        if lib.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"unknown voice {voice!r}")
        lib.espeak_SetParameter(_RATE, rate, 0)
        lib.espeak_SetParameter(_PITCH, pitch, 0)
        data = text.encode() + b"\0"
        lib.espeak_Synth(data, len(data), 0, 1, 0, 1, None, None)
        lib.espeak_Synchronize()
        wave = np.concatenate(sink).astype(np.float32) / 32768 if sink else np.zeros(0, np.float32)
    loud = np.nonzero(np.abs(wave) > 0.01 * max(1e-6, np.abs(wave).max(initial=0.0)))[0]
    if len(loud) == 0:
        raise RuntimeError(f"espeak-ng said nothing for {text!r} with voice {voice!r}")
    wave = _resample(wave[loud[0] : loud[-1] + 1], source_rate)
    wave *= 0.1 / max(1e-6, float(np.sqrt(np.mean(wave**2))))
    wave.flags.writeable = False
    return wave


def _resample(wave: np.ndarray, rate: int) -> np.ndarray:
    import torch
    import torchaudio.functional as F

    return F.resample(torch.from_numpy(wave), rate, SAMPLE_RATE).numpy().copy()


def sentence(
    words: list[str], voice: str, rate: int, pitch: int, *, gap_s: tuple[float, float], rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """Join singly spoken words with random gaps.

    Returns the wave (n,) float32 and ``(word, start_s, end_s)`` for each word, relative to the wave's start.
    """
    parts: list[np.ndarray] = []
    spans: list[tuple[str, float, float]] = []
    at = 0
    for i, word in enumerate(words):
        if i:
            gap = np.zeros(int(rng.uniform(*gap_s) * SAMPLE_RATE), np.float32)
            parts.append(gap)
            at += len(gap)
        wave = say(word, voice, rate, pitch)
        spans.append((word, at / SAMPLE_RATE, (at + len(wave)) / SAMPLE_RATE))
        parts.append(wave)
        at += len(wave)
    return np.concatenate(parts), spans
