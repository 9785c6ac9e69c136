"""A conversation about one film: its history, what it reuses, what it forgets, what an interruption leaves."""

from __future__ import annotations

import dataclasses

import pytest

from omnicli import pipeline
from omnicli.config.config import load_config
from omnicli.errors import MemoryLimitError
from omnicli.session import Session
from tests.support import films, tiny

SHORT = ["media.fps=1", "generate.max_new_tokens=4"]


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return films.write(tmp_path_factory.mktemp("film") / "film.mp4", 3)


@pytest.fixture
def model():
    return tiny.model()


@pytest.mark.parametrize("preset", ["full", "avoc", "seats-35"])
def test_an_answer_is_that_of_the_same_history_read_at_once(film, model, preset):
    config = load_config(preset, SHORT)
    session = Session(film, config, model)
    for question in ("one?", "and two?", "three?"):
        told = session.ask(question)
        cold = pipeline.answer(session.film, question, config, model, history=told.history)
        assert told.answer.answer == cold.answer
        assert told.answer.tokens["generated"] == cold.tokens["generated"] > 0
    assert [question for question, _ in session.history] == ["one?", "and two?", "three?"]
    assert [len(told.history) for told in session.told] == [0, 1, 2]


def test_the_oldest_turns_are_forgotten_when_the_context_is_full(film, model):
    session = Session(film, load_config("full", SHORT), model)
    for question in ("one?", "two?", "three?"):
        last = session.ask(question).answer.tokens
    kept = last["video"]["kept"] + last["audio"]["kept"]
    model.facts = dataclasses.replace(model.facts, max_position=kept + last["text"] + 4)  # what three turns take
    told = session.ask("four?")
    assert [q for q, _ in told.history] == ["two?", "three?"]
    assert [q for q, _ in session.history] == ["two?", "three?", "four?"]
    assert told.answer.warnings[-1] == "the model's context is full: forgot 1 of 3 turns, up to 'one?'"
    assert [t.answer.question for t in session.told] == ["one?", "two?", "three?", "four?"]

    model.facts = dataclasses.replace(model.facts, max_position=50)
    with pytest.raises(MemoryLimitError, match="do not fit"):
        session.ask("five?")
    assert [q for q, _ in session.history] == ["two?", "three?", "four?"], "a question that cannot fit costs no turn"


@pytest.mark.parametrize("preset", ["full", "seats-35"])
def test_an_interrupted_answer_leaves_no_trace(film, model, preset):
    def stop(text):
        raise KeyboardInterrupt

    config = load_config(preset, SHORT)
    disturbed, quiet = Session(film, config, model), Session(film, config, model)
    for session in (disturbed, quiet):
        session.ask("one?")
    with pytest.raises(KeyboardInterrupt):
        disturbed.ask("two?", on_text=stop)
    assert len(disturbed.history) == len(disturbed.told) == 1
    one, other = disturbed.ask("three?"), quiet.ask("three?")
    assert (one.answer.answer, one.history) == (other.answer.answer, other.history)
    assert one.answer.tokens["reused"] > 0


def test_a_film_is_looked_at_again_only_for_what_was_not_captured(film, model):
    session = Session(film, load_config("full", SHORT), model)
    first = session.film
    session.switch(load_config("random-10", SHORT))
    assert session.film is first
    seats = load_config("seats-35", SHORT)
    assert session.missing(seats) == {"saliency"}
    session.switch(seats)
    assert session.film is not first
    second = session.film
    assert second.media.clip.tokens.saliency is not None
    session.switch(load_config("full", SHORT))
    assert session.film is second and session._film_for(session.config).media.clip.tokens.saliency is None


def test_subtitles_stand_once_in_front_of_the_first_question(model, tmp_path):
    path = films.write(tmp_path / "film.mp4", 3)
    path.with_suffix(".srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nout of the blue\n")
    config = load_config("avoc", [*SHORT, "media.subtitles=auto"])
    session = Session(path, config, model)
    plain = Session(path, load_config("avoc", SHORT), model)
    added = len(model.tokenizer.encode("Subtitles:\n[00:01] out of the blue\n"))
    for question in ("one?", "and two?"):
        texts = [s.ask(question).answer.tokens["text"] for s in (session, plain)]
        assert added <= texts[0] - texts[1] < 2 * added  # the second time the answers before differ as well
    assert [q for q, _ in session.history] == ["one?", "and two?"]
