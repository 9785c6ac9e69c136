"""`omni train`: what is passed on. Training itself is tested where it lives."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnicli.train import pocket as room


@pytest.fixture
def calls(monkeypatch):
    seen = []
    monkeypatch.setattr(room, "main", lambda *args, **kwargs: seen.append((args, kwargs)))
    return seen


def test_all_stages_in_their_order_by_default(omni, calls):
    assert omni("train", "pocket").code == 0
    ((out, stages), kwargs), *rest = calls
    assert (out, stages, rest) == (Path("runs/pocket"), room.STAGES, [])
    assert kwargs == {"scale": 1.0, "seed": 0, "threads": 2, "minutes": None, "start": None}


def test_options_are_passed_on(omni, calls, tmp_path):
    last, first = room.STAGES[1], room.STAGES[0]
    argv = (
        "--stage",
        last,
        "--stage",
        first,
        "--minutes",
        "3",
        "--scale",
        "0.5",
        "--seed",
        "4",
        "--threads",
        "1",
        "--from",
        str(tmp_path),
    )
    assert omni("train", "pocket", "--out", tmp_path, *argv).code == 0
    ((out, stages), kwargs), *_ = calls
    assert (out, stages) == (tmp_path, (first, last))
    assert kwargs == {"scale": 0.5, "seed": 4, "threads": 1, "minutes": 3.0, "start": tmp_path}


def test_a_wrong_stage_trains_nothing(omni, calls):
    assert omni("train", "pocket", "--stage", "nothing").code == 2
    assert calls == []
