"""Every field of every method changes something somewhere, or is refused with the reason where it cannot."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file

from omnicli.compress.chain import Chain
from omnicli.compress.methods.avoc import Avoc
from omnicli.compress.methods.fastv import FastV
from omnicli.compress.methods.omnizip import OmniZip
from omnicli.compress.methods.seats import Seats
from omnicli.config import config, registry
from omnicli.errors import ConfigError
from omnicli.testing import methods as contract
from omnicli.testing.clips import clip, question
from omnicli.types import MediaTokens, Query
from tests.compress.methods.test_omnisift import network, saved, timed
from tests.compress.methods.test_seats import uneven

METHODS = registry.methods()
FIELDS = [(name, f.name) for name, cls in METHODS.items() for f in dataclasses.fields(cls)]
CLIP = timed(clip(blocks=8, audio=10, seed=3))
DENSE = timed(clip(blocks=8, audio=10, rows=6, cols=8, seed=3))
FILE = "a file"


class Backbone:
    """An LLM whose layers each attend to noise of their own, in shares of the stretch that is read."""

    depth = contract.DEPTH

    def __init__(self, tokens: MediaTokens) -> None:
        self.logits = torch.randn(self.depth, len(tokens), generator=torch.Generator().manual_seed(7))

    def attention(self, stretches, layers):
        read = torch.zeros(len(layers), self.logits.shape[1])
        for stretch in stretches:
            read[:, stretch] = self.logits[list(layers), stretch].softmax(1)
        return read.mean(0)


def with_llm(tokens: MediaTokens) -> Query:
    """Return the question for a clip, with an LLM at hand."""
    return dataclasses.replace(question(tokens), backbone=Backbone(tokens))


def one_frame_asked_for() -> MediaTokens:
    """Return a clip of 20 frames, of which the question asks for the eighth and for none of the others."""
    tokens = clip(blocks=20, audio=30, seed=3)
    shown = ((tokens.window == 7) & (tokens.modality == 0)).float()
    like = question(tokens).embeddings.mean(0)
    return dataclasses.replace(tokens, features=tokens.features + 9 * shown[:, None] * like)


class Case(NamedTuple):
    """Values of a field of which any two make a difference, beside which other settings."""

    one: Any
    other: Any
    beside: dict[str, Any] = {}  # noqa: RUF012 - never changed
    tokens: MediaTokens = CLIP
    also: tuple[Any, ...] = ()
    llm: bool = False
    """Whether the LLM is at hand."""


SOME = {"retention": 0.3}
GUIDED = {"retention_video": 0.3, "retention_audio": 0.4}
BY_MODALITY = {"retention_video": 0.37, "retention_audio": 0.53}
SHARED = {
    "tokens": Case(40, 60),
    "retention": Case(0.3, 0.5),
    "retention_video": Case(0.3, 0.6),
    "retention_audio": Case(0.3, 0.6, {"retention_video": 0.3}),
    "split": Case("1:1", "1:3", SOME),
    "mode": Case("clean", "official", BY_MODALITY),
    "audio": Case("intact", "select", SOME),
    "diversity": Case(0.0, 0.9, SOME),
    "radius": Case(0, 3, {**SOME, "diversity": 0.9}),
    "scorer": Case("identity", FILE, SOME),
    "selector": Case("untrained", FILE, SOME),
    "audio_window": Case(3, 50, {**BY_MODALITY, "mode": "official", "audio": "select"}),
    "contextual": Case(0.05, 0.3, {"retention": 0.6}),
    "layer": Case(2, 5, SOME),
    "anchor_step": Case(1, 4, {"retention": 0.6, "threshold": -1.0, "segments": 1}),
    "context": Case(0.2, 0.6, {"retention": 0.6}),
    "ignore": Case(None, -1.0, {"retention": 0.6, "threshold": -1.0, "segments": 1}),
    "keep_weight": Case(0.0, 0.8, {"retention": 0.6}),
    "segments": Case(1, 8, {"retention": 0.6, "threshold": -1.0}),
    "threshold": Case(-1.0, 0.99, {"retention": 0.6, "segments": 1}),
    "memory": Case(True, False, SOME),
    "merge_sound": Case(True, False, SOME),
    "frame_keep": Case(0.3, 1.0, {"retention": 0.2}),
    "floor": Case(0.0, 3.0, {"retention": 0.2}),
    "anchors": Case(0.0, 0.1, {"retention": 0.5}),
    "group": Case(1, 3, {"retention": 0.4, "anchors": 0.1}),
    "discard_intercept": Case(0.75, 0.4, {**GUIDED, "discard_min": 0.0, "discard_max": 1.0}, DENSE),
    "discard_slope": Case(0.1, 0.7, {**GUIDED, "discard_min": 0.0}, DENSE),
    "discard_min": Case(0.0, 0.6, GUIDED, DENSE),
    "discard_max": Case(0.6, 0.75, {**GUIDED, "discard_min": 0.0}, DENSE),
    "neighbours": Case(1, 5, SOME),
    "seed": Case(0, 1, SOME),
    "encoder": Case(1.25, 1.4, SOME),
    "drop_layers": Case("auto", "10-13-16", SOME),
    "late_layer": Case("auto", "off", SOME),
    "temperature": Case(0.05, 50.0, SOME),
    "keep_kv": Case(True, False, SOME),
    "stage_one": Case(  # none needs early drops
        "winDivPrune",
        "unweighted",
        {**SOME, "drop_layers": "5-7-9"},
        also=("Random", "VisionZip-om", "OmniZip", "none"),
    ),
    "decay": Case("exponential", "equal", SOME),
    "allocation": Case("top-down", "inter-window", SOME, uneven(2, width=16), ("intra-window", "decoupled", "global")),
    "relevance": Case(True, False, {**SOME, "scorer": "identity"}),
    "importance": Case(True, False, {**SOME, "scorer": "identity"}),
    "stretch_s": Case(5.0, 60.0, SOME, llm=True),
    "scorer_layers": Case(0.25, 1.0, SOME, llm=True),
    "kernel": Case("mixed", "exponential", {"retention_video": 0.3}),
    "spread": Case("even", "relevance", {"retention_video": 0.3}),
    "cut": Case(-1.0, 0.4, BY_MODALITY),
    "least_s": Case(0.0, 1.2, BY_MODALITY, also=(5.0,)),
    "change_weight": Case(0.0, 2.0, BY_MODALITY),
    "outlier_weight": Case(0.0, 2.0, BY_MODALITY),
    "saliency_weight": Case(0.0, 2.0, BY_MODALITY),
    "refresh_s": Case(None, 4.0, {"retention_video": 0.6}),
    "least": Case(0.0, 0.4, BY_MODALITY),
    "audio_second": Case(13, 25, {**BY_MODALITY, "mode": "official"}),
}
"""By field, whatever the method."""
OWN = {
    ("fastvid", "merge"): Case("straightforward", "parallel", {"retention": 0.6}),
    ("visionzip", "merge"): Case("add", "mean", {**SOME, "contextual": 0.2, "audio": "select"}),
    ("visionzip-om", "merge"): Case("add", "mean", {**SOME, "contextual": 0.2}),
    ("seats", "retention_video"): Case(0.3, 0.6, {"retention_audio": 0.5}),
    ("dycoke", "mode"): Case("clean", "official", {"retention_video": 0.37}),
    ("dash", "merge"): Case(0, 1, SOME, also=(3,)),
    ("dash", "guidance"): Case(0.0, 1.0, BY_MODALITY),
    ("omnizip", "guidance"): Case("audio", "none", BY_MODALITY),
    ("omac", "guidance"): Case(
        "memory",
        "visual",
        {"retention_video": 0.1, "retention_audio": 0.3, "frame_keep": 0.1},
        one_frame_asked_for(),
        ("none",),
    ),
    ("cdpruner", "relevance"): Case(0.0, 0.5, {"retention_video": 0.3}, also=(1.0,)),
    ("vidcom2", "temperature"): Case(0.01, 50.0, {"retention_video": 0.5}),
    ("avoc", "radius"): Case(0, 3, {**SOME, "diversity": 0.9}, also=(None,)),
}
"""By method and field, where another field of this name means something else."""
NEVER = {
    ("fastvid", "audio"): ("select", "fastvid has no counterpart for sound"),
    ("vidcom2", "audio"): ("select", "vidcom2 has no counterpart for sound"),
    ("avoc-stream", "stretch_s"): (5.0, "only avoc's scorer backbone has it"),
    ("avoc-stream", "scorer_layers"): (0.9, "only avoc's scorer backbone has it"),
}
"""Fields of which a method refuses all but the default, and why."""
REFUSED = NEVER | {
    ("omac", "split"): ("adaptive", "no scores"),
    ("avoc-stream", "scorer"): ("backbone", "still coming in cannot be read"),
    ("avoc-stream", "radius"): (None, "cannot be compared with"),
}
"""One value that a method always refuses, and why."""
INTACT = "audio is intact"


def made(name: str, settings: dict[str, Any], files: dict[str, str]):
    given = {key: files[key] if value == FILE else value for key, value in settings.items()}
    return METHODS[name](**given)


def outcome(method, tokens: MediaTokens = CLIP, llm: bool = False) -> list[Any]:
    """Return all that a run does: what is kept, what it becomes, what is dropped where, and what the caches hold."""
    run, drops = contract.choose(method, tokens, with_llm(tokens) if llm else None), []
    left = len(run.entered)
    for layer, keep in run.drops:
        drops += [(layer, keep.tolist())] if len(keep) < left else []
        left = len(keep)
    holds = method.late_removal(contract.DEPTH), method.keeps_kv()
    return [run.entered.features.tolist(), drops, run.selection.indices.tolist(), holds]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A scorer and a selector for tokens of width 16."""
    folder, g = tmp_path_factory.mktemp("weights"), torch.Generator().manual_seed(0)
    random = {n: torch.randn(16, 4, generator=g) for n in ("w_q", "w_k", "importance_w_q", "importance_w_k")}
    save_file(random, folder / "scorer.safetensors")
    return {"scorer": str(folder / "scorer.safetensors"), "selector": saved(folder, network())}


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_a_field_acts_or_is_refused(name, field, files):
    if (name, field) in REFUSED:
        value, why = REFUSED[name, field]
        with pytest.raises(ConfigError, match=f"{field}: .*{why}"):
            made(name, {**SOME, field: value}, files)
        if (name, field) in NEVER:
            return
    case = OWN.get((name, field)) or SHARED.get(field)
    assert case is not None, f"nothing shows that {name}.{field} acts; add a case"
    if field == "split" and getattr(METHODS[name](), "audio", "") == "intact":
        with pytest.raises(ConfigError, match=rf"^split: {INTACT}"):
            made(name, {**case.beside, field: case.one}, files)
        if (name, "audio") in NEVER:
            return
        case = case._replace(beside={**case.beside, "audio": "select"})
    values = (case.one, case.other, *case.also)
    outcomes = [outcome(made(name, {**case.beside, field: v}, files), case.tokens, case.llm) for v in values]
    for (one, is_one), (other, is_other) in itertools.combinations(zip(values, outcomes, strict=True), 2):
        assert is_one != is_other, f"{name}.{field}: {one} and {other} beside {case.beside} do the same"


