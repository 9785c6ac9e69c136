"""The LLM asked what a prompt attends to, stretch by stretch: the same numbers as a prefill of that stretch."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from omnicli.compress.groups import spans
from omnicli.config.config import load_config
from omnicli.llm.kv import KVCache
from omnicli.llm.prefill import prefill
from omnicli.llm.stretches import StretchReader
from omnicli.types import Modality
from omnicli.utils.attention_recorder import AttentionRecorder
from omnicli.utils.context import RunContext
from tests.llm.test_cards import FAMILIES, clip_of, on_first_card, spread
from tests.support import tiny, tiny_minicpm, tiny_qwen3
from tests.support.pretend import cards

QUESTION = "What is said?"


def long_clip(omni, *, pictures=True, sound=True):
    """Return a clip of 16 s, the later ones unlike the first."""
    step = 4 if FAMILIES[omni.family] is tiny_minicpm else 1  # its frames are large
    frames = tiny.frames(4, 448, 448) if step == 4 else FAMILIES[omni.family].frames(16)
    times = [float(i) for i in range(0, 16, step)]
    return tiny.encode(
        omni, frames if pictures else None, times if pictures else (), tiny.sound(16.0) if sound else None
    )


def prompt_of(omni, clip):
    return omni.prompt(QUESTION, video=clip.video, audio=clip.audio)


def read_whole(omni, clip, layers):
    """Return the attention of the prompt's last token, mean over layers and heads, in an ordinary prefill."""
    said = omni.sequence(prompt_of(omni, clip), clip)
    cache = KVCache(
        omni.depth, omni.kv_heads, omni.head_dim, dtype=omni.dtype, device=omni.device, capacity=len(said.embeds)
    )
    looking = AttentionRecorder(layers, len(clip.tokens))
    prefill(
        omni,
        said.embeds,
        said.position_ids,
        cache,
        media_span=said.media_span,
        media=clip.tokens,
        context=RunContext(recorder=looking),
    )
    return looking.scores()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", [range(1), range(2), range(1, 3)])
def test_one_stretch_is_an_ordinary_reading(family, layers):
    omni = FAMILIES[family].model(layers=4)
    clip = clip_of(omni)
    asked = StretchReader(omni, prompt_of(omni, clip), clip)
    found = asked.attention([slice(0, len(clip.tokens))], layers)
    torch.testing.assert_close(found, read_whole(omni, clip, layers), rtol=0, atol=1e-6)
    assert found.std() > 1e-4
    assert asked.work == [(len(omni.sequence(prompt_of(omni, clip), clip).embeds), layers.stop)]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_stretch_is_read_as_a_clip_of_its_own(family):
    omni = FAMILIES[family].model(layers=4)
    clip = long_clip(omni)
    parts = spans(clip.tokens, 6.0, 10_000)
    assert len(parts) == 3 and parts[0].start == 0 and parts[-1].stop == len(clip.tokens)
    found = StretchReader(omni, prompt_of(omni, clip), clip).attention(parts, range(2))
    for rows in parts:
        alone = read_whole(omni, clip.stretch(rows), range(2))
        torch.testing.assert_close(found[rows], alone, rtol=0, atol=1e-6)
        assert 0 < float(found[rows].sum()) < 1  # the text has the rest
    backwards = StretchReader(omni, prompt_of(omni, clip), clip).attention(parts[::-1], range(2))
    torch.testing.assert_close(backwards, found, rtol=0, atol=1e-6)
    some = StretchReader(omni, prompt_of(omni, clip), clip).attention(parts[1:2], range(2))
    assert not some[: parts[1].start].any() and not some[parts[1].stop :].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stretch_stands_where_the_clip_begins(family):
    omni = FAMILIES[family].model(layers=2)
    clip = long_clip(omni)
    rows = spans(clip.tokens, 6.0, 10_000)[1]
    part, old = clip.stretch(rows), clip.tokens.position_ids[:, rows]
    new, sound = part.tokens.position_ids, part.tokens.modality == Modality.AUDIO
    moved = old - new
    assert new[0].min() == clip.tokens.position_ids[0].min()
    assert (moved[0] == moved[0, 0]).all() and moved[0, 0] > 0
    assert (moved[:, sound] == moved[0, 0]).all()
    assert not moved[1:, ~sound].any()
    assert part.next_position == new.max() + 1 and part.max_position == new.max()
    first = spans(clip.tokens, 6.0, 10_000)[0]
    assert torch.equal(clip.stretch(first).tokens.position_ids, clip.tokens.position_ids[:, first])
    with pytest.raises(ValueError, match="at least one token"):
        clip.stretch(slice(3, 3))


