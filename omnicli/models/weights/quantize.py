"""The LLM's weights in 8 or 4 bits: its layers' projections, MLPs and experts; weights only, never activations.

Norms, biases, routers, embeddings, the head and both encoders keep their number format: what a film is encoded to does
not depend on it. Each weight is quantised the moment it is loaded, so that no device ever holds the whole LLM in full.

- ``int8``: one scale for each row, the largest value of the row / 127. Needs no other library.
- ``int4``: NF4 in blocks of 64 values with a float32 scale each, 4.5 bits a value (QLoRA, arXiv:2305.14314, section 3),
  by bitsandbytes' kernels.

A weight is restored to the format of the activations when it is used, one matrix at a time, of experts only those that
are wanted. Nothing here knows a family.
"""

from __future__ import annotations

import abc
import importlib.util
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omnicli.errors import ModelError

BLOCK = 64
"""Values that share a scale in ``int4``."""


@dataclass(eq=False)
class Quantizer:
    """Quantises the weights of one model while they are loaded.

    Attributes
    ----------
    kind : str
        ``int8`` or ``int4``.
    device : torch.device
        Where a weight is quantised. The result stays there if the model is loaded there, and else goes ``home``.
    home : torch.device
        Where the weights are kept until the model is moved.
    inside : str
        Prefix of the names of the LLM's layers; the family sets it.
    failure : Exception or None
        What went wrong while transformers loaded, which tells of it otherwise.

    Raises
    ------
    ModelError
        The library for it is not installed.
    """

    kind: str
    device: torch.device
    home: torch.device
    inside: str = ""
    failure: Exception | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.kind == "int4" and importlib.util.find_spec("bitsandbytes") is None:
            raise ModelError("int4 needs bitsandbytes, which is not installed: pip install 'omnicli[quantize]'")

    def wants(self, model: nn.Module, name: str) -> bool:
        """Tell whether the weight called ``name`` is one to quantise: a linear layer's, or all experts' (3-D)."""
        if not name.startswith(self.inside):
            return False
        path, _, last = name.rpartition(".")
        module = model.get_submodule(path)
        if isinstance(module, nn.Linear):
            return last == "weight"
        return last in Experts.NAMES and (isinstance(module, Experts) or hasattr(module, "num_experts"))

    def take(self, model: nn.Module, name: str, weight: Tensor) -> None:
        """Put a weight (..., out, in) into the model, quantised, in place of the one called ``name``."""
        kind = {"int8": Int8, "int4": Nf4}[self.kind]
        packed = kind(weight.to(self.device)).to(self.home)
        path, _, last = name.rpartition(".")
        module = model.get_submodule(path)
        if isinstance(module, nn.Linear):
            model.set_submodule(path, Linear(packed, module))
        else:
            if not isinstance(module, Experts):
                model.set_submodule(path, module := Experts(module))
                block: Any = model.get_submodule(path.rpartition(".")[0])
                block._is_hf_initialized = True  # else transformers looks for the weights, to fill them at random
            module.take(last, packed)


