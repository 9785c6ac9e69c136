"""AdamW with float32 master weights for a bfloat16 model, and checkpoints that survive a kill at any moment."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class MasterAdamW:
    """AdamW over float32 copies; the bfloat16 parameters are rounded from them after every step.

    Matrix products in bfloat16 are several times faster on a CPU with AMX, and on a GPU; updates of 1e-3 would be lost
    in its eight bits of mantissa, hence the copies.
    """

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter]], lr: float, weight_decay: float = 0.01, clip: float = 1.0
    ) -> None:
        self.live = [p for _, p in named if p.requires_grad]
        self.master = [p.detach().float().clone() for p in self.live]
        groups = [
            {"params": [m for m in self.master if m.ndim > 1], "weight_decay": weight_decay},
            {"params": [m for m in self.master if m.ndim <= 1], "weight_decay": 0.0},
        ]
        self.inner = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)
        self.clip = clip

    def step(self, lr: float) -> float:
        """Apply the gradients with learning rate ``lr`` and clear them; return the gradient norm before clipping."""
        for live, master in zip(self.live, self.master, strict=True):
            master.grad = live.grad.float() if live.grad is not None else None
            live.grad = None
        norm = float(nn.utils.clip_grad_norm_([m for m in self.master if m.grad is not None], self.clip))
        if math.isfinite(norm):
            for group in self.inner.param_groups:
                group["lr"] = lr
            self.inner.step()
            with torch.no_grad():
                for live, master in zip(self.live, self.master, strict=True):
                    live.copy_(master)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Return master weights and moments."""
        return {"master": self.master, "inner": self.inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore master weights and moments and round the live parameters from them."""
        with torch.no_grad():
            for live, master, saved in zip(self.live, self.master, state["master"], strict=True):
                master.copy_(saved)
                live.copy_(saved)
        self.inner.load_state_dict(state["inner"])


def master_state(module: nn.Module, optimiser: MasterAdamW) -> dict[str, Tensor]:
    """Return the module's state with the trained parameters in float32 from the optimiser's master copies."""
    by_id = {id(p): m for p, m in zip(optimiser.live, optimiser.master, strict=True)}
    return {k: by_id.get(id(v), v.detach()) for k, v in module.state_dict(keep_vars=True).items()}


def save_checkpoint(path: Path, module: nn.Module, optimiser: MasterAdamW, extra: dict[str, Any]) -> None:
    """Write model, optimiser and counters to ``path`` by way of a temporary file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save({"model": master_state(module, optimiser), "optimiser": optimiser.state_dict(), **extra}, temporary)
    os.replace(temporary, path)


def load_checkpoint(path: Path, module: nn.Module, optimiser: MasterAdamW) -> dict[str, Any]:
    """Restore what `save_checkpoint` wrote and return its counters; an absent file is an empty dict."""
    if not path.exists():
        return {}
    state = torch.load(path, map_location="cpu", weights_only=True)
    module.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return state
