"""SEATS: diversity before the LLM, the question's attention inside it, and no media at all in its last layers.

Stage I keeps, in every temporal window, tokens far from each other and attended to by their encoder. Stage II drops
more after three layers in the middle, sharing what may stay among windows by how much the question attends to them.
Stage III removes all media before the last layers. The retention is the average over tokens and layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from omnicli.compress import schedule
from omnicli.compress.base import LAST_QUERY_ATTENTION, MODALITIES, OUTPUT_ATTENTION, attention_in, everything
from omnicli.compress.budget import PROPORTIONAL, spread
from omnicli.compress.groups import Groups, best, best_in_groups, group, windows
from omnicli.compress.max_min import pick_in_groups
from omnicli.compress.methods.omnizip import OmniZip
from omnicli.compress.methods.random import Random
from omnicli.compress.methods.visionzip import VisionZip
from omnicli.compress.ops import zscore
from omnicli.compress.published import Published
from omnicli.compress.released import seats as released
from omnicli.errors import ConfigError, ModelError
from omnicli.types import LayerView, MediaTokens, Modality, Query, Selection
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

AUTO, OFF = "auto", "off"

OURS: Final = "winDivPrune"
ALL_ENTER: Final = "none"
INSTEAD = {"Random": Random, "VisionZip-om": VisionZip, "OmniZip": OmniZip}
"""Methods that can take the place of stage I, by the names of SEATS's table 5."""

_ABLATIONS = ("stage_one", "decay", "allocation")

USUAL_DEPTH = 28
"""Layers that are assumed where a level depends on them and the LLM is not at hand (Qwen2.5-Omni-7B)."""


