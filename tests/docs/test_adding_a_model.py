"""The page for newcomers: its code is run, its family keeps the contract, and what one forgets is told in a line."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import json
import re
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tomllib
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from omnicli import pipeline
from omnicli import testing as contract
from omnicli.cli.main import app
from omnicli.config.config import load_config
from omnicli.doctor import models as doctor
from omnicli.errors import ModelError
from omnicli.models import chat, loading, registry
from omnicli.planning import fit
from omnicli.planning.plan import make_plan
from tests.support import films

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending" / "adding-a-model.md"
DUMMY = "dummy:linear-av-1b,layers=2,scale=0.02"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Write the page's two files, install the first one's entry point, and return both modules."""
    folder, text = tmp_path_factory.mktemp("package"), PAGE.read_text(encoding="utf-8")
    family, test = re.findall(r"^```python\n(.*?)^```$", text, re.S | re.M)
    (folder / "linear_av.py").write_text(family, encoding="utf-8")
    (folder / "linear_av_contract.py").write_text(test, encoding="utf-8")
    (project,) = re.findall(r"^  ```toml\n(.*?)^  ```$", text, re.S | re.M)
    groups = tomllib.loads(textwrap.dedent(project))["project"]["entry-points"]

    def entry_points(group):
        return tuple(importlib.metadata.EntryPoint(name, value, group) for name, value in groups.get(group, {}).items())

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setattr("omnicli.config.registry._entry_points", entry_points)
        yield importlib.import_module("linear_av"), importlib.import_module("linear_av_contract")
    for module in ("linear_av", "linear_av_contract"):
        del sys.modules[module]


def test_the_pages_own_test_passes(page, tmp_path):
    page[1].test_the_contract_is_kept(tmp_path)


def test_the_family_is_found_by_its_entry_point(page):
    assert registry.families()["linear-av"] is page[0].LinearAV
    assert loading.short_names()["linear-av-1b"] == "example/linear-av-1b"
    with pytest.raises(ModelError, match="example/linear-av-1b is not in the local hub cache"):
        loading.find_folder("linear-av-1b")


def test_a_checkpoint_and_random_weights_answer_about_a_film(page, tmp_path):
    film = films.write(tmp_path / "film.mp4", 4.3)
    for name in (DUMMY, str(page[1].build(tmp_path / "model"))):
        model = loading.load_model(name, "cpu")
        assert isinstance(model, page[0].LinearAV)
        config = dataclasses.replace(load_config("full", ["generate.max_new_tokens=3"]), model=name)
        answer = pipeline.ask(film, ["Who?"], config, model)[0]
        tokens = answer.tokens
        high, wide = model.facts.frame_size(answer.media_used.width, answer.media_used.height)
        assert tokens["video"]["kept"] == answer.media_used.frames * model.facts.group_tokens(high, wide)
        assert tokens["audio"]["encoded"] == model.facts.audio_tokens(answer.media_used.audio_s)
    for name in (DUMMY, str(tmp_path / "model")):
        with pytest.raises(ModelError, match="cannot be quantised"):
            loading.load_model(name, "cpu", quantize="int8")
    with pytest.raises(ModelError, match="no attention in its towers"):
        pipeline.ask(film, ["Who?"], load_config("visionzip-25"), model)


# ---- facts by the entry point ----


def test_it_is_planned_by_its_name_and_by_its_files(page, tmp_path):
    info, folder = doctor.film(600), page[1].build(tmp_path / "model")
    held = sum(t.numel() for t in load_file(folder / "model.safetensors").values())
    for name, weights in (("linear-av-1b", page[0].LinearFacts.parameters["1b"]), (str(folder), held)):
        config = dataclasses.replace(load_config("random-10", ["device=cpu", "dtype=float32"]), model=name)
        plan = make_plan(info, config)
        assert plan.parts["weights"] == 4 * weights
        facts, _ = loading.find_facts(name)
        assert isinstance(facts, page[0].LinearFacts)
        assert plan.encoded == (600 * facts.group_tokens(*facts.frame_size(1280, 720)), facts.audio_tokens(600.0))


def test_commands_list_it_and_suggest_it(page):
    rows = doctor.survey(load_config("avoc-10", ["device=cpu"]))
    (row,) = (row for row in rows if row["name"] == "linear-av-1b")
    assert row["weights"] == "missing" and row["films"][0]["host_bytes"] > 2 * page[0].LinearFacts.parameters["1b"]
    listed = CliRunner().invoke(app, ["models", "list", "--json"])
    assert ("linear-av-1b", "example/linear-av-1b") in [(r["name"], r["hub_id"]) for r in json.loads(listed.output)]
    config = dataclasses.replace(load_config("avoc-10"), model="qwen2.5-omni-7b")
    plan = make_plan(doctor.film(600), config)
    assert "--model linear-av-1b" in [text for text, *_ in fit._models(config, plan)]


