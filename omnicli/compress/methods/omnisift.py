"""OmniSIFT: pictures that stand out from their frame and from the one before; then the sound that belongs to them.

Source: OmniSIFT (arXiv 2602.04804). Sound is ranked by a small trained network that reads the surviving pictures of the
same moment. Its weights belong to one fine-tuned model; for any other model a rule without training stands in, and the
report says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import Self

from omnicli.compress.base import everything
from omnicli.compress.budget import spread
from omnicli.compress.groups import Groups, best_in_groups, evenly, frames, group, windows
from omnicli.compress.ops import finite, row_chunks, unit
from omnicli.compress.published import Published
from omnicli.compress.selector import Selector, load_selector
from omnicli.compress.weights import beside
from omnicli.errors import ConfigError, ModelError
from omnicli.types import MediaTokens, Modality, Query, Selection
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

SELECTOR_FILE = "omnisift_selector.safetensors"
"""A selector of this name in a model's folder is used by ``selector: auto``."""

AUTO, UNTRAINED = "auto", "untrained"

MEMORY = 16 * 2**20
"""Bytes that one batch of frames or chunks may need."""

PIECE = 256
"""Sound tokens of one chunk that are scored at once."""

Score = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]


@dataclass(frozen=True)
class OmniSIFT(Published):
    """Keep what is unlike its frame's average or unlike the frame before, then the sound that fits those pictures.

    Time is cut into chunks. In a chunk's first frame the tokens most similar to the frame's mean go, in the following
    ones those most similar to the same cell of the frame before, uncompressed. Sound tokens are scored by the selector,
    which reads the surviving pictures of their chunk. The question plays no part.

    The official mode drops rounded-down numbers in chunks of two frames, counted by the model's time positions; a
    chunk's second frame of another size than its first keeps all its tokens. All
    sound after the last chunk's beginning belongs to it; sound before the first chunk, alone in its chunk, or without
    surviving pictures stays whole, so sound without film is not compressed at all. Not reproduced: kept sound is
    multiplied there by a number that is 1 up to bf16 rounding, and silent clips end in an error.

    Parameters
    ----------
    selector : str
        A safetensors file with the trained selector (the tensors of ``thinker.compressor``, see `Selector`);
        ``untrained``: a sound token's highest cosine with a surviving picture token of its chunk; or ``auto``: the
        file ``omnisift_selector.safetensors`` beside the model, else untrained.
    """

    selector: str = AUTO

    criterion: ClassVar[str] = "pictures unlike their frame or the one before; sound by a trained selector"
    paper: ClassVar[str] = "OmniSIFT, arXiv 2602.04804"
    clean_differs: ClassVar[str] = (
        "Chunks are windows of true time, so the sound of a long film does not pile up in its last chunk, and each "
        "modality's budget is met exactly. Sound without pictures is thinned evenly instead of staying whole, silent "
        "clips work, and all chunks go through the selector in a few batches."
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the fields."""
        found = super().problems()
        if self.selector not in (AUTO, UNTRAINED) and not Path(self.selector).expanduser().is_file():
            found.append(f"selector: {self.selector} is neither {AUTO}, {UNTRAINED} nor a file")
        return found

    def bind(self, model_folder: Path) -> Self:
        """Return the method with the selector in the model's folder, if it is to choose one and there is one."""
        if self.selector != AUTO:
            return self
        return dataclasses.replace(self, selector=beside(model_folder, SELECTOR_FILE, UNTRAINED))

    def compress(self, tokens: MediaTokens, query: Query) -> Selection:
        """Choose pictures, then sound by what is left of them.

        Raises
        ------
        ModelError
            Embeddings are not finite.
        ConfigError
            The selector file does not fit the model.
        """
        selector = self._selector(tokens)
        name = UNTRAINED if selector is None else Path(self.selector).name
        notes = () if selector else (f"{self.name}: no selector trained for this model; sound goes by cosines",)
        plan = self.plan(tokens)
        if plan.total == len(tokens):
            return everything(tokens, selector=name)
        official = self.mode == "official"
        chunks = _by_position(tokens) if official else _by_window(tokens)
        by_frame, by_chunk = chunks.by_frame, chunks.by_chunk
        video, audio = self.ratios(tokens) if official else (0.0, 0.0)
        left = _left(chunks, video) if official else spread(plan.video, by_frame.sizes)
        kept = best_in_groups(-finite(redundancy(tokens.features, chunks)), by_frame, left)
        kept_video = group(by_frame.rows[kept], chunks.of_frame[by_frame.index[kept]])

        of_kept = chunks.of_frame[by_frame.index[kept[kept_video.starts]]]
        with_video = torch.isin(chunks.chunk_of_audio, of_kept)
        if official:
            drop = _floors(by_chunk.sizes, audio) * (with_video & (by_chunk.sizes >= 2))
            quota = by_chunk.sizes - drop
        else:
            quota = spread(plan.audio, by_chunk.sizes).to(by_chunk.sizes.device)
        score = evenly(by_chunk, quota)
        asked = torch.nonzero(with_video & (quota > 0) & (quota < by_chunk.sizes)).flatten()
        which = torch.searchsorted(of_kept, chunks.chunk_of_audio[asked])
        judge = nearest if selector is None else selector
        for places, value in _scores(tokens.features, by_chunk, asked, kept_video, which, judge=judge):
            score[places] = finite(value)
        kept_audio = by_chunk.rows[best_in_groups(score, by_chunk, quota)]
        budget = {"video": kept.numel(), "audio": kept_audio.numel()}
        indices = torch.cat([kept_video.rows, kept_audio]).sort().values
        return Selection(indices, report={"budget": budget, "selector": name}, notes=notes)

    def _selector(self, tokens: MediaTokens) -> Selector | None:
        if self.selector in (AUTO, UNTRAINED):
            return None
        path = Path(self.selector).expanduser()
        selector = load_selector(path)
        width = tokens.features.shape[1]
        if selector.width != width:
            raise ConfigError(f"{self.name}.selector: {path.name} is for models of width {selector.width}, not {width}")
        return selector.to(tokens.features.device)


@dataclass(frozen=True)
class Chunks:
    """Frames and sound in chunks of time.

    Attributes
    ----------
    by_frame : Groups
        One group per frame.
    of_frame : Tensor (F,) int64
        Chunk of each frame, never falling.
    by_chunk : Groups
        Sound tokens, one group per chunk.
    chunk_of_audio : Tensor (G,) int64
        Chunk of each group of sound.
    """

    by_frame: Groups
    of_frame: Tensor
    by_chunk: Groups
    chunk_of_audio: Tensor


def _by_window(tokens: MediaTokens) -> Chunks:
    """Return chunks that are windows of true time."""
    by_frame, by_chunk = frames(tokens), windows(tokens, Modality.AUDIO)
    first = [g.rows[g.starts] for g in (by_frame, by_chunk)]
    return Chunks(by_frame, tokens.window[first[0]], by_chunk, tokens.window[first[1]])


def _by_position(tokens: MediaTokens) -> Chunks:
    """Return chunks of two consecutive time positions of pictures; sound before the first is chunk -1.

    A chunk lasts until the next begins, the last one until the end.
    """
    if tokens.position_ids.shape[0] == 1:
        raise ModelError("omnisift: mode official cuts by positions in time, this model's count tokens; use mode clean")
    time = tokens.position_ids[0]
    video, audio = tokens.indices(Modality.VIDEO), tokens.indices(Modality.AUDIO)
    by_frame = group(video, time[video])
    begins = time[by_frame.rows[by_frame.starts[::2]]]
    chunk = torch.searchsorted(begins, time[audio].contiguous(), right=True) - 1
    by_chunk = group(audio, chunk)
    return Chunks(by_frame, torch.arange(len(by_frame), device=video.device) // 2, by_chunk, chunk[by_chunk.starts])


def _floors(sizes: Tensor, ratio: float) -> Tensor:
    """Return how many tokens of each group go where ``ratio`` stays: rounded down."""
    # 1 - ratio may be a hair below the share it stands for.
    return (sizes.double() * (1 - min(1.0, max(0.0, ratio))) + 1e-9).long()


def _left(chunks: Chunks, ratio: float) -> Tensor:
    """Return how many tokens of each frame (F,) stay in official mode.

    A chunk's second frame that differs in size from its first has nothing to be compared with and stays whole.
    """
    sizes, at = chunks.by_frame.sizes, chunks.of_frame
    left = sizes - _floors(sizes, ratio)
    unlike = torch.zeros_like(sizes, dtype=torch.bool)
    unlike[1:] = (at[1:] == at[:-1]) & (sizes[1:] != sizes[:-1])
    return torch.where(unlike, sizes, left)


def redundancy(features: Tensor, chunks: Chunks) -> Tensor:
    """Return how redundant each picture token is (n,) fp32, a cosine; a row of zeros has 0.

    In a chunk's first frame with the mean of the frame, in others with the same cell of the frame before; with the mean
    as well where the frame before has another size. (OmniSIFT, spatial and temporal saliency)
    """
    by_frame, at = chunks.by_frame, chunks.of_frame
    sizes, starts = by_frame.sizes, by_frame.starts
    after = torch.zeros(len(by_frame), dtype=torch.bool, device=at.device)
    after[1:] = (at[1:] == at[:-1]) & (sizes[1:] == sizes[:-1])
    out = torch.empty(by_frame.rows.numel(), device=features.device)
    for groups, places in by_frame.by_size():
        for follows in (False, True):
            own = torch.nonzero(after[groups] == follows).flatten()
            for part in row_chunks(len(own), 2 * places.shape[1] * features.shape[1], limit=MEMORY):
                some = places[own[part]]
                x = features[by_frame.rows[some]].float()
                if follows:
                    before = starts[groups[own[part]] - 1, None] + torch.arange(some.shape[1], device=at.device)
                    other = features[by_frame.rows[before]].float()
                else:
                    other = x.mean(1, keepdim=True)
                out[some] = (unit(x) * unit(other)).sum(-1)
    return out


def _scores(
    features: Tensor, by_chunk: Groups, asked: Tensor, kept_video: Groups, which: Tensor, *, judge: Score
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield places of sound and their scores, for the groups ``asked`` (m,) with the pictures ``which`` (m,)."""
    partner = torch.full_like(by_chunk.sizes, -1)
    partner[asked] = which
    places = torch.nonzero(partner[by_chunk.index] >= 0).flatten()
    nth = places - by_chunk.starts[by_chunk.index[places]]
    # Sound tokens do not read each other, so a long chunk need not be in memory at once.
    pieces = group(places, by_chunk.index[places] * (len(by_chunk.rows) + 1) + nth // PIECE)
    partner = partner[by_chunk.index[places[pieces.starts]]]
    sizes = torch.stack([pieces.sizes, kept_video.sizes[partner]], 1)
    order = sizes[:, 0].argsort(stable=True)
    for part in _batches(sizes[order].tolist(), features.shape[1]):
        at, real = _padded(pieces, order[part])
        looks, there = _padded(kept_video, partner[order[part]])
        mine = places[at]
        value = judge(features[kept_video.rows[looks]].float(), features[by_chunk.rows[mine]].float(), ~there)
        yield mine[real], value[real]


def _batches(sizes: Iterable[list[int]], width: int) -> Iterator[slice]:
    """Yield stretches of chunks, given their (sound, picture) sizes, that fit in `MEMORY` when padded alike."""
    begin = end = most_audio = most_video = 0
    for n_audio, n_video in sizes:
        a, v = max(most_audio, n_audio), max(most_video, n_video)
        if end > begin and (end + 1 - begin) * (2 * (a + v) * width + 16 * a * v) * 4 > MEMORY:
            yield slice(begin, end)
            begin, a, v = end, n_audio, n_video
        most_audio, most_video, end = a, v, end + 1
    if end > begin:
        yield slice(begin, end)


def _padded(groups: Groups, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places (B, n) of ``chosen`` groups, the last one repeated, and which of them are real."""
    size = groups.sizes[chosen, None]
    step = torch.arange(int(size.max()), device=chosen.device)
    return groups.starts[chosen, None] + torch.minimum(step, size - 1), step < size


def nearest(video: Tensor, audio: Tensor, padding: Tensor) -> Tensor:
    """Return the highest cosine (B, A) of each sound token (B, A, D) with pictures (B, V, D) but ``padding`` (B, V)."""
    cosine = unit(audio) @ unit(video).transpose(1, 2)
    return cosine.masked_fill_(padding[:, None], -torch.inf).amax(-1)


__all__ = ["SELECTOR_FILE", "Chunks", "OmniSIFT", "nearest", "redundancy"]
