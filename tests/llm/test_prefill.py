"""The layer loop against the stock model: prefill, chunks, pruning, decoding."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from omnicli.errors import ConfigError
from omnicli.llm.decode import DecodeOptions, generate
from omnicli.llm.kv import KVCache
from omnicli.llm.prefill import prefill
from omnicli.types import Modality, Selection
from omnicli.utils.context import RunContext
from tests.support import tiny, tiny_qwen3

QUESTION = "Who speaks last?"
FAMILIES = {"qwen2_5_omni": tiny, "qwen3_omni_moe": tiny_qwen3}


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def omni(request):
    return FAMILIES[request.param].model()


def new_cache(omni, capacity=64):
    return KVCache(omni.depth, omni.kv_heads, omni.head_dim, dtype=omni.dtype, device=omni.device, capacity=capacity)


def clip_of(omni, frames=8, seconds=4.5, fps=2.0):
    pictures = FAMILIES[omni.family].frames(frames) if frames else None
    return tiny.encode(omni, pictures, np.arange(frames) / fps, tiny.sound(seconds) if seconds else None)


def read(omni, clip, pruner=None, chunk=2048, **kwargs):
    prompt = omni.prompt(QUESTION, video=clip.video, audio=clip.audio)
    given, cache = omni.sequence(prompt, clip), new_cache(omni)
    result = prefill(
        omni,
        given.embeds,
        given.position_ids,
        cache,
        media_span=given.media_span,
        media=clip.tokens,
        pruner=pruner,
        chunk=chunk,
        **kwargs,
    )
    return result, cache, given


@dataclass
class Keep:
    """Keeps fixed fractions after fixed layers, by attention if asked."""

    plan: dict[int, float]
    needs: frozenset = frozenset()
    late: int | None = None
    keep_kv: bool = True

    name = "keep"

    def layers(self, depth):
        return tuple(self.plan)

    def late_removal(self, depth):
        return self.late

    def keeps_kv(self):
        return self.keep_kv

    def prune(self, layer, view):
        self.last = view
        k = max(1, round(self.plan[layer] * len(view.media)))
        if view.attention is not None:
            return view.attention.topk(k).indices.sort().values
        return torch.linspace(0, len(view.media) - 1, k).round().long()


CASES = [(8, None), (0, 4.5), (1, 2.1), (7, 9.0)]


@pytest.mark.parametrize(("frames", "seconds"), CASES)
def test_logits_and_greedy_tokens_equal_stock_generate(omni, frames, seconds):
    family = FAMILIES[omni.family]
    pictures = family.frames(frames) if frames else None
    samples = tiny.sound(seconds) if seconds else None
    stock = family.stock_inputs(omni, QUESTION, pictures, 2.0, samples)
    fresh, _ = family.thinker()
    with torch.no_grad():
        expected = fresh(**stock).logits[0, -1]
        ids = fresh.generate(
            **stock, max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=sorted(omni.stop_ids)
        )[0, stock["input_ids"].shape[1] :].tolist()
    result, cache, given = read(omni, clip_of(omni, frames, seconds))
    assert (result.logits - expected).abs().max() < 1e-4 * expected.abs().max()
    writing = generate(omni, cache, result.logits, given.next_position, DecodeOptions(max_new_tokens=12))
    writing.finish()
    ended = [i for i, t in enumerate(ids) if t in omni.stop_ids]
    assert writing.token_ids == (ids[: ended[0]] if ended else ids)
    assert len(set(writing.token_ids)) > 2  # a stuck model would prove nothing


@pytest.mark.parametrize(("chunk", "frames", "seconds"), [(1, 2, 0.7), (7, 8, 4.5), (97, 8, 4.5)])
def test_chunks_equal_one_shot(omni, chunk, frames, seconds):
    clip = clip_of(omni, frames, seconds)
    one, cache, _ = read(omni, clip)
    many, other, _ = read(omni, clip, chunk=chunk)
    assert (one.logits - many.logits).abs().max() < 1e-4 * one.logits.abs().max()
    assert cache.lengths == other.lengths
    many, _, _ = read(omni, clip, Keep({1: 0.5}), chunk=chunk)
    one, _, _ = read(omni, clip, Keep({1: 0.5}))
    assert (one.logits - many.logits).abs().max() < 1e-4 * one.logits.abs().max()


def with_deepstack(hidden, clip, span, layer):
    """Add the clip's features of this layer, if it has any, to its rows of (1, n, D)."""
    levels = clip.tokens.layer_features
    if levels is not None and layer < len(levels):
        hidden = hidden.clone()
        hidden[0, span] += levels[layer]
    return hidden


