"""Token layout of the Qwen-Omni family in closed form: patches, counts, order and rotary positions. No weights.

Checked against the stock processor and ``get_rope_index`` in the tests.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from torch import Tensor

from omnicli.models.parts import EncodedAudio, EncodedClip, EncodedVideo
from omnicli.types import MediaTokens, Modality

_TIME_EPSILON = 1e-6  # seconds: a frame at 1.9999999 s from a rational time base is meant to be at 2 s


def patchify(
    frames: Tensor, mean: Sequence[float], std: Sequence[float], *, patch: int = 14, temporal: int = 2, merge: int = 2
) -> Tensor:
    """Turn uint8 frames into normalised patch rows.

    Parameters
    ----------
    frames : Tensor (n, H, W, 3) uint8
        H and W multiples of ``patch * merge``; the last frame is repeated until n is a multiple of ``temporal``.
    mean, std : 3 floats
        Of RGB in 0..1; applied as ``(x - 255 mean) / (255 std)`` in float32, as the stock processor does.

    Returns
    -------
    Tensor (groups * H/patch * W/patch, 3 * temporal * patch * patch) float32
        Merge-block order: groups in time, merged cells in raster order, the ``merge**2`` patches of a cell together.
    """
    n, height, width, channels = frames.shape
    unit = patch * merge
    if height % unit or width % unit or channels != 3 or n == 0:
        raise ValueError(f"frames of shape {tuple(frames.shape)}: need n >= 1, RGB and sides that {unit} divides")
    if missing := -n % temporal:
        frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
    rows = frames.reshape(-1, temporal, height // unit, merge, patch, width // unit, merge, patch, 3)
    rows = rows.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(-1, 3, temporal * patch * patch).float()
    shape = (3, 1)
    rows = rows.sub_(torch.tensor(mean, device=frames.device).mul(255.0).view(shape))
    return rows.div_(torch.tensor(std, device=frames.device).mul(255.0).view(shape)).flatten(1)


def window_order(rows: int, cols: int, side: int) -> tuple[Tensor, list[tuple[int, int, int]]]:
    """Order the cells of a grid window by window, windows of equal size next to each other.

    Parameters
    ----------
    rows, cols : int
        Cells of the merged grid.
    side : int
        Cells along a window's edge; windows at the right and lower border are smaller.

    Returns
    -------
    order : Tensor (rows * cols,) int64
        Raster indices of the cells; raster order inside each window.
    spans : list of (begin, end, size)
        Stretches of ``order`` made of windows of ``size`` cells, which can be attended to in one batched call.
    """
    row, col = torch.arange(rows).view(-1, 1), torch.arange(cols).view(1, -1)
    window = torch.unique((row // side * cols + col // side).flatten(), return_inverse=True)[1]
    sizes = torch.bincount(window)
    order = torch.argsort(sizes[window] * len(sizes) + window, stable=True)
    spans, begin = [], 0
    for size in torch.unique(sizes).tolist():
        end = begin + int((sizes == size).sum()) * size
        spans.append((begin, end, size))
        begin = end
    return order, spans


def time_positions(
    times_s: np.ndarray | Sequence[float], start_s: float, per_second: float, exact: bool = False
) -> Tensor:
    """Return ``(time - start) * per_second``, never below 0: rounded down int64, or float64 if ``exact``."""
    relative = np.maximum(np.asarray(times_s, np.float64) - start_s, 0.0)
    if exact:
        return torch.from_numpy(relative * per_second)
    return torch.from_numpy(np.floor((relative + _TIME_EPSILON) * per_second).astype(np.int64))


def video_positions(time: Tensor, rows: int, cols: int) -> Tensor:
    """Return relative positions (3, groups * rows * cols) of picture tokens: time (groups,), row, column; as time."""
    groups = time.numel()
    t = time.view(-1, 1, 1).expand(groups, rows, cols)
    row = torch.arange(rows, dtype=time.dtype).view(1, -1, 1).expand(groups, rows, cols)
    col = torch.arange(cols, dtype=time.dtype).view(1, 1, -1).expand(groups, rows, cols)
    return torch.stack([t, row, col]).reshape(3, -1)


def audio_times(count: int, clock: Clock) -> tuple[Tensor, Tensor]:
    """Return start and end (count,) float64 of sound tokens in seconds after the clip's start."""
    ticks = torch.arange(count)
    if clock.audio_hop_s is None:
        token_s = 1.0 / clock.positions_per_s
        return ticks.double() * token_s, (ticks + 1).double() * token_s
    second, step = ticks // ceil(1 / clock.audio_hop_s), ticks % ceil(1 / clock.audio_hop_s)
    end = ((step + 1).double() * clock.audio_hop_s).clamp(max=1.0)
    return second + step.double() * clock.audio_hop_s, second + end


