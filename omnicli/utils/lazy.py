"""torch, imported at its first use: what describes methods and settings can be read without the two seconds it takes.

    from omnicli.utils.lazy import torch

Types are imported under ``TYPE_CHECKING``. Nothing else is put off like this.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch  # noqa: PLC0414  the alias makes it one of this module
else:

    class _Torch:
        def __getattr__(self, name: str) -> Any:
            value = getattr(importlib.import_module("torch"), name)
            setattr(self, name, value)
            return value

    torch = _Torch()


__all__ = ["torch"]
