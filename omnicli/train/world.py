"""The generated world: scripts of films of any length, and questions with known answers.

A film is a list of timed events (`omnicli.train.script`) on one clock; pictures (`omnicli.train.scene`) and sound
(`omnicli.train.soundscape`) are pure functions of it, so that any second can be rendered on its own. Everything is
deterministic by seed. This module knows nothing of tokens or models, and of sound only how long words take;
`omnicli.train.pocket` trains on it, `omni demo` and the tests ask about it.
"""

from __future__ import annotations

import numpy as np

from omnicli.train import speech
from omnicli.train.script import COLOURS, SHAPES, SOUNDS, Event, Film, Question
from omnicli.train.soundscape import voice_wave
from omnicli.train.speech import SAMPLE_RATE


def number_words(digits: str, lead: bool = True) -> str:
    """Return how a number is said: ``"the secret word is four eight two nine one three"``."""
    said = " ".join(speech.DIGITS[int(d)] for d in digits)
    return f"the secret word is {said}" if lead else said


def chatter(rng: np.random.Generator, low: int = 2, high: int = 6) -> str:
    """Return ``low`` to ``high - 1`` random words that mean nothing."""
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

    Raises
    ------
    ValueError
        The film is too short for a number.
    """
    rng = np.random.default_rng([seed, 21])
    scenes, at = [], 0.0
    while (at := at + rng.uniform(4, 14)) < duration_s:
        scenes.append(at)
    script = _Script(duration_s, rng, voices)
    ambiguous = not {"caption", "spoken"} <= set(tasks)  # with two numbers the question has to say which
    if "spoken" in tasks:
        _add_spoken_number(script, depth, ambiguous)
    if "caption" in tasks:
        _add_shown_number(script, depth, ambiguous, caption_s)
    if "who" in tasks:
        _add_conversation(script)
    if "cross" in tasks:
        _add_ringing_shapes(script)
    _add_disturbances(script)
    script.events.sort(key=lambda e: e.start_s)
    return Film(
        seed,
        duration_s,
        tuple(scenes),
        tuple(script.events),
        tuple(script.questions),
        noise=float(rng.uniform(0, 7)),
        hiss=float(10 ** rng.uniform(-3.5, -2.0)),
    )


class _Script:
    """A film being written. The order of draws from ``rng`` is part of what a seed means: never change it."""

    def __init__(self, duration_s: float, rng: np.random.Generator, voices: tuple[str, ...]) -> None:
        self.duration_s, self.rng, self.voices = duration_s, rng, voices
        self.slots = _Slots(duration_s, rng)
        self.events: list[Event] = []
        self.questions: list[Question] = []

    def place(self) -> tuple[float, float]:
        return (float(self.rng.uniform(20, 176)), float(self.rng.uniform(20, 92)))

    def seed(self) -> int:
        return int(self.rng.integers(1 << 30))

    def digits(self) -> str:
        return "".join(str(d) for d in self.rng.integers(0, 10, 6))

    def voice(self, words: str) -> Event:
        """Return a voice that says ``words`` from second 0 on, so that ``end_s`` is how long it takes."""
        event = Event("voice", 0.0, 0.0, words, seed=self.seed(), voice=str(self.rng.choice(self.voices)))
        return _moved(event, 0.0, len(voice_wave(event)[0]) / SAMPLE_RATE)


def _moved(voice: Event, start_s: float, length_s: float) -> Event:
    return Event("voice", start_s, start_s + length_s, voice.text, seed=voice.seed, voice=voice.voice)


def _number_question(script: _Script, exact: str, ambiguous: bool) -> str:
    return str(script.rng.choice(("What is the secret number?", exact))) if ambiguous else exact


def _add_spoken_number(script: _Script, depth: float | None, ambiguous: bool) -> None:
    digits = script.digits()
    voice = script.voice(number_words(digits))
    wanted = None if depth is None else depth * (script.duration_s - voice.end_s - 0.4)
    start = script.slots.take(voice.end_s + 0.4, wanted) + 0.2
    event = _moved(voice, start, voice.end_s)
    script.events.append(event)
    text = _number_question(script, "What number is spoken?", ambiguous)
    script.questions.append(Question(text, digits, "spoken", (event.start_s, event.end_s)))


def _add_shown_number(script: _Script, depth: float | None, ambiguous: bool, caption_s: float) -> None:
    digits = script.digits()
    wanted = None if depth is None else depth * (script.duration_s - caption_s - 0.1)
    start = script.slots.take(caption_s + 0.1, wanted)
    if caption_s == 1.0:
        start = float(int(start))  # exactly one frame at one frame a second
    script.events.append(Event("caption", start, start + caption_s, digits, script.place(), script.seed()))
    text = _number_question(script, "What number is shown?", ambiguous)
    script.questions.append(Question(text, digits, "caption", (start, start + caption_s)))


def _add_conversation(script: _Script) -> None:
    """Let characters come and go; most of them speak, the others are there so that pictures alone do not answer."""
    rng, duration_s = script.rng, script.duration_s
    turns = int(np.clip(duration_s / 9, 3, 14 if duration_s < 900 else 30))
    people = [str(c) for c in rng.permutation(list(COLOURS))[: int(rng.integers(2, 5))]]
    talks: list[tuple[Event, str]] = []
    for _ in range(turns):
        voice = script.voice(chatter(rng))
        silent = rng.random() < 0.3 and len(talks) > 1
        length = max(voice.end_s + 0.6, float(rng.uniform(2.2, 4.0)))
        start = script.slots.try_take(length)
        if start is None:
            break
        who = str(rng.choice(people))
        script.events.append(Event("character", start, start + length, who, script.place(), script.seed()))
        if not silent:
            said = _moved(voice, start + 0.3, voice.end_s)
            script.events.append(said)
            talks.append((said, who))
    talks.sort(key=lambda pair: pair[0].start_s)
    if len(talks) > 1:
        for text, (said, who) in (("Who speaks last?", talks[-1]), ("Who speaks first?", talks[0])):
            script.questions.append(
                Question(text, who, "who" if text.endswith("last?") else "who first", (said.start_s, said.end_s))
            )


def _add_ringing_shapes(script: _Script) -> None:
    """Show two shapes with a sound each, ask what goes with what; then one more sound and whether a shape is there."""
    rng = script.rng
    pairs = [(c, s) for c in COLOURS for s in SHAPES]
    order = rng.permutation(len(pairs))
    sounds = [str(s) for s in rng.permutation(list(SOUNDS))]
    shown: list[tuple[float, str]] = []
    for i in range(2):
        colour, shape = pairs[int(order[i])]
        start = script.slots.try_take(2.4)
        if start is None:
            break
        name, at_s = f"{colour} {shape}", (start, start + 2.2)
        shown.append((start, name))
        seed = script.seed()
        script.events.append(Event("shape", *at_s, name, script.place(), seed))
        script.events.append(Event("sound", start + 0.4, start + 2.0, sounds[i], seed=seed))
        text = f"What colour is the shape when the {sounds[i]} is heard?"
        script.questions.append(Question(text, colour, "cross", at_s))
        text = f"What sound is heard when the {name} appears?"
        script.questions.append(Question(text, sounds[i], "cross", at_s))
    start = script.slots.try_take(1.8)
    if start is not None and len(shown) == 2:
        script.events.append(Event("sound", start, start + 1.5, sounds[2], seed=script.seed()))
        present = bool(rng.random() < 0.5)
        since, name = shown[0] if present else (0.0, " ".join(pairs[int(order[5])]))
        answer = "yes" if present else "no"
        script.questions.append(Question(f"Is there a {name}?", answer, "presence", (since, since + 2.2)))


def _add_disturbances(script: _Script) -> None:
    """Add what no question is about: voices of nobody on screen, and music."""
    rng, duration_s = script.rng, script.duration_s
    for _ in range(int(duration_s / 25) + 1):
        if rng.random() < 0.5:
            voice = script.voice(chatter(rng))
            slot = script.slots.try_take(voice.end_s + 0.4)
            if slot is not None:
                script.events.append(_moved(voice, slot + 0.2, voice.end_s))
        else:
            start = float(rng.uniform(0, max(0.1, duration_s - 8)))
            script.events.append(Event("music", start, min(duration_s, start + 8), seed=script.seed()))


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
