"""Qwen2.5-Omni (thinker): the only file that touches this family's transformers code.

The stock modules do all the arithmetic; the loops around them are ours: pictures frame pair by frame pair (the vision
tower never looks across pairs), sound in 2-second windows (the audio tower never looks across them), the LLM layer by
layer. Equal-sized attention windows run as one batched call instead of one call each. Not known here: files, methods.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from omnicli.errors import ModelError
from omnicli.models import chat, layout
from omnicli.models.attention import causal_attention, last_query_attention, received_attention
from omnicli.models.base import (
    KEYS,
    PAIR_SALIENCY,
    POOLED_SALIENCY,
    SALIENCY,
    AudioEncoder,
    EncodedAudio,
    EncodedClip,
    EncodedVideo,
    ModelInput,
    OmniModel,
    Prompt,
)
from omnicli.models.mel import log_mel_maximum
from omnicli.models.preprocessing import Preprocessing, WindowedAudioEncoder
from omnicli.types import MediaTokens

TRANSFORMERS = "5.23"
if not transformers.__version__.startswith(TRANSFORMERS + "."):
    raise ModelError(
        f"qwen2_5_omni.py is written for transformers {TRANSFORMERS}.x, {transformers.__version__} is installed; "
        f"pip install 'transformers=={TRANSFORMERS}.*'"
    )

from transformers import Qwen2_5OmniThinkerForConditionalGeneration as Thinker  # noqa: E402
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as stock  # noqa: E402
from transformers.vision_utils import get_vision_position_ids  # noqa: E402


class Qwen25Omni(OmniModel):
    """Qwen2.5-Omni's thinker behind `OmniModel`. ``thinker`` is the stock module, untouched."""

    family = "qwen2_5_omni"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_omni", "qwen2_5_omni_thinker")

    def __init__(
        self,
        thinker: Any,
        tokenizer: Any,
        *,
        name: str,
        revision: str = "local",
        folder: Path | None = None,
        stop_ids: Iterable[int] = (),
    ) -> None:
        self.thinker = thinker.eval().requires_grad_(False)  # training turns on what it trains
        self.name, self.revision, self.folder = name, revision, folder
        body, config = thinker.model, thinker.config
        self._visual, self._audio, self._text = body.visual, body.audio_tower, body.language_model
        weight = thinker.lm_head.weight
        self.device, self.dtype = weight.device, weight.dtype
        text, vision, audio = config.text_config, config.vision_config, config.audio_config
        self.hidden_size, self.depth = text.hidden_size, text.num_hidden_layers
        self.intermediate_size = text.intermediate_size
        self.heads, self.kv_heads = text.num_attention_heads, text.num_key_value_heads
        self.head_dim = self._text.layers[0].self_attn.head_dim
        self.vocab_size, self.max_position = text.vocab_size, text.max_position_embeddings
        self.position_axes = 3
        self.window_s = float(config.seconds_per_chunk)
        self.positions_per_s = self.audio_tokens_per_s = float(config.position_id_per_seconds)
        self.frame_group, self._merge = int(vision.temporal_patch_size), vision.spatial_merge_size
        self._patch = int(vision.patch_size)
        self.pixel_unit = self._patch * self._merge
        self.video_batch = 32
        self.nominal_fps = 2.0
        self._mel_window, self._mel_bands = audio.n_window * 2, audio.num_mel_bins
        if any(kind != "full_attention" for kind in text.layer_types):
            raise ModelError(f"{name}: sliding-window LLM layers are not supported for Qwen2.5-Omni")
        self.preprocessing = Preprocessing.read(folder) if folder is not None else Preprocessing()
        self.tokenizer: chat.TextTokenizer = chat.TextTokenizer(tokenizer)
        self._template = chat.find_template(tokenizer, folder)
        ids = (config.video_token_id, config.audio_token_id, config.audio_start_token_id, config.audio_end_token_id)
        self._markers = chat.Markers(*tokenizer.convert_ids_to_tokens(list(ids)))
        self.stop_ids = frozenset(stop_ids) | chat.stop_ids(tokenizer)
        self._plan = lru_cache(maxsize=8)(self._make_plan)
        self._before = lru_cache(maxsize=4)(lambda video, audio: len(self.prompt("", video=video, audio=audio).before))

    @classmethod
    def load(cls, folder: Path, *, name: str, revision: str, device: torch.device, dtype: torch.dtype) -> Qwen25Omni:
        """Load a thinker or a full checkpoint (talker and vocoder are skipped) from a folder in hub layout."""
        with chat.quiet():
            loaded: Any = Thinker.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation="sdpa",
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
            thinker, info = loaded
            tokenizer = chat.load_tokenizer(name, folder)
        if missing := sorted(info["missing_keys"]):
            raise ModelError(f"{name}: {len(missing)} weights are missing in {folder}, the first is {missing[0]}")
        stop = chat.stop_ids(thinker.config, thinker.config.text_config, thinker.generation_config, tokenizer)
        return cls(thinker.to(device), tokenizer, name=name, revision=revision, folder=folder, stop_ids=stop)

    @classmethod
    def dummy(
        cls, size: str, *, name: str, device: torch.device, dtype: torch.dtype, layers: int | None, scale: float
    ) -> Qwen25Omni:
        """Build the thinker of ``size`` ("7b", "3b") with random weights on the device; no files are read."""
        from omnicli.models import dummy

        config, tokenizer = dummy.qwen2_5_omni(size, layers=layers, scale=scale)
        return cls(dummy.random_model(Thinker, config, device, dtype), tokenizer, name=name, revision="random")

    # ---- pictures ----

    def frame_size(
        self,
        width: int,
        height: int,
        n_frames: int | None = None,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        max_video_tokens: int | None = None,
    ) -> tuple[int, int]:
        """See `OmniModel.frame_size`; without a token budget the stock processor's sizes."""
        from omnicli.media.sampling import smart_resize

        low = self.preprocessing.min_pixels if min_pixels is None else min_pixels
        high = self.preprocessing.max_pixels if max_pixels is None else max_pixels
        low = min(low, high)
        if max_video_tokens is not None and n_frames is not None:
            high = layout.capped_pixels(
                low, high, n_frames, max_video_tokens, unit=self.pixel_unit, temporal=self.frame_group
            )
        return smart_resize(height, width, self.pixel_unit, low, high)

    @torch.no_grad()
    def encode_video(self, frames: Tensor, capture: frozenset[str] = frozenset()) -> EncodedVideo:
        """See `OmniModel.encode_video`. uint8 goes to the device; normalising happens there."""
        pre = self.preprocessing
        rows = layout.patchify(
            frames.to(self.device),
            pre.mean,
            pre.std,
            patch=self._patch,
            temporal=self.frame_group,
            merge=self._merge,
        )
        grid = (frames.shape[1] // self._patch, frames.shape[2] // self._patch)
        return self.encode_patches(rows, grid, capture)

    def encode_patches(
        self, rows: Tensor, grid: tuple[int, int], capture: frozenset[str] = frozenset()
    ) -> EncodedVideo:
        """Encode patch rows (groups * h * w, 3 * temporal * patch**2) of a patch grid (h, w); differentiable."""
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
                F.scaled_dot_product_attention(_split(query, s), _split(key, s), _split(value, s), scale=attn.scaling)
                .transpose(1, 2)
                .reshape(groups, s[1] - s[0], -1)
                for s in spans
            ]
            hidden = hidden + attn.proj(torch.cat(mixed, 1))
            hidden = hidden + block.mlp(block.norm2(hidden))
        features = visual.merger(hidden.reshape(groups * size, -1)).view(groups, plan.cells.numel(), -1)
        features = features[:, plan.cells].flatten(0, 1)
        saliency = keys = None
        if SALIENCY in capture:
            scale = visual.blocks[-1].attn.scaling
            got = [received_attention(_split(query, s), _split(key, s), scale).view(groups, -1) for s in spans]
            saliency = self._per_cell(torch.cat(got, 1).unsqueeze(-1), plan).flatten()
        elif PAIR_SALIENCY in capture:
            saliency = self._per_cell(_pair_attention(query, key, visual.blocks[-1].attn.scaling), plan).flatten()
        elif POOLED_SALIENCY in capture:
            pooled = key.unflatten(1, (-1, self._merge**2)).mean(2)
            weights = torch.einsum("ghd,gchd->gch", query.float().mean(1), pooled.float())
            weights = torch.softmax(weights * visual.blocks[-1].attn.scaling, 1).mean(2)
            saliency = weights[:, plan.cells].flatten()
        if KEYS in capture:
            keys = self._per_cell(key.mean(2), plan)
        height, width = grid[0] // self._merge, grid[1] // self._merge
        return EncodedVideo(features, groups, height, width, saliency, keys)

    def _per_cell(self, values: Tensor, plan: _VisionPlan) -> Tensor:
        """Average (groups, patches, k) over the patches of a merged cell; cells back in raster order (n, k)."""
        groups, size, k = values.shape
        unit = self._merge**2
        return values.view(groups, size // unit, unit, k).mean(2)[:, plan.cells].flatten(0, 1)

    def _make_plan(self, height: int, width: int) -> _VisionPlan:
        merge, visual = self._merge, self._visual
        side = visual.window_size // merge // self._patch
        order, spans = layout.window_order(height // merge, width // merge, side)
        unit = merge * merge
        patches = (order.view(-1, 1) * unit + torch.arange(unit)).flatten()
        spans = [(begin * unit, end * unit, size * unit) for begin, end, size in spans]
        ids = get_vision_position_ids(torch.tensor([[1, height, width]]), merge)[patches]
        cos, sin = visual.rotary_pos_emb(visual.merger.ln_q.weight, ids.to(self.device))
        return _VisionPlan(patches.to(self.device), torch.argsort(order).to(self.device), spans, cos, sin)

    # ---- sound ----

    def measure_log_mel_max(self, blocks: Iterable[np.ndarray]) -> float:
        """See `OmniModel.measure_log_mel_max`."""
        return log_mel_maximum(blocks, self._mel_bands)

    def audio_encoder(
        self, log_mel_max: float | None = None, capture: frozenset[str] = frozenset(), batch_s: float = 30.0
    ) -> AudioEncoder:
        """See `OmniModel.audio_encoder`."""
        frames = max(1, round(batch_s * 100 / self._mel_window)) * self._mel_window
        return WindowedAudioEncoder(
            lambda mel: self.encode_mel(mel, capture), self._mel_bands, batch_frames=frames, maximum=log_mel_max
        )

    @torch.no_grad()
    def encode_mel(self, mel: Tensor, capture: frozenset[str] = frozenset()) -> list[EncodedAudio]:
        """Encode normalised mel frames (bands, k) that start on a window border; one or two pieces, in order."""
        whole = mel.shape[1] // self._mel_window * self._mel_window
        pieces = []
        if whole:
            windows = mel[:, :whole].unflatten(1, (-1, self._mel_window)).transpose(0, 1)
            pieces.append(self.encode_sound_windows(windows, capture))
        if layout.audio_token_count(mel.shape[1] - whole):
            pieces.append(self.encode_sound_windows(mel[None, :, whole:], capture))
        return pieces

    def encode_sound_windows(self, windows: Tensor, capture: frozenset[str] = frozenset()) -> EncodedAudio:
        """Encode independent windows (n, bands, k) of k mel frames each, k at most 200; differentiable."""
        tower = self._audio
        n = windows.shape[0]
        hidden = F.gelu(tower.conv1(windows.to(self.device, tower.conv1.weight.dtype)))
        hidden = F.gelu(tower.conv2(hidden)).transpose(1, 2)
        length = hidden.shape[1]
        hidden = hidden + tower.positional_embedding(length).to(hidden.dtype)
        query = key = hidden
        for layer in tower.layers:
            attn = layer.self_attn
            x = layer.self_attn_layer_norm(hidden)
            query, key, value = (
                m(x).view(n, length, attn.num_heads, -1).transpose(1, 2)
                for m in (attn.q_proj, attn.k_proj, attn.v_proj)
            )
            mixed = F.scaled_dot_product_attention(query, key, value, scale=attn.scaling)
            hidden = hidden + attn.out_proj(mixed.transpose(1, 2).reshape(n, length, -1))
            x = layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden))))
            hidden = hidden + x
            if hidden.dtype == torch.float16:
                limit = torch.finfo(torch.float16).max - 1000
                hidden = hidden.clamp(-limit, limit)
        even = length // 2 * 2
        hidden = (hidden[:, 0:even:2] + hidden[:, 1:even:2]) / 2
        features = tower.proj(tower.ln_post(hidden)).flatten(0, 1)
        saliency = keys = None
        if capture & {SALIENCY, PAIR_SALIENCY, POOLED_SALIENCY}:
            got = received_attention(query, key, tower.layers[-1].self_attn.scaling)
            saliency = got[:, :even].unflatten(1, (-1, 2)).mean(2).flatten()
        if KEYS in capture:
            keys = key.mean(1)[:, :even].unflatten(1, (-1, 2)).mean(2).flatten(0, 1)
        return EncodedAudio(features, saliency, keys)

    # ---- one clock ----

    def assemble(
        self,
        video: Sequence[EncodedVideo],
        frame_times: Sequence[float] | np.ndarray,
        audio: Sequence[EncodedAudio],
        start_s: float = 0.0,
        end_s: float | None = None,
    ) -> EncodedClip:
        """See `OmniModel.assemble`. Order and positions as the stock processor and ``get_rope_index`` give them."""
        origin = self._before(bool(video), bool(audio)) - (1 if video and audio else 0)
        return layout.assemble(
            video,
            np.asarray(frame_times, np.float64),
            audio,
            layout.Clock(
                start_s=start_s,
                end_s=end_s,
                origin=origin,
                positions_per_s=self.positions_per_s,
                window_s=self.window_s,
                group=self.frame_group,
            ),
            self.device,
        )

    # ---- text ----

    def prompt(self, question: str, *, video: bool, audio: bool, history: Sequence[tuple[str, str]] = ()) -> Prompt:
        """See `OmniModel.prompt`."""
        built = chat.build_prompt(
            self.tokenizer, self._template, self._markers, question, video=video, audio=audio, history=history
        )
        return Prompt(built.before.to(self.device), built.after.to(self.device), built.question, built.text)

    def embed(self, ids: Tensor) -> Tensor:
        """See `OmniModel.embed`."""
        return self._text.embed_tokens(ids)

    def sequence(
        self, prompt: Prompt, clip: EncodedClip | None = None, tokens: MediaTokens | None = None
    ) -> ModelInput:
        """See `OmniModel.sequence`. With pictures and sound the two marks on either side share one position."""
        before = torch.arange(prompt.before.numel(), device=self.device)
        after = torch.arange(prompt.after.numel(), device=self.device)
        if clip is None:
            embeds = self.embed(torch.cat([prompt.before, prompt.after]))
            position_ids = torch.arange(embeds.shape[0], device=self.device).expand(3, -1)
            return ModelInput(embeds, position_ids, slice(0, 0), embeds.shape[0])
        media = clip.tokens if tokens is None else tokens
        if clip.video and clip.audio:
            before[-1] -= 1
            after[1:] -= 1
        after += clip.next_position
        embeds = torch.cat([self.embed(prompt.before), media.features.to(self.dtype), self.embed(prompt.after)])
        position_ids = torch.cat([before.expand(3, -1), media.position_ids, after.expand(3, -1)], 1)
        span = slice(before.numel(), before.numel() + len(media))
        return ModelInput(embeds, position_ids, span, max(int(after[-1]), clip.max_position) + 1)

    # ---- layer loop ----

    def rope(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin (1, n, head_dim) of multi-axis positions (3, n)."""
        return self._text.rotary_emb(self.thinker.lm_head.weight, position_ids[:, None])

    def take(self, rope: tuple[Tensor, Tensor], index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """See `OmniModel.take`."""
        return rope[0][:, index], rope[1][:, index]

    def layer(
        self, index: int, hidden: Tensor, rope: Any, cache: Any = None, last_attention: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """See `OmniModel.layer`; differentiable with ``cache=None``."""
        block = self._text.layers[index]
        attn, n = block.self_attn, hidden.shape[0]
        x = block.input_layernorm(hidden)
        query, key, value = (
            m(x).view(1, n, -1, self.head_dim).transpose(1, 2) for m in (attn.q_proj, attn.k_proj, attn.v_proj)
        )
        query, key = stock.apply_rotary_pos_emb(query, key, *rope)
        if cache is not None:
            key, value = cache.update(key, value, index)
        mixed = causal_attention(query, key, value, attn.scaling)
        received = last_query_attention(query, key, attn.scaling) if last_attention else None
        hidden = hidden + attn.o_proj(mixed.transpose(1, 2).reshape(n, -1))
        return hidden + block.mlp(block.post_attention_layernorm(hidden)), received

    def query_attention(self, index: int, hidden: Tensor, rope: Any) -> Tensor:
        """See `OmniModel.query_attention`."""
        block = self._text.layers[index]
        attn, n = block.self_attn, hidden.shape[0]
        x = block.input_layernorm(hidden)
        key = attn.k_proj(x).view(1, n, -1, self.head_dim).transpose(1, 2)
        query = attn.q_proj(x[-1:]).view(1, 1, -1, self.head_dim).transpose(1, 2)
        query, _ = stock.apply_rotary_pos_emb(query, query, *self.take(rope, slice(n - 1, n)))
        _, key = stock.apply_rotary_pos_emb(key, key, *rope)
        return last_query_attention(query, key, attn.scaling)

    def logits(self, hidden: Tensor) -> Tensor:
        """See `OmniModel.logits`."""
        return self.thinker.lm_head(self._text.norm(hidden)).float()


@dataclass(frozen=True)
class _VisionPlan:
    """What depends on the frame size only: patch order, its inverse over cells, window spans, rotary values."""

    patches: Tensor  # (hw,) order in which the blocks see the patches
    cells: Tensor  # (cells,) where each raster cell is in that order
    windows: list[tuple[int, int, int]]  # (begin, end, patches per window)
    cos: Tensor
    sin: Tensor


def _pair_attention(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Return attention (groups, patches, 1) received within two consecutive groups, which the tower never joins.

    query, key (groups, patches, heads, d). Groups are paired as they come; an odd last one is alone.
    """
    groups = query.shape[0]
    even = groups // 2 * 2
    parts = [slice(0, even), slice(even, groups)]
    got = []
    for part, pair in zip(parts, (2, 1), strict=True):
        if part.stop > part.start:
            q, k = (x[part].reshape(-1, pair * x.shape[1], *x.shape[2:]).transpose(1, 2) for x in (query, key))
            got.append(received_attention(q, k, scale))
    return torch.cat([g.view(-1, query.shape[1]) for g in got]).unsqueeze(-1)


def _split(x: Tensor, span: tuple[int, int, int]) -> Tensor:
    """Cut (groups, patches, heads, d) into windows: (groups * windows, heads, patches per window, d)."""
    begin, end, size = span
    return x[:, begin:end].reshape(-1, size, *x.shape[2:]).transpose(1, 2)


MODEL = Qwen25Omni
"""The class that `omnicli.models.loading` uses for this file."""
