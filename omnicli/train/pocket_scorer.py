"""AVOC's projections for the pocket model, by AVOC's own objective: next-token loss through a hard top-K.

Forward, only the K best-scored tokens of each modality can be attended to; backward, their flags are those of the
Gumbel-softmax relaxation at temperature 1 (straight-through). Each step draws its own retention. TA-MMR is off in
training, encoders are frozen (AVOC, arXiv 2606.24286, section 4.1); unlike the paper's second stage the LLM is frozen
as well, since it has been trained on random subsets already.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from omnicli.compress.methods.avoc import SCORER_FILE, Projections, scores
from omnicli.train import pocket_model as arch
from omnicli.train.pocket_batches import Clips
from omnicli.train.pocket_pool import make_pool

_LEAK = 1e-4  # weight of a dropped token's key: small enough to be dropped, large enough to have a gradient


def straight_through_top_k(score: Tensor, k: int, noise: Tensor) -> Tensor:
    """Return flags (n,) of the ``k`` best of ``score + noise``: hard 0 or 1 forward, relaxed backward.

    The relaxation is ``min(1, k softmax(score + noise))``, the Gumbel-softmax at temperature 1 for Gumbel ``noise``.
    """
    shifted = score + noise
    soft = (k * torch.softmax(shifted, 0)).clamp(max=1.0)
    hard = torch.zeros_like(soft)
    hard[shifted.topk(k).indices] = 1.0
    return hard + soft - soft.detach()


def gumbel(n: int) -> Tensor:
    """Return standard Gumbel noise (n,)."""
    return -torch.log(-torch.log(torch.rand(n).clamp(1e-9, 1 - 1e-7)))


class Scorer(nn.Module):
    """The four projections as parameters, (d, k) each."""

    w_q: nn.Parameter
    w_k: nn.Parameter
    importance_w_q: nn.Parameter
    importance_w_k: nn.Parameter

    def __init__(self, width: int = arch.HIDDEN, inner: int = 64) -> None:
        super().__init__()
        for name in ("w_q", "w_k", "importance_w_q", "importance_w_k"):
            self.register_parameter(name, nn.Parameter(torch.randn(width, inner) / width**0.5))

    def projections(self) -> Projections:
        """Return them in the form that `omnicli.compress.methods.avoc` uses."""
        return Projections(self.w_q, self.w_k, self.importance_w_q, self.importance_w_k)


def scorer_loss(model: Any, scorer: Scorer, batch: dict[str, Tensor], retention: float) -> tuple[Tensor, float]:
    """Return the answers' next-token loss with only the scorer's choice kept, and the share answered right."""
    text = model.model.language_model
    embeds = text.embed_tokens(batch["ids"])
    b, length = batch["ids"].shape
    gates = []
    for i in range(b):
        media = torch.nonzero(batch["is_media"][i]).flatten()
        question = embeds[i, batch["asked"][i]][:-_TEMPLATE_TAIL]
        is_audio = batch["is_audio"][i, media]
        window = batch["position_ids"][0, i, media] // 50
        score = scores(batch["features"][i, media], is_audio.long(), window, question.detach(), scorer.projections())
        gate = torch.ones(length)
        for kind in (False, True):
            own = torch.nonzero(is_audio == kind).flatten()
            if len(own):
                k = max(1, math.ceil(retention * len(own)))
                gate = gate.index_put((media[own],), straight_through_top_k(score[own], k, gumbel(len(own))))
        gates.append(gate)
    embeds = torch.where(batch["is_media"][..., None], batch["features"].to(embeds.dtype), embeds)
    openness = torch.log(torch.stack(gates) + _LEAK)[:, None, None, :]
    bias = torch.full((length, length), -1e4).triu(1)[None, None] + openness
    bias = bias.masked_fill(~batch["valid"][:, None, None, :], -1e4).to(embeds.dtype)
    hidden, _ = arch.text_forward(text, embeds, batch["position_ids"], bias)
    at = batch["target"] >= 0
    logits = model.lm_head(hidden[at]).float()
    truth = batch["target"][at]
    right = float((logits.argmax(-1) == truth).float().mean())
    return F.cross_entropy(logits, truth), right


_TEMPLATE_TAIL = len("\n") + len("assistant\n") + 2  # <|im_end|>, newline, <|im_start|>, "assistant", newline


def train_scorer(
    model: Any,
    folder: Path,
    *,
    steps: int,
    seed: int,
    scale: float = 1.0,
    peak: float = 4e-3,
    log: Callable[[str], None] = print,
) -> None:
    """Train the projections on composed clips and write ``folder/avoc_scorer.safetensors``."""
    model.requires_grad_(False)
    torch.manual_seed(seed)
    scorer = Scorer()
    optimiser = torch.optim.AdamW(scorer.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.0)
    pool = make_pool(model, max(640, int(4000 * scale)), max(300, int(1500 * scale)), seed + 77, log=log)
    tokenizer = arch.build_tokenizer()
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    sizes, shares = ((10, 400, False), (4, 1000, True)), (0.7, 0.3)
    source = Clips(pool, seed + 78, tokenizer.encode, stop, sizes=sizes, shares=shares)
    loader = iter(DataLoader(source, batch_size=None, num_workers=1, prefetch_factor=4))
    generator = torch.Generator().manual_seed(seed)
    metrics: dict[str, float] = {}
    clock = time.perf_counter()
    for step in range(steps):
        retention = float(torch.empty(()).uniform_(math.log(0.03), 0.0, generator=generator).exp())
        loss, right = scorer_loss(model, scorer, next(loader), retention)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = peak * min(1.0, (step + 1) / 20) * (0.05 + 0.95 * (1 - step / steps))
        optimiser.step()
        for name, value in (("loss", float(loss.detach())), ("right", right)):
            metrics[name] = metrics.get(name, value) * 0.95 + value * 0.05
        if (step + 1) % 20 == 0:
            rate = 20 / (time.perf_counter() - clock)
            clock = time.perf_counter()
            shown = f"loss {metrics['loss']:.3f} token accuracy {metrics['right']:.3f} ({rate:.2f} steps/s)"
            log(f"scorer {step + 1}/{steps} {shown}")
            _save(scorer, folder)
    _save(scorer, folder)


def _save(scorer: Scorer, folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({k: v.detach().contiguous() for k, v in scorer.projections().to_dict().items()}, folder / SCORER_FILE)
