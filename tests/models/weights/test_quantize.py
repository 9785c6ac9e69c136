"""The LLM's weights in 8 and 4 bits, and weights that wait in host memory: bits, bounds, and what stays as it was."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import subprocess
import sys
from functools import partial

import pytest
import torch

from omnicli import pipeline
from omnicli.config.config import load_config
from omnicli.encode.cache import Cache
from omnicli.encode.film import load_film
from omnicli.errors import ModelError
from omnicli.models import loading
from omnicli.models.loading import load_model
from omnicli.models.weights import offload, quantize
from tests.support import films, tiny, tiny_minicpm, tiny_qwen3

FAMILIES = {"qwen2.5": tiny, "qwen3": tiny_qwen3, "minicpm": tiny_minicpm}
KINDS = ("int8", "int4")
NF4 = [
    -1.0,
    -0.6961928,
    -0.5250731,
    -0.3949175,
    -0.2844414,
    -0.1847734,
    -0.0910500,
    0.0,
    0.0795803,
    0.1609302,
    0.2461123,
    0.3379152,
    0.4407098,
    0.5626170,
    0.7229568,
    1.0,
]
"""QLoRA (arXiv:2305.14314), appendix E."""
DUMMIES = [
    "dummy:qwen2.5-omni-7b,layers=2,scale=0.02",
    "dummy:qwen3-omni-30b,layers=2,scale=0.02",
    "dummy:minicpm-o-4.5,layers=2,scale=0.02",
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: family.build(root / name) for name, family in FAMILIES.items()}


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return films.write(tmp_path_factory.mktemp("film") / "film.mp4", 4.2)


def network(model):
    return getattr(model, "thinker", None) or model.parts


def stored(model):
    """Return the bytes of everything that the modules hold."""
    return sum(t.nbytes for t in (*network(model).parameters(), *network(model).buffers()))


def logits(model, n=200):
    ids = torch.randint(0, 200, (n,), generator=torch.Generator().manual_seed(0))
    kind = getattr(model, "position_dtype", torch.int64)
    with torch.inference_mode():
        hidden, rope = model.embed(ids), model.rope(torch.arange(n, dtype=kind).expand(model.position_axes, -1))
        for layer in range(model.depth):
            hidden, _ = model.layer(layer, hidden, rope, None)
        return model.logits(hidden)


# ---- the arithmetic ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_is_rounding_to_127_steps_of_the_rows_largest_value(dtype):
    weight = torch.randn(24, 40, generator=torch.Generator().manual_seed(1)).to(dtype)
    weight[3] = 0
    packed = quantize.Int8(weight)
    for row, codes, scale in zip(weight.double(), packed.codes, packed.scales, strict=True):
        step = float(row.abs().max()) / 127 or 1.0
        assert float(scale) == pytest.approx(step, rel=1e-6) or not row.any()
        assert [round(float(v)) for v in row / step] == pytest.approx(
            codes.tolist(), abs=0 if dtype == torch.float32 else 1
        )
    experts = quantize.Int8(torch.stack([weight, -weight])).restored(dtype, torch.tensor([1, 0, 1]))
    assert experts.dtype == dtype and torch.equal(experts[0], experts[2]) and torch.equal(experts[0], -experts[1])
    assert (experts[1] - weight).abs().max() < 0.6 * packed.scales.max() + (0.02 if dtype == torch.bfloat16 else 0)


def test_int4_is_the_nearest_of_sixteen_values_times_the_blocks_largest():
    weight = torch.randn(3, 8, 32, generator=torch.Generator().manual_seed(2))
    packed = quantize.Nf4(weight)
    restored = packed.restored(torch.float32, torch.arange(3))
    for block, got in zip(weight.view(-1, quantize.BLOCK), restored.view(-1, quantize.BLOCK), strict=True):
        top = float(block.abs().max())
        nearest = [min(NF4, key=lambda code: abs(code * top - float(value))) * top for value in block]
        assert got.tolist() == pytest.approx(nearest, abs=1e-5 * top)
    assert packed.codes.nbytes == weight.numel() // 2 and packed.scales.numel() == weight.numel() // quantize.BLOCK
    assert torch.equal(packed.restored(torch.float32, torch.tensor([2, 0])), restored[[2, 0]])


@pytest.mark.parametrize("kind", [quantize.Int8, quantize.Nf4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", [64, 96])
def test_a_quantised_linear_layer_is_one_of_the_restored_weight(kind, dtype, bias, width):
    torch.manual_seed(3)
    layer = torch.nn.Linear(width, 48, bias=bias, dtype=dtype).requires_grad_(False)
    ours = quantize.Linear(kind(layer.weight), layer)
    full = kind(layer.weight[None]).restored(torch.float32, torch.tensor([0]))[0].double()
    for shape in ((1,), (5,), (1, 1), (2, 3)):
        x = torch.randn(*shape, width).to(dtype)
        expected = torch.nn.functional.linear(x.double(), full, layer.bias.double() if bias else None)
        got = ours(x)
        assert got.dtype == dtype and got.shape == expected.shape
        assert (got.double() - expected).abs().max() < (2e-5 if dtype == torch.float32 else 0.06)


@pytest.mark.parametrize("kind", [quantize.Int8, quantize.Nf4])
def test_large_activations_stay_in_the_range_of_float16(kind):
    layer = torch.nn.Linear(2048, 8, bias=False, dtype=torch.float16).requires_grad_(False)
    x = torch.full((2, 2048), 60.0, dtype=torch.float16)
    layer.weight.fill_(0.01)
    assert quantize.Linear(kind(layer.weight), layer)(x).float().sub(1228.8).abs().max() < 20
    assert quantize.Linear(kind(layer.weight), layer)(x[:1]).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_quantised_experts_are_the_stock_block_on_restored_weights(folders, kind):
    model, plain = load_model(folders["qwen3"], "cpu", quantize=kind), load_model(folders["qwen3"], "cpu")
    ours, stock = model._text.layers[1].mlp, plain._text.layers[1].mlp
    every = torch.arange(stock.experts.num_experts)
    for name, packed in ours.experts.packed.items():
        getattr(stock.experts, name).copy_(packed.restored(torch.float32, every))
    for rows in (1, 2, 40):
        x = torch.randn(1, rows, plain.hidden_size, generator=torch.Generator().manual_seed(rows))
        with torch.inference_mode():
            assert torch.allclose(ours(x), stock(x), atol=1e-5)
    assert not hasattr(ours.experts.stock, "down_proj")  # nothing restored is kept


# ---- loading ----


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_only_the_weights_of_the_llms_layers_change(folders, name, kind):
    plain, model = load_model(folders[name], "cpu"), load_model(folders[name], "cpu", quantize=kind)
    before, after = network(plain).state_dict(), network(model).state_dict()
    assert model.quantized == kind and plain.quantized == "none"
    gone = before.keys() - after.keys()
    assert all(".layers." in key and ("_proj" in key or "_proj" in key.split(".")[-1]) for key in gone)
    assert not any(
        key.startswith(("model.visual", "model.audio", "vpm", "apm", "resampler", "lm_head")) for key in gone
    )
    assert all(torch.equal(before[key], after[key]) for key in before.keys() & after.keys())
    assert not any(p.is_meta for p in (*network(model).parameters(), *network(model).buffers()))
    values = sum(before[key].numel() for key in gone)
    d = plain.facts.llm
    heads = d.depth * d.hidden_size * 2 * (d.query_width + d.kv_width)
    experts = d.num_experts // plain.facts.experts_per_token if d.num_experts else 1
    assert values == heads + 3 * d.depth * d.hidden_size * d.intermediate_size * experts
    shrunk = stored(plain) - stored(model)
    per_value = 1.0 if kind == "int8" else 0.5 + 4 / quantize.BLOCK
    assert shrunk == pytest.approx(values * (4 - per_value), rel=0.05)


@pytest.mark.parametrize("layout", [{"full": True}, {"shards": True}])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_all_layouts_quantise_to_the_same_bits(folders, tmp_path, layout, kind):
    other = load_model(tiny.build(tmp_path / "other", **layout), "cpu", quantize=kind)
    expected = network(load_model(folders["qwen2.5"], "cpu", quantize=kind)).state_dict()
    got = network(other).state_dict()
    assert expected.keys() == got.keys() and all(torch.equal(expected[k], got[k]) for k in expected)


@pytest.mark.parametrize("name", ["pocket", *DUMMIES])
def test_logits_stay_near(name):
    expected = logits(load_model(name, "cpu"))
    off = {}
    for kind in KINDS:
        got = logits(load_model(name, "cpu", quantize=kind))
        off[kind] = float((got - expected).norm() / expected.norm())
    assert off["int8"] < 0.02 < off["int4"] < 0.25


def test_weights_are_quantised_one_by_one(folders, monkeypatch):
    """The full-precision LLM is never held: of the weights that were quantised, at most one is alive."""
    import weakref

    seen, alive = [], []
    take = quantize.Quantizer.take

    def watched(self, model, name, weight):
        alive.append(sum(ref() is not None for ref in seen))
        seen.append(weakref.ref(weight))
        take(self, model, name, weight)

    monkeypatch.setattr(quantize.Quantizer, "take", watched)
    for name in (*folders.values(), *DUMMIES):
        load_model(name, "cpu", quantize="int8")
    assert len(seen) > 50 and max(alive) <= 1


def test_what_cannot_be_quantised_is_told_in_one_line(folders, tmp_path, monkeypatch):
    folder = shutil.copytree(folders["qwen2.5"], tmp_path / "done")
    config = json.loads((folder / "config.json").read_text())
    few = {"quantization_config": {"quant_method": "awq"}}
    for changed in (config | few, config | {"text_config": config["text_config"] | few}):
        (folder / "config.json").write_text(json.dumps(changed))
        with pytest.raises(ModelError, match="quantised already"):
            load_model(folder, "cpu", quantize="int8")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'omnicli\[quantize\]'"):
        load_model("pocket", "cpu", quantize="int4")
    load_model("pocket", "cpu", quantize="int8")  # needs no library


def test_what_goes_wrong_while_transformers_loads_is_told_as_it_is(folders, monkeypatch):
    def full(self, model, name, weight):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(quantize.Quantizer, "take", full)
    for name in ("qwen2.5", "minicpm"):
        with pytest.raises(torch.OutOfMemoryError):
            load_model(folders[name], "cpu", quantize="int8")


@pytest.mark.slow  # another process that imports torch
def test_the_library_is_imported_without_fetching_kernels():
    code = """
