"""Scripts of generated films: timed events on one clock, and questions with known answers. Data, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

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
    ``voice`` (text = words, audible), ``sound`` (text = name), ``music``. ``place`` is the centre in units of a frame
    that is 196 wide, ``seed`` settles everything else about how it looks or sounds.
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
