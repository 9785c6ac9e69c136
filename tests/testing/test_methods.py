"""What an author forgets is told in a line each."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from omnicli import testing
from omnicli.compress.base import Compressor, everything
from omnicli.compress.methods.random import Random
from omnicli.compress.methods.seats import Seats
from omnicli.compress.top_score import TopScore
from omnicli.errors import ConfigError
from omnicli.testing import methods as contract
from omnicli.types import MediaTokens, Selection


@dataclass(frozen=True)
class Loud(TopScore):
    """Keep what is long.

    Parameters
    ----------
    power : float
        Of the length.
    """

    power: float = 1.0

    criterion: ClassVar[str] = "length"

    def score(self, tokens, query):
        """Return lengths."""
        return tokens.features.float().norm(dim=1) ** self.power


def spoilt(base: type[Compressor] = Loud, **changes) -> type[Compressor]:
    """Return the class with some things changed; what is described stays."""
    return dataclass(frozen=True)(type("Spoilt", (base,), {"__doc__": "Spoilt.", "name": "spoilt", **changes}))


def after(change, base=Loud):
    """Return a compress() that changes what the class's gives."""
    return lambda self, tokens, query: change(tokens, base.compress(self, tokens, query))


def one_less(tokens, chosen):
    left = chosen.indices[:-1] if len(chosen.indices) not in (1, len(tokens)) else chosen.indices
    kinds = tokens.modality[left]
    return Selection(left, report={"budget": {"video": int((kinds == 0).sum()), "audio": int((kinds == 1).sum())}})


def shuffled(self, tokens, query):
    return torch.rand(len(tokens))


def growing(self, tokens, query):
    tokens.features[0] += 1
    return tokens.features.float().norm(dim=1)


def all_pairs(self, tokens, query):
    x = tokens.features.float()
    return (x @ x.T).sum(1)


def unlike_the_question(self, tokens, query):
    return -(tokens.features.float() @ query.embeddings.float().sum(0))


def lost(tokens, chosen):
    return Selection(chosen.indices, tokens.features[chosen.indices].double(), chosen.report)


def halved(tokens, chosen):
    return Selection(chosen.indices, tokens.features[chosen.indices] / 2, chosen.report)


def opened(self, layer, view):
    view.hidden.add_(1)
    return Seats.prune(self, layer, view)


def clamped(self, tokens, query):
    tokens.features.clamp_(-1, 1)
    return tokens.features.float().norm(dim=1)


def clamped_question(self, tokens, query):
    query.embeddings.clamp_(-1, 1)
    return tokens.features.float().norm(dim=1)


def clamped_hidden(self, layer, view):
    keep = Seats.prune(self, layer, view)
    view.hidden.clamp_(-1, 1)
    return keep


def silenced_attention(self, layer, view):
    keep = Seats.prune(self, layer, view)
    view.attention[0] = -torch.inf
    return keep


def view_of_the_clip(tokens, chosen):
    return replace(chosen, features=tokens.features[: len(chosen.indices)])


def leave(self, tokens, query):
    sys.exit("no GPU")


def video_only(self, tokens, query):
    if not tokens.count(0):
        raise IndexError(f"frame 0 of {len(tokens)}")
    return tokens.features.float().norm(dim=1)


def share_only(self, tokens, query):
    """Go by the share even where a number of tokens is set."""
    return Loud(retention=self.retention or 0.3).compress(tokens, query)


@dataclass(frozen=True)
class Undocumented(Loud):
    criterion: ClassVar[str] = "length"


class Undecorated(Loud):
    """Not a dataclass of its own."""


@dataclass(frozen=True)
class Silent(Loud):
    """Keep."""

    more: int = 1


@dataclass(frozen=True)
class Untyped(Loud):
    """Keep.

    Parameters
    ----------
    taps : Tensor
        No YAML can hold them.
    """

    taps: object = torch.zeros


