"""Real architectures at real sizes with random weights, for measuring without a download, and a byte-level tokenizer.

The dimensions are those of the published configurations. Nothing here reads a file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from omnicli.errors import ModelError, near_names

SPECIAL_TOKENS = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}

QWEN2_5_OMNI: dict[str, dict[str, Any]] = {
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
    # Not checked against the published configuration file: from memory.
    "3b": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
    },
}
"""LLM dimensions by size. Vision: 32 blocks of 1280, full attention in 7, 15, 23, 31; sound: 32 layers of 1280."""


def byte_tokenizer(
    special: Mapping[str, str] = SPECIAL_TOKENS, extra: Sequence[str] = ("<|im_start|>", "<|im_end|>")
) -> Any:
    """Return a Qwen2 tokenizer with one token per byte and special tokens; needs no download.

    ``special``: names of a processor's tokens and their texts, Qwen2.5-Omni's by default; ``extra``: texts of others.
    """
    from transformers import Qwen2Tokenizer

    return Qwen2Tokenizer(
        vocab={symbol: i for i, symbol in enumerate(_byte_symbols())},
        merges=[],
        model_specific_special_tokens=dict(special),
        extra_special_tokens=list(extra),
    )


def _byte_symbols() -> list[str]:
    """Return the printable stand-in of each byte in GPT-2's byte-level alphabet, in byte order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(spare)) for b in range(256)]


def special_ids(tokenizer: Any) -> dict[str, Any]:
    """Return the thinker config's token-id fields for a tokenizer made by `byte_tokenizer`."""
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in SPECIAL_TOKENS.items()}
    return {
        "image_token_id": ids["image_token"],
        "audio_token_id": ids["audio_token"],
        "video_token_id": ids["video_token"],
        "vision_start_token_id": ids["vision_bos_token"],
        "vision_end_token_id": ids["vision_eos_token"],
        "audio_start_token_id": ids["audio_bos_token"],
        "audio_end_token_id": ids["audio_eos_token"],
    }


def check_shrinking(layers: int | None, scale: float) -> None:
    """Raise `ModelError` for fewer than one layer or a scale outside 0..1."""
    if not 0 < scale <= 1 or (layers is not None and layers < 1):
        raise ModelError("dummy weights need 0 < scale <= 1 and layers >= 1")


def shrunk(value: int, unit: int, scale: float) -> int:
    """Return ``value * scale`` as a multiple of ``unit``, at least one."""
    return max(unit, round(value * scale / unit) * unit)


def qwen2_5_omni(size: str, *, layers: int | None = None, scale: float = 1.0) -> tuple[Any, Any]:
    """Return (thinker config, tokenizer) of Qwen2.5-Omni.

    Parameters
    ----------
    size : str
        A key of `QWEN2_5_OMNI`.
    layers : int
        Layers of the LLM and of both encoders, if fewer than the real ones.
    scale : float
        Factor on widths (heads, feed-forward, vocabulary); head sizes and windows stay real.

    Raises
    ------
    ModelError
        Unknown size, or a layer count or scale out of range.
    """
    from transformers import Qwen2_5OmniThinkerConfig

    if size not in QWEN2_5_OMNI:
        raise ModelError(f"no dummy weights of Qwen2.5-Omni in size {size!r}{near_names(size, QWEN2_5_OMNI)}")
    check_shrinking(layers, scale)
    dims = dict(QWEN2_5_OMNI[size])
    real_layers = dims["num_hidden_layers"]

    def cut(depth: int) -> int:
        return depth if layers is None else min(layers, depth)

    def shrink(value: int, unit: int) -> int:
        return shrunk(value, unit, scale)

    heads = shrink(dims["num_attention_heads"], dims["num_key_value_heads"])
    tokenizer = byte_tokenizer()
    text = {
        **dims,
        "num_hidden_layers": cut(real_layers),
        "num_attention_heads": heads,
        "hidden_size": heads * 128,
        "intermediate_size": shrink(dims["intermediate_size"], 64),
        "vocab_size": max(len(tokenizer), round(dims["vocab_size"] * scale)),
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }
    width = text["hidden_size"]
    vision_heads, audio_heads, depth = shrink(16, 1), shrink(20, 1), cut(32)
    full = [i for i in (7, 15, 23, 31) if i < depth]
    config = Qwen2_5OmniThinkerConfig(
        text_config=text,
        vision_config={
            "depth": depth,
            "hidden_size": vision_heads * 80,
            "num_heads": vision_heads,
            "intermediate_size": shrink(3420, 4),
            "out_hidden_size": width,
            "fullatt_block_indexes": full if depth - 1 in full else [*full, depth - 1],
        },
        audio_config={
            "encoder_layers": cut(32),
            "d_model": audio_heads * 64,
            "encoder_attention_heads": audio_heads,
            "encoder_ffn_dim": shrink(5120, 4),
            "output_dim": width,
        },
        **special_ids(tokenizer),
    )
    return config, tokenizer


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


def random_model(architecture: Any, config: Any, device: torch.device | str, dtype: torch.dtype) -> Any:
    """Build a model directly on a device with fan-in scaled random weights, without a copy elsewhere.

    ``device="meta"`` gives the model without storage, for counting parameters.
    """
    config._attn_implementation = "sdpa"
    return filled(unfilled_model(architecture, config, device, dtype), device)


def filled(model: Any, device: torch.device | str) -> Any:
    """Give a model, built on ``device``, the random weights of `random_model`."""
    if torch.device(device).type == "meta":
        return model
    generator = torch.Generator(device=device).manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2:
                fan_in = weight[0].numel() if "embed_tokens" not in name else 1
                weight.normal_(0.0, 1.0 / math.sqrt(fan_in), generator=generator)
            else:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
    return model
