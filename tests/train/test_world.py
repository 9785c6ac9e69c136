"""The generated world: same seed, same film; every question's answer is in the film at the second it names."""

from __future__ import annotations

import numpy as np
import pytest

from omnicli.train import scene, script, speech, world
from omnicli.train.soundscape import render_audio


def film(seed: int = 3, seconds: float = 60.0, **options) -> script.Film:
    return world.make_film(seed, seconds, **options)


def test_the_same_seed_gives_the_same_film_picture_and_sound():
    a, b = film(), film()
    assert a.events == b.events and a.questions == b.questions
    assert np.array_equal(scene.render_frame(a, 7.25, 196, 112), scene.render_frame(b, 7.25, 196, 112))
    assert np.array_equal(render_audio(a, 3.0, 9.0), render_audio(b, 3.0, 9.0))
    assert film(4).questions != a.questions


def test_events_stay_inside_the_film_and_numbers_are_said_while_nobody_is_on_screen():
    for seed in range(12):
        made = film(seed, 45.0)
        assert all(0 <= e.start_s < e.end_s <= made.duration_s + 1e-6 for e in made.events if e.kind != "sound")
        people = [e for e in made.events if e.kind == "character"]
        numbers = [e for e in made.events if e.kind == "voice" and e.text.startswith("the secret word")]
        assert len(numbers) == 1
        assert not any(p.start_s < numbers[0].end_s and numbers[0].start_s < p.end_s for p in people)


@pytest.mark.slow
def test_who_speaks_last_is_the_last_character_heard_not_the_last_one_seen():
    silent_last = 0
    for seed in range(40):
        made = film(seed, 60.0, tasks=("who",))
        people = [e for e in made.events if e.kind == "character"]
        voices = [e for e in made.events if e.kind == "voice"]
        heard = [p for p in people if any(p.start_s <= v.start_s and v.end_s <= p.end_s for v in voices)]
        answer = next(q.answer for q in made.questions if q.text == "Who speaks last?")
        assert answer == heard[-1].text
        silent_last += people[-1] not in heard
    assert silent_last > 0, "the last character on screen must sometimes be silent, else pictures alone would do"


def test_a_caption_changes_the_picture_only_while_it_is_shown():
    made = film(5, 30.0, tasks=("caption",))
    caption = next(e for e in made.events if e.kind == "caption")
    assert caption.start_s == int(caption.start_s) and caption.end_s - caption.start_s == 1.0
    others = tuple(e for e in made.events if e is not caption)
    without = script.Film(made.seed, 30.0, made.scenes, others, (), made.noise)
    same = [
        np.array_equal(scene.render_frame(made, t, 196, 112), scene.render_frame(without, t, 196, 112))
        for t in (caption.start_s - 0.01, caption.start_s, caption.end_s - 0.01, caption.end_s)
    ]
    assert same == [True, False, False, True]


def test_digits_are_where_draw_caption_says():
    look = scene.caption_look(1)
    plain = np.full((224, 392, 3), 90, np.uint8)
    image = plain.copy()
    centres = scene.draw_caption(image, "482913", (98, 56), look)
    xs = [x for x, _ in centres]
    assert len(centres) == 6 and xs == sorted(xs)
    ink = np.abs(image.astype(int) - np.array(look.ink)).sum(-1) < 60
    for x, y in centres:
        around = ink[round(y) - 18 : round(y) + 18, round(x) - 10 : round(x) + 10]
        assert around.any(), (x, y)


def test_speech_says_different_words_differently_and_gaps_are_silent():
    wave, spans = speech.sentence(["one", "two"], "en-us", 165, 50, gap_s=(0.2, 0.2), rng=np.random.default_rng(0))
    assert [w for w, _, _ in spans] == ["one", "two"]
    gap = wave[int(spans[0][2] * 16000) + 10 : int(spans[1][1] * 16000) - 10]
    assert len(gap) > 2000 and np.abs(gap).max() == 0
    assert len(speech.say("seven")) != len(speech.say("two"))
    with pytest.raises(ValueError, match="unknown voice"):
        speech.say("one", "nobody")


def test_held_out_voices_are_not_trained_on():
    assert not set(speech.HELD_OUT_VOICES) & set(speech.TRAIN_VOICES)


def test_too_short_a_film_says_so():
    with pytest.raises(ValueError, match="too short"):
        world.make_film(1, 3.0, tasks=("spoken",))