TOLD = {
    "not decorated": (Undecorated, "settings: the class is not decorated with @dataclass(frozen=True)"),
    "undescribed": (Silent, "settings: more is not described under Parameters in the docstring"),
    "no YAML": (Untyped, "settings: TypeError"),
    "no criterion": (spoilt(criterion=""), "settings: criterion does not say"),
    "backwards": (
        spoilt(compress=after(lambda t, s: Selection(s.indices.flip(0), report=s.report))),
        "choices: video and audio: ValueError: compress() gives indices that are not ascending, or one twice",
    ),
    "one beyond": (
        spoilt(compress=after(lambda t, s: Selection(s.indices + 1000, report=s.report))),
        "choices: video and audio: ValueError: compress() gives indices outside 0 to 101",
    ),
    "mask": (
        spoilt(compress=after(lambda t, s: Selection(s.indices > 0, report=s.report))),
        "choices: video and audio: ValueError: compress() gives indices (31,) torch.bool",
    ),
    "another dtype": (spoilt(compress=after(lost)), "choices: video and audio: features become torch.float64"),
    "one token short": (spoilt(compress=after(one_less)), "budgets: video and audio: retention 0.3 of 102"),
    "no report": (
        spoilt(compress=after(lambda t, s: Selection(s.indices))),
        'budgets: video and audio: report["budget"]',
    ),
    "changes what stays": (spoilt(compress=after(halved)), "everything stays: video and audio: retention 1"),
    "shared generator": (spoilt(score=shuffled), "repeatable: video and audio: draws from torch's shared generator"),
    "in place": (spoilt(score=growing), "input untouched: video and audio: features is modified"),
    "in place, inside": (spoilt(Seats, prune=opened), "input untouched: video and audio: prune()"),
    "in place, twice the same": (spoilt(score=clamped), "input untouched: video and audio: features is modified"),
    "question in place": (spoilt(score=clamped_question), "input untouched: video and audio: the question is modified"),
    "hidden in place": (
        spoilt(Seats, prune=clamped_hidden),
        "input untouched: video and audio: prune() modifies hidden of what layer",
    ),
    "attention in place": (
        spoilt(Seats, prune=silenced_attention),
        "input untouched: video and audio: prune() modifies attention of what layer",
    ),
    "view": (
        spoilt(compress=after(view_of_the_clip)),
        "input untouched: video and audio: what is chosen is a view of the clip's features",
    ),
    "saliency not asked for": (
        spoilt(score=lambda self, t, q: t.saliency.float()),
        "choices: video and audio: ValueError: tokens.saliency is read, but needs does not name it",
    ),
    "keys not asked for": (
        spoilt(score=lambda self, t, q: t.keys.float().norm(dim=1)),
        "choices: video and audio: ValueError: tokens.keys is read, but needs does not name it",
    ),
    "unknown need": (spoilt(needs=frozenset({"salience"})), "settings: needs names salience; there are keys, "),
    "needs is a word": (spoilt(needs="keys"), "settings: needs is 'keys', not a frozenset of names"),
    "no docstring": (Undocumented, "settings: the class has no docstring"),
    "prune gives nothing": (
        spoilt(Seats, prune=lambda self, layer, view: None),
        "choices: video and audio: TypeError: prune() after layer",
    ),
    "exit": (spoilt(score=leave), "choices: video and audio: SystemExit: no GPU"),
    "no selection": (
        spoilt(compress=after(lambda t, s: s.indices)),
        "choices: video and audio: TypeError: compress() gives Tensor, not a Selection",
    ),
    "needs pictures": (spoilt(score=video_only), "choices: audio only: IndexError: frame 0 of 30"),
    "needs a question": (
        spoilt(score=lambda self, t, q: t.features.float().norm(dim=1) + 0 * q.embeddings[0, 0]),
        "questions: a question without tokens: IndexError",
    ),
    "no number of tokens": (
        spoilt(compress=share_only),
        "budgets: video and audio: tokens=51 of 102 tokens are 51, not 31",
    ),
    "tensor in the report": (
        spoilt(compress=after(lambda t, s: Selection(s.indices, report={**s.report, "best": s.indices}))),
        "reports: video and audio: TypeError: Object of type Tensor is not JSON serializable",
    ),
    "secret question": (spoilt(score=unlike_the_question), "questions: the question changes the choice"),
    "all pairs": (spoilt(score=all_pairs), "memory: 100000 tokens need more than 2 GiB"),
    "layers without prune": (
        spoilt(layers=lambda self, depth: (3,)),
        "choices: video and audio: NotImplementedError: spoilt names",
    ),
    "layers beyond": (spoilt(Seats, layers=lambda self, depth: (19, 17)), "layers: layers(28) are (19, 17)"),
    "no score": (
        spoilt(TopScore, criterion="x"),
        "choices: video and audio: NotImplementedError: spoilt has no score()",
    ),
    "too few scores": (
        spoilt(score=lambda self, t, q: torch.zeros(3)),
        "choices: video and audio: ValueError: spoilt: scores are (3,)",
    ),
    "scores of no number": (spoilt(score=lambda self, t, q: t.start_s / 0), "choices: video and audio: ModelError"),
}


