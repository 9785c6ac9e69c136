"""How many tokens of each modality may stay. Pure arithmetic; knows no method.

Either a number of tokens K, or a share (retention) of all tokens, both shared between picture and sound by ``split``,
or a share per modality. AVOC uses K = 10240 and 2:1 (arXiv 2606.24286, section 4.2).

SEATS and the papers beside it name pairs of shares, such as 6 % of the pictures and 35 % of the sound, which are 10 %
of all tokens at one mix only: 288 picture and 50 sound tokens in 2 s. Here such a pair is a split by rates, as in
``retention: 0.1`` with ``split: "rates 6:35"``: both rates are scaled by the one factor that makes 10 % of any mix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import Self

from omnicli.compress.base import Compressor, counts
from omnicli.errors import ConfigError
from omnicli.types import MediaTokens
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_TOKENS = 10240
"""K where neither tokens nor retention are set."""

ADAPTIVE = "adaptive"
PROPORTIONAL = "proportional"
RATES = "rates"


@dataclass(frozen=True)
class Budget:
    """Tokens that may stay of each modality."""

    video: int
    audio: int

    def __post_init__(self) -> None:
        if self.video < 0 or self.audio < 0:
            raise ConfigError(f"a budget cannot be negative ({self.video} video, {self.audio} audio tokens)")

    @property
    def total(self) -> int:
        """Tokens of both modalities."""
        return self.video + self.audio

    def to_dict(self) -> dict[str, int]:
        """Return ``{"video": n, "audio": m}``."""
        return {"video": self.video, "audio": self.audio}


def parse_ratio(split: str) -> tuple[float, float]:
    """Return the weights of ``"2:1"`` (video:audio), or of ``"rates 6:35"``.

    Raises
    ------
    ConfigError
        It is no pair of numbers, one is negative, or both are zero.
    """
    pair = split.removeprefix(f"{RATES} ") if by_rates(split) else split
    try:
        video, audio = (float(p) for p in pair.split(":"))
    except ValueError:
        known = f"VIDEO:AUDIO such as 2:1, {RATES} VIDEO:AUDIO such as {RATES} 6:35, {PROPORTIONAL} or {ADAPTIVE}"
        raise ConfigError(f"must be {known}, not {split!r}") from None
    if not (math.isfinite(video) and math.isfinite(audio) and video >= 0 and audio >= 0 and video + audio > 0):
        raise ConfigError(f"needs two weights that are not negative and not both 0, not {split!r}")
    return video, audio


def by_rates(split: str) -> bool:
    """Tell whether a split's weights are those of a token of each modality (``rates 6:35``), not of the modality."""
    return split.startswith(f"{RATES} ")


def largest_remainder(total: int, weights: Sequence[float]) -> list[int]:
    """Return whole shares of ``total`` in the ratio of ``weights``; they add up exactly, ties go to the first.

    Raises
    ------
    ValueError
        A weight is negative or all are zero.
    """
    mass = math.fsum(weights)
    if mass <= 0 or min(weights) < 0:
        raise ValueError("weights must not be negative and not all zero")
    exact = [total * w / mass for w in weights]
    shares = [math.floor(x) for x in exact]
    order = sorted(range(len(weights)), key=lambda i: (shares[i] - exact[i], i))
    for i in order[: total - sum(shares)]:
        shares[i] += 1
    return shares


def split_tokens(k: int, n_video: int, n_audio: int, weights: tuple[float, float]) -> Budget:
    """Share ``k`` tokens between the modalities that are there.

    A modality with fewer tokens than its share gives the rest to the other, a weight of 0 gives a modality only what
    the other cannot use, and otherwise each modality that is there gets at least one token if ``k`` is 2 or more.

    Parameters
    ----------
    k : int
        Tokens to keep; more than there are means all.
    n_video, n_audio : int
        Tokens there are.
    weights : (float, float)
        Video and audio weight.

    Raises
    ------
    ConfigError
        ``k`` is not positive.
    """
    if k < 1:
        raise ConfigError(f"at least 1 token must stay, not {k}")
    if k >= n_video + n_audio:
        return Budget(n_video, n_audio)
    video, audio = largest_remainder(k, weights)
    if k >= 2 and n_video and n_audio and min(weights) > 0:
        video = min(max(video, 1), k - 1)
        audio = k - video
    if video > n_video:
        video, audio = n_video, k - n_video
    elif audio > n_audio:
        video, audio = k - n_audio, n_audio
    return Budget(video, audio)


def share_of(retention: float, n: int) -> int:
    """Return ``retention`` of ``n`` tokens, rounded to the nearest (halves up), at least 1 unless either is 0."""
    if retention <= 0 or n == 0:
        return 0
    return min(n, max(1, math.floor(retention * n + 0.5)))


