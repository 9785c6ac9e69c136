"""The table of a film's frames, made from its packets alone: true times, key frames, and where decoding can start.

It knows the bytes of a key frame only as far as needed to see whether decoding may start there. It decodes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

NONE = np.iinfo(np.int64).min  # a time stamp that the container does not give

# A time stamp that falls by more than this begins a new recording (joined transport streams).
RESET_S = 0.5
# A lone packet this far from both its neighbours (and fifty times the usual distance) has a damaged time stamp.
SPIKE_S = 10.0


@dataclass(frozen=True)
class FrameTable:
    """All frames that the film shows, in the order of showing.

    Frames that an edit list hides are not in it. ``ordered`` films carry a time stamp on each packet; without (raw
    h264) ``pts`` counts frames, times follow from the rate, and the k-th frame out of the decoder is row k.

    Attributes
    ----------
    pts : (n,) int64
        Strictly ascending, in units of ``time_base``; joined recordings run on.
    time_s, duration_s : (n,) float64
        True seconds in the file at which the frame appears and for which it stays.
    is_key : (n,) bool
        The container marks it as a key frame.
    packet : (n,) int64
        Place of the frame's packet among the stream's packets in file order.
    entry : (k,) int64
        Places of the packets at which decoding gives the right pictures from there on. Always starts with 0.
    packets : int
        Number of packets of the stream.
    time_base : Fraction
        Seconds per unit of ``pts``.
    shifts : tuple of (place, offset)
        From this packet on ``offset`` is to be added to the packet's own pts (joined recordings).
    ordered : bool
        Packets carry time stamps.
    """

    pts: np.ndarray
    time_s: np.ndarray
    duration_s: np.ndarray
    is_key: np.ndarray
    packet: np.ndarray
    entry: np.ndarray
    packets: int
    time_base: Fraction
    shifts: tuple[tuple[int, int], ...] = ()
    ordered: bool = True

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def end_s(self) -> float:
        """Second at which the last frame leaves the screen."""
        return float(self.time_s[-1] + self.duration_s[-1]) if len(self) else 0.0

    def rows(self, times: np.ndarray) -> np.ndarray:
        """Return the rows (m,) of frames given by their own times; ValueError if a time is no frame's."""
        wanted = np.asarray(times, np.float64)
        if wanted.ndim != 1 or not len(self):
            raise ValueError(f"expected frame times (m,), got shape {wanted.shape} for {len(self)} frames")
        right = np.clip(np.searchsorted(self.time_s, wanted), 1, max(1, len(self) - 1))
        left = right - 1
        right = np.minimum(right, len(self) - 1)
        near = np.where(np.abs(self.time_s[right] - wanted) < np.abs(self.time_s[left] - wanted), right, left)
        off = np.abs(self.time_s[near] - wanted) > 1e-6
        if off.any():
            raise ValueError(f"no frame begins at {wanted[off][0]:.6f} s")
        if (np.diff(near) <= 0).any():
            raise ValueError("frame times must ascend")
        return near


@dataclass
class PacketLog:
    """What a demuxing pass notes of one stream's packets, in file order. Columns are as long as ``pts``."""

    pts: np.ndarray
    dts: np.ndarray
    duration: np.ndarray
    is_key: np.ndarray
    is_discard: np.ndarray
    entry: np.ndarray

    def clock(self) -> np.ndarray:
        """Return the time stamps (n,) in file order that should ascend: dts if most packets have one, else pts.

        The two are not mixed: the first packets of a Matroska film have no dts, and at two frames a second their pts
        lie a second beyond the dts that follow.
        """
        return self.dts if len(self.dts) and (self.dts != NONE).mean() > 0.5 else self.pts


def spikes(values: np.ndarray, time_base: Fraction) -> np.ndarray:
    """Return a mask (n,) of lone time stamps far from both neighbours, which agree. `NONE` is skipped.

    The last one is lone if it is far behind the one before: damage to one packet must not make the film days long.
    """
    out = np.zeros(len(values), bool)
    places = np.flatnonzero(values != NONE)
    known = values[places]
    if len(known) > 4:
        steps = np.abs(np.diff(known))
        limit = max(SPIKE_S / float(time_base), 50 * float(np.median(steps)))
        lone = (steps[:-1] > limit) & (steps[1:] > limit) & (np.abs(known[2:] - known[:-2]) < limit)
        out[places[1:-1][lone]] = True
        out[places[-1]] = steps[-1] > limit and not lone[-1]
    return out


def resets(log: PacketLog, time_base: Fraction) -> np.ndarray:
    """Return the places (r,) of packets whose time stamps fall back: a new recording was joined on there."""
    clock = log.clock()
    places = np.flatnonzero((clock != NONE) & ~spikes(clock, time_base))
    # pts fall by a few frames wherever the order of showing differs from that of the file
    limit = RESET_S if clock is log.dts else SPIKE_S
    return places[1:][np.diff(clock[places]) < -limit / float(time_base)]


