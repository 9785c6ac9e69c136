"""The pocket model's architecture, its folder on disk, and batched forward passes for training it.

The model is a real `Qwen2_5OmniThinkerForConditionalGeneration`, only small. Training uses the stock modules'
weights but runs the towers on equal-sized batches (frame pairs of one size, 2-second sound blocks), which the stock
forward would loop over one by one; `tests/train` holds both to the same numbers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnicli.models.weights.dummy import SPECIAL_TOKENS

WIDTH, HEIGHT = 196, 112
PATCH, MERGE = 14, 2
GRID = (HEIGHT // PATCH, WIDTH // PATCH)  # patches: 8 x 14
CELLS = (GRID[0] // MERGE, GRID[1] // MERGE)  # merged tokens of a frame pair: 4 x 7 = 28
PAIR_TOKENS = CELLS[0] * CELLS[1]
BLOCK_TOKENS = 50  # a 2-second sound block at 25 tokens a second
HIDDEN = 192
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<|vision_bos|><|VIDEO|><|vision_eos|>"
    "{% elif part['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer() -> Any:
    """Return a byte-level `Qwen2Tokenizer` of 256 symbols and the family's special tokens."""
    from transformers import Qwen2Tokenizer

    symbols = list(range(ord("!"), ord("~") + 1)) + list(range(ord("¡"), ord("¬") + 1))
    symbols += list(range(ord("®"), ord("ÿ") + 1))
    chars = [chr(s) for s in symbols] + [chr(256 + i) for i in range(256 - len(symbols))]
    tokenizer = Qwen2Tokenizer(
        vocab={c: i for i, c in enumerate(chars)},
        merges=[],
        model_specific_special_tokens=SPECIAL_TOKENS,
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _config() -> Any:
    from transformers import Qwen2_5OmniThinkerConfig

    tokenizer = build_tokenizer()
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in SPECIAL_TOKENS.items()}
    unnamed = {  # known to checkpoints and the model's code, not to the signature of the configuration
        "audio_token_id": ids["audio_token"],
        "image_token_id": ids["image_token"],
        "video_token_id": ids["video_token"],
        "vision_start_token_id": ids["vision_bos_token"],
        "vision_end_token_id": ids["vision_eos_token"],
    }
    return Qwen2_5OmniThinkerConfig(
        audio_config={
            "d_model": 160,
            "encoder_layers": 5,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 512,
            "num_mel_bins": 128,
            "output_dim": HIDDEN,
            "n_window": 100,
            "max_source_positions": 1500,
        },
        vision_config={
            "depth": 6,
            "hidden_size": 128,
            "num_heads": 4,
            "intermediate_size": 384,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [1, 2, 3, 4, 5],
            "out_hidden_size": HIDDEN,
            "hidden_act": "silu",
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": HIDDEN,
            "intermediate_size": 512,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 131072,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "mrope_section": [12, 6, 6]},
            "tie_word_embeddings": False,
            "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
            "pad_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        },
        audio_token_index=ids["audio_token"],
        image_token_index=ids["image_token"],
        video_token_index=ids["video_token"],
        audio_start_token_id=ids["audio_bos_token"],
        audio_end_token_id=ids["audio_eos_token"],
        position_id_per_seconds=25,
        seconds_per_chunk=2,
        tie_word_embeddings=False,
        **unnamed,
    )


def build_model(seed: int = 0) -> Any:
    """Return the untrained model with fan-in initialisation: the default std of 0.02 starts tiny models nearly dead."""
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration

    torch.manual_seed(seed)
    model = Qwen2_5OmniThinkerForConditionalGeneration(_config())
    _fan_in(model)
    return model.float()


def _fan_in(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv3d):
            fan_in = module.weight[0].numel()
            gain = 0.4 if name.endswith(("o_proj", "down_proj", "out_proj", "attn.proj", "fc2")) else 1.0
            nn.init.normal_(module.weight, std=gain / fan_in**0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)


