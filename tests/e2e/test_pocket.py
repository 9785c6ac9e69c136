"""The whole way with the trained pocket model: films in real containers, true answers. Held-out seeds and voices."""

from __future__ import annotations

import pytest

from omnicli.models.loading import load_model
from omnicli.train import pocket_eval


@pytest.fixture(scope="module")
def pocket():
    return load_model("pocket", "cpu", "float32")


def rates(pocket, seconds, films, presets, **options):
    results = pocket_eval.evaluate(pocket, seconds, films, presets, **options)
    return [{task: (r["right"], r["total"]) for task, r in result["rates"].items()} for result in results]


def test_half_a_minute_is_answered_well_from_all_tokens(pocket):
    """The card's rates are 80 % and more; eight films have to give three quarters, which luck does not."""
    (found,) = rates(pocket, 30, 8, [("full", [])])
    for task in ("caption", "spoken", "who"):
        right, total = found[task]
        assert total >= 6 and right / total >= 0.75, found


def test_numbers_need_their_own_sense(pocket):
    (blind,) = rates(pocket, 30, 3, [("full", [])], blank="pictures")
    (deaf,) = rates(pocket, 30, 3, [("full", [])], blank="sound")
    assert blind["caption"][0] == 0 and deaf["spoken"][0] == 0


@pytest.mark.slow
def test_ten_minutes_through_avoc_beat_a_random_choice_of_as_many(pocket):
    budget = ["avoc.tokens=1024"]
    avoc, random = rates(pocket, 600, 3, [("avoc", budget), ("random-10", ["random.tokens=1024"])])
    numbers = ("caption", "spoken")
    assert sum(avoc[t][0] for t in numbers) > sum(random[t][0] for t in numbers)
