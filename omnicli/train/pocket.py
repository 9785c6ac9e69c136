"""`omni train pocket`: the pocket model from nothing, in resumable stages."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STAGES = ("pictures", "sounds")


def main(out: str | Path, stages: tuple[str, ...] = STAGES, *, scale: float = 1.0, seed: int = 0, threads: int = 1) -> None:
    """Run the named stages; each resumes from ``out/<stage>.pt`` where it stopped."""
    import torch

    from omnicli.train import pocket_model as arch
    from omnicli.train import pocket_towers as towers

    torch.set_num_threads(threads)
    out = Path(out)
    model = arch.build_model(seed).to(torch.bfloat16)
    log = _logger(out)
    for stage in stages:
        if stage == "pictures":
            visual = model.model.visual
            heads = towers.PictureHeads(visual.blocks[0].attn.dim).to(torch.bfloat16)
            towers.train_tower(visual, heads, towers.picture_stages(visual, heads, seed, scale), out, stage, log=log)
        elif stage == "sounds":
            tower = model.model.audio_tower
            heads = towers.SoundHeads().to(torch.bfloat16)
            towers.train_tower(tower, heads, towers.sound_stages(tower, heads, seed, scale), out, stage, log=log)


def _logger(out: Path) -> Callable[[str], None]:
    out.mkdir(parents=True, exist_ok=True)
    start = time.time()

    def log(line: str) -> None:
        text = f"[{time.time() - start:7.0f} s] {line}"
        print(text, file=sys.stderr, flush=True)
        with (out / "log.txt").open("a") as f:
            f.write(text + "\n")

    return log
