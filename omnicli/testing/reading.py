"""Points about what the LLM reads and how: prompts, words, sequences, layers, the loop over them."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from omnicli.llm.steps import Steps
from omnicli.models.base import OmniModel
from omnicli.testing.trial import CLOSE, QUESTION, SECONDS, Trial, close
from omnicli.types import Selection
from omnicli.utils.attention_recorder import AttentionRecorder


def prompts(t: Trial) -> Iterator[str]:
    """Prompts name where the question is, and differ only behind the media."""
    m = t.model
    first = m.prompt(QUESTION, video=True, audio=True)
    for video, audio in ((True, True), (True, False), (False, True), (False, False)):
        for question in (QUESTION, "assistant", "Wie heißt das Wort? 🔔"):
            prompt = m.prompt(question, video=video, audio=audio)
            if m.tokenizer.decode(prompt.after[prompt.question].tolist()) != question:
                yield f"Prompt.question does not hold {question!r} (video={video}, audio={audio})"
    preface = m.prompt(QUESTION, video=True, audio=True, preface=f"{QUESTION} they said.\n")
    if m.tokenizer.decode(preface.after[preface.question].tolist()) != QUESTION:
        yield "with a preface, Prompt.question does not hold the question"
    behind = first.after.numel() - first.question.start
    if not torch.equal(preface.after[-behind:], first.after[-behind:]):
        yield "a preface changes what follows it"
    if preface.after.numel() - preface.question.start != behind:
        yield "a preface that holds the question's words is taken for the question"
    later = m.prompt("two", video=True, audio=True, history=[("one", "uno")], preface="said\n")
    text = m.tokenizer.decode(later.after.tolist())
    if not 0 <= text.find("said\none") < text.find("uno") < text.rfind("two"):
        yield "preface, history and question are not all there in this order"
    if not (torch.equal(later.before, first.before) and torch.equal(preface.before, first.before)):
        yield "what stands before the media depends on the question"


def words(t: Trial) -> Iterator[str]:
    """The tokenizer gives back what it was given; answers can end."""
    m, text = t.model, "Über 3 Hügel – 🔔"
    if m.tokenizer.decode(m.tokenizer.encode(text)) != text:
        yield "the tokenizer does not give back what it was given"
    if not m.stop_ids or not all(0 <= i < m.facts.llm.vocab_size for i in m.stop_ids):
        yield f"stop_ids {sorted(m.stop_ids)} are empty or outside the vocabulary"
    elif m.tokenizer.decode(sorted(m.stop_ids)):
        yield "a stop id has a text, which answers would end with"
    rows = m.embed(torch.tensor(m.tokenizer.encode(text), device=m.device))
    if (rows.shape[1], rows.dtype, rows.device) != (m.hidden_size, m.dtype, m.device):
        yield f"embeddings are {tuple(rows.shape)}, {rows.dtype} on {rows.device}"
    prompt = m.prompt(QUESTION, video=True, audio=True)
    query = m.query(prompt)
    if query.embeddings.shape[0] != prompt.question.stop - prompt.question.start or query.text != QUESTION:
        yield "query does not hold the question"


def sequences(t: Trial) -> Iterator[str]:
    """What the LLM reads is before, media, after; dropping tokens moves nothing else."""
    m, clip, given = t.model, t.both, t.given
    prompt, span = m.prompt(QUESTION, video=True, audio=True), t.given.media_span
    n = prompt.before.numel() + len(clip.tokens) + prompt.after.numel()
    if tuple(given.embeds.shape) != (n, m.hidden_size) or tuple(given.position_ids.shape) != (m.position_axes, n):
        yield f"embeds {tuple(given.embeds.shape)} and position_ids {tuple(given.position_ids.shape)} of {n} tokens"
    if span != slice(prompt.before.numel(), prompt.before.numel() + len(clip.tokens)):
        yield f"media_span is {span}"
    if not torch.equal(given.embeds[span], clip.tokens.features):
        yield "the media rows of embeds are not the tokens' features"
    time = given.position_ids[0]
    for part, name in ((time[: span.start], "before"), (time[span.stop :], "behind")):
        if bool((part[1:] < part[:-1]).any()):
            yield f"positions of the text {name} the media go back"
    if span.start and float(time[: span.start].max()) > float(given.position_ids[:, span].min()):
        yield "media are read at positions of the text before them"
    if float(time[span.stop]) < clip.next_position:
        yield "the text behind the media does not begin at next_position"
    if given.next_position <= float(given.position_ids.max()):
        yield f"next_position {given.next_position} is not behind everything read"
    keep = torch.arange(0, len(clip.tokens) - len(clip.tokens) // 5, 3)
    chosen = m.sequence(prompt, clip, clip.tokens.select(Selection(keep)))
    own = chosen.media_span
    if not torch.equal(chosen.position_ids[:, own], given.position_ids[:, keep + span.start]):
        yield "a selection's tokens are not read where they would have been"
    if chosen.next_position != given.next_position or not torch.equal(
        chosen.position_ids[:, own.stop :], given.position_ids[:, span.stop :]
    ):
        yield "the text behind a selection is not read where it would have been"
    alone = m.sequence(m.prompt(QUESTION, video=False, audio=False))
    if alone.media_span != slice(0, 0) or alone.next_position != len(alone.embeds):
        yield "without media, positions do not count the tokens"


def layers(t: Trial) -> Iterator[str]:
    """A layer is causal, gives the attention that is asked for, and works on a part of the positions."""
    m, given = t.model, t.given
    rope, n = m.rope(given.position_ids), len(given.embeds)
    out, received = m.layer(0, given.embeds, rope, None, last_attention=True)
    if received is None or tuple(received.shape) != (n,) or abs(float(received.sum()) - 1) > CLOSE:
        yield "last_attention is no distribution over all keys"
    elif not close(m.query_attention(0, given.embeds, rope), received):
        yield "query_attention is not what the layer attends with"
    if m.layer(0, given.embeds, rope, None)[1] is not None:
        yield "attention is there though nobody asked"
    other = given.embeds.clone()
    other[-1] = other[0]
    if not close(m.layer(0, other, rope, None)[0][:-1], out[:-1]):
        yield "a layer looks ahead"
    half = torch.arange(0, n, 2)
    taken = m.layer(0, given.embeds[half], m.slice_rope(rope, half), None)[0]
    if not close(taken, m.layer(0, given.embeds[half], m.rope(given.position_ids[:, half]), None)[0]):
        yield "slice_rope does not give the rotary values of a subset"
    logits = m.logits(out[-2:])
    if tuple(logits.shape) != (2, m.facts.llm.vocab_size) or logits.dtype != torch.float32:
        yield f"logits are {tuple(logits.shape)} in {logits.dtype}, not (n, vocab_size) in float32"


def loop(t: Trial) -> Iterator[str]:
    """Reading in chunks is reading at once, and is what the stock LLM computes."""
    whole, _ = t.read(len(t.given.embeds))
    if not close(t.read(37)[0], whole):
        yield "reading in chunks is not the same as at once"
    if t.stock is not None and not close(whole, t.stock(t.given, t.both.tokens)[-1]):
        yield "the layer loop's logits are not the stock LLM's"
    if float(whole.std()) < CLOSE:
        yield "all words are as likely: these random weights cannot tell right from wrong"


def steps(t: Trial) -> Iterator[str]:
    """Words written one by one are read as they would be at once, and by a recorded step if ``cuda_graph_safe``."""
    m, ids = t.model, list(range(12))
    at_once, _ = t.read(len(t.given.embeds), ids)
    for record in (None, lambda step: step) if m.cuda_graph_safe else (None,):
        _, cache = t.read(len(t.given.embeds), room=64)
        write = Steps(m, cache, AttentionRecorder.nothing(), 64, record)
        for i, token in enumerate(ids):
            logits = write(token, t.given.next_position + i)
        if not close(logits, at_once):
            yield "words read one by one are not the same as at once"
        if record is not None and not write.recorded:
            yield "cuda_graph_safe is set, but a step that is run again gives other logits"


def parts(t: Trial) -> Iterator[str]:
    """A family that tells its encoders from its LLM, so that it can be offloaded, says which of them works."""
    m, said = t.model, list[str]()
    if type(m).weights is OmniModel.weights:
        return
    if {part: bool(modules) for part, modules in m.weights().items()} != {"encoders": True, "llm": True}:
        yield "weights does not name modules of the encoders and of the llm"
    m.activate = said.append  # type: ignore[method-assign, assignment]
    try:
        for name, part, run in (
            ("encode_video", "encoders", lambda: t.encode_video(1, 1)),
            ("audio_encoder", "encoders", lambda: t.encode_audio(SECONDS, 32_000)),
            ("embed", "llm", lambda: m.embed(torch.tensor([0], device=m.device))),
        ):
            said.clear()
            run()
            if part not in said:
                yield f"{name} does not call activate({part!r})"
    finally:
        del m.activate  # type: ignore[method-assign]


POINTS = (prompts, words, sequences, layers, loop, steps, parts)
TYPES = (prompts, words)
"""Those that hold in every number format."""