def test_facts_that_cannot_be_had_hurt_no_other(page, monkeypatch):
    there = "omnicli.config.registry._entry_points"
    gone = importlib.metadata.EntryPoint("linear-av", "linear_av:NotThere", registry.FACTS_GROUP)
    models = importlib.metadata.EntryPoint("linear-av", "linear_av:MODEL", registry.MODEL_GROUP)
    for points in ((gone,), ()):
        monkeypatch.setattr(there, lambda group, points=points: points if group == registry.FACTS_GROUP else (models,))
        assert "qwen2.5-omni-7b" in loading.short_names() and "linear-av-1b" in loading.short_names()
        assert loading.find_facts("qwen2.5-omni-7b")[1] == "7b"
        with pytest.raises(ModelError, match="is not in the local hub cache"):
            loading.find_facts("linear-av-1b")


# ---- heads and marks ----


def test_a_head_that_is_the_embeddings_is_not_in_the_files(page, tmp_path, monkeypatch):
    monkeypatch.setitem(page[0].SIZES["1b"], "tie_word_embeddings", True)
    tiny, folder = page[1].model(), tmp_path / "model"
    assert tiny.facts.tied_head and tiny.parts.llm.lm_head.weight is tiny.parts.llm.model.embed_tokens.weight
    state = tiny.parts.state_dict()
    del state["llm.lm_head.weight"]
    monkeypatch.setattr(tiny.parts, "state_dict", lambda: state)
    monkeypatch.setattr(page[1], "model", lambda: tiny)
    model = loading.load_model(page[1].build(folder), "cpu")
    hidden = torch.randn(3, tiny.hidden_size)
    assert torch.equal(model.logits(hidden), tiny.logits(hidden))
    facts, _ = loading.find_facts(str(folder))
    assert facts.tied_head and facts.llm_values()[1] == facts.llm.vocab_size * facts.llm.hidden_size


@pytest.mark.parametrize("marks", [("", ""), ("sound: ", " (end)")])
def test_marks_are_plain_text_or_nothing(page, monkeypatch, marks):
    begin = marks[0] and "film: "
    parts = (
        "{% for part in message['content'] %}"
        f"{{% if part['type'] == 'video' %}}{begin}[film]"
        f"{{% elif part['type'] == 'audio' %}}{marks[0]}[sound]{marks[1]}"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    )
    monkeypatch.setattr(page[0], "TEMPLATE", "{% for message in messages %}" + parts + "{% endfor %}")
    monkeypatch.setattr(page[0], "MARKERS", chat.Markers("[film]", "[sound]", *marks))
    tiny = page[1].model()
    prompt = tiny.prompt("Who?", video=True, audio=True)
    assert tiny.tokenizer.decode(prompt.before.tolist()) == begin + marks[0]
    assert tiny.tokenizer.decode(prompt.after.tolist()) == marks[1] + "Who?"

    def stock(given, tokens):
        return tiny.parts.llm(inputs_embeds=given.embeds[None]).logits[0]

    assert contract.of_model(tiny, stock) == []


# ---- what is told ----


def spoil(page, **changes):
    """Return a tiny model of a class like the page's, with some things changed."""
    tiny = page[1].model()
    tiny.__class__ = type("Spoilt", (page[0].LinearAV,), changes)
    return tiny


def replaced(name, **changes):
    """Return a method that changes fields of what the page's method of that name returns; values may be functions."""

    def method(self, *args, **kwargs):
        made = getattr(super(type(self), self), name)(*args, **kwargs)
        return dataclasses.replace(made, **{k: v(made) if callable(v) else v for k, v in changes.items()})

    return method


def shifted(clip):
    return dataclasses.replace(clip.tokens, end_s=clip.tokens.end_s + 60)


def backwards(clip):
    return dataclasses.replace(clip.tokens, position_ids=clip.tokens.position_ids.flip(1))


def looking_ahead(self, index, hidden, rope, cache=None, last_attention=False):
    out, received = super(type(self), self).layer(index, hidden, rope, cache, last_attention)
    return out + hidden.mean(0), received


def normalising(self, frames, capture=frozenset()):
    made = super(type(self), self).encode_video(frames, capture)
    return dataclasses.replace(made, features=made.features - made.features.mean(0))