import sys, types
from omnicli.models.weights import quantize
kernels = types.ModuleType("kernels")
def get_kernel(*a, **k):
    print("fetched")
kernels.get_kernel = get_kernel
sys.modules["kernels"] = kernels
import torch
quantize.Nf4(torch.ones(8, 64)).linear(torch.ones(2, 64))
assert sys.modules["kernels"] is kernels and "bitsandbytes" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


# ---- what a film is encoded to ----


def test_a_film_is_encoded_to_the_same_bits_and_found_in_the_cache(folders, film, tmp_path):
    cache, config = Cache(tmp_path / "cache"), load_config("avoc")
    first = load_film(film, config.media, config.compressor.needs, load_model(folders["qwen2.5"], "cpu"), cache=cache)
    for kind in KINDS:
        model = load_model(folders["qwen2.5"], "cpu", quantize=kind)
        anew = load_film(film, config.media, config.compressor.needs, model)
        kept = load_film(film, config.media, config.compressor.needs, model, cache=cache)
        assert kept.cached and not anew.cached
        for other in (anew, kept):
            assert torch.equal(first.media.clip.tokens.features, other.media.clip.tokens.features)
    assert len(cache.items()) == 1


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_questions_are_answered_the_same_every_time(folders, film, name, kind):
    model = load_model(folders[name], "cpu", quantize=kind)
    config = load_config("avoc", ["generate.max_new_tokens=6"])
    both = pipeline.ask(film, ["Who?", "Who?"], config, model)
    assert both[0].answer == both[1].answer and both[0].model["quantize"] == kind


