"""Loading a model onto several cards: which layers go where, and what is refused; see `tests.pretend` for the cards."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from omnicli.errors import ModelError
from omnicli.models import base, loading, placement
from omnicli.models.loading import load_model
from omnicli.models.weights.devices import split
from tests.support import tiny
from tests.support.pretend import CARDS, cards


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.build(tmp_path_factory.mktemp("models") / "thinker")


@pytest.mark.parametrize(
    ("device", "there", "words"),
    [
        ("cuda:0,cuda:2", 2, "cuda:2 is not available; 2 CUDA devices found"),
        ("cuda:0,cpu", 2, "'cpu' is not one of several cards"),
        ("cuda:0,", 2, "'' is not one of several cards"),
        ("cuda:1,cuda:1", 2, "cuda:1 is named twice"),
        ("cuda:all", 0, "0 CUDA devices found"),
    ],
)
def test_cards_that_cannot_be_meant_are_one_line(device, there, words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    with pytest.raises(ModelError, match=words) as told:
        load_model("pocket", device)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("quantize", ["none", "int8"])
@pytest.mark.parametrize("name", ["folder", "dummy:qwen3-omni-30b,layers=4,scale=0.02"])
@pytest.mark.slow
def test_layers_are_spread_over_the_cards_by_what_is_free(name, quantize, folder, monkeypatch):
    name = str(folder) if name == "folder" else name
    alone = load_model(name, "cpu", quantize=quantize)
    free = {1: 6 << 30, 2: 3 << 30}
    monkeypatch.setattr(loading, "resolve_devices", lambda device: CARDS[:2])
    monkeypatch.setattr(loading.torch.cuda, "mem_get_info", lambda card: (free[card.index], 8 << 30))
    with cards():
        omni = load_model(name, "cuda:0,cuda:1", quantize=quantize)
        assert omni.device == CARDS[0] and set(omni.devices) <= set(CARDS[:2]) and omni.quantized == quantize
        for layer, card in zip(omni.layers(), omni.layer_devices, strict=True):
            assert {t.device for t in (*layer.parameters(), *layer.buffers())} == {card}
        inside = {id(t) for layer in omni.layers() for t in (*layer.parameters(), *layer.buffers())}
        whole = [m for part in omni.weights().values() for m in part]
        rest = [t for m in whole for t in (*m.parameters(), *m.buffers()) if id(t) not in inside]
        assert rest and {t.device for t in rest} == {CARDS[0]}
        held = Counter()
        for m in whole:
            for t in (*m.parameters(), *m.buffers()):
                held[t.device] += t.nbytes
        every = sum(held.values())
        layer = placement._stored(alone.layers()[0])
        assert every == sum(placement._stored(m) for part in alone.weights().values() for m in part)
        wanted = min(every / 3, alone.depth * layer)  # a third of what is free is there
        assert abs(held[CARDS[1]] - wanted) <= layer / 2 + 8
        assert list(omni.layer_devices) == sorted(omni.layer_devices, key=CARDS.index), "in blocks"


def test_several_cards_are_refused_where_they_have_no_meaning(monkeypatch):
    monkeypatch.setattr(loading, "resolve_devices", lambda device: [torch.device("cuda", 0), torch.device("cuda", 1)])
    with pytest.raises(ModelError, match="several cards and --offload"):
        load_model("pocket", "cuda:0,cuda:1", offload=True)
    monkeypatch.setattr("omnicli.models.components.qwen_omni.QwenOmni.layers", base.OmniModel.layers)
    monkeypatch.setattr(loading.torch.cuda, "mem_get_info", lambda card: (1 << 30, 1 << 30))
    with pytest.raises(ModelError, match="cannot be on several cards"):
        load_model("pocket", "cuda:0,cuda:1")


def test_one_of_all_cards_is_a_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert loading.resolve_devices("cuda:all") == [torch.device("cuda", 0)]


@pytest.mark.parametrize(
    ("sizes", "free", "expected"),
    [
        ((48, 10, 0), [5, 5], [24, 24]),
        ((48, 10, 100), [5, 5], [19, 29]),
        ((48, 10, 100), [5, 5, 5], [9, 20, 19]),
        ((10, 10, 900), [5, 5], [0, 10]),
        ((10, 10, 0), [9, 1], [9, 1]),
        ((7, 10, 30), [1], [7]),
        ((10, 10, 0), [0, 1], [0, 10]),
    ],
)
def test_a_card_takes_layers_by_what_is_left_of_its_part(sizes, free, expected):
    assert split(*sizes, free) == expected
