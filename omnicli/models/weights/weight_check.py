"""Are the weights of a checkpoint those that a family loads: names and shapes compared, without reading a weight.

Knows no family and no files.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch


def differences(missing: Collection[str], unknown: Collection[str], other: Collection[str]) -> list[str]:
    """Return a line for each way in which weights are not as expected; each names the first of them."""
    kinds = (
        ("are missing", missing),
        ("are not this architecture's", unknown),
        ("have another shape than config.json says", other),
    )
    return [f"{len(keys)} weights {what}, the first is {min(keys)}" for what, keys in kinds if keys]


def by_stock_loader(model_class: Any, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return `differences` between weights in a checkpoint and a transformers model, as its own loader maps names.

    The loader is given tensors without content and puts them into a model without content, so that what it renames
    and stacks (experts) is accounted for as in real loading.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    from omnicli.models.weights.dummy import unfilled_model

    model = unfilled_model(model_class, config, "meta", torch.float32)
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    names: Any = get_model_conversion_mapping(model)
    settings = LoadStateDictConfig(device_map={"": "meta"}, dtype=torch.float32, weight_mapping=names)
    info, _ = convert_and_load_state_dict_in_model(model, state, settings)
    other = {key for key, *_ in info.mismatched_keys} | set(info.conversion_errors)
    return differences(info.missing_keys - other, info.unexpected_keys, other)
