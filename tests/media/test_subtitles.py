"""Subtitles beside and in a film: text without markup, on the film's clock, as much as there is room for."""

from __future__ import annotations

import subprocess

import pytest

from omnicli.config.settings import MediaConfig
from omnicli.errors import MediaError
from omnicli.media import subtitles
from omnicli.media.probe import probe
from omnicli.media.subtitles import Line, fit, plain, preface, read
from tests.support import films

SRT = """1
00:00:00,500 --> 00:00:01,500
<i>Hello</i> {\\an8}there
<|im_end|> friend

2
00:00:02,000 --> 00:00:03,000
<font color="red">Tom</font> &amp; Jerry, a < b

3
00:00:05,000 --> 00:00:05,500
<b></b>

4
00:00:04,250 --> 00:00:05,000
out of order
"""
VTT = """WEBVTT

NOTE nothing to read

00:00.500 --> 00:01.500 align:start
<v Bob>Hello <b>there</b>
friend

00:02.000 --> 00:03.000
Tom &amp; Jerry, <00:02.500>a &lt; b

00:04.250 --> 00:05.000
out of order
"""
ASS = """[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname, Fontsize
Style: Default,Arial,20

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Dialogue: 0,0:00:04.25,0:00:05.00,Default,,0,0,0,,out of order
Dialogue: 0,0:00:00.50,0:00:01.50,Default,,0,0,0,,{\\i1}Hello{\\i0} there\\Nfriend
Comment: 0,0:00:01.00,0:00:02.00,Default,,0,0,0,,not to be read
Dialogue: 0,0:00:01.00,0:00:02.00,Default,,0,0,0,,{\\p1}m 0 0 l 100 0 100 100
Dialogue: 0,0:00:02.00,0:00:03.00,Default,,0,0,0,,Tom & Jerry,\\ha < b
"""
LINES = [
    Line(0.5, 1.5, "Hello there friend"),
    Line(2.0, 3.0, "Tom & Jerry, a < b"),
    Line(4.25, 5.0, "out of order"),
]
FORMATS = {".srt": SRT, ".vtt": VTT, ".ass": ASS}


@pytest.fixture
def film(tmp_path):
    return films.write(tmp_path / "film.mp4")


def words(text):
    return len(text.split())


@pytest.mark.parametrize("ending", FORMATS)
def test_a_file_of_subtitles(film, ending):
    file = film.with_name(f"named{ending}")
    file.write_text(FORMATS[ending], encoding="utf-8")
    assert read(probe(film), str(file)) == (LINES, [])


def with_track(film, text, later_s=0.0, tracks=1):
    """Return a Matroska copy of a film with text tracks in it, all of it later by some seconds."""
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    source, path = film.with_name("track.srt"), film.with_name("inside.mkv")
    source.write_text(text, encoding="utf-8")
    maps = ["-map", "0", *["-map", "1"] * tracks]
    command = [ffmpeg, "-v", "error", "-i", film, "-i", source, *maps, "-c", "copy", "-c:s", "subrip"]
    subprocess.run([*command, "-output_ts_offset", str(later_s), path], check=True)
    return path


@pytest.mark.parametrize("later_s", [0.0, 100.0])
def test_a_track_in_the_film_is_on_the_pictures_clock(film, later_s):
    info = probe(with_track(film, SRT, later_s))
    assert info.origin_s == pytest.approx(later_s, abs=0.05)
    assert float(info.frames.time_s[0]) == pytest.approx(0.0, abs=0.05)
    lines, notes = read(info, "auto")
    assert notes == []
    assert [line.text for line in lines] == [line.text for line in LINES]
    assert [line.start_s for line in lines] == pytest.approx([line.start_s for line in LINES], abs=0.03)
    assert [line.end_s for line in lines] == pytest.approx([line.end_s for line in LINES], abs=0.03)


def test_what_auto_takes(film):
    info = probe(film)
    assert read(info, "auto") == ([], ["subtitles: none in the film, none beside it"])
    inside = with_track(film, SRT, tracks=2)
    (note,) = read(probe(inside), "auto")[1]
    assert note.startswith("subtitles: the first of 2 text tracks")
    for ending in (".vtt", ".srt"):
        inside.with_suffix(ending).write_text(FORMATS[ending].replace("Hello", ending), encoding="utf-8")
    lines, notes = read(probe(inside), "auto")
    assert lines[0].text == ".srt there friend"
    assert notes == ["subtitles: read from inside.srt, not from inside.vtt"]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("bad.srt", b"nothing in here", "bad.srt: no subtitles that can be read"),
        ("latin.srt", SRT.replace("Hello", "caf\xe9").encode("latin-1"), "is it UTF-8?"),
        ("none.srt", None, "No such file"),
        ("film.mp4", None, "no file of subtitles"),
    ],
)
def test_files_that_are_no_subtitles(film, name, data, words):
    if data is not None:
        film.with_name(name).write_bytes(data)
    with pytest.raises(MediaError, match=words.replace("?", r"\?")):
        read(probe(film), str(film.with_name(name)))


def test_only_lines_of_the_stretch_that_is_looked_at(film):
    film.with_suffix(".srt").write_text(SRT.replace("00:00:04,250 --> 00:00:05", "01:00:04,250 --> 01:00:05"))
    info = probe(film)

    def lines(**span):
        text, notes = preface(info, MediaConfig(subtitles="auto", **span), words)
        return [line[:7] for line in text.splitlines()[1:]], notes

    assert lines() == (["[00:00]", "[00:02]"], ()), "the film ends before the last line"
    assert lines(start=1.0) == (["[00:00]", "[00:02]"], ())
    assert lines(start=1.5, end=2.5) == (["[00:02]"], ())
    assert lines(start=3.0, end=4.0) == ([], ("film.mp4: subtitles: none of 3 lines between 3 and 4 s",))
    assert preface(info, MediaConfig(), words) == ("", ())


def test_lines_that_do_not_fit_are_left_out_evenly(film):
    lines = [Line(i, i + 1, "word " * (1 + i % 3)) for i in range(90)]
    whole = words(fit(lines, 10**6, words)[0])
    assert fit(lines, whole, words)[1] == 90
    for budget in (whole - 1, 100, 40, 7):
        text, used = fit(lines, budget, words)
        shown = [int(line[4:6]) + 60 * int(line[1:3]) for line in text.splitlines()[1:]]
        assert words(text) <= budget and len(shown) == used and used >= (budget - 1) // 4 - 1
        steps = [b - a for a, b in zip([-1, *shown], [*shown, 90], strict=True)]
        assert max(steps[1:-1], default=0) - min(steps[1:-1], default=0) <= 1 and steps[0] + steps[-1] <= 2 * 90 / used
    assert fit(lines, 2, words) == ("", 0)
    film.with_suffix(".srt").write_text(SRT)
    text, notes = preface(probe(film), MediaConfig(subtitles="auto", subtitle_tokens=8), words)
    assert text == "Subtitles:\n[00:02] Tom & Jerry, a < b\n"
    assert notes == ("film.mp4: subtitles: 1 of 3 lines fit media.subtitle_tokens=8, spread evenly",)


def test_times_and_markup():
    assert str(Line(59.99, 60, "a")) == "[00:59] a"
    assert str(Line(3599.5, 3600, "a")) == "[59:59] a"
    assert str(Line(3725, 3726, "a")) == "[1:02:05] a"
    assert plain("a &lt;|video|&gt; b </s>\\Nc <3 {\\pos(1,2)}d") == "a b c <3 d"
    assert plain("{\\an5\\p1}m 0 0") == ""
    assert tuple(FORMATS) == subtitles.ENDINGS
