"""`split: adaptive`: rare tokens that match the question draw the budget to their sense, noise does not."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from omnicli.compress import running
from omnicli.compress.methods.avoc import Avoc
from omnicli.compress.methods.avoc_stream import AvocStream
from omnicli.compress.ops import standing
from omnicli.compress.running import Sample
from omnicli.compress.streaming import Stream
from omnicli.compress.top_score import TopScore
from omnicli.testing.clips import clip
from omnicli.types import MediaTokens, Modality, Query


@dataclasses.dataclass(frozen=True)
class Matching(TopScore):
    """Score by the product with the question."""

    def score(self, tokens: MediaTokens, query: Query) -> torch.Tensor:
        return tokens.features.float() @ query.embeddings.float().mean(0)


def planted(rare: Modality, every: int, side: int = 6, audio: int = 50) -> tuple[MediaTokens, Query]:
    """Noise, and in one block of so many tokens of one sense that match the question."""
    tokens = clip(blocks=80, audio=audio, width=48, rows=side, cols=side)
    g = torch.Generator().manual_seed(7)
    asked = torch.randn(1, 48, generator=g)
    event = (tokens.modality == rare) & (tokens.window % every == 3) & (torch.rand(len(tokens), generator=g) < 0.4)
    return dataclasses.replace(tokens, features=tokens.features + event[:, None] * asked), Query(asked.repeat(3, 1))


@pytest.mark.parametrize("method", [Avoc, AvocStream, Matching], ids=lambda m: m.__name__)
@pytest.mark.parametrize(
    ("every", "side"),
    [(40, 6), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((5, 6), (10, 12), (40, 12)))],
)
def test_what_matches_the_question_draws_the_budget(method, every, side):
    if method is AvocStream and side > 6:
        pytest.skip("the stream has blocks of noise to compare; seconds each")
    chosen = method(tokens=1000, split="adaptive")
    sound = [chosen.compress(*planted(rare, every, side)).report["budget"]["audio"] for rare in Modality]
    assert sound[Modality.AUDIO] > 700 and sound[Modality.VIDEO] < 300


@pytest.mark.parametrize("rare", list(Modality))
@pytest.mark.slow
def test_the_stream_shares_as_the_whole_clip_does(rare):
    tokens, question = planted(rare, 10)
    fields = {"tokens": 1000, "split": "adaptive"}
    offline, online = (m(**fields).compress(tokens, question) for m in (Avoc, AvocStream))
    assert online.report == offline.report
    assert float(torch.isin(online.indices, offline.indices).float().mean()) > 0.9


def test_noise_and_nothing_to_go_by_share_evenly():
    noise = clip(blocks=80, audio=50, width=48)
    question = Query(torch.randn(3, 48, generator=torch.Generator().manual_seed(3)))
    for method in (Avoc, Matching):
        budget = method(tokens=1000, split="adaptive").compress(noise, question).report["budget"]
        assert budget["audio"] == pytest.approx(500, abs=60)
        budget = method(tokens=1000, split="adaptive").compress(noise, Query(torch.zeros(2, 48))).report["budget"]
        assert budget == {"video": 500, "audio": 500}
    assert Avoc(tokens=10, split="adaptive").compress(clip(audio=0), Query(torch.zeros(1, 16))).report["budget"] == {
        "video": 10,
        "audio": 0,
    }


def test_standing_is_of_no_unit_and_no_number():
    g = torch.Generator().manual_seed(0)
    for n in (100, 3000, 100_000):
        noise = torch.randn(n, generator=g)
        most = 2.2 if n == 100 else 1.4
        assert 1 <= standing(noise) < most
        peaks = noise.clone()
        peaks[: n // 50] += 10
        assert standing(peaks) == pytest.approx(9.4, abs=3 if n == 100 else 1)
        assert standing(5 + 0.3 * peaks) == pytest.approx(standing(peaks), rel=1e-3)
        assert standing(-peaks) < most
    assert standing(torch.zeros(0)) == 0 and standing(torch.ones(7)) == 1 and standing(torch.ones(1)) == 1
    flat = torch.zeros(1000)
    flat[:10] = 1
    assert standing(flat) > 20


def test_a_sample_is_all_of_few_and_even_of_many(monkeypatch):
    sample = Sample(torch.device("cpu"))
    for begin in range(0, 30_000, 1000):
        sample.add(torch.arange(begin, begin + 1000), torch.arange(begin, begin + 1000).float())
    assert sample.values.sort().values.tolist() == list(range(30_000))
    monkeypatch.setattr(running, "SAMPLE", 2000)
    small = Sample(torch.device("cpu"))
    for begin in range(0, 100_000, 500):
        small.add(torch.arange(begin, begin + 500), torch.arange(begin, begin + 500).float())
    assert len(small.values) == 2000
    tenths = torch.bincount((small.values / 10_000).long(), minlength=10)
    cells = torch.bincount(small.values.long() % 28, minlength=28)
    assert int(tenths.min()) > 150 and int(tenths.max()) < 250 and int(cells.min()) > 40


def test_a_stream_holds_a_sample_only_where_it_is_asked(monkeypatch):
    monkeypatch.setattr(running, "SAMPLE", 64)
    tokens, question = planted(Modality.AUDIO, 5, side=2, audio=4)
    for split, most in (("adaptive", 64), ("2:1", 0)):
        stream = Stream(AvocStream(tokens=20, split=split), question.embeddings)
        stream.push(tokens)
        assert [len(side.sample.values) for side in stream._sides] == [most, most]
        assert stream.peak <= 2 * 1.5 * 20 + 8
        assert len(stream.finish()) == 20
