"""Stage one of the pocket model: encoders trained alone on dense labels, crops first, then whole frame pairs.

The heads used here are thrown away; what stays is towers whose output tokens hold the digits, colours and sounds in
linearly readable form. Runs in minutes on one CPU thread in bfloat16 with float32 master weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from omnicli.train import pocket_data as data
from omnicli.train import pocket_model as arch
from omnicli.train.optim import MasterAdamW, load_checkpoint, save_checkpoint

READ_AFTER = 3


class VideoHeads(nn.Module):
    """Linear readers: a digit per patch; the whole number, colours and shape from every merged token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch = nn.Linear(width, 11)
        self.place = nn.Linear(width, 7)
        self.number = nn.Linear(arch.HIDDEN, 6 * 10)
        self.caption = nn.Linear(arch.HIDDEN, 1)
        self.character = nn.Linear(arch.HIDDEN, data.NO_COLOUR + 1)
        self.shape_colour = nn.Linear(arch.HIDDEN, data.NO_COLOUR + 1)
        self.shape = nn.Linear(arch.HIDDEN, data.NO_SHAPE + 1)


class AudioHeads(nn.Module):
    """Linear readers of a sound token: the digit word it lies in, whether at its middle, speech, and world sounds."""

    def __init__(self) -> None:
        super().__init__()
        self.digit = nn.Linear(arch.HIDDEN, 11)
        self.centre = nn.Linear(arch.HIDDEN, 1)
        self.speech = nn.Linear(arch.HIDDEN, 1)
        self.sound = nn.Linear(arch.HIDDEN, data.NO_SOUND + 1)


def _balanced(logits: Tensor, target: Tensor, none: int) -> Tensor:
    """Cross-entropy averaged separately over labelled and empty places: digits are rare."""
    loss = F.cross_entropy(logits.float().flatten(0, -2), target.flatten(), reduction="none")
    empty = target.flatten() == none
    parts = [loss[m].mean() for m in (empty, ~empty) if bool(m.any())]
    return torch.stack(parts).mean()


def _flag(logits: Tensor, target: Tensor) -> Tensor:
    loss = F.binary_cross_entropy_with_logits(logits.float().squeeze(-1), target.float(), reduction="none")
    on = target > 0
    parts = [loss[m].mean() for m in (on, ~on) if bool(m.any())]
    return torch.stack(parts).mean()


