"""Qwen3-Omni (thinker, mixture of experts): the only file that touches this family's transformers code.

Of the towers what its relative in `qwen2_5_omni` does not share: vision blocks that see a whole frame pair, whose
outputs also enter the first LLM layers (deepstack: `EncodedVideo.layer_features`), and 2-D convolutions over seconds
of sound that attend in windows of 8. Experts run in the stock module's grouped matrix products. Not known here: files,
methods.

A released checkpoint has not been read yet: everything is checked against the stock code on random weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from omnicli.models import chat
from omnicli.models.components.qwen_omni import QwenOmni, require_transformers
from omnicli.models.components.towers import audio_captures, audio_layers, video_captures
from omnicli.models.facts.qwen3_omni_moe import AUDIO, FACTS, SIZES, TOKENS_PER_SECOND, VISION
from omnicli.models.parts import EncodedAudio, EncodedVideo
from omnicli.models.weights.dummy import Shrink, byte_tokenizer, size_of, special_ids

require_transformers("qwen3_omni_moe.py")

from transformers import Qwen3OmniMoeThinkerConfig  # noqa: E402
from transformers import Qwen3OmniMoeThinkerForConditionalGeneration as Thinker  # noqa: E402
from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as stock  # noqa: E402
from transformers.vision_utils import (  # noqa: E402
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

SECOND = 100
"""Mel frames that the convolutions see at once."""
SPECIAL_TOKENS = {
    "image_token": "<|image_pad|>",
    "audio_token": "<|audio_pad|>",
    "video_token": "<|video_pad|>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
    "audio_bos_token": "<|audio_start|>",
    "audio_eos_token": "<|audio_end|>",
}


class Qwen3OmniMoe(QwenOmni):
    """Qwen3-Omni's thinker behind `OmniModel`."""

    family = "qwen3_omni_moe"
    facts_class = FACTS
    model_types, short_names, dummies = FACTS.model_types, FACTS.short_names, FACTS.dummies
    nominal_fps = 1.0
    thinker_class = Thinker
    load_options: ClassVar[dict[str, Any]] = {"experts_implementation": "grouped_mm"}
    template = chat.qwen_template(
        "<|vision_start|><|video_pad|><|vision_end|>", "<|audio_start|><|audio_pad|><|audio_end|>"
    )
    rotate = staticmethod(stock.apply_rotary_pos_emb)
    position_dtype = torch.float32
    audio_hop_s = 0.08

    def __init__(self, thinker: Any, tokenizer: Any, **settings: Any) -> None:
        super().__init__(thinker, tokenizer, **settings)
        self._set_audio(thinker.config.audio_config.n_window_infer, mirror_end=True)

    @classmethod
    def dummy_config(cls, size: str, shrink: Shrink) -> tuple[Any, Any]:
        """See `QwenOmni.dummy_config`. Experts become fewer and narrower, each by the root of the scale."""
        dims = size_of("Qwen3-Omni", size, SIZES)
        tokenizer = byte_tokenizer(SPECIAL_TOKENS)
        root = Shrink(scale=shrink.scale**0.5)
        experts = root.width(dims["num_experts"], 2)
        heads = shrink.width(dims["num_attention_heads"], dims["num_key_value_heads"])
        width = shrink.width(dims["hidden_size"], 64)
        text = {
            **dims,
            "num_hidden_layers": shrink.depth(dims["num_hidden_layers"]),
            "num_attention_heads": heads,
            "hidden_size": width,
            "num_experts": experts,
            "num_experts_per_tok": min(experts, dims["num_experts_per_tok"]),
            "moe_intermediate_size": root.width(dims["moe_intermediate_size"], 16),
            "vocab_size": max(len(tokenizer), round(dims["vocab_size"] * shrink.scale)),
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [24, 20, 20]},
        }
        vision_heads, audio_heads = (shrink.width(n) for n in (VISION["num_heads"], AUDIO["encoder_attention_heads"]))
        depth = shrink.depth(VISION["depth"])
        undeclared: dict[str, Any] = {"seconds_per_chunk": 2}  # in released files all the same
        config = Qwen3OmniMoeThinkerConfig(
            text_config=text,
            vision_config={
                "depth": depth,
                "hidden_size": vision_heads * 72,
                "num_heads": vision_heads,
                "intermediate_size": shrink.width(VISION["intermediate_size"], 4),
                "out_hidden_size": width,
                "deepstack_visual_indexes": _deepstack(depth, min(3, text["num_hidden_layers"])),
            },
            audio_config={
                "encoder_layers": shrink.depth(AUDIO["encoder_layers"]),
                "d_model": audio_heads * 64,
                "encoder_attention_heads": audio_heads,
                "encoder_ffn_dim": shrink.width(AUDIO["encoder_ffn_dim"], 4),
                "downsample_hidden_size": shrink.width(AUDIO["downsample_hidden_size"], 4),
                "output_dim": width,
            },
            position_id_per_seconds=TOKENS_PER_SECOND,
            **special_ids(tokenizer, SPECIAL_TOKENS),
            **undeclared,
        )
        return config, tokenizer

    # ---- pictures ----

    def encode_patches(
        self, rows: Tensor, grid: tuple[int, int], capture: frozenset[str] = frozenset()
    ) -> EncodedVideo:
        """See `QwenOmni.encode_patches`. ``layer_features`` holds one level per deepstack merger."""
        visual, plan = self._visual, self._plan(*grid)
        size = grid[0] * grid[1]
        groups = rows.shape[0] // size
        embed = visual.patch_embed.proj
        # Stride equals kernel size: the convolution is a matrix product, and much faster as one.
        hidden = F.linear(rows.to(embed.weight.dtype), embed.weight.flatten(1), embed.bias).view(groups, size, -1)
        hidden = hidden + plan.positions
        query = key = hidden
        levels = []
        for index, block in enumerate(visual.blocks):
            attn = block.attn
            query, key, value = attn.qkv(block.norm1(hidden)).view(groups, size, 3, attn.num_heads, -1).unbind(2)
            query, key = stock.apply_rotary_pos_emb_vision(query, key, plan.cos, plan.sin)
            mixed = F.scaled_dot_product_attention(
                query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), scale=attn.scaling
            )
            hidden = hidden + attn.proj(mixed.transpose(1, 2).reshape(groups, size, -1))
            hidden = hidden + block.mlp(block.norm2(hidden))
            if index in visual.deepstack_visual_indexes:
                merger = visual.merger_list[list(visual.deepstack_visual_indexes).index(index)]
                levels.append(merger(hidden.flatten(0, 1)))
        captured = video_captures(query, key, visual.blocks[-1].attn.scaling, capture, merge=self.facts.merge)
        return EncodedVideo(
            visual.merger(hidden.flatten(0, 1)),
            groups,
            grid[0] // self.facts.merge,
            grid[1] // self.facts.merge,
            *captured,
            layer_features=torch.stack(levels) if levels else None,
        )

    def _make_plan(self, height: int, width: int) -> _VisionPlan:
        visual, grid = self._visual, torch.tensor([[1, height, width]])
        indices, weights = get_vision_interpolation_indices_and_weights(
            grid,
            num_grid_per_side=visual.num_grid_per_side,
            mode=visual.interpolation_mode,
            align_corners=visual.interpolation_align_corners,
            spatial_merge_size=self.facts.merge,
        )
        table = visual.pos_embed.weight
        positions = (visual.pos_embed(indices.to(table.device)) * weights.to(table.device)[:, :, None]).sum(1)
        cos, sin = visual.rotary_pos_emb(table, get_vision_position_ids(grid, self.facts.merge).to(table.device))
        return _VisionPlan(positions.to(table.dtype), cos, sin)

    # ---- sound ----

    def encode_audio_windows(
        self, windows: Tensor, capture: frozenset[str] = frozenset(), alone: bool = False
    ) -> EncodedAudio:
        """See `QwenOmni.encode_audio_windows`.

        The stock code fills the last second of a sound with zeros of normalised mel, which the convolutions see, unless
        the whole sound is shorter than a second (``alone``).
        """
        tower, (n, _, length) = self._audio, windows.shape
        padded = length if alone and length < SECOND else -(-length // SECOND) * SECOND
        seconds = F.pad(windows, (0, padded - length)).unflatten(2, (-1, min(padded, SECOND))).transpose(1, 2)
        hidden = seconds.flatten(0, 1).unsqueeze(1).to(self.device, tower.conv2d1.weight.dtype)
        for conv in (tower.conv2d1, tower.conv2d2, tower.conv2d3):
            hidden = F.gelu(conv(hidden))
        hidden = tower.conv_out(hidden.permute(0, 3, 1, 2).flatten(2))
        hidden = hidden + tower.positional_embedding(hidden.shape[1]).to(hidden.dtype)
        hidden = hidden.unflatten(0, (n, -1)).flatten(1, 2)[:, : self.facts.mel_tokens(length)]
        hidden, query, key = audio_layers(tower.layers, hidden)
        features = tower.proj2(tower.act(tower.proj1(tower.ln_post(hidden)))).flatten(0, 1)
        return EncodedAudio(features, *audio_captures(query, key, tower.layers[-1].self_attn.scaling, capture))

    def _encode_rest(self, window: Tensor, capture: frozenset[str], alone: bool) -> EncodedAudio:
        return self.encode_audio_windows(window, capture, alone)

    # ---- layer loop ----

    def _mlp(self, block: Any) -> Callable[[Tensor], Tensor]:
        """See `QwenOmni`; the stock block of experts takes batches."""
        return lambda x: block.mlp(x[None])[0]


def _deepstack(depth: int, levels: int) -> list[int]:
    """Return the vision blocks whose outputs enter the LLM: 8, 16, 24 of 27, or as many spread over fewer."""
    return sorted({depth * i * 8 // 27 for i in range(1, levels + 1)})


@dataclass(frozen=True)
class _VisionPlan:
    """What depends on the frame size only: learnt positions (hw, D) and rotary values."""

    positions: Tensor
    cos: Tensor
    sin: Tensor


MODEL = Qwen3OmniMoe
"""The class that `omnicli.models.loading` uses for this file."""
