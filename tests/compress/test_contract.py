"""What holds for every method. Parametrised over the registry: a new method is tested without an edit here."""

from __future__ import annotations

import dataclasses
import resource
import sys
from pathlib import Path

import pytest
import torch

from omnicli.config import registry
from omnicli.llm.pruning import LayerView
from omnicli.types import MediaTokens, Modality, Selection
from tests.compress.clips import clip, query
from tests.support import tiny, tiny_minicpm, tiny_qwen3

METHODS = registry.methods()
every_method = pytest.mark.parametrize("name", list(METHODS))
CLIPS = {
    "both": clip(),
    "two pictures a block": clip(blocks=5, pictures=2, sounds=3),
    "silent": clip(sounds=0),
    "audio only": clip(pictures=0),
    "one picture token": clip(blocks=1, sounds=0, rows=1, cols=1),
    "one sound token": clip(blocks=1, pictures=0, sounds=1),
    "one of each": clip(blocks=1, sounds=1, rows=1, cols=1),
    "bf16": clip(dtype=torch.bfloat16),
}
every_clip = pytest.mark.parametrize("kind", list(CLIPS))


def choose(name: str, tokens: MediaTokens, retention: float) -> Selection:
    question = query(tokens.features.shape[1], dtype=tokens.features.dtype)
    return METHODS[name].with_retention(retention).compress(tokens, question)


def prune_all(name: str, tokens: MediaTokens, retention: float, depth: int = 28) -> list[torch.Tensor]:
    """Run every prune() of a method, on what its compress() lets in; return what each kept."""
    return [
        keep
        for _, keep in _pruned(METHODS[name].with_retention(retention), choose(name, tokens, retention), tokens, depth)
    ]


def _pruned(method, selection: Selection, tokens: MediaTokens, depth: int) -> list[tuple[int, torch.Tensor]]:
    kept, now = [], tokens.select(selection)
    encoded, entered = counted(tokens), counted(now)
    for layer in method.layers(depth):
        generator = torch.Generator().manual_seed(layer)
        attention = torch.rand(len(now), generator=generator) / (2 * len(tokens))
        hidden = torch.randn(now.features.shape, generator=generator).to(tokens.features.dtype)
        asked = method.needs & {"last_query_attention", "output_attention"}
        view = LayerView(layer, depth, hidden, attention if asked else None, now, entered, encoded)
        keep = method.prune(layer, view)
        kept.append((layer, keep))
        now = now.select(Selection(keep))
    return kept


def counted(tokens: MediaTokens) -> tuple[int, int]:
    return tokens.count(Modality.VIDEO), tokens.count(Modality.AUDIO)


def mean_over_layers(method, selection: Selection, tokens: MediaTokens, depth: int = 28) -> tuple[float, int]:
    """Return the media tokens that a layer reads on average, and how often tokens were dropped on the way."""
    drops = dict((layer, keep.numel()) for layer, keep in _pruned(method, selection, tokens, depth))
    late, now, total = method.late_removal(depth), len(selection.indices), 0
    for layer in range(depth):
        total += now
        now = 0 if layer == late else drops.get(layer, now)
    return total / depth, len(drops)


def check_indices(indices: torch.Tensor, n: int) -> None:
    assert indices.dtype == torch.int64 and indices.ndim == 1
    assert indices.numel() == 0 or (int(indices[0]) >= 0 and int(indices[-1]) < n)
    assert bool((indices[1:] > indices[:-1]).all()), "indices must be unique and ascending"


@every_clip
@every_method
def test_indices_are_unique_ascending_and_in_range(name, kind):
    tokens = CLIPS[kind]
    check_indices(choose(name, tokens, 0.3).indices, len(tokens))
    left = len(tokens)
    for keep in prune_all(name, tokens, 0.3):
        check_indices(keep, left)
        left = keep.numel()


@every_clip
@every_method
def test_something_is_kept_and_the_budget_is_met(name, kind):
    tokens = CLIPS[kind]
    method, selection = METHODS[name].with_retention(0.3), choose(name, tokens, 0.3)
    kept = tokens.select(selection)
    assert len(kept) >= 1
    assert selection.report["budget"] == {"video": kept.count(Modality.VIDEO), "audio": kept.count(Modality.AUDIO)}
    if "retention" in {f.name for f in dataclasses.fields(method)}:
        mean, drops = mean_over_layers(method, selection, tokens)
        asked = max(1, int(0.3 * len(tokens) + 0.5))
        # Before the LLM the budget is met exactly; inside it every drop rounds each modality to whole tokens.
        assert abs(mean - asked) <= (1 + drops if drops else 0)
        present = [m for m in Modality if tokens.count(m)]
        assert len(kept) < len(present) or all(kept.count(m) for m in present)
    shares = method.nominal(*counted(tokens))
    assert shares is None or all(0 <= share <= 1 for share in shares)


@every_clip
@every_method
def test_times_and_positions_are_those_of_the_tokens(name, kind):
    tokens = CLIPS[kind]
    selection = choose(name, tokens, 0.4)
    kept = tokens.select(selection)
    for field in ("start_s", "end_s", "window", "modality", "row", "col"):
        assert torch.equal(getattr(kept, field), getattr(tokens, field)[selection.indices])
    assert torch.equal(kept.position_ids, tokens.position_ids[:, selection.indices])
    assert bool((kept.window[1:] >= kept.window[:-1]).all())
    assert kept.features.dtype == tokens.features.dtype and bool(torch.isfinite(kept.features).all())


