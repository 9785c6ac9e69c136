"""VidCom2: frames that stand out of the film keep more, and in each frame the tokens that stand out of film and frame.

Source: VidCom2's released code, the branch for Omni models; also a choice in vLLM beside EVS. Tokens are compared on
the half of their channels that varies least over the film, as vectors of length 1. How near a token is to a centre is a
sum of Gaussians of its distance; centres are the mean of the film and the mean of its frame (temporal patch).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from omnicli.compress.base import everything
from omnicli.compress.budget import spread
from omnicli.compress.groups import Groups, best_in_groups, frames
from omnicli.compress.ops import finite, row_chunks, unit
from omnicli.compress.outliers import MEMORY, nearness, steady_channels
from omnicli.compress.published import Baseline, thinned
from omnicli.types import MediaTokens, Modality, Query, Selection
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class VidCom2(Baseline):
    """Keep the picture tokens farthest from the middle of the film and of their frame; more of frames that stand out.

    A frame's share is the budget's, times 1 plus its weight less the mean weight; weights are a softmax over the frames
    of how far their tokens lie from the film's mean. So one frame that stands out may keep up to twice its share. Sound
    stays whole.

    ``official`` rounds each frame's number by itself, halves to even, at least one token, and cuts what exceeds a frame
    off, so that the total may be missed. Not reproduced: the model's dtype (all is fp32 here), and that pictures told
    to stay whole would still lose some.

    Parameters
    ----------
    temperature : float
        Of the softmax over frames, above 0.
    """

    temperature: float = 0.01

    criterion: ClassVar[str] = "distance from the mean of the film and of the frame"
    paper: ClassVar[str] = "VidCom2, code released with it, branch omni"
    clean_differs: ClassVar[str] = (
        "Meets the budget exactly: whole tokens by largest remainder, what a full frame cannot use goes to the others, "
        "and frames without a token are possible where there are more frames than tokens to keep. Equal scores go to "
        "the earlier token. Where sound cannot stay whole it is thinned evenly."
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        found = super().problems()
        if self.audio == "select":
            found.append("audio: vidcom2 has no counterpart for sound; use intact")
        if not self.temperature > 0:
            found.append(f"temperature: must be above 0, not {self.temperature:g}")
        return found

    def compress(self, tokens: MediaTokens, query: Query) -> Selection:
        """Choose pictures; the question plays no part.

        Raises
        ------
        ModelError
            Embeddings are not finite.
        """
        plan = self.plan(tokens)
        if plan.total == len(tokens):
            return everything(tokens)
        by_frame, n_audio = frames(tokens), tokens.count(Modality.AUDIO)
        share, k_audio = 1.0, plan.audio
        if self.mode == "official":
            share, share_audio = self.told(tokens)
            k_audio = min(n_audio, max(int(share_audio > 0), int(share_audio * n_audio)))
            whole = share >= 1
        else:
            whole = plan.video == by_frame.rows.numel()
        video = by_frame.rows
        if video.numel() and not whole:
            near, to_film = _near(tokens.features, by_frame)
            weight = ((to_film.amin() - to_film) / self.temperature).softmax(0)
            relative = 1 + weight - weight.mean()
            if self.mode == "official":
                quota = released_quota(by_frame.sizes, share, relative)
            else:
                quota = spread(plan.video, by_frame.sizes, relative.double() * by_frame.sizes)
            video = video[best_in_groups(-near, by_frame, quota)]
        audio = thinned(tokens, k_audio)
        budget = {"video": video.numel(), "audio": audio.numel()}
        return Selection(torch.cat([video, audio]).sort().values, report={"budget": budget})


def released_quota(sizes: Tensor, share: float, relative: Tensor) -> Tensor:
    """Return how many tokens of each frame (T,) int64 the released code keeps.

    Parameters
    ----------
    sizes : Tensor (T,) int64
        Tokens of each frame.
    share : float
        Share of the pictures to keep; 0: none.
    relative : Tensor (T,) float32
        Each frame's share in relation to it, 1 on average.
    """
    if share <= 0:
        return torch.zeros_like(sizes)
    rounded = ((share * relative).clamp_max(1) * sizes).round().long()  # torch rounds halves to even
    return torch.minimum(rounded.clamp_min(1), sizes)


def _near(features: Tensor, by_frame: Groups) -> tuple[Tensor, Tensor]:
    """Return how near tokens are to the means of film and frame, added up (n,), and each frame to the film's (T,).

    Two passes over the features, beside the two that find the channels.
    """
    rows, width = by_frame.rows, features.shape[1]
    channels = steady_channels(features, rows, max(1, width // 2))
    batches = [
        (groups[part], places[part])
        for groups, places in by_frame.by_size()
        for part in row_chunks(len(groups), places.shape[1] * width, limit=MEMORY)
    ]
    means = torch.zeros(len(by_frame), channels.numel(), device=features.device)
    for groups, places in batches:
        means[groups] = unit(features[rows[places]][..., channels]).mean(1)
    film = (finite(means).double() * by_frame.sizes[:, None]).sum(0) / max(1, rows.numel())
    near = torch.zeros(rows.numel(), device=features.device)
    to_film = torch.zeros(len(by_frame), device=features.device)
    for groups, places in batches:
        x = unit(features[rows[places]][..., channels])
        to_all = nearness(x, film.float())
        near[places] = to_all + nearness(x, means[groups, None])
        to_film[groups] = to_all.mean(1)
    return near, to_film


__all__ = ["VidCom2", "released_quota"]
