"""Which chat template is used, and what a template that is not the family's is told."""

from __future__ import annotations

import json
import re

import pytest

from omnicli.errors import ModelError
from omnicli.models import chat
from omnicli.models.weights.dummy import byte_tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer().save_pretrained(folder)
    return folder


def found(folder):
    return chat.find_template(chat.load_tokenizer("x", folder), folder, "the family's")


def test_the_tokenizers_template_comes_first_then_the_folders_then_the_familys(saved):
    settings = json.loads((saved / "tokenizer_config.json").read_text())

    def write(template):
        (saved / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))

    assert found(saved) == "the family's"
    (saved / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
    assert found(saved) == "json"
    write([{"name": "default", "template": "named"}, {"name": "tools", "template": "other"}])
    assert found(saved) == "json"
    write("settings")
    assert found(saved) == "settings"
    (saved / "chat_template.jinja").write_text("jinja")
    assert found(saved) == "jinja"


def test_a_template_without_a_place_for_media_is_refused():
    tokenizer = chat.TextTokenizer(byte_tokenizer())
    template = chat.qwen_template("<|VIDEO|>", "")
    markers = chat.Markers("<|VIDEO|>", "<|AUDIO|>", "", "")
    assert chat.build_prompt(tokenizer, template, markers, "Who?", video=True, audio=True).before.numel() > 0
    with pytest.raises(ModelError, match=re.escape("writes no <|AUDIO|> for audio input")):
        chat.build_prompt(tokenizer, template, markers, "Who?", video=False, audio=True)