# ---- weights that wait ----


class Device:
    """Stands for a device: weights that are not on it are NaN, so that whoever uses them gives NaN."""

    def __init__(self, model, monkeypatch):
        self.log = []
        model.offload(torch.device("cpu"))
        for part, there in model._offloaded.items():
            good = [host.clone() for _, host in there._here]
            for _, host in there._here:
                host.fill_(math.nan) if host.is_floating_point() else host.zero_()
            monkeypatch.setattr(there, "to_device", partial(self.to_device, part, there, good))
            monkeypatch.setattr(there, "to_host", partial(self.to_host, part, there, there.to_host))

    def to_device(self, part, there, good, device):
        if not there._away:
            self.log.append(f"{part} in")
            for (tensor, _), values in zip(there._here, good, strict=True):
                tensor.data = values.clone()
            there._away = True

    def to_host(self, part, there, back):
        if there._away:
            self.log.append(f"{part} out")
        back()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(pytest.param(name, "none", marks=pytest.mark.slow) for name in FAMILIES),
        ("qwen3", "int8"),
        pytest.param("minicpm", "int4", marks=pytest.mark.slow),
    ],
)
def test_what_works_is_on_the_device_and_the_rest_is_not(folders, film, name, kind, monkeypatch):
    config = load_config("avoc", ["generate.max_new_tokens=6"])
    expected = pipeline.ask(film, ["Who?", "When?"], config, load_model(folders[name], "cpu", quantize=kind))
    model = load_model(folders[name], "cpu", quantize=kind)
    device = Device(model, monkeypatch)
    got = pipeline.ask(film, ["Who?", "When?"], config, model)
    assert [a.answer for a in got] == [a.answer for a in expected]
    assert got[0].tokens["timeline"] == expected[0].tokens["timeline"]
    assert device.log == ["encoders in", "encoders out", "llm in"]
    pipeline.ask(film, ["Who?"], config, model)
    assert device.log[3:] == ["llm out", "encoders in", "encoders out", "llm in"]


