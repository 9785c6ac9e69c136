"""Endless labelled samples for the pocket model's encoders: frame pairs and 2-second sound blocks of the world.

Dense labels (which patch holds which digit, which token is inside which word) are what makes tiny encoders learn in
minutes; nothing here knows about networks.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from omnicli.train import scene, script, soundscape, speech
from omnicli.train.pocket_model import BLOCK_TOKENS, GRID, HEIGHT, PATCH, WIDTH
from omnicli.train.speech import SAMPLE_RATE

NO_DIGIT = 10
NO_PLACE = 6
COLOUR_NAMES = tuple(script.COLOURS)
NO_COLOUR, NO_SHAPE, NO_SOUND = len(COLOUR_NAMES), len(script.SHAPES), len(script.SOUNDS)
STRETCH_BLOCKS = 4
WARP = (0.88, 1.14)
"""Training voices are played this much slower to faster, so that voices never heard are understood."""


# --- pictures -------------------------------------------------------------------------------------------------------


@dataclass
class PairLabels:
    """What a frame pair shows.

    ``patch_digit`` (112,) is the digit whose centre lies in the patch, in merge-block order, `NO_DIGIT` elsewhere;
    ``patch_place`` (112,) its place in the number, `NO_PLACE` elsewhere;
    ``number`` (6,) the digits of the caption or -1; the rest are class numbers with the last class meaning none.
    """

    patch_digit: np.ndarray
    patch_place: np.ndarray
    number: np.ndarray
    character: int = NO_COLOUR
    shape_colour: int = NO_COLOUR
    shape: int = NO_SHAPE


def frame_pair(rng: np.random.Generator, caption: float = 0.6, hard: float = 1.0) -> tuple[np.ndarray, PairLabels]:
    """Render one frame pair (2, 112, 196, 3) uint8 as a sampler would see it, half a second to a second apart."""
    labels = PairLabels(np.full(GRID[0] * GRID[1], NO_DIGIT), np.full(GRID[0] * GRID[1], NO_PLACE), np.full(6, -1))
    scale = 2
    back = _backdrop(rng, scale)
    frames = [back.copy(), _backdrop(rng, scale) if rng.random() < 0.15 * hard else back]

    def visible(both: float) -> list[int]:
        draw = rng.random()
        return [0, 1] if draw < both else [0] if draw < (1 + both) / 2 else [1]

    def place() -> tuple[float, float]:
        return (float(rng.uniform(10, 186)), float(rng.uniform(12, 100)))

    roll = rng.random()
    if roll < 0.3 * hard:
        colour = int(rng.integers(NO_COLOUR))
        event = script.Event("character", 0, 9, COLOUR_NAMES[colour], place(), int(rng.integers(1 << 30)))
        for i in visible(0.8):
            scene.draw_figure(frames[i], event, float(i))
        labels.character = colour
    elif roll < 0.55 * hard:
        colour, shape = int(rng.integers(NO_COLOUR)), int(rng.integers(NO_SHAPE))
        text = f"{COLOUR_NAMES[colour]} {script.SHAPES[shape]}"
        event = script.Event("shape", 0, 9, text, place(), int(rng.integers(1 << 30)))
        for i in visible(0.7):
            scene.draw_figure(frames[i], event, float(i))
        labels.shape_colour, labels.shape = colour, shape
    if rng.random() < caption:
        digits = rng.integers(0, 10, 6)
        look = scene.caption_look(int(rng.integers(1 << 30)))
        where = place()
        for i in visible(1.0 if hard == 0 else 0.3):
            centres = scene.draw_caption(frames[i], "".join(map(str, digits)), where, look)
        for i, (digit, (x, y)) in enumerate(zip(digits, centres, strict=True)):
            at = _merge_block_index(y / scale, x / scale)
            labels.patch_digit[at], labels.patch_place[at] = digit, i
        labels.number = digits
    sigma, gain, shift = rng.uniform(0, 7) * max(hard, 0.3), rng.uniform(0.85, 1.1), rng.uniform(-12, 12)
    out = []
    for frame in frames:
        wide = frame[0::2].astype(np.uint16) + frame[1::2]
        small = (wide[:, 0::2] + wide[:, 1::2]).astype(np.float32) * 0.25
        tile = scene.noise_tile(HEIGHT + 64, WIDTH + 64)
        y, x = rng.integers(0, 64, 2)
        small = small * gain + shift + tile[y : y + HEIGHT, x : x + WIDTH, None] * sigma
        out.append(np.clip(small, 0, 255).astype(np.uint8))
    if hard > 0 and rng.random() < 0.4:
        quality = int(rng.integers(35, 90))
        out = [_through_jpeg(f, quality) for f in out]
    return np.stack(out), labels


@lru_cache(maxsize=300)
def _cached_background(seed: int, scale: int) -> np.ndarray:
    return scene.background.__wrapped__(seed, WIDTH * scale, HEIGHT * scale)


def _backdrop(rng: np.random.Generator, scale: int) -> np.ndarray:
    """Return a fresh copy of one of 300 backgrounds, mirrored and with its colours swapped at random."""
    back = _cached_background(50_000 + int(rng.integers(300)), scale)
    if rng.random() < 0.5:
        back = back[:, ::-1]
    return back[..., rng.permutation(3)]


def _merge_block_index(y: float, x: float) -> int:
    row, col = min(int(y) // PATCH, GRID[0] - 1), min(int(x) // PATCH, GRID[1] - 1)
    return ((row // 2) * (GRID[1] // 2) + col // 2) * 4 + (row % 2) * 2 + col % 2


def _through_jpeg(frame: np.ndarray, quality: int) -> np.ndarray:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


class Pairs(IterableDataset):
    """Batches of frame pairs: ``pairs`` (B, 2, H, W, 3) uint8 and int64 labels.

    ``crop``: cells wide to cut to, around the caption and two cells high; 0 leaves pairs whole.
    """

    def __init__(self, batch: int, seed: int, caption: float = 0.6, hard: float = 1.0, crop: int = 0) -> None:
        self.batch, self.seed, self.caption, self.hard, self.crop = batch, seed, caption, hard, crop

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        info: Any = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, info.id if info else 0, 31])
        while True:
            samples = [frame_pair(rng, self.caption, self.hard) for _ in range(self.batch)]
            if self.crop:
                samples = [_crop(pair, labels, rng, self.crop) for pair, labels in samples]
            yield {
                "pairs": torch.from_numpy(np.stack([p for p, _ in samples])),
                "patch_digit": torch.from_numpy(np.stack([s.patch_digit for _, s in samples])),
                "patch_place": torch.from_numpy(np.stack([s.patch_place for _, s in samples])),
                "number": torch.from_numpy(np.stack([s.number for _, s in samples])),
                "character": torch.tensor([s.character for _, s in samples]),
                "shape_colour": torch.tensor([s.shape_colour for _, s in samples]),
                "shape": torch.tensor([s.shape for _, s in samples]),
            }


def _crop(pair: np.ndarray, labels: PairLabels, rng: np.random.Generator, wide: int) -> tuple[np.ndarray, PairLabels]:
    """Cut whole merge cells, 2 x ``wide`` of them, around the caption."""
    grid = labels.patch_digit.reshape(GRID[0] // 2, GRID[1] // 2, 4)
    rows, cols = np.nonzero((grid != NO_DIGIT).any(-1))
    row = int(np.clip(rows[0] - rng.integers(0, 2), 0, 2)) if len(rows) else int(rng.integers(0, 3))
    col = int(np.clip(cols.min() + rng.integers(-1, 1), 0, 7 - wide)) if len(cols) else int(rng.integers(0, 8 - wide))
    cut = pair[:, row * 28 : row * 28 + 56, col * 28 : (col + wide) * 28]
    places = labels.patch_place.reshape(grid.shape)[row : row + 2, col : col + wide].reshape(-1)
    return cut, PairLabels(grid[row : row + 2, col : col + wide].reshape(-1), places, labels.number)


# --- sound ----------------------------------------------------------------------------------------------------------


@dataclass
class BlockLabels:
    """What is heard, per token (50 a block): class numbers with the last class meaning none.

    ``digit`` is the digit word the token lies in, ``centre`` 1 on the one token at a digit's middle, ``speech`` 1
    inside any word, ``sound`` the world sound that rings.
    """

    digit: np.ndarray
    centre: np.ndarray
    speech: np.ndarray
    sound: np.ndarray


def audio_stretch(rng: np.random.Generator, voices: tuple[str, ...]) -> tuple[np.ndarray, BlockLabels]:
    """Return 8 seconds of sound (128000,) float32 with labels per 40 ms token (200,)."""
    tokens = STRETCH_BLOCKS * BLOCK_TOKENS
    seconds = STRETCH_BLOCKS * 2.0
    wave = rng.normal(0, 10 ** rng.uniform(-3.6, -1.9), int(seconds * SAMPLE_RATE)).astype(np.float32)
    labels = BlockLabels(
        np.full(tokens, NO_DIGIT), np.zeros(tokens, np.int64), np.zeros(tokens, np.int64), np.full(tokens, NO_SOUND)
    )
    if rng.random() < 0.25:
        music = soundscape.music(int(rng.integers(300)), seconds)
        wave[: len(music)] += music[: len(wave)]
    at = float(rng.uniform(-2.0, 0.8))
    while at < seconds - 0.2:
        roll = rng.random()
        if roll < 0.8:
            digits = roll < 0.55
            if digits:
                words = [speech.DIGITS[i] for i in rng.integers(0, 10, int(rng.integers(3, 7)))]
                if rng.random() < 0.5:
                    words = ["the", "secret", "word", "is", *words]
            else:
                words = [str(rng.choice(speech.CHATTER)) for _ in range(int(rng.integers(2, 6)))]
            event = script.Event(
                "voice", at, at, " ".join(words), seed=int(rng.integers(1 << 30)), voice=str(rng.choice(voices))
            )
            said, spans = soundscape.warped(*soundscape.voice_wave(event), at, float(rng.uniform(*WARP)))
            soundscape.mix(wave, said, at)
            for word, a, b in spans:
                first, last = int(np.ceil(a * 25 - 0.3)), int(np.floor(b * 25 + 0.3))
                inside = slice(max(0, first), max(0, last))
                labels.speech[inside] = 1
                if word in speech.DIGITS:
                    labels.digit[inside] = speech.DIGITS.index(word)
                    middle = int((a + b) / 2 * 25)
                    if 0 <= middle < tokens:
                        labels.centre[middle] = 1
            at += len(said) / SAMPLE_RATE
        elif roll < 0.92:
            kind = int(rng.integers(NO_SOUND))
            ring = soundscape.tone(script.SOUNDS[kind], int(rng.integers(61)))
            soundscape.mix(wave, ring, at)
            inside = slice(max(0, int(at * 25)), max(0, int((at + min(0.6, len(ring) / SAMPLE_RATE)) * 25)))
            labels.sound[inside] = kind
            at += len(ring) / SAMPLE_RATE
        at += float(rng.uniform(0.1, 1.2))
    return np.clip(wave * rng.uniform(0.5, 1.5), -1, 1), labels


def raw_log_mel(samples: Tensor) -> Tensor:
    """Return log10 mel power (B, 128, frames) before Whisper's floor, of whole waves (B, n) at 16 kHz."""
    spectrum = torch.stft(samples, 400, 160, window=torch.hann_window(400), return_complex=True)[..., :-1].abs() ** 2
    return (_filters() @ spectrum).clamp(min=1e-10).log10()


