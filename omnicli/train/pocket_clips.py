"""Clips for training the pocket model's LLM, composed from encoded pictures and sounds.

Towers never look across frame pairs or 2-second blocks, so a clip of any length can be put together exactly from a
pool of encoded pairs and blocks: pick an event for each moment, take its tokens, give them the positions they would
have there. Only a retained subset is materialised; what else a long clip holds is imitated by an attention bias
log(m) on distractor keys. Nothing here knows about the network beyond its token layout.
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
from omnicli.train import soundscape, speech, world

NO_PLACE = 6
UTTERANCE_BLOCKS = 5
CHATTER_BLOCKS = 3
LETTERS = "ABCD"


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
        return Pool(**{n: torch.cat([getattr(p, n) for p in pools]) for n in names}).index()


# --- making a pool --------------------------------------------------------------------------------------------------


class _Sounds(IterableDataset):
    """Raw sound stretches of one kind with labels, endlessly."""

    def __init__(self, seed: int, voices: tuple[str, ...]) -> None:
        self.seed, self.voices = seed, voices

    def __iter__(self) -> Iterator[tuple[str, np.ndarray, dict[str, Any]]]:
        info: Any = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, info.id if info else 0, 41])
        while True:
            roll = rng.random()
            kind = "utterance" if roll < 0.45 else "chatter" if roll < 0.7 else "quiet" if roll < 0.85 else "ring"
            yield kind, *_sound_unit(kind, rng, self.voices)


def _sound_unit(kind: str, rng: np.random.Generator, voices: tuple[str, ...]) -> tuple[np.ndarray, dict[str, Any]]:
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
        event = world.Event("voice", 0, 0, words, seed=int(rng.integers(1 << 30)), voice=voice)
        said, _ = soundscape.voice_wave(event)
        room = n / speech.SAMPLE_RATE - len(said) / speech.SAMPLE_RATE
        start = float(rng.uniform(0, min(2.0, max(0.0, room))))
        event = world.Event("voice", start, start, words, seed=event.seed, voice=voice)
        said, spans = soundscape.voice_wave(event)
        soundscape.mix(wave, said, start)
        inside = np.zeros(blocks * arch.BLOCK_TOKENS, np.int64)
        for _, a, b in spans:
            inside[int(np.ceil(a * 25 - 0.3)) : int(np.floor(b * 25 + 0.3))] = 1
        labels["speech"] = inside
        if kind == "utterance":
            middles = [int((a + b) / 2 * 25) for _, a, b in spans[-6:]]
            if middles[-1] >= blocks * arch.BLOCK_TOKENS:  # a slow voice: does not fit, try again
                return _sound_unit(kind, rng, voices)
            labels["digits"], labels["centres"] = digits, np.array(middles)
    elif kind == "ring":
        labels["kind"] = int(rng.integers(data.NO_SOUND))
        soundscape.mix(wave, soundscape.tone(world.SOUNDS[labels["kind"]], int(rng.integers(61))), float(rng.uniform(0, 1.3)))
    return np.clip(wave * rng.uniform(0.5, 1.5), -1, 1), labels


@torch.no_grad()
def make_pool(
    model: Any, pairs: int, sounds: int, seed: int, *, workers: int = 2, voices: tuple[str, ...] = speech.TRAIN_VOICES,
    log: Callable[[str], None] = lambda _: None,
) -> Pool:  # fmt: skip
    """Render and encode a fresh pool with ``model``'s towers (bfloat16)."""
    visual, tower = model.model.visual, model.model.audio_tower
    parts: dict[str, list[Tensor]] = {}

    def put(name: str, value: Any) -> None:
        parts.setdefault(name, []).append(torch.as_tensor(np.asarray(value)) if not isinstance(value, Tensor) else value)

    loader = iter(DataLoader(data.Pairs(64, seed, caption=0.5, hard=1.0), batch_size=None, num_workers=workers))
    for _ in range(-(-pairs // 64)):
        batch = next(loader)
        _, merged = arch.vision_forward(visual, arch.patch_rows(batch["pairs"]).to(torch.bfloat16))
        put("pairs", merged.to(torch.bfloat16))
        for name in ("number", "character", "shape_colour", "shape"):
            put(name, batch[name])
    del loader
    log(f"pool: {pairs} pairs")
    stream = iter(DataLoader(_Sounds(seed, voices), batch_size=None, num_workers=workers))
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

    for _ in range(sounds):
        kind, wave, labels = next(stream)
        waiting.setdefault(kind, []).append((np.asarray(wave, np.float32), labels))
        if len(waiting[kind]) == 16:
            encode(kind)
    for kind in list(waiting):
        if waiting[kind]:
            encode(kind)
    log(f"pool: {sounds} sounds")
    return Pool(**{k: torch.cat(v) for k, v in parts.items()}).index()


# --- composing ------------------------------------------------------------------------------------------------------


@dataclass
class Clip:
    """One training sample before batching: media tokens in reading order, their weight, labels, question, answer."""

    features: list[Tensor]
    time: list[np.ndarray]
    row: list[np.ndarray]
    col: list[np.ndarray]
    distractor: list[np.ndarray]
    place: list[np.ndarray]
    speaker: list[np.ndarray]
    sound: list[np.ndarray]
    question: str
    answer: str
    digits: np.ndarray | None
    colour: int
    end: int


class _Canvas:
    """The time line of a clip in 2-second windows; collects the retained tokens of what happens in each."""

    def __init__(self, pool: Pool, rng: np.random.Generator, windows: int, keep: float) -> None:
        self.pool, self.rng, self.windows, self.keep = pool, rng, windows, keep
        self.items: list[tuple] = []
        self.used = np.zeros(windows, bool)
        self.pair_used = np.zeros(windows, bool)
        self.sound_used = np.zeros(windows, bool)

    def room(self, length: int) -> int | None:
        """Return the first window of a free stretch, or None."""
        for _ in range(12):
            start = int(self.rng.integers(0, max(1, self.windows - length + 1)))
            if start + length <= self.windows and not self.used[start : start + length].any():
                self.used[start : start + length] = True
                return start
        return None

    def _kept(self, n: int, share: float) -> np.ndarray:
        if share >= 1:
            return np.arange(n)
        return np.nonzero(self.rng.random(n) < share)[0]

    def pair(self, window: int, index: int, share: float, distractor: bool = False) -> None:
        """Show pair ``index`` of the pool at a window, keeping a random share of its 28 tokens."""
        kept = self._kept(arch.PAIR_TOKENS, share)
        self.pair_used[window] = True
        if len(kept):
            n = len(kept)
            self.items.append((
                (window, 0), self.pool.pairs[index, kept], np.full(n, window * 50), kept // arch.CELLS[1],
                kept % arch.CELLS[1], np.full(n, distractor), np.full(n, NO_PLACE), np.full(n, -1), np.zeros(n, bool), np.zeros(n, bool),
            ))  # fmt: skip

    def sound(
        self, window: int, tokens: Tensor, share: float, *, distractor: bool = False, must: np.ndarray | None = None,
        place: np.ndarray | None = None, speaker: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """Play a block (50, D) at a window; ``must`` flags tokens that are kept whatever the share."""
        keep = self.rng.random(arch.BLOCK_TOKENS) < share
        if must is not None:
            keep |= must
        kept = np.nonzero(keep)[0]
        self.sound_used[window] = True
        if len(kept):
            n = len(kept)
            at = window * 50 + kept
            self.items.append((
                (window, 1), tokens[kept], at, at, at, np.full(n, distractor),
                place[kept] if place is not None else np.full(n, NO_PLACE),
                speaker[kept] if speaker is not None else np.full(n, -1), np.ones(n, bool),
                must[kept] if must is not None else np.zeros(n, bool),
            ))  # fmt: skip

    def thin(self, budget: int) -> None:
        """Drop tokens at random until about ``budget`` are left; those that must stay do, and two of every item."""
        total = sum(len(item[2]) for item in self.items)
        if total <= budget:
            return
        free = total - sum(int(item[-1].sum()) for item in self.items)
        share = max(0.0, (budget - (total - free)) / max(1, free))
        for i, item in enumerate(self.items):
            stay = item[-1] | (self.rng.random(len(item[-1])) < share)
            stay[self.rng.integers(len(stay), size=2)] = True
            self.items[i] = (item[0], *[column[stay] for column in item[1:]])


def compose(pool: Pool, rng: np.random.Generator, *, budget: int, full: bool = False) -> Clip:
    """Write one random clip and a question about it.

    ``budget`` bounds the materialised tokens. ``full`` keeps every token of a short clip.
    """
    g = pool.groups
    seconds = float(rng.uniform(10, budget / 39)) if full else float(np.exp(rng.uniform(np.log(10), np.log(3700))))
    windows = max(5, int(seconds / 2))
    share = 1.0 if full else float(rng.choice((1.0, rng.uniform(0.3, 1.0), rng.uniform(0.1, 0.5))))
    canvas = _Canvas(pool, rng, windows, share)
    pick = lambda items: int(items[rng.integers(len(items))])  # noqa: E731
    empty_pair = lambda: pick(g["empty"])  # noqa: E731
    facts: dict[str, Any] = {}
    wanted = str(rng.choice(("caption", "spoken", "who", "cross"), p=(0.34, 0.34, 0.22, 0.10)))
    if wanted == "caption" or rng.random() < 0.45:
        start = canvas.room(1)
        if start is not None:
            index = pick(g["caption"])
            canvas.pair(start, index, 1.0 if rng.random() < 0.5 else max(share, 0.3))
            facts["caption"] = pool.number[index].numpy()
    if wanted == "spoken" or rng.random() < 0.45:
        start = canvas.room(UTTERANCE_BLOCKS)
        if start is not None:
            index = int(rng.integers(len(pool.utterances)))
            place = np.full(UTTERANCE_BLOCKS * 50, NO_PLACE)
            must = np.zeros(UTTERANCE_BLOCKS * 50, bool)
            centres = pool.centres[index].numpy()
            place[centres] = np.arange(6)
            for near in (-1, 0, 1):
                must[np.clip(centres + near, 0, len(must) - 1)] = True
            light = float(rng.choice((share, 0.25, 1.0)))
            for b in range(UTTERANCE_BLOCKS):
                part = slice(b * 50, b * 50 + 50)
                canvas.sound(start + b, pool.utterances[index, b], light, must=must[part], place=place[part])
                if rng.random() < max(share, 0.2):
                    canvas.pair(start + b, empty_pair(), min(share, 0.4), True)
            facts["spoken"] = pool.digits[index].numpy()
    talks: list[tuple[int, int]] = []
    if wanted == "who" or rng.random() < 0.4:
        people = rng.permutation(data.NO_COLOUR)[: int(rng.integers(2, 5))]
        for turn in range(int(rng.integers(3, 7)) if rng.random() < 0.75 else int(rng.integers(6, 20))):
            silent = turn > 1 and rng.random() < 0.3
            length = int(rng.integers(1, 3)) if silent else CHATTER_BLOCKS
            start = canvas.room(length)
            if start is None:
                continue
            who = int(rng.choice(people))
            index = int(rng.integers(len(pool.chatter)))
            said = pool.speech[index].numpy().reshape(CHATTER_BLOCKS, 50)
            light = max(share, float(rng.uniform(0.15, 0.6)))
            for b in range(length):
                if silent:
                    canvas.pair(start + b, pick(g["character"][who]), light)
                    canvas.sound(start + b, pool.quiet[int(rng.integers(len(pool.quiet)))], min(share, 0.3), distractor=True)
                    continue
                speaks = said[b].any()
                if speaks:
                    canvas.pair(start + b, pick(g["character"][who]), light)
                    canvas.sound(
                        start + b, pool.chatter[index, b], light, speaker=np.where(said[b] > 0, who, -1)
                    )  # fmt: skip
            if not silent:
                talks.append((start, who))
    talks.sort()
    if len(talks) > 1:
        facts["last"], facts["first"] = talks[-1][1], talks[0][1]
    for _ in range(int(rng.integers(0, 4))):  # voices of nobody on screen
        start = canvas.room(CHATTER_BLOCKS)
        if start is None:
            continue
        index = int(rng.integers(len(pool.chatter)))
        for b in range(CHATTER_BLOCKS):
            canvas.sound(start + b, pool.chatter[index, b], max(0.15, min(share, 0.5)))
            canvas.pair(start + b, empty_pair(), min(share, 0.4), True)
    shown: list[tuple[int, int, int, int]] = []
    if wanted == "cross" or rng.random() < 0.3:
        kinds = rng.permutation(data.NO_SOUND)
        used: set[tuple[int, int]] = set()
        for i in range(2):
            start = canvas.room(1)
            colour, shape = int(rng.integers(data.NO_COLOUR)), int(rng.integers(data.NO_SHAPE))
            if start is None or (colour, shape) in used or any(colour == s[1] for s in shown):
                continue
            used.add((colour, shape))
            light = max(share, 0.4)
            canvas.pair(start, pick(g["shape"][colour, shape]), light)
            canvas.sound(start, pool.rings[pick(g["ring"][int(kinds[i])])], light)
            shown.append((start, colour, shape, int(kinds[i])))
        shown.sort()
    question, answer, digits, colour = _ask(rng, wanted, facts, shown)
    if not full:
        canvas.thin(int(budget * 0.8))
    _fill(canvas, budget, full)
    canvas.items.sort(key=lambda item: item[0])
    columns = list(zip(*[item[1:-1] for item in canvas.items], strict=True))
    return Clip(*[list(c) for c in columns], question, answer, digits, colour, windows * 50)


def _ask(
    rng: np.random.Generator, wanted: str, facts: dict[str, Any], shown: list
) -> tuple[str, str, np.ndarray | None, int]:
    """Choose a question that the clip answers: (question, answer, digits or None, colour or -1)."""
    options = [k for k in ("caption", "spoken") if k in facts] + (["who"] if "last" in facts else [])
    if shown:
        options.append("cross")
    kind = wanted if wanted in options else (str(rng.choice(options)) if options else "none")
    if kind in ("caption", "spoken"):
        phrases = ["What number is shown?"] if kind == "caption" else ["What number is spoken?"]
        if ("spoken" if kind == "caption" else "caption") not in facts:
            phrases.append("What is the secret number?")
        answer = "".join(map(str, facts[kind]))
        return str(rng.choice(phrases)), answer, facts[kind], -1
    if kind == "who":
        last = bool(rng.random() < 0.7)
        colour = facts["last" if last else "first"]
        text, answer = ("Who speaks last?" if last else "Who speaks first?"), data.COLOUR_NAMES[colour]
        return *_choices(rng, text, answer, data.COLOUR_NAMES), None, colour
    if kind == "cross":
        _, colour, shape, ring = shown[int(rng.integers(len(shown)))]
        name = f"{data.COLOUR_NAMES[colour]} {world.SHAPES[shape]}"
        roll = rng.random()
        if roll < 0.4:
            text = f"What colour is the shape when the {world.SOUNDS[ring]} is heard?"
            return *_choices(rng, text, data.COLOUR_NAMES[colour], data.COLOUR_NAMES), None, colour
        if roll < 0.8:
            text = f"What sound is heard when the {name} appears?"
            return *_choices(rng, text, world.SOUNDS[ring], world.SOUNDS), None, -1
        if rng.random() < 0.5:
            return f"Is there a {name}?", "yes", None, -1
        present = {(c, s) for _, c, s, _ in shown}
        absent = [(c, s) for c in range(data.NO_COLOUR) for s in range(data.NO_SHAPE) if (c, s) not in present]
        c, s = absent[int(rng.integers(len(absent)))]
        return f"Is there a {data.COLOUR_NAMES[c]} {world.SHAPES[s]}?", "no", None, -1
    return "Is there a red circle?", "no", None, -1


def _choices(rng: np.random.Generator, text: str, answer: str, names: tuple[str, ...]) -> tuple[str, str]:
    """Turn one question in eight into multiple choice with letters."""
    if rng.random() > 1 / 8:
        return text, answer
    return multiple_choice(rng, text, answer, names)


def multiple_choice(rng: np.random.Generator, text: str, answer: str, names: tuple[str, ...]) -> tuple[str, str]:
    """Return the question with four options A to D and the right letter."""
    others = [n for n in names if n != answer]
    options = [answer, *[str(o) for o in rng.permutation(others)[:3]]]
    order = rng.permutation(len(options))
    listed = " ".join(f"{LETTERS[i]}) {options[j]}" for i, j in enumerate(order))
    return f"{text} {listed}", LETTERS[int(np.nonzero(order == 0)[0][0])]


def _fill(canvas: _Canvas, budget: int, full: bool) -> None:
    """Add distractors: all free windows when ``full``, else a sample of them within the budget."""
    rng, pool = canvas.rng, canvas.pool
    spare = budget - sum(len(item[2]) for item in canvas.items)
    order = np.arange(canvas.windows) if full else rng.permutation(canvas.windows)
    for window in order:
        if spare <= 0 and not full:
            break
        light = 1.0 if full else float(rng.uniform(0.05, 0.5))
        if not canvas.pair_used[window]:
            group = pool.groups["empty"] if rng.random() < 0.85 else pool.groups["character"][int(rng.integers(data.NO_COLOUR))]
            canvas.pair(window, int(group[rng.integers(len(group))]), light, True)
        if not canvas.sound_used[window]:
            canvas.sound(window, pool.quiet[int(rng.integers(len(pool.quiet)))], light, distractor=True)
        spare = budget - sum(len(item[2]) for item in canvas.items)


class Clips(IterableDataset):
    """Batches for the LLM; see `collate` for what they hold."""

    def __init__(
        self, pool: Pool, seed: int, encode: Callable[[str], list[int]], stop: int, sizes: tuple | None = None
    ) -> None:
        self.pool, self.seed, self.encode, self.stop = pool, seed, encode, stop
        self.sizes = sizes or (_SIZES, _SIZE_SHARES)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        torch.set_num_threads(1)
        info: Any = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, info.id if info else 0, 42])
        while True:
            sizes, shares = self.sizes
            batch, budget, full = sizes[int(rng.choice(len(sizes), p=shares))]
            made = [compose(self.pool, rng, budget=int(budget * rng.uniform(0.8, 1.0)), full=full) for _ in range(batch * 3)]
            made.sort(key=lambda clip: sum(len(t) for t in clip.time) + len(clip.question))
            for part in rng.permutation(3):  # neighbours in length share a batch: little padding
                yield collate(made[part * batch : (part + 1) * batch], rng, self.encode, self.stop)


_SIZES = ((40, 80, False), (8, 350, False), (3, 1150, True))
_SIZE_SHARES = (0.86, 0.08, 0.06)
"""Clips per batch, media tokens each, whether everything is kept; and how often."""


def collate(clips: list[Clip], rng: np.random.Generator, encode: Callable[[str], list[int]], stop: int) -> dict[str, Tensor]:
    """Pad clips into one batch.

    Returns ``media`` (B, M, D) bf16, ``media_len`` (B,), ``before``/``after`` ids, ``position_ids`` (3, B, S),
    ``logm`` (B, S) the bias of distractor keys, ``target`` (B, S) next ids or -100, ``place``/``speaker`` (B, S) labels
    of media tokens (-100 none), ``sound`` (B, S) flags of sound tokens, ``asked`` (B, S) flags of the question's tokens, ``digits`` (B, 6) or -1,
    ``colour`` (B,) or -1. Rows are ``before | media | after | answer`` and padded at the end.
    """
    before = encode("<|im_start|>user\n<|vision_bos|><|audio_bos|>")
    rows = []
    for clip in clips:
        after = encode(f"<|audio_eos|><|vision_eos|>{clip.question}<|im_end|>\n<|im_start|>assistant\n")
        answer = [*encode(clip.answer), stop]
        media = torch.cat(clip.features)
        column = lambda name, clip=clip: np.concatenate(getattr(clip, name))  # noqa: E731
        origin = len(before) - 1
        rows.append((clip, after, answer, media, column, origin))
    length = max(len(before) + len(r[3]) + len(r[1]) + len(r[2]) - 1 for r in rows)
    b = len(rows)
    ids = torch.zeros(b, length, dtype=torch.long)
    is_media = torch.zeros(b, length, dtype=torch.bool)
    features = torch.zeros(b, length, arch.HIDDEN, dtype=torch.bfloat16)
    position_ids = torch.zeros(3, b, length, dtype=torch.long)
    logm = torch.zeros(b, length)
    target = torch.full((b, length), -100)
    place, speaker = torch.full((b, length), -100), torch.full((b, length), -100)
    sound = torch.zeros(b, length, dtype=torch.bool)
    asked = torch.zeros(b, length, dtype=torch.bool)
    valid = torch.zeros(b, length, dtype=torch.bool)
    digits = torch.full((b, 6), -1)
    colour = torch.full((b,), -1)
    for i, (clip, after, answer, media, column, origin) in enumerate(rows):
        n, m = len(before), len(media)
        end = n + m + len(after) + len(answer) - 1
        valid[i, :end] = True
        ids[i, :n] = torch.tensor(before)
        ids[i, n + m : end] = torch.tensor(after + answer[:-1])
        is_media[i, n : n + m] = True
        features[i, n : n + m] = media
        position_ids[:, i, :n] = torch.arange(n)
        position_ids[:, i, n - 1] -= 1
        for axis, name in enumerate(("time", "row", "col")):
            position_ids[axis, i, n : n + m] = torch.from_numpy(column(name)) + origin
        text = torch.arange(len(after) + len(answer) - 1)
        text[1:] -= 1
        position_ids[:, i, n + m : end] = text + origin + clip.end
        distractor = torch.from_numpy(column("distractor"))
        count = max(1, int(distractor.sum()))
        mass = float(np.exp(rng.uniform(0, np.log(max(1.5, min(10_000, clip.end * 1.5) / count))))) if count > 0 else 1.0
        logm[i, n : n + m][distractor] = float(np.log(mass))
        start = n + m + len(after) - 1
        target[i, start : start + len(answer)] = torch.tensor(answer)
        place[i, n : n + m] = torch.from_numpy(column("place"))
        sound[i, n : n + m] = torch.from_numpy(column("sound"))
        said = torch.from_numpy(column("speaker"))
        speaker[i, n : n + m][said >= 0] = said[said >= 0]
        asked[i, n + m + 2 : n + m + len(after)] = True
        if clip.digits is not None:
            digits[i] = torch.from_numpy(np.asarray(clip.digits))
        colour[i] = clip.colour
    return {
        "ids": ids, "is_media": is_media, "features": features, "position_ids": position_ids, "logm": logm,
        "target": target, "place": place, "speaker": speaker, "asked": asked, "valid": valid, "digits": digits,
        "colour": colour, "sound": sound,
    }  # fmt: skip
