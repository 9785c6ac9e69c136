"""Tiny random Qwen3-Omni checkpoints in hub layout, as `tests.tiny` makes them of Qwen2.5-Omni.

``build(folder)`` writes a thinker; ``build(folder, full=True)`` writes a full checkpoint's layout (thinker.*, talker.*,
code2wav.*). Experts are stored one by one, as in released files.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from omnicli.models.families.qwen3_omni_moe import SPECIAL_TOKENS
from omnicli.models.weights.dummy import byte_tokenizer, special_ids
from tests.support import tiny
from tests.support.tiny import SCALE, encode, sound

__all__ = ["build", "encode", "frames", "model", "sound", "stock_inputs", "thinker"]


def config(tokenizer: Any, layers: int = 4) -> Any:
    from transformers import Qwen3OmniMoeThinkerConfig

    return Qwen3OmniMoeThinkerConfig(
        text_config={
            "hidden_size": 64,
            "moe_intermediate_size": 32,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": len(tokenizer) + 3,
            "max_position_embeddings": 65536,
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 2, 2]},
        },
        vision_config={
            "depth": 5,
            "hidden_size": 32,
            "num_heads": 2,
            "intermediate_size": 48,
            "out_hidden_size": 64,
            "num_position_embeddings": 256,
            "deepstack_visual_indexes": [0, 2, 3],
        },
        audio_config={
            "encoder_layers": 2,
            "d_model": 32,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 48,
            "downsample_hidden_size": 16,
            "output_dim": 64,
            "n_window": 50,
            "n_window_infer": 800,
        },
        position_id_per_seconds=13,
        **special_ids(tokenizer, SPECIAL_TOKENS),
    )


def thinker(seed: int = 0, layers: int = 4, experts: str = "grouped_mm") -> tuple[Any, Any]:
    """Return (stock thinker in sdpa, tokenizer), random but fixed by ``seed``."""
    from transformers import Qwen3OmniMoeThinkerForConditionalGeneration

    tokenizer = byte_tokenizer(SPECIAL_TOKENS)
    settings = config(tokenizer, layers)
    settings._attn_implementation = "sdpa"
    settings._experts_implementation = experts
    torch.manual_seed(seed)
    model = Qwen3OmniMoeThinkerForConditionalGeneration(settings).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2:
                # As in `tiny`: the LLM's branches are strong, else every token would only repeat itself.
                weight.mul_(SCALE * 2 if "language_model" in name and "_proj" in name else SCALE)
            elif name.endswith("bias"):
                weight.normal_(0.0, 0.1)
            else:
                weight.add_(torch.randn_like(weight), alpha=0.1)
    return model, tokenizer


def build(folder: Path, *, full: bool = False, seed: int = 0, layers: int = 4) -> Path:
    """Write a checkpoint folder and return it."""
    model, tokenizer = thinker(seed, layers)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>")})
    )
    if full:
        weights = {f"thinker.{k}": v for k, v in load_file(folder / "model.safetensors").items()}
        weights["talker.model.layers.0.mlp.experts.0.up_proj.weight"] = torch.zeros(4, 4)
        weights["code2wav.decoder.0.conv.weight"] = torch.zeros(4, 4)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        inner = json.loads((folder / "config.json").read_text())
        outer = {
            "model_type": "qwen3_omni_moe",
            "architectures": ["Qwen3OmniMoeForConditionalGeneration"],
            "enable_audio_output": True,
            "thinker_config": inner,
        }
        (folder / "config.json").write_text(json.dumps(outer))
    return folder


def model(seed: int = 0, layers: int = 4) -> Any:
    """Return our adapter around a fresh tiny thinker, without going through a folder."""
    from omnicli.models.families.qwen3_omni_moe import Qwen3OmniMoe

    inner, tokenizer = thinker(seed, layers)
    return Qwen3OmniMoe(inner, tokenizer, name="tiny", stop_ids=[tokenizer.convert_tokens_to_ids("<|im_end|>")])


def frames(n: int, height: int = 96, width: int = 160, seed: int = 0) -> torch.Tensor:
    """Return uint8 noise (n, height, width, 3); the default grid is 3 x 5 cells."""
    return tiny.frames(n, height, width, seed)


def mel(samples: np.ndarray) -> Any:
    """Return what the stock processor's extractor makes of a sound: not padded, mirrored at its end."""
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=128, chunk_length=300, return_attention_mask=True)
    return extractor(
        samples, sampling_rate=16000, padding=True, truncation=False, return_tensors="pt", return_attention_mask=True
    )


def stock_inputs(
    omni: Any, question: str, pictures: torch.Tensor | None, fps: float, samples: np.ndarray | None
) -> dict[str, Any]:
    """Return what the stock processor would feed the stock model; the placeholder order is the stock code's own."""
    from transformers import Qwen3OmniMoeProcessor
    from transformers.models.qwen3_omni_moe.processing_qwen3_omni_moe import _get_feat_extract_output_lengths

    tokenizer, out = omni.tokenizer.hf, {}
    placeholders = ""
    sounds: dict[str, Any] = {}
    if samples is not None:
        made = mel(samples)
        out["input_features"], out["feature_attention_mask"] = made.input_features, made.attention_mask
        sounds["num_audio_tokens"] = [int(_get_feat_extract_output_lengths(made.attention_mask.sum(-1))[0])]
        placeholders = "<|audio_pad|>" * sounds["num_audio_tokens"][0]
    if pictures is not None:
        out["pixel_values_videos"] = patchify_reference(pictures)
        grid = torch.tensor([[-(-len(pictures) // 2), pictures.shape[1] // 16, pictures.shape[2] // 16]])
        out["video_grid_thw"], out["video_second_per_grid"] = grid, torch.tensor([2 / fps])
        placeholders = "<|video_pad|>" * int(grid.prod() // 4)
        if samples is not None:
            fake = SimpleNamespace(
                video_processor=SimpleNamespace(merge_size=2),
                audio_bos_token="",
                audio_eos_token="",
                video_token="<|video_pad|>",
                audio_token="<|audio_pad|>",
            )
            placeholders = Qwen3OmniMoeProcessor.replace_video_with_audio_token(
                fake,
                {"video_grid_thw": grid.numpy(), "video_second_per_grid": [2 / fps]},
                0,
                sounds,
                0,
                position_id_per_seconds=13.0,
            )
            out["use_audio_in_video"] = True
    prompt = omni.prompt(question, video=pictures is not None, audio=samples is not None)
    text = tokenizer.decode(prompt.before) + placeholders + tokenizer.decode(prompt.after)
    out["input_ids"] = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    out["attention_mask"] = torch.ones_like(out["input_ids"])
    return out


def patchify_reference(pictures: torch.Tensor) -> torch.Tensor:
    """Patch rows written as slow loops from the description of the order; mean and deviation 0.5."""
    if len(pictures) % 2:
        pictures = torch.cat([pictures, pictures[-1:]])
    x = (pictures.permute(0, 3, 1, 2).float() - 127.5) / 127.5
    rows = [
        x[t : t + 2, :, y : y + 16, z : z + 16].transpose(0, 1).flatten()
        for t in range(0, len(x), 2)
        for cy in range(0, x.shape[2], 32)
        for cx in range(0, x.shape[3], 32)
        for y in (cy, cy + 16)
        for z in (cx, cx + 16)
    ]
    return torch.stack(rows)
