"""Pictures of the generated world: backgrounds, captions, shapes and characters, and a film's frame at any second.

Every picture is a pure function of the film and the second. Knows what events look like and neither why they happen
nor how they sound.

Lengths are given in *units*: a frame is 196 units wide whatever its size in pixels, so that a digit has the same share
of the frame in a 360p film and at the pocket model's own resolution.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from omnicli.train.script import COLOURS, Event, Film

UNITS_WIDE = 196.0


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
    size = float(rng.integers(23, 28))  # digits a sixth of the frame high; few distinct values: glyphs are cached
    return CaptionLook(
        size=size,
        advance=size * rng.uniform(0.6, 0.7) + 0.5,
        stroke=float(rng.choice((0.0, 0.35, 0.7))),
        stretch=float(rng.choice((0.95, 1.0, 1.05, 1.1))),
        ink=_rgb(ink),
        box=_rgb(box),
        opacity=rng.uniform(0.8, 1.0),
        lead=rng.random() < 0.7,
    )


def _rgb(values: Iterable[Any]) -> tuple[int, int, int]:
    red, green, blue = (int(v) for v in values)
    return red, green, blue


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
        tile = noise_tile(height + 64, width + 64)
        rng = np.random.default_rng([film.seed, int(time_s * 1000)])
        y, x = rng.integers(0, 64, 2)
        image = np.clip(image + tile[y : y + height, x : x + width, None] * film.noise, 0, 255).astype(np.uint8)
    return image


@lru_cache(maxsize=4)
def noise_tile(height: int, width: int) -> np.ndarray:
    """Return the noise (height, width) float32 of unit strength that every frame cuts its own grain from."""
    return np.random.default_rng(5).normal(0, 1, (height, width)).astype(np.float32)
