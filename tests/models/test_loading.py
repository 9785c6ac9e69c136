"""Names, folders and what is wrong with them; dummy weights."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from omnicli.errors import ModelError
from omnicli.models import loading
from omnicli.models.loading import load_model, resolve_device, resolve_dtype
from omnicli.models.weights.checkpoint import check_weights
from tests.support import tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        "thinker": tiny.build(root / "thinker"),
        "full": tiny.build(root / "full", full=True),
        "shards": tiny.build(root / "shards", shards=True),
    }


@pytest.fixture
def broken(folders, tmp_path):
    def copy(kind="thinker"):
        return shutil.copytree(folders[kind], tmp_path / kind)

    return copy


def message(name, **kwargs):
    with pytest.raises(ModelError) as caught:
        load_model(name, device="cpu", **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("kind", ["thinker", "full", "shards"])
def test_all_layouts_load_the_same_weights(folders, kind, capfd):
    omni = load_model(folders[kind], device="cpu")
    expected = tiny.thinker()[0].state_dict()
    got = omni.thinker.state_dict()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[k], got[k]) for k in expected)
    assert omni.dtype == torch.float32 and omni.device.type == "cpu"
    assert omni.tokenizer.hf.convert_tokens_to_ids("<|im_end|>") in omni.stop_ids
    assert capfd.readouterr() == ("", "")  # no bars, no warnings about the unused talker
    assert len(list(folders["shards"].glob("*.safetensors"))) > 2


def test_missing_things_are_named(broken, tmp_path):
    folder = broken()
    assert "does not exist" in message(str(tmp_path / "nowhere"))
    (folder / "model.safetensors").unlink()
    assert "no model.safetensors" in message(folder)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert "no safetensors" in message(folder)
    (folder / "config.json").write_text("{")
    assert "cannot be read" in message(folder)
    (folder / "config.json").unlink()
    assert "no config.json" in message(folder)


def test_another_architecture_is_refused(broken):
    folder = broken()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    text = message(folder)
    assert "'llama' is not supported" in text and "qwen2_5_omni" in text


def test_a_family_that_was_declined_says_why(broken):
    folder = broken()
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma4"}))
    text = message(folder)
    assert "'gemma4' is not supported" in text and "docs/reference/models.md" in text and "qwen2_5_omni" in text


def test_half_downloaded_files_are_refused(broken):
    folder = broken("shards")
    shards = sorted(folder.glob("*.safetensors"))
    whole = shards[1].read_bytes()
    for cut in (0, 5, 40, len(whole) - 1):
        shards[1].write_bytes(whole[:cut])
        assert "partly downloaded" in message(folder)
    shards[1].write_bytes(b"\x10" + bytes(7) + b"not json at all.")
    assert "partly downloaded" in message(folder)
    shards[1].unlink()
    assert "weight files are missing" in message(folder)
    shards[1].write_bytes(whole)
    check_weights("x", folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    assert "damaged" in message(folder)


def test_missing_tensors_are_refused(broken):
    from safetensors.torch import load_file, save_file

    folder = broken()
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "1 weights are missing" in message(folder)


def test_unknown_names_and_absent_weights(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert "did you mean qwen2.5-omni-7b" in message("qwen25-omni-7b")
    assert "omni models pull Qwen2.5-Omni-7B" in message("Qwen2.5-Omni-7B")
    assert "omni models pull some/model" in message("some/model")
    monkeypatch.setattr(loading, "POCKET", tmp_path)
    assert "omni train pocket" in message("pocket")


def test_a_snapshot_in_the_cache_is_found(folders, monkeypatch, tmp_path):
    snapshot = tmp_path / "models--some--model" / "snapshots" / ("a" * 40)
    shutil.copytree(folders["thinker"], snapshot)
    (tmp_path / "models--some--model" / "refs").mkdir()
    (tmp_path / "models--some--model" / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", _with_cache(__import__("huggingface_hub").snapshot_download, tmp_path)
    )
    omni = load_model("some/model", device="cpu")
    assert omni.revision == "a" * 40 and omni.name == "some/model"


def _with_cache(function, folder):
    return lambda name, **kwargs: function(name, cache_dir=folder, **kwargs)


def test_devices_and_dtypes():
    assert resolve_dtype("auto", torch.device("cpu")) == torch.float32
    assert resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert resolve_dtype("bf16", torch.device("cpu")) == torch.bfloat16
    with pytest.raises(ModelError, match="unknown dtype"):
        resolve_dtype("float8", torch.device("cpu"))
    with pytest.raises(ModelError, match="unknown device"):
        resolve_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="not available"):
            resolve_device("cuda")


def test_the_checkpoints_settings_are_read(broken):
    folder = broken()
    settings = {"size": {"shortest_edge": 14_000, "longest_edge": 23_000}, "image_mean": [0.5, 0.5, 0.5]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text("{{ 'T<|VIDEO|>' }}{{ messages[-1]['content'][-1]['text'] }}{{ '!' }}")
    omni = load_model(folder, device="cpu")
    assert omni.frame_size(1280, 720) == (112, 196)
    assert omni.facts.preprocessing.mean == (0.5, 0.5, 0.5)
    prompt = omni.prompt("why", video=True, audio=False)
    assert omni.tokenizer.decode(prompt.before) == "T" and omni.tokenizer.decode(prompt.after) == "why!"
    assert prompt.question == slice(0, 3)
    with pytest.raises(ModelError, match="no <|AUDIO|> for audio".replace("|", r"\|")):
        omni.prompt("why", video=False, audio=True)


def test_the_released_picture_limits_are_not_taken_for_frames(broken):
    folder = broken()
    (folder / "preprocessor_config.json").write_text(json.dumps({"min_pixels": 3136, "max_pixels": 12845056}))
    assert load_model(folder, device="cpu").frame_size(1280, 720) == (560, 1008)


# ---- dummy weights ----


def test_the_7b_has_its_published_size():
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration

    from omnicli.models.families.qwen2_5_omni import Qwen25Omni
    from omnicli.models.weights.dummy import Shrink, random_model

    config, _ = Qwen25Omni.dummy_config("7b", Shrink())
    model = random_model(Qwen2_5OmniThinkerForConditionalGeneration, config, "meta", torch.bfloat16)
    assert round(sum(p.numel() for p in model.parameters()) / 1e9, 2) == 8.93


def test_shrunken_dummies_run_end_to_end():
    from omnicli.llm.decode import DecodeOptions, generate
    from omnicli.llm.kv import KVCache
    from omnicli.llm.prefill import prefill

    omni = load_model("dummy:qwen2.5-omni-7b,layers=2,scale=0.002", device="cpu", dtype="bf16")
    assert (omni.depth, omni.facts.llm.heads, omni.kv_heads, omni.head_dim) == (2, 4, 4, 128)
    assert omni.dtype == torch.bfloat16
    clip = tiny.encode(omni, tiny.frames(3), [0.0, 1.0, 2.0], tiny.sound(2.0))
    assert clip.tokens.features.isfinite().all() and clip.tokens.features.std() > 0.05
    given = omni.sequence(omni.prompt("q", video=True, audio=True), clip)
    cache = KVCache(2, 4, 128, dtype=omni.dtype, device="cpu", capacity=200)
    result = prefill(omni, given.embeds, given.position_ids, cache, chunk=50)
    assert result.logits.isfinite().all()
    generate(omni, cache, result.logits, given.next_position, DecodeOptions(max_new_tokens=4)).finish()
    again = load_model("dummy:qwen2.5-omni-7b,layers=2,scale=0.002", device="cpu", dtype="bf16")
    assert torch.equal(again.thinker.lm_head.weight, omni.thinker.lm_head.weight)


def test_wrong_dummies():
    assert "did you mean qwen2.5-omni-7b" in message("dummy:qwen2.5-omni-70b")
    assert "layers=N" in message("dummy:qwen2.5-omni-7b,layer=2")
    assert "scale" in message("dummy:qwen2.5-omni-7b,scale=3")


@pytest.mark.parametrize("family", ["qwen2_5_omni", "qwen3_omni_moe"])
def test_another_transformers_version_is_refused_by_name(monkeypatch, family):
    import importlib

    import transformers

    module = importlib.import_module(f"omnicli.models.families.{family}")
    monkeypatch.setattr(transformers, "__version__", "5.24.0")
    with pytest.raises(ModelError, match=rf"{family}\.py is written for transformers 5\.23\.x, 5\.24\.0 is installed"):
        importlib.reload(module)


def test_a_checkpoint_without_a_tokenizer_is_refused(broken):
    folder = broken()
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert "no usable tokenizer" in message(folder)
