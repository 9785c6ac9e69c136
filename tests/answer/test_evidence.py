"""From attention to time ranges."""

from __future__ import annotations

import pytest
import torch

from omnicli.answer import evidence
from omnicli.testing.clips import clip


def tokens():
    """Return ten 2-second blocks, each with a frame pair of 12 cells and 5 sound tokens."""
    return clip(10, 1, 5)


def scores(tokens_, **marked):
    """Return little attention everywhere and ``marked`` (modality name: (first second, last second, each)) more."""
    out = torch.full((len(tokens_),), 1e-4)
    for name, (first, last, each) in marked.items():
        kind = {"video": 0, "audio": 1}[name]
        inside = (tokens_.modality == kind) & (tokens_.start_s >= first) & (tokens_.start_s < last)
        out[inside] = each
    return out


def test_middle_layers():
    assert list(evidence.layers(28)) == list(range(9, 18)) and list(evidence.layers(6)) == [2, 3]
    assert all(len(evidence.layers(n)) >= 1 and evidence.layers(n)[-1] < n for n in range(1, 60))


def test_ranges_are_where_the_attention_is_strongest_first():
    t = tokens()
    found = evidence.ranges(t, scores(t, audio=(4.0, 8.0, 0.05), video=(14.0, 16.0, 0.01)))
    assert [(r["modality"], r["start_s"]) for r in found] == [("audio", 4.0), ("video", 14.0)]
    assert found[0]["end_s"] == pytest.approx(8.0, abs=0.1) and found[1]["end_s"] == pytest.approx(14.4)
    total = 10 * 0.05 + 12 * 0.01 + (len(t) - 22) * 1e-4
    assert found[0]["score"] == pytest.approx(0.5 / total, abs=1e-3)
    assert sum(r["score"] for r in found) <= 1


def test_what_lies_apart_is_apart_and_what_is_near_is_one():
    t = tokens()
    apart = scores(t, audio=(4.0, 6.0, 0.05)) + scores(t, audio=(14.0, 16.0, 0.05))
    assert [(r["start_s"], r["modality"]) for r in evidence.ranges(t, apart)] == [(4.0, "audio"), (14.0, "audio")]
    near = scores(t, audio=(4.0, 10.0, 0.05))
    assert len(evidence.ranges(t, near)) == 1


def test_even_attention_is_no_evidence_and_none_is_none():
    t = tokens()
    even = torch.zeros(len(t))
    even[t.modality == 1] = 1.0
    assert evidence.ranges(t, even) == []
    assert evidence.ranges(t, torch.zeros(len(t))) == []


def test_no_more_than_five_and_the_order_does_not_depend_on_luck():
    t = clip(60, 1, 5)
    marked = torch.full((len(t),), 1e-5)
    for block in range(0, 60, 6):
        marked[(t.window == block) & (t.modality == 1)] = 0.01
    found = evidence.ranges(t, marked)
    assert [r["start_s"] for r in found] == [0.0, 12.0, 24.0, 36.0, 48.0]


def test_a_selection_tells_times_of_the_file():
    t = tokens()
    from omnicli.types import Selection

    kept = t.select(Selection(torch.nonzero(t.start_s >= 10.0).flatten()))
    found = evidence.ranges(kept, scores(kept, video=(12.0, 14.0, 0.1)))
    assert [(r["start_s"], r["modality"]) for r in found] == [(12.0, "video")]
