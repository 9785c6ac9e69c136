"""AVOC's choice on blocks as they arrive, holding no more than the budget and a few blocks.

Source: "AVOC" (arXiv 2606.24286), section 3. The paper names streaming as a limitation and gives no algorithm; this one
is ours:

- Scores. A block's raw relevance and importance need nothing but the block and the question. Their means and
  deviations run along (Welford's recurrence), and a token held keeps its raw values, so its z-scores are always those
  of all that has been seen; at the end they are the whole clip's.
- Diversity. A greedy choice among all tokens has one property that survives streaming: a token's marginal is its gain
  less its largest similarity to a token *of larger marginal* within the radius. The tokens of the last blocks within
  the radius are live: their mutual similarities are kept, and with every block their marginals are solved anew. What
  a block that leaves took from those that stay is frozen; so each token has met all blocks within the radius when its
  own penalty freezes. Similarities are centred on the running mean of the modality.
- Room. Each modality holds its tokens of largest marginal, `SLACK` times as many as its share of the budget so far
  but no more than the whole budget, so that what early and still uncertain statistics misjudge can still be chosen in
  the end. Tokens that cannot come into the room are let go before anything is compared.

- `split: adaptive`. How far relevances stand out is asked of an even sample of each modality's (up to `running.SAMPLE`
  tokens it is all of them). As nobody knows the shares before the end, each modality has room for the whole budget.

What differs from choosing with the whole clip in view: tokens let go early under early statistics, and penalties frozen
under them.

The budget is known beforehand where it is a number of tokens. A share (retention) is one of the tokens counted so far,
so that the room grows with the clip; and where a modality stops early, it may have let go more than it would have had
to, and the other one gets the rest: the total is met all the same.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from omnicli.compress.base import MODALITIES
from omnicli.compress.budget import ADAPTIVE, Budget
from omnicli.compress.groups import best
from omnicli.compress.methods.avoc import Avoc, Projections, relevance
from omnicli.compress.ops import finite, standing
from omnicli.compress.running import Moments, Sample
from omnicli.errors import ConfigError
from omnicli.types import MediaTokens
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

LIVE = 4096
"""Most tokens of a modality whose mutual similarities are kept: 64 MiB. Beyond it the oldest freeze early."""

SLACK = 1.5
"""Tokens that are held for each that may stay. What a share of the tokens so far keeps of the first blocks is little,
and chosen under their own statistics: on generated clips at a tenth, 0.79 of the tokens are AVOC's with 1 and 0.94 with
1.5; where what is asked about comes ever more rarely, 0.64 and 0.81. A number of tokens hardly needs it."""


class Stream:
    """A choice among tokens that arrive block by block.

    Tokens are numbered in the order in which they are pushed, from 0. After each push the caller may forget what the
    push returned; `finish` names only tokens that were never returned.

    Parameters
    ----------
    settings : Avoc
        Budget, diversity and radius.
    question : Tensor (n, d)
        Embeddings of the question's own tokens.
    projections : Projections or None
        Of the two scores; None: identity.

    Attributes
    ----------
    seen : (int, int)
        Video and audio tokens that have come.
    peak : int
        Most tokens that were held at once, a block just come included.
    """

    def __init__(self, settings: Avoc, question: Tensor, projections: Projections | None = None) -> None:
        self.settings, self.question, self.projections = settings, question, projections
        self.seen, self.peak = (0, 0), 0
        self._across: Projections | None = None
        if projections is not None:
            across = (projections.importance_w_q, projections.importance_w_k)
            self._across = Projections(*across, *across)
        self._last: int | None = None
        empty = question.new_zeros(0, question.shape[1], dtype=torch.float32)
        self._sides = tuple(_Side(settings, empty) for _ in MODALITIES)
        self._adaptive = settings.split == ADAPTIVE

    def push(self, tokens: MediaTokens) -> Tensor:
        """Take in one or more whole blocks and return the numbers (n,) of the tokens that were let go.

        Raises
        ------
        ValueError
            A block does not come after all earlier ones.
        ModelError
            Embeddings are not finite.
        """
        lost = [tokens.window.new_zeros(0)]
        for part in _blocks(tokens.window):
            block = int(tokens.window[part.start])
            if self._last is not None and block <= self._last:
                raise ValueError(f"block {block} came after block {self._last}")
            self._last = block
            lost += self._block(block, tokens.features[part], tokens.modality[part])
        return torch.cat(lost)

    def _block(self, block: int, features: Tensor, modality: Tensor) -> list[Tensor]:
        rows = [torch.nonzero(modality == kind).flatten() for kind, _ in MODALITIES]
        features_of = [features[some].float() for some in rows]
        first, come = self.seen[0] + self.seen[1], []
        for own, other, some in zip(features_of, reversed(features_of), rows, strict=True):
            to_question = finite(relevance(own, self.question, self.projections))
            to_other = finite(relevance(own, other, self._across))  # the same attention, asked by the other modality
            defined = torch.full_like(some, len(other) > 0, dtype=torch.bool)
            come.append(_Tokens.of(first + some, block, to_question, to_other, defined))
        self.seen = (self.seen[0] + len(come[0]), self.seen[1] + len(come[1]))
        self.peak = max(self.peak, sum(self.held) + len(features))
        for side, new, own in zip(self._sides, come, features_of, strict=True):
            if len(new):
                side.observe(new, own)
                if self._adaptive:
                    side.sample.add(new.number, new.relevance)
        candidates = (self.held[0] + len(come[0]), self.held[1] + len(come[1]))
        most, lost = self.settings.total_of(*self.seen), []
        rooms = [most, most]
        if not self._adaptive:
            shares = self.settings.shares_of(*self.seen, None, candidates)
            rooms = [min(most, math.ceil(SLACK * share)) for share in (shares.video, shares.audio)]
        for side, new, own, room in zip(self._sides, come, features_of, rooms, strict=True):
            if len(new):
                lost.append(side.push(new, own, room))
        return lost

    @property
    def held(self) -> tuple[int, int]:
        """Video and audio tokens that have not been let go."""
        return len(self._sides[0].tokens), len(self._sides[1].tokens)

    def budget(self) -> Budget:
        """Return how many tokens of each modality are chosen if nothing more comes.

        Raises
        ------
        ConfigError
            The settings leave nothing of what came.
        """
        video, audio = (standing(side.sample.values) for side in self._sides)
        standings = (video, audio) if self._adaptive else None
        return self.settings.budget_of(*self.seen, standings, self.held)

    def finish(self) -> Tensor:
        """Return the ascending numbers (K,) int64 of the tokens chosen of all that came. More may be pushed after."""
        budget = self.budget()
        chosen = [side.best(getattr(budget, name)) for side, (_, name) in zip(self._sides, MODALITIES, strict=True)]
        return torch.cat(chosen).sort().values


@dataclass(frozen=True)
class _Tokens:
    """What is remembered of tokens, in order of arrival.

    Attributes
    ----------
    number, block : Tensor (n,) int64
        Place among all that came; temporal block.
    relevance, importance : Tensor (n,) float32
        Raw scores.
    defined : Tensor (n,) bool
        Whether there is an importance.
    frozen : Tensor (n,) float32
        Penalty by tokens that are no longer live.
    penalty : Tensor (n,) float32
        Penalty by all, as last solved.
    """

    number: Tensor
    block: Tensor
    relevance: Tensor
    importance: Tensor
    defined: Tensor
    frozen: Tensor
    penalty: Tensor

    def __len__(self) -> int:
        return self.number.numel()

    @classmethod
    def of(cls, number: Tensor, block: int, relevance: Tensor, importance: Tensor, defined: Tensor) -> _Tokens:
        """Return tokens that nothing has lowered yet."""
        none = torch.zeros_like(relevance)
        return cls(number, torch.full_like(number, block), relevance, importance, defined, none, none)

    def take(self, which: Tensor | slice) -> _Tokens:
        """Return some of them."""
        return _Tokens(*(getattr(self, f.name)[which] for f in dataclasses.fields(self)))

    def and_then(self, later: _Tokens) -> _Tokens:
        """Return them and later ones."""
        return _Tokens(*(torch.cat([getattr(self, f.name), getattr(later, f.name)]) for f in dataclasses.fields(self)))


class _Side:
    """One modality's tokens: those held, the live ones among them (the last of them), and running statistics."""

    def __init__(self, settings: Avoc, vectors: Tensor) -> None:
        """Begin with nothing held; ``vectors`` (0, D) float32 has the width and the device."""
        if settings.radius is None:
            raise ConfigError("radius: a stream holds a few blocks and compares within them; set a number")
        self.diversity, self.radius = settings.diversity, settings.radius
        self._parts = (settings.relevance, settings.importance)
        empty = vectors.new_zeros(0)
        self.tokens = _Tokens.of(empty.long(), 0, empty, empty, empty.bool())
        self.relevance, self.importance, self.sample = Moments(), Moments(), Sample(vectors.device)
        self._count, self._sum = 0, vectors.new_zeros(vectors.shape[1], dtype=torch.float64)
        self._origin = vectors.new_zeros(vectors.shape[1])
        # Live vectors and their products are relative to the first block's mean, which keeps them small and exact; the
        # running mean is taken off the products when they are used.
        self._vectors, self._products = vectors, vectors.new_zeros(0, 0)

    def observe(self, new: _Tokens, features: Tensor) -> None:
        """Bring the statistics up to a block's tokens with features (n, D) float32; freeze what they leave behind."""
        self.relevance.add(new.relevance)
        self.importance.add(new.importance[new.defined])
        self._freeze(int((self._live_tokens().block < new.block[0] - self.radius).sum()))
        self._sum += features.sum(0)
        self._count += len(features)
        if self._count == len(features):
            self._origin = features.mean(0)

    def push(self, new: _Tokens, features: Tensor, room: int) -> Tensor:
        """Take in a block that was observed and return the numbers of the tokens let go."""
        gain = self.gain(new)
        within = torch.nonzero(gain >= self._sure(gain, room)).flatten()
        lost = torch.ones_like(gain, dtype=torch.bool)
        lost[within] = False
        gone = [new.number[lost]]
        for some in within.split(LIVE // 2):
            self._freeze(self.live + some.numel() - LIVE)
            self._extend(new.take(some), features[some])
            self._solve()
            gone.append(self._trim(room))
        return torch.cat(gone)

    @property
    def live(self) -> int:
        """Number of tokens whose penalties may still change."""
        return len(self._vectors)

    def score(self, tokens: _Tokens) -> Tensor:
        """Return combined scores (n,) under the statistics so far (equation 7)."""
        score = self.relevance.z(tokens.relevance) if self._parts[0] else torch.zeros_like(tokens.relevance)
        if self.importance.count == 0 or not self._parts[1]:
            return score
        score = score + torch.where(tokens.defined, self.importance.z(tokens.importance), 0.0)
        return score / 2 if self._parts[0] else score

    def gain(self, tokens: _Tokens) -> Tensor:
        """Return what each token's objective is before any penalty (n,)."""
        return (1 - self.diversity) * self.score(tokens)

    def marginal(self) -> Tensor:
        """Return the objectives (n,) of the tokens held."""
        return self.gain(self.tokens) - self.diversity * self.tokens.penalty

    def best(self, k: int) -> Tensor:
        """Return the numbers of the ``k`` tokens of largest marginal."""
        return self.tokens.number[best(self.marginal(), k)]

    def _live_tokens(self) -> _Tokens:
        return self.tokens.take(slice(len(self.tokens) - self.live, None))

    def _sure(self, gain: Tensor, room: int) -> Tensor:
        """Return what the last token in the room reaches at least, whatever is compared with whatever."""
        low = self.marginal()
        low[low.numel() - self.live :] = self.gain(self._live_tokens()) - self.diversity
        low = torch.cat([low, gain - self.diversity])
        if low.numel() <= room:
            return low.new_full((), -torch.inf)
        return low.topk(room).values[-1] if room else low.new_full((), torch.inf)

    def _extend(self, new: _Tokens, features: Tensor) -> None:
        """Hold tokens with these features (n, D) float32, live if any comparison is wanted."""
        self.tokens = self.tokens.and_then(new)
        if self.diversity == 0:
            return
        vectors = features - self._origin
        across = vectors @ self._vectors.T
        self._products = torch.cat(
            [torch.cat([self._products, across.T], 1), torch.cat([across, vectors @ vectors.T], 1)]
        )
        self._vectors = torch.cat([self._vectors, vectors])

    def _similarity(self) -> Tensor:
        """Return cosines (l, l) of the live tokens, centred on the running mean; those below 0 are 0."""
        mean = (self._sum / max(1, self._count)).float()
        shift = mean - self._origin
        along, size = self._vectors @ shift, self._products.diagonal()
        centred = self._products - (along[:, None] + along) + shift @ shift  # symmetric to the last bit
        square = centred.diagonal().clone()
        # What is left of a token that equals the mean is rounding, not a direction.
        noise = torch.maximum(1e-5 * (size + shift @ shift), (1e-6 * mean.norm()).square())
        scale = torch.where(square > noise, square.clamp_min(1e-30).rsqrt(), 0.0)
        return centred.mul_(scale * scale[:, None]).clamp_(0, 1)

    def _solve(self) -> None:
        """Give the live tokens the penalties of a greedy choice among them.

        With a bound on every objective from the penalties known so far, a token's penalty is final once no token ahead
        of it whose own penalty is open is more similar to it than what it has been lowered by; and those that are
        final lower all they are ahead of. The token furthest ahead is always settled or lowered, so this ends.
        """
        n = self.live
        if n == 0:
            return
        live, similarity = self._live_tokens(), self._similarity()
        gain, penalty = self.gain(live), live.frozen.clone()
        left, final = torch.arange(n, device=gain.device), torch.zeros_like(live.defined)
        rank = torch.empty_like(left)
        while left.numel():
            order = (gain - self.diversity * penalty).argsort(descending=True, stable=True)
            rank[order] = torch.arange(n, device=gain.device)
            near, now = similarity[left] * (rank < rank[left, None]), penalty[left]
            settled = near * final
            lowered = torch.maximum(now, settled.amax(1))
            waits = (lowered > now) | ((near - settled).amax(1) > now)
            penalty[left] = lowered
            final[left[~waits]] = True
            left = left[waits]
        old = self.tokens.penalty[: len(self.tokens) - n]
        self.tokens = dataclasses.replace(self.tokens, penalty=torch.cat([old, penalty]))

    def _freeze(self, count: int) -> None:
        """Let the oldest ``count`` live tokens be live no more; what they took from the others stays taken."""
        if count <= 0:
            return
        if count < self.live:
            live, n = self._live_tokens(), len(self.tokens) - self.live
            marginal = self.gain(live) - self.diversity * live.penalty
            ahead = marginal[:count] >= marginal[count:, None]  # of equal ones the older
            taken = torch.where(ahead, self._similarity()[count:, :count], 0.0).amax(1)
            stay = torch.maximum(live.frozen[count:], taken)
            frozen = torch.cat([self.tokens.frozen[: n + count], stay])
            self.tokens = dataclasses.replace(self.tokens, frozen=frozen)
        self._vectors, self._products = self._vectors[count:].clone(), self._products[count:, count:].clone()

    def _trim(self, room: int) -> Tensor:
        """Let go of all but the ``room`` largest marginals; return the numbers of those let go."""
        n = len(self.tokens)
        if n <= room:
            return self.tokens.number[:0]
        keep, old = best(self.marginal(), room), n - self.live
        lost = torch.ones(n, dtype=torch.bool, device=keep.device)
        lost[keep] = False
        live = keep[keep >= old] - old
        self._vectors, self._products = self._vectors[live], self._products[live][:, live]
        gone = self.tokens.number[lost]
        self.tokens = self.tokens.take(keep)
        return gone


def _blocks(window: Tensor) -> Iterator[slice]:
    """Yield the slices of equal values of ``window`` (n,)."""
    if window.numel() == 0:
        return
    sizes = torch.unique_consecutive(window, return_counts=True)[1].tolist()
    begin = 0
    for size in sizes:
        yield slice(begin, begin + size)
        begin += size


__all__ = ["LIVE", "SLACK", "Stream"]
