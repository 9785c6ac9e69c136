"""The flow: media -> encode -> compress -> prefill -> generate -> answer. Everything else is somewhere else."""

from __future__ import annotations

import hashlib
import json
import platform
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from omnicli import __version__, cost
from omnicli.encode import Encoded, Progress, encode
from omnicli.errors import MemoryLimitError
from omnicli.llm.decode import DecodeOptions, generate
from omnicli.llm.kv import KVCache
from omnicli.llm.prefill import prefill
from omnicli.media.probe import MediaInfo, probe
from omnicli.models.base import CAPTURES, OmniModel
from omnicli.timing import StageClock
from omnicli.types import Answer, MediaTokens, Modality, TokenCount

if TYPE_CHECKING:
    from omnicli.compress.base import Compressor
    from omnicli.config import Config

OnText = Callable[[int, str], None]


@torch.inference_mode()
def ask(
    path: str | Path,
    questions: Sequence[str],
    config: Config,
    model: OmniModel,
    *,
    on_text: OnText | None = None,
    on_progress: Progress | None = None,
    clock: StageClock | None = None,
) -> list[Answer]:
    """Answer questions about one file; it is decoded and encoded once.

    Parameters
    ----------
    on_text : callable
        Called with the question's index and each piece of its answer as it is written.
    on_progress : callable
        Called with stage, done, total; see `omnicli.encode.Progress`.
    clock : StageClock
        Already holds what was timed before, such as loading the model.

    Returns
    -------
    list of Answer
        One per question. Stages and wall time of each hold the shared ones (probe to encode) as well.

    Raises
    ------
    OmniError
        What a user can mend; see `omnicli.errors`.
    """
    clock = clock or StageClock(cuda=model.device.type == "cuda")
    progress = on_progress or (lambda stage, done, total: None)
    compressor = config.compressor if model.folder is None else config.compressor.bind(model.folder)
    with clock.stage("probe"):
        info = probe(path)
    media = encode(info, config.media, model, compressor.needs & CAPTURES, clock, progress)
    shared = clock.report()
    return [
        _answer(question, info, media, compressor, config, model, shared, lambda text, i=i: on_text and on_text(i, text), progress)
        for i, question in enumerate(questions)
    ]


def _answer(
    question: str,
    info: MediaInfo,
    media: Encoded,
    compressor: Compressor,
    config: Config,
    model: OmniModel,
    shared: tuple[dict[str, float], float],
    on_text: Callable[[str], Any],
    progress: Progress,
) -> Answer:
    clock = StageClock(cuda=model.device.type == "cuda")
    clip, options = media.clip, DecodeOptions(**vars(config.generate))
    prompt = model.prompt(question, video=clip.video, audio=clip.audio)
    with clock.stage("compress"):
        selection = compressor.compress(clip.tokens, model.query(prompt))
        kept = clip.tokens.select(selection)
    sequence = model.sequence(prompt, clip, kept)
    length = sequence.embeds.shape[0]
    if length + options.max_new_tokens > model.max_position:
        raise MemoryLimitError(
            f"{info.path}: {length:,} tokens do not fit the model's context of {model.max_position:,}; "
            "choose a preset that keeps fewer (--preset avoc), a lower --fps, or a shorter span (--start, --end)"
        )
    cache = KVCache(
        model.depth, model.kv_heads, model.head_dim, dtype=model.dtype, device=model.device,
        capacity=length + options.max_new_tokens,
    )  # fmt: skip
    with clock.stage("prefill"):
        read = prefill(
            model, sequence.embeds, sequence.position_ids, cache, media_span=sequence.media_span, media=kept,
            pruner=compressor, progress=lambda share: progress("prefill", share * length, length), clock=clock,
        )  # fmt: skip
    with clock.stage("generate"):
        text = generate(model, cache, read.logits, sequence.next_position, options)
        pieces = (piece for piece in text)
        first = next(pieces, "")
        first_s = clock.elapsed()
        on_text(first)
        for piece in pieces:
            on_text(piece)
    stages, wall_s = clock.report()
    totals = {name: shared[0].get(name, 0.0) + seconds for name, seconds in (shared[0] | stages).items()}
    warnings = [*media.warnings]
    if clip.max_position >= model.max_position:
        warnings.append(f"positions reach {clip.max_position:,}; {model.name} was trained up to {model.max_position:,}")
    return Answer(
        id=_identity(info, question, config),
        media=str(info.path),
        question=question,
        answer=text.text.strip(),
        model={"name": model.name, "revision": model.revision, "dtype": str(model.dtype)[6:], "device": str(model.device)},
        preset=config.preset,
        config=config.to_dict(),
        media_used=media.used,
        tokens=_tokens(clip.tokens, kept, read.by_layer, length - len(kept), len(text.token_ids), selection.report),
        stages={name: round(seconds, 4) for name, seconds in totals.items()},
        wall_s=round(shared[1] + wall_s, 4),
        time_to_first_token_s=round(shared[1] + first_s, 4),
        peak_memory=_peak_memory(model.device),
        flops=cost.prefill_flops(model, length - len(kept), len(clip.tokens), read.by_layer),
        warnings=warnings,
        versions=_versions(),
    )  # fmt: skip


def _tokens(
    clip: MediaTokens, kept: MediaTokens, by_layer: list, text: int, generated: int, report: dict[str, Any]
) -> dict[str, Any]:
    pairs = {m.name.lower(): TokenCount(clip.count(m), kept.count(m)) for m in Modality}
    return {
        **{name: {"encoded": pair.encoded, "kept": pair.kept} for name, pair in pairs.items()},
        "text": text,
        "generated": generated,
        "by_layer": by_layer,
        "retention": round(len(kept) / len(clip), 6),
        "selection": report,
    }


def _identity(info: MediaInfo, question: str, config: Config) -> str:
    """Return 12 hex digits that are equal for the same file name and size, question and settings."""
    facts = [info.path.name, info.path.stat().st_size, question, config.to_dict()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _peak_memory(device: torch.device) -> dict[str, int | None]:
    """Return the peaks in bytes so far: of the process, and of the device's allocator."""
    unit = 1 if sys.platform == "darwin" else 1024
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"host_bytes": host, "device_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None}


def _versions() -> dict[str, str]:
    import av
    import transformers

    return {
        "omni": __version__, "python": platform.python_version(), "torch": torch.__version__,
        "transformers": transformers.__version__, "av": av.__version__,
    }  # fmt: skip
