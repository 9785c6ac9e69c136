"""How much a film's clock is slowed so that its positions stay inside the range a model was trained on. Numbers only.

A factor depends on the film and the settings, never on a question: questions about one film read the same positions,
and what they share is read once. What is multiplied is in `omnicli.models.parts.EncodedClip.scaled`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from omnicli.errors import ConfigError

if TYPE_CHECKING:
    from omnicli.config.config import Config

TEXT_POSITIONS = 2048
"""Kept free behind a film for the chat format, the question and earlier turns."""
EPSILON = 1e-6
"""Added before rounding down: 0.29 x 100 is meant to be 29."""


def room(config: Config, trained: int) -> int:
    """Return the positions kept free behind a film: `TEXT_POSITIONS`, the most subtitles, the longest answer.

    At most half of the ``trained`` range.
    """
    lines = 0 if config.media.subtitles == "off" else config.media.subtitle_tokens
    return min(TEXT_POSITIONS + lines + config.generate.max_new_tokens, trained // 2)


def choose(config: Config, *, origin: float | None, last: float, trained: int, name: str) -> float | None:
    """Return what time positions are multiplied with, above 0 and at most 1; None: there is no clock.

    Parameters
    ----------
    origin : float or None
        Position of the clip's start; None where positions count tokens.
    last : float
        Largest position in time, not scaled.
    trained : int
        Positions that the model was trained on.
    name : str
        The model's.

    Raises
    ------
    ConfigError
        A factor is set, and there is no clock.
    """
    wanted = config.media.time_scale
    if origin is None:
        if isinstance(wanted, float):
            raise ConfigError(f"media.time_scale: positions of {name} count tokens, not time; use auto or off")
        return None
    if isinstance(wanted, float):
        return wanted
    limit = max(trained - 1 - room(config, trained), origin + 1)
    return 1.0 if wanted == "off" or last <= limit else (limit - origin) / (last - origin)


def remarks(config: Config, scale: float | None, *, reached: float, trained: int, name: str) -> list[str]:
    """Return what to know: that time was scaled, and that positions go beyond the trained range; why, if they do.

    ``reached``: the largest position of all, text and answer included.
    """
    found = []
    if scale is not None and scale < 1:
        found.append(f"positions in time are scaled by {scale:.4f} (media.time_scale: {_said(config)})")
    if reached >= trained:
        why = (
            f"media.time_scale: {_said(config)}" if scale is not None else "they count tokens, and no time_scale helps"
        )
        found.append(f"positions reach {reached:,.0f}; {name} was trained up to {trained:,} ({why})")
    return found


def _said(config: Config) -> str:
    wanted = config.media.time_scale
    return f"{wanted:g}" if isinstance(wanted, float) else wanted


__all__ = ["EPSILON", "TEXT_POSITIONS", "choose", "remarks", "room"]