def video_loss(
    visual: Any, heads: VideoHeads, batch: dict[str, Tensor], whole: bool
) -> tuple[Tensor, dict[str, float]]:
    """Return the dense loss of a batch of frame pairs and the accuracies worth watching."""
    pairs = batch["pairs"]
    grid = (pairs.shape[2] // arch.PATCH, pairs.shape[3] // arch.PATCH)
    rows = arch.patch_rows(pairs).to(_dtype(visual))
    hidden, merged = arch.vision_forward(visual, rows, grid, tap=READ_AFTER)  # the blocks after it spread the number
    logits = heads.patch(hidden)
    target = batch["patch_digit"]
    loss = _balanced(logits, target, data.NO_DIGIT)
    on = target != data.NO_DIGIT
    metrics = {"patch": float((logits.argmax(-1)[on] == target[on]).float().mean()) if bool(on.any()) else 1.0}
    if whole:
        places = heads.place(hidden)
        loss = loss + _balanced(places, batch["patch_place"], data.NO_PLACE)
        metrics["place"] = float((places.argmax(-1)[on] == batch["patch_place"][on]).float().mean())
        captioned = batch["number"][:, 0] >= 0
        loss = loss + 0.5 * _flag(heads.caption(merged).mean(1), captioned.long())
        if bool(captioned.any()):
            number = heads.number(merged[captioned]).unflatten(-1, (6, 10)).float()
            truth = batch["number"][captioned]
            spread = truth[:, None].expand(-1, number.shape[1], -1)
            loss = loss + F.cross_entropy(number.flatten(0, 2), spread.flatten())
            pooled = number.log_softmax(-1).mean(1).argmax(-1)
            metrics["digit"] = float((pooled == truth).float().mean())
            metrics["number"] = float((pooled == truth).all(-1).float().mean())
            metrics["token"] = float((number.argmax(-1) == spread).all(-1).float().mean())
        for name, none in (("character", data.NO_COLOUR), ("shape_colour", data.NO_COLOUR), ("shape", data.NO_SHAPE)):
            logits = getattr(heads, name)(merged)
            truth = batch[name][:, None].expand(-1, merged.shape[1])
            loss = loss + 0.4 * _balanced(logits, truth, none)
            pooled = logits.float().log_softmax(-1).mean(1).argmax(-1)
            metrics[name] = float((pooled == batch[name]).float().mean())
    return loss, metrics


def audio_loss(tower: Any, heads: AudioHeads, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
    """Return the dense loss of a batch of 2-second blocks and the accuracies worth watching."""
    tokens = arch.audio_forward(tower, batch["mel"].to(_dtype(tower)))
    digit, sound = heads.digit(tokens), heads.sound(tokens)
    loss = _balanced(digit, batch["digit"], data.NO_DIGIT) + _flag(heads.centre(tokens), batch["centre"])
    loss = (
        loss
        + 0.3 * _flag(heads.speech(tokens), batch["speech"])
        + 0.5 * _balanced(sound, batch["sound"], data.NO_SOUND)
    )
    at_centre = batch["centre"] > 0
    rings = batch["sound"] != data.NO_SOUND
    metrics = {"speech": float(((heads.speech(tokens).squeeze(-1) > 0) == (batch["speech"] > 0)).float().mean())}
    if bool(at_centre.any()):
        metrics["centre_digit"] = float((digit.argmax(-1)[at_centre] == batch["digit"][at_centre]).float().mean())
        metrics["centre_found"] = float((heads.centre(tokens).squeeze(-1)[at_centre] > 0).float().mean())
    if bool(rings.any()):
        metrics["sound"] = float((sound.argmax(-1)[rings] == batch["sound"][rings]).float().mean())
    return loss, metrics


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def train_tower(
    module: nn.Module,
    heads: nn.Module,
    stages: list[tuple[str, int, IterableDataset, float, Callable[[dict], Any]]],
    folder: Path,
    name: str,
    *,
    workers: int = 1,
    log: Callable[[str], None] = print,
) -> None:
    """Train a tower with its heads through stages ``(stage, steps, dataset, peak lr, loss of a batch)``; resumable.

    Checkpoints go to ``folder/name.pt`` every 200 steps; a finished stage is not run again.
    """
    both = nn.ModuleDict({"tower": module, "heads": heads})
    optimiser = MasterAdamW(both.named_parameters(), lr=1e-3)
    path = folder / f"{name}.pt"
    state = load_checkpoint(path, both, optimiser)
    done = state.get("done", {})
    for stage, steps, dataset, peak, loss_of in stages:
        first = done.get(stage, 0)
        if first >= steps:
            continue
        loader = iter(DataLoader(dataset, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None))
        metrics: dict[str, float] = {}
        clock = time.perf_counter()
        for step in range(first, steps):
            loss, values = loss_of(next(loader))
            loss.backward()
            optimiser.step(peak * min(1.0, (step + 1) / 100) * (0.05 + 0.95 * max(0.0, 1 - step / steps)))
            for k, v in {"loss": float(loss.detach()), **values}.items():
                metrics[k] = metrics.get(k, v) * 0.95 + v * 0.05
            if (step + 1) % 50 == 0:
                rate = 50 / (time.perf_counter() - clock)
                clock = time.perf_counter()
                shown = " ".join(f"{k} {v:.3f}" for k, v in metrics.items())
                log(f"{name}/{stage} {step + 1}/{steps} {shown} ({rate:.1f} steps/s)")
            if (step + 1) % 200 == 0 or step + 1 == steps:
                done[stage] = step + 1
                save_checkpoint(path, both, optimiser, {"done": done, "seen": metrics})


def video_stages(visual: Any, heads: VideoHeads, seed: int, scale: float) -> list[Any]:
    """Return the curriculum: easy crops, crops in full variety, whole pairs."""

    def crops(batch: dict) -> Any:
        return video_loss(visual, heads, batch, whole=False)

    def whole(batch: dict) -> Any:
        return video_loss(visual, heads, batch, whole=True)

    return [
        ("easy", int(400 * scale), data.Pairs(64, seed, caption=0.97, hard=0.0, crop=4), 1.2e-3, crops),
        ("crops", int(500 * scale), data.Pairs(64, seed + 1, caption=0.95, hard=0.5, crop=4), 1e-3, crops),
        ("numbers", int(1500 * scale), data.Pairs(64, seed + 2, caption=0.95, hard=0.5, crop=5), 1e-3, whole),
        ("whole", int(1500 * scale), data.Pairs(48, seed + 3, caption=0.7, hard=1.0), 8e-4, whole),
    ]


def audio_stages(tower: Any, heads: AudioHeads, seed: int, scale: float) -> list[Any]:
    """Return the curriculum of the sound tower: one stage in full variety."""

    def loss(batch: dict) -> Any:
        return audio_loss(tower, heads, batch)

    return [("blocks", int(3000 * scale), data.Blocks(64, seed + 3), 1e-3, loss)]
