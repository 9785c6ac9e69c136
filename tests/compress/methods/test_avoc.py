"""AVOC's scores against literal attention, their corner cases, gradients, scorer files, and the selection."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from omnicli.compress.methods.avoc import (
    SCORER_FILE,
    Avoc,
    Projections,
    importance,
    load_projections,
    relevance,
    scores,
)
from omnicli.errors import ConfigError, ModelError
from omnicli.testing.clips import clip, query
from omnicli.types import Modality, Query
from tests.compress.reference import greedy_ta_mmr, grid_vectors


def projections(d: int = 16, k: int = 16, seed: int = 5) -> Projections:
    g = torch.Generator().manual_seed(seed)
    return Projections(*(torch.randn(d, k, generator=g) / d**0.5 for _ in range(4)))


def identity(d: int = 16) -> Projections:
    return Projections(*(torch.eye(d) for _ in range(4)))


def literal_relevance(tokens, question, p):
    logits = (question @ p.w_q) @ (tokens.features @ p.w_k).T / p.w_q.shape[1] ** 0.5
    return logits.mean(0)


def literal_importance(tokens, p):
    """Equations 4-6, one block, one token at a time; None where the block has no other modality."""
    out = []
    for i in range(len(tokens)):
        same_block = tokens.window == tokens.window[i]
        others = tokens.features[same_block & (tokens.modality != tokens.modality[i])]
        if len(others) == 0:
            out.append(None)
            continue
        logits = (
            (others @ p.importance_w_q) @ (tokens.features[i] @ p.importance_w_k) / p.importance_w_q.shape[1] ** 0.5
        )
        out.append(float(logits.mean()))
    return out


def literal_scores(tokens, question, p):
    rel, imp = literal_relevance(tokens, question, p).double(), literal_importance(tokens, p)
    out = torch.zeros(len(tokens), dtype=torch.float64)
    for m in Modality:
        own = tokens.indices(m).tolist()
        if not own:
            continue
        r = rel[own]
        out[own] = (r - r.mean()) / r.std(unbiased=False)
        there = [i for i in own if imp[i] is not None]
        if there:
            v = torch.tensor([imp[i] for i in there], dtype=torch.float64)
            z = dict(zip(there, ((v - v.mean()) / v.std(unbiased=False)).tolist(), strict=True))
            out[own] = torch.tensor([(float(out[i]) + z.get(i, 0.0)) / 2 for i in own], dtype=torch.float64)
    return out.float()


def ragged():
    """A clip in which some blocks lack sound, some pictures, and sizes differ."""
    whole = clip(blocks=8, frames=2, audio=6)
    g = torch.Generator().manual_seed(9)
    keep = torch.rand(len(whole), generator=g) < 0.6
    keep &= ~((whole.window == 2) & (whole.modality == 1)) & ~((whole.window == 5) & (whole.modality == 0))
    keep &= whole.window != 6
    from omnicli.types import Selection

    return whole.select(Selection(torch.nonzero(keep).flatten()))


@pytest.mark.parametrize("p", [None, projections(), projections(k=5)], ids=["identity", "square", "narrow"])
@pytest.mark.parametrize("tokens", [clip(), ragged()], ids=["even", "ragged"])
def test_linear_identities_equal_literal_attention(tokens, p):
    question, literal = query().embeddings, p or identity()
    torch.testing.assert_close(
        relevance(tokens.features, question, p), literal_relevance(tokens, question, literal), rtol=1e-5, atol=1e-5
    )
    got, defined = importance(tokens.features, tokens.modality, tokens.window, p)
    expected = literal_importance(tokens, literal)
    assert defined.tolist() == [e is not None for e in expected]
    torch.testing.assert_close(got[defined], torch.tensor([e for e in expected if e is not None]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        scores(tokens.features, tokens.modality, tokens.window, question, p),
        literal_scores(tokens, question, literal),
        rtol=1e-4,
        atol=1e-4,
    )


def test_scores_are_computed_in_fp32_from_bf16():
    tokens, question = clip(dtype=torch.bfloat16), query(dtype=torch.bfloat16).embeddings
    got = scores(tokens.features, tokens.modality, tokens.window, question)
    wide = scores(tokens.features.float(), tokens.modality, tokens.window, question.float())
    assert got.dtype == torch.float32 and torch.equal(got, wide)


def test_chunks_do_not_change_scores(monkeypatch):
    tokens, question = ragged(), query().embeddings
    whole = scores(tokens.features, tokens.modality, tokens.window, question, projections())
    monkeypatch.setattr("omnicli.compress.ops.row_chunks.__defaults__", (4, 200))
    parts = scores(tokens.features, tokens.modality, tokens.window, question, projections())
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [clip(audio=0), clip(frames=0)], ids=["silent", "audio only"])
def test_one_modality_is_scored_by_relevance_alone(tokens):
    question = query().embeddings
    raw = relevance(tokens.features, question)
    got = scores(tokens.features, tokens.modality, tokens.window, question)
    torch.testing.assert_close(got, (raw - raw.mean()) / raw.std(unbiased=False), rtol=1e-4, atol=1e-4)


def test_equal_tokens_have_score_zero():
    tokens = clip(width=64)
    same = tokens.features[:1].expand(len(tokens), -1) * 37.3
    assert torch.equal(scores(same, tokens.modality, tokens.window, query(64).embeddings), torch.zeros(len(tokens)))


def test_gradients_reach_every_projection_and_are_right():
    tokens, question = clip(blocks=3, audio=2, width=4, rows=1, cols=3), query(4).embeddings
    weight = torch.randn(len(tokens), generator=torch.Generator().manual_seed(2))
    p = projections(4, 3)
    leaves = {name: t.clone().requires_grad_() for name, t in p.to_dict().items()}

    def loss(tensors):
        made = Projections.from_dict(tensors)
        return (scores(tokens.features, tokens.modality, tokens.window, question, made) * weight).sum()

    loss(leaves).backward()
    for name, leaf in leaves.items():
        assert leaf.grad is not None and float(leaf.grad.abs().max()) > 1e-3
        step = torch.zeros_like(leaf)
        step[1, 2] = 1e-2
        with torch.no_grad():
            up, down = ({**p.to_dict(), name: getattr(p, name) + sign * step} for sign in (1, -1))
            slope = (loss(up) - loss(down)) / 2e-2
        torch.testing.assert_close(leaf.grad[1, 2], slope, rtol=2e-2, atol=2e-3)


def test_gradients_are_finite_where_scores_are_flat():
    tokens = clip()
    p = {name: t.requires_grad_() for name, t in projections().to_dict().items()}
    same = torch.ones_like(tokens.features)
    scores(same, tokens.modality, tokens.window, query().embeddings, Projections.from_dict(p)).sum().backward()
    assert all(bool(torch.isfinite(t.grad).all()) for t in p.values())


@pytest.mark.parametrize("radius", [0, 1, 3])
def test_selection_is_greedy_per_modality_within_its_budget(radius):
    tokens, question = ragged(), query()
    method = Avoc(tokens=20, diversity=0.4, radius=radius)
    selection = method.compress(tokens, question)
    score = scores(tokens.features, tokens.modality, tokens.window, question.embeddings)
    expected = []
    for m, k in ((Modality.VIDEO, 13), (Modality.AUDIO, 7)):
        own = tokens.indices(m)
        picked = greedy_ta_mmr(grid_vectors(tokens.features[own]), score[own], tokens.window[own], k, 0.4, radius)
        expected += own[picked].tolist()
    assert selection.indices.tolist() == sorted(expected)
    assert selection.report == {"budget": {"video": 13, "audio": 7}, "scorer": "identity"}


def test_the_question_decides():
    tokens = clip()
    assert not torch.equal(
        Avoc(tokens=10).compress(tokens, query(seed=1)).indices, Avoc(tokens=10).compress(tokens, query(seed=2)).indices
    )


def test_adaptive_split_follows_how_far_the_best_relevances_stand_out():
    """See `tests.compress.test_adaptive` for what comes of it."""
    tokens = clip(blocks=10, audio=12)
    budget = Avoc(tokens=40, split="adaptive").compress(tokens, query()).report["budget"]
    logits = relevance(tokens.features, query().embeddings)
    stand = []
    for m in Modality:
        own = sorted(logits[tokens.modality == m].tolist())
        middle = own[len(own) // 2]
        deviation = 1.4826 * sorted(abs(x - middle) for x in own)[len(own) // 2]
        best = own[-max(1, round(len(own) / 100)) :]
        stand.append(1 + max(0, (sum(best) / len(best) - middle) / deviation - 2.6652))
    assert (
        budget["video"] == pytest.approx(40 * stand[0] / sum(stand), abs=1) and budget["audio"] == 40 - budget["video"]
    )


def test_scorer_files(tmp_path):
    p = projections(k=5)
    save_file(p.to_dict(), tmp_path / "mine.safetensors")
    method = Avoc(tokens=12, scorer=str(tmp_path / "mine.safetensors"))
    selection = method.compress(clip(), query())
    assert selection.report["scorer"] == "mine.safetensors"
    assert not torch.equal(selection.indices, Avoc(tokens=12).compress(clip(), query()).indices)
    assert torch.equal(load_projections(tmp_path / "mine.safetensors").importance_w_k, p.importance_w_k)
    with pytest.raises(ConfigError, match=r"width 16, not 8"):
        method.compress(clip(width=8), query(8))


def test_auto_takes_the_scorer_beside_the_model(tmp_path):
    assert Avoc().bind(tmp_path).scorer == "auto"
    save_file(projections().to_dict(), tmp_path / SCORER_FILE)
    bound = Avoc().bind(tmp_path)
    assert bound.compress(clip(), query()).report["scorer"] == SCORER_FILE
    assert Avoc(scorer="identity").bind(tmp_path).scorer == "identity"


@pytest.mark.parametrize(
    "tensors",
    [
        {"w_q": torch.eye(4)},
        {**projections().to_dict(), "w_q": torch.zeros(16, 3)},
        {**projections().to_dict(), "importance_w_q": torch.eye(8), "importance_w_k": torch.eye(8)},
    ],
    ids=["missing", "shape", "width"],
)
def test_wrong_scorer_files_are_config_errors(tensors, tmp_path):
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(ConfigError, match=r"bad\.safetensors"):
        load_projections(tmp_path / "bad.safetensors")


def test_broken_scorer_file_is_a_config_error(tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"not tensors at all")
    with pytest.raises(ConfigError, match="is no AVOC scorer"):
        load_projections(tmp_path / "bad.safetensors")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_projections(tmp_path / "gone.safetensors")


def test_broken_embeddings_are_an_error_not_an_answer():
    tokens = clip()
    tokens.features[3, 2] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        Avoc(tokens=5).compress(tokens, Query(query().embeddings))


@pytest.mark.parametrize(
    "bad", [{"diversity": -0.1}, {"diversity": 2.0}, {"radius": -1}, {"scorer": "nowhere"}], ids=str
)
def test_impossible_settings_are_config_errors(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Avoc(**bad)


# ---- the LLM as scorer ----


class Backbone:
    """Attends to what it is told to, and remembers what it was asked."""

    depth = 6

    def __init__(self, attention: torch.Tensor) -> None:
        self.given, self.asked = attention, []

    def attention(self, stretches, layers):
        self.asked.append((stretches, layers))
        return self.given


def asking(attention: torch.Tensor) -> tuple[Backbone, Query]:
    backbone = Backbone(attention)
    return backbone, dataclasses.replace(query(), backbone=backbone)


def test_the_llms_attention_is_z_scored_by_modality_and_chosen_from_as_ever():
    tokens = clip()
    attention = torch.rand(len(tokens), generator=torch.Generator().manual_seed(3)) ** 4
    backbone, question = asking(attention)
    method = Avoc(scorer="backbone", tokens=12, stretch_s=1.5, scorer_layers=0.34, diversity=0.6)
    chosen = method.compress(tokens, question)
    ((stretches, layers),) = backbone.asked
    assert layers == range(2)  # of 6, rounded
    assert [(rows.start, rows.stop) for rows in stretches] == literal_stretches(tokens, 1.5)
    expected = []
    for kind, k in ((Modality.VIDEO, 8), (Modality.AUDIO, 4)):
        own = tokens.indices(kind)
        score = (attention[own] - attention[own].mean()) / attention[own].std(unbiased=False)
        picked = greedy_ta_mmr(grid_vectors(tokens.features[own]), score, tokens.window[own], k, 0.6, 3)
        expected += own[picked].tolist()
    assert chosen.indices.tolist() == sorted(expected)
    assert chosen.report["scorer"] == "backbone" and chosen.notes == ()


def literal_stretches(tokens, seconds):
    """A stretch ends where a token begins a multiple of ``seconds`` after the first one."""
    found, begin = [], float(tokens.start_s.min())
    last = None
    for i, start in enumerate(tokens.start_s.tolist()):
        number = max(int((start - begin) // seconds), -1 if last is None else last)
        if number != last:
            found.append([i, i])
        found[-1][1], last = i + 1, number
    return [tuple(pair) for pair in found]


def test_the_llm_is_not_asked_where_everything_stays():
    backbone, question = asking(torch.rand(len(clip())))
    for scorer in ("backbone", "auto"):
        chosen = Avoc(scorer=scorer, tokens=len(clip())).compress(clip(), question)
        assert len(chosen.indices) == len(clip()) and chosen.notes == ()  # nobody chose anything
    assert backbone.asked == []


@pytest.mark.parametrize(
    ("fields", "at_hand", "scorer", "note"),
    [
        ({}, True, "backbone", "no scorer trained for this model"),
        ({}, False, "identity", "untrained"),
        ({"scorer": "identity"}, True, "identity", "untrained"),
        ({"scorer": "backbone"}, True, "backbone", ""),
    ],
)
def test_what_scored_is_said(fields, at_hand, scorer, note):
    question = asking(torch.rand(len(clip())))[1] if at_hand else query()
    chosen = Avoc(tokens=12, **fields).compress(clip(), question)
    assert chosen.report["scorer"] == scorer
    assert (note in " ".join(chosen.notes)) if note else chosen.notes == ()


def test_attention_that_is_not_finite_is_told_and_so_is_a_missing_llm():
    with pytest.raises(ModelError, match="not finite"):
        Avoc(tokens=12, scorer="backbone").compress(clip(), asking(torch.full((len(clip()),), torch.nan))[1])
    with pytest.raises(ConfigError, match="not at hand"):
        Avoc(tokens=12, scorer="backbone").compress(clip(), query())


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"stretch_s": 0.0}, "stretch_s: must be above 0"),
        ({"scorer_layers": 0.0}, "scorer_layers: must be above 0"),
        ({"scorer_layers": 1.5}, "scorer_layers: must be above 0 and at most 1"),
        ({"scorer": "identity", "stretch_s": 30.0}, "stretch_s: only the scorer backbone"),
        ({"scorer": "identity", "scorer_layers": 1.0}, "scorer_layers: only the scorer backbone"),
    ],
)
def test_wrong_settings_of_the_backbone(fields, told):
    with pytest.raises(ConfigError, match=told):
        Avoc(**fields)
