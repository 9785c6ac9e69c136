"""Plans against what runs do: tokens to the token, positions, weights, peak memory; what fits and what would."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess

import pytest

from omnicli.config.config import list_presets, load_config
from omnicli.encode.film import load_film
from omnicli.errors import ConfigError, MediaError, MemoryLimitError, ModelError, UnknownFamilyError
from omnicli.media.probe import probe
from omnicli.models import loading, registry
from omnicli.planning import fit, machine
from omnicli.planning import plan as planning
from omnicli.planning.constants import CUDA_CONTEXT_BYTES, LIBRARIES_BYTES, MARKS, TEXT_TOKENS
from omnicli.planning.peaks import Weights
from tests.support import films, tiny, tiny_minicpm, tiny_qwen3
from tests.support.slowly import slow_but

GIB = 1 << 30
PAPERS = tuple(
    f"media.{text}"
    for text in ("fps=3", "sampling=linspace", "max_frames=11", "clock=nominal", "total_pixels=30000", "audio=off")
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        "qwen2.5": tiny.build(root / "q25"),
        "full": tiny.build(root / "q25-full", full=True),
        "qwen3": tiny_qwen3.build(root / "q3"),
        "minicpm": tiny_minicpm.build(root / "mc"),
    }


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return films.write(tmp_path_factory.mktemp("film") / "film.mp4", 7.3)


def config(model, preset="full", *sets, device="cpu"):
    return dataclasses.replace(load_config(preset, sets), model=str(model), device=device)


@pytest.fixture
def room(monkeypatch):
    """Return a function that says how much memory is free: of the host, and of a card."""

    def say(host=64 * GIB, card=None):
        cards = [] if card is None else [machine.Device(0, "a card", card, card)]
        monkeypatch.setattr(machine, "host_memory", lambda: (host, host))
        monkeypatch.setattr(machine, "devices", lambda: cards)

    say()
    return say


@pytest.mark.parametrize("kind", ["qwen2.5", "full", "qwen3", "minicpm"])
@pytest.mark.parametrize(
    "sets",
    slow_but(
        [(), ("media.fps=3", "media.start=1.3", "media.end=6.4"), ("media.audio=off",), PAPERS],
        lambda sets: not sets or sets is PAPERS,
    ),
)
def test_tokens_positions_and_weights_are_those_of_the_run(models, film, kind, sets, room):

    model = loading.load_model(models[kind], "cpu")
    settings = config(models[kind], "full", *sets)
    answer_film = load_film(film, settings.media, frozenset(), model)
    plan = planning.make_plan(probe(film), settings)
    clip = answer_film.media.clip
    assert sum(plan.encoded) == len(clip.tokens)
    used = answer_film.media.used
    assert (plan.media.frames, plan.media.width, plan.media.height) == (used.frames, used.width, used.height)
    if sets == PAPERS:  # 58 frames of 8 a second: 21.75, of them at most 11, in pairs; the last frame begins at 7.125 s
        assert used.frames == 10 and used.width * used.height <= 6000
    before = len(model.prompt("", video=clip.video, audio=clip.audio).before)
    assert abs(plan.position - MARKS + before - clip.max_position) <= 2
    weights = (getattr(model, "thinker", None) or model.parts).parameters()
    assert plan.parts["weights"] == sum(w.numel() for w in weights) * 4
    item = clip.tokens.features.nbytes * (1 + model.facts.levels)
    assert item < plan.parts["tokens"] < 1.5 * item + 64 * len(clip.tokens)


@pytest.mark.parametrize(("kind", "trained"), [("qwen2.5", 300), ("qwen3", 100), ("minicpm", 100)])
@pytest.mark.parametrize("wanted", ["auto", *(pytest.param(w, marks=pytest.mark.slow) for w in ("off", "0.25"))])
def test_positions_in_a_smaller_range_are_those_of_the_run(models, film, tmp_path, kind, trained, wanted, room):
    from omnicli import pipeline

    folder = shutil.copytree(models[kind], tmp_path / kind)
    told = json.loads((folder / "config.json").read_text())
    told.get("text_config", told)["max_position_embeddings"] = trained
    (folder / "config.json").write_text(json.dumps(told))
    settings = config(
        folder, "full", "method=random", "random.tokens=8", "generate.max_new_tokens=4", f"media.time_scale={wanted}"
    )
    if kind == "minicpm" and wanted == "0.25":
        with pytest.raises(ConfigError, match=r"media\.time_scale: positions of .* count tokens"):
            planning.make_plan(probe(film), settings)
        return
    plan, model = planning.make_plan(probe(film), settings), loading.load_model(folder, "cpu")
    answer = pipeline.ask(film, ["Who?"], settings, model)[0]
    before = len(model.prompt("", video=True, audio=True).before)
    fitted = wanted == "auto" and kind != "minicpm"
    shift = 0 if fitted else before - MARKS  # fitted into the same range, whatever stands before
    assert abs(plan.position + shift - answer.positions["largest"]) <= 2
    assert plan.trained == answer.positions["trained"] == trained
    found = planning.to_dict(probe(film), settings, plan, [])["positions"]
    if wanted == "auto" and kind != "minicpm":
        assert found["time_scale"] < 1 and answer.positions["time_scale"] < 1
    else:
        assert found["time_scale"] == answer.positions["time_scale"]
        assert found["time_scale"] == {"auto": None, "off": None if kind == "minicpm" else 1.0, "0.25": 0.25}[wanted]


@pytest.mark.parametrize(
    "preset", ["full", "avoc-10", "seats-25", "dycoke-35", "omnizip-35", "divprune-25", "avoc-seats"]
)
@pytest.mark.slow
def test_kept_tokens_are_those_of_the_run(models, film, preset, room):
    from omnicli import pipeline

    settings = config(models["qwen2.5"], preset, "media.fps=4", "generate.max_new_tokens=2")
    answer = pipeline.ask(film, ["Who?"], settings, loading.load_model(models["qwen2.5"], "cpu"))[0]
    plan = planning.make_plan(probe(film), settings)
    for i, name in enumerate(("video", "audio")):
        assert plan.encoded[i] == answer.tokens[name]["encoded"]
        off = 0.1 * plan.kept[i] if preset.startswith("dycoke") else 2  # its whole frames take more in a short film
        assert abs(plan.kept[i] - answer.tokens[name]["kept"]) <= off


def test_kv_bytes_are_those_of_the_cache(models, film, room):
    from omnicli.llm.kv import KVCache

    plan = planning.make_plan(probe(film), config(models["qwen2.5"]))
    facts, _ = loading.find_facts(str(models["qwen2.5"]))
    d, length = facts.llm, sum(plan.kept) + TEXT_TOKENS + 64
    cache = KVCache(d.depth, d.kv_heads, d.head_dim, dtype=__import__("torch").float32, device="cpu", capacity=length)
    import torch

    for layer in range(d.depth):
        cache.update(*(torch.zeros(1, d.kv_heads, 1, d.head_dim) for _ in range(2)), layer)
    assert plan.parts["kv"] == cache.nbytes


@pytest.mark.parametrize("name", [n for f in registry.facts().values() for n in f.dummies])
def test_released_sizes_have_as_many_weights_as_the_models(name):
    import torch

    from omnicli.models.weights.dummy import Shrink, unfilled_model

    facts, size = loading.find_facts(f"dummy:{name}")
    family = registry.families()[facts.family.replace("_", "-")]
    if facts.family == "minicpm_o":
        from omnicli.models.components import minicpm_o_weights as weights

        model = unfilled_model(weights.Parts, weights.Settings.dummy(None, 1.0, 10), "meta", torch.bfloat16)
    else:
        shape, _ = family.dummy_config(size, Shrink())
        model = unfilled_model(family.thinker_class, shape, "meta", torch.bfloat16)
        assert dataclasses.asdict(type(facts).read(name, shape.to_dict())) == dataclasses.asdict(facts)
    assert sum(p.numel() for p in model.parameters()) == type(facts).parameters[size]


def test_every_preset_can_be_planned(film, room):
    info = probe(film)
    for preset in list_presets():
        plan = planning.make_plan(info, config("qwen2.5-omni-7b", preset.name))
        assert 0 < sum(plan.kept) <= sum(plan.encoded)


def test_an_hour_of_full_tokens_is_refused_and_the_remedy_fits(film, room):
    info = dataclasses.replace(probe(film), audio_span=(0.0, 3600.0), duration_s=3600.0)
    room(host=200 * GIB)
    settings = config("qwen2.5-omni-7b")
    plan = planning.make_plan(info, settings)
    assert (
        plan.encoded[1] == 90_000 and plan.position < plan.trained and plan.time_scale == pytest.approx(0.34, abs=1e-3)
    )
    off = planning.make_plan(info, config("qwen2.5-omni-7b", "full", "media.time_scale=off"))
    assert off.position > off.trained and off.time_scale == 1
    assert not plan.fits and "context of qwen2.5-omni-7b, 32,768" in plan.problems[0]
    found = fit.changes(info, settings, plan)
    assert found[0].text == "--preset avoc" and all(c.plan.fits for c in found) and len(found) <= 3
    with pytest.raises(MemoryLimitError, match="try --preset avoc"):
        fit.fitted(info, settings, fit=False)
    changed, note = fit.fitted(info, settings, fit=True)
    assert changed.method == "avoc" and "--fit" in note


@pytest.mark.parametrize(
    ("preset", "sets", "text", "field", "value"),
    [
        ("avoc", (), "avoc.tokens=5120", "tokens", 5120),
        ("avoc", ("avoc.tokens=1",), "avoc.tokens=1", "tokens", 1),
        ("random-10", (), "random.retention=0.05", "retention", 0.05),
        ("seats-10", (), "seats.retention=0.05", "retention", 0.05),
        ("full", (), "preset avoc", "tokens", 10240),
        ("dycoke-35", (), "preset avoc", "tokens", 10240),  # keeps a quarter at least
        ("fastv-25", (), "preset avoc", "tokens", 10240),  # lets everything in
        ("parity/seats-10", (), "preset avoc", "tokens", 10240),
    ],
)
def test_a_smaller_budget_is_half_of_the_methods_own(preset, sets, text, field, value):
    small, told = fit.smaller(load_config(preset, sets))
    assert told == text and getattr(small.compressor, field) == value


def test_where_no_single_change_is_enough_several_are_proposed(film, room):
    info = dataclasses.replace(probe(film), audio_span=(0.0, 3600.0), duration_s=3600.0)
    settings, texts = config("qwen2.5-omni-7b", "avoc"), []  # 33 GiB of weights
    for size in (24, 16, 12, 11, 10):
        room(host=size * GIB)
        plan = planning.make_plan(info, settings)
        found = fit.changes(info, settings, plan)
        assert not plan.fits and all(c.plan.fits and c.plan == planning.make_plan(info, c.config) for c in found)
        texts.append([c.text for c in found])
    assert texts[0][0] == "--quantize int8"
    assert all(found and found[0].startswith("--dtype bfloat16 --quantize int") for found in texts[-3:]), texts


def test_memory_decides_and_fit_never_takes_another_model(film, room):
    info, settings = probe(film), config("qwen2.5-omni-7b", "avoc", device="auto")
    room(card=24 * GIB)
    plan = planning.make_plan(info, settings)
    assert plan.fits and plan.dtype == "bfloat16" and plan.device > plan.parts["weights"] > 16 * GIB
    room(card=12 * GIB)
    plan = planning.make_plan(info, settings)
    assert not plan.fits and "on cuda:0 a card, where 12.0 GiB are free" in plan.problems[0]
    found = fit.changes(info, settings, plan)
    assert [c.text for c in found] == ["--quantize int8", "--model qwen2.5-omni-3b"]
    with pytest.raises(MemoryLimitError):
        fit.fitted(info, settings, fit=False)
    assert fit.fitted(info, settings, fit=True)[0].quantize == "int8"
    room(card=5 * GIB)
    with pytest.raises(MemoryLimitError):
        fit.fitted(info, settings, fit=True)
    room(host=36 * GIB, card=None)
    plan = planning.make_plan(info, settings)
    assert plan.device is None and plan.dtype == "float32" and plan.host > 33 * GIB


@pytest.mark.parametrize("kind", ["qwen2.5", "full", "qwen3", "minicpm"])
@pytest.mark.parametrize("quantize", ["int8", *(pytest.param(q, marks=pytest.mark.slow) for q in ("none", "int4"))])
def test_weights_in_few_bits_take_what_was_planned(models, film, kind, quantize, room):
    model = loading.load_model(models[kind], "cpu", quantize=quantize)
    plan = planning.make_plan(probe(film), config(models[kind], "full", f"quantize={quantize}"))
    network = getattr(model, "thinker", None) or model.parts
    few = [b for name, b in network.named_buffers() if name.endswith((".codes", ".scales"))]
    assert bool(few) == (quantize != "none")
    assert plan.parts["weights"] == sum(t.nbytes for t in (*network.parameters(), *few))
    encoders = sum(p.nbytes for module in model.weights()["encoders"] for p in module.parameters())
    assert plan.parts["encoder_weights"] == pytest.approx(encoders, rel=0.02)


@pytest.mark.parametrize("name", [n for f in registry.facts().values() for n in f.dummies])
def test_released_sizes_know_their_encoders(name):
    facts, size = loading.find_facts(f"dummy:{name}")
    weights = Weights.of(facts, "none", 1, type(facts).parameters[size])
    assert 0.4e9 < weights.encoders < 1.5e9  # both towers and what leads from them into the LLM


def test_offloading_keeps_one_part_on_the_card_and_all_on_the_host(film, room):
    info, settings = probe(film), config("qwen2.5-omni-7b", "avoc", device="auto")
    room(card=24 * GIB)
    plan, away = (planning.make_plan(info, dataclasses.replace(settings, offload=o)) for o in (False, True))
    assert away.parts == plan.parts and away.device == plan.device - plan.parts["encoder_weights"]
    assert away.host == plan.host  # a checkpoint passes through host memory in any case
    room(card=15 * GIB)
    plan = planning.make_plan(info, settings)
    assert not plan.fits and fit.changes(info, settings, plan)[0].text == "--offload"
    changed, note = fit.fitted(info, settings, fit=True)
    assert changed.offload and "--offload" in note
    with pytest.raises(ModelError, match="no device to offload from"):
        planning.make_plan(info, dataclasses.replace(settings, device="cpu", offload=True))


def test_several_cards_are_planned_one_by_one(film, room, monkeypatch):
    info, settings = probe(film), config("qwen3-omni-30b", "avoc", "avoc.scorer=identity", device="auto")
    room(host=200 * GIB, card=48 * GIB)
    one = machine.Device(0, "a card", 48 * GIB, 48 * GIB)
    monkeypatch.setattr(machine, "devices", lambda: [one, dataclasses.replace(one, index=1)])
    plan = planning.make_plan(info, settings)
    assert not plan.fits and [on.layers for on in plan.cards] == [48]
    change = fit.changes(info, settings, plan)[0]
    assert change.text == "--device cuda:all" and change.plan.fits and change.config.device == "cuda:all"
    both = planning.make_plan(info, dataclasses.replace(settings, device="cuda:0,cuda:1"))
    assert both.cards == change.plan.cards and both.parts == plan.parts
    first, second = both.cards
    assert 0 < first.layers < second.layers and first.layers + second.layers == 48
    assert both.device == first.peak + second.peak and both.device_name == "cuda:0 a card, cuda:1 a card"
    # Each has its own context, and working memory of the layers; the rest is there once.
    again = both.parts["prefill"] + CUDA_CONTEXT_BYTES
    assert abs(both.device - plan.device - again) < 48
    assert both.host >= both.parts["weights"] + LIBRARIES_BYTES
    monkeypatch.setattr(machine, "devices", lambda: [one, dataclasses.replace(one, index=1, free_bytes=1 * GIB)])
    tight = planning.make_plan(info, dataclasses.replace(settings, device="cuda:1,cuda:0"))
    assert [on.name[:6] for on in tight.cards] == ["cuda:1", "cuda:0"]
    assert not tight.fits and any("cuda:1 a card" in problem for problem in tight.problems)
    for device, words in (
        ("cuda:0,cuda:2", "not available"),
        ("cuda:0,cpu", "'cpu' is not"),
        ("cuda:0,cuda:0", "twice"),
    ):
        with pytest.raises(ModelError, match=words):
            planning.make_plan(info, dataclasses.replace(settings, device=device))
    with pytest.raises(ModelError, match="several cards and --offload"):
        planning.make_plan(info, dataclasses.replace(settings, device="cuda:all", offload=True))


def test_bad_input_is_told(film, room, tmp_path):
    info = probe(film)
    with pytest.raises(ModelError, match="did you mean"):
        planning.make_plan(info, config("qwen25-omni-7b"))
    with pytest.raises(UnknownFamilyError, match="full size"):
        planning.make_plan(info, config("dummy:qwen2.5-omni-7b,layers=2"))
    assert fit.fitted(info, config("dummy:qwen2.5-omni-7b,layers=2"), fit=False)[1] is None
    with pytest.raises(MediaError, match="nothing from 100 s on"):
        planning.make_plan(info, config("pocket", "full", "media.start=100"))
    with pytest.raises(ModelError, match="not available"):
        planning.make_plan(info, config("pocket", device="cuda:7"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_omni", "text_config": {}}))
    with pytest.raises(ModelError, match=r"config\.json is not that of a qwen2_5_omni"):
        planning.make_plan(info, config(tmp_path))


def test_cards_are_those_that_are_visible(monkeypatch):
    text = "0, GPU-aa, One, 1000, 2000\n1, GPU-bb, Two, 3000, 4000\n"
    monkeypatch.setattr(machine.importlib.metadata, "version", lambda name: "2.11.0+cu130")
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/bin/" + name)
    monkeypatch.setattr(machine.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, text, ""))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [(d.index, d.name, d.free_bytes >> 20) for d in machine.devices()] == [(0, "One", 1000), (1, "Two", 3000)]
    for visible, names in (("1", ["Two"]), ("GPU-bb,0", ["Two", "One"]), ("", []), ("-1", []), ("0,9,1", ["One"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert [d.name for d in machine.devices()] == names
        assert [d.index for d in machine.devices()] == list(range(len(names)))
    monkeypatch.setattr(machine.importlib.metadata, "version", lambda name: "2.11.0+cpu")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert machine.devices() == []


def test_the_cache_knows_tokens_by_the_facts_too():
    from omnicli.utils import fingerprint

    assert {"base.py", "qwen_omni.py"} <= {f.name for f in fingerprint.encoders() if f.parent.name == "facts"}
