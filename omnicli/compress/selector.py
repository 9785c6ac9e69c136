"""OmniSIFT's trained network that scores sound by the pictures of its moment, and how it is read from a file.

Source: OmniSIFT (arXiv 2602.04804). Knows tensors only; `omnicli.compress.methods.omnisift` chooses by its scores.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import Self

from omnicli.compress.weights import load_weights
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

HEAD_WIDTH = 64
"""Width of an attention head where the file does not say how many heads there are (512 in 8 heads)."""


@dataclass(frozen=True)
class Selector:
    """The trained network that scores sound by the pictures of its moment, h wide (OmniSIFT, audio selector).

    Both modalities are projected and normalised, sound attends to pictures, is added and normalised again, and two
    layers with SiLU between them give one number. The paper's network ends in a sigmoid, which changes no order.

    Attributes
    ----------
    video, audio : pair of Tensor (h, d), (h,)
        Projections from the model's width d: weight and bias.
    video_norm, audio_norm, norm : pair of Tensor (h,)
        Layer norms (weight and bias) of the projected pictures, the projected sound, and the sum.
    inward : pair of Tensor (3h, h), (3h,)
        Query, key and value projections of the attention, stacked.
    outward : pair of Tensor (h, h), (h,)
        Its output projection.
    hidden, last : pair of Tensor (m, h), (m,) and (1, m), (1,)
        The two final layers.
    heads : int
        Attention heads.
    """

    video: tuple[Tensor, Tensor]
    audio: tuple[Tensor, Tensor]
    video_norm: tuple[Tensor, Tensor]
    audio_norm: tuple[Tensor, Tensor]
    norm: tuple[Tensor, Tensor]
    inward: tuple[Tensor, Tensor]
    outward: tuple[Tensor, Tensor]
    hidden: tuple[Tensor, Tensor]
    last: tuple[Tensor, Tensor]
    heads: int

    def __post_init__(self) -> None:
        (h, d), m = self.video[0].shape, self.hidden[0].shape[0]
        expected = {
            "video": (h, d),
            "audio": (h, d),
            "video_norm": (h,),
            "audio_norm": (h,),
            "norm": (h,),
            "inward": (3 * h, h),
            "outward": (h, h),
            "hidden": (m, h),
            "last": (1, m),
        }
        for name, shape in expected.items():
            weight, bias = getattr(self, name)
            if tuple(weight.shape) != shape or tuple(bias.shape) != shape[:1]:
                raise ValueError(f"{name} has shapes {tuple(weight.shape)} and {tuple(bias.shape)}, expected {shape}")
        if self.heads < 1 or h % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {h}")

    @property
    def width(self) -> int:
        """Width of the model's embeddings."""
        return self.video[0].shape[1]

    def to(self, device: torch.device) -> Self:
        """Return it as fp32 on ``device``."""
        pairs = [f.name for f in dataclasses.fields(self) if f.name != "heads"]
        return type(self)(
            **{n: tuple(t.to(device, torch.float32) for t in getattr(self, n)) for n in pairs}, heads=self.heads
        )

    def __call__(self, video: Tensor, audio: Tensor, padding: Tensor) -> Tensor:
        """Return scores (B, A) of sound (B, A, d) by pictures (B, V, d), but those of ``padding`` (B, V); all fp32."""
        functional, h = torch.nn.functional, self.norm[0].shape
        v = functional.layer_norm(functional.linear(video, *self.video), h, *self.video_norm)
        a = functional.layer_norm(functional.linear(audio, *self.audio), h, *self.audio_norm)
        weights, biases = self.inward[0].chunk(3), self.inward[1].chunk(3)
        q, k, v = (
            functional.linear(x, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((a, v, v), weights, biases, strict=True)
        )
        found = functional.scaled_dot_product_attention(q, k, v, attn_mask=~padding[:, None, None])
        found = functional.linear(found.transpose(1, 2).flatten(2), *self.outward)
        x = functional.layer_norm(found + a, h, *self.norm)
        return functional.linear(functional.silu(functional.linear(x, *self.hidden)), *self.last)[..., 0]

    @classmethod
    def from_dict(cls, tensors: Mapping[str, Tensor], heads: int | None = None) -> Self:
        """Return the selector with these tensors, told apart by their shapes and by words in their names.

        The attention's end in ``in_proj_weight``, ``in_proj_bias``, ``out_proj.weight`` and ``out_proj.bias``; names of
        projections and norms hold ``video`` (or ``visual``) or ``audio``; the last norm's hold neither.

        Parameters
        ----------
        tensors : mapping of str to Tensor
            Weights and biases.
        heads : int or None
            None: one per `HEAD_WIDTH` of the width.

        Raises
        ------
        ValueError
            One is missing or cannot be told from another.
        """
        inward = _only([n for n in tensors if n.endswith("in_proj_weight")], "in_proj_weight")
        attention = inward.removesuffix("in_proj_weight")
        own = {n: t for n, t in tensors.items() if n.endswith("weight") and not (attention and n.startswith(attention))}
        own = {n: t for n, t in own.items() if n not in (inward, f"{attention}out_proj.weight")}
        h = tensors[inward].shape[-1]
        norms = {n: kind for n, t in own.items() if t.ndim == 1 for kind in [_kind(n)]}
        dense = {n: t.shape for n, t in own.items() if t.ndim == 2}
        last = _only([n for n, s in dense.items() if s[0] == 1], "last layer")
        inner = [n for n, s in dense.items() if n != last and tuple(s) == (dense[last][1], h)]
        inner = [n for n in inner if not _kind(n)] or inner
        hidden = _only(inner, "layer before the last")
        projections = {n: _kind(n) for n in dense if n not in (last, hidden)}
        names = {
            "video": _only([n for n, kind in projections.items() if kind == "video"], "video projection"),
            "audio": _only([n for n, kind in projections.items() if kind == "audio"], "audio projection"),
            "video_norm": _only([n for n, kind in norms.items() if kind == "video"], "video norm"),
            "audio_norm": _only([n for n, kind in norms.items() if kind == "audio"], "audio norm"),
            "norm": _only([n for n, kind in norms.items() if not kind], "last norm"),
            "inward": inward,
            "outward": f"{attention}out_proj.weight",
            "hidden": hidden,
            "last": last,
        }
        pairs = {key: (n, n.removesuffix("weight") + "bias") for key, n in names.items()}
        missing = [n for pair in pairs.values() for n in pair if n not in tensors]
        if missing:
            raise ValueError(f"holds no {', '.join(missing)}")
        made = {key: (tensors[w], tensors[b]) for key, (w, b) in pairs.items()}
        return cls(**made, heads=max(1, h // HEAD_WIDTH) if heads is None else heads)


def _kind(name: str) -> str:
    """Return ``video`` or ``audio`` where a word of ``name`` says so, else nothing."""
    found = {
        kind
        for word in re.split(r"[^a-z]+", name.lower())
        for kind, begins, alone in (("video", ("vid", "vis"), "v"), ("audio", ("aud", "sound"), "a"))
        if word.startswith(begins) or word == alone
    }
    return found.pop() if len(found) == 1 else ""


def _only(names: list[str], what: str) -> str:
    if len(names) != 1:
        raise ValueError(f"holds {len(names)} tensors that may be the {what}, expected 1")
    return names[0]


def load_selector(path: Path) -> Selector:
    """Return the selector in a safetensors file: all its tensors, or those of ``compressor`` where it holds more.

    Raises
    ------
    ConfigError
        It cannot be read or does not hold what a selector holds.
    """
    return load_weights(path, _parsed, "OmniSIFT selector", within="compressor")


def _parsed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Selector:
    return Selector.from_dict(tensors, int(metadata["heads"]) if "heads" in metadata else None)


__all__ = ["Selector", "load_selector"]
