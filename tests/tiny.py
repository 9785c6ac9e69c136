"""Tiny random Qwen2.5-Omni checkpoints in hub layout, with real windows and weights large enough to attend.

``build(folder)`` writes a thinker; ``build(folder, full=True)`` writes a full checkpoint's layout (thinker.*, talker.*,
token2wav.*). The default initialisation would leave attention nearly uniform, so that errors of order would not show.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from omnicli.models.dummy import byte_tokenizer, special_ids

SCALE = 4.0


def config(tokenizer: Any, layers: int = 4, heads: int = 4) -> Any:
    from transformers import Qwen2_5OmniThinkerConfig

    return Qwen2_5OmniThinkerConfig(
        text_config={
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 2,
            "vocab_size": len(tokenizer) + 3,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 4,
            "hidden_size": 32,
            "num_heads": 2,
            "intermediate_size": 48,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1, 3],
            "window_size": 112,
        },
        audio_config={
            "encoder_layers": 2,
            "d_model": 32,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 48,
            "output_dim": 64,
            "n_window": 100,
        },
        **special_ids(tokenizer),
    )


def thinker(seed: int = 0, layers: int = 4) -> tuple[Any, Any]:
    """Return (stock thinker in sdpa, tokenizer), random but fixed by ``seed``."""
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration

    tokenizer = byte_tokenizer()
    settings = config(tokenizer, layers)
    settings._attn_implementation = "sdpa"
    torch.manual_seed(seed)
    model = Qwen2_5OmniThinkerForConditionalGeneration(settings).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2:
                weight.mul_(SCALE)
            elif name.endswith("bias"):
                weight.normal_(0.0, 0.1)
    return model, tokenizer


def build(folder: Path, *, full: bool = False, seed: int = 0, shards: bool = False) -> Path:
    """Write a checkpoint folder and return it."""
    model, tokenizer = thinker(seed)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, max_shard_size="200KB" if shards else "5GB")
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>")})
    )
    if full:
        weights = {f"thinker.{k}": v for k, v in load_file(folder / "model.safetensors").items()}
        weights["talker.model.layers.0.mlp.up_proj.weight"] = torch.zeros(4, 4)
        weights["token2wav.code2wav.proj.weight"] = torch.zeros(4, 4)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        inner = json.loads((folder / "config.json").read_text())
        outer = {
            "model_type": "qwen2_5_omni",
            "architectures": ["Qwen2_5OmniModel"],
            "enable_audio_output": True,
            "thinker_config": inner,
        }
        (folder / "config.json").write_text(json.dumps(outer))
    return folder