FORGOTTEN = {
    "a token more": (
        {"encode_video": replaced("encode_video", features=lambda v: torch.cat([v.features, v.features[-1:]]))},
        "video: features are",
    ),
    "another number format": (
        {"encode_video": replaced("encode_video", features=lambda v: v.features.double())},
        "video: features are torch.float64 on cpu, not torch.float32",
    ),
    "frames that see each other": ({"encode_video": normalising}, "video in pieces: group by group"),
    "times beyond the film": ({"assemble": replaced("assemble", tokens=shifted)}, "order: times leave the clip"),
    "positions that go back": (
        {"assemble": replaced("assemble", tokens=backwards)},
        "positions: positions of video go back",
    ),
    "no word of what positions count": (
        {"assemble": replaced("assemble", origin=0)},
        "positions: facts.clocked is False, but the clip's positions have an origin in time",
    ),
    "text at the place of media": (
        {"assemble": replaced("assemble", next_position=3)},
        "positions: next_position 3 is not behind the last token's",
    ),
    "a question elsewhere": (
        {"prompt": replaced("prompt", question=slice(0, 3))},
        "prompts: Prompt.question does not hold",
    ),
    "no end of an answer": ({"stop_ids": frozenset()}, "words: stop_ids"),
    "a look ahead": ({"layer": looking_ahead}, "layers: a layer looks ahead"),
    "a part that does not say it works": (
        {"embed": lambda self, ids: self.parts.llm.model.embed_tokens(ids)},
        "parts: embed does not call activate('llm')",
    ),
    "no sizes": ({"facts": property(lambda self: None)}, "attributes: AttributeError"),
    "another rate of sound": ({"audio_tokens_per_s": 25.0}, "audio: 0.5 s make 5 tokens, which is far from"),
}


@pytest.mark.parametrize("what", list(FORGOTTEN))
def test_what_is_forgotten_is_told_in_a_line(page, what):
    changes, message = FORGOTTEN[what]
    tiny = spoil(page, **changes)
    for name in changes.keys() & vars(tiny).keys():
        del vars(tiny)[name]  # the class's is meant
    (point,) = (p for p in contract.families.POINTS if message.startswith(p.__name__.replace("_", " ") + ":"))
    (line,) = contract.of_model(tiny, points=[point])
    assert line.startswith(message) and "\n" not in line and len(line) < 300


def test_a_loop_that_is_not_the_stock_llms_is_told(page):
    tiny = page[1].model()

    def stock(given, tokens):
        return tiny.parts.llm(inputs_embeds=given.embeds.flip(0)[None]).logits[0]

    assert contract.of_model(tiny, stock, [contract.reading.loop]) == [
        "loop: the layer loop's logits are not the stock LLM's"
    ]


def test_a_class_that_is_not_finished_is_told(page, monkeypatch):
    taken = type("Taken", (page[0].LinearAV,), {"short_names": {"Qwen2.5-Omni-7B": "x"}, "dummies": {}})
    assert contract.of_class(taken) == [
        "names: Qwen2.5-Omni-7B is not in lower case",
        "dummies: there are none: nobody can measure or try the family without its weights",
    ]
    names = {"model_types": ("qwen2_5_omni",), "short_names": {}, "dummies": {"double": "1b"}}
    double = type("Double", (page[0].LinearAV,), names)
    assert contract.of_class(double) == [
        "names: model_types: qwen2_5_omni is qwen2_5_omni's already",
        "facts: model_types are not the family's",
    ]
    monkeypatch.setitem(page[0].LinearFacts.parameters, "1b", 7)
    (line,) = contract.of_class(page[0].LinearAV)
    assert line.startswith("facts: parameters['1b'] is 7, the model has ")


def test_weights_that_are_not_checked_are_told(page, tmp_path):
    class Careless(page[0].LinearAV):
        @classmethod
        def load(cls, folder, *, name, revision, device, dtype):
            try:
                return super().load(folder, name=name, revision=revision, device=device, dtype=dtype)
            except ModelError:
                return page[1].model()

    assert contract.of_folder(Careless, page[1].build(tmp_path / "model")) == [
        "damage: the first weight is missing: loads all the same"
    ]


def test_sound_that_depends_on_its_blocks_is_told(page):
    def loudest(self, log_mel_max=None, capture=frozenset(), batch_s=30.0):
        stream = super(type(self), self).audio_encoder(log_mel_max, capture, batch_s)
        feed = stream.feed
        stream.feed = lambda samples: feed(samples / np.abs(samples).max())
        return stream

    found = contract.of_model(spoil(page, audio_encoder=loudest), points=[contract.media.audio_in_pieces])
    assert found == ["audio in pieces: blocks of 777 samples are not the same as all samples at once"]