def query_and_key(omni, layer, hidden, rope):
    """Return the rotated queries and keys of a stock layer on (1, n, D), keys repeated for every head."""
    import importlib

    stock = importlib.import_module(type(layer).__module__)
    x, attn, n = layer.input_layernorm(hidden), layer.self_attn, hidden.shape[1]
    q, k = attn.q_proj(x).view(1, n, 4, 16), attn.k_proj(x).view(1, n, 2, 16)
    if hasattr(attn, "q_norm"):
        q, k = attn.q_norm(q), attn.k_norm(k)
    return stock.apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2).repeat_interleave(2, 1), *rope)


def masked_reference(omni, clip, plan):
    """Full length through all layers; dropped tokens are hidden from the layers after their prune point."""
    prompt = omni.prompt(QUESTION, video=clip.video, audio=clip.audio)
    given = omni.sequence(prompt, clip)
    n, span = given.embeds.shape[0], given.media_span
    alive = torch.ones(n, dtype=torch.bool)
    hidden, text = given.embeds[None], omni.thinker.model.language_model
    rope = text.rotary_emb(hidden, given.position_ids[:, None])
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    with torch.no_grad():
        for i, layer in enumerate(text.layers):
            mask = causal & (alive[None] | torch.eye(n, dtype=torch.bool))
            hidden = layer(hidden, attention_mask=mask[None, None], position_embeddings=rope)
            hidden = with_deepstack(hidden, clip, span, i)
            if i in plan:
                left = torch.nonzero(alive[span]).flatten()
                k = max(1, round(plan[i] * len(left)))
                keep = left[torch.linspace(0, len(left) - 1, k).round().long()]
                alive[span] = False
                alive[keep + span.start] = True
        return omni.thinker.lm_head(text.norm(hidden[0, -1])), int(alive[span].sum())


@pytest.mark.parametrize("plan", [{0: 0.5}, {1: 0.5, 2: 0.3}, {0: 0.9, 1: 0.1, 2: 0.5}])
def test_pruned_with_ragged_caches_equals_the_masked_run(omni, plan):
    clip = clip_of(omni)
    context = RunContext()
    result, cache, given = read(omni, clip, Keep(plan), context=context)
    expected, kept = masked_reference(omni, clip, plan)
    assert (result.logits - expected).abs().max() < 1e-4 * expected.abs().max()
    assert result.by_layer[0] == [0, len(clip.tokens)] and result.by_layer[-1][1] == kept == len(result.kept)
    text = given.embeds.shape[0] - len(clip.tokens)
    counts = [next(k for first, k in reversed(result.by_layer) if first <= i) for i in range(omni.depth)]
    assert cache.lengths == [text + k for k in counts]
    expected_kept = torch.arange(len(clip.tokens))
    for share in plan.values():
        k = max(1, round(share * len(expected_kept)))
        expected_kept = expected_kept[torch.linspace(0, len(expected_kept) - 1, k).round().long()]
    assert torch.equal(result.kept, expected_kept)
    full, _, _ = read(omni, clip)
    assert (result.logits - full.logits).abs().max() > 1e-3  # the dropped tokens did matter
    assert context.clock.report().stages["select_in_llm"] > 0