@pytest.mark.parametrize("what", list(TOLD))
def test_what_is_not_kept_is_told_in_a_line(what):
    cls, message = TOLD[what]
    points = [point for point in contract.POINTS if point is not contract.memory or what == "all pairs"]
    found = testing.of_method(cls, points)
    assert any(line.startswith(message) for line in found), found
    assert all("\n" not in line and len(line) < 300 for line in found)


@pytest.mark.parametrize(
    "what",
    [
        "needs pictures",
        "exit",
        "saliency not asked for",
        "no selection",
        "prune gives nothing",
        "in place, twice the same",
    ],
)
def test_a_fault_is_told_once(what):
    cls, message = TOLD[what]
    (line,) = testing.of_method(cls, [point for point in contract.POINTS if point is not contract.memory])
    assert line.startswith(message)


def test_settings_are_tried():
    assert testing.of_method(Loud, power=2.0) == []
    assert testing.of_method(Loud, [contract.choices], power="2")[0].startswith("choices: video and audio: TypeError")


@pytest.mark.parametrize("what", [Loud(), "loud", Selection, object])
def test_what_is_no_method_is_refused(what):
    with pytest.raises(TypeError, match=r"takes the class and settings|does not derive from"):
        testing.of_method(what)


def test_what_keeps_everything_is_told_nothing():
    assert testing.of_method(Loud) == []


def test_a_method_without_a_budget_need_not_meet_one():
    keeps = spoilt(Compressor, criterion="nothing", compress=lambda self, tokens, query: everything(tokens))
    assert testing.of_method(keeps) == []


def test_scores_decide_within_each_modality_and_the_first_of_equal_ones_stays():
    tokens: MediaTokens = testing.clip(blocks=3, audio=4, rows=1, cols=3)
    flat = spoilt(score=lambda self, t, q: torch.zeros(len(t), dtype=torch.int64))
    chosen = flat(retention_video=0.5, retention_audio=0.25).compress(tokens, testing.query())
    assert chosen.indices.tolist() == [0, 1, 2, 3, 4, 5, 7, 8]  # 5 of 9 video tokens, 3 of 12 audio tokens
    late = spoilt(score=lambda self, t, q: t.start_s)
    chosen = late(tokens=4, split="1:1").compress(tokens, testing.query())
    assert chosen.indices.tolist() == [14, 15, 19, 20]


def test_adaptive_split_follows_scores_that_stand_out():
    tokens = testing.clip(blocks=3, audio=4, rows=2, cols=2)
    rare = spoilt(
        score=lambda self, t, q: torch.arange(len(t)) % 5 + 30.0 * ((t.modality == 1) & (t.start_s == t.start_s[-1]))
    )
    assert rare(tokens=8, split="adaptive").compress(tokens, testing.query()).report["budget"] == {
        "video": 1,
        "audio": 7,
    }
    assert Random(tokens=4).problems() == []
    with pytest.raises(ConfigError, match="has no scores"):
        Random(split="adaptive")
