"""Multiple choice: options listed under a question, and the letter read from an answer."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

LETTERS = string.ascii_uppercase
_ALONE = re.compile(r"\(?([A-Z])(?:\)|[.):](?=\s|$)|$)")
_NAMED = re.compile(r"\b(?:answer|option|choice)\b(?:\s+is)?\s*:?\s*\(?([A-Z])\b\)?", re.IGNORECASE)


def with_choices(question: str, choices: Sequence[str]) -> str:
    """Return the question with its options listed below it as ``A. ...``; without options, the question."""
    return "\n".join([question, *(f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=False))])


def chosen(answer: str, choices: Sequence[str]) -> str | None:
    """Return the letter that an answer chooses, or None where it names none or more than one.

    In this order: an answer that is a letter or begins with one that stands for itself (``B``, ``(B)``, ``B. A dog``);
    a letter named as the answer (``the answer is B``); the text of exactly one option.
    """
    text, letters = answer.strip(), LETTERS[: len(choices)]
    if alone := _ALONE.match(text):
        return alone[1] if alone[1] in letters else None
    named = {found.upper() for found in _NAMED.findall(text) if found.isupper()}
    if named:
        letter = named.pop()
        return letter if not named and letter in letters else None
    told = text.casefold()
    texts = [letter for letter, choice in zip(letters, choices, strict=True) if _holds(told, choice.strip().casefold())]
    return texts[0] if len(texts) == 1 else None


def _holds(text: str, part: str) -> bool:
    return bool(part) and re.search(rf"(?<!\w){re.escape(part)}(?!\w)", text) is not None
