"""`omni train pocket`: the pocket model from nothing, in resumable stages.

``pictures`` and ``sounds`` train the encoders on dense labels, ``answers`` the LLM on clips composed of their tokens,
``scorer`` AVOC's projections by AVOC's objective, ``export`` writes the checkpoint folder that `load_model` reads.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

STAGES = ("pictures", "sounds", "answers", "scorer", "export")
FOLDER = Path(__file__).resolve().parent.parent / "models" / "pocket"
"""Where the trained weights are shipped."""


def main(
    out: str | Path,
    stages: Sequence[str] = STAGES,
    *,
    scale: float = 1.0,
    seed: int = 0,
    threads: int = 2,
    minutes: float | None = None,
    start: str | Path | None = None,
) -> None:
    """Run the named stages; each resumes from its checkpoint in ``out`` where it stopped.

    Parameters
    ----------
    out : path
        Folder of checkpoints and of ``log.txt``; ``export`` writes ``out/model``.
    scale : float
        Factor on the number of steps and on the size of the pools.
    threads : int
        CPU threads of the network; one more process renders samples.
    minutes : float or None
        Stop ``answers`` cleanly after so long; a later run goes on.
    start : path or None
        Folder of weights to go on from (such as `FOLDER`) instead of from nothing: the curriculum of the picture
        tower shrinks to its last stage, and the LLM learns at a gentler rate.
    """
    import torch

    from omnicli.train import pocket_llm, pocket_scorer
    from omnicli.train import pocket_model as arch
    from omnicli.train import pocket_towers as towers

    torch.set_num_threads(threads)
    out = Path(out)
    log = _logger(out)
    until = None if minutes is None else time.time() + 60 * minutes
    model = arch.build_model(seed).to(torch.bfloat16)
    if start is not None:
        arch.load_weights(model, Path(start))
    visual, tower = model.model.visual, model.model.audio_tower
    for stage in stages:
        if stage == "pictures":
            heads: Any = towers.VideoHeads(visual.blocks[0].attn.dim).to(torch.bfloat16)
            curriculum = towers.video_stages(visual, heads, seed, scale)
            towers.train_tower(visual, heads, curriculum[-1:] if start else curriculum, out, stage, log=log)
            continue
        if stage == "sounds":
            heads = towers.AudioHeads().to(torch.bfloat16)
            towers.train_tower(tower, heads, towers.audio_stages(tower, heads, seed, scale), out, stage, log=log)
            continue
        load_parts(model, out, ("pictures", "sounds") if stage == "answers" else ("pictures", "sounds", "answers"))
        if stage == "answers":
            pocket_llm.train_llm(
                model,
                out,
                rounds=3 if start else 4,
                steps=max(1, int(3000 * scale)),
                pairs=max(640, int(16_000 * scale)),
                stretches=max(400, int(6_000 * scale)),
                peak=1e-3 if start else 1.5e-3,
                seed=seed,
                until=until,
                log=log,
            )
        elif stage == "scorer":
            pocket_scorer.train_scorer(model, out, steps=max(2, int(400 * scale)), seed=seed, scale=scale, log=log)
        elif stage == "export":
            export(model, out, out / "model")


def load_parts(model: Any, out: Path, parts: Sequence[str]) -> None:
    """Load what the named stages learnt into ``model``; a stage that has not run is an error naming it."""
    import torch

    from omnicli.errors import ModelError

    targets = {
        "pictures": {"tower.": model.model.visual},
        "sounds": {"tower.": model.model.audio_tower},
        "answers": {"text.": model.model.language_model, "head.": model.lm_head},
    }
    for part in parts:
        path = out / f"{part}.pt"
        if not path.exists():
            raise ModelError(f"{path}: not there; run the stage first: omni train pocket --out {out} --stage {part}")
        state = torch.load(path, map_location="cpu", weights_only=True)["model"]
        for prefix, module in targets[part].items():
            module.load_state_dict({k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)})


CARD = {
    "honesty": (
        "pocket is a small model trained on generated films: it reads six-digit numbers shown in a box or spoken, and "
        "tells which coloured figure speaks first or last; questions across the senses it answers poorly, and about "
        "any other film its answers mean nothing"
    ),
    "architecture": "Qwen2_5OmniThinkerForConditionalGeneration, trained from nothing",
    "asked_as": [
        "What is the secret number?",
        "What number is shown?",
        "What number is spoken?",
        "Who speaks last?",
        "Who speaks first?",
        "What colour is the shape when the bell is heard?",
        "What sound is heard when the red square appears?",
        "Is there a green circle?",
    ],
    "trained_on": (
        "omnicli.train.world: procedural backgrounds, one caption font, espeak-ng voices speaking singly synthesised "
        "words, tones, music; held-out films differ in seeds and in four voices never trained on"
    ),
    "trained_by": "omni train pocket (stages pictures, sounds, answers, scorer, export)",
}


def export(model: Any, out: Path, folder: Path) -> None:
    """Write the model, its card without scores and, if trained, its AVOC scorer as a checkpoint folder."""
    import json
    import shutil

    from omnicli.train import pocket_model as arch

    arch.save_folder(model, folder)
    (folder / "card.json").write_text(json.dumps({**CARD, "scores": []}, indent=1) + "\n")
    scorer = out / "avoc_scorer.safetensors"
    if scorer.exists():
        shutil.copyfile(scorer, folder / scorer.name)


def _logger(out: Path) -> Callable[[str], None]:
    out.mkdir(parents=True, exist_ok=True)
    start = time.time()

    def log(line: str) -> None:
        text = f"[{time.time() - start:7.0f} s] {line}"
        print(text, file=sys.stderr, flush=True)
        with (out / "log.txt").open("a") as f:
            f.write(text + "\n")

    return log
