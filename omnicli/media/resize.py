"""Scaling frames as the models' own image processors do, on whatever device the model is.

Those take 8-bit pixels, scale them with a bicubic filter that is widened where a picture becomes smaller (antialias,
as Pillow does it: first along rows, then along columns) and round to 8 bits after either. swscale's bicubic filter is
another one, and not cheaper. Nothing here knows a model.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

EIGHT_BITS = ("cpu",)
"""Devices on which torch scales pixels as they are."""


def resize(rgb: np.ndarray, height: int, width: int, device: str) -> np.ndarray:
    """Return uint8 (height, width, 3) of a frame (H, W, 3) uint8, scaled on a torch ``device``.

    On a CPU torchvision's result bit by bit. Elsewhere torch scales floats only, which are rounded after either
    direction: at most two levels of 255 away, at one value in a hundred.
    """
    import torch
    from torch.nn.functional import interpolate

    with _beside(torch.device(device)):
        image = torch.from_numpy(rgb).to(device).permute(2, 0, 1)[None]
        if image.device.type in EIGHT_BITS:
            image = interpolate(image, (height, width), mode="bicubic", antialias=True)
        else:
            for size in ((image.shape[2], width), (height, width)):
                wide = interpolate(image.float(), size, mode="bicubic", antialias=True)
                image = wide.round_().clamp_(0, 255)
        planes: np.ndarray = image[0].to("cpu", torch.uint8).numpy()
    return np.ascontiguousarray(planes.transpose(1, 2, 0))  # torch's copy would wake threads for it


_streams = threading.local()


def _beside(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Compute on a stream of the thread's own: a frame must not wait for what is queued for the encoders."""
    import torch

    if device.type != "cuda":
        return contextlib.nullcontext()
    mine: dict[str, Any] = _streams.__dict__
    if (name := str(device)) not in mine:
        mine[name] = torch.cuda.Stream(device, priority=-1)
    return torch.cuda.stream(mine[name])