def save_folder(model: Any, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write the model as a checkpoint folder in the hub's layout, with tokenizer, template and preprocessor facts."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.to(dtype).contiguous() for k, v in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=state)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    build_tokenizer().save_pretrained(folder)
    preprocessor = {
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": 2,
        "min_pixels": 24 * 28 * 28,
        "max_pixels": 29 * 28 * 28,
        "feature_size": 128,
        "hop_length": 160,
        "n_fft": 400,
        "sampling_rate": 16000,
        "chunk_length": 300,
        "feature_extractor_type": "WhisperFeatureExtractor",
        "image_processor_type": "Qwen2VLImageProcessor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=1) + "\n")


def load_weights(model: Any, folder: Path) -> None:
    """Load the weights of a folder that `save_folder` wrote into ``model``, in the model's own precision."""
    from omnicli.errors import ModelError

    if not (folder / "model.safetensors").is_file():
        raise ModelError(f"{folder}: no weights to go on from")
    model.load_state_dict(type(model).from_pretrained(folder, local_files_only=True).state_dict())


# --- batched tower passes -------------------------------------------------------------------------------------------


def patch_rows(pairs: Tensor) -> Tensor:
    """Cut frame pairs (B, 2, H, W, 3) uint8 into normalised rows (B, P, 1176) float32 in merge-block order."""
    b, t, h, w, c = pairs.shape
    mean, std = (torch.tensor(v) * 255 for v in (MEAN, STD))
    x = (pairs.float() - mean) / std
    x = x.view(b, t, h // 28, 2, PATCH, w // 28, 2, PATCH, c)
    x = x.permute(0, 2, 5, 3, 6, 8, 1, 4, 7)  # b, cell row, cell col, sub row, sub col, channel, t, py, px
    return x.reshape(b, (h // PATCH) * (w // PATCH), c * t * PATCH * PATCH)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Plain attention over (B, heads, n, d): at these sizes two batched products beat the fused kernel on a CPU."""
    weights = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2), -1)
    return weights @ v


_VISION_PLANS: dict[tuple[int, int], tuple[Tensor, list[int], Tensor]] = {}


def _vision_plan(visual: Any, grid: tuple[int, int]) -> tuple[Tensor, list[int], Tensor]:
    if grid not in _VISION_PLANS:
        from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

        thw = torch.tensor([[1, *grid]])
        index, borders = get_vision_window_index(thw, MERGE, visual.window_size, PATCH)
        _VISION_PLANS[grid] = (index, borders.diff().tolist(), get_vision_position_ids(thw, MERGE))
    return _VISION_PLANS[grid]


def vision_forward(
    visual: Any, rows: Tensor, grid: tuple[int, int] = GRID, tap: int | None = None
) -> tuple[Tensor, Tensor]:
    """Run the vision tower on B equal frame pairs.

    Parameters
    ----------
    rows : Tensor (B, P, 1176)
        From `patch_rows`.
    grid : tuple
        Patches high and wide.
    tap : int or None
        Block after which patch states are returned; None is the last.

    Returns
    -------
    (Tensor (B, P, d), Tensor (B, P / 4, D))
        Patch states after block ``tap`` in merge-block order, and the merged tokens in raster order.
    """
    tapped = None
    index, windows, position_ids = _vision_plan(visual, grid)
    b, p, _ = rows.shape
    heads = visual.blocks[0].attn.num_heads
    weight = visual.patch_embed.proj.weight
    x = rows @ weight.view(weight.shape[0], -1).T
    order = (index[:, None] * 4 + torch.arange(4)).flatten()
    cos, sin = visual.rotary_pos_emb(x, position_ids)
    cos, sin = cos[order][None, :, None], sin[order][None, :, None]
    x = x[:, order]
    for i, block in enumerate(visual.blocks):
        y = _rms(block.norm1, x)
        q, k, v = (f(y).view(b, p, heads, -1) for f in (block.attn.q, block.attn.k, block.attn.v))
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        q, k, v = (z.transpose(1, 2) for z in (q, k, v))
        if i in visual.fullatt_block_indexes:
            y = _attend(q, k, v)
        else:
            parts = zip(*(z.split(windows, dim=2) for z in (q, k, v)), strict=True)
            y = torch.cat([_attend(*part) for part in parts], dim=2)
        x = x + block.attn.proj(y.transpose(1, 2).reshape(b, p, -1))
        x = x + block.mlp(_rms(block.norm2, x))
        if i == tap:
            tapped = x
    merged = _merge(visual.merger, x.reshape(b * p, -1)).view(b, p // 4, -1)
    inverse = torch.argsort(order)
    return (x if tapped is None else tapped)[:, inverse], merged[:, torch.argsort(index)]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding with the half-split layout; cos and sin hold each angle twice, so the first half is enough."""
    a, b = x.chunk(2, -1)
    c, s = cos[..., : a.shape[-1]].to(x.dtype), sin[..., : a.shape[-1]].to(x.dtype)
    return torch.cat((a * c - b * s, b * c + a * s), -1)


def _rms(norm: Any, x: Tensor) -> Tensor:
    """RMSNorm in one reduction: mixed-precision casts of whole activations are what costs on a CPU."""
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    scale = (size.square() / x.shape[-1] + norm.variance_epsilon).rsqrt()
    return x * scale.to(x.dtype) * norm.weight


def _merge(merger: Any, x: Tensor) -> Tensor:
    return merger.mlp(_rms(merger.ln_q, x).reshape(-1, merger.hidden_size))


def audio_forward(tower: Any, mel: Tensor) -> Tensor:
    """Run the sound tower on B whole 2-second blocks: log-mel (B, 128, 200) to tokens (B, 50, D)."""
    x = F.gelu(tower.conv1(mel))
    x = F.gelu(tower.conv2(x)).transpose(1, 2)
    x = x + tower.positional_embedding.positional_embedding[: x.shape[1]].to(x.dtype)
    b, n, d = x.shape
    for layer in tower.layers:
        y = layer.self_attn_layer_norm(x)
        attn = layer.self_attn
        q, k, v = (f(y).view(b, n, attn.num_heads, -1).transpose(1, 2) for f in (attn.q_proj, attn.k_proj, attn.v_proj))
        x = x + attn.out_proj(_attend(q, k, v).transpose(1, 2).reshape(b, n, d))
        x = x + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(x))))
    x = x.view(b, n // 2, 2, d).mean(2)
    return tower.proj(tower.ln_post(x))


def text_forward(
    text: Any, embeds: Tensor, position_ids: Tensor, bias: Tensor, tap: tuple[int, ...] = ()
) -> tuple[Tensor, list[Tensor]]:
    """Run the LLM on a padded batch.

    Parameters
    ----------
    embeds : Tensor (B, S, D)
    position_ids : Tensor (3, B, S)
    bias : Tensor (B, 1, S, S)
        Additive attention bias: 0, -inf where not allowed, log(m) for a key that stands for m.
    tap : tuple of int
        Layers after which hidden states are returned as well.

    Returns
    -------
    (Tensor (B, S, D), list of Tensor (B, S, D))
        Normed final hidden states, and the tapped ones.
    """
    cos, sin = text.rotary_emb(embeds, position_ids)
    cos, sin = cos[:, :, None], sin[:, :, None]
    b, s, _ = embeds.shape
    x, taps = embeds, []
    for i, layer in enumerate(text.layers):
        attn = layer.self_attn
        y = _rms(layer.input_layernorm, x)
        q = _rotate(attn.q_proj(y).view(b, s, -1, attn.head_dim), cos, sin)
        k = _rotate(attn.k_proj(y).view(b, s, -1, attn.head_dim), cos, sin)
        v = attn.v_proj(y).view(b, s, -1, attn.head_dim)
        groups = attn.num_key_value_groups
        q = q.transpose(1, 2).reshape(b, -1, groups * s, attn.head_dim)  # queries of a group share one key head
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        scores = ((q * attn.scaling) @ k.transpose(-1, -2)).view(b, -1, groups, s, s) + bias[:, :, None].to(x.dtype)
        weights = torch.softmax(scores, -1).view(b, -1, groups * s, s)
        y = (weights @ v).view(b, -1, s, attn.head_dim).transpose(1, 2).reshape(b, s, -1)
        x = x + attn.o_proj(y)
        x = x + layer.mlp(_rms(layer.post_attention_layernorm, x))
        if i in tap:
            taps.append(x)
    return _rms(text.norm, x), taps
