"""The generated world: films of any length with pictures and sound on one clock, and questions with known answers.

A film is a list of timed events (`Film`); pictures and sound are pure functions of it, so that any second can be
rendered on its own and an hour is never held in memory. Everything is deterministic by seed. This module knows
nothing of tokens or models; `omnicli.train.pocket` trains on it, `omni demo` and the tests ask about it.

Lengths in pictures are given in *units*: a frame is 196 units wide whatever its size in pixels, so that a digit has
the same share of the frame in a 360p film and at the pocket model's own resolution.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from omnicli.train import speech
from omnicli.train.speech import SAMPLE_RATE

UNITS_WIDE = 196.0
COLOURS = {
    "red": (215, 35, 35),
    "green": (35, 180, 60),
    "blue": (45, 75, 230),
    "yellow": (240, 220, 40),
    "pink": (245, 110, 200),
    "white": (250, 250, 250),
}
SHAPES = ("circle", "square", "triangle")
SOUNDS = ("bell", "beep", "buzz", "click")


@dataclass(frozen=True)
class Event:
    """Something that happens between two seconds of the film.

    ``kind`` is one of ``caption`` (text = digits), ``character`` (text = colour), ``shape`` (text = "colour shape"),
    ``voice`` (text = words, audible), ``sound`` (text = name), ``music``. ``place`` is the centre in units, ``seed``
    settles everything else about how it looks or sounds.
    """

    kind: str
    start_s: float
    end_s: float
    text: str = ""
    place: tuple[float, float] = (98.0, 56.0)
    seed: int = 0
    voice: str = "en-us"


@dataclass(frozen=True)
class Question:
    """A question with its answer and the second(s) it rests on. ``task`` groups scores."""

    text: str
    answer: str
    task: str
    at_s: tuple[float, float]


@dataclass(frozen=True)
class Film:
    """A film before it is rendered: events in time order, scene borders, and the questions it answers."""

    seed: int
    duration_s: float
    scenes: tuple[float, ...]
    events: tuple[Event, ...]
    questions: tuple[Question, ...] = ()
    noise: float = 4.0
    hiss: float = 0.003
    waves: dict[int, np.ndarray] = field(default_factory=dict, compare=False, repr=False)


# --- pictures -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=96)
def background(seed: int, width: int, height: int) -> np.ndarray:
    """Return a procedural, soft, footage-like background (height, width, 3) uint8."""
    from PIL import Image

    rng = np.random.default_rng([seed, 11])
    base = rng.uniform(20, 170, 3)
    total = np.zeros((height, width, 3), np.float32) + base
    for cells, strength in ((3, 45.0), (7, 22.0), (17, 9.0)):
        rows = max(2, round(cells * height / width) + 1)
        grid = rng.normal(0, strength, (rows, cells + 1, 3)) * rng.uniform(0.2, 1.2)
        for c in range(3):
            layer = Image.fromarray(grid[..., c].astype(np.float32), mode="F")
            total[..., c] += np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC))
    if rng.random() < 0.4:  # a horizon, a wall, a road: one hard edge
        row = int(rng.uniform(0.3, 0.8) * height)
        total[row:] += rng.uniform(-50, 50, 3)
    return np.clip(total, 5, 235).astype(np.uint8)


@lru_cache(maxsize=4096)
def _glyph(char: str, size: float, stroke: float, stretch: float) -> np.ndarray:
    """Return the alpha mask (h, w) float32 of one character, tight in width, ``size`` pixels of font height."""
    from PIL import Image, ImageDraw, ImageFont

    over = 4
    font = ImageFont.load_default(max(4.0, size * over))
    canvas = Image.new("L", (int(size * over * 1.6) + 8, int(size * over * 1.5) + 8))
    ImageDraw.Draw(canvas).text(
        (size * over * 0.25, 0), char, fill=255, font=font, stroke_width=round(stroke * over), stroke_fill=255
    )
    box = canvas.getbbox() or (0, 0, over, over)
    canvas = canvas.crop((box[0], 0, box[2], canvas.height))
    width = max(1, round(canvas.width / over * stretch))
    return np.asarray(canvas.resize((width, round(canvas.height / over)), Image.Resampling.BOX), np.float32) / 255


def _paste(image: np.ndarray, mask: np.ndarray, colour: Any, left: float, top: float) -> None:
    """Blend ``colour`` into ``image`` (H, W, 3) uint8 in place where ``mask`` (h, w) is; clipped at the borders."""
    x, y = round(left), round(top)
    x0, y0 = max(0, x), max(0, y)
    x1, y1 = min(image.shape[1], x + mask.shape[1]), min(image.shape[0], y + mask.shape[0])
    if x1 <= x0 or y1 <= y0:
        return
    alpha = mask[y0 - y : y1 - y, x0 - x : x1 - x, None]
    region = image[y0:y1, x0:x1]
    image[y0:y1, x0:x1] = (region * (1 - alpha) + np.asarray(colour, np.float32) * alpha).astype(np.uint8)


@dataclass(frozen=True)
class CaptionLook:
    """Sizes in units, colours, and whether the lead line is written above the digits."""

    size: float
    advance: float
    stroke: float
    stretch: float
    ink: tuple[int, int, int]
    box: tuple[int, int, int]
    opacity: float
    lead: bool


def caption_look(seed: int) -> CaptionLook:
    """Settle how a caption looks from its seed."""
    rng = np.random.default_rng([seed, 12])
    dark = rng.random() < 0.85
    ink = rng.integers(215, 256, 3) if dark else rng.integers(0, 40, 3)
    box = rng.integers(0, 50, 3) if dark else rng.integers(205, 256, 3)
    size = float(rng.integers(19, 26))  # few distinct values: glyphs are cached
    return CaptionLook(
        size=size,
        advance=size * rng.uniform(0.62, 0.72) + 1.0,
        stroke=float(rng.choice((0.0, 0.35, 0.7))),
        stretch=float(rng.choice((0.95, 1.0, 1.05, 1.1))),
        ink=tuple(int(v) for v in ink),
        box=tuple(int(v) for v in box),
        opacity=rng.uniform(0.8, 1.0),
        lead=rng.random() < 0.7,
    )


def draw_caption(
    image: np.ndarray, digits: str, centre: tuple[float, float], look: CaptionLook
) -> list[tuple[float, float]]:
    """Draw a boxed number into ``image`` in place; return each digit's centre (x, y) in pixels.

    ``centre`` is in units and is moved so that the box stays inside the frame.
    """
    k = image.shape[1] / UNITS_WIDE
    units_high = image.shape[0] / k
    line, lead_high = look.size * 1.15, (look.size * 0.42 if look.lead else 0.0)
    box_w, box_h = look.advance * len(digits) + 8, line + lead_high + 4
    cx = float(np.clip(centre[0], box_w / 2 + 1, UNITS_WIDE - box_w / 2 - 1))
    cy = float(np.clip(centre[1], box_h / 2 + 1, units_high - box_h / 2 - 1))
    left, top = (cx - box_w / 2) * k, (cy - box_h / 2) * k
    _paste(image, np.full((round(box_h * k), round(box_w * k)), look.opacity, np.float32), look.box, left, top)
    if look.lead:
        x = left + 4 * k
        for char in "The secret word is":
            if char == " ":
                x += 2.2 * k
                continue
            mask = _glyph(char, round(look.size * 0.36 * k, 1), 0.0, 0.9)
            _paste(image, mask, look.ink, x, top + 2 * k)
            x += mask.shape[1] + 0.8 * k
    centres = []
    for i, char in enumerate(digits):
        mask = _glyph(char, round(look.size * k, 1), round(look.stroke * k, 1), round(look.stretch, 2))
        x = left + (4 + look.advance * (i + 0.5)) * k
        y = top + (lead_high + 2) * k
        _paste(image, mask, look.ink, x - mask.shape[1] / 2, y - 0.1 * look.size * k)
        centres.append((x, y + 0.55 * look.size * k))
    return centres


@lru_cache(maxsize=256)
def _outline(kind: str, high: int) -> np.ndarray:
    """Return the alpha mask of a shape or of a character's body, ``high`` pixels tall."""
    from PIL import Image, ImageDraw

    over = 4
    h = high * over
    w = h if kind != "body" else round(h * 0.55)
    canvas = Image.new("L", (w, h))
    draw = ImageDraw.Draw(canvas)
    if kind == "circle":
        draw.ellipse((0, 0, w - 1, h - 1), fill=255)
    elif kind == "square":
        draw.rectangle((w * 0.06, h * 0.06, w * 0.94, h * 0.94), fill=255)
    elif kind == "triangle":
        draw.polygon([(w / 2, 0), (w - 1, h - 1), (0, h - 1)], fill=255)
    elif kind == "body":
        draw.ellipse((w * 0.2, 0, w * 0.8, h * 0.36), fill=255)
        draw.rounded_rectangle((w * 0.05, h * 0.4, w * 0.95, h * 1.2), radius=w * 0.25, fill=255)
    else:
        raise ValueError(f"unknown outline {kind!r}")
    return np.asarray(canvas.resize((max(1, w // over), max(1, high)), Image.Resampling.BOX), np.float32) / 255


def draw_figure(image: np.ndarray, event: Event, time_s: float) -> None:
    """Draw a shape or a character (with eyes) of an event into ``image`` in place, drifting slowly with time."""
    rng = np.random.default_rng([event.seed, 13])
    k = image.shape[1] / UNITS_WIDE
    drift = rng.uniform(-2.0, 2.0, 2) * (time_s - event.start_s)
    cx, cy = event.place[0] + drift[0], event.place[1] + drift[1] * 0.4
    if event.kind == "shape":
        colour, shape = event.text.split()
        high = rng.uniform(30, 44)
    else:
        colour, shape, high = event.text, "body", rng.uniform(64, 84)
        cy = image.shape[0] / k - high * 0.5
    mask = _outline(shape, round(high * k))
    wide = mask.shape[1] / k
    cx = float(np.clip(cx, wide / 2, UNITS_WIDE - wide / 2))
    cy = float(np.clip(cy, high / 2, image.shape[0] / k - high / 2))
    ink = np.clip(np.array(COLOURS[colour]) * rng.uniform(0.88, 1.05) + rng.uniform(-8, 8, 3), 0, 255)
    _paste(image, mask, ink, (cx - wide / 2) * k, (cy - high / 2) * k)
    if shape == "body":
        eye = _outline("circle", max(2, round(high * 0.055 * k)))
        for side in (-0.1, 0.1):
            _paste(image, eye, (15, 15, 15), (cx + side * wide - 1.5) * k, (cy - high * 0.36) * k)


def render_frame(film: Film, time_s: float, width: int, height: int) -> np.ndarray:
    """Render the film's picture at one second: (height, width, 3) uint8 RGB."""
    scene = int(np.searchsorted(film.scenes, time_s, side="right"))
    image = background(int(film.seed * 7919 + scene), width, height).copy()
    for event in film.events:
        if event.start_s <= time_s < event.end_s:
            if event.kind in ("shape", "character"):
                draw_figure(image, event, time_s)
            elif event.kind == "caption":
                draw_caption(image, event.text, event.place, caption_look(event.seed))
    if film.noise > 0:
        tile = _noise_tile(height + 64, width + 64)
        rng = np.random.default_rng([film.seed, int(time_s * 1000)])
        y, x = rng.integers(0, 64, 2)
        image = np.clip(image + tile[y : y + height, x : x + width, None] * film.noise, 0, 255).astype(np.uint8)
    return image


@lru_cache(maxsize=4)
def _noise_tile(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(5).normal(0, 1, (height, width)).astype(np.float32)


# --- sound ----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=512)
def tone(kind: str, seed: int) -> np.ndarray:
    """Return one of the `SOUNDS` as a wave (n,) float32 at 16 kHz, varied by seed."""
    rng = np.random.default_rng([seed, 14])
    length = {"bell": 1.3, "beep": 0.6, "buzz": 0.8, "click": 0.5}[kind] * rng.uniform(0.8, 1.1)
    t = np.arange(int(length * SAMPLE_RATE)) / SAMPLE_RATE
    if kind == "bell":
        f = rng.uniform(900, 1500)
        wave = sum(np.sin(2 * np.pi * f * r * t) * np.exp(-t * (2.5 + r)) / r for r in (1.0, 2.4, 3.9, 5.4))
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


def _music(seed: int, seconds: float) -> np.ndarray:
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
    wave, spans = speech.sentence(event.text.split(), event.voice, rate, pitch, (0.05, 0.16), rng)
    return wave * rng.uniform(0.8, 1.6), [(w, event.start_s + a, event.start_s + b) for w, a, b in spans]


def _event_wave(film: Film, index: int) -> np.ndarray | None:
    event = film.events[index]
    if event.kind not in ("voice", "sound", "music"):
        return None
    if index not in film.waves:
        if len(film.waves) > 64:
            film.waves.clear()
        if event.kind == "voice":
            film.waves[index] = voice_wave(event)[0]
        elif event.kind == "sound":
            film.waves[index] = tone(event.text, event.seed % 61)
        else:
            film.waves[index] = _music(event.seed, event.end_s - event.start_s)
    return film.waves[index]


def render_sound(film: Film, start_s: float, end_s: float) -> np.ndarray:
    """Render the film's sound between two seconds: (n,) float32, 16 kHz mono."""
    first, last = round(start_s * SAMPLE_RATE), round(end_s * SAMPLE_RATE)
    out = np.random.default_rng([film.seed, 17, first]).normal(0, film.hiss, last - first).astype(np.float32)
    for i, event in enumerate(film.events):
        if event.kind in ("voice", "sound", "music") and event.start_s < end_s and event.end_s > start_s - 2:
            wave = _event_wave(film, i)
            if wave is None:
                continue
            at = round(event.start_s * SAMPLE_RATE) - first
            a, b = max(0, at), min(len(out), at + len(wave))
            if b > a:
                out[a:b] += wave[a - at : b - at]
    return np.clip(out, -1, 1)


# --- films ----------------------------------------------------------------------------------------------------------


def _voice_event(rng: np.random.Generator, at: float, words: str, voices: tuple[str, ...]) -> Event:
    event = Event("voice", at, at, words, seed=int(rng.integers(1 << 30)), voice=str(rng.choice(voices)))
    wave, _ = voice_wave(event)
    return Event("voice", at, at + len(wave) / SAMPLE_RATE, words, seed=event.seed, voice=event.voice)


def number_words(digits: str, lead: bool = True) -> str:
    """Return how a number is said: ``"the secret word is four eight two nine one three"``."""
    said = " ".join(speech.DIGITS[int(d)] for d in digits)
    return f"the secret word is {said}" if lead else said


def _chatter(rng: np.random.Generator, low: int = 2, high: int = 6) -> str:
    return " ".join(rng.choice(speech.CHATTER) for _ in range(int(rng.integers(low, high))))


def make_film(
    seed: int,
    duration_s: float,
    *,
    tasks: tuple[str, ...] = ("caption", "spoken", "who", "cross"),
    voices: tuple[str, ...] = speech.TRAIN_VOICES,
    caption_s: float = 1.0,
    depth: float | None = None,
) -> Film:
    """Write the script of a film: scenes, people, sounds, and one answerable question or more per task.

    Parameters
    ----------
    seed : int
        Settles everything.
    duration_s : float
        Length in seconds, at least 12.
    tasks : tuple of str
        Of ``caption`` (a number shown on a single frame at one frame a second), ``spoken`` (a number said while
        nobody is on screen), ``who`` (who speaks last; at least two characters speak), ``cross`` (a shape on screen
        while a sound rings, presence, order).
    voices : tuple of str
        Voices for all speech; test films use `speech.HELD_OUT_VOICES`.
    caption_s : float
        Seconds the caption stays on screen.
    depth : float or None
        Relative position (0 to 1) of the caption and of the spoken number; None is random.
    """
    rng = np.random.default_rng([seed, 21])
    events: list[Event] = []
    questions: list[Question] = []
    scenes, at = [], 0.0
    while (at := at + rng.uniform(4, 14)) < duration_s:
        scenes.append(at)
    slots = _Slots(duration_s, rng)
    both = {"caption", "spoken"} <= set(tasks)

    def place() -> tuple[float, float]:
        return (float(rng.uniform(20, 176)), float(rng.uniform(20, 92)))

    if "spoken" in tasks:
        digits = "".join(str(d) for d in rng.integers(0, 10, 6))
        trial = _voice_event(rng, 0.0, number_words(digits), voices)
        start = slots.take(trial.end_s + 0.4, None if depth is None else depth * (duration_s - trial.end_s - 0.4))
        start += 0.2
        event = Event("voice", start, start + trial.end_s, trial.text, seed=trial.seed, voice=trial.voice)
        events.append(event)
        text = "What number is spoken?" if both else str(rng.choice(("What is the secret number?", "What number is spoken?")))
        questions.append(Question(text, digits, "spoken", (event.start_s, event.end_s)))
    if "caption" in tasks:
        digits = "".join(str(d) for d in rng.integers(0, 10, 6))
        start = slots.take(caption_s + 0.1, None if depth is None else depth * (duration_s - caption_s - 0.1))
        if caption_s == 1.0:
            start = float(int(start))  # exactly one frame at one frame a second
        events.append(Event("caption", start, start + caption_s, digits, place(), int(rng.integers(1 << 30))))
        text = "What number is shown?" if both else str(rng.choice(("What is the secret number?", "What number is shown?")))
        questions.append(Question(text, digits, "caption", (start, start + caption_s)))
    if "who" in tasks:
        turns = int(np.clip(duration_s / 9, 3, 14 if duration_s < 900 else 30))
        people = [str(c) for c in rng.permutation(list(COLOURS))[: int(rng.integers(2, 5))]]
        talks = []
        for _ in range(turns):
            words = _chatter(rng)
            trial = _voice_event(rng, 0.0, words, voices)
            silent = rng.random() < 0.3 and len(talks) > 1
            length = max(trial.end_s + 0.6, float(rng.uniform(2.2, 4.0)))
            start = slots.try_take(length)
            if start is None:
                break
            who = str(rng.choice(people))
            events.append(Event("character", start, start + length, who, place(), int(rng.integers(1 << 30))))
            if not silent:
                said = Event("voice", start + 0.3, start + 0.3 + trial.end_s, words, seed=trial.seed, voice=trial.voice)
                events.append(said)
                talks.append((said, who))
        talks.sort(key=lambda pair: pair[0].start_s)
        if len(talks) > 1:
            for text, (said, who) in (("Who speaks last?", talks[-1]), ("Who speaks first?", talks[0])):
                questions.append(Question(text, who, "who", (said.start_s, said.end_s)))
    if "cross" in tasks:
        pairs = [(c, s) for c in COLOURS for s in SHAPES]
        order = rng.permutation(len(pairs))
        kinds = [str(s) for s in rng.permutation(list(SOUNDS))]
        shown: list[tuple[float, str]] = []
        for i in range(2):
            colour, shape = pairs[int(order[i])]
            start = slots.try_take(2.4)
            if start is None:
                break
            shown.append((start, f"{colour} {shape}"))
            seed_i = int(rng.integers(1 << 30))
            events.append(Event("shape", start, start + 2.2, f"{colour} {shape}", place(), seed_i))
            events.append(Event("sound", start + 0.4, start + 2.0, kinds[i], seed=seed_i))
            questions.append(
                Question(f"What colour is the shape when the {kinds[i]} is heard?", colour, "cross", (start, start + 2.2))
            )
            questions.append(
                Question(f"What sound is heard when the {colour} {shape} appears?", kinds[i], "cross", (start, start + 2.2))
            )
        start = slots.try_take(1.8)
        if start is not None and len(shown) == 2:
            events.append(Event("sound", start, start + 1.5, kinds[2], seed=int(rng.integers(1 << 30))))
            present = bool(rng.random() < 0.5)
            asked = shown[0] if present else (0.0, " ".join(pairs[int(order[5])]))
            questions.append(
                Question(f"Is there a {asked[1]}?", "yes" if present else "no", "presence", (asked[0], asked[0] + 2.2))
            )
    for _ in range(int(duration_s / 25) + 1):  # what disturbs: off-screen chatter and music
        if rng.random() < 0.5:
            trial = _voice_event(rng, 0.0, _chatter(rng), voices)
            start = slots.try_take(trial.end_s + 0.4)
            if start is not None:
                events.append(
                    Event("voice", start + 0.2, start + 0.2 + trial.end_s, trial.text, seed=trial.seed, voice=trial.voice)
                )
        else:
            start = float(rng.uniform(0, max(0.1, duration_s - 8)))
            events.append(Event("music", start, min(duration_s, start + 8), seed=int(rng.integers(1 << 30))))
    events.sort(key=lambda e: e.start_s)
    return Film(
        seed, duration_s, tuple(scenes), tuple(events), tuple(questions),
        noise=float(rng.uniform(0, 7)), hiss=float(10 ** rng.uniform(-3.5, -2.0)),
    )  # fmt: skip


class _Slots:
    """Free stretches of the time line, so that nobody speaks over a number and a number hides nobody."""

    def __init__(self, duration_s: float, rng: np.random.Generator) -> None:
        self.free = [(0.0, duration_s)]
        self.rng = rng

    def try_take(self, length: float) -> float | None:
        fits = [(a, b) for a, b in self.free if b - a >= length]
        if not fits:
            return None
        weights = np.array([b - a - length + 1e-3 for a, b in fits])
        a, b = fits[int(self.rng.choice(len(fits), p=weights / weights.sum()))]
        return self._cut(a, b, float(self.rng.uniform(a, b - length)), length)

    def take(self, length: float, wanted: float | None) -> float:
        if wanted is not None:
            for a, b in self.free:
                if a <= wanted and wanted + length <= b:
                    return self._cut(a, b, wanted, length)
        start = self.try_take(length)
        if start is None:
            raise ValueError(f"the film is too short for another event of {length:.1f} s")
        return start

    def _cut(self, a: float, b: float, start: float, length: float) -> float:
        self.free.remove((a, b))
        self.free += [(a, start), (start + length, b)]
        return start


def frame_times(duration_s: float, fps: float) -> Iterator[float]:
    """Yield the times of a film's frames."""
    for i in range(int(duration_s * fps)):
        yield i / fps


def write_film(
    film: Film, path: str | Path, *, width: int = 640, height: int = 360, fps: float = 8.0, progress: Any = None
) -> None:
    """Render a film into a real container (h264 + AAC). ``progress(done_s, total_s)`` is called every ten seconds."""
    from omnicli.media.write import FilmWriter

    active = _Active(film)
    with FilmWriter(path, width, height, fps, sample_rate=SAMPLE_RATE) as writer:
        sound_at = 0.0
        for t in frame_times(film.duration_s, fps):
            if t >= sound_at:
                end = min(film.duration_s, sound_at + 10.0)
                writer.add_samples(render_sound(active.between(sound_at - 20, end), sound_at, end))
                sound_at = end
                if progress:
                    progress(sound_at, film.duration_s)
            writer.add_frame(render_frame(active.between(t, t), t, width, height), t)


class _Active:
    """Views of a film that hold only the events near a moment: rendering an hour stays linear."""

    def __init__(self, film: Film) -> None:
        self.film = film
        self.key: tuple[int, int] | None = None
        self.view = film

    def between(self, start_s: float, end_s: float) -> Film:
        key = (int(start_s // 10), int(end_s // 10))
        if key != self.key:
            low, high = key[0] * 10 - 1, key[1] * 10 + 11
            f = self.film
            events = tuple(e for e in f.events if e.start_s < high and e.end_s > low)
            self.view = Film(f.seed, f.duration_s, f.scenes, events, (), f.noise, f.hiss)
            self.key = key
        return self.view


def write_demo_film(path: str | Path, minutes: float = 60.0, seed: int = 1, progress: Any = None) -> list[tuple[str, str]]:
    """Write the film of `omni demo` and return its three questions with the right answers."""
    film = make_film(
        1_000_003 + seed, minutes * 60, tasks=("caption", "spoken", "who"), voices=speech.HELD_OUT_VOICES
    )
    write_film(film, path, progress=progress)
    wanted = ("caption", "spoken", "who")
    return [next((q.text, q.answer) for q in film.questions if q.task == task) for task in wanted]