@dataclass(frozen=True)
class Seats(Published):
    """Keep what is diverse before the LLM, what the question attends to inside it, and in its last layers only text.

    Parameters
    ----------
    split : str
        How a total is shared; ``proportional`` by default, so that ``retention`` holds for each modality.
    encoder : float
        Share of tokens that enters the LLM, relative to the retention (lambda of the paper); less where that is more
        than there are.
    stage_one : str
        What chooses before the LLM: ``winDivPrune``; ``unweighted``, the same without the encoder's attention; the
        methods ``Random``, ``VisionZip-om`` or ``OmniZip`` with as many tokens; ``none``: everything enters, and the
        drops, which then have to come early, take it down to the retention.
    drop_layers : str
        Layers, counted from 1, after which tokens are dropped, such as ``16-18-20``; ``auto``: by the model's depth;
        ``off``: none (no stage II). Then so much enters that the layers read the retention on average.
    decay : str
        How the drops grow from one to the next: ``exponential``, by e; ``equal``: not at all.
    allocation : str
        What a drop shares among windows and modalities: ``top-down``, a modality's tokens by the relevance of windows,
        then of modalities in them; ``inter-window`` or ``intra-window``: only one of the two; ``decoupled``: by the
        modality's own relevance of windows; ``global``: nothing, a modality's tokens of most attention stay.
    late_layer : str
        Layer, counted from 1, after which all media tokens go; ``auto``: by the model's depth, or ``off``.
    temperature : float or None
        Of the softmax that shares a layer's budget among windows; the smaller, the more it follows the question. None:
        1 in clean mode, where relevances are z-scores, and 0.1 in official mode, where they are raw probabilities. The
        released script for Qwen3-Omni says 0.3, as do the presets ``parity/seats-35-qwen3`` and so on.
    keep_kv : bool or None
        Whether the layers before a drop keep keys and values of what was dropped, so that the whole answer can read
        them and not only its first token; costs the memory of those layers' full caches. None: true in clean mode,
        false in official.
    """

    split: str = PROPORTIONAL
    encoder: float = schedule.ENCODER
    stage_one: Literal["winDivPrune", "unweighted", "Random", "VisionZip-om", "OmniZip", "none"] = OURS
    drop_layers: str = AUTO
    decay: Literal["exponential", "equal"] = "exponential"
    allocation: Literal["top-down", "inter-window", "intra-window", "decoupled", "global"] = "top-down"
    late_layer: str = AUTO
    temperature: float | None = None
    keep_kv: bool | None = None

    criterion: ClassVar[str] = "distances weighted by encoder saliency; then the last token's attention"
    uses_question: ClassVar[bool] = True
    paper: ClassVar[str] = "SEATS: Stage-adaptive Token Selection for Efficient Omni-modal LLMs"
    clean_differs: ClassVar[str] = (
        "Windows come from true time and are fixed before anything is dropped (the released code pairs whatever runs "
        "of tokens survive). Window relevances are z-scored before the softmax, since raw attention probabilities "
        "divided by 0.1 are all but equal and the question would steer nothing. Each modality's total is met exactly, "
        "by water-filling instead of a loop that moves one token at a time. Scores are the layer's own attention of "
        "one query row in fp32, not its projections applied to its own output. Keys and values of dropped tokens stay "
        "for the answer. Degenerate windows never pick a token twice."
    )

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Saliency of the encoders and the last query's attention, each as the mode defines it."""
        if self.mode == "official":
            return frozenset({"pair_saliency", OUTPUT_ATTENTION})
        inside = frozenset() if self.drop_layers == OFF else frozenset({LAST_QUERY_ATTENTION})
        if self.stage_one in INSTEAD:
            return inside | INSTEAD[self.stage_one]().needs
        return inside | {"saliency"} if self.stage_one == OURS else inside

    def problems(self) -> list[str]:
        """Return what is wrong with the fields."""
        found = super().problems()
        if not self.encoder >= 1:
            found.append(f"encoder: must be at least 1, not {self.encoder:g}")
        if self.temperature is not None and not self.temperature > 0:
            found.append(f"temperature: must be above 0, not {self.temperature:g}")
        if self.drop_layers not in (AUTO, OFF):
            parts = self.drop_layers.split("-")
            numbers = [int(p) for p in parts if p.isdigit()]
            if len(numbers) < len(parts) or numbers != sorted(set(numbers)) or numbers[0] < 1:
                found.append(
                    f"drop_layers: must be auto, off, or rising layers such as 16-18-20, not {self.drop_layers!r}"
                )
        if self.late_layer not in (AUTO, OFF) and not (self.late_layer.isdigit() and int(self.late_layer) > 0):
            found.append(f"late_layer: must be auto, off, or a layer such as 23, not {self.late_layer!r}")
        return found + self._idle_settings()

    def _idle_settings(self) -> list[str]:
        """Return the settings that others leave nothing to do for, or that contradict them."""
        changed = [name for name in _ABLATIONS if getattr(self, name) != getattr(Seats, name)]
        off, all_enter = self.drop_layers == OFF, self.stage_one == ALL_ENTER
        if self.mode == "official":
            names = changed + (["drop_layers"] if off else [])
            return [f"{name}: mode official is the released code, which has no such choice" for name in names]
        found = []
        if off and all_enter:
            found.append("stage_one: with drop_layers off as well nothing would be chosen")
        if (off or all_enter) and self.encoder != schedule.ENCODER:
            found.append("encoder: without stage I or without drops it follows from the retention; leave it out")
        if off:
            idle = [name for name in changed if name != "stage_one"]
            idle += ["temperature"] if self.temperature is not None else []
            found += [f"{name}: has no meaning without drops (drop_layers off)" for name in idle]
        elif self.allocation == "global" and self.temperature is not None:
            found.append("temperature: allocation global shares nothing among windows")
        return found

    def idle(self) -> dict[str, str]:
        """Return the fields that cannot act: of what is dropped inside the LLM, where everything stays."""
        found = super().idle()
        if self.keeps_everything():
            stays = "the retention is 1, so every layer reads every token; lower it"
            names = (
                "encoder",
                "stage_one",
                "drop_layers",
                "decay",
                "allocation",
                "late_layer",
                "temperature",
                "keep_kv",
            )
            found |= dict.fromkeys(names, stays)
        return found

    def idle_behind(self) -> dict[str, str]:
        """Return the budget and stage I: behind another method, what that one lets in stands for them."""
        given = "in a chain the budget is what the method before lets in; set it there"
        names = ("tokens", "retention", "retention_video", "retention_audio", "split", "stage_one")
        return super().idle_behind() | dict.fromkeys(names, given)

    # ---- before the LLM: stage I ----

    def compress(self, tokens: MediaTokens, query: Query) -> Selection:
        """Choose within each window of each modality (section 4.1); the question plays no part yet.

        Raises
        ------
        ModelError
            The model gives no encoder saliency.
        """
        if self.stage_one == ALL_ENTER or self._idle(tokens.count(Modality.VIDEO), tokens.count(Modality.AUDIO)):
            return everything(tokens)
        level = self._level(USUAL_DEPTH if query.backbone is None else query.backbone.depth)
        if self.stage_one in INSTEAD:
            return self._instead(tokens, level).compress(tokens, query)
        if tokens.saliency is None and self.stage_one == OURS:
            raise ModelError(f"{self.name}: this model's encoders give no saliency")
        official, kept = self.mode == "official", []
        for quota, groups in self._quotas(tokens, level):
            weight = None if self.stage_one != OURS or tokens.saliency is None else tokens.saliency[groups.rows]
            if weight is not None and official:
                weight = weight.bfloat16().float()  # the released code stores it so
            kept.append(groups.rows[pick_in_groups(tokens.features, groups, quota, weight, rows=groups.rows)])
        indices = torch.cat(kept).sort().values
        counted = {name: int((tokens.modality[indices] == kind).sum()) for kind, name in MODALITIES}
        return Selection(indices, report={"budget": counted})

    def _level(self, depth: int) -> float:
        """Return the share of tokens that enters an LLM of ``depth`` layers, relative to the retention."""
        if self.drop_layers != OFF:
            return self.encoder
        drops, late = self._boundaries(depth)
        return schedule.solve(depth, drops, late).encoder

    def _entering(self, average: int, n: int, level: float) -> int:
        """Return how many of ``n`` tokens enter for an ``average`` over the layers; see `entering`.

        Raises
        ------
        ConfigError
            Nothing drops in the LLM, and more would have to enter than there are.
        """
        if self.drop_layers == OFF and average >= n / level + 1:
            raise ConfigError(
                f"{self.name}.drop_layers: without drops, media read by 1/{level:.3g} of the layers cannot make "
                f"{average / n:.0%} on average; set late_layer to off"
            )
        return entering(average, n, level)

    def _instead(self, tokens: MediaTokens, level: float) -> Published | Random:
        """Return the method that takes the place of stage I, told to keep as many tokens of each modality."""
        plan, shares = self.plan(tokens), []
        for kind, name in MODALITIES:
            n = tokens.count(kind)
            shares.append(self._entering(getattr(plan, name), n, level) / n if n else 1.0)
        budget: dict[str, Any] = {"retention_video": shares[0], "retention_audio": shares[1]}
        if self.stage_one == "VisionZip-om":
            return VisionZip(audio="select", **budget)
        return OmniZip(**budget) if self.stage_one == "OmniZip" else Random(**budget)

    def _quotas(self, tokens: MediaTokens, level: float) -> list[tuple[Tensor, Groups]]:
        """Return per modality how many tokens of each window enter the LLM."""
        if self.mode == "official":
            return released.entering_quotas(tokens, self.ratios(tokens), self.encoder)
        plan, out = self.plan(tokens), []
        for kind, name in MODALITIES:
            groups = windows(tokens, kind)
            enter = self._entering(getattr(plan, name), groups.rows.numel(), level)
            out.append((spread(enter, groups.sizes), groups))
        return out

    def _idle(self, n_video: int, n_audio: int) -> bool:
        """Return whether nothing is to be dropped at all; then no stage acts."""
        if self.mode == "clean":
            return self.plan_of(n_video, n_audio).total >= n_video + n_audio
        return min(self.ratios_of(n_video, n_audio)) >= 1

    def entering(self, n_video: int, n_audio: int) -> tuple[int, int]:
        """Return what stage I keeps: ``encoder`` times the average over the layers, as far as there is."""
        if self.stage_one == ALL_ENTER or self._idle(n_video, n_audio):
            return n_video, n_audio
        level = self._level(USUAL_DEPTH)
        shares = self.nominal(n_video, n_audio) or (1.0, 1.0)
        video, audio = (self._entering(round(s * n), n, level) for s, n in zip(shares, (n_video, n_audio), strict=True))
        return video, audio

    # ---- inside the LLM: stages II and III ----

    def layers(self, depth: int) -> tuple[int, ...]:
        """Return the layers of stage II.

        Raises
        ------
        ConfigError
            Layers that are set are not those of a model of this depth, or the schedule cannot reach the retention;
            told here, before a film is encoded.
        """
        if self.keeps_everything():
            return ()
        drops, late = self._boundaries(depth)
        shares = (self.retention, self.retention_video, self.retention_audio)
        known = [s for s in shares if s]
        if self.stage_one == ALL_ENTER:
            for share in known:
                schedule.solve(depth, drops, late, 1 / share, self._growth)
        elif self.encoder * max(known, default=0.0) <= 1:  # else less of it is used
            schedule.solve(depth, drops, late, self.encoder, self._growth)
        return drops

    @property
    def _growth(self) -> float:
        return math.e if self.decay == "exponential" else 1.0

    def late_removal(self, depth: int) -> int | None:
        """Return the layer of stage III."""
        return None if self.keeps_everything() else self._boundaries(depth)[1]

    def keeps_kv(self) -> bool:
        """Return ``keep_kv``, or what the mode says."""
        return self.mode == "clean" if self.keep_kv is None else self.keep_kv

    def _boundaries(self, depth: int) -> tuple[tuple[int, ...], int | None]:
        drops, late = schedule.auto_layers(depth)
        if self.drop_layers == OFF:
            drops = ()
        elif self.drop_layers != AUTO:
            drops = tuple(int(n) - 1 for n in self.drop_layers.split("-"))
        if self.late_layer != AUTO:
            late = None if self.late_layer == OFF else int(self.late_layer) - 1
        last = max([*drops, -1 if late is None else late])
        if last >= depth:
            raise ConfigError(f"{self.name}: there is no layer {last + 1} of {depth}; set drop_layers and late_layer")
        return drops, late

    def prune(self, layer: int, view: LayerView) -> Tensor:
        """Choose within windows by the question's attention (sections 4.2.2 and 4.2.3, equation 1)."""
        if view.encoded is not None and self._idle(*view.encoded):
            return torch.arange(len(view.media), device=view.media.features.device)
        drops, late = self._boundaries(view.depth)
        step = drops.index(layer)
        if self.mode == "official":
            keep = schedule.official(view.depth, drops, late, self.encoder).keep[step]
            return released.after_drop(view.media, attention_in(view), keep, self.temperature)
        return self._clean(view, [self._target(i, step, view, drops, late) for i in range(2)])

    def _target(self, i: int, step: int, view: LayerView, drops: tuple[int, ...], late: int | None) -> int:
        """Return how many tokens of modality ``i`` stay after drop ``step``, by the schedule's exact levels."""
        entered = view.entered[i]
        if entered == 0:
            return 0
        encoder = self.encoder
        if view.encoded is not None and entered == view.encoded[i]:  # nothing to drop before the LLM: R is high
            average = getattr(self.plan_of(*view.encoded), MODALITIES[i][1])
            most = entered * (view.depth if late is None else late + 1) / view.depth
            if most <= average < most + 1:  # a plan of whole tokens may be out of reach by a fraction of one
                return entered
            encoder = entered / average if self.stage_one == ALL_ENTER else min(encoder, entered / average)
        level = float(entered)
        for ratio in schedule.solve(view.depth, drops, late, encoder, self._growth).keep[: step + 1]:
            level *= ratio
        return max(1, min(entered, round(level)))

    def _clean(self, view: LayerView, targets: list[int]) -> Tensor:
        media, attention = view.media, attention_in(view)
        if self.allocation == "global":
            owned = [media.indices(kind) for kind, _ in MODALITIES]
            kept = [own[best(attention[own], target)] for own, target in zip(owned, targets, strict=True)]
            return torch.cat(kept).sort().values
        _, window = torch.unique(media.window, return_inverse=True)
        count = int(window.max()) + 1 if len(media) else 0
        relevance, groups = [], []
        for kind, _ in MODALITIES:
            rows = media.indices(kind)
            sums = torch.zeros(count, device=window.device).index_add_(0, window[rows], attention[rows])
            sizes = torch.bincount(window[rows], minlength=count)
            logits = zscore(sums / sizes.clamp_min(1), sizes > 0) / (self.temperature or 1.0)
            relevance.append(torch.softmax(logits.masked_fill(sizes == 0, -torch.inf), 0).nan_to_num(0.0))
            groups.append(group(rows, window[rows]))
        kept = []
        for weight, target, grouped in zip(self._shared(relevance, targets), targets, groups, strict=True):
            if len(grouped):
                quota = spread(target, grouped.sizes, weight[window[grouped.rows[grouped.starts]]])
                kept.append(grouped.rows[best_in_groups(attention[grouped.rows], grouped, quota)])
        return torch.cat(kept).sort().values

    def _shared(self, relevance: list[Tensor], targets: list[int]) -> list[Tensor]:
        """Return what the windows' shares (T,) of each modality are in proportion to (equation 1).

        ``relevance`` are S_v and S_a (T,), ``targets`` r_v N_v and r_a N_a. Without the first level S_t is the same for
        all windows, without the second each modality has the same part of every window.
        """
        if self.allocation == "decoupled":
            return relevance
        present = torch.stack([r > 0 for r in relevance]).sum(0).clamp_min(1)
        joint = (relevance[0] + relevance[1]) / present
        share = [r * t for r, t in zip(relevance, targets, strict=True)]
        whole = (share[0] + share[1]).clamp_min(1e-30)
        if self.allocation == "inter-window":
            return [joint, joint]
        first = torch.ones_like(joint) if self.allocation == "intra-window" else joint
        return [first * own / whole for own in share]


def entering(average: int, n: int, encoder: float) -> int:
    """Return how many of ``n`` tokens enter the LLM for an ``average`` over its layers; never more than there are."""
    return min(n, max(min(average, 1), round(encoder * average)))


__all__ = ["Seats", "entering"]
