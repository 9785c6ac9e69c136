"""Prompts from a chat template, split where the media go, and the tokenizer as the rest of the program sees it.

Works on any Hugging Face tokenizer whose template puts one placeholder token per medium. Knows no positions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from omnicli.errors import ModelError
from omnicli.models.parts import Prompt


def qwen_template(video: str, audio: str, system: str | None = None) -> str:
    """Return the chat format of the Qwen-Omni families, for checkpoints that come without a template.

    Parameters
    ----------
    video, audio : str
        The placeholder of each medium between its marks.
    system : str
        What the system says where the messages do not begin with it; None: nothing.
    """
    opening = ""
    if system is not None:
        opening = (
            "{% if loop.first and message['role'] != 'system' %}"
            f"<|im_start|>system\n{system}<|im_end|>\n"
            "{% endif %}"
        )
    return (
        "{% for message in messages %}" + opening + "<|im_start|>{{ message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}"
        "{% if part['type'] == 'video' %}" + video + "{% elif part['type'] == 'audio' %}" + audio + ""
        "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endif %}<|im_end|>\n"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


_STOP_TOKENS = ("<|im_end|>", "<|endoftext|>")


class TextTokenizer:
    """A Hugging Face tokenizer reduced to `omnicli.models.parts.Tokenizer`; the whole one is ``hf``."""

    def __init__(self, hf: Any) -> None:
        self.hf = hf

    def encode(self, text: str) -> list[int]:
        """Return ids of ``text``; special tokens in it become their ids, none are added."""
        return list(self.hf(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids`` without special tokens, byte for byte (no clean-up of spaces)."""
        return self.hf.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and notes off stderr; errors still raise."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def load_tokenizer(name: str, folder: Path) -> Any:
    """Load a checkpoint's Hugging Face tokenizer; `ModelError` if there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises Exception itself
        raise ModelError(f"{name}: no usable tokenizer in {folder} ({error.__class__.__name__})") from error


def stop_ids(*sources: Any) -> frozenset[int]:
    """Return every ``eos_token_id`` (number or list) of configurations and tokenizers, and Qwen's ends of turn."""
    ids: set[int] = set()
    for source in sources:
        value = getattr(source, "eos_token_id", None)
        ids.update([value] if isinstance(value, int) else value or ())
        if hasattr(source, "get_vocab"):
            known = source.get_vocab()
            ids.update(known[t] for t in _STOP_TOKENS if t in known)
    return frozenset(ids)


@dataclass(frozen=True)
class Markers:
    """Texts of a family's special tokens: the placeholders in the template and the marks around sound."""

    video: str
    audio: str
    audio_begin: str
    audio_end: str


def find_template(hf: Any, folder: Path | None, default: str) -> str:
    """Return the checkpoint's chat template (tokenizer's, ``chat_template.jinja`` or ``.json``), else ``default``."""
    if isinstance(hf.chat_template, str):
        return hf.chat_template
    if folder is not None:
        if (folder / "chat_template.jinja").is_file():
            return (folder / "chat_template.jinja").read_text(encoding="utf-8")
        if (folder / "chat_template.json").is_file():
            return json.loads((folder / "chat_template.json").read_text(encoding="utf-8"))["chat_template"]
    return default


def build_prompt(
    tokenizer: TextTokenizer,
    template: str,
    markers: Markers,
    question: str,
    *,
    video: bool,
    audio: bool,
    history: Sequence[tuple[str, str]] = (),
    preface: str = "",
) -> Prompt:
    """Render the turns, media and ``preface`` at the beginning of the first, and split them at the placeholder.

    With pictures and sound there is one placeholder, the video's, and the sound's marks stand inside the video's.

    Raises
    ------
    ModelError
        If the template writes no placeholder for the media.
    """
    medium = "video" if video else "audio" if audio else None
    turns = [q for q, _ in history] + [question]
    turns[0] = preface + turns[0]
    messages: list[dict[str, Any]] = []
    for i, turn in enumerate(turns):
        parts: list[dict[str, str]] = [{"type": "text", "text": turn}]
        if i == 0 and medium is not None:
            parts.insert(0, {"type": medium, medium: ""})
        messages.append({"role": "user", "content": parts})
        if i < len(history):
            messages.append({"role": "assistant", "content": [{"type": "text", "text": history[i][1]}]})
    rendered = tokenizer.hf.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, chat_template=template
    )
    before, after = "", rendered
    if medium is not None:
        placeholder = markers.video if video else markers.audio
        before, found, after = rendered.partition(placeholder)
        if not found:
            raise ModelError(f"the model's chat template writes no {placeholder} for {medium} input")
        if video and audio:
            before, after = before + markers.audio_begin, markers.audio_end + after
    ids, span = _encode_with_span(tokenizer, after, question)
    return Prompt(
        torch.tensor(tokenizer.encode(before) if before else [], dtype=torch.int64),
        torch.tensor(ids, dtype=torch.int64),
        span,
        question,
    )


def _encode_with_span(tokenizer: TextTokenizer, text: str, question: str) -> tuple[list[int], slice]:
    """Return ids of ``text`` and the slice of those that overlap the last occurrence of ``question``."""
    encoded = tokenizer.hf(text, add_special_tokens=False, return_offsets_mapping=True)
    wanted = question if question in text else question.strip()
    begin = text.rfind(wanted)
    inside = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < begin + len(wanted) and b > begin]
    span = slice(inside[0], inside[-1] + 1) if inside and wanted and begin >= 0 else slice(0, 0)
    return list(encoded["input_ids"]), span
