"""Cards that are not there: CPU tensors with the label of another device, and an error where labels meet.

The label is ``cpu:N``, which PyTorch takes for a device of its own but nobody's memory: kernels, and so bits, are those
of a CPU. Inside `Cards`, what moves or makes a tensor says where it is from then on, what computes inherits it, and
what mixes two devices raises, as CUDA does: but for single numbers and indices from host memory.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

HOST = torch.device("cpu")
CARDS = [torch.device("cpu", 1), torch.device("cpu", 2), torch.device("cpu", 3)]
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)


class Labelled(torch.Tensor):
    """A tensor that says that it is on a card."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor, device: torch.device) -> Labelled:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=device,
        )
        made.held = inner
        return made

    def tolist(self) -> Any:
        """See `torch.Tensor.tolist`, which reads memory."""
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute what an operation gives and where that is; RuntimeError if its tensors are not together."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    devices = {t.device for t in tensors if t.dim() or len(tensors) == 1}
    if func in INDEXING:
        devices = {args[0].device} | {t.device for t in tensors if t.device != HOST}
    if func not in COPIES and len(devices) > 1:
        raise RuntimeError(f"{func}: tensors on {sorted(map(str, devices))}")
    where = kwargs.get("device") or (tensors[0].device if func in COPIES else next(iter(devices), HOST))
    plain = dict(tree_map_only(Labelled, lambda t: t.held, kwargs))
    if "device" in plain:
        plain["device"] = HOST
    out = func(*tree_map_only(Labelled, lambda t: t.held, args), **plain)
    if where.index is None:
        return out
    out = tree_map_only(torch.Tensor, lambda t: Labelled(t, where), out)
    return return_and_correct_aliasing(func, args, kwargs, out)


class Cards(TorchDispatchMode):
    """The mode in which devices of `CARDS` can be used. ``moved`` counts copies by (from, to)."""

    def __init__(self) -> None:
        super().__init__()
        self.moved: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # in inference mode operations made of others come here whole
            if (out := func.decompose(*args, **kwargs)) is not NotImplemented:
                return out
        if func in COPIES:
            there = kwargs.get("device") or args[0].device
            here = args[-1].device
            if here != there:
                self.moved[str(here), str(there)] += 1
        return run(func, args, kwargs)


@contextlib.contextmanager
def cards() -> Iterator[Cards]:
    """Enter `Cards`, with modules able to move to its devices, and `torch.tensor` too, which no mode sees."""

    def tensor(data: Any, *, dtype: Any = None, device: Any = None) -> torch.Tensor:
        made = real(data, dtype=dtype)
        return made if device is None else made.to(device)

    real = torch.tensor
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        torch.tensor = tensor  # type: ignore[assignment]
        with torch.no_grad(), Cards() as mode:
            yield mode
    finally:
        torch.tensor = real  # type: ignore[assignment]
        torch.__future__.set_overwrite_module_params_on_conversion(before)
