"""Methods that drop tokens inside the LLM, at other depths: what layers read is what the settings ask for."""

from __future__ import annotations

import pytest
import torch

from omnicli.config import config
from omnicli.errors import ConfigError
from omnicli.media.probe import probe
from omnicli.models import registry
from omnicli.planning import plan as planning
from tests.compress import reading
from tests.support import films

MODELS = {"qwen2.5-3b": ("qwen2-5-omni", 36), "qwen3-30b": ("qwen3-omni-moe", 48), "minicpm-o": ("minicpm-o", 36)}
"""Family and layers; `tests.compress.test_presets` has the 7B's 28."""


@torch.inference_mode()
@pytest.mark.parametrize(
    ("model", "preset"),
    [(m, p) for m, (family, _) in MODELS.items() for p in reading.pruning() if not reading.refused(family, p)],
)
@pytest.mark.slow
def test_the_layers_read_what_was_asked_for(model, preset):
    method = config.load_config(preset).compressor
    clip = reading.random_clip(*MODELS[model])
    reading.check_layers_read_what_was_asked_for(reading.model(*MODELS[model]), clip, method)


def test_schedules_by_depth():
    """SEATS's drops at the paper's fractions of the depth, FastV's after its second layer, wherever that is."""
    method = config.load_config("seats-25").compressor
    assert (method.layers(28), method.late_removal(28)) == ((15, 17, 19), 22)
    assert (method.layers(36), method.late_removal(36)) == ((19, 22, 25), 28)
    assert config.load_config("fastv-25").compressor.layers(36) == (1,)


def test_the_7bs_layers_on_the_3b_are_refused_before_anything_is_loaded(tmp_path):
    """The paper's layers for 28 cannot reach the retention on 36; the released code then spends less, silently."""
    sets = ["seats.drop_layers=16-18-20", "seats.late_layer=23"]
    info = probe(films.write(tmp_path / "film.mp4", 2.0))
    for model, fits in (("qwen2.5-omni-7b", True), ("qwen2.5-omni-3b", False)):
        made = config.load_config("seats-25", [*sets, f"model={model}"])
        if fits:
            assert planning.make_plan(info, made).kept[0] > 0
        else:
            with pytest.raises(ConfigError, match=r"over 36 layers .* other layers"):
                planning.make_plan(info, made)


def test_all_depths_of_released_models_are_here():
    depths = set()
    for family in registry.facts().values():
        for size in family.dummies.values():
            depths.add(family.read("x", family.released(size)).llm.depth)
    assert depths == {28, *(layers for _, layers in MODELS.values())}