IDLE = [
    (
        "seats",
        {"retention_video": 1.0, "retention_audio": 1.0},
        {"late_layer": "2", "drop_layers": "3-5", "encoder": 1.2, "stage_one": "Random"},
    ),
    (
        "seats",
        {"retention": 1.0},
        {"temperature": 3.0, "late_layer": "off", "decay": "equal", "allocation": "global", "keep_kv": True},
    ),
    ("seats", {"retention": 1.0, "mode": "official"}, {"late_layer": "2"}),
    ("fastv", {"retention": 1.0}, {"layer": 5, "split": "1:1"}),
    ("fastv-om", {"retention": 1.0}, {"layer": 5}),
    ("avoc", {**SOME, "diversity": 0.0}, {"radius": 1}),
    ("avoc", {**SOME, "scorer": "identity"}, {"stretch_s": 5.0, "scorer_layers": 0.9}),
    ("avoc-stream", {**SOME, "diversity": 0.0}, {"radius": 1}),
    ("avoc-stream", SOME, {"stretch_s": 5.0, "scorer_layers": 0.9}),
    ("omac", {**SOME, "guidance": "none"}, {"floor": 0.5}),
    ("random", BY_MODALITY, {"split": "1:1"}),
    ("avoc", {"retention_audio": 0.5}, {"split": "adaptive"}),
    ("divprune", SOME, {"audio_window": 7, "split": "3:1"}),
    ("divprune", {**SOME, "mode": "official"}, {"audio_window": 7}),
    ("divprune-om", SOME, {"audio_window": 7}),
    ("visionzip", SOME, {"audio_window": 7, "split": "rates 2:3"}),
    ("visionzip", {**SOME, "contextual": 0.0}, {"merge": "mean"}),
    ("visionzip-om", {**SOME, "contextual": 0.0}, {"merge": "mean", "audio_window": 7}),
    ("omnizip", {**SOME, "group": 0}, {"anchors": 0.2}),
    ("omnizip", {**SOME, "anchors": 0.0}, {"group": 7}),
    ("omnizip", {**SOME, "discard_min": 0.5, "discard_max": 0.5}, {"discard_intercept": 0.6, "discard_slope": 0.9}),
    ("omnizip", {**SOME, "discard_slope": 0.0}, {"discard_intercept": 0.6, "discard_min": 0.1, "discard_max": 0.9}),
    ("fastvid", {**SOME, "context": 0.0}, {"anchor_step": 2, "keep_weight": 0.2, "merge": "parallel", "segments": 2}),
    ("fastvid", {**SOME, "context": 0.0}, {"threshold": 0.1}),
    ("fastvid", {**SOME, "keep_weight": 1.0}, {"merge": "parallel"}),
]


