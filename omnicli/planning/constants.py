"""Sizes and lengths that plans are made of and no model's facts tell: assumed, or measured in `benchmarks/`.

What a loop in `encode`, `compress` or `llm` holds at a time stands there as well; the two change together.
"""

from __future__ import annotations

TEXT_TOKENS = 64
"""Assumed for a question and the chat format around it; without the tokenizer they cannot be counted."""
MARKS = 16
"""Positions assumed before the media."""
CHUNK = 2048
"""Positions that the LLM reads at a time (`omnicli.llm.prefill`)."""
BATCHES_AHEAD = 5
"""Batches of frames in memory at once: waiting, in the making, being encoded, and one being put together."""
DECODER_FRAMES = 28
"""Source frames that a decoder holds, at 1.5 bytes a pixel, and one as RGB: 37 to 42 MB in `benchmarks/decode.py`."""
SELECT_BYTES, SELECT_TOKEN_BYTES = 16 << 20, 64
"""Working memory of a method: a few chunks of a pass over the tokens (`compress.ops.CHUNK_BYTES`), and per token."""
MAP_ELEMENTS = 1 << 23
"""Attention weights at once where saliency is captured (`omnicli.models.attention`)."""
ERROR = 1.15
"""How far a prediction may be off: only what exceeds free memory by more is refused."""

ROOM_BYTES = 64 << 20
"""What a run on a CPU takes besides its tensors: modules imported on the way, stacks and arenas of threads."""
LIBRARIES_BYTES = 750 << 20
"""Resident after importing torch, transformers and PyAV, before a model is loaded."""
CUDA_HOST_BYTES = 2 << 30
"""Resident on the host besides, once CUDA's libraries are in use; not yet measured."""
CUDA_CONTEXT_BYTES = 600 << 20
"""Taken on the device by the CUDA context and by libraries' workspaces."""
BITSANDBYTES_BYTES = 190 << 20
"""Resident after importing it, for weights in 4 bits."""
BLOCK = 64
"""Values of a weight in 4 bits that share a scale (`omnicli.models.weights.quantize`)."""
DECODE_S_PER_MEGAPIXEL = 0.0015
"""CPU seconds per million source pixels of the span, h264; 1.0 to 1.9 ms in `benchmarks/decode.py`."""
