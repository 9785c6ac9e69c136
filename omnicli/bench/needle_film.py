"""Haystacks: films decoded and encoded once, into which needles are spliced at token level where that is exact.

A needle changes one frame or a few seconds of sound; only the frame groups and sound blocks it touches are encoded
anew, and their rows of the clip's tokens are replaced for as long as the question is asked. That is exact, not an
approximation: the encoders look at nothing beyond (`omnicli.bench.needle_audio` says what else ties sound together),
and order, times and positions of tokens do not depend on what is seen or heard. Shorter clips are prefixes of the
longest one. Knows neither presets nor answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from omnicli.bench.needle import FPS, MODALITIES, Grid, Needle, caption_frame, loudness, speak
from omnicli.bench.needle_audio import AudioBlocks, AudioTokens
from omnicli.encode.encode import Encoded
from omnicli.encode.film import EncodedFilm
from omnicli.errors import MediaError, UsageError
from omnicli.media import audio, sampling, video
from omnicli.media.audio import SAMPLE_RATE
from omnicli.media.pieces import batched
from omnicli.media.probe import MediaInfo
from omnicli.models.base import OmniModel
from omnicli.models.parts import PAIR_SALIENCY, EncodedAudio, EncodedClip, EncodedVideo
from omnicli.types import MediaTokens, MediaUsed, Modality
from omnicli.utils.context import Progress, untold
from omnicli.utils.timing import Times

_SHORT_S = 0.5  # a film may be this much shorter than the clip that is cut from it


class Haystack:
    """A film, decoded and encoded once, up to the grid's longest duration.

    Kept in memory: all tokens, the sound's samples, and of the frames those that a caption will be drawn on or that
    end a prefix, with what shares their group.

    Parameters
    ----------
    info : MediaInfo
        From `probe`.
    capture : frozenset of str
        What the encoders shall compute besides; the union of what all presets need.
    max_pixels : int or None
        Largest frame; None: the model's own limit.

    Raises
    ------
    UsageError
        The film is shorter than the longest duration or lacks a sense that a needle needs.
    """

    @torch.inference_mode()
    def __init__(
        self,
        info: MediaInfo,
        model: OmniModel,
        grid: Grid,
        *,
        capture: frozenset[str] = frozenset(),
        max_pixels: int | None = None,
        progress: Progress = untold,
    ) -> None:
        check(info, grid)
        self.info, self.model, self.grid, self.capture = info, model, grid, capture
        end_s = min(grid.durations[-1], info.duration_s)
        self.blocks = AudioBlocks(model, capture)
        self.unit = model.frame_group * (2 if PAIR_SALIENCY in capture else 1)  # frames that are encoded together
        self.size, self.times = (0, 0), np.zeros(0)
        self.video: list[EncodedVideo] = []
        self.frames: dict[int, np.ndarray] = {}
        if info.video is not None and info.frames is not None:
            self.times = sampling.frame_times(info.frames.time_s, FPS, None, 0.0, end_s)
            self.size = model.frame_size(info.video.width, info.video.height, len(self.times), max_pixels=max_pixels)
            self._look(info, end_s, progress)
        self.audio: AudioTokens | None = None
        self.lufs = float("-inf")
        if info.audio is not None:
            pieces, read = [np.zeros(0, np.float32)], 0
            for piece in audio.read_audio(info, 0.0, end_s):
                pieces.append(piece)
                read += len(piece)
                progress("decode_audio", read / SAMPLE_RATE, end_s)
            samples = np.concatenate(pieces)
            if len(samples):
                self.audio = self.blocks.encode(samples, lambda done_s: progress("encode_audio", done_s, end_s))
                self.lufs = loudness(samples)

    def _look(self, info: MediaInfo, end_s: float, progress: Progress) -> None:
        """Decode and encode the frames; keep those that will be encoded anew."""
        keep: set[int] = set()
        for duration_s in self.grid.durations:
            if (n := self.frame_count(duration_s)) == 0:
                continue
            for index in [caption_frame(n, depth) for depth in self.grid.depths] + ([n - 1] if n % self.unit else []):
                keep.update(range(index // self.unit * self.unit, (index // self.unit + 1) * self.unit))
        times: list[float] = []
        frames = video.read_frames(info, self.times, *self.size, device=str(self.model.device))
        for batch in batched(frames, self.model.video_batch):
            self.frames |= {len(times) + i: rgb for i, (_, rgb) in enumerate(batch) if len(times) + i in keep}
            times += [time_s for time_s, _ in batch]
            self.video.append(self._encode_frames([rgb for _, rgb in batch]))
            progress("encode_video", times[-1], end_s)
        if len(times) < len(self.times):
            raise MediaError(f"{info.path}: {len(self.times) - len(times)} frames cannot be decoded; take another film")
        self.times = np.array(times)

    def _encode_frames(self, frames: Sequence[np.ndarray]) -> EncodedVideo:
        return self.model.encode_video(torch.from_numpy(np.stack(frames)), self.capture)

    def frame_count(self, duration_s: float) -> int:
        """Return how many of the frames lie in the first ``duration_s`` seconds."""
        return int(np.searchsorted(self.times, duration_s - sampling.CLOCK_TOLERANCE_S))

    def prefix(self, duration_s: float) -> Prefix:
        """Return the first seconds as a clip of their own, nothing decoded again."""
        return Prefix(self, duration_s)


def check(info: MediaInfo, grid: Grid) -> None:
    """Raise `UsageError` if a film is too short for the grid or lacks a sense it needs; decodes nothing."""
    name = info.path.name
    if grid.durations[-1] > info.duration_s + _SHORT_S:
        raise UsageError(
            f"{name}: lasts {info.duration_s:.1f} s; --durations goes up to {grid.durations[-1]:g} s "
            "(choose shorter ones, or a longer film)"
        )
    for modality, there, what in (("vision", info.video, "pictures"), ("audio", info.audio, "sound track")):
        if modality in grid.modalities and there is None:
            other = MODALITIES[1 - MODALITIES.index(modality)]
            raise UsageError(f"{name}: no {what} to hide a needle in; --modality {other} asks only the other half")


class Prefix:
    """The first seconds of a haystack as an encoded clip, equal to decoding and encoding them alone."""

    @torch.inference_mode()
    def __init__(self, hay: Haystack, duration_s: float) -> None:
        self.hay, self.duration_s = hay, duration_s
        model, end_s = hay.model, min(duration_s, hay.info.duration_s)
        self.frames = hay.frame_count(duration_s)
        whole = self.frames // hay.unit * hay.unit
        pieces = _first_groups(hay.video, whole // model.frame_group)
        if rest := [hay.frames[i] for i in range(whole, self.frames)]:
            pieces.append(hay._encode_frames(rest))
        self.audio: AudioTokens | None = None
        if hay.audio is not None:
            self.audio = hay.blocks.prefix(hay.audio, round(end_s * SAMPLE_RATE))
        times = hay.times[: self.frames]
        encoded = [] if self.audio is None else [self.audio.encoded]
        self.clip: EncodedClip = model.assemble(pieces, times, encoded, 0.0, end_s)
        self._rows = {m: self.clip.tokens.indices(m) for m in Modality}
        self._cells = pieces[0].rows * pieces[0].cols if pieces else 0
        audio_s = 0.0 if self.audio is None else len(self.audio.samples) / SAMPLE_RATE
        video_s = end_s - float(times[0]) if len(times) else 0.0
        used = MediaUsed(
            round(video_s, 3),
            round(audio_s, 3),
            round(video_s, 3),
            round(audio_s, 3),
            self.frames,
            round(self.frames / video_s, 4) if video_s > 0 else 0.0,
            hay.size[1],
            hay.size[0],
        )
        self.film = EncodedFilm(hay.info, Encoded(self.clip, used, ()), Times())
        """What `omnicli.pipeline.answer` takes; while `with_needle` is open, with the needle in it."""

    @contextmanager
    def with_needle(self, modality: str, depth: float, needle: Needle) -> Iterator[float]:
        """Hide a needle in the clip for as long as the context lasts; gives the second it begins at.

        Raises
        ------
        UsageError
            The spoken needle is longer than the sound.
        """
        at_s, changed = self._drawn(depth, needle) if modality == "vision" else self._said(depth, needle)
        with replaced(self.clip.tokens, changed):
            yield at_s

    @torch.inference_mode()
    def _drawn(self, depth: float, needle: Needle) -> tuple[float, list[_Rows]]:
        hay, index = self.hay, caption_frame(self.frames, depth)
        if index < 0:
            raise UsageError(f"{hay.info.path.name}: no picture in the first {self.duration_s:g} s to hide a needle in")
        begin = index // hay.unit * hay.unit
        frames = [hay.frames[i] for i in range(begin, min(begin + hay.unit, self.frames))]
        frames[index - begin] = needle.drawn(frames[index - begin])
        piece = hay._encode_frames(frames)
        first = begin // hay.model.frame_group * self._cells
        rows = self._rows[Modality.VIDEO][first : first + piece.features.shape[0]]
        return float(hay.times[index]), [(rows, piece)]

    @torch.inference_mode()
    def _said(self, depth: float, needle: Needle) -> tuple[float, list[_Rows]]:
        if self.audio is None:
            raise UsageError(f"{self.hay.info.path.name}: no sound to hide a needle in")
        samples, begin, end = speak(self.audio.samples, self.hay.lufs, depth, needle)
        change = self.hay.blocks.change(self.audio, samples, begin, end)
        rows = self._rows[Modality.AUDIO]
        return begin / SAMPLE_RATE, [(rows[at : at + p.features.shape[0]], p) for at, p in change.pieces]


def _first_groups(pieces: Sequence[EncodedVideo], groups: int) -> list[EncodedVideo]:
    """Return the first ``groups`` frame groups of encoded pieces; views."""
    out: list[EncodedVideo] = []
    for piece in pieces:
        if groups <= 0:
            break
        n = min(groups, piece.groups) * piece.rows * piece.cols
        levels = None if piece.layer_features is None else piece.layer_features[:, :n]
        saliency, keys = (None if x is None else x[:n] for x in (piece.saliency, piece.keys))
        out.append(
            EncodedVideo(piece.features[:n], min(groups, piece.groups), piece.rows, piece.cols, saliency, keys, levels)
        )
        groups -= piece.groups
    return out


_Rows = tuple[Tensor, "EncodedVideo | EncodedAudio"]


@contextmanager
def replaced(tokens: MediaTokens, changed: Sequence[_Rows]) -> Iterator[None]:
    """Put pieces into the rows (n,) int64 of a clip's tokens, in place, and put back what was there in the end."""
    undo: list[tuple[Tensor, int, Tensor, Tensor]] = []
    try:
        with torch.inference_mode():
            for rows, piece in changed:
                for name, axis in (("features", 0), ("saliency", 0), ("keys", 0), ("layer_features", 1)):
                    target, new = getattr(tokens, name), getattr(piece, name, None)
                    if target is None or new is None:
                        continue
                    if name == "keys":  # the narrower tower's keys are padded, see `layout.assemble`
                        new = torch.nn.functional.pad(new, (0, target.shape[1] - new.shape[1]))
                    undo.append((target, axis, rows, target.index_select(axis, rows)))
                    target.index_copy_(axis, rows, new)
        yield
    finally:
        with torch.inference_mode():
            for target, axis, rows, old in reversed(undo):
                target.index_copy_(axis, rows, old)
