"""Qwen2.5-Omni (thinker): the only file that touches this family's transformers code.

Of the towers what its relative in `qwen3_omni_moe` does not share: vision blocks that attend in windows, the 1-D
convolutions before the sound layers, both with equal-sized attention windows as one batched call instead of one call
each. Not known here: files, methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from omnicli.errors import ModelError
from omnicli.models import chat, layout
from omnicli.models.components.qwen_omni import QwenOmni, require_transformers
from omnicli.models.components.towers import audio_captures, audio_layers, split, video_captures
from omnicli.models.facts.qwen2_5_omni import AUDIO, FACTS, MAX_POSITION, SIZES, VISION
from omnicli.models.parts import EncodedAudio, EncodedVideo
from omnicli.models.weights.dummy import Shrink, byte_tokenizer, size_of, special_ids

require_transformers("qwen2_5_omni.py")

from transformers import Qwen2_5OmniThinkerConfig  # noqa: E402
from transformers import Qwen2_5OmniThinkerForConditionalGeneration as Thinker  # noqa: E402
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as stock  # noqa: E402
from transformers.vision_utils import get_vision_position_ids  # noqa: E402


class Qwen25Omni(QwenOmni):
    """Qwen2.5-Omni's thinker behind `OmniModel`."""

    family = "qwen2_5_omni"
    facts_class = FACTS
    model_types, short_names, dummies = FACTS.model_types, FACTS.short_names, FACTS.dummies
    nominal_fps = 2.0
    thinker_class = Thinker
    template = chat.qwen_template(
        "<|vision_bos|><|VIDEO|><|vision_eos|>",
        "<|audio_bos|><|AUDIO|><|audio_eos|>",
        "You are a helpful assistant.",
    )
    rotate = staticmethod(stock.apply_rotary_pos_emb)
    joined_marks = True
    cuda_graph_safe = True

    def __init__(self, thinker: Any, tokenizer: Any, **settings: Any) -> None:
        super().__init__(thinker, tokenizer, **settings)
        text = thinker.config.text_config
        if any(kind != "full_attention" for kind in text.layer_types):
            raise ModelError(f"{self.name}: sliding-window LLM layers are not supported for Qwen2.5-Omni")
        self._set_audio(thinker.config.audio_config.n_window * 2)

    @classmethod
    def dummy_config(cls, size: str, shrink: Shrink) -> tuple[Any, Any]:
        """See `QwenOmni.dummy_config`."""
        dims = size_of("Qwen2.5-Omni", size, SIZES)
        heads = shrink.width(dims["num_attention_heads"], dims["num_key_value_heads"])
        tokenizer = byte_tokenizer()
        text = {
            **dims,
            "num_hidden_layers": shrink.depth(dims["num_hidden_layers"]),
            "num_attention_heads": heads,
            "hidden_size": heads * 128,
            "intermediate_size": shrink.width(dims["intermediate_size"], 64),
            "vocab_size": max(len(tokenizer), round(dims["vocab_size"] * shrink.scale)),
            "max_position_embeddings": MAX_POSITION,
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        }
        vision_heads, audio_heads = (shrink.width(n) for n in (VISION["num_heads"], AUDIO["encoder_attention_heads"]))
        depth = shrink.depth(VISION["depth"])
        full = [i for i in (7, 15, 23, 31) if i < depth]
        config = Qwen2_5OmniThinkerConfig(
            text_config=text,
            vision_config={
                "depth": depth,
                "hidden_size": vision_heads * 80,
                "num_heads": vision_heads,
                "intermediate_size": shrink.width(VISION["intermediate_size"], 4),
                "out_hidden_size": text["hidden_size"],
                "fullatt_block_indexes": full if depth - 1 in full else [*full, depth - 1],
            },
            audio_config={
                "encoder_layers": depth,
                "d_model": audio_heads * 64,
                "encoder_attention_heads": audio_heads,
                "encoder_ffn_dim": shrink.width(AUDIO["encoder_ffn_dim"], 4),
                "output_dim": text["hidden_size"],
            },
            **special_ids(tokenizer),
        )
        return config, tokenizer

    # ---- pictures ----

    def encode_patches(
        self, rows: Tensor, grid: tuple[int, int], capture: frozenset[str] = frozenset()
    ) -> EncodedVideo:
        """See `QwenOmni.encode_patches`; differentiable."""
        visual, plan = self._visual, self._plan(*grid)
        size = grid[0] * grid[1]
        groups = rows.shape[0] // size
        kernel = visual.patch_embed.proj.weight
        # Stride equals kernel size: the convolution is a matrix product, and much faster as one.
        hidden = F.linear(rows.to(kernel.dtype), kernel.flatten(1)).view(groups, size, -1)[:, plan.patches]
        query = key = hidden
        spans = plan.windows
        for index, block in enumerate(visual.blocks):
            attn = block.attn
            x = block.norm1(hidden)
            query, key, value = (m(x).view(groups, size, attn.num_heads, -1) for m in (attn.q, attn.k, attn.v))
            query, key = stock.apply_rotary_pos_emb_vision(query, key, plan.cos, plan.sin)
            spans = [(0, size, size)] if index in visual.fullatt_block_indexes else plan.windows
            mixed = [
                F.scaled_dot_product_attention(split(query, s), split(key, s), split(value, s), scale=attn.scaling)
                .transpose(1, 2)
                .reshape(groups, s[1] - s[0], -1)
                for s in spans
            ]
            hidden = hidden + attn.proj(torch.cat(mixed, 1))
            hidden = hidden + block.mlp(block.norm2(hidden))
        features = visual.merger(hidden.reshape(groups * size, -1)).view(groups, plan.cells.numel(), -1)
        features = features[:, plan.cells].flatten(0, 1)
        captured = video_captures(
            query,
            key,
            visual.blocks[-1].attn.scaling,
            capture,
            merge=self.facts.merge,
            cells=plan.cells,
            spans=spans,
        )
        height, width = grid[0] // self.facts.merge, grid[1] // self.facts.merge
        return EncodedVideo(features, groups, height, width, *captured)

    def _make_plan(self, height: int, width: int) -> _VisionPlan:
        merge, visual = self.facts.merge, self._visual
        side = visual.window_size // merge // self.facts.patch
        order, spans = layout.window_order(height // merge, width // merge, side)
        unit = merge * merge
        patches = (order.view(-1, 1) * unit + torch.arange(unit)).flatten()
        spans = [(begin * unit, end * unit, size * unit) for begin, end, size in spans]
        ids = get_vision_position_ids(torch.tensor([[1, height, width]]), merge)[patches]
        cos, sin = visual.rotary_pos_emb(visual.merger.ln_q.weight, ids.to(self.device))
        return _VisionPlan(patches.to(self.device), torch.argsort(order).to(self.device), spans, cos, sin)

    # ---- sound ----

    def encode_audio_windows(self, windows: Tensor, capture: frozenset[str] = frozenset()) -> EncodedAudio:
        """See `QwenOmni.encode_audio_windows`; two positions make a token. Differentiable."""
        tower = self._audio
        hidden = F.gelu(tower.conv1(windows.to(self.device, tower.conv1.weight.dtype)))
        hidden = F.gelu(tower.conv2(hidden)).transpose(1, 2)
        length = hidden.shape[1]
        hidden = hidden + tower.positional_embedding(length).to(hidden.dtype)
        hidden, query, key = audio_layers(tower.layers, hidden)
        even = length // 2 * 2
        hidden = (hidden[:, 0:even:2] + hidden[:, 1:even:2]) / 2
        features = tower.proj(tower.ln_post(hidden)).flatten(0, 1)
        return EncodedAudio(features, *audio_captures(query, key, tower.layers[-1].self_attn.scaling, capture, merge=2))


@dataclass(frozen=True)
class _VisionPlan:
    """What depends on the frame size only: patch order, its inverse over cells, window spans, rotary values."""

    patches: Tensor  # (hw,) order in which the blocks see the patches
    cells: Tensor  # (cells,) where each raster cell is in that order
    windows: list[tuple[int, int, int]]  # (begin, end, patches per window)
    cos: Tensor
    sin: Tensor


MODEL = Qwen25Omni
"""The class that `omnicli.models.loading` uses for this file."""
