"""Clips for training the pocket model's LLM, composed from a pool of encoded pictures and sounds.

A clip is a script of events on a line of 2-second windows with a question about it; its tokens are taken from the
pool and given the positions they would have in a film. Only a retained subset is materialised; what else a long film
holds is imitated by an attention bias log(m) on distractor keys. Nothing here knows the network beyond its token
layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnicli.train import pocket_data as data
from omnicli.train import pocket_model as arch
from omnicli.train import script
from omnicli.train.pocket_pool import CHATTER_BLOCKS, UTTERANCE_BLOCKS, Pool

NO_PLACE = 6
MOST_TURNS = 20
LETTERS = "ABCD"


@dataclass
class Piece:
    """Tokens of one frame pair or one sound block at a window, all arrays of length n.

    ``place`` is a spoken digit's place in its number or `NO_PLACE`; ``speaker`` the colour of who is heard and seen, or
    -1; ``turn`` how many on-screen turns came before, or -1; ``must`` tokens survive every thinning.
    """

    window: int
    is_audio: bool
    features: Tensor
    time: np.ndarray
    row: np.ndarray
    col: np.ndarray
    place: np.ndarray
    speaker: np.ndarray
    turn: np.ndarray
    must: np.ndarray
    distractor: bool

    def keep(self, stay: np.ndarray) -> None:
        """Drop all tokens but the flagged ones."""
        self.features = self.features[stay]
        for name in ("time", "row", "col", "place", "speaker", "turn", "must"):
            setattr(self, name, getattr(self, name)[stay])


@dataclass
class Clip:
    """One training sample before batching: pieces in reading order, the question, its answer, and ``end`` in positions.

    ``digits`` (6,) is the number asked for, ``colour`` the class asked for, else None and -1.
    """

    pieces: list[Piece]
    question: str
    answer: str
    digits: np.ndarray | None
    colour: int
    end: int

    def __len__(self) -> int:
        return sum(len(piece.time) for piece in self.pieces)

    def column(self, name: str) -> np.ndarray:
        """Return one label of all tokens (n,)."""
        return np.concatenate([getattr(piece, name) for piece in self.pieces])

    def flags(self, name: str) -> Tensor:
        """Return a piece's flag for each of its tokens (n,) bool."""
        return torch.cat([torch.full((len(piece.time),), getattr(piece, name)) for piece in self.pieces])


