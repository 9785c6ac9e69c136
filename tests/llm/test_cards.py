"""A model on several cards gives the bits that it gives on one, and no operation is asked to mix two cards.

There is no card: `tests.pretend` labels CPU tensors. That a forgotten move would be found is tested by forgetting each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import textwrap

import pytest
import torch

from omnicli import pipeline
from omnicli.config.config import load_config
from omnicli.llm import kv, prefill, prefix, prefix_cache, pruned_prefill, steps
from omnicli.llm.decode import DecodeOptions, generate
from omnicli.llm.prefix_cache import PrefixCache
from omnicli.models import parts, placement
from omnicli.models.loading import load_model
from omnicli.types import Modality
from omnicli.utils.attention_recorder import AttentionRecorder
from omnicli.utils.context import RunContext
from tests.llm.test_prefill import Keep
from tests.llm.test_prefix_cache import method_of
from tests.support import films, tiny, tiny_minicpm, tiny_qwen3
from tests.support.pretend import CARDS, cards

QUESTIONS = ("Who speaks last?", "Why?")
FAMILIES = {"qwen2_5_omni": tiny, "qwen3_omni_moe": tiny_qwen3, "minicpm_o": tiny_minicpm}
CASES = [
    *(("full", family, 3) for family in FAMILIES),
    ("avoc-10", "minicpm_o", 3),
    ("fastv-25", "qwen3_omni_moe", 5),
    ("seats-35", "qwen2_5_omni", 6),
]


def clip_of(omni, needs=frozenset()):
    family = FAMILIES[omni.family]
    pictures = tiny.frames(2, 448, 448) if family is tiny_minicpm else family.frames(6)
    return tiny.encode(omni, pictures, [0.5 * i for i in range(len(pictures))], tiny.sound(3.5), capture=needs)


def converse(omni, clip, method):
    """Ask two questions that share a beginning; return logits, ids, levels and what the answers rest on."""
    warm, out = PrefixCache(omni), []
    for question in QUESTIONS:
        prompt = omni.prompt(question, video=clip.video, audio=clip.audio)
        kept = clip.tokens.select(method.compress(clip.tokens, omni.query(prompt)))
        given = omni.sequence(prompt, clip, kept)
        looking = AttentionRecorder(range(omni.depth), len(kept))
        counts = clip.tokens.count(Modality.VIDEO), clip.tokens.count(Modality.AUDIO)
        found, cache = warm.read(given, kept, method, encoded=counts, room=3, context=RunContext(recorder=looking))
        text = generate(
            omni, cache, found.logits, given.next_position, DecodeOptions(max_new_tokens=3), recorder=looking
        )
        text.finish()
        out += [plain(found.logits), text.token_ids, found.levels, plain(found.kept), plain(looking.scores())]
    return out


def plain(tensor):
    return getattr(tensor, "held", tensor)


def same(one, other):
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(one, other, strict=True))


def spread(omni, *counts):
    """Put so many layers on the first cards, and the others on the next."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "split", lambda layers, *_: [*counts, layers - sum(counts)])
        omni.spread(CARDS[: len(counts) + 1], [1] * (len(counts) + 1))