def spread(total: int, sizes: Tensor, weights: Tensor | None = None) -> Tensor:
    """Share ``total`` tokens among groups in closed form: water-filling, exact, never above a group's size.

    Every group gets ``min(size, level x weight)`` with the one level at which the shares add up; then whole tokens by
    largest remainder, ties to the first group. With ``total`` at least the number of groups, none is left without.

    Parameters
    ----------
    total : int
        Tokens to share; more than there are means all.
    sizes : Tensor (G,) int64
        Tokens of each group.
    weights : Tensor (G,)
        Not negative; None: the sizes. Where all weights left are 0, the sizes serve.

    Returns
    -------
    Tensor (G,) int64
        On the CPU; its sum is ``min(total, sizes.sum())``.
    """
    size = sizes.to("cpu", torch.int64)
    total = max(0, min(total, int(size.sum())))
    base = torch.zeros_like(size)
    if total >= size.numel():
        base = size.clamp(max=1)
    room, left = size - base, total - int(base.sum())
    mass = (size if weights is None else weights.to("cpu")).double()
    shares = _fill(float(left), room.double(), mass)
    if float(shares.sum()) < left - 0.5:  # groups of weight 0 take what the others cannot
        shares = shares + _fill(left - float(shares.sum()), (room - shares).clamp_min(0), size.double())
    whole = torch.minimum(shares.floor().long(), room)
    short = left - int(whole.sum())
    order = torch.where(whole < room, whole - shares, torch.inf).argsort(stable=True)
    while short > 0:  # once; again only where rounding left more than one token per group with room
        chosen = order[:short]
        chosen = chosen[whole[chosen] < room[chosen]]
        whole[chosen] += 1
        short -= chosen.numel()
    return base + whole


def _fill(total: float, room: Tensor, weight: Tensor) -> Tensor:
    """Return ``min(room, level x weight)`` (G,) float64 adding up to ``total`` or, if that is too much, to the room."""
    level = torch.where(weight > 0, room / weight.clamp_min(1e-300), torch.inf)
    order = level.argsort(stable=True)
    level, filled, mass = level[order], room[order].cumsum(0), weight[order]
    after = mass.flip(0).cumsum(0).flip(0)  # weight of this group and all that fill later
    need = (filled - room[order] + torch.where(level.isfinite(), level * after, torch.inf)) >= total
    if not bool(need.any()):
        return torch.where(weight > 0, room, torch.zeros_like(room))
    at = int(need.long().argmax())
    if float(after[at]) <= 0:
        return torch.where(weight > 0, room, torch.zeros_like(room))
    height = (total - float(filled[at] - room[order][at])) / float(after[at])
    return torch.minimum(room, height * weight)


def intact(budget: Budget, n_video: int, n_audio: int, floor: float = 0.05) -> Budget:
    """Give sound all its tokens and pictures the rest of ``budget``, but pictures at least ``floor`` of theirs.

    What the picture-only baselines do to stay comparable (SEATS, appendix B.2). The total stays.
    """
    least = min(n_video, budget.total, math.ceil(floor * n_video))
    video = min(n_video, max(least, budget.total - n_audio))
    return Budget(video, min(n_audio, budget.total - video))