class _Script:
    """Writes one clip: events at free windows, with the facts that questions can ask for."""

    def __init__(self, pool: Pool, rng: np.random.Generator, windows: int, share: float, budget: int) -> None:
        self.pool, self.rng, self.windows, self.share, self.budget = pool, rng, windows, share, budget
        self.pieces: list[Piece] = []
        self.used = np.zeros(windows, bool)
        self.shown_at = np.zeros(windows, bool)
        self.has_audio = np.zeros(windows, bool)
        self.numbers: dict[str, np.ndarray] = {}
        self.talks: list[tuple[int, int]] = []
        self.rings: list[tuple[int, int, int]] = []

    # ---- events ----

    def caption(self) -> None:
        """A number on one frame pair."""
        start = self._room(1)
        if start is not None:
            index = self._pick("caption")
            self._pair(start, index, 1.0 if self.rng.random() < 0.5 else max(self.share, 0.3))
            self.numbers["caption"] = self.pool.number[index].numpy()

    def spoken(self) -> None:
        """A number said while nobody is on screen. The tokens at its digits are always kept."""
        start = self._room(UTTERANCE_BLOCKS)
        if start is None:
            return
        index = int(self.rng.integers(len(self.pool.utterances)))
        place = np.full(UTTERANCE_BLOCKS * 50, NO_PLACE)
        must = np.zeros(UTTERANCE_BLOCKS * 50, bool)
        centres = self.pool.centres[index].numpy()
        place[centres] = np.arange(6)
        for near in (-1, 0, 1):
            must[np.clip(centres + near, 0, len(must) - 1)] = True
        light = float(self.rng.choice((self.share, 0.25, 1.0)))
        for b in range(UTTERANCE_BLOCKS):
            part = slice(b * 50, b * 50 + 50)
            self._audio(start + b, self.pool.utterances[index, b], light, must=must[part], place=place[part])
            if self.rng.random() < max(self.share, 0.2):
                self._pair(start + b, self._pick("empty"), min(self.share, 0.4), distractor=True)
        self.numbers["spoken"] = self.pool.digits[index].numpy()

    def conversation(self) -> None:
        """Turns of two to four people; some are on screen and silent."""
        rng = self.rng
        people = rng.permutation(data.NO_COLOUR)[: int(rng.integers(2, 5))]
        many = self.budget > 200 and rng.random() < 0.5
        for turn in range(int(rng.integers(6, MOST_TURNS)) if many else int(rng.integers(3, 7))):
            silent = turn > 1 and rng.random() < 0.3
            length = int(rng.integers(1, 3)) if silent else CHATTER_BLOCKS
            start = self._room(length)
            if start is not None:
                who = int(rng.choice(people))
                if silent:
                    self._silent(start, length, who)
                else:
                    self._talk(start, who)
        self.talks.sort()
        for piece in self.pieces:
            said = piece.speaker >= 0
            if said.any():
                before = int(np.searchsorted([s for s, _ in self.talks], piece.window, side="right")) - 1
                piece.turn[said] = min(before, MOST_TURNS - 1)

    def _silent(self, start: int, length: int, who: int) -> None:
        for window in range(start, start + length):
            self._pair(window, self._pick("character", who), max(self.share, float(self.rng.uniform(0.15, 0.6))))
            quiet = self.pool.quiet[int(self.rng.integers(len(self.pool.quiet)))]
            self._audio(window, quiet, min(self.share, 0.3), distractor=True)

    def _talk(self, start: int, who: int) -> None:
        index = int(self.rng.integers(len(self.pool.chatter)))
        said = self.pool.speech[index].numpy().reshape(CHATTER_BLOCKS, 50)
        light = max(self.share, float(self.rng.uniform(0.15, 0.6)))
        for b in np.nonzero(said.any(1))[0]:
            self._pair(start + int(b), self._pick("character", who), light)
            chosen = np.zeros(50, bool)
            chosen[self.rng.choice(np.nonzero(said[b])[0], 2)] = True
            speaker = np.where(said[b] > 0, who, -1)
            self._audio(start + int(b), self.pool.chatter[index, b], light, must=chosen, speaker=speaker)
        self.talks.append((start, who))

    def narration(self) -> None:
        """A voice of nobody on screen."""
        start = self._room(CHATTER_BLOCKS)
        if start is not None:
            index = int(self.rng.integers(len(self.pool.chatter)))
            for b in range(CHATTER_BLOCKS):
                self._audio(start + b, self.pool.chatter[index, b], max(0.15, min(self.share, 0.5)))
                self._pair(start + b, self._pick("empty"), min(self.share, 0.4), distractor=True)

    def ringing_shapes(self) -> None:
        """Up to two shapes of different colours, each with a sound of its own."""
        kinds = self.rng.permutation(data.NO_SOUND)
        for i in range(2):
            start = self._room(1)
            colour, shape = int(self.rng.integers(data.NO_COLOUR)), int(self.rng.integers(data.NO_SHAPE))
            if start is None or any(colour == c for c, _, _ in self.rings):
                continue
            light = max(self.share, 0.4)
            self._pair(start, self._pick("shape", (colour, shape)), light)
            self._audio(start, self.pool.rings[self._pick("ring", int(kinds[i]))], light)
            self.rings.append((colour, shape, int(kinds[i])))

    def fill(self, full: bool) -> None:
        """Add distractors: every free window when ``full``, else a sample of them within the budget."""
        rng = self.rng
        order = np.arange(self.windows) if full else rng.permutation(self.windows)
        have = sum(len(piece.time) for piece in self.pieces)
        for window in order:
            if have >= self.budget and not full:
                break
            light = 1.0 if full else float(rng.uniform(0.05, 0.5))
            before = len(self.pieces)
            if not self.shown_at[window]:
                shown = ("empty",) if rng.random() < 0.85 else ("character", int(rng.integers(data.NO_COLOUR)))
                self._pair(window, self._pick(*shown), light, distractor=True)
            if not self.has_audio[window]:
                quiet = self.pool.quiet[int(rng.integers(len(self.pool.quiet)))]
                self._audio(window, quiet, light, distractor=True)
            have += sum(len(piece.time) for piece in self.pieces[before:])

    def thin(self, most: int) -> None:
        """Drop tokens at random until about ``most`` are left; those that must stay, and one of each piece, do."""
        total = sum(len(piece.time) for piece in self.pieces)
        if total <= most:
            return
        fixed = sum(int(piece.must.sum()) for piece in self.pieces)
        share = max(0.0, (most - fixed) / max(1, total - fixed))
        for piece in self.pieces:
            stay = piece.must | (self.rng.random(len(piece.must)) < share)
            stay[self.rng.integers(len(stay), size=2)] = True
            piece.keep(stay)

    # ---- placing ----

    def _pick(self, group: str, key: Any = None) -> int:
        members = self.pool.groups[group] if key is None else self.pool.groups[group][key]
        return int(members[self.rng.integers(len(members))])

    def _room(self, length: int) -> int | None:
        """Return the first window of a free stretch, or None."""
        for _ in range(12):
            start = int(self.rng.integers(0, max(1, self.windows - length + 1)))
            if start + length <= self.windows and not self.used[start : start + length].any():
                self.used[start : start + length] = True
                return start
        return None

    def _pair(self, window: int, index: int, share: float, *, distractor: bool = False) -> None:
        kept = np.nonzero(self.rng.random(arch.PAIR_TOKENS) < share)[0]
        self.shown_at[window] = True
        n = len(kept)
        if n:
            row, col = kept // arch.CELLS[1], kept % arch.CELLS[1]
            none = np.full(n, -1)
            self.pieces.append(
                Piece(
                    window,
                    False,
                    self.pool.pairs[index, kept],
                    np.full(n, window * 50),
                    row,
                    col,
                    np.full(n, NO_PLACE),
                    none,
                    none.copy(),
                    np.zeros(n, bool),
                    distractor,
                )
            )

    def _audio(
        self,
        window: int,
        tokens: Tensor,
        share: float,
        *,
        distractor: bool = False,
        must: np.ndarray | None = None,
        place: np.ndarray | None = None,
        speaker: np.ndarray | None = None,
    ) -> None:
        must = np.zeros(arch.BLOCK_TOKENS, bool) if must is None else must
        kept = np.nonzero(must | (self.rng.random(arch.BLOCK_TOKENS) < share))[0]
        self.has_audio[window] = True
        n = len(kept)
        if n:
            at = window * 50 + kept
            self.pieces.append(
                Piece(
                    window,
                    True,
                    tokens[kept],
                    at,
                    at,
                    at,
                    np.full(n, NO_PLACE) if place is None else place[kept],
                    np.full(n, -1) if speaker is None else speaker[kept],
                    np.full(n, -1),
                    must[kept],
                    distractor,
                )
            )


