"""Recorded steps give what steps layer by layer give, and whatever goes wrong with a recording, answers stay right.

No graphics card: recordings are the step itself, run again; everything but the capture is what a card would do.
"""

from __future__ import annotations

import pytest
import torch

from omnicli.llm import decode, steps
from omnicli.llm.decode import DecodeOptions, generate
from omnicli.llm.kv import KVCache
from omnicli.llm.prefill import prefill
from omnicli.llm.steps import BEFORE, WORTH, Steps
from omnicli.models.loading import load_model
from omnicli.utils.attention_recorder import AttentionRecorder
from tests.llm.test_prefill import Keep, clip_of
from tests.support import tiny

MOST = BEFORE + 24


@pytest.fixture(scope="module")
def omni():
    model = tiny.model()
    model.stop_ids = frozenset()
    return model


def again(step):
    return step


def written(omni, clip, pruner=None, record=None, most=MOST, spare=MOST, recorder=None):
    """Read a prompt and write ``most`` fixed tokens; return the logits of each (most, V), the cache, the steps."""
    given = omni.sequence(omni.prompt("What is the secret number?", video=True, audio=True), clip)
    capacity = len(given.embeds) + spare
    cache = KVCache(omni.depth, omni.kv_heads, omni.head_dim, dtype=omni.dtype, device=omni.device, capacity=capacity)
    prefill(
        omni, given.embeds, given.position_ids, cache, media_span=given.media_span, media=clip.tokens, pruner=pruner
    )
    write = Steps(omni, cache, recorder or AttentionRecorder.nothing(), most, record)
    with torch.inference_mode():
        rows = [write(3 + i % 20, given.next_position + i).clone() for i in range(most)]
    return torch.stack(rows), cache, write


def close(a, b):
    return (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize("drops", [{}, {1: 0.4}, {0: 0.6, 2: 0.5}])
@pytest.mark.parametrize("keep_kv", [True, False])
def test_recorded_steps_are_those_layer_by_layer(omni, drops, keep_kv):
    clip, pruner = clip_of(omni), Keep(drops, keep_kv=keep_kv) if drops else None
    plain, filled, _ = written(omni, clip, pruner)
    rows, cache, write = written(omni, clip, pruner, again)
    assert write.recorded and close(rows, plain) and not torch.equal(rows[BEFORE:], plain[BEFORE:])
    assert cache.lengths == filled.lengths
    assert len(set(cache.lengths)) == (1 if not drops or not keep_kv else len(drops) + 1)
    for layer, length in enumerate(cache.lengths):
        for ours, theirs in zip(cache._buffers(layer), filled._buffers(layer), strict=True):
            assert close(ours[:, :, :length], theirs[:, :, :length])


@pytest.mark.parametrize("name", ["qwen2.5-omni-7b", "minicpm-o-4.5"])
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_families_that_say_so_and_number_formats(name, dtype):
    omni = load_model(f"dummy:{name},layers=2,scale=0.03", "cpu", dtype)
    assert omni.cuda_graph_safe
    pictures = tiny.frames(2, 448, 448) if name.startswith("mini") else tiny.frames(6)
    clip = tiny.encode(omni, pictures, [0.5 * i for i in range(len(pictures))], tiny.sound(3.5))
    plain, _, _ = written(omni, clip)
    rows, _, write = written(omni, clip, record=again)
    limit = 1e-5 if dtype == "float32" else 0.05
    assert write.recorded and (rows - plain).abs().max() <= limit * plain.abs().max()


def test_answers_are_the_same(omni, monkeypatch):
    """Through `generate`, which decides nothing: greedy and sampled text."""
    clip = clip_of(omni)
    used = []

    def answer(options):
        given = omni.sequence(omni.prompt("Who speaks last?", video=True, audio=True), clip)
        size = len(given.embeds) + options.max_new_tokens
        cache = KVCache(omni.depth, omni.kv_heads, omni.head_dim, dtype=omni.dtype, device=omni.device, capacity=size)
        read = prefill(omni, given.embeds, given.position_ids, cache, media_span=given.media_span, media=clip.tokens)
        text = generate(omni, cache, read.logits, given.next_position, options)
        text.finish()
        used.append(text._steps.recorded)
        return text.token_ids, text.text, text.next_position, cache.lengths

    several = [DecodeOptions(max_new_tokens=40), DecodeOptions(max_new_tokens=40, temperature=1.3, seed=3)]
    plain = [answer(options) for options in several]
    real = steps.Steps
    monkeypatch.setattr(decode, "Steps", lambda *given: real(*given, again))
    assert [answer(options) for options in several] == plain
    assert used == [False, False, True, True] and len(plain[0][0]) == 40


def test_short_answers_full_buffers_and_long_films_are_not_recorded(omni, monkeypatch):
    clip = clip_of(omni)
    assert not written(omni, clip, record=again, most=BEFORE + WORTH - 1)[2].recorded
    assert written(omni, clip, record=again, most=BEFORE + WORTH)[2].recorded
    plain, _, _ = written(omni, clip)
    rows, _, write = written(omni, clip, record=again, spare=BEFORE + 3)  # buffers must grow on the way
    assert not write.recorded and torch.equal(rows, plain)
    monkeypatch.setattr(steps, "ROWS", 100)
    assert not written(omni, clip, record=again)[2].recorded


def test_what_is_watched_is_not_recorded(omni):
    clip = clip_of(omni)
    recorder = AttentionRecorder(range(0, 2), len(clip.tokens))
    recorder.held = [torch.arange(len(clip.tokens))] * omni.depth
    _, _, write = written(omni, clip, record=again, recorder=recorder)
    assert not write.recorded and recorder.scores().sum() > 0


def broken(step):
    raise RuntimeError("CUDA error: operation not permitted when stream is capturing")


def broken_later(step):
    step()
    raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


def of_another_cache(step):
    def run():
        step()
        step.__self__._logits += step.__self__._logits.abs().max()

    return run


@pytest.mark.parametrize("record", [broken, broken_later, of_another_cache])
def test_a_recording_that_fails_or_tells_something_else_is_not_used(omni, record):
    clip = clip_of(omni)
    plain, filled, _ = written(omni, clip)
    rows, cache, write = written(omni, clip, record=record)
    assert not write.recorded and torch.equal(rows, plain)
    for layer in range(omni.depth):
        for ours, theirs in zip(cache._buffers(layer), filled._buffers(layer), strict=True):
            assert torch.equal(ours[:, :, : cache.lengths[layer]], theirs[:, :, : cache.lengths[layer]])


def test_a_family_that_forgets_which_keys_are_there_is_found_out(omni, monkeypatch):
    monkeypatch.setattr(steps.LastRow, "seen", lambda self, layer: None)
    clip = clip_of(omni)
    plain, _, _ = written(omni, clip)
    rows, _, write = written(omni, clip, record=again)
    assert not write.recorded and torch.equal(rows, plain)


def test_who_may_be_recorded(omni):
    from tests.support import tiny_qwen3

    assert not steps.can_record(omni), "not on a card"
    assert omni.stays and omni.cuda_graph_safe and not tiny_qwen3.model().cuda_graph_safe, (
        "experts are chosen by values"
    )
    other = tiny.model()
    other.offload(torch.device("cpu"))
    assert not other.stays
