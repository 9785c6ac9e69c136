"""What holds for every family. Runs over the registry: a new family needs a tiny model in `FAMILIES`, nothing else."""

from __future__ import annotations

import pytest
import torch

from omnicli import testing as contract
from omnicli.models import registry
from omnicli.types import Modality
from tests.support import tiny, tiny_minicpm, tiny_qwen3


def qwen_logits(omni, given, tokens):
    text, more = omni.thinker.model.language_model, {}
    if tokens.layer_features is not None:
        seen = torch.zeros(1, len(given.embeds), dtype=torch.bool)
        seen[0, given.media_span] = tokens.modality == Modality.VIDEO
        video = tokens.indices(Modality.VIDEO)
        more = {"visual_pos_masks": seen, "deepstack_visual_embeds": list(tokens.layer_features[:, video])}
    hidden = text(inputs_embeds=given.embeds[None], position_ids=given.position_ids[:, None], use_cache=False, **more)
    return omni.thinker.lm_head(hidden.last_hidden_state)[0]


def minicpm_logits(omni, given, tokens):
    return omni.parts.llm(inputs_embeds=given.embeds[None]).logits[0]


FAMILIES = {
    "qwen2-5-omni": (tiny, qwen_logits),
    "qwen3-omni-moe": (tiny_qwen3, qwen_logits),
    "minicpm-o": (tiny_minicpm, minicpm_logits),
}
"""Per family: tiny random weights (``model()``, and ``build(folder)`` in the hub's layout); its stock LLM's logits."""
every_family = pytest.mark.parametrize("name", list(registry.families()))


def test_every_family_has_a_tiny_model_here():
    assert set(registry.families()) == set(FAMILIES), (
        "make tiny random weights of the family, and name them in FAMILIES"
    )


@every_family
def test_the_class_keeps_the_contract(name):
    family = registry.families()[name]
    assert family.family == name.replace("-", "_")
    assert contract.of_class(family) == []


@every_family
def test_the_model_keeps_the_contract(name):
    tiny_model, stock = FAMILIES[name]
    omni = tiny_model.model()
    assert contract.of_model(omni, lambda given, tokens: stock(omni, given, tokens)) == []


@every_family
def test_the_checkpoint_keeps_the_contract(name, tmp_path):
    assert contract.of_folder(registry.families()[name], FAMILIES[name][0].build(tmp_path / "model")) == []