def compose(pool: Pool, rng: np.random.Generator, *, budget: int, full: bool = False) -> Clip:
    """Write one random clip and a question about it.

    ``budget`` bounds the materialised tokens. ``full`` keeps every token of a short clip.
    """
    seconds = float(rng.uniform(10, budget / 39)) if full else float(np.exp(rng.uniform(np.log(10), np.log(3700))))
    windows = max(5, int(seconds / 2))
    share = 1.0 if full else float(rng.choice((1.0, rng.uniform(0.3, 1.0), rng.uniform(0.1, 0.5))))
    script = _Script(pool, rng, windows, share, budget)
    wanted = str(rng.choice(("caption", "spoken", "who", "cross"), p=(0.26, 0.24, 0.36, 0.14)))
    for name, event, chance in (
        ("caption", script.caption, 0.45),
        ("spoken", script.spoken, 0.45),
        ("who", script.conversation, 0.4),
    ):
        if wanted == name or rng.random() < chance:
            event()
    for _ in range(int(rng.integers(0, 4))):
        script.narration()
    if wanted == "cross" or rng.random() < 0.3:
        script.ringing_shapes()
    question, answer, digits, colour = _ask(rng, wanted, script)
    if not full:
        script.thin(int(budget * 0.8))
    script.fill(full)
    pieces = sorted(script.pieces, key=lambda piece: (piece.window, piece.is_audio))
    return Clip(pieces, question, answer, digits, colour, windows * 50)


