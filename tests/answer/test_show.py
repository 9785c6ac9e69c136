"""How an answer shows itself: lines for a terminal, HTML for a notebook, neither of which a film's words can break."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import pytest

from tests.support.answers import make_answer

HOSTILE = "</div><script>alert(\"x\")</script>\x1b[31m\ud800<img src=x onerror='y'>&amp;"
EVIDENCE = [
    {"start_s": 3.2, "end_s": 5.7, "score": 0.3125, "modality": "audio"},
    {"start_s": 3599.5, "end_s": 3601.0, "score": 0.1, "modality": "video"},
]


class Page(HTMLParser):
    """The texts of a piece of HTML, its elements, and its attributes; fails unless every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def answer():
    return replace(make_answer(answer="the man\nin blue", decode_video=2.0), evidence=EVIDENCE)


def test_the_lines_of_an_answer(answer):
    assert repr(answer) == str(answer)
    assert repr(answer).splitlines() == [
        "the man",
        "  in blue",
        "  asked     why? (film.mp4, tiny, preset avoc)",
        "  kept      30 of 150 tokens, 20 % (pictures 10 of 100, sound 20 of 50)",
        "  time      2.00 s, first token after 1.50 s",
        "  evidence  00:03–00:06 sound, 31.2 % of the attention; 59:59–1:00:01 pictures, 10 % of the attention",
        "  warning   sound ends at 4 s",
    ]


def test_the_lines_of_an_answer_without_much_to_tell():
    bare = replace(make_answer(answer=""), tokens={}, warnings=())
    assert repr(bare).splitlines() == [
        "(no answer)",
        "  asked     why? (film.mp4, tiny, preset avoc)",
        "  time      2.00 s, first token after 1.50 s",
    ]
    assert Page(bare._repr_html_()).texts


def test_a_terminal_is_sent_no_control_characters(answer):
    shown = repr(replace(answer, answer=HOSTILE, question=HOSTILE, media=f"/films/{HOSTILE}", warnings=[HOSTILE]))
    assert "\x1b" not in shown and "\ud800" not in shown and shown.count("\ufffd[31m\ufffd") == 4


def test_the_page_holds_the_answer_its_evidence_and_its_stages(answer):
    page = Page(answer._repr_html_())
    for text in ("why?", "the man\nin blue", "59:59–1:00:01 pictures, 10 % of the attention", "sound ends at 4 s"):
        assert text in page.texts
    assert "kept 30 of 150 tokens, 20 % (pictures 10 of 100, sound 20 of 50)" in page.texts
    rows = list(zip(page.texts, page.texts[1:], strict=False))
    assert ("decode pictures", "2.00 s") in rows and ("generate", "0.25 s") in rows and "compress" not in page.texts
    bars = [value for name, value in page.attributes if name == "style" and "#" in value]
    assert [bar.rpartition("width:")[2] for bar in bars] == ["100.0%", "25.0%", "12.5%", "12.5%"]


def test_whatever_a_film_says_is_text_of_the_page(answer):
    hostile = replace(
        answer,
        answer=HOSTILE,
        question=HOSTILE,
        media=f"/films/{HOSTILE}",
        preset=HOSTILE,
        model={"name": HOSTILE},
        warnings=[HOSTILE],
        stages={HOSTILE: 1.0},
    )
    page, plain = Page(hostile._repr_html_()), Page(answer._repr_html_())
    assert set(page.tags) == set(plain.tags) and "script" not in page.tags and "img" not in page.tags
    assert {name for name, _ in page.attributes} == {"style", "scope"}
    assert sum(HOSTILE.partition("\x1b")[0] in text for text in page.texts) >= 5
    assert "\x1b" not in "".join(page.texts) and "\ud800" not in "".join(page.texts)


def test_the_page_fetches_nothing_and_forces_no_colours_on_text(answer):
    html = answer._repr_html_()
    assert not any(word in html for word in ("http", "url(", "src=", "href=", "<style", "<script"))
    styles = [value for name, value in Page(html).attributes if name == "style"]
    assert not any(part.startswith("color:") for style in styles for part in style.split(";"))
