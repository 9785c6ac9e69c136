"""Families are found by file name."""

from __future__ import annotations

import pytest

from omnicli.errors import ModelError
from omnicli.models import loading, registry
from omnicli.models.base import OmniModel


def test_every_file_is_a_family_or_a_helper():
    families = registry.families()
    assert "qwen2-5-omni" in families
    for name in families:
        assert issubclass(families[name], OmniModel) and families[name].model_types


def test_names_lead_to_their_family():
    assert loading.short_names()["qwen3-omni-30b"] == "Qwen/Qwen3-Omni-30B-A3B-Instruct"
    assert loading.short_names()["qwen2.5-omni-7b"] == "Qwen/Qwen2.5-Omni-7B"
    assert loading.short_names()["pocket"] == ""


def test_the_family_named_like_the_model_type_is_imported_first(monkeypatch):
    seen = []
    monkeypatch.setattr(registry, "families", lambda: Noted(seen))
    assert next(iter(loading._families("qwen3_omni_moe_thinker"))) == "qwen3-omni-moe"
    assert seen == ["qwen3-omni-moe"]


class Noted(dict):
    """Families that note when they are looked up."""

    def __init__(self, seen):
        super().__init__(dict.fromkeys(["minicpm-o", "qwen2-5-omni", "qwen3-omni-moe"]))
        self.seen = seen

    def __getitem__(self, name):
        self.seen.append(name)
        return name


def test_one_unusable_family_does_not_hide_the_others(monkeypatch):
    def refuse():
        raise ModelError("zzz needs another version")

    real = registry.families()
    both = registry.Registry(
        "model family", "omnicli.models.base:OmniModel", {"a": refuse, "qwen2-5-omni": lambda: real["qwen2-5-omni"]}
    )
    monkeypatch.setattr(registry, "families", lambda: both)
    assert loading._family("x", {"model_type": "qwen2_5_omni"}).family == "qwen2_5_omni"
    with pytest.raises(ModelError, match="another version"):
        loading._family("x", {"model_type": "zzz"})
    with pytest.raises(ModelError, match="another version"):
        loading.find_folder("zzz-7b")
    with pytest.raises(ModelError, match="another version"):
        loading.load_model("dummy:zzz-7b", device="cpu")
    assert "qwen2.5-omni-7b" in loading.short_names()
