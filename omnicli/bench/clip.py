"""The film that is measured where none is given: of the generated world, with a question and its right answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omnicli.errors import UsageError

SHORTEST_S = 12.0
_SEED = 3_000_017  # far from the seeds of the films that models are trained on and that tests ask about


def write_clip(path: Path, duration_s: float, seed: int = 0, progress: Any = None) -> tuple[str, str]:
    """Write a film of so many seconds and return (question, right answer). ``progress(done_s, total_s)``.

    Raises
    ------
    UsageError
        The film would be too short for anything to happen in it.
    """
    from omnicli.train import speech
    from omnicli.train.films import write_film
    from omnicli.train.world import make_film

    if duration_s < SHORTEST_S:
        raise UsageError(f"--duration {duration_s:g}: at least {SHORTEST_S:g} seconds")
    for attempt in range(100):  # a short film may not have room for both numbers
        try:
            film = make_film(
                _SEED + seed + 7919 * attempt, duration_s, tasks=("caption", "spoken"), voices=speech.HELD_OUT_VOICES
            )
            break
        except ValueError:
            continue
    else:
        raise UsageError(f"--duration {duration_s:g}: too short for a film of the generated world")
    asked = next(q for q in film.questions if q.task == "caption")
    write_film(film, path, progress=progress)
    return asked.text, asked.answer
