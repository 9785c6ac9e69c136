"""Decoding: characters, stop strings, sampling, reasons to end."""

from __future__ import annotations

import pytest
import torch

from omnicli.llm.decode import DecodeOptions, Generation, TextWriter, generate, pick
from omnicli.llm.kv import KVCache
from omnicli.llm.prefill import prefill
from omnicli.models.chat import TextTokenizer
from omnicli.models.weights.dummy import byte_tokenizer
from tests.support import tiny


@pytest.fixture(scope="module")
def tokenizer():
    return TextTokenizer(byte_tokenizer())


def write(tokenizer, text, stop=()):
    writer, pieces = TextWriter(tokenizer, stop), []
    for token in tokenizer.encode(text):
        pieces.append(writer.write(token))
        if writer.stopped:
            break
    pieces.append(writer.close())
    return writer, pieces


def test_no_piece_ends_in_half_a_character(tokenizer):
    text = "Grün: 鐘が鳴る 🔔🎬 done"
    writer, pieces = write(tokenizer, text)
    assert writer.text == "".join(pieces) == text
    assert not any("\ufffd" in p for p in pieces)
    assert max(len(p) for p in pieces) == 1  # byte tokens: one character at a time, nothing held back longer


def test_characters_that_overlap_tokens_come_out_as_they_complete():
    class Halves:
        """Every token holds the end of one character and the beginning of the next."""

        def decode(self, ids):
            raw = "ääääääääääää".encode()
            return b"".join(
                [raw[:1], *(raw[i : i + 2] for i in range(1, len(raw) - 1, 2)), raw[-1:]][i] for i in ids
            ).decode(errors="replace")

    writer = TextWriter(Halves())
    pieces = [writer.write(i) for i in range(13)]
    assert pieces == [""] + ["ä"] * 12


def test_an_unfinished_character_at_the_end_is_shown_as_such(tokenizer):
    writer = TextWriter(tokenizer)
    for token in tokenizer.encode("a🔔")[:-1]:
        writer.write(token)
    assert writer.close() == "\ufffd"
    assert writer.text == "a\ufffd"


def test_stop_strings_across_tokens(tokenizer):
    writer, pieces = write(tokenizer, "answer: 42\n\nQuestion", stop=("\n\nQ", "never"))
    assert writer.stopped and writer.text == "".join(pieces) == "answer: 42"
    writer, _ = write(tokenizer, "nev, neve, nevi", stop=("never",))
    assert not writer.stopped and writer.text == "nev, neve, nevi"
    writer, _ = write(tokenizer, "aab", stop=("ab", "aab"))
    assert writer.text == ""


def start(omni):
    given = omni.sequence(omni.prompt("Hello", video=False, audio=False))
    cache = KVCache(omni.depth, omni.kv_heads, omni.head_dim, dtype=omni.dtype, device=omni.device, capacity=8)
    return cache, prefill(omni, given.embeds, given.position_ids, cache).logits, given.next_position


def run(omni, **options) -> Generation:
    cache, logits, position = start(omni)
    writing = generate(omni, cache, logits, position, DecodeOptions(**options))
    writing.finish()
    return writing


def test_length_and_eos_and_stop_reasons(monkeypatch):
    omni = tiny.model()
    plain = run(omni, max_new_tokens=9)
    assert plain.finish_reason == "length" and len(plain.token_ids) == 9
    assert run(omni, max_new_tokens=0).token_ids == []
    third = plain.token_ids[3]
    monkeypatch.setattr(omni, "stop_ids", frozenset({third}))
    ended = run(omni, max_new_tokens=9)
    assert ended.finish_reason == "eos"
    assert ended.token_ids == plain.token_ids[: plain.token_ids.index(third)]


def test_the_stream_is_the_text():
    omni = tiny.model()
    cache, logits, position = start(omni)
    writing = generate(omni, cache, logits, position, DecodeOptions(max_new_tokens=20, temperature=1.0, seed=4))
    assert "".join(writing) == writing.text == omni.tokenizer.decode(writing.token_ids)


def test_sampling_repeats_with_its_seed_only():
    omni = tiny.model()
    runs = [run(omni, max_new_tokens=16, temperature=2.0, top_p=0.9, seed=s).token_ids for s in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_top_p_is_the_smallest_set_that_reaches_it():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    generator = torch.Generator().manual_seed(0)
    drawn = [pick(logits, 1.0, 0.6, generator) for _ in range(2000)]
    assert set(drawn) == {0, 1}
    assert abs(drawn.count(0) / 2000 - 0.625) < 0.05
    assert {pick(logits, 1.0, 0.01, generator) for _ in range(50)} == {0}
    assert set(pick(logits, 1.0, 1.0, generator) for _ in range(2000)) == {0, 1, 2, 3}
    assert pick(logits, 0.0, 1.0, generator) == 0