class Packed(nn.Module, abc.ABC):
    """A weight (out, in), or one for each expert (experts, out, in), in few bits: ``codes`` and ``scales``."""

    codes: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.shape = weight.shape[-2:]
        each = [self._pack(part) for part in (weight if weight.ndim == 3 else weight[None])]  # one at a time: memory
        codes, scales = (torch.stack(parts) if weight.ndim == 3 else parts[0] for parts in zip(*each, strict=True))
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)

    @abc.abstractmethod
    def _pack(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes and scales of (out, in)."""

    @abc.abstractmethod
    def restored(self, dtype: torch.dtype, experts: Tensor) -> Tensor:
        """Return the weights (n, out, in) of some experts, (n,) int64."""

    @abc.abstractmethod
    def linear(self, x: Tensor) -> Tensor:
        """Return x (n, in) times the weight (out, in), transposed."""


class Int8(Packed):
    """codes (..., out, in) int8, scales (..., out) float32."""

    def _pack(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        scales = (weight.abs().amax(-1).float() / 127).clamp(min=torch.finfo(torch.float32).tiny)
        return (weight / scales[:, None]).round_().to(torch.int8), scales

    def restored(self, dtype: torch.dtype, experts: Tensor) -> Tensor:
        """See `Packed.restored`."""
        return self.codes[experts].to(dtype).mul_(self.scales[experts, :, None])

    def linear(self, x: Tensor) -> Tensor:
        """See `Packed.linear`."""
        if x.dtype == torch.float16:  # sums of whole numbers would leave its range
            return F.linear(x, self.codes.to(x.dtype).mul_(self.scales[:, None]))
        if x.shape[0] == 1 and x.device.type == "cpu":  # writing: the weight is read once instead of three times
            product = torch._weight_int8pack_mm(x, self.codes, torch.ones(len(self.codes), dtype=x.dtype))
        else:
            product = F.linear(x, self.codes.to(x.dtype))
        return product.mul_(self.scales)


class Nf4(Packed):
    """codes (..., out * in / 2) uint8, scales (..., blocks) float32; experts in whole blocks."""

    def __init__(self, weight: Tensor) -> None:
        if weight.ndim == 3 and weight[0].numel() % BLOCK:
            raise ModelError(f"int4: experts of {weight[0].numel()} values are not in blocks of {BLOCK}; choose int8")
        super().__init__(weight)

    def _pack(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        codes, state = _bitsandbytes().functional.quantize_4bit(weight.contiguous(), blocksize=BLOCK, quant_type="nf4")
        return codes.flatten(), state.absmax

    def restored(self, dtype: torch.dtype, experts: Tensor) -> Tensor:
        """See `Packed.restored`; all in one call, since an expert's weight is whole blocks long."""
        return self._restore(self.codes[experts], self.scales[experts], dtype).view(-1, *self.shape)

    def linear(self, x: Tensor) -> Tensor:
        """See `Packed.linear`."""
        if self.shape[1] % BLOCK:
            return F.linear(x, self._restore(self.codes, self.scales, x.dtype).view(self.shape))
        return _bitsandbytes().matmul_4bit(x, self.codes.view(-1, 1), _state(self.scales, self.shape, x.dtype))

    @staticmethod
    def _restore(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        # As one row: version 0.50.2 restores other values on a CPU where a row is not whole blocks long.
        state = _state(scales.flatten(), torch.Size((1, 2 * codes.numel())), dtype)
        return _bitsandbytes().functional.dequantize_4bit(codes.view(-1, 1), state)


def _state(scales: Tensor, shape: torch.Size, dtype: torch.dtype) -> Any:
    """Return bitsandbytes' description of a weight in ``int4``."""
    return _bitsandbytes().functional.QuantState(
        scales, shape, code=None, blocksize=BLOCK, quant_type="nf4", dtype=dtype
    )


class Linear(nn.Module):
    """A linear layer of a quantised weight. Takes the ``bias`` of the layer that it stands for, loaded or not yet."""

    bias: nn.Parameter | None

    def __init__(self, weight: Packed, stands_for: nn.Linear) -> None:
        super().__init__()
        self.weight = weight
        self.register_parameter("bias", stands_for.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out) of (..., in)."""
        out = self.weight.linear(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)
        return out if self.bias is None else out.add_(self.bias)


class Experts(nn.Module):
    """A stock block of experts whose weights are quantised: those that are asked for are restored, for one call."""

    NAMES = ("gate_up_proj", "down_proj")

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.stock = stock
        self.packed = nn.ModuleDict()

    def take(self, name: str, packed: Packed) -> None:
        """Hold a weight of all experts in place of the stock one."""
        delattr(self.stock, name)
        self.packed[name] = packed

    def forward(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """See the stock block: hidden (n, D), which experts (n, k), and their weights (n, k)."""
        wanted, index = index.unique(return_inverse=True)
        stock, every = self.stock, self.stock.num_experts
        stock.num_experts = len(wanted)
        try:
            for name, packed in self.packed.items():
                setattr(stock, name, packed.restored(hidden.dtype, wanted))  # type: ignore[operator]
            return stock(hidden, index, weights)
        finally:
            stock.num_experts = every
            for name in self.packed:
                stock.__dict__.pop(name, None)


def _bitsandbytes() -> Any:
    """Import it without letting it fetch kernels from a hub, as it does where the package ``kernels`` is there."""
    if "bitsandbytes" in sys.modules:
        return sys.modules["bitsandbytes"]
    log, there = logging.getLogger("bitsandbytes"), sys.modules.get("kernels")
    before = log.level
    log.setLevel(logging.ERROR)
    sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        import bitsandbytes
    finally:
        log.setLevel(before)
        del sys.modules["kernels"]
        if there is not None:
            sys.modules["kernels"] = there
    return bitsandbytes


# ---- random weights ----


def fill(model: nn.Module, quantizer: Quantizer, make: Callable[[str, Tensor], None]) -> None:
    """Give each weight of a model without storage its values, one after the other, and quantise what is to be.

    ``make(name, weight)`` fills a weight in place.
    """
    for name, empty in list(model.named_parameters()):
        weight = torch.empty_like(empty, device=quantizer.device, requires_grad=False)
        make(name, weight)
        if quantizer.wants(model, name):
            quantizer.take(model, name, weight)
        else:
            path, _, last = name.rpartition(".")
            setattr(model.get_submodule(path), last, nn.Parameter(weight.to(quantizer.home), requires_grad=False))