def interleave(video_time: Tensor, audio_time: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Order picture and sound tokens: block by block of time, pictures first inside a block.

    Parameters
    ----------
    video_time, audio_time : Tensor (nv,), (na,) int64
        Ascending time positions relative to the clip's start.
    block : int
        Positions per block (2 s x 25 for Qwen2.5-Omni); 1 merges strictly by time, pictures first where they tie.

    Returns
    -------
    order : Tensor (nv + na,) int64
        Indices into the concatenation [video, audio].
    run : Tensor (nv + na,) int64
        In the new order, a number that is equal inside a run of one modality in one block.

    Notes
    -----
    Equal to the stock processor while frame groups are at most one block apart. Beyond that the stock code counts
    empty blocks one per *token*, which tears frames apart and detaches sound from its pictures; here a block is a
    block of time.
    """
    key = torch.cat([video_time // block * 2, audio_time // block * 2 + 1])
    run, order = torch.sort(key, stable=True)
    return order, run


def token_times(frame_times: np.ndarray, temporal: int, end_s: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Return start and end seconds (groups,) of frame groups.

    A group lasts from its first frame to the first frame of the next group; the last one to ``end_s`` if that is
    nearer than the spacing of the groups before it, else for that spacing.
    """
    starts = frame_times[::temporal]
    if len(starts) == 0:
        return starts, starts
    if len(starts) > 1:
        typical = float(np.median(np.diff(starts)))
    elif len(frame_times) > 1:
        typical = float(frame_times[-1] - frame_times[0]) * temporal / (len(frame_times) - 1)
    else:
        typical = 0.0 if end_s is None else max(0.0, end_s - float(starts[0]))
    last = max(float(frame_times[-1]), float(starts[-1]) + typical)
    if end_s is not None and end_s > float(frame_times[-1]):
        last = min(last, end_s)
    ends = np.append(starts[1:], last)
    return starts, ends


def temporal_blocks(start_s: Tensor, groups_s: np.ndarray, window_s: float) -> Tensor:
    """Return the temporal block (N,) int64 of each token.

    Blocks of ``window_s`` seconds where frame groups are at most that far apart, or at least leave none of them without
    pictures: ``floor(start / window_s)``. Else blocks follow the groups, since sound could not be compared with
    pictures, nor a group with the one before, if most blocks held neither: see `block_begins`. A token that is read
    behind one of a later block (sound of the two seconds in which a picture starts) belongs to that later block.

    Parameters
    ----------
    start_s : Tensor (N,) float64
        File seconds at which tokens start, in the order the model reads them.
    groups_s : ndarray (G,) float64
        File seconds at which frame groups start, ascending.
    window_s : float
        The model's length of a block.
    """
    plain = torch.floor((start_s + _TIME_EPSILON) / window_s).long()
    held = np.floor((groups_s + _TIME_EPSILON) / window_s)
    if len(groups_s) < 2 or np.median(np.diff(groups_s)) <= window_s + _TIME_EPSILON or np.diff(held).max() <= 1:
        return plain
    begins = block_begins(groups_s, float(start_s.min()), float(start_s.max()), window_s)
    return (torch.searchsorted(begins, start_s + _TIME_EPSILON, right=True) - 1).clamp_min(0).cummax(0).values


def block_begins(groups_s: np.ndarray, first_s: float, last_s: float, window_s: float) -> Tensor:
    """Return the seconds (B,) float64 at which blocks begin that follow the frame groups.

    A block begins where a group starts, if the one before is ``window_s`` long by then. Stretches without pictures are
    cut into blocks of the typical (median) interval between groups, the last one up to twice as long: those between
    groups that are more than twice that interval apart, and those before the first and after the last group. A stretch
    before the first group that is shorter than the interval belongs to that group's block, which begins later.

    Parameters
    ----------
    groups_s : ndarray (G,) float64
        Seconds at which the groups start, at least two.
    first_s, last_s : float
        Seconds at which the first and the last token start.
    window_s : float
        Least length of a block.
    """
    typical = float(np.median(np.diff(groups_s)))

    def cut(begin: float, end: float) -> list[float]:
        count = int((end - begin + _TIME_EPSILON) / typical)
        return [begin + i * typical for i in range(1, count)]

    begins = [float(groups_s[0])]
    if begins[0] - first_s >= typical:
        begins = [first_s, *cut(first_s, begins[0]), *begins]
    for group, following in itertools.pairwise(groups_s.tolist()):
        if following - group > 2 * typical + _TIME_EPSILON:
            begins += cut(group, following)
        if following - begins[-1] >= window_s - _TIME_EPSILON:
            begins.append(following)
    begins += cut(float(groups_s[-1]), last_s)
    return torch.tensor(begins, dtype=torch.float64)


@dataclass(frozen=True)
class Clock:
    """One clock for pictures and sound.

    Attributes
    ----------
    start_s, end_s : float
        File seconds between which the clip lies.
    origin : int
        Rotary position of the first media token.
    positions_per_s : float
        Time positions per second.
    window_s : float
        Length of a temporal block, and of the stretches in which pictures come first.
    group : int
        Frames per group.
    exact : bool
        Times are positions as they are, float32, and pictures and sound are merged strictly by them (Qwen3-Omni).
        Else they are rounded down to int64, and in every temporal block pictures come first (Qwen2.5-Omni).
    audio_hop_s : float or None
        Seconds that a sound token covers where every second begins anew and cuts its last token short (13 of 0.08 s in
        Qwen3-Omni). None: ``1 / positions_per_s``. A sound token's position is its number either way.
    """

    start_s: float
    end_s: float | None
    origin: int
    positions_per_s: float
    window_s: float
    group: int
    exact: bool = False
    audio_hop_s: float | None = None


def assemble(
    video: Sequence[EncodedVideo],
    frame_times: np.ndarray,
    audio: Sequence[EncodedAudio],
    clock: Clock,
    device: torch.device,
) -> EncodedClip:
    """Interleave encoded pieces and give every token its times and positions; see `OmniModel.assemble`.

    Raises
    ------
    ValueError
        If there is nothing to assemble, frame times and groups do not match, or frames differ in size.
    """
    groups, n_audio = sum(v.groups for v in video), sum(a.features.shape[0] for a in audio)
    if groups == 0 and n_audio == 0:
        raise ValueError("nothing to assemble: no picture and no sound token")
    if -(-len(frame_times) // clock.group) != groups:
        raise ValueError(f"{len(frame_times)} frame times do not fit {groups} groups of {clock.group} frames")
    if len({(v.rows, v.cols) for v in video}) > 1:
        raise ValueError("frames of different sizes in one clip")
    rows, cols = (video[0].rows, video[0].cols) if groups else (0, 0)
    cells, n_video = rows * cols, groups * rows * cols

    starts, ends = token_times(frame_times, clock.group, clock.end_s)
    time = time_positions(starts, clock.start_s, clock.positions_per_s, clock.exact)
    grid, ticks = video_positions(time, rows, cols), torch.arange(n_audio)
    if clock.exact:  # a picture comes before the first sound token that is not earlier
        slot = torch.ceil(grid[0] - _TIME_EPSILON * clock.positions_per_s).long()
        order, run = interleave(slot, ticks, 1)
    else:
        order, run = interleave(grid[0], ticks, round(clock.positions_per_s * clock.window_s))
    positions = torch.cat([grid, ticks.expand(3, -1)], 1)[:, order] + clock.origin
    if clock.exact:
        positions = positions.float()

    audio_start, audio_end = audio_times(n_audio, clock)
    start = torch.cat([_spread(starts, cells), clock.start_s + audio_start])
    end = torch.cat([_spread(ends, cells), clock.start_s + audio_end])
    blank = torch.full((n_audio,), -1, dtype=torch.int32)
    row = torch.cat([torch.arange(rows, dtype=torch.int32).repeat_interleave(cols).repeat(groups), blank])
    col = torch.cat([torch.arange(cols, dtype=torch.int32).repeat(rows * groups), blank])
    modality = torch.full((n_video + n_audio,), int(Modality.VIDEO), dtype=torch.int8)
    modality[n_video:] = int(Modality.AUDIO)

    place = torch.argsort(order).to(device)  # where each token of [video, audio] goes
    pieces: list[EncodedVideo | EncodedAudio] = [*video, *audio]
    tokens = MediaTokens(
        features=_gather([p.features for p in pieces], place),
        modality=modality[order].to(device),
        start_s=start[order].to(device),
        end_s=end[order].to(device),
        window=temporal_blocks(start[order], starts, clock.window_s).to(device),
        row=row[order].to(device),
        col=col[order].to(device),
        position_ids=positions.to(device),
        saliency=_gather_all([p.saliency for p in pieces], place),
        keys=_gather_keys([v.keys for v in video], [a.keys for a in audio], place),
        layer_features=_gather_levels(video, n_audio, place),
    )
    last_run = int((run == run[-1]).sum())
    return EncodedClip(
        tokens,
        next_position=positions[:, -last_run:].max().item() + 1,  # over all axes, as the stock code does
        max_position=positions.max().item(),
        video=groups > 0,
        audio=n_audio > 0,
        origin=clock.origin,
        last_run=last_run,
    )


def numbered(clip: EncodedClip, first: int) -> EncodedClip:
    """Return a clip whose positions count its tokens from ``first`` on, on one axis without a clock (plain rotary)."""
    n = len(clip.tokens)
    positions = torch.arange(first, first + n, device=clip.tokens.features.device)
    tokens = dataclasses.replace(clip.tokens, position_ids=positions[None])
    return dataclasses.replace(clip, tokens=tokens, next_position=first + n, max_position=first + n - 1, origin=None)


def _spread(seconds: np.ndarray, cells: int) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(seconds)).double().repeat_interleave(cells)


def _gather(pieces: Sequence[Tensor], place: Tensor) -> Tensor:
    """Copy pieces of [video, audio] to their places, without a second whole copy."""
    out = pieces[0].new_empty((place.numel(), *pieces[0].shape[1:]))
    begin = 0
    for piece in pieces:
        out[place[begin : begin + piece.shape[0]]] = piece
        begin += piece.shape[0]
    return out


def _gather_all(pieces: Sequence[Tensor | None], place: Tensor) -> Tensor | None:
    present = [p for p in pieces if p is not None]
    return _gather(present, place) if present and len(present) == len(pieces) else None


def _gather_keys(video: Sequence[Tensor | None], audio: Sequence[Tensor | None], place: Tensor) -> Tensor | None:
    """Keys of the two towers differ in width: the narrower ones are padded with zeros (no effect on similarities)."""
    present = [k for k in (*video, *audio) if k is not None]
    if not present or len(present) != len(video) + len(audio):
        return None
    width = max(k.shape[1] for k in present)
    return _gather([torch.nn.functional.pad(k, (0, width - k.shape[1])) for k in present], place)


def _gather_levels(video: Sequence[EncodedVideo], n_audio: int, place: Tensor) -> Tensor | None:
    levels = [v.layer_features for v in video if v.layer_features is not None]
    if not levels:
        return None
    joined = torch.cat(levels, 1)
    out = joined.new_zeros(joined.shape[0], joined.shape[1] + n_audio, joined.shape[2])
    out[:, place[: joined.shape[1]]] = joined
    return out