def test_the_prompts_beginning_is_read_once(monkeypatch):
    omni = tiny.model(layers=4)
    clip = long_clip(omni)
    prompt, rows, real = prompt_of(omni, clip), [], omni.layer

    def layer(index, hidden, *args, **kwargs):
        rows.append((index, len(hidden)))
        return real(index, hidden, *args, **kwargs)

    monkeypatch.setattr(omni, "layer", layer)
    parts = spans(clip.tokens, 4.0, 10_000)
    StretchReader(omni, prompt, clip).attention(parts, range(2))
    before, after = prompt.before.numel(), prompt.after.numel()
    sizes = [rows.stop - rows.start for rows in parts]
    assert rows == [(i, n + after + (before if first == 0 else 0)) for first, n in enumerate(sizes) for i in range(2)]


def test_on_two_cards_deepstack_included():
    omni = tiny_qwen3.model(layers=4)
    clip = clip_of(omni)
    whole = [slice(0, len(clip.tokens) // 2), slice(len(clip.tokens) // 2, len(clip.tokens))]
    prompt = prompt_of(omni, clip)
    alone = StretchReader(omni, prompt, clip).attention(whole, range(3))
    with cards():
        spread(omni, 1)
        found = StretchReader(omni, prompt_of(omni, clip), dataclasses.replace(clip, tokens=on_first_card(clip).tokens))
        there = found.attention(whole, range(3))
    assert torch.equal(getattr(there, "held", there), alone)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("missing", ["pictures", "sound"])
def test_avoc_asks_it_also_where_a_sense_is_missing(family, missing):
    omni = FAMILIES[family].model(layers=4)
    clip = long_clip(omni, pictures=missing != "pictures", sound=missing != "sound")
    method = load_config("avoc-10", ["avoc.scorer=backbone", "avoc.stretch_s=3"]).compressor
    backbone = StretchReader(omni, prompt_of(omni, clip), clip)
    query = dataclasses.replace(omni.query(prompt_of(omni, clip)), backbone=backbone)
    chosen = method.compress(clip.tokens, query)
    assert chosen.report["scorer"] == "backbone"
    assert len(chosen.indices) == max(1, round(0.1 * len(clip.tokens)))
    assert len(backbone.work) == len(spans(clip.tokens, 3.0, 10_000)) and {layers for _, layers in backbone.work} == {2}


def test_a_stretch_of_too_many_tokens_is_cut_evenly():
    clip = long_clip(tiny.model(layers=2))
    whole = spans(clip.tokens, 100.0, 10_000)
    assert [(rows.start, rows.stop) for rows in whole] == [(0, len(clip.tokens))]
    parts = spans(clip.tokens, 6.0, 50)
    borders = [rows.start for rows in parts] + [parts[-1].stop]
    assert borders == sorted(borders) and (borders[0], borders[-1]) == (0, len(clip.tokens))
    assert all(one.stop == other.start for one, other in itertools.pairwise(parts))
    assert {rows.start for rows in spans(clip.tokens, 6.0, 10_000)} <= set(borders)
    sizes = [rows.stop - rows.start for rows in parts]
    assert max(sizes) <= 50 and min(sizes) > 25
    assert len(spans(clip.tokens, 100.0, len(clip.tokens))) == 1