def build(
    log: PacketLog,
    time_base: Fraction,
    origin_s: float,
    shifts: tuple[tuple[int, int], ...],
    frame_s: float,
) -> FrameTable:
    """Make the frame table of one stream.

    Parameters
    ----------
    log : PacketLog
    time_base : Fraction
    origin_s : float
        Container second that is file second 0.
    shifts : tuple of (place, offset)
        See `FrameTable.shifts`.
    frame_s : float
        Length of a frame for streams without time stamps.
    """
    n = len(log.pts)
    ordered = bool(n) and bool((log.pts[~log.is_discard] != NONE).all())
    if ordered:
        pts = log.pts.copy()
        for place, offset in shifts:
            pts[place:] += offset
        floor = round(min(0.0, origin_s) / time_base)
        shown = ~log.is_discard & (pts >= floor) & ~spikes(log.clock(), time_base)
    else:
        pts, shown = _invented(log, time_base, frame_s), np.ones(n, bool)
        if not origin_s and n:
            origin_s = float(pts.min() * time_base)
    packet = np.flatnonzero(shown)
    if ordered:
        _, first = np.unique(pts[packet], return_index=True)
        packet = packet[first]
    value = pts[packet]
    time_s = value * float(time_base) - origin_s
    entry = log.entry.copy()
    entry[:1] = True
    return FrameTable(
        pts=value,
        time_s=time_s,
        duration_s=_durations(time_s, log.duration[packet] * float(time_base)),
        is_key=log.is_key[packet],
        packet=packet,
        entry=np.flatnonzero(entry),
        packets=n,
        time_base=time_base,
        shifts=shifts,
        ordered=ordered,
    )


def _invented(log: PacketLog, time_base: Fraction, frame_s: float) -> np.ndarray:
    """Return ascending time stamps (n,) for packets of which some or all have none: dts where known, else the rate."""
    n = len(log.pts)
    step = max(1, round(frame_s / time_base))
    known = np.where(log.pts == NONE, log.dts, log.pts)
    have = np.flatnonzero(known != NONE)
    if len(have) < 2:
        start = int(known[have[0]]) - int(have[0]) * step if len(have) else 0
        return start + np.arange(n, dtype=np.int64) * step
    values = np.sort(known[have])
    line = np.interp(np.arange(n), have, values)
    line += np.minimum(0, np.arange(n) - have[0]) * step + np.maximum(0, np.arange(n) - have[-1]) * step
    out = np.round(line).astype(np.int64)
    return np.maximum.accumulate(out - np.arange(n)) + np.arange(n)  # strictly ascending


def _durations(time_s: np.ndarray, stated_s: np.ndarray) -> np.ndarray:
    """Return how long each frame stays: until the next one; the last as long as its packet says, if that is likely."""
    if len(time_s) == 0:
        return np.zeros(0)
    gaps = np.diff(time_s)
    last = max(0.0, float(stated_s[-1]))
    if len(gaps):
        typical = float(np.median(gaps))
        if not 0 < last <= max(10 * typical, float(gaps[-1])):
            last = typical
    return np.append(gaps, last)


# --- key frames -----------------------------------------------------------------------------------------------------


def is_entry(codec: str, data: bytes, extradata: bytes | None) -> bool:
    """Tell whether decoding may start at a packet that the container marks as a key frame.

    With h264 a "key frame" may be the start of a gradual refresh: pictures are whole only many frames later. It is
    an entry if it holds an IDR picture or a recovery point with a count of 0. Other codecs' marks are believed.
    """
    if codec != "h264":
        return True
    for nal in _nal_units(data, extradata):
        kind = nal[0] & 31
        if kind == 5:
            return True
        if kind == 1:
            return False
        if kind == 6 and (count := _recovery_count(nal)) is not None:
            return count == 0
    return False


def _nal_units(data: bytes, extradata: bytes | None) -> list[bytes]:
    """Split a packet into NAL units: after start codes, or by the length prefixes of mp4. Pictures are cut short."""
    units: list[bytes] = []
    if extradata and extradata[0] == 1 and len(extradata) > 4:
        size = (extradata[4] & 3) + 1
        at = 0
        while at + size < len(data) and len(units) < 64:
            length = int.from_bytes(data[at : at + size], "big")
            if length:
                units.append(data[at + size : at + size + min(length, 256)])
            at += size + length
    else:
        at = data.find(b"\0\0\1")
        while at >= 0 and at + 3 < len(data) and len(units) < 64:
            units.append(data[at + 3 : at + 259])
            if units[-1][0] & 31 in (1, 5):
                break
            at = data.find(b"\0\0\1", at + 3)
    return units


def _recovery_count(nal: bytes) -> int | None:
    """Return recovery_frame_cnt of an SEI unit (ISO/IEC 14496-10, D.1.8), None if it holds no recovery point."""
    data = nal[1:].replace(b"\0\0\3", b"\0\0")
    at = 0
    while at + 2 <= len(data) and data[at] != 0x80:
        kind = size = 0
        while at < len(data) and data[at] == 255:
            kind, at = kind + 255, at + 1
        kind, at = kind + data[at] if at < len(data) else -1, at + 1
        while at < len(data) and data[at] == 255:
            size, at = size + 255, at + 1
        size, at = size + data[at] if at < len(data) else 0, at + 1
        if kind == 6 and at < len(data):
            bits = "".join(f"{byte:08b}" for byte in data[at : at + 4])
            zeros = len(bits) - len(bits.lstrip("0"))
            return int(bits[zeros : 2 * zeros + 1] or "1", 2) - 1
        at += size
    return None
