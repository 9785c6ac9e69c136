"""Stage two of the pocket model: the LLM on composed clips of encoded tokens, with dense auxiliary losses.

What makes six tiny layers learn to read a number out of a thousand tokens is supervision in the middle. After layer
2: a digit's place in its number, at the digit; a speaker's colour, at the speech. After layer 4: which turn it is, at
the speech; the whole answer, at the question's tokens. The auxiliary heads are thrown away.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from omnicli.train import pocket_batches as batches
from omnicli.train import pocket_clips as clips
from omnicli.train import pocket_data as data
from omnicli.train import pocket_model as arch
from omnicli.train import pocket_pool as pool_room
from omnicli.train.optim import MasterAdamW, load_checkpoint, save_checkpoint

TAPS = (1, 3)
NOISE = 0.1


class AnswerHeads(nn.Module):
    """Linear readers of the middle layers."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Linear(arch.HIDDEN, clips.NO_PLACE + 1)
        self.speaker = nn.Linear(arch.HIDDEN, data.NO_COLOUR)
        self.turn = nn.Linear(arch.HIDDEN, clips.MOST_TURNS)
        self.digits = nn.Linear(arch.HIDDEN, 60)
        self.colour = nn.Linear(arch.HIDDEN, data.NO_COLOUR)


def answer_loss(
    model: Any, heads: AnswerHeads, batch: dict[str, Tensor], aux: float
) -> tuple[Tensor, dict[str, float]]:
    """Return the weighted loss of a batch from `pocket_batches.collate` and what is worth watching."""
    text = model.model.language_model
    embeds = text.embed_tokens(batch["ids"])
    features = batch["features"]
    features = features + torch.randn_like(features) * (NOISE * features.std())  # against learning samples by heart
    embeds = torch.where(batch["is_media"][..., None], features.to(embeds.dtype), embeds)
    length = embeds.shape[1]
    bias = torch.full((length, length), -1e4).triu(1)[None, None] + batch["logm"][:, None, None, :]
    bias = bias.masked_fill(~batch["valid"][:, None, None, :], -1e4).to(embeds.dtype)
    hidden, (early, late) = arch.text_forward(text, embeds, batch["position_ids"], bias, TAPS)
    at = batch["target"] >= 0
    logits = model.lm_head(hidden[at]).float()
    truth = batch["target"][at]
    token_loss = F.cross_entropy(logits, truth, reduction="none")
    counts = at.sum(1)
    rows = torch.repeat_interleave(torch.arange(len(counts)), counts)
    answer = (token_loss / counts[rows]).sum() / len(counts)
    right = torch.zeros(len(counts)).index_add_(0, rows, (logits.argmax(-1) == truth).float()) == counts
    numeric = batch["digits"][:, 0] >= 0
    who = (batch["colour"] >= 0) & ~numeric
    loss, metrics = answer, {"answer": float(answer.detach())}
    for name, mask in (("number", numeric), ("colour", who), ("other", ~numeric & ~who)):
        if bool(mask.any()):
            metrics[name] = float(right[mask].float().mean())
    for name, hidden_at in (("place", early), ("speaker", early), ("turn", late)):
        label = batch[name]
        on = (label >= 0) & ((label != clips.NO_PLACE) if name == "place" else True)
        if bool(on.any()):
            out = getattr(heads, name)(hidden_at[on]).float()
            loss = loss + 0.5 * aux * F.cross_entropy(out, label[on])
            metrics[name] = float((out.argmax(-1) == label[on]).float().mean())
    asked = batch["asked"]
    if bool(numeric.any()):
        mask = asked & numeric[:, None]
        out = heads.digits(late[mask]).float().view(-1, 6, 10)
        label = batch["digits"][torch.nonzero(mask)[:, 0]]
        loss = loss + aux * F.cross_entropy(out.flatten(0, 1), label.flatten())
        last = out[torch.cat([torch.nonzero(torch.nonzero(mask)[:, 0].diff()).flatten(), torch.tensor([len(out) - 1])])]
        metrics["aux_digit"] = float((last.argmax(-1) == batch["digits"][numeric]).float().mean())
    if bool(who.any()):
        mask = asked & who[:, None]
        out = heads.colour(late[mask]).float()
        loss = loss + 0.7 * aux * F.cross_entropy(out, batch["colour"][torch.nonzero(mask)[:, 0]])
    return loss, metrics


def train_llm(
    model: Any,
    folder: Path,
    *,
    rounds: int,
    steps: int,
    pairs: int,
    stretches: int,
    peak: float,
    seed: int,
    workers: int = 1,
    keep_pools: int = 3,
    until: float | None = None,
    log: Callable[[str], None] = print,
) -> None:
    """Train the LLM for ``rounds`` of ``steps``; each round adds a freshly rendered pool. Resumable in rounds.

    ``until`` is a `time.time` at which training stops cleanly with a checkpoint.
    """
    for module in (model.model.visual, model.model.audio_tower):
        module.requires_grad_(False)
    trained = nn.ModuleDict(
        {"text": model.model.language_model, "head": model.lm_head, "heads": AnswerHeads().to(torch.bfloat16)}
    )
    heads: Any = trained["heads"]
    optimiser = MasterAdamW(trained.named_parameters(), lr=peak)
    path = folder / "answers.pt"
    state = load_checkpoint(path, trained, optimiser)
    step, total = int(state.get("step", 0)), rounds * steps
    pools: list[pool_room.Pool] = []
    tokenizer = arch.build_tokenizer()
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    while step < total and (until is None or time.time() < until):
        turn = step // steps
        stored = folder / f"pool-{turn}.pt"
        if stored.exists():
            fresh = pool_room.Pool.load(stored)
        else:
            fresh = pool_room.make_pool(model, pairs, stretches, seed + 1000 * (turn + 1), workers=2, log=log)
            fresh.save(stored)
        pools = [*pools, fresh][-keep_pools:]
        pool = pool_room.Pool.join(pools)
        source = batches.Clips(pool, seed + step, tokenizer.encode, stop)
        loader = iter(DataLoader(source, batch_size=None, num_workers=workers, prefetch_factor=6))
        metrics: dict[str, float] = {}
        clock = time.perf_counter()
        while step < (turn + 1) * steps:
            loss, values = answer_loss(model, heads, next(loader), aux=0.7)
            loss.backward()
            left = 1 - step / total
            optimiser.step(peak * min(1.0, (step + 1) / 200) * (0.03 + 0.97 * max(0.0, left)))
            step += 1
            for k, v in {"loss": float(loss.detach()), **values}.items():
                metrics[k] = metrics.get(k, v) * 0.97 + v * 0.03
            if step % 50 == 0:
                rate = 50 / (time.perf_counter() - clock)
                clock = time.perf_counter()
                log(
                    f"answers {step}/{total} "
                    + " ".join(f"{k} {v:.3f}" for k, v in metrics.items())
                    + f" ({rate:.2f} steps/s)"
                )
            stopping = until is not None and time.time() > until
            if step % 250 == 0 or step == total or stopping:
                save_checkpoint(path, trained, optimiser, {"step": step, "seen": metrics})
            if stopping:
                return
        del loader