def floor_log_mel(raw: Tensor, top: Tensor) -> Tensor:
    """Apply Whisper's floor and scale: max(raw, top - 8), (x + 4) / 4. ``top`` broadcasts against ``raw``."""
    return (torch.maximum(raw, top - 8.0) + 4.0) / 4.0


_FILTERS: list[Tensor] = []


def _filters() -> Tensor:
    if not _FILTERS:
        import torchaudio

        banks = torchaudio.functional.melscale_fbanks(
            201, 0.0, 8000.0, 128, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
        )
        _FILTERS.append(banks.T.contiguous())
    return _FILTERS[0]


class Blocks(IterableDataset):
    """Batches of 2-second blocks: ``mel`` (B, 128, 200) float32 and int64 labels (B, 50)."""

    def __init__(self, batch: int, seed: int, voices: tuple[str, ...] = speech.TRAIN_VOICES) -> None:
        self.stretches, self.seed, self.voices = max(1, batch // STRETCH_BLOCKS), seed, voices

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        info: Any = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, info.id if info else 0, 32])
        while True:
            samples = [audio_stretch(rng, self.voices) for _ in range(self.stretches)]
            raw = raw_log_mel(torch.from_numpy(np.stack([w for w, _ in samples])))
            top = raw.amax((1, 2), keepdim=True) + torch.from_numpy(rng.uniform(0, 0.5, (len(samples), 1, 1))).float()
            mel = floor_log_mel(raw, top)
            mel = mel.unflatten(2, (STRETCH_BLOCKS, 200)).transpose(1, 2).flatten(0, 1)

            def cut(name: str, samples: Any = samples) -> Tensor:
                return torch.from_numpy(np.stack([getattr(s, name) for _, s in samples])).view(-1, BLOCK_TOKENS)

            yield {"mel": mel, **{n: cut(n) for n in ("digit", "centre", "speech", "sound")}}
