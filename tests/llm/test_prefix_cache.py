"""What questions share is read once, and nobody can tell from the answers."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from omnicli.config.config import load_config
from omnicli.llm.decode import DecodeOptions, generate
from omnicli.llm.prefix_cache import PrefixCache
from omnicli.types import Modality
from tests.llm.test_prefill import clip_of
from tests.support import tiny

QUESTIONS = ("Who speaks last?", "What is the secret number, and where is it shown?", "Why?")
PRESETS = ("full", "avoc-10", "seats-35", "omnizip-45", "fastv-25", "avoc-seats")


def method_of(preset):
    """Return a preset's method; FastV keeps more, because two of six layers read everything."""
    more = ["fastv.retention_video=0.8", "fastv.retention_audio=0.9"] if preset.startswith("fastv") else []
    return load_config(preset, more).compressor


@pytest.fixture(scope="module")
def omni():
    return tiny.model(layers=6)


@pytest.fixture
def rows(omni, monkeypatch):
    """Return a list that collects how many positions each call of a layer works on."""
    seen, real = [], omni.layer

    def layer(index, hidden, *args, **kwargs):
        seen.append((index, hidden.shape[0]))
        return real(index, hidden, *args, **kwargs)

    monkeypatch.setattr(omni, "layer", layer)
    return seen


def ask(omni, reader, clip, question, preset, **kwargs):
    """Return the logits behind the prompt, the tokens generated, and what layers kept."""
    method = method_of(preset)
    prompt = omni.prompt(question, video=clip.video, audio=clip.audio)
    kept = clip.tokens.select(method.compress(clip.tokens, omni.query(prompt)))
    given = omni.sequence(prompt, clip, kept)
    counts = clip.tokens.count(Modality.VIDEO), clip.tokens.count(Modality.AUDIO)
    found, cache = reader.read(given, kept, method, encoded=counts, room=8, **kwargs)
    text = generate(omni, cache, found.logits, given.next_position, DecodeOptions(max_new_tokens=4))
    text.finish()
    return found.logits, text.token_ids, found.levels


def clip_for(omni, preset):
    needs = method_of(preset).needs
    pictures = tiny.frames(8)
    return tiny.encode(omni, pictures, [0.5 * i for i in range(8)], tiny.sound(4.5), capture=needs)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.slow
def test_follow_ups_are_answered_as_if_they_were_first(omni, preset):
    clip, warm = clip_for(omni, preset), PrefixCache(omni)
    for i, question in enumerate((QUESTIONS[0], QUESTIONS[1], QUESTIONS[0])):
        cold = ask(omni, PrefixCache(omni), clip, question, preset, last=True)
        found = ask(omni, warm, clip, question, preset)
        assert torch.equal(found[0], cold[0]) and found[1:] == cold[1:]
        if i == 0 or method_of(preset).name not in ("avoc", "avoc+seats"):
            assert (warm.reused > 0) == (i > 0)


@pytest.mark.parametrize("preset", ["full", "seats-35", "fastv-25"])
def test_a_follow_up_pays_for_its_own_tokens_and_the_pruned_middle(omni, rows, preset):
    clip, reader = clip_for(omni, preset), PrefixCache(omni)
    ask(omni, reader, clip, QUESTIONS[0], preset)
    whole = max(n for _, n in rows)
    rows.clear()
    ask(omni, reader, clip, QUESTIONS[2], preset)
    method = method_of(preset)
    first = min(method.layers(6), default=5)
    own = [n for layer, n in rows if layer <= first]
    assert whole > 40 and 0 < max(own) < 30, "before a method prunes only the question is read"
    behind = [n for layer, n in rows if layer == first + 1]
    assert not behind or max(behind) < whole


def test_another_selection_and_another_method_begin_anew(omni):
    clip, reader = clip_of(omni), PrefixCache(omni)
    for preset, reused in (("full", False), ("full", True), ("random-10", False), ("fastv-25", False), ("full", False)):
        ask(omni, reader, clip, QUESTIONS[0], preset)
        assert (reader.reused > 0) == reused
    other = clip_of(omni, seconds=4.0)
    ask(omni, reader, other, QUESTIONS[0], "full")
    assert reader.reused == 0


def test_media_at_the_same_positions_are_not_taken_for_the_same(omni):
    clip, reader = clip_of(omni), PrefixCache(omni)
    tokens = clip.tokens

    def changed(**fields):
        return dataclasses.replace(clip, tokens=dataclasses.replace(tokens, **fields))

    other, levels = tokens.features.clone(), torch.randn(2, *tokens.features.shape)
    other[5] += 1
    for made, reused in (
        (clip, False),
        (changed(features=other), False),
        (clip, False),
        (changed(layer_features=levels), False),
        (changed(layer_features=levels.clone()), True),
        (changed(layer_features=levels + 1), False),
        (clip, False),
    ):
        found = ask(omni, reader, made, QUESTIONS[0], "full")
        assert (reader.reused > 0) == reused
        assert torch.equal(found[0], ask(omni, PrefixCache(omni), made, QUESTIONS[0], "full")[0])


def test_the_last_question_leaves_nothing(omni):
    clip, reader = clip_of(omni), PrefixCache(omni)
    ask(omni, reader, clip, QUESTIONS[0], "fastv-25")
    ask(omni, reader, clip, QUESTIONS[1], "fastv-25", last=True)
    assert reader.reused > 0 and reader._prefix is None
    ask(omni, reader, clip, QUESTIONS[1], "fastv-25")
    assert reader.reused == 0


def test_a_question_that_fails_leaves_nothing_half_read(omni, monkeypatch):
    clip, reader = clip_of(omni), PrefixCache(omni)
    ask(omni, reader, clip, QUESTIONS[0], "full")
    cold = ask(omni, PrefixCache(omni), clip, QUESTIONS[1], "full")
    with monkeypatch.context() as broken:
        broken.setattr("omnicli.llm.prefix_cache.prefill", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ask(omni, reader, clip, QUESTIONS[2], "full")
    assert torch.equal(ask(omni, reader, clip, QUESTIONS[1], "full")[0], cold[0])