def test_offloaded_weights_are_copied_and_forgotten(monkeypatch):
    layer = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).requires_grad_(False)
    host = [t.data_ptr() for t in (*layer.parameters(), *layer.buffers())]
    own = offload.OffloadedWeights([layer])
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: self.clone())  # as to another device
    with torch.inference_mode():
        own.to_device(torch.device("cpu"))
        away = [t.data_ptr() for t in (*layer.parameters(), *layer.buffers())]
        own.to_device(torch.device("cpu"))
        assert away == [t.data_ptr() for t in (*layer.parameters(), *layer.buffers())] and not set(away) & set(host)
        assert not layer[0].weight.is_inference()
    own.to_host()
    assert host == [t.data_ptr() for t in (*layer.parameters(), *layer.buffers())]


def test_every_weight_is_offloaded_once(folders):
    for name, folder in folders.items():
        model = load_model(folder, "cpu")
        held = [id(p) for part in model.weights().values() for module in part for p in module.parameters()]
        assert sorted(held) == sorted(id(p) for p in network(model).parameters()), name


def test_there_is_nothing_to_offload_from_a_cpu():
    with pytest.raises(ModelError, match="no device to offload from"):
        loading.load_model("pocket", "cpu", offload=True)


def place(model, part, device):
    """Put stand-ins without content, on a device that need not exist, where a part's weights are."""
    for module in (sub for top in model.weights()[part] for sub in top.modules()):
        for name, weight in module._parameters.items():
            if weight is not None:
                empty = torch.empty(weight.shape, dtype=weight.dtype, device=device)
                module._parameters[name] = torch.nn.Parameter(empty, requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)


@pytest.mark.parametrize(
    ("name", "kind"), [*(pytest.param(name, "none", marks=pytest.mark.slow) for name in FAMILIES), ("qwen2.5", "int4")]
)
def test_a_part_needs_nothing_of_the_part_that_waits(folders, name, kind):
    """Shapes and devices are worked out, on a card that is not there; two devices in one operation are an error."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from omnicli.llm.kv import KVCache

    card = torch.device("cuda:0")
    model = load_model(folders[name], "cpu", quantize=kind)
    if name == "qwen3":
        model._text.layers[0].mlp.experts.config._experts_implementation = "batched_mm"  # grouped_mm asks the card
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        model.device = card
        place(model, "encoders", card)
        place(model, "llm", "cpu")
        if name == "minicpm":
            assert model.encode_video(torch.zeros(2, 448, 448, 3, dtype=torch.uint8)).features.device == card
        else:
            mel = torch.zeros(128, 2 * model._mel_window)
            assert all(piece.features.device == card for piece in model.encode_mel(mel))
        place(model, "encoders", "cpu")
        place(model, "llm", card)
        cache = KVCache(model.depth, model.kv_heads, model.head_dim, dtype=model.dtype, device=card, capacity=20)
        for length in (9, 1):
            hidden = model.embed(torch.zeros(length, dtype=torch.int64, device=card))
            rope = model.rope(torch.zeros(model.position_axes, length, device=card))
            for layer in range(model.depth):
                hidden, _ = model.layer(layer, hidden, rope, cache, last_attention=True)
            assert model.logits(hidden).device == card