@every_clip
@every_method
def test_retention_one_is_no_compression_bit_for_bit(name, kind):
    tokens = CLIPS[kind]
    kept = tokens.select(choose(name, tokens, 1.0))
    for field in dataclasses.fields(tokens):
        before, after = getattr(tokens, field.name), getattr(kept, field.name)
        assert before is after is None or (before.dtype == after.dtype and torch.equal(before, after)), field.name
    assert all(keep.numel() == len(tokens) for keep in prune_all(name, tokens, 1.0))


@every_clip
@every_method
def test_twice_the_same_is_the_same(name, kind):
    tokens = CLIPS[kind]
    torch.manual_seed(1)
    first, pruned = choose(name, tokens, 0.3), prune_all(name, tokens, 0.3)
    torch.manual_seed(2)
    again = choose(name, tokens, 0.3)
    assert torch.equal(first.indices, again.indices) and first.report == again.report
    assert (first.features is None) == (again.features is None)
    assert first.features is None or torch.equal(first.features, again.features)
    assert all(torch.equal(a, b) for a, b in zip(pruned, prune_all(name, tokens, 0.3), strict=True))


@every_method
def test_hidden_randomness_is_neither_used_nor_changed(name):
    state = torch.get_rng_state()
    choose(name, CLIPS["both"], 0.3)
    assert torch.equal(torch.get_rng_state(), state)


@every_clip
@every_method
def test_input_is_not_modified(name, kind):
    tokens = CLIPS[kind]
    question = query(dtype=tokens.features.dtype)
    fields = [f.name for f in dataclasses.fields(tokens) if getattr(tokens, f.name) is not None]
    before = {f: getattr(tokens, f).clone() for f in fields}
    embeddings = question.embeddings.clone()
    selection = METHODS[name].with_retention(0.3).compress(tokens, question)
    tokens.select(selection).features.add_(1)
    assert all(torch.equal(before[f], getattr(tokens, f)) for f in fields)
    assert torch.equal(question.embeddings, embeddings)


@every_method
def test_no_question_token_is_no_crash(name):
    tokens = CLIPS["both"]
    empty = query(tokens=0)
    check_indices(METHODS[name].with_retention(0.3).compress(tokens, empty).indices, len(tokens))


@every_method
def test_report_and_settings_are_json(name):
    import json

    selection = choose(name, CLIPS["both"], 0.3)
    assert json.loads(json.dumps(selection.report)) == selection.report
    params = METHODS[name].with_retention(0.3).params()
    assert json.loads(json.dumps(params)) == params


@every_method
def test_default_settings_are_valid_and_frozen(name):
    method = METHODS[name]()
    assert method.name == name and method.problems() == []
    assert dataclasses.is_dataclass(method) and type(method).__dataclass_params__.frozen


@every_method
def test_bind_without_anything_shipped_changes_no_choice(name, tmp_path: Path):
    bound = METHODS[name].with_retention(0.3).bind(tmp_path)
    assert torch.equal(bound.compress(CLIPS["both"], query()).indices, choose(name, CLIPS["both"], 0.3).indices)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc and limits the address space")
@every_method
def test_no_n_by_n_at_a_hundred_thousand(name):
    tokens = clip(blocks=2000, rows=4, cols=7, sounds=22, width=8)
    assert len(tokens) == 100_000
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    # N x N is 10 GB even in bytes.
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2 * 2**30, hard))
    try:
        selection = choose(name, tokens, 0.1)
        _pruned(METHODS[name].with_retention(0.1), selection, tokens, 28)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    check_indices(selection.indices, len(tokens))


@pytest.fixture(
    scope="module",
    params=[tiny.model, tiny_minicpm.model, tiny_qwen3.model],
    ids=["qwen2-5-omni", "minicpm-o", "qwen3-omni-moe"],
)
def encoded(request) -> tuple[object, MediaTokens]:
    omni = request.param()
    clip_ = tiny.encode(
        omni,
        tiny.frames(6, 4 * omni.pixel_unit, 6 * omni.pixel_unit),
        torch.arange(6.0).double().numpy(),
        tiny.sound(5.3),
        capture=frozenset({"saliency", "keys"}),
    )
    return omni, clip_.tokens


@torch.inference_mode()
@every_method
def test_tokens_of_a_real_architecture(name, encoded):
    omni, tokens = encoded
    question = omni.query(omni.prompt("Who speaks last?", video=True, audio=True))
    for retention in (0.2, 1.0):
        selection = METHODS[name].with_retention(retention).compress(tokens, question)
        check_indices(selection.indices, len(tokens))
        kept = tokens.select(selection)
        assert torch.equal(kept.position_ids, tokens.position_ids[:, selection.indices])
        if tokens.layer_features is not None:
            assert torch.equal(kept.layer_features, tokens.layer_features[:, selection.indices])
        assert kept.features.dtype == tokens.features.dtype
        assert retention < 1 or torch.equal(kept.features, tokens.features)