@pytest.mark.parametrize(("name", "beside", "fields"), IDLE, ids=str)
def test_what_cannot_act_is_refused_and_would_have_changed_nothing(name, beside, fields):
    method = METHODS[name](**beside)
    assert set(fields) <= set(method.idle())
    for field, value in fields.items():
        with pytest.raises(ConfigError) as error:
            METHODS[name](**beside, **{field: value})
        assert error.value.problems == [f"{field}: {method.idle()[field]}"]
        forced = copy.copy(method)
        object.__setattr__(forced, field, value)
        assert outcome(method, llm=True) == outcome(forced, llm=True), f"{name}.{field} acts"


def test_defaults_are_never_refused():
    """What `params()` gives of any settings makes them again, idle fields at their defaults included."""
    for name, beside, _ in IDLE:
        method = METHODS[name](**beside)
        assert config.load_config({"method": name, "params": method.params()}).compressor == method


def test_every_idle_field_is_in_a_case():
    told = {(name, field) for name, beside, _ in IDLE for field in METHODS[name](**beside).idle()}
    shown = {(name, field) for name, _, fields in IDLE for field in fields}
    alike = {(name, "split") for name, _ in told}
    assert told - shown - alike == set(), "add them to IDLE"


@pytest.mark.parametrize("field", ["tokens", "retention", "retention_video", "retention_audio", "split", "stage_one"])
def test_a_budget_behind_another_methods_is_refused(field):
    value = {"tokens": 50, "split": "1:1", "stage_one": "Random"}.get(field, 0.5)
    with pytest.raises(ConfigError, match=rf"^seats\.{field}: in a chain the budget is what the method before lets in"):
        Chain(Avoc(), Seats(**{field: value}))
    assert Chain(Avoc(), FastV(retention=0.5)).second.retention == 0.5, "FastV's is a share of what enters"


def test_the_settings_of_the_report_are_one_line():
    sets = ["seats.retention_video=1", "seats.retention_audio=1", "seats.late_layer=2"]
    with pytest.raises(ConfigError) as error:
        config.load_config("seats-10", sets)
    assert error.value.problems == ["seats.late_layer: the retention is 1, so every layer reads every token; lower it"]
    with pytest.raises(ConfigError, match=r"anchors: .*group: "):
        OmniZip(anchors=2.0, group=-1)
