"""Families are found by file name."""

from __future__ import annotations

import pytest

from omnicli import registry
from omnicli.errors import ModelError
from omnicli.models import loading
from omnicli.models.base import OmniModel


def test_every_file_is_a_family_or_a_helper():
    families = registry.models()
    assert "qwen2-5-omni" in families
    for name in families:
        assert issubclass(families[name], OmniModel) and families[name].model_types


def test_one_unusable_family_does_not_hide_the_others(monkeypatch):
    def refuse():
        raise ModelError("zzz needs another version")

    real = registry.models()
    both = registry.Plugins("model family", {"a": refuse, "qwen2-5-omni": lambda: real["qwen2-5-omni"]})
    monkeypatch.setattr(registry, "models", lambda: both)
    assert loading._family("x", {"model_type": "qwen2_5_omni"}).family == "qwen2_5_omni"
    with pytest.raises(ModelError, match="another version"):
        loading._family("x", {"model_type": "zzz"})
