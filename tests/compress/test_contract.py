"""Every method keeps the contract. Runs over the registry: a new method is tested without an edit here."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from omnicli import testing
from omnicli.config import registry
from omnicli.testing import methods as contract
from omnicli.types import Selection
from tests.support import tiny, tiny_minicpm, tiny_qwen3

METHODS = registry.methods()
LONG = {"avoc-stream"}
"""Methods that take more than 5 s for 100,000 tokens: block by block, as the film comes."""
FAMILIES = {"qwen2-5-omni": tiny.model, "minicpm-o": tiny_minicpm.model, "qwen3-omni-moe": tiny_qwen3.model}


@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_keeps_the_contract(name):
    points = [point for point in contract.POINTS if name not in LONG or point is not contract.memory]
    assert testing.of_method(METHODS[name], points) == []
    assert METHODS[name]().name == name


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(LONG))
def test_long_ones_need_no_n_by_n_either(name):
    assert testing.of_method(METHODS[name], [contract.memory]) == []


@pytest.mark.parametrize(
    "name", [n for n, cls in METHODS.items() if "mode" in {f.name for f in dataclasses.fields(cls)}]
)
def test_released_modes_keep_all_but_the_budget(name):
    cls = METHODS[name]
    official = dataclasses.make_dataclass(
        "Official", [("mode", str, "official")], bases=(cls,), frozen=True, namespace={"name": name}
    )
    left = {contract.settings, contract.budgets, contract.memory}
    assert testing.of_method(official, [point for point in contract.POINTS if point not in left]) == []


@torch.inference_mode()
@pytest.mark.parametrize("family", list(FAMILIES))
def test_methods_choose_among_what_a_family_encodes(family):
    omni = FAMILIES[family]()
    frames = tiny.frames(6, 4 * omni.facts.pixel_unit, 6 * omni.facts.pixel_unit)
    times, capture = torch.arange(6.0).double().numpy(), frozenset({"saliency", "keys"})
    tokens = tiny.encode(omni, frames, times, tiny.sound(5.3), capture=capture).tokens
    question = omni.query(omni.prompt("Who speaks last?", video=True, audio=True))
    for name in METHODS:
        for retention in (0.2, 1.0):
            selection = METHODS[name].with_retention(retention).compress(tokens, question)
            contract.check(selection.indices, len(tokens), name)
            plain, kept = tokens.select(Selection(selection.indices)), tokens.select(selection)
            assert kept.features.dtype == tokens.features.dtype
            assert contract.differing(dataclasses.replace(plain, features=kept.features), kept) is None
            assert retention < 1 or contract.differing(kept, tokens) is None, name
