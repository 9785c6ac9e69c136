"""What happens to sound before a tower sees it: the stream of mel windows.

Shared by families whose towers work in windows. Knows no weights.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from omnicli.models.mel import LogMel, normalise_log_mel
from omnicli.models.parts import AudioEncoder, EncodedAudio


class WindowedAudioEncoder(AudioEncoder):
    """Collects mel frames to batches of whole windows and has them encoded.

    Parameters
    ----------
    encode : callable
        Normalised mel (bands, k), starting on a window border, and whether it begins the sound, to encoded pieces.
    batch_frames : int
        Mel frames per call; a multiple of the tower's window.
    maximum : float
        The clip's largest log10 mel value, which makes the result exact; None: the largest heard so far.
    mirror_end : bool
        See `LogMel`.
    """

    def __init__(
        self,
        encode: Callable[[Tensor, bool], list[EncodedAudio]],
        bands: int,
        *,
        batch_frames: int,
        maximum: float | None,
        mirror_end: bool = False,
    ) -> None:
        self._encode_mel, self._batch, self._maximum = encode, batch_frames, maximum
        self._mel = LogMel(bands, mirror_end)
        self._frames = torch.zeros(bands, 0)
        self._first = True

    def feed(self, samples: np.ndarray) -> list[EncodedAudio]:
        """See `AudioEncoder.feed`."""
        self._frames = torch.cat([self._frames, self._mel.feed(samples)], 1)
        return self._drain(whole=True)

    def finish(self) -> list[EncodedAudio]:
        """See `AudioEncoder.finish`."""
        self._frames = torch.cat([self._frames, self._mel.finish()], 1)
        return self._drain(whole=False)

    def _drain(self, whole: bool) -> list[EncodedAudio]:
        pieces: list[EncodedAudio] = []
        maximum = self._mel.maximum if self._maximum is None else self._maximum
        while self._frames.shape[1] >= (self._batch if whole else 1):
            part, self._frames = self._frames[:, : self._batch], self._frames[:, self._batch :]
            pieces += self._encode_mel(normalise_log_mel(part, maximum), self._first)
            self._first = False
        return pieces
