"""What a film is read with and an answer is written with: two frozen sections of a configuration.

Each checks its own values and tells all that is wrong at once. Nothing here knows presets, YAML or what a setting does.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from omnicli.errors import ConfigError


@dataclass(frozen=True)
class MediaConfig:
    """What is read from the file.

    Attributes
    ----------
    fps : float
        Frames per second to look at.
    max_frames : int or None
        Films with more frames than that are sampled uniformly; None: no limit.
    sampling : clock or linspace
        ``clock``: the first frame at or after each step of the film's clock. ``linspace``: an even number of frames,
        counted out evenly from the first to the last, as the papers' scripts did.
    min_pixels, max_pixels : int or None
        Bounds of a frame's size in pixels for the encoder; None: the model's own.
    total_pixels : int or None
        Lowers ``max_pixels`` for films of many frames to twice this over their number, though not below 1.05 times
        ``min_pixels``, as the papers' scripts did; None: no limit.
    start, end : float or None
        Seconds in the file between which is read; None: from its beginning, to its end.
    audio : auto, on or off
        Whether the sound is heard; auto: if there is any.
    require_audio : bool
        Stop when there is no sound instead of answering from the pictures.
    exact_mel : bool
        Normalise the sound over the whole film (one more pass over it), as the model was trained.
    audio_limit : float or None
        Hear only so many seconds from the start on, as the papers' scripts did (300); None: all.
    clock : true or nominal
        ``true``: pictures and sound share the file's clock. ``nominal``: pictures are laid out at the family's default
        rate whatever time passed between them, as the papers' scripts did; times in the result are then nominal too.
    time_scale : auto, off or float
        What positions in time are multiplied with before the LLM reads them. ``auto``: 1, or for long films what keeps
        film, question and answer inside the range of positions that the model was trained on; ``off``: always 1. What
        is looked at does not change. Not for models whose positions count tokens.
    decoder : auto or cpu
        ``auto``: pictures for a model on a graphics card are decoded by the card if it can (NVDEC).
    subtitles : off, auto or a file
        Lines that stand before the question. ``auto``: of the file beside the film (.srt, .vtt, .ass), else of the
        first text track in it.
    subtitle_tokens : int
        At most so many tokens of them; lines are left out evenly.
    """

    fps: float = 1.0
    max_frames: int | None = None
    sampling: Literal["clock", "linspace"] = "clock"
    min_pixels: int | None = None
    max_pixels: int | None = None
    total_pixels: int | None = None
    start: float | None = None
    end: float | None = None
    audio: Literal["auto", "on", "off"] = "auto"
    require_audio: bool = False
    exact_mel: bool = True
    audio_limit: float | None = None
    clock: Literal["true", "nominal"] = "true"
    time_scale: Literal["auto", "off"] | float = "auto"
    decoder: Literal["auto", "cpu"] = "auto"
    subtitles: str = "off"
    subtitle_tokens: int = 2000

    def __post_init__(self) -> None:
        problems = []
        if not self.fps > 0:
            problems.append(f"fps: must be above 0, not {self.fps:g}")
        for name in ("max_frames", "min_pixels", "max_pixels", "total_pixels", "subtitle_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                problems.append(f"{name}: must be at least 1, not {value}")
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            problems.append(f"min_pixels: {self.min_pixels} is above max_pixels {self.max_pixels}")
        if self.start is not None and self.start < 0:
            problems.append(f"start: must not be negative, not {self.start:g}")
        if self.end is not None and self.end <= (self.start or 0.0):
            problems.append(f"end: {self.end:g} s is not after start {self.start or 0.0:g} s")
        if self.audio_limit is not None and not self.audio_limit > 0:
            problems.append(f"audio_limit: must be above 0, not {self.audio_limit:g}")
        if isinstance(self.time_scale, float) and not 0 < self.time_scale <= 1:
            problems.append(f"time_scale: must be auto, off, or above 0 and at most 1, not {self.time_scale:g}")
        if self.audio == "off" and self.require_audio:
            problems.append("require_audio: true contradicts audio off")
        if not self.subtitles:
            problems.append("subtitles: must be off, auto or a file")
        if problems:
            raise ConfigError(problems)

    def encoding(self) -> dict[str, Any]:
        """Return what encoded pictures and sound depend on: not subtitles, nor where they stand for the LLM."""
        late = ("subtitles", "subtitle_tokens", "time_scale")
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in late}


@dataclass(frozen=True)
class GenerateConfig:
    """How the answer is written.

    Attributes
    ----------
    max_new_tokens : int
        Longest answer.
    temperature : float
        0: always the likeliest token.
    top_p : float
        Share of probability that is sampled from.
    seed : int
        Of the sampling.
    stop : list of str
        Texts that end the answer.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = []
        if self.max_new_tokens < 1:
            problems.append(f"max_new_tokens: must be at least 1, not {self.max_new_tokens}")
        if self.temperature < 0:
            problems.append(f"temperature: must not be negative, not {self.temperature:g}")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p: must be above 0 and at most 1, not {self.top_p:g}")
        if self.seed < 0:
            problems.append(f"seed: must not be negative, not {self.seed}")
        if problems:
            raise ConfigError(problems)


__all__ = ["GenerateConfig", "MediaConfig"]
