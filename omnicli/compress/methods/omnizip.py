"""OmniZip: keep the sound that its encoder attends to, and pictures where sound was kept.

Source: OmniZip (arXiv 2511.14582) and its released code. In order: the most salient sound tokens of the clip stay;
evenly placed anchors among the others take up a few of the rest each, those nearest to what is seen; the share of
sound kept in a stretch of time sets how much of its pictures stays; inside it, frames lose in turn what is redundant in
space and what repeats the frame before.

Not reproduced: the released saliency of sound for Qwen2.5-Omni, which is attention over the whole clip that its encoder
never computes (it attends inside 2-second windows) and needs tens of gigabytes for five minutes. Saliency here is the
attention that each token receives inside its own window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from omnicli.compress.base import everything
from omnicli.compress.budget import Budget, spread
from omnicli.compress.groups import Groups, best, best_in_groups, counterparts, frames, group, runs, windows
from omnicli.compress.ops import CHUNK_BYTES, SAME, distances, finite, row_chunks, unit
from omnicli.compress.published import Published
from omnicli.errors import ModelError
from omnicli.types import MediaTokens, Modality, Query, Selection
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_EPS = 1e-6  # what the released code adds to a token's length
_FRAMES_BYTES = 8 * CHUNK_BYTES
_QUERIES, _KEYS = 2048, 4096  # rows and columns of one block of similarities


@dataclass(frozen=True)
class OmniZip(Published):
    """Keep the most salient sound, merge a little of the rest into anchors, and keep pictures where sound was kept.

    Anchors count as kept tokens, so the share of dominant sound tokens is the share of sound that stays less
    ``anchors``.

    ``official`` follows the newer of the two released versions. Groups are runs of picture tokens and the run of sound
    with the same number; settings are shares that stay, and its shares discarded are 1 minus them. Its rule cannot keep
    less than 0.25 nor more than 0.65 of the pictures in a run that has sound, and may miss the total. A modality told
    to stay whole does (the released code would still drop 0.35 of the pictures). Silent films, which stop that code
    with an error, have their pictures thinned evenly. At least one token of each thinned frame stays.

    Parameters
    ----------
    anchors : float
        Anchors as a share of all sound tokens, below 1.
    group : int
        Most tokens merged into one anchor; 0: no anchors.
    discard_intercept, discard_slope : float
        A group that keeps the share r of its sound is to discard ``discard_intercept - discard_slope * r`` of its
        pictures, before all groups are scaled to meet the total.
    discard_min, discard_max : float
        Bounds of that share, 0 to 1.
    neighbours : int
        Nearest tokens in the frame whose mean distance is a token's density.
    """

    anchors: float = 0.05
    group: int = 3
    discard_intercept: float = 0.75
    discard_slope: float = 0.40
    discard_min: float = 0.35
    discard_max: float = 0.75
    neighbours: int = 5

    needs: ClassVar[frozenset[str]] = frozenset({"saliency"})
    criterion: ClassVar[str] = "sound by encoder saliency; pictures by density and change, guided by the sound kept"
    paper: ClassVar[str] = "OmniZip, arXiv 2511.14582"
    clean_differs: ClassVar[str] = (
        "Meets the budget of each modality exactly, also below a quarter of the pictures, where the released clipping "
        "misses it; sound guides the pictures of its own 2-second window of true time, and windows without sound get "
        "an even share. Anchors cover all of the sound left over instead of its beginning, and what they take up is "
        "ranked by the pictures of its own window, not of the whole film, which would cost the square of the length. "
        "Saliency of sound is attention inside the encoder's windows; the released map over the whole clip is not "
        "reproduced."
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        found = super().problems()
        if not 0 <= self.anchors < 1:
            found.append(f"anchors: must be at least 0 and below 1, not {self.anchors:g}")
        if self.group < 0:
            found.append(f"group: must not be negative, not {self.group}")
        if not 0 <= self.discard_min <= self.discard_max <= 1:
            found.append(
                "discard_min: 0 <= discard_min <= discard_max <= 1 must hold, "
                f"not {self.discard_min:g} and {self.discard_max:g}"
            )
        if self.neighbours < 1:
            found.append(f"neighbours: must be at least 1, not {self.neighbours}")
        return found

    def compress(self, tokens: MediaTokens, query: Query) -> Selection:
        """Choose sound, then pictures; the question plays no part.

        Raises
        ------
        ModelError
            Sound has to be chosen and the model gives no encoder saliency; or embeddings are not finite.
        """
        plan = self.plan(tokens)
        if plan.total == len(tokens):
            return everything(tokens)
        official = self.mode == "official"
        video, audio = self.ratios(tokens)
        n_audio = tokens.count(Modality.AUDIO)
        dominant, anchors = self._sizes(n_audio, audio) if official else self._split(n_audio, plan.audio)
        sound, anchor_rows = self._sound(tokens, dominant, anchors)
        pictures = self._pictures_as_released(tokens, sound, video) if official else self._pictures(tokens, sound, plan)
        indices = torch.cat([sound, pictures]).sort().values
        merged = self._merged(tokens, sound, anchor_rows)
        report = {
            "budget": {"video": pictures.numel(), "audio": sound.numel()},
            "anchors": anchor_rows.numel(),
        }
        if merged is None:
            return Selection(indices, report=report)
        features = tokens.features[indices]
        features[torch.searchsorted(indices, anchor_rows)] = merged
        return Selection(indices, features, report)

    def _split(self, n: int, k: int) -> tuple[int, int]:
        """Return dominant tokens and anchors of ``k`` of ``n``; they add up to ``k``, at least one is dominant."""
        if k >= n or self.group == 0:
            return k, 0
        anchors = min(int(self.anchors * n + 0.5), max(0, k - 1))
        return k - anchors, anchors

    def _sizes(self, n: int, ratio: float) -> tuple[int, int]:
        """Return dominant tokens and anchors of ``n`` as the released code rounds them."""
        if ratio >= 1 or ratio <= 0:
            return (n if ratio >= 1 else 0), 0
        anchors = round(self.anchors * n) if self.group else 0
        share = ratio - self.anchors if self.group else ratio
        dominant = min(n, max(0, round(share * n)))
        anchors = min(anchors, n - dominant)
        return (dominant, anchors) if dominant + anchors else (min(1, n), 0)

    def _sound(self, tokens: MediaTokens, dominant: int, anchors: int) -> tuple[Tensor, Tensor]:
        """Return the ascending indices of the sound that stays, and of the anchors among it."""
        rows = tokens.indices(Modality.AUDIO)
        none = rows[:0]
        if dominant == rows.numel():
            return rows, none
        if dominant + anchors == 0:
            return none, none
        if tokens.saliency is None:
            raise ModelError(f"{self.name}: this model's encoders give no saliency")
        left = torch.ones(rows.numel(), dtype=torch.bool, device=rows.device)
        left[best(tokens.saliency[rows].float(), dominant)] = False
        pool = rows[left]
        if anchors == 0:
            return rows[~left], none
        place = torch.arange(anchors, device=rows.device)
        if self.mode == "official":  # leaves the end without anchors where the step is rounded down
            chosen = pool[place * max(1, pool.numel() // anchors)]
        else:
            chosen = pool[(2 * place + 1) * pool.numel() // (2 * anchors)]
        return torch.cat([rows[~left], chosen]).sort().values, chosen

    def _merged(self, tokens: MediaTokens, sound: Tensor, anchors: Tensor) -> Tensor | None:
        """Return the anchors (a, D) with what they take up, in the model's dtype; None: nothing is merged."""
        x = tokens.features
        gone = torch.ones(len(tokens), dtype=torch.bool, device=x.device)
        gone[sound] = False
        rows = tokens.indices(Modality.AUDIO)
        rows = rows[gone[rows]]
        if anchors.numel() == 0 or rows.numel() == 0:
            return None
        seen = tokens.indices(Modality.VIDEO)
        if seen.numel() == 0 and tokens.saliency is not None:
            score = tokens.saliency[rows].float()
        elif self.mode == "official":
            score, _ = nearest(x, rows, seen)
        else:
            score = seen_meanwhile(tokens, rows)
        _, home = nearest(x, rows, anchors)
        order = home.argsort(stable=True)
        rows, score, home = rows[order], score[order], home[order]
        taken = group(torch.arange(rows.numel(), device=rows.device), home)
        places = best_in_groups(score, taken, taken.sizes.clamp(max=self.group))
        taken = group(places, home[places])
        into = home[places[taken.starts]]
        # A table with a row per anchor instead of scattered sums: those depend on the order of threads on a GPU.
        slot = torch.arange(int(taken.sizes.max()), device=rows.device)
        there = slot < taken.sizes[:, None]
        table = places[(taken.starts[:, None] + slot).clamp(max=places.numel() - 1)]
        weight = score[table].masked_fill(~there, -torch.inf).softmax(1)
        out = x[anchors]
        for part in row_chunks(into.numel(), slot.numel() * x.shape[1]):
            mean = (weight[part, :, None] * x[rows[table[part]]].float()).sum(1)
            out[into[part]] = ((x[anchors[into[part]]].float() + mean) / 2).to(x.dtype)
        return out

    def _pictures(self, tokens: MediaTokens, sound: Tensor, plan: Budget) -> Tensor:
        """Return the ascending indices of exactly the planned picture tokens, by windows of true time."""
        pictures, blocks = frames(tokens), windows(tokens, Modality.VIDEO)
        n = blocks.rows.numel()
        if plan.video == n:
            return blocks.rows
        if plan.video == 0:
            return blocks.rows[:0]
        _, window = torch.unique(tokens.window, return_inverse=True)
        many = int(window.max()) + 1
        own = window[blocks.rows[blocks.starts]]
        heard = torch.bincount(window[tokens.indices(Modality.AUDIO)], minlength=many)[own]
        kept = torch.bincount(window[sound], minlength=many)[own]
        keep = 1 - self._discard(kept.double() / heard.clamp_min(1))
        guided, size = heard > 0, blocks.sizes.double()
        mean = (keep * size)[guided].sum() / size[guided].sum().clamp_min(1)
        # Relative to the guided windows' mean, so that a window without sound gets the share of an average one.
        relative = torch.where(guided & (mean > 0), keep / mean.clamp_min(1e-12), torch.ones_like(keep))
        share = spread(plan.video, blocks.sizes, relative * size).to(size.device)
        block = blocks.index[pictures.starts]
        before = pictures.starts - blocks.starts[block]
        # Differences of a running total rounded up: whole tokens that add up to the window's share.
        upto = torch.stack([before, before + pictures.sizes]) * share[block]
        first, last = -(-upto // blocks.sizes[block])
        order = torch.arange(len(pictures), device=block.device)
        turn = order - group(order, block).starts[block]
        return self._thinned(tokens, pictures, turn, last - first)

    def _pictures_as_released(self, tokens: MediaTokens, sound: Tensor, ratio: float) -> Tensor:
        """Return the ascending indices of the picture tokens that the released rule keeps."""
        rows = tokens.indices(Modality.VIDEO)
        if ratio >= 1 or rows.numel() == 0:
            return rows
        cells = int(frames(tokens).sizes[0])
        seen, heard = runs(tokens, Modality.VIDEO), runs(tokens, Modality.AUDIO)
        kept = torch.zeros(len(tokens), dtype=torch.bool, device=rows.device)
        kept[sound] = True
        retained = torch.bincount(heard.index[kept[heard.rows]], minlength=len(heard)).double() / heard.sizes
        guided = min(len(seen), len(heard))
        discard = torch.full((len(seen),), 1 - ratio, dtype=torch.float64)
        wanted = self._discard(retained[:guided].cpu())
        discard[:guided] = self._renormalised(wanted, seen.sizes[:guided].cpu(), 1 - ratio)
        quota = (cells * (1 - discard)).long().to(rows.device)
        quota = torch.where(discard.to(rows.device) < 1, quota.clamp_min(1), quota)
        place = torch.arange(rows.numel(), device=rows.device) - seen.starts[seen.index]
        turn = place // cells
        short = (seen.sizes < cells)[seen.index]
        whole = turn < (seen.sizes // cells)[seen.index]  # what is left of a run after its last frame is dropped
        run, turn = seen.index[whole], turn[whole]
        pieces = group(rows[whole], run * rows.numel() + turn)
        first = pieces.starts
        chosen = self._thinned(tokens, pieces, turn[first], quota[run[first]], by_slot=True)
        return torch.cat([rows[short], chosen]).sort().values

    def _discard(self, retained: Tensor) -> Tensor:
        wanted = self.discard_intercept - self.discard_slope * retained
        return wanted.clamp(self.discard_min, self.discard_max)

    def _renormalised(self, discard: Tensor, sizes: Tensor, target: float) -> Tensor:
        """Return shares discarded (G,) float64 moved towards the mean ``target``, in the released code's two steps.

        The lowest and the highest group stay as they are. The others are scaled, clipped, shifted by one amount and
        clipped again; whatever is missing then stays missing.
        """
        if discard.numel() <= 2:
            return discard
        size = sizes.double()
        goal = target * float(size.sum())
        if abs(float((size * discard).sum()) - goal) <= 1e-3:
            return discard
        free = torch.ones_like(discard, dtype=torch.bool)
        free[int(discard.argmin())] = free[int(discard.argmax())] = False
        out, fixed = discard.clone(), float((size * discard)[~free].sum())
        loose = float((size * discard)[free].sum())
        if loose > 0:
            out[free] = out[free] * ((goal - fixed) / loose)
        out[free] = out[free].clamp(self.discard_min, self.discard_max)
        out[free] += (goal - float((size * out).sum())) / float(size[free].sum())
        out[free] = out[free].clamp(self.discard_min, self.discard_max)
        return out

    def _thinned(
        self, tokens: MediaTokens, pictures: Groups, turn: Tensor, quota: Tensor, *, by_slot: bool = False
    ) -> Tensor:
        """Return the ascending indices of ``quota`` (F,) tokens of each frame.

        Frames with an odd ``turn`` (F,) lose what resembles the frame before them, if it has the same cells (or, with
        ``by_slot``, whatever its cells), the others what is redundant inside them.
        """
        rows = pictures.rows
        frame = torch.arange(len(pictures), device=rows.device)
        before = torch.where(turn % 2 == 1, frame - 1, -1)
        if by_slot:
            other = torch.arange(rows.numel(), device=rows.device) - pictures.sizes[pictures.index]
            other = torch.where(before[pictures.index] >= 0, other, -1)
        else:
            other = counterparts(tokens, pictures, before)
        score = torch.zeros(rows.numel(), device=rows.device)
        temporal = torch.nonzero(other >= 0).flatten()
        score[temporal] = distances(tokens.features, rows[temporal], rows[other[temporal]])
        width, clean = tokens.features.shape[1], self.mode == "clean"
        spatial = other[pictures.starts] < 0
        for same_size, places in pictures.by_size():
            inside = places[spatial[same_size]]
            cells = inside.shape[1]
            for part in row_chunks(len(inside), cells * max(width, 4 * cells), limit=_FRAMES_BYTES):
                x = unit(tokens.features[rows[inside[part]]], _EPS)
                score[inside[part]] = density_peaks(x, self.neighbours, ties_by_index=clean)
        finite(score)
        return rows[best_in_groups(score, pictures, quota)]


def density_peaks(x: Tensor, neighbours: int, *, ties_by_index: bool = True) -> Tensor:
    """Return how much each token is the centre of a cluster of its frame: density x distance to any denser token.

    Density is exp(-mean cosine distance to the nearest ``neighbours`` others); the densest token's distance is the one
    to the token farthest from it.

    Parameters
    ----------
    x : Tensor (B, n, D) float32
        Tokens of B frames, of length 1.
    neighbours : int
        Fewer where a frame has fewer others.
    ties_by_index : bool
        Whether the first of equally dense tokens counts as the denser; else none does, and all copies of one token in
        the densest spot count as peaks.

    Returns
    -------
    Tensor (B, n) float32
    """
    n = x.shape[1]
    if n == 1:
        return torch.ones(x.shape[:2], device=x.device)
    distance = 1 - x @ x.transpose(1, 2)
    distance = torch.where(distance < SAME, torch.zeros_like(distance), distance)
    own = torch.eye(n, dtype=torch.bool, device=x.device)
    distance = distance.masked_fill(own, torch.inf)
    nearest_few = distance.topk(min(neighbours, n - 1), dim=2, largest=False).values
    density = (-nearest_few.mean(2)).exp()
    denser = density[:, None, :] > density[:, :, None]
    if ties_by_index:
        earlier = torch.ones(n, n, dtype=torch.bool, device=x.device).tril(-1)
        denser |= (density[:, None, :] == density[:, :, None]) & earlier
    farthest = distance.masked_fill(own, -torch.inf).amax(2)
    apart = distance.masked_fill(~denser, torch.inf).amin(2)
    return density * torch.where(denser.any(2), apart, farthest)


def nearest(features: Tensor, rows: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each of ``rows`` (n,) its largest cosine to any of ``among`` (m,), and which that is; ties: the first.

    In blocks: n x m is never held.

    Returns
    -------
    cosine : Tensor (n,) float32
    place : Tensor (n,) int64
        Into ``among``.

    Raises
    ------
    ModelError
        Embeddings are not finite.
    """
    top = torch.full((rows.numel(),), -torch.inf, device=features.device)
    place = torch.zeros(rows.numel(), dtype=torch.int64, device=features.device)
    for part in _blocks(rows.numel(), _QUERIES):
        x = unit(features[rows[part]], _EPS)
        for block in _blocks(among.numel(), _KEYS):
            value, at = (x @ unit(features[among[block]], _EPS).T).max(1)
            better = value > top[part]
            top[part] = torch.where(better, value, top[part])
            place[part] = torch.where(better, at + block.start, place[part])
    finite(top)
    return top, place


def seen_meanwhile(tokens: MediaTokens, rows: Tensor) -> Tensor:
    """Return the largest cosine (n,) float32 of the sound tokens ``rows`` (n,) to pictures of their own window.

    The last window before that has pictures, or else the first, stands in for one without. The clip must hold
    pictures, and ``rows`` must be ascending.

    Raises
    ------
    ModelError
        Embeddings are not finite.
    """
    x, blocks = tokens.features, windows(tokens, Modality.VIDEO)
    own = tokens.window[blocks.rows[blocks.starts]]
    block = (torch.searchsorted(own, tokens.window[rows], right=True) - 1).clamp_min(0)
    heard = group(rows, block)
    block = block[heard.starts]
    out = torch.zeros(rows.numel(), device=x.device)
    shapes = torch.stack([heard.sizes, blocks.sizes[block]], 1)
    for sounds, cells in torch.unique(shapes, dim=0).tolist():
        same = torch.nonzero((shapes == shapes.new_tensor([sounds, cells])).all(1)).flatten()
        places = heard.starts[same, None] + torch.arange(sounds, device=x.device)
        seen = blocks.starts[block[same], None] + torch.arange(cells, device=x.device)
        for part in row_chunks(len(same), (sounds + cells) * x.shape[1] + sounds * cells, limit=_FRAMES_BYTES):
            pictures = unit(x[blocks.rows[seen[part]]], _EPS)
            cosine = unit(x[rows[places[part]]], _EPS) @ pictures.transpose(1, 2)
            out[places[part]] = cosine.amax(2)
    finite(out)
    return out


def _blocks(n: int, size: int) -> Iterator[slice]:
    for begin in range(0, n, size):
        yield slice(begin, min(begin + size, n))


__all__ = ["OmniZip", "density_peaks", "nearest", "seen_meanwhile"]
