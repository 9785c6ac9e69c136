"""What watches a run and goes with it from room to room: who is told how far it is, its clock, what it attends to.

Nothing in it changes a result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from omnicli.utils.attention_recorder import AttentionRecorder
from omnicli.utils.timing import StageClock

if TYPE_CHECKING:
    import torch

Progress = Callable[[str, float, "float | None"], None]
"""Called with a stage's name, how much is done and of how much: media seconds, or tokens inside the LLM."""


def untold(stage: str, done: float, total: float | None) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class RunContext:
    """The watchers of one run; what is left out watches nothing.

    Attributes
    ----------
    progress : callable
        See `Progress`.
    clock : StageClock
        Times the stages; may already hold what was timed before, such as loading the model.
    recorder : AttentionRecorder
        Is shown what the prompt's last position and the answer's words attend to.
    """

    progress: Progress = untold
    clock: StageClock = field(default_factory=StageClock)
    recorder: AttentionRecorder = field(default_factory=AttentionRecorder.nothing)

    @classmethod
    def on(
        cls, device: torch.device, progress: Progress = untold, recorder: AttentionRecorder | None = None
    ) -> RunContext:
        """Return a context whose clock begins now and times the device that the model is on."""
        return cls(progress, StageClock(cuda=device.type == "cuda"), recorder or AttentionRecorder.nothing())
