"""What the answer's own rows attend to, compared with attention computed from the whole sequence."""

from __future__ import annotations

import pytest
import torch

from omnicli.config.config import load_config
from omnicli.llm.decode import DecodeOptions, generate
from omnicli.llm.kv import KVCache
from omnicli.llm.prefill import prefill
from omnicli.utils.attention_recorder import AttentionRecorder
from omnicli.utils.context import RunContext
from tests.llm.test_prefill import Keep, clip_of
from tests.support import tiny


@pytest.fixture(scope="module")
def omni():
    return tiny.model()


def run(omni, clip, pruner=None, layers=range(1, 3), steps=4, **kwargs):
    prompt = omni.prompt("What is the secret number?", video=clip.video, audio=clip.audio)
    given = omni.sequence(prompt, clip)
    recorder = AttentionRecorder(layers, len(clip.tokens))
    cache = KVCache(omni.depth, omni.kv_heads, omni.head_dim, dtype=omni.dtype, device=omni.device, capacity=600)
    read = prefill(
        omni,
        given.embeds,
        given.position_ids,
        cache,
        media_span=given.media_span,
        media=clip.tokens,
        pruner=pruner,
        context=RunContext(recorder=recorder),
        **kwargs,
    )
    text = generate(
        omni, cache, read.logits, given.next_position, DecodeOptions(max_new_tokens=steps), recorder=recorder
    )
    text.finish()
    return recorder, text.token_ids, given, read


def whole(omni, given, ids, layers):
    """Return mean attention (S,) of the prompt's last row and of all written ones but the last, one pass, no cache."""
    embeds = torch.cat([given.embeds, omni.embed(torch.tensor(ids))])
    behind = given.next_position + torch.arange(len(ids)).expand(omni.position_axes, -1)
    hidden, total, rows = embeds, torch.zeros(given.embeds.shape[0]), 0
    rope = omni.rope(torch.cat([given.position_ids, behind], 1))
    for layer in range(omni.depth):
        if layer in layers:
            for last in range(given.embeds.shape[0], len(embeds)):
                part = omni.slice_rope(rope, slice(0, last))
                total += omni.layer(layer, hidden[:last], part, None, last_attention=True)[1][: len(total)]
                rows += 1
        hidden, _ = omni.layer(layer, hidden, rope)
    return total / rows


@pytest.mark.parametrize("chunk", [37, 2048])
def test_scores_are_the_mean_attention_of_the_answers_rows(omni, chunk):
    clip = clip_of(omni)
    recorder, ids, given, _ = run(omni, clip, chunk=chunk)
    expected = whole(omni, given, ids, recorder.layers)[given.media_span]
    assert len(ids) == 4 and expected.sum() > 0.1
    assert (recorder.scores() - expected).abs().max() < 1e-5


@pytest.mark.parametrize("keep_kv", [True, False])
def test_what_was_dropped_gets_what_it_got_before(omni, keep_kv):
    clip = clip_of(omni)
    pruner = Keep({1: 0.3}, keep_kv=keep_kv)
    recorder, _, _, read = run(omni, clip, pruner, layers=range(2, 4))
    got = torch.nonzero(recorder.scores()).flatten()
    assert torch.equal(got, read.kept) and 0 < len(got) < len(clip.tokens)
    early, *_ = run(omni, clip, pruner, layers=range(0, 2), steps=1)
    assert (early.scores() > 0).all(), "they were read there, by the prompt's last row"


@pytest.mark.parametrize("late", [2, 3])
def test_where_all_media_go_nothing_is_added_by_what_is_written(omni, late):
    clip, pruner = clip_of(omni), Keep({1: 0.3}, late=late, keep_kv=False)
    short, *_ = run(omni, clip, pruner, layers=range(4), steps=1)
    answer, ids, *_ = run(omni, clip, pruner, layers=range(4), steps=4)
    sums = [short.scores() * short._rows, answer.scores() * answer._rows]
    assert len(ids) == 4 and torch.equal(*sums) and sums[0].sum() > 0


def test_watching_changes_nothing(omni):
    clip = clip_of(omni)
    for pruner in (None, Keep({1: 0.3})):
        seen, blind = run(omni, clip, pruner), run(omni, clip, pruner, layers=range(0))
        assert torch.equal(seen[3].logits, blind[3].logits) and seen[1] == blind[1]
    assert not blind[0].scores().any()


@pytest.mark.parametrize("preset", ["seats-35", "fastv-25", "omnizip-45"])
def test_methods_that_prune_inside(preset):
    deep = tiny.model(layers=28)
    method = load_config(preset).compressor
    clip = tiny.encode(
        deep, tiny.frames(8), [0.5 * i for i in range(8)], tiny.sound(4.5), capture=method.needs & {"saliency", "keys"}
    )
    recorder, *_ = run(deep, clip, method, layers=range(9, 18))
    assert recorder.scores().shape == (len(clip.tokens),) and 0 < recorder.scores().sum() <= 1
