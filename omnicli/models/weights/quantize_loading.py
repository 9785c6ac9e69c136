"""Quantising each weight while ``from_pretrained`` loads it, through transformers' own hook for that.

Imported once the version of transformers is known to be the right one. Knows neither numbers of bits nor families.
"""

from __future__ import annotations

from typing import Any

from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from omnicli.models.weights.quantize import Quantizer

_METHOD = "omni"  # the name under which transformers looks it up


class Settings(QuantizationConfigMixin):
    """What ``from_pretrained(quantization_config=...)`` takes, to quantise with ``quantizer`` while it loads."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__(_METHOD)  # type: ignore[arg-type]
        self.quantizer = quantizer


@register_quantizer(_METHOD)
class _WhileLoading(HfQuantizer):
    """Hands each weight, whatever the checkpoint calls it and however it is split, to the quantizer."""

    is_trainable = False
    quantization_config: Settings

    def is_serializable(self) -> bool:
        return False

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        return self.quantization_config.quantizer.wants(model, param_name)

    def get_quantize_ops(self) -> ConversionOps:
        return _Take(self.quantization_config.quantizer)

    def postprocess_model(self, model: Any, **kwargs: Any) -> None:
        self.remove_quantization_config(model)


class _Take(ConversionOps):
    def __init__(self, quantizer: Quantizer) -> None:
        self.quantizer = quantizer

    def convert(  # type: ignore[override]
        self, input_dict: dict[str, Any], *, model: Any, missing_keys: Any, **kwargs: Any
    ) -> dict[str, Any]:
        for name, value in input_dict.items():
            try:
                self.quantizer.take(model, name, value[0] if isinstance(value, list) else value)
            except Exception as error:
                self.quantizer.failure = error
                raise
            missing_keys.discard(name)
        return {}