@dataclass(frozen=True)
class Budgeted(Compressor):
    """A method with a token budget.

    Parameters
    ----------
    tokens : int or None
        Tokens that stay, of both modalities together. 10240 where no other budget is set.
    split : str
        How they are shared: ``VIDEO:AUDIO`` such as ``2:1``, whatever there is of each; ``rates VIDEO:AUDIO`` such as
        ``rates 6:35``, what a token of each weighs: the shares of the modalities that stay are in this ratio, as far
        as there are tokens; ``proportional``, which is ``rates 1:1``; or ``adaptive``: by how far each modality's best
        scores stand out (methods with scores).
    retention : float or None
        Instead of tokens: the share of all tokens that stays, above 0 and at most 1; shared by ``split`` as well.
    retention_video, retention_audio : float or None
        Instead of these and ``split``: the share of each modality that stays, 0 to 1. Where only one is set, the other
        stays whole.
    """

    tokens: int | None = None
    split: str = "2:1"
    retention: float | None = None
    retention_video: float | None = None
    retention_audio: float | None = None

    has_scores: ClassVar[bool] = False
    exclusive_fields: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("tokens",),
        ("retention",),
        ("retention_video", "retention_audio"),
    )
    acts_beside: ClassVar[Mapping[str, tuple[str, ...]]] = {"split": ("tokens", "retention")}

    @classmethod
    def with_retention(cls, retention: float, **fields: Any) -> Self:
        """Return the method with this share of all tokens as its budget."""
        return cls(**{"retention": retention, **fields})

    def problems(self) -> list[str]:
        """Return what is wrong with the budget."""
        found = super().problems()
        named = [group for group in self.exclusive_fields if any(getattr(self, name) is not None for name in group)]
        if len(named) > 1:
            given = ", ".join(n for group in named for n in group if getattr(self, n) is not None)
            found.append(f"tokens: {given} contradict each other; set one budget")
        if self.tokens is not None and self.tokens < 1:
            found.append(f"tokens: must be at least 1, not {self.tokens}")
        if self.retention is not None and not 0 < self.retention <= 1:
            found.append(f"retention: must be above 0 and at most 1, not {self.retention:g}")
        for name in ("retention_video", "retention_audio"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                found.append(f"{name}: must be between 0 and 1, not {value:g}")
        if self.retention_video == 0 and self.retention_audio == 0:
            found.append("retention_video: 0 of both modalities leaves nothing")
        if self.split == ADAPTIVE:
            if not self.has_scores:
                found.append(f"split: {self.name} has no scores to share the budget by; use a ratio or {PROPORTIONAL}")
        elif self.split != PROPORTIONAL:
            try:
                parse_ratio(self.split)
            except ConfigError as error:
                found.append(f"split: {error}")
        return found

    def budget(self, tokens: MediaTokens, standings: tuple[float, float] | None = None) -> Budget:
        """Return how many tokens of each modality stay.

        Parameters
        ----------
        tokens : MediaTokens
            All tokens of the clip.
        standings : (float, float)
            How far video's and audio's best scores stand out (`ops.standing`), for ``split: adaptive``.
            None: not known yet; shared by what is there.

        Raises
        ------
        ConfigError
            The settings leave nothing of what the clip holds.
        """
        have = counts(tokens)
        return self.budget_of(have["video"], have["audio"], standings)

    def budget_of(
        self,
        n_video: int,
        n_audio: int,
        standings: tuple[float, float] | None = None,
        held: tuple[int, int] | None = None,
    ) -> Budget:
        """Return the budget of a clip of so many picture and sound tokens, of which ``held`` are at hand (None: all).

        See `budget`.
        """
        budget = self.shares_of(n_video, n_audio, standings, held)
        if budget.total == 0 and n_video + n_audio > 0:
            raise ConfigError("retention 0 of the only modality in this file leaves nothing; raise it")
        return budget

    def shares_of(
        self,
        n_video: int,
        n_audio: int,
        standings: tuple[float, float] | None = None,
        held: tuple[int, int] | None = None,
    ) -> Budget:
        """Return the same where it may be nothing, as in the middle of a clip."""
        if n_video + n_audio == 0:
            return Budget(0, 0)
        if (separate := self._separate(n_video, n_audio)) is not None:
            return separate
        have = (n_video, n_audio) if held is None else held
        return split_tokens(self.total_of(n_video, n_audio), *have, self._weights(n_video, n_audio, standings))

    def total_of(self, n_video: int, n_audio: int) -> int:
        """Return how many tokens of both modalities together may stay."""
        if (separate := self._separate(n_video, n_audio)) is not None:
            return separate.total
        if self.retention is not None:
            return share_of(self.retention, n_video + n_audio)
        return DEFAULT_TOKENS if self.tokens is None else self.tokens

    def _separate(self, n_video: int, n_audio: int) -> Budget | None:
        """Return the budget where shares are set by modality."""
        given = (self.retention_video, self.retention_audio)
        if given == (None, None):
            return None
        return Budget(*(share_of(1.0 if r is None else r, n) for r, n in zip(given, (n_video, n_audio), strict=True)))

    def keeps_everything(self) -> bool:
        """Return whether the settings keep every token of any clip."""
        shares = (self.retention, self.retention_video, self.retention_audio)
        return any(s is not None for s in shares) and all(s is None or s >= 1 for s in shares)

    def nominal(self, n_video: int, n_audio: int) -> tuple[float, float] | None:
        """Return the budget as shares."""
        budget = self.budget_of(n_video, n_audio)
        return budget.video / max(1, n_video), budget.audio / max(1, n_audio)

    def idle(self) -> dict[str, str]:
        """Return the fields that cannot act beside the others: the split, where each modality has a share."""
        found = super().idle()
        if (self.retention_video, self.retention_audio) != (None, None):
            found["split"] = (
                "retention_video and retention_audio say what stays of each; set retention instead to share it"
            )
        return found

    def _weights(self, n_video: int, n_audio: int, standings: tuple[float, float] | None) -> tuple[float, float]:
        if self.split == ADAPTIVE and standings is not None and sum(standings) > 0:
            return standings
        if self.split in (ADAPTIVE, PROPORTIONAL):
            return float(n_video), float(n_audio)
        video, audio = parse_ratio(self.split)
        if not by_rates(self.split):
            return video, audio
        weights = video * n_video, audio * n_audio
        return weights if sum(weights) > 0 else (float(n_video), float(n_audio))


__all__ = [
    "DEFAULT_TOKENS",
    "Budget",
    "Budgeted",
    "by_rates",
    "intact",
    "largest_remainder",
    "parse_ratio",
    "share_of",
    "split_tokens",
    "spread",
]
