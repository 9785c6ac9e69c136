"""A pool of encoded material for training the pocket model's LLM: frame pairs, utterances, chatter, quiet, sounds.

Towers never look across frame pairs or 2-second blocks, so a pool of encoded pieces is enough to compose clips of any
length exactly; `pocket_clips` does that. Rendering and encoding a pool takes minutes, which is why it can be stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from omnicli.train import pocket_data as data
from omnicli.train import pocket_model as arch
from omnicli.train import script, soundscape, speech, world

UTTERANCE_BLOCKS = 5
CHATTER_BLOCKS = 3


@dataclass
class Pool:
    """Encoded material, bfloat16.

    ``pairs`` (n, 28, D) with their labels; ``utterances`` (n, 5, 50, D): a number said, with ``digits`` (n, 6) and
    ``centres`` (n, 6) flat token indices; ``chatter`` (n, 3, 50, D) with ``speech`` (n, 150) flags; ``quiet``
    (n, 50, D) without speech or world sounds; ``rings`` (n, 50, D) with ``kind`` (n,).
    """

    pairs: Tensor
    number: Tensor
    character: Tensor
    shape_colour: Tensor
    shape: Tensor
    utterances: Tensor
    digits: Tensor
    centres: Tensor
    chatter: Tensor
    speech: Tensor
    quiet: Tensor
    rings: Tensor
    kind: Tensor
    groups: dict[str, Any] = field(default_factory=dict)

    def index(self) -> Pool:
        """Sort pairs into groups by what they show."""
        captioned = self.number[:, 0] >= 0
        plain = self.character == data.NO_COLOUR
        no_shape = self.shape == data.NO_SHAPE
        where = lambda mask: torch.nonzero(mask).flatten().numpy()  # noqa: E731
        self.groups = {
            "caption": where(captioned & plain),
            "empty": where(~captioned & plain & no_shape),
            "character": {c: where(~captioned & no_shape & (self.character == c)) for c in range(data.NO_COLOUR)},
            "shape": {
                (c, s): where(~captioned & plain & (self.shape_colour == c) & (self.shape == s))
                for c in range(data.NO_COLOUR)
                for s in range(data.NO_SHAPE)
            },
            "ring": {k: where(self.kind == k) for k in range(data.NO_SOUND)},
        }
        return self

    def save(self, path: Path) -> None:
        """Write the pool; a stopped training goes on without rendering it again."""
        torch.save({n: getattr(self, n) for n in Pool.__dataclass_fields__ if n != "groups"}, path)

    @staticmethod
    def load(path: Path) -> Pool:
        """Read what `save` wrote."""
        return Pool(**torch.load(path, weights_only=True)).index()

    @staticmethod
    def join(pools: list[Pool]) -> Pool:
        """Concatenate pools."""
        names = [n for n in Pool.__dataclass_fields__ if n != "groups"]
        columns: dict[str, Any] = {n: torch.cat([getattr(p, n) for p in pools]) for n in names}
        return Pool(**columns).index()


class _Stretches(IterableDataset):
    """Raw sound stretches of one kind with labels, endlessly."""

    def __init__(self, seed: int, voices: tuple[str, ...]) -> None:
        self.seed, self.voices = seed, voices

    def __iter__(self) -> Iterator[tuple[str, np.ndarray, dict[str, Any]]]:
        info: Any = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, info.id if info else 0, 41])
        while True:
            roll = rng.random()
            kind = "utterance" if roll < 0.45 else "chatter" if roll < 0.7 else "quiet" if roll < 0.85 else "ring"
            yield kind, *_stretch(kind, rng, self.voices)


def _stretch(kind: str, rng: np.random.Generator, voices: tuple[str, ...]) -> tuple[np.ndarray, dict[str, Any]]:
    blocks = {"utterance": UTTERANCE_BLOCKS, "chatter": CHATTER_BLOCKS, "quiet": 2, "ring": 1}[kind]
    n = blocks * 2 * speech.SAMPLE_RATE
    wave = rng.normal(0, 10 ** rng.uniform(-3.6, -1.9), n).astype(np.float32)
    if rng.random() < 0.3:
        wave[:] += soundscape.music(int(rng.integers(300)), blocks * 2.0)[:n]
    labels: dict[str, Any] = {}
    if kind in ("utterance", "chatter"):
        digits = rng.integers(0, 10, 6)
        words = world.number_words("".join(map(str, digits))) if kind == "utterance" else world.chatter(rng, 2, 7)
        voice = str(rng.choice(voices))
        event = script.Event("voice", 0, 0, words, seed=int(rng.integers(1 << 30)), voice=voice)
        factor = float(rng.uniform(*data.WARP))
        said, _ = soundscape.warped(*soundscape.voice_wave(event), 0.0, factor)
        room = n / speech.SAMPLE_RATE - len(said) / speech.SAMPLE_RATE
        start = float(rng.uniform(0, min(2.0, max(0.0, room))))
        event = script.Event("voice", start, start, words, seed=event.seed, voice=voice)
        said, spans = soundscape.warped(*soundscape.voice_wave(event), start, factor)
        soundscape.mix(wave, said, start)
        inside = np.zeros(blocks * arch.BLOCK_TOKENS, np.int64)
        for _, a, b in spans:
            inside[int(np.ceil(a * 25 - 0.3)) : int(np.floor(b * 25 + 0.3))] = 1
        labels["speech"] = inside
        if kind == "utterance":
            middles = [int((a + b) / 2 * 25) for _, a, b in spans[-6:]]
            if middles[-1] >= blocks * arch.BLOCK_TOKENS:  # a slow voice: does not fit, try again
                return _stretch(kind, rng, voices)
            labels["digits"], labels["centres"] = digits, np.array(middles)
    elif kind == "ring":
        labels["kind"] = int(rng.integers(data.NO_SOUND))
        soundscape.mix(
            wave, soundscape.tone(script.SOUNDS[labels["kind"]], int(rng.integers(61))), float(rng.uniform(0, 1.3))
        )
    return np.clip(wave * rng.uniform(0.5, 1.5), -1, 1), labels


@torch.no_grad()
def make_pool(
    model: Any,
    pairs: int,
    stretches: int,
    seed: int,
    *,
    workers: int = 2,
    voices: tuple[str, ...] = speech.TRAIN_VOICES,
    log: Callable[[str], None] = lambda _: None,
) -> Pool:
    """Render and encode a fresh pool with ``model``'s towers (bfloat16)."""
    visual, tower = model.model.visual, model.model.audio_tower
    parts: dict[str, list[Tensor]] = {}

    def put(name: str, value: Any) -> None:
        parts.setdefault(name, []).append(
            torch.as_tensor(np.asarray(value)) if not isinstance(value, Tensor) else value
        )

    loader = iter(DataLoader(data.Pairs(64, seed, caption=0.5, hard=1.0), batch_size=None, num_workers=workers))
    for _ in range(-(-pairs // 64)):
        batch = next(loader)
        _, merged = arch.vision_forward(visual, arch.patch_rows(batch["pairs"]).to(torch.bfloat16))
        put("pairs", merged.to(torch.bfloat16))
        for name in ("number", "character", "shape_colour", "shape"):
            put(name, batch[name])
    del loader
    log(f"pool: {pairs} pairs")
    stream = iter(DataLoader(_Stretches(seed, voices), batch_size=None, num_workers=workers))
    waiting: dict[str, list[tuple[np.ndarray, dict[str, Any]]]] = {}

    def encode(kind: str) -> None:
        waves = torch.from_numpy(np.stack([w for w, _ in waiting[kind]]))
        raw = data.raw_log_mel(waves)
        top = raw.amax((1, 2), keepdim=True)
        if kind in ("quiet", "ring"):  # in a film the loudest moment is mostly elsewhere
            top = torch.maximum(top, torch.rand(len(raw), 1, 1) * 2.5 + 0.2)
        else:
            top = top + torch.rand(len(raw), 1, 1) * 0.5
        mel = data.floor_log_mel(raw, top).unflatten(2, (-1, 200)).transpose(1, 2)
        tokens = arch.audio_forward(tower, mel.flatten(0, 1).to(torch.bfloat16)).unflatten(0, mel.shape[:2])
        labels = [x for _, x in waiting[kind]]
        if kind == "utterance":
            put("utterances", tokens)
            put("digits", np.stack([x["digits"] for x in labels]))
            put("centres", np.stack([x["centres"] for x in labels]))
        elif kind == "chatter":
            put("chatter", tokens)
            put("speech", np.stack([x["speech"] for x in labels]))
        elif kind == "quiet":
            put("quiet", tokens.flatten(0, 1))
        else:
            put("rings", tokens[:, 0])
            put("kind", np.array([x["kind"] for x in labels]))
        waiting[kind] = []

    for _ in range(stretches):
        kind, wave, labels = next(stream)
        waiting.setdefault(kind, []).append((np.asarray(wave, np.float32), labels))
        if len(waiting[kind]) == 16:
            encode(kind)
    for kind in list(waiting):
        if waiting[kind]:
            encode(kind)
    log(f"pool: {stretches} sounds")
    columns: dict[str, Any] = {k: torch.cat(v) for k, v in parts.items()}
    return Pool(**columns).index()
