"""What a result depends on besides its input: which model, in which format and place, and versions of libraries."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import torch

from omnicli.version import __version__

if TYPE_CHECKING:
    from omnicli.models.base import OmniModel


def of_model(model: OmniModel) -> dict[str, str]:
    """Return which model answered, in which number format, where, and in what its LLM's weights are."""
    dtype = str(model.dtype).removeprefix("torch.")
    return {
        "name": model.name,
        "revision": model.revision,
        "dtype": dtype,
        "device": ",".join(map(str, model.devices)),
        "quantize": model.quantized,
    }


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on."""
    import av
    import transformers

    return {
        "omni": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "av": av.__version__,
    }
