"""Tiny random MiniCPM-o checkpoints in hub layout, with real windows and weights large enough to attend.

``build(folder)`` writes keys, settings and tokenizer files as the hub has them, speech output and a Python file that
must never run included.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from omnicli.models.components import minicpm_o_weights as weights
from omnicli.models.families.minicpm_o import MiniCPMO

SIDE = 10
"""Learnt picture positions along an edge."""


def config(layers: int = 4, width: int = 64, **changes: Any) -> dict[str, Any]:
    """Return what config.json holds."""
    return {
        "model_type": "minicpmo",
        "version": "4.5",
        "architectures": ["MiniCPMO"],
        "auto_map": {"AutoConfig": "configuration_minicpmo.MiniCPMOConfig", "AutoModel": "modeling_minicpmo.MiniCPMO"},
        "vocab_size": len(weights.dummy_tokenizer()) + 3,
        "hidden_size": width,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "eos_token_id": 3,
        "query_num": 64,
        "drop_vision_last_layer": False,
        "audio_pool_step": 5,
        "audio_chunk_length": 1.0,
        "vision_config": {
            "model_type": "siglip",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 14 * SIDE,
            "patch_size": 14,
        },
        "audio_config": {
            "model_type": "whisper",
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 48,
            "num_mel_bins": 80,
            "max_source_positions": 1500,
        },
        "tts_config": {"hidden_size": 768},
        **changes,
    }


def write_settings(folder: Path, **changes: Any) -> Path:
    """Write the JSON files of a checkpoint and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(**changes)))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))
    processor = {
        "max_slice_nums": 9,
        "scale_resolution": 448,
        "norm_mean": [0.5, 0.4, 0.3],
        "norm_std": [0.5, 0.6, 0.7],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    for name in ("configuration_minicpmo", "modeling_minicpmo", "tokenization_minicpmo_fast"):
        (folder / f"{name}.py").write_text("raise SystemExit('code of a checkpoint was run')\n")
    tokenizer = weights.dummy_tokenizer()
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "MiniCPMOTokenizerFast"
    settings["auto_map"] = {"AutoTokenizer": [None, "tokenization_minicpmo_fast.MiniCPMOTokenizerFast"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def parts(settings: weights.Settings, seed: int = 0) -> weights.Parts:
    """Return random weights, fixed by ``seed``."""
    made = weights.Parts(settings).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if weight.ndim >= 2:
                # The LLM's branches are made strong: else every token would only repeat itself.
                strong = 2.0 if name.startswith("llm.") and "_proj" in name else 1.2
                weight.normal_(0.0, strong / weight[0].numel() ** 0.5, generator=generator)
            else:
                weight.normal_(0.0 if name.endswith("bias") else 1.0, 0.1, generator=generator)
    return made


def build(folder: Path, *, seed: int = 0, shards: bool = False, **changes: Any) -> Path:
    """Write a checkpoint folder and return it."""
    write_settings(folder, **changes)
    state = dict(parts(weights.Settings.read("tiny", folder), seed).state_dict())
    state["tts.emb_code.0.weight"] = torch.zeros(4, 4)
    state["tts.model.layers.0.mlp.up_proj.weight"] = torch.zeros(4, 4)
    if not shards:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    files = [f"model-{i + 1:05d}-of-00003.safetensors" for i in range(3)]
    where = {key: files[i % 3] for i, key in enumerate(sorted(state))}
    for file in files:
        save_file({k: v for k, v in state.items() if where[k] == file}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def model(seed: int = 0, layers: int = 4, **changes: Any) -> MiniCPMO:
    """Return the family around fresh tiny weights, without weight files."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        settings = weights.Settings.read("tiny", write_settings(Path(folder), layers=layers, **changes))
    tokenizer = weights.dummy_tokenizer()
    stop = [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    return MiniCPMO(parts(settings, seed), settings, tokenizer, name="tiny", stop_ids=stop)