@pytest.mark.parametrize("chunk", [2048, 50])
def test_late_removal_is_the_masked_run_without_media(omni, chunk):
    clip = clip_of(omni)
    plan = {0: 0.5}
    result, cache, given = read(omni, clip, Keep(plan, late=1), chunk=chunk)
    text = given.embeds.shape[0] - len(clip.tokens)
    half = max(1, round(0.5 * len(clip.tokens)))
    assert result.by_layer == [[0, len(clip.tokens)], [1, half], [2, 0]] and result.kept.numel() == 0
    assert cache.lengths == [text + len(clip.tokens), text + half, text, text]
    n, span = given.embeds.shape[0], given.media_span
    hidden, stack = given.embeds[None], omni.thinker.model.language_model
    rope, alive = stack.rotary_emb(hidden, given.position_ids[:, None]), torch.ones(n, dtype=torch.bool)
    with torch.no_grad():
        for i, layer in enumerate(stack.layers):
            mask = torch.ones(n, n, dtype=torch.bool).tril() & (alive[None] | torch.eye(n, dtype=torch.bool))
            hidden = layer(hidden, attention_mask=mask[None, None], position_embeddings=rope)
            hidden = with_deepstack(hidden, clip, span, i)
            if i == 0:
                alive[span] = False
                alive[torch.linspace(0, len(clip.tokens) - 1, half).round().long() + span.start] = True
            if i == 1:
                alive[span] = False
        expected = omni.thinker.lm_head(stack.norm(hidden[0, -1]))
    assert (result.logits - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize(("late", "left"), [(None, None), (2, 0)])
def test_forgetting_keys_leaves_every_layer_the_last_survivors_rows(omni, late, left):
    clip = clip_of(omni)
    plan = {0: 0.6, 1: 0.5}
    kept, full, given = read(omni, clip, Keep(plan, late=late))
    result, cache, _ = read(omni, clip, Keep(plan, late=late, keep_kv=False))
    assert torch.equal(kept.logits, result.logits)  # what was read before is not affected
    text, span = given.embeds.shape[0] - len(clip.tokens), given.media_span
    assert cache.lengths == [text + len(result.kept)] * omni.depth
    assert left is None or len(result.kept) == left
    rows = torch.cat(
        [torch.arange(span.start), result.kept + span.start, torch.arange(span.stop, given.embeds.shape[0])]
    )
    first = [buffer[:, :, : cache.lengths[0]] for buffer in cache._buffers(0)]
    assert all(torch.equal(a, b[:, :, rows]) for a, b in zip(first, full._buffers(0), strict=True))
    assert cache.nbytes < full.nbytes
    for store, outcome in ((cache, result), (full, kept)):  # both can be gone on with
        writing = generate(omni, store, outcome.logits, given.next_position, DecodeOptions(max_new_tokens=4))
        writing.finish()
        assert store.lengths[0] > 0 and writing.token_ids


def test_attention_of_the_layers_output_is_its_projections_applied_again(omni):
    clip = clip_of(omni)
    pruner = Keep({2: 0.5}, needs=frozenset({"output_attention"}))
    _, _, given = read(omni, clip, pruner, chunk=50)
    text, hidden = omni.thinker.model.language_model, given.embeds[None]
    rope = text.rotary_emb(hidden, given.position_ids[:, None])
    with torch.no_grad():
        for i, layer in enumerate(text.layers[:3]):
            hidden = layer(hidden, attention_mask=None, position_embeddings=rope)
            hidden = with_deepstack(hidden, clip, given.media_span, i)
        q, k = query_and_key(omni, layer, hidden, rope)
        expected = torch.softmax(q[0, :, -1:] @ k[0].transpose(1, 2) * 16**-0.5, -1).mean(0)[0][given.media_span]
    assert (pruner.last.attention - expected).abs().max() < 1e-4 * expected.max()


def test_decoding_after_pruning_uses_the_original_positions(omni):
    clip = clip_of(omni)
    result, cache, given = read(omni, clip, Keep({1: 0.3}))
    before = cache.lengths
    writing = generate(omni, cache, result.logits, given.next_position, DecodeOptions(max_new_tokens=5))
    writing.finish()
    assert [b - a for a, b in zip(before, cache.lengths, strict=True)] == [len(writing.token_ids) - 1] * omni.depth
    assert writing.next_position == given.next_position + len(writing.token_ids) - 1


def test_retention_one_changes_nothing(omni):
    clip = clip_of(omni)
    full, _, _ = read(omni, clip)
    same, _, _ = read(omni, clip, Keep({0: 1.0, 2: 1.0}))
    assert torch.equal(full.logits, same.logits)
    assert same.by_layer == [[0, len(clip.tokens)]]


@pytest.mark.parametrize("chunk", [2048, 50])
def test_the_last_querys_attention_is_the_softmax_row(omni, chunk):
    clip = clip_of(omni)
    pruner = Keep({2: 0.5}, needs=frozenset({"last_query_attention"}))
    _, _, given = read(omni, clip, pruner, chunk=chunk)
    text, seen = omni.thinker.model.language_model, {}
    hidden = given.embeds[None]
    rope = text.rotary_emb(hidden, given.position_ids[:, None])
    with torch.no_grad():
        for i, layer in enumerate(text.layers[:3]):
            if i == 2:
                q, k = query_and_key(omni, layer, hidden, rope)
                seen = torch.softmax(q[0, :, -1:] @ k[0].transpose(1, 2) * 16**-0.5, -1).mean(0)[0]
            hidden = layer(hidden, attention_mask=None, position_embeddings=rope)
            hidden = with_deepstack(hidden, clip, given.media_span, i)
    assert (pruner.last.attention - seen[given.media_span]).abs().max() < 1e-5
    assert (pruner.last.hidden - hidden[0, given.media_span]).abs().max() < 1e-3
    assert 0 < float(pruner.last.attention.sum()) < 1


def test_deepstack_features_are_added_to_their_rows_and_pruned_with_them(omni):
    clip = clip_of(omni, 8, None)
    levels = torch.randn(2, len(clip.tokens), 64, generator=torch.Generator().manual_seed(3))
    deep = dataclasses.replace(clip, tokens=dataclasses.replace(clip.tokens, layer_features=levels))
    prompt = omni.prompt(QUESTION, video=True, audio=False)
    given = omni.sequence(prompt, clip)
    hidden, cache = given.embeds, new_cache(omni)
    rope = omni.rope(given.position_ids)
    with torch.no_grad():
        for i in range(omni.depth):
            hidden, _ = omni.layer(i, hidden, rope, cache)
            if i < 2:
                hidden[given.media_span] += levels[i]
        expected = omni.logits(hidden[-1:])[0]
    for chunk in (2048, 30):
        got, _, _ = read(omni, deep, chunk=chunk)
        assert (got.logits - expected).abs().max() < 1e-4 * expected.abs().max()
        got, _, _ = read(omni, deep, Keep({2: 1.0}), chunk=chunk)
        assert (got.logits - expected).abs().max() < 1e-4 * expected.abs().max()


def test_a_continued_prompt_equals_one_prompt(omni):
    clip = clip_of(omni)
    full, _, given = read(omni, clip)
    cache, cut = new_cache(omni), given.media_span.stop
    media = {"media_span": given.media_span, "media": clip.tokens}
    prefill(omni, given.embeds[:cut], given.position_ids[:, :cut], cache, **media)
    state = cache.lengths
    rest = prefill(omni, given.embeds[cut:], given.position_ids[:, cut:], cache)
    assert (full.logits - rest.logits).abs().max() < 1e-4 * full.logits.abs().max()
    cache.truncate(state)
    again = prefill(omni, given.embeds[cut:], given.position_ids[:, cut:], cache)
    assert torch.equal(rest.logits, again.logits)


def test_progress_reaches_the_end(omni):
    for pruner in (None, Keep({1: 0.5})):
        told: list[tuple] = []
        watch = RunContext(lambda *what, told=told: told.append(what))
        *_, given = read(omni, clip_of(omni), pruner, chunk=40, context=watch)
        done = [positions for _, positions, _ in told]
        assert {(stage, total) for stage, _, total in told} == {("prefill", len(given.embeds))}
        assert done == sorted(done) and done[-1] == len(given.embeds) and len(done) > 3


def test_gradients_reach_features_and_weights_without_a_cache(omni):
    clip = clip_of(omni, 2, None)
    features = clip.tokens.features.clone().requires_grad_()
    tokens = dataclasses.replace(clip.tokens, features=features)
    given = omni.sequence(omni.prompt(QUESTION, video=True, audio=False), clip, tokens)
    hidden, rope = given.embeds, omni.rope(given.position_ids)
    for i in range(omni.depth):
        hidden, _ = omni.layer(i, hidden, rope, None)
    omni.logits(hidden[-1:]).logsumexp(-1).sum().backward()
    assert bool((features.grad.abs().sum(1) > 0).all())
    assert not omni.embed(torch.tensor([1])).requires_grad


def test_text_alone_equals_the_stock_model(omni):
    prompt = omni.prompt("Hello", video=False, audio=False)
    given = omni.sequence(prompt)
    result = prefill(omni, given.embeds, given.position_ids, new_cache(omni))
    with torch.no_grad():
        expected = omni.thinker(torch.cat([prompt.before, prompt.after])[None]).logits[0, -1]
    assert (result.logits - expected).abs().max() < 1e-4 * expected.abs().max()


def test_wrong_pruners_are_refused(omni):
    clip = clip_of(omni)

    class Wrong(Keep):
        def prune(self, layer, view):
            return torch.tensor([3, 2])

    with pytest.raises(ValueError, match="ascending"):
        read(omni, clip, Wrong({1: 0.5}))
    with pytest.raises(ConfigError, match=r"keep prunes after layers \[9\]"):
        read(omni, clip, Keep({9: 0.5}))
    with pytest.raises(ValueError, match="at least one"):
        prefill(omni, torch.zeros(0, 64), torch.zeros(3, 0), new_cache(omni))


def test_deepstack_of_a_real_tower_matters_and_follows_what_is_kept():
    """What a selection before the LLM leaves is what the stock layers read of the same rows, deepstack included."""
    omni = tiny_qwen3.model()
    whole = clip_of(omni)
    keep = torch.arange(3, len(whole.tokens), 2)
    clip = dataclasses.replace(whole, tokens=whole.tokens.select(Selection(keep)))
    result, _, given = read(omni, clip, chunk=30)
    again, _, _ = read(omni, clip, Keep({1: 0.5, 2: 0.6}), chunk=30)
    text = omni.thinker.model.language_model
    rope = text.rotary_emb(given.embeds[None], given.position_ids[:, None])
    pictures = clip.tokens.modality == Modality.VIDEO
    mask = torch.zeros(1, given.embeds.shape[0], dtype=torch.bool)
    mask[0, given.media_span] = pictures
    with torch.no_grad():
        stock = text(
            inputs_embeds=given.embeds[None],
            position_ids=given.position_ids[:, None],
            visual_pos_masks=mask,
            deepstack_visual_embeds=list(whole.tokens.layer_features[:, keep[pictures]]),
        ).last_hidden_state
        expected = omni.thinker.lm_head(stock[0, -1])
    assert rope[0].shape[1] == given.embeds.shape[0]
    assert (result.logits - expected).abs().max() < 1e-4 * expected.abs().max()
    pruned, _ = masked_reference(omni, clip, {1: 0.5, 2: 0.6})
    assert (again.logits - pruned).abs().max() < 1e-4 * pruned.abs().max()
    bare = dataclasses.replace(clip, tokens=dataclasses.replace(clip.tokens, layer_features=None))
    assert (read(omni, bare)[0].logits - expected).abs().max() > 0.01 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_experts_equal_the_eager_ones(dtype):
    from omnicli.models.families.qwen3_omni_moe import Qwen3OmniMoe

    logits = {}
    for experts in ("grouped_mm", "eager"):
        thinker, tokenizer = tiny_qwen3.thinker(experts=experts)
        assert thinker.config.text_config._experts_implementation == experts
        omni = Qwen3OmniMoe(thinker.to(dtype), tokenizer, name="tiny")
        logits[experts] = read(omni, clip_of(omni))[0].logits
    scale = logits["eager"].abs().max()
    assert (logits["grouped_mm"] - logits["eager"]).abs().max() < (1e-5 if dtype == torch.float32 else 0.05) * scale


@pytest.mark.parametrize(("seconds", "step"), [(600, 4), pytest.param(3600, 9, marks=pytest.mark.slow)])
def test_hours_go_through_in_bounded_pieces(monkeypatch, seconds, step):
    omni = tiny.model()
    seen = {"patches": 0, "mel": 0, "chunk": 0}
    patches, windows, layer = omni.encode_patches, omni.encode_audio_windows, omni.layer

    def see(name, function, size):
        def wrapped(*args, **kwargs):
            seen[name] = max(seen[name], size(*args))
            return function(*args, **kwargs)

        return wrapped

    monkeypatch.setattr(omni, "encode_patches", see("patches", patches, lambda rows, *_: rows.shape[0]))
    monkeypatch.setattr(omni, "encode_audio_windows", see("mel", windows, lambda w, *_: w.shape[0]))
    monkeypatch.setattr(omni, "layer", see("chunk", layer, lambda i, hidden, *_: hidden.shape[0]))
    pieces, sounds = [], []
    for i in range(0, seconds, 20):
        pieces.append(omni.encode_video(tiny.frames(20, 28, 28, seed=i)))
    stream = omni.audio_encoder(None, batch_s=30.0)
    noise = tiny.sound(2.0)
    for i in range(0, seconds, 2):
        sounds += stream.feed(np.roll(noise, i))
    sounds += stream.finish()
    clip = omni.assemble(pieces, np.arange(float(seconds)), sounds, end_s=float(seconds))
    assert len(clip.tokens) == seconds // 2 + 25 * seconds
    assert int(clip.tokens.window[-1]) == seconds // 2 - 1
    tokens = clip.tokens.select(Selection(torch.arange(0, len(clip.tokens), step)))
    given = omni.sequence(omni.prompt(QUESTION, video=True, audio=True), clip, tokens)
    result = prefill(omni, given.embeds, given.position_ids, new_cache(omni, 12_000), chunk=2048)
    assert result.logits.isfinite().all()
    assert given.next_position > 25 * seconds
    assert seen == {"patches": 10 * 4, "mel": 15, "chunk": 2048}
