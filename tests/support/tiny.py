"""Tiny random Qwen2.5-Omni checkpoints in hub layout, with real windows and weights large enough to attend.

``build(folder)`` writes a thinker; ``build(folder, full=True)`` writes a full checkpoint's layout (thinker.*, talker.*,
token2wav.*). The default initialisation would leave attention nearly uniform, so that errors of order would not show.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from omnicli.models.weights.dummy import byte_tokenizer, special_ids

SCALE = 4.0


def config(tokenizer: Any, layers: int = 4, heads: int = 4, kv_heads: int | None = None) -> Any:
    from transformers import Qwen2_5OmniThinkerConfig

    return Qwen2_5OmniThinkerConfig(
        text_config={
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads or heads // 2,
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


def thinker(seed: int = 0, layers: int = 4, **dims: int) -> tuple[Any, Any]:
    """Return (stock thinker in sdpa, tokenizer), random but fixed by ``seed``."""
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration

    tokenizer = byte_tokenizer()
    settings = config(tokenizer, layers, **dims)
    settings._attn_implementation = "sdpa"
    torch.manual_seed(seed)
    model = Qwen2_5OmniThinkerForConditionalGeneration(settings).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2:
                # The LLM's branches are made strong: else every token would only repeat itself.
                weight.mul_(SCALE * 2 if "language_model" in name and "_proj" in name else SCALE)
            elif name.endswith("bias"):
                weight.normal_(0.0, 0.1)
    return model, tokenizer


def build(folder: Path, *, full: bool = False, seed: int = 0, shards: bool = False, **dims: int) -> Path:
    """Write a checkpoint folder and return it."""
    model, tokenizer = thinker(seed, **dims)
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


def model(seed: int = 0, layers: int = 4) -> Any:
    """Return our adapter around a fresh tiny thinker, without going through a folder."""
    from omnicli.models.families.qwen2_5_omni import Qwen25Omni

    inner, tokenizer = thinker(seed, layers)
    stop = [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    return Qwen25Omni(inner, tokenizer, name="tiny", stop_ids=stop)


def frames(n: int, height: int = 84, width: int = 140, seed: int = 0) -> torch.Tensor:
    """Return uint8 noise (n, height, width, 3); the default grid is 3 x 5 cells: odd, and windows of four sizes."""
    return torch.randint(
        0, 256, (n, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    """Return 16 kHz noise whose loudness changes by 60 dB from tenth to tenth of a second."""
    rng = np.random.default_rng(seed)
    n = round(seconds * 16000)
    loud = 10.0 ** rng.uniform(-3, 0, n // 1600 + 1)
    return (rng.standard_normal(n) * np.repeat(loud, 1600)[:n]).astype(np.float32)


def encode(
    omni: Any,
    pictures: torch.Tensor | None,
    times: Any = (),
    samples: np.ndarray | None = None,
    *,
    batch: int = 4,
    capture: frozenset[str] = frozenset(),
    start_s: float = 0.0,
    end_s: float | None = None,
) -> Any:
    """Stream a clip through the adapter in small pieces and assemble it."""
    video, audio = [], []
    if pictures is not None:
        video = [omni.encode_video(pictures[i : i + batch], capture) for i in range(0, len(pictures), batch)]
    if samples is not None:
        blocks = [samples[i : i + 32000] for i in range(0, len(samples), 32000)]
        stream = omni.audio_encoder(omni.measure_log_mel_max(blocks), capture, batch_s=4.0)
        for block in blocks:
            audio += stream.feed(block)
        audio += stream.finish()
    return omni.assemble(video, times, audio, start_s=start_s, end_s=end_s)


def stock_inputs(
    omni: Any, question: str, pictures: torch.Tensor | None, fps: float, samples: np.ndarray | None
) -> dict[str, Any]:
    """Return what the stock processor would feed the stock model; the placeholder order is the stock code's own."""
    from types import SimpleNamespace

    from transformers import Qwen2_5OmniProcessor, WhisperFeatureExtractor

    tokenizer, out = omni.tokenizer.hf, {}
    placeholders = ""
    sounds: dict[str, Any] = {}
    if samples is not None:
        extractor = WhisperFeatureExtractor(feature_size=128, chunk_length=300, return_attention_mask=True)
        mel = extractor(samples, sampling_rate=16000, return_tensors="pt", return_attention_mask=True)
        out["input_features"], out["feature_attention_mask"] = mel.input_features, mel.attention_mask
        frames_ = int(mel.attention_mask.sum())
        sounds["num_audio_tokens"] = [((frames_ - 1) // 2 + 1 - 2) // 2 + 1]
        placeholders = "<|AUDIO|>" * sounds["num_audio_tokens"][0]
    if pictures is not None:
        rows = patchify_reference(pictures)
        grid = torch.tensor([[-(-len(pictures) // 2), pictures.shape[1] // 14, pictures.shape[2] // 14]])
        out["pixel_values_videos"], out["video_grid_thw"] = rows, grid
        out["video_second_per_grid"] = torch.tensor([2 / fps])
        placeholders = "<|VIDEO|>" * int(grid.prod() // 4)
        if samples is not None:
            fake = SimpleNamespace(
                video_processor=SimpleNamespace(merge_size=2),
                audio_bos_token="",
                audio_eos_token="",
                video_token="<|VIDEO|>",
                audio_token="<|AUDIO|>",
                get_chunked_index=lambda *a: Qwen2_5OmniProcessor.get_chunked_index(None, *a),
            )
            placeholders = Qwen2_5OmniProcessor.replace_video_with_audio_token(
                fake,
                {"video_grid_thw": grid.numpy(), "video_second_per_grid": [2 / fps]},
                0,
                sounds,
                0,
                position_id_per_seconds=25,
                seconds_per_chunk=2.0,
            )
            out["use_audio_in_video"] = True
    prompt = omni.prompt(question, video=pictures is not None, audio=samples is not None)
    text = tokenizer.decode(prompt.before) + placeholders + tokenizer.decode(prompt.after)
    out["input_ids"] = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    out["attention_mask"] = torch.ones_like(out["input_ids"])
    return out


def patchify_reference(pictures: torch.Tensor) -> torch.Tensor:
    """Patch rows written as slow loops from the description of the order."""
    from omnicli.models.facts.base import CLIP_MEAN, CLIP_STD

    if len(pictures) % 2:
        pictures = torch.cat([pictures, pictures[-1:]])
    x = pictures.permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) * 255.0 for v in (CLIP_MEAN, CLIP_STD))
    x = (x - mean) / std
    rows = [
        x[t : t + 2, :, y : y + 14, z : z + 14].transpose(0, 1).flatten()
        for t in range(0, len(x), 2)
        for cy in range(0, x.shape[2], 28)
        for cx in range(0, x.shape[3], 28)
        for y in (cy, cy + 14)
        for z in (cx, cx + 14)
    ]
    return torch.stack(rows)
