"""Films of the generated world as real files: pictures and sound rendered as they are written.

An hour is never held in memory. Knows the container's writer; what happens in a film is settled before.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omnicli.train import speech
from omnicli.train.scene import render_frame
from omnicli.train.script import Film
from omnicli.train.soundscape import render_audio
from omnicli.train.speech import SAMPLE_RATE
from omnicli.train.world import make_film

DEMO_CRF = 30
"""Coarse enough to drop most of the film's noise: an hour takes 30 to 60 MB instead of 800, and less time."""


def frame_times(duration_s: float, fps: float) -> Iterator[float]:
    """Yield the times of a film's frames."""
    for i in range(int(duration_s * fps)):
        yield i / fps


def write_film(
    film: Film,
    path: str | Path,
    *,
    width: int = 640,
    height: int = 360,
    fps: float = 8.0,
    crf: int = 23,
    progress: Any = None,
) -> None:
    """Render a film into a real container (h264 + AAC). ``progress(done_s, total_s)`` is called every ten seconds."""
    from omnicli.media.write import FilmWriter

    active = ActiveFilm(film)
    with FilmWriter(path, width, height, fps, sample_rate=SAMPLE_RATE, crf=crf) as writer:
        written_s = 0.0
        for t in frame_times(film.duration_s, fps):
            if t >= written_s:
                end = min(film.duration_s, written_s + 10.0)
                writer.add_samples(render_audio(active.between(written_s - 20, end), written_s, end))
                written_s = end
                if progress:
                    progress(written_s, film.duration_s)
            writer.add_frame(render_frame(active.between(t, t), t, width, height), t)


class ActiveFilm:
    """Views of a film that hold only the events near a moment: rendering an hour stays linear."""

    def __init__(self, film: Film) -> None:
        self.film = film
        self.key: tuple[int, int] | None = None
        self.view = film

    def between(self, start_s: float, end_s: float) -> Film:
        """Return the film with only the events near these seconds; they render as in the whole film."""
        key = (int(start_s // 10), int(end_s // 10))
        if key != self.key:
            low, high = key[0] * 10 - 1, key[1] * 10 + 11
            f = self.film
            events = tuple(e for e in f.events if e.start_s < high and e.end_s > low)
            self.view = Film(f.seed, f.duration_s, f.scenes, events, (), f.noise, f.hiss)
            self.key = key
        return self.view


def write_demo_film(
    path: str | Path, minutes: float = 60.0, seed: int = 2, progress: Any = None
) -> list[tuple[str, str]]:
    """Write the film of `omni demo` and return its three questions with the right answers; at least 30 seconds."""
    wanted = ("caption", "spoken", "who")
    for attempt in range(100):  # a short film may not have room for two speakers
        number = 1_000_003 + seed + 7919 * attempt
        film = make_film(number, minutes * 60, tasks=wanted, voices=speech.HELD_OUT_VOICES)
        known = {q.task: (q.text, q.answer) for q in film.questions}
        if set(wanted) <= set(known):
            break
    else:
        raise ValueError(f"a film of {minutes:g} minutes is too short for its three questions")
    write_film(film, path, crf=DEMO_CRF, progress=progress)
    return [known[task] for task in wanted]