def on_first_card(clip):
    return dataclasses.replace(clip, tokens=clip.tokens.to(CARDS[0]))


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "family", "layers"), CASES)
def test_answers_are_those_of_one_card_to_the_bit(preset, family, layers):
    omni, chosen = FAMILIES[family].model(layers=layers), method_of(preset)
    clip = clip_of(omni, chosen.needs & parts.CAPTURES)
    expected = converse(omni, clip, chosen)
    with cards() as seen:
        spread(omni, 1, layers // 2)
        seen.moved.clear()
        got = converse(omni, on_first_card(clip), chosen)
    assert same(got, expected)
    assert seen.moved["cpu:1", "cpu:2"] and seen.moved["cpu:2", "cpu:3"]


@pytest.mark.parametrize(
    ("family", "chunk", "keep_kv", "late"),
    [
        ("qwen3_omni_moe", 16, True, None),
        ("qwen3_omni_moe", 2048, False, 3),
        pytest.param("qwen2_5_omni", 16, False, None, marks=pytest.mark.slow),
        ("minicpm_o", 40, True, 3),
    ],
)
@pytest.mark.slow
def test_chunks_drops_and_late_removal(family, chunk, keep_kv, late):
    omni = FAMILIES[family].model(layers=5)
    clip = clip_of(omni)
    prompt = omni.prompt(QUESTIONS[0], video=True, audio=True)

    def ask(clip):
        pruner = Keep({1: 0.5, 2: 0.5}, frozenset({"last_query_attention", "output_attention"}), late, keep_kv)
        given = omni.sequence(prompt, clip)
        cache = kv.KVCache(
            omni.depth, omni.kv_heads, omni.head_dim, dtype=omni.dtype, device=omni.layer_devices, capacity=300
        )
        found = prefill.prefill(
            omni,
            given.embeds,
            given.position_ids,
            cache,
            media_span=given.media_span,
            media=clip.tokens,
            pruner=pruner,
            chunk=chunk,
        )
        text = generate(omni, cache, found.logits, given.next_position, DecodeOptions(max_new_tokens=3))
        text.finish()
        return [plain(found.logits), plain(found.kept), text.token_ids, cache.lengths]

    expected = ask(clip)
    with cards():
        prompt = dataclasses.replace(prompt, before=prompt.before.to(CARDS[0]), after=prompt.after.to(CARDS[0]))
        spread(omni, 2, 1)
        assert same(ask(on_first_card(clip)), expected)


def test_hidden_states_travel_only_where_the_card_changes():
    omni = tiny.model(layers=6)
    clip = clip_of(omni)
    with cards() as seen:
        spread(omni, 3)
        given = omni.sequence(omni.prompt("Why?", video=True, audio=True), on_first_card(clip))
        cache = kv.KVCache(6, omni.kv_heads, omni.head_dim, dtype=omni.dtype, device=omni.layer_devices, capacity=300)
        seen.moved.clear()
        prefill.prefill(omni, given.embeds, given.position_ids, cache, media_span=given.media_span)
        # Two parts of the prompt: hidden states, cos and sin there, the last row back.
        assert seen.moved["cpu:1", "cpu:2"] == 6 and seen.moved["cpu:2", "cpu:1"] == 2


LOOP = pruned_prefill.PrunedPrefill
MOVES = {
    "hidden": (placement.PlacedModel, "to_layer_device", "hidden.to(there)", "hidden"),
    "rope": (placement.PlacedModel, "to_layer_device", "part.to(there)", "part"),
    "deepstack": (prefix, "add_extra", ".to(hidden)", ".to(hidden.dtype)"),
    "prefill's last row": (prefill, "read_rows", "hidden[-1:].to(model.device)", "hidden[-1:]"),
    "a prefix": (prefix, "read_rows", ", device=model.layer_devices[layers - 1]", ""),
    "attention for a method": (LOOP, "_choose", "attention.to(self._model.device)", "attention"),
    "what to drop": (LOOP, "read", ".to(hidden.device)", ""),
    "the pruned loop's last row": (LOOP, "read", "hidden[-1:].to(model.device)", "hidden[-1:]"),
    "a layer of the pruned loop": (LOOP, "read", "hidden, rope = model.to_layer_device(layer, hidden, rope)", "pass"),
    "rows of a cache": (kv.KVCache, "keep", "indices.to(self.devices[layer])", "indices"),
    "buffers": (prefix_cache.PrefixCache, "read", "device=model.layer_devices", "device=model.device"),
    "what an answer rests on": (AttentionRecorder, "add", "attention.to(media.device)", "attention"),
    "a token written": (steps.Steps, "_by_layer", "hidden.to(model.device)", "hidden"),
}


@pytest.mark.parametrize(
    "move", ["", *(pytest.param(move, marks=pytest.mark.slow if i % 4 else ()) for i, move in enumerate(MOVES))]
)
def test_a_move_that_is_forgotten_is_found(move, monkeypatch):
    """The moves in the source, each taken out in turn; without that, the same run passes."""
    omni = tiny_qwen3.model(layers=4)
    clip = clip_of(omni)
    if move:
        owner, name, there, instead = MOVES[move]
        function = inspect.unwrap(getattr(owner, name))
        source = textwrap.dedent(inspect.getsource(function))
        assert source.count(there) == 1
        made = dict(function.__globals__)
        exec(source.replace(there, instead), made)
        monkeypatch.setattr(owner, name, made[name])
    attention = frozenset({"last_query_attention"})
    pruners = [Keep({2: 0.5}, attention, keep_kv=False), None]
    with cards():
        spread(omni, 1)  # deepstack enters on the second card too
        mixed = pytest.raises(RuntimeError, match=r"tensors on|same device") if move else contextlib.nullcontext()
        with mixed:
            for pruner in pruners:
                converse(omni, on_first_card(clip), Both(pruner) if pruner else load_config("full").compressor)


@pytest.mark.slow
def test_a_film_is_encoded_on_the_first_card_and_answered_on_both(tmp_path, monkeypatch):
    film, settings = films.write(tmp_path / "film.mp4", 3.2), load_config("avoc", ["generate.max_new_tokens=3"])
    (alone,) = pipeline.ask(
        film, list(QUESTIONS[:1]), config=settings, model=load_model("pocket", "cpu"), evidence=True
    )
    monkeypatch.setattr("omnicli.models.loading.resolve_devices", lambda device: CARDS[:2])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda card: ((16 >> card.index) << 30, 16 << 30))
    with cards() as seen:
        with torch.inference_mode():  # as `pipeline` computes: labels cannot go between the two
            model = load_model("pocket", "cuda:0,cuda:1")
        assert set(model.layer_devices) == set(CARDS[:2])
        (both,) = pipeline.ask(film, list(QUESTIONS[:1]), config=settings, model=model, evidence=True)
    assert seen.moved["cpu:1", "cpu:2"]
    assert (both.answer, both.tokens, both.evidence) == (alone.answer, alone.tokens, alone.evidence)
    assert both.model["device"] == "cpu:1,cpu:2"


class Both:
    """A pruner as a whole method: everything enters the LLM."""

    def __init__(self, pruner):
        self.pruner = pruner

    def __getattr__(self, name):
        return getattr(self.pruner, name)

    def compress(self, tokens, query):
        return load_config("full").compressor.compress(tokens, query)
