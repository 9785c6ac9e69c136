"""Batches for the pocket model's LLM: composed clips padded into rows of ids, embeddings and labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from omnicli.train import pocket_model as arch
from omnicli.train.pocket_clips import Clip, compose
from omnicli.train.pocket_pool import Pool

SIZES = ((40, 80, False), (8, 350, False), (3, 1150, True))
SIZE_SHARES = (0.86, 0.08, 0.06)
"""Clips per batch, media tokens each, whether everything is kept; and how often."""


class Clips(IterableDataset):
    """Batches for the LLM, endlessly; see `collate` for what they hold. ``sizes``: as `SIZES`, with ``shares``."""

    def __init__(
        self,
        pool: Pool,
        seed: int,
        encode: Callable[[str], list[int]],
        stop: int,
        *,
        sizes: Sequence[tuple[int, int, bool]] = SIZES,
        shares: Sequence[float] = SIZE_SHARES,
    ) -> None:
        self.pool, self.seed, self.encode, self.stop = pool, seed, encode, stop
        self.sizes, self.shares = sizes, shares

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        info: Any = torch.utils.data.get_worker_info()
        if info:
            torch.set_num_threads(1)
        rng = np.random.default_rng([self.seed, info.id if info else 0, 42])
        while True:
            batch, budget, full = self.sizes[int(rng.choice(len(self.sizes), p=self.shares))]
            made = [
                compose(self.pool, rng, budget=int(budget * rng.uniform(0.8, 1.0)), full=full) for _ in range(batch * 3)
            ]
            made.sort(key=lambda clip: len(clip) + len(clip.question))
            for part in rng.permutation(3):  # neighbours in length share a batch: little padding
                yield collate(made[part * batch : (part + 1) * batch], rng, self.encode, self.stop)


def collate(
    clips: list[Clip], rng: np.random.Generator, encode: Callable[[str], list[int]], stop: int
) -> dict[str, Tensor]:
    """Pad clips into one batch of rows ``before | media | after | answer``.

    Returns
    -------
    dict
        ``ids`` (B, S) with 0 where ``is_media`` (B, S); ``features`` (B, S, D) bfloat16; ``position_ids`` (3, B, S);
        ``valid`` (B, S) not padding; ``logm`` (B, S) the bias of distractor keys; ``target`` (B, S) next ids, else
        -100; ``place``, ``speaker``, ``turn`` (B, S) labels of media tokens, else -100; ``is_audio`` (B, S) flags of
        sound tokens; ``asked`` (B, S) of the question and what follows it; ``digits`` (B, 6) or -1; ``colour`` (B,) or
        -1.
    """
    before = encode("<|im_start|>user\n<|vision_bos|><|audio_bos|>")
    texts = [
        (
            encode(f"<|audio_eos|><|vision_eos|>{clip.question}<|im_end|>\n<|im_start|>assistant\n"),
            [*encode(clip.answer), stop],
        )
        for clip in clips
    ]
    ends = [
        len(before) + len(c) + len(after) + len(answer) - 1 for c, (after, answer) in zip(clips, texts, strict=True)
    ]
    shape = (len(clips), max(ends))
    batch = {name: torch.full(shape, -100) for name in ("target", "place", "speaker", "turn")}
    batch |= {name: torch.zeros(shape, dtype=torch.bool) for name in ("is_media", "is_audio", "asked", "valid")}
    batch |= {"ids": torch.zeros(shape, dtype=torch.long), "logm": torch.zeros(shape)}
    batch["features"] = torch.zeros(*shape, arch.HIDDEN, dtype=torch.bfloat16)
    batch["position_ids"] = torch.zeros(3, *shape, dtype=torch.long)
    batch["digits"] = torch.full((len(clips), 6), -1)
    batch["colour"] = torch.tensor([clip.colour for clip in clips])
    for i, (clip, (after, answer), end) in enumerate(zip(clips, texts, ends, strict=True)):
        n, m = len(before), len(clip)
        media = slice(n, n + m)
        batch["valid"][i, :end] = True
        batch["ids"][i, :n] = torch.tensor(before)
        batch["ids"][i, n + m : end] = torch.tensor(after + answer[:-1])
        batch["is_media"][i, media] = True
        batch["features"][i, media] = torch.cat([piece.features for piece in clip.pieces])
        batch["position_ids"][:, i, :end] = _positions(clip, n, end)
        batch["logm"][i, media] = _mass(clip, rng)
        start = end - len(answer)
        batch["target"][i, start:end] = torch.tensor(answer)
        batch["place"][i, media] = torch.from_numpy(clip.column("place"))
        for name in ("speaker", "turn"):
            label = torch.from_numpy(clip.column(name)).long()
            batch[name][i, media] = torch.where(label >= 0, label, -100)
        batch["is_audio"][i, media] = clip.flags("is_audio")
        batch["asked"][i, n + m + 2 : n + m + len(after)] = True
        if clip.digits is not None:
            batch["digits"][i] = torch.from_numpy(np.asarray(clip.digits))
    return batch


def _positions(clip: Clip, before: int, end: int) -> Tensor:
    """Return rotary positions (3, end) of a row, as `Qwen25Omni` gives them: the two marks on a side share one."""
    origin = before - 1
    head = torch.arange(before)
    head[-1] -= 1
    media = torch.stack([torch.from_numpy(clip.column(axis)) for axis in ("time", "row", "col")]) + origin
    tail = torch.arange(end - before - media.shape[1])
    tail[1:] -= 1
    return torch.cat([head.expand(3, -1), media, (tail + origin + clip.end).expand(3, -1)], 1)


def _mass(clip: Clip, rng: np.random.Generator) -> Tensor:
    """Return log(m) for distractor tokens (n,): each stands for m like it, up to all that a clip so long could keep."""
    distractor = clip.flags("distractor").float()
    count = max(1, int(distractor.sum()))
    most = max(1.5, min(10_000, clip.end * 1.5) / count)
    return distractor * float(rng.uniform(0, np.log(most)))
