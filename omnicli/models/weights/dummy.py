"""What families share to make random weights of their architectures: shrinking, a byte-level tokenizer, the weights.

For measuring without a download; the dimensions are in the families' files. Nothing here reads a file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from omnicli.errors import ModelError, near_names

if TYPE_CHECKING:
    from omnicli.models.weights.quantize import Quantizer

SPECIAL_TOKENS = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
"""Qwen2.5-Omni's names of its special tokens, by what a stock processor calls them."""


@dataclass(frozen=True)
class Shrink:
    """How much smaller than the real one a random model is.

    Attributes
    ----------
    layers : int or None
        Layers of the LLM and of both encoders, if fewer than the real ones.
    scale : float
        Factor on widths (heads, feed-forward, vocabulary, experts); head sizes and windows stay real.

    Raises
    ------
    ModelError
        A layer count or scale out of range.
    """

    layers: int | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1 or (self.layers is not None and self.layers < 1):
            raise ModelError("dummy weights need 0 < scale <= 1 and layers >= 1")

    def depth(self, real: int) -> int:
        """Return how many of ``real`` layers there are."""
        return real if self.layers is None else min(self.layers, real)

    def width(self, real: int, unit: int = 1) -> int:
        """Return the scaled width: a multiple of ``unit``, at least one."""
        return max(unit, round(real * self.scale / unit) * unit)


def size_of(what: str, size: str, sizes: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return a copy of the dimensions of ``size``; `ModelError` if ``what`` has no such size."""
    if size not in sizes:
        raise ModelError(f"no dummy weights of {what} in size {size!r}{near_names(size, sizes)}")
    return dict(sizes[size])


def byte_tokenizer(
    tokens: Mapping[str, str] = SPECIAL_TOKENS, extra: Sequence[str] = ("<|im_start|>", "<|im_end|>")
) -> Any:
    """Return a Qwen2 tokenizer with one token per byte and special tokens; needs no download.

    ``tokens``: names of a processor's tokens and their texts, Qwen2.5-Omni's by default; ``extra``: texts of others.
    """
    from transformers import Qwen2Tokenizer

    return Qwen2Tokenizer(
        vocab={symbol: i for i, symbol in enumerate(_byte_symbols())},
        merges=[],
        model_specific_special_tokens=dict(tokens),
        extra_special_tokens=list(extra),
    )


def _byte_symbols() -> list[str]:
    """Return the printable stand-in of each byte in GPT-2's byte-level alphabet, in byte order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(spare)) for b in range(256)]


def special_ids(tokenizer: Any, tokens: Mapping[str, str] = SPECIAL_TOKENS) -> dict[str, Any]:
    """Return the thinker config's token-id fields for a tokenizer made by `byte_tokenizer`."""
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}
    return {
        "image_token_id": ids["image_token"],
        "audio_token_id": ids["audio_token"],
        "video_token_id": ids["video_token"],
        "vision_start_token_id": ids["vision_bos_token"],
        "vision_end_token_id": ids["vision_eos_token"],
        "audio_start_token_id": ids["audio_bos_token"],
        "audio_end_token_id": ids["audio_eos_token"],
    }


def unfilled_model(architecture: Any, config: Any, device: torch.device | str, dtype: torch.dtype) -> Any:
    """Build a model directly on a device without initialising its weights; ``device="meta"``: without storage."""
    from transformers.initialization import no_init_weights

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), no_init_weights():
            return architecture(config)
    finally:
        torch.set_default_dtype(before)


def weightless_model(architecture: Any, config: Any, device: torch.device | str, dtype: torch.dtype) -> Any:
    """Build a model on a device with its buffers there and its weights without storage."""
    from torch.nn.modules.module import register_module_parameter_registration_hook

    def without(module: Any, name: str, weight: torch.nn.Parameter) -> Any:
        return torch.nn.Parameter(weight.to("meta"), requires_grad=False)

    hook = register_module_parameter_registration_hook(without)
    try:
        return unfilled_model(architecture, config, device, dtype)
    finally:
        hook.remove()


def random_model(
    architecture: Any, config: Any, device: torch.device | str, dtype: torch.dtype, quantizer: Quantizer | None = None
) -> Any:
    """Build a model directly on a device with fan-in scaled random weights, without a copy elsewhere.

    ``device="meta"`` gives the model without storage, for counting parameters.
    """
    config._attn_implementation = "sdpa"
    build = unfilled_model if quantizer is None else weightless_model
    return filled(build(architecture, config, device, dtype), device, quantizer)


def filled(model: Any, device: torch.device | str, quantizer: Quantizer | None = None) -> Any:
    """Give a model, built on ``device``, the random weights of `random_model`."""
    if torch.device(device).type == "meta":
        return model
    generator = torch.Generator(device=device).manual_seed(0)

    def fill(name: str, weight: torch.Tensor) -> None:
        if weight.ndim >= 2:
            fan_in = weight[0].numel() if "embed_tokens" not in name else 1
            if ".experts." in name:  # (experts, out, in)
                fan_in = weight.shape[-1]
            weight.normal_(0.0, 1.0 / math.sqrt(fan_in), generator=generator)
        else:
            weight.fill_(0.0 if name.endswith("bias") else 1.0)

    with torch.no_grad():
        if quantizer is not None:
            from omnicli.models.weights import quantize

            quantize.fill(model, quantizer, fill)
        else:
            for name, weight in model.named_parameters():
                fill(name, weight)
    return model
