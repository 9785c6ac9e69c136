"""Checkpoints that cannot be loaded: one line, exit code 5, from `omni ask`; `omni models verify` finds the same."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support import hub, tiny, tiny_minicpm, tiny_qwen3

KEY = "model.layers.2.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tiny.build(tmp_path_factory.mktemp("bad") / "whole", shards=True)


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def shards(folder):
    return sorted(folder.glob("*.safetensors"))


def edit(folder, change):
    """Rewrite the first shard that holds `KEY` or any other weight for which ``change`` has something to do."""
    file = next(f for f in shards(folder) if KEY in load_file(f))
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def configure(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def half(folder):
    shards(folder)[1].write_bytes(shards(folder)[1].read_bytes()[:-100])


def pickles(folder):
    for file in [*shards(folder), folder / "model.safetensors.index.json"]:
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")


def overlap(folder):
    """Damage a header so that the file's length still fits."""
    file = shards(folder)[1]
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    first = next(k for k in header if k != "__metadata__")
    header[first]["shape"] = [1]
    text = json.dumps(header, separators=(",", ":")).encode().ljust(length)[:length]
    file.write_bytes(data[:8] + text + data[8 + length :])


BAD = {
    "shard missing": (lambda f: shards(f)[1].unlink(), "weight files are missing, model-00002-of"),
    "shard cut off": (half, "is damaged or only partly downloaded"),
    "shard empty": (lambda f: shards(f)[0].write_bytes(b""), "is damaged or only partly downloaded"),
    "header no JSON": (lambda f: shards(f)[0].write_bytes(b"\x10" + bytes(7) + b"x" * 16), "is damaged or only partly"),
    "weight missing": (lambda f: edit(f, lambda w: w.pop(KEY)), "1 weights are "),
    "weight of another shape": (
        lambda f: edit(f, lambda w: w.update({KEY: torch.zeros(3, 3)})),
        "1 weights have another shape than",
    ),
    "only .bin": (pickles, "holds no safetensors"),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "config no JSON": (lambda f: (f / "config.json").write_text('{"model_type":'), "config.json cannot be read"),
    "config no object": (lambda f: (f / "config.json").write_text("[]"), "config.json is damaged"),
    "config no text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "config.json cannot be read"),
    "config half": (lambda f: (f / "config.json").write_text('{"model_type": "qwen2_5_omni"}'), "qwen2_5_omni"),
    "config of nonsense": (lambda f: configure(f, text_config=5), "qwen2_5_omni"),
    "tokenizer": (lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer.json cannot be read"),
    "tokenizer of nonsense": (lambda f: (f / "tokenizer.json").write_text('{"a": 1}'), "no usable tokenizer"),
    "pictures": (lambda f: (f / "preprocessor_config.json").write_text("{"), "preprocessor_config.json"),
    "generation": (lambda f: (f / "generation_config.json").write_text("["), "generation_config.json cannot be read"),
    "index": (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": 1}'), "index.json is damaged"),
    "text model": (lambda f: (f / "config.json").write_text('{"model_type": "llama"}'), "'llama' is not supported"),
    "picture model": (lambda f: configure(f, model_type="qwen2_5_vl"), "'qwen2_5_vl' is not supported; supported:"),
    "later type": (
        lambda f: configure(f, model_type="qwen9_omni", transformers_version="9.1.0"),
        "made with transformers 9.1.0, newer than",
    ),
    "later settings": (
        lambda f: (f / "config.json").write_text('{"model_type": "qwen2_5_omni", "transformers_version": "9.1.0"}'),
        "made with transformers 9.1.0, newer than",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_checkpoints(omni, film, folder, name):
    damage, words = BAD[name]
    damage(folder)
    for argv in (("ask", film, "why?", "--model", folder), ("models", "verify", folder)):
        result = omni(*argv)
        if argv[0] == "models" and name == "tokenizer of nonsense":
            assert result.code == 0  # verify loads no tokenizer
            continue
        assert result.code == 5, result.err
        assert words in result.error_line()


def test_a_folder_that_is_a_file(omni, film, tmp_path):
    (tmp_path / "model").write_text("x")
    result = omni("ask", film, "why?", "--model", tmp_path / "model")
    assert result.code == 5 and "is not a folder" in result.error_line()


def test_a_known_architecture_of_a_later_transformers_is_loaded(omni, film, folder):
    configure(folder, transformers_version="9.1.0")
    assert omni("models", "verify", folder).code == 0
    result = omni("ask", film, "why?", "--model", folder, "--max-frames", "2", "--max-new-tokens", "1")
    assert result.code == 0, result.err


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user and back")
@pytest.mark.parametrize("locked", ["folder", "config.json", "model.safetensors"])
def test_no_permission(omni, film_folder, locked):
    with tempfile.TemporaryDirectory() as top:
        os.chmod(top, 0o755)
        folder = tiny.build(Path(top) / "inner" / "model")
        omni("models", "verify", folder)  # imports all it needs while that is allowed
        os.chmod(folder.parent if locked == "folder" else folder / locked, 0)
        os.seteuid(65534)
        try:
            result = (
                omni("models", "info", folder) if locked != "model.safetensors" else omni("models", "verify", folder)
            )
        finally:
            os.seteuid(0)
        assert result.code == 5
        assert "Permission denied" in result.error_line()


# ---- what only verify finds ----


def test_verify_names_every_problem(omni, folder):
    half(folder)
    shards(folder)[0].write_bytes(b"")
    result = omni("models", "verify", folder)
    assert result.code == 5 and len(result.err.splitlines()) == 2
    value = json.loads(omni("models", "verify", folder, "--json").out)
    assert len(value["problems"]) == 2 and value["accounted"] is None


@pytest.mark.parametrize(
    "kind",
    [
        "thinker",
        "shards",
        "minicpm",
        *(pytest.param(k, marks=pytest.mark.slow) for k in ("full", "qwen3", "qwen3 full")),
    ],
)
def test_every_weight_is_accounted_for(omni, tmp_path, kind):
    folder = tmp_path / "model"
    if kind.startswith("qwen3"):
        tiny_qwen3.build(folder, full=kind.endswith("full"))
    elif kind == "minicpm":
        tiny_minicpm.build(folder)
    else:
        tiny.build(folder, full=kind == "full", shards=kind == "shards")
    good = omni("models", "verify", folder)
    assert good.code == 0, good.err
    assert "all accounted for" in good.out and "0 as recorded" in good.out
    if kind == "shards":
        return
    whole = load_file(folder / "model.safetensors")
    loaded = [k for k in whole if not k.startswith(("talker", "token2wav", "code2wav", "tts"))]
    for change, words in (
        (lambda w: w.pop(loaded[3]), "1 weights are missing"),
        (lambda w: w.update({loaded[0].split(".")[0] + ".bogus": torch.zeros(2)}), "1 weights are not this arch"),
        (lambda w: w.update({loaded[3]: torch.zeros(2, 2, 2)}), "1 weights have another shape"),
    ):
        weights = dict(whole)
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        result = omni("models", "verify", folder)
        assert result.code == 5 and words in result.error_line()


def test_an_expert_that_is_missing(omni, tmp_path):
    folder = tiny_qwen3.build(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    gone = [k for k in weights if "layers.2.mlp.experts.3.up_proj" in k]
    assert len(gone) == 1
    save_file({k: v for k, v in weights.items() if k not in gone}, folder / "model.safetensors", {"format": "pt"})
    result = omni("models", "verify", folder)
    assert result.code == 5 and "layers.2.mlp.experts" in result.error_line()


def test_headers_and_the_index_are_checked(omni, folder):
    overlap(folder)
    result = omni("models", "verify", folder)
    assert result.code == 5 and "its header is damaged" in result.error_line()


def test_an_index_that_tells_other_files(omni, folder):
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    first, second = (f.name for f in shards(folder)[:2])
    key = next(k for k, v in index["weight_map"].items() if v == first)
    index["weight_map"][key] = second
    file.write_text(json.dumps(index))
    result = omni("models", "verify", folder)
    assert result.code == 5 and f"1 weights are not where it says, the first is {key}" in result.error_line()


def test_records_beside_a_folder_are_compared(omni, folder):
    """What ``hf download --local-dir`` leaves there."""
    notes = folder / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    config = folder / "config.json"
    for file, digest in (
        (config, hub.git(config.read_bytes())),
        (shards(folder)[0], hub.sha(shards(folder)[0].read_bytes())),
    ):
        (notes / f"{file.name}.metadata").write_text(f"{'c' * 40}\n{digest}\n1.0\n")
    assert json.loads(omni("models", "verify", folder, "--json").out)["hashed"] == 2
    data = bytearray(shards(folder)[0].read_bytes())
    data[-1] ^= 1
    shards(folder)[0].write_bytes(data)
    result = omni("models", "verify", folder)
    assert result.code == 5 and "its content is not what the hub has" in result.error_line()


def test_the_list_tells_what_is_not_whole(omni, whole, tmp_path, monkeypatch):
    commit = "c" * 40
    storage = tmp_path / "models--Qwen--Qwen2.5-Omni-3B"
    snapshot = shutil.copytree(whole, storage / "snapshots" / commit)
    (storage / "refs").mkdir()
    (storage / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def state():
        listed = {f["name"]: f for f in json.loads(omni("models", "list", "--json").out)}
        return listed["qwen2.5-omni-3b"]["state"]

    assert state() == "here"
    shards(snapshot)[0].unlink()
    assert state() == "incomplete"
    assert "omni models pull qwen2.5-omni-3b" in omni("models", "verify", "qwen2.5-omni-3b").error_line()
    shutil.rmtree(snapshot)
    assert state() == "missing"