# --- questions ------------------------------------------------------------------------------------------------------


def _ask(rng: np.random.Generator, wanted: str, script: _Script) -> tuple[str, str, np.ndarray | None, int]:
    """Choose a question that the clip answers: (question, answer, digits or None, colour or -1)."""
    options = [*script.numbers, *(["who"] if len(script.talks) > 1 else []), *(["cross"] if script.rings else [])]
    kind = wanted if wanted in options else (str(rng.choice(options)) if options else "none")
    if kind in script.numbers:
        phrases = ["What number is shown?" if kind == "caption" else "What number is spoken?"]
        if len(script.numbers) == 1:
            phrases.append("What is the secret number?")
        digits = script.numbers[kind]
        return str(rng.choice(phrases)), "".join(map(str, digits)), digits, -1
    if kind == "who":
        last = bool(rng.random() < 0.7)
        colour = script.talks[-1 if last else 0][1]
        text = "Who speaks last?" if last else "Who speaks first?"
        return *_choices(rng, text, data.COLOUR_NAMES[colour], data.COLOUR_NAMES), None, colour
    if kind == "cross":
        return _ask_across(rng, script.rings)
    return "Is there a red circle?", "no", None, -1


def _ask_across(rng: np.random.Generator, rings: list[tuple[int, int, int]]) -> tuple[str, str, None, int]:
    """Ask across the senses, or for the presence of a shape."""
    colour, shape, ring = rings[int(rng.integers(len(rings)))]
    name = f"{data.COLOUR_NAMES[colour]} {script.SHAPES[shape]}"
    roll = rng.random()
    if roll < 0.4:
        text = f"What colour is the shape when the {script.SOUNDS[ring]} is heard?"
        return *_choices(rng, text, data.COLOUR_NAMES[colour], data.COLOUR_NAMES), None, colour
    if roll < 0.8:
        return (
            *_choices(rng, f"What sound is heard when the {name} appears?", script.SOUNDS[ring], script.SOUNDS),
            None,
            -1,
        )
    present = rng.random() < 0.5
    if not present:
        there = {(c, s) for c, s, _ in rings}
        absent = [(c, s) for c in range(data.NO_COLOUR) for s in range(data.NO_SHAPE) if (c, s) not in there]
        colour, shape = absent[int(rng.integers(len(absent)))]
    return f"Is there a {data.COLOUR_NAMES[colour]} {script.SHAPES[shape]}?", "yes" if present else "no", None, -1


def _choices(rng: np.random.Generator, text: str, answer: str, names: Sequence[str]) -> tuple[str, str]:
    """Turn one question in eight into multiple choice with letters."""
    return multiple_choice(rng, text, answer, names) if rng.random() < 1 / 8 else (text, answer)


def multiple_choice(rng: np.random.Generator, text: str, answer: str, names: Sequence[str]) -> tuple[str, str]:
    """Return the question with four options A to D and the right letter."""
    others = [n for n in names if n != answer]
    options = [answer, *[str(o) for o in rng.permutation(others)[:3]]]
    order = rng.permutation(len(options))
    listed = " ".join(f"{LETTERS[i]}) {options[j]}" for i, j in enumerate(order))
    return f"{text} {listed}", LETTERS[int(np.nonzero(order == 0)[0][0])]
