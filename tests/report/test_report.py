"""``omni report``: what stands in the page, that nothing in it runs or is fetched, and what it refuses."""

from __future__ import annotations

import base64
import copy
import html.parser
import io
import json
import random
import re
import shlex
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from omnicli.config.config import load_config, preset_files
from omnicli.errors import MediaError
from omnicli.report import draw, page, repeat, rows
from tests.support import browser, films, schema
from tests.support.slowly import slow_but

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;"
VOID = {"meta", "img", "br"}
SHAPES = {"rect", "line", "circle", "polyline"}


def make_row(**changes):
    """Return a row as `omni ask --json` prints it."""
    row = {
        "schema": 1,
        "id": "0123456789ab",
        "media": "film.mp4",
        "question": "What is shown?",
        "answer": "a ramp",
        "status": "ok",
        "model": {"name": "tiny", "revision": "local", "dtype": "float32", "device": "cpu", "quantize": "none"},
        "preset": "avoc",
        "config": load_config("avoc").to_dict(),
        "media_used": {
            "video_s": 5.0,
            "audio_s": 4.0,
            "video_present_s": 6.0,
            "audio_present_s": 6.0,
            "frames": 6,
            "fps": 1.0,
            "width": 196,
            "height": 112,
        },
        "tokens": {
            "video": {"encoded": 30, "kept": 12},
            "audio": {"encoded": 20, "kept": 20},
            "text": 49,
            "reused": 0,
            "generated": 3,
            "by_layer": [[0, 32], [2, 10]],
            "retention": 0.64,
            "retention_nominal": None,
            "retention_layers": {"video": 0.3, "audio": 0.5},
            "selection": {},
            "timeline": {
                "start_s": 0,
                "step_s": 2,
                "video": {"encoded": [10, 10, 10], "kept": [10, 2, 0]},
                "audio": {"encoded": [10, 0, 10], "kept": [10, 0, 10]},
            },
        },
        "positions": {"largest": 163, "trained": 131072, "time_scale": 1.0},
        "stages": {"encode_video": 1.5, "prefill": 0.25, "select_in_llm": 0.1, "other": 0.25},
        "busy": {"decode_video": 0.75},
        "wall_s": 2.0,
        "time_to_first_token_s": 1.75,
        "peak_memory": {"host_bytes": 2**30, "device_bytes": None},
        "flops": {"prefill": 2.5e12, "full_prefill": 5e12, "compress": 0.0},
        "evidence": [
            {"start_s": 1.0, "end_s": 2.4, "score": 0.5, "modality": "video"},
            {"start_s": 4.5, "end_s": 5.0, "score": 0.25, "modality": "audio"},
        ],
        "warnings": ["sound ends at 4 s"],
        "versions": {"omni": "0.1.0"},
        "cached": False,
    }
    return row | changes


def failed_row(**changes):
    """Return a row of `omni batch` without an answer."""
    row = make_row() | dict.fromkeys(schema.WITHOUT_ANSWER)
    row |= {"status": "failed", "error": {"code": 3, "message": "bad.mp4: not a film"}, "media": "bad.mp4"}
    return row | {"evidence": [], "warnings": [], "key": "k", "item": None, "choices": None, "choice": None} | changes


def at_retention(row, share, seconds):
    row = copy.deepcopy(row)
    row["tokens"]["retention"], row["time_to_first_token_s"] = share, seconds
    return row


class Page(html.parser.HTMLParser):
    """The parsed page; fails where an element is not closed, or closed in another's place."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in SHAPES
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(self.texts)


def check(text: str) -> Page:
    """Return the page after what holds for every one: it nests, runs and fetches nothing, names its graphics."""
    found = Page(text)
    for tag, attrs in found.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("src", "href", "data", "action", "poster", "xlink:href", "srcset"):
            value = attrs.get(name, "#")
            assert value.startswith("#") or (tag == "img" and value.startswith("data:image/jpeg;base64,"))
    assert not re.search(r"url\(|@import|@font-face", " ".join(found.texts[:3]))
    assert all(a.get("alt") for a in found.all("img"))
    assert all((a.get("role") == "img" and a.get("aria-label")) or a.get("aria-hidden") for a in found.all("svg"))
    anchors = {attrs["id"] for _, attrs in found.elements if "id" in attrs}
    assert {a["href"][1:] for a in found.all("a")} <= anchors
    policy = [a["content"] for a in found.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == [page.POLICY]
    return found


def test_the_rows_used_here_follow_the_schema():
    assert schema.problems(make_row()) == []
    assert schema.row_problems(failed_row()) == []


def test_an_answer_with_everything():
    text = page.build([make_row()], thumbnails=False)
    found = check(text)
    for part in (
        "What is shown?",
        "a ramp",
        "film.mp4",
        "pictures 5.0 of 6.0 s used",
        "sound 4.0 of 6.0 s",
        "sound ends at 4 s",
        "00:01–00:03",
        "50 % of the attention",
        "encode pictures",
        "of it, selection",
        "decode pictures 0.75 s",
        "2.5 TFLOPs of 5 T",
        "1.00 GiB",
        "10 from layer 2",
        "omni ask film.mp4",
        "tokens: 10240",
    ):
        assert part in found.text, part
    assert "Compared" not in found.text


def test_the_strip_shows_what_was_kept_when():
    row = make_row()
    strip = Page(draw.heat_strip(row["tokens"]["timeline"], row["evidence"]))
    cells = {kind: [a for a in strip.all("rect") if a["class"] == kind] for kind in ("video", "audio", "mark", "lane")}
    assert [float(a["fill-opacity"]) for a in cells["video"]] == [1.0, 0.248, 0.06]
    assert [(float(a["x"]), float(a["width"])) for a in cells["audio"]] == [(0.0, 333.33), (666.67, 333.33)]
    first, second = cells["mark"]
    assert (float(first["x"]), float(first["width"]), first["y"]) == (166.67, 233.33, cells["video"][0]["y"])
    assert (float(second["x"]), second["y"]) == (750.0, cells["audio"][0]["y"])
    assert len(cells["lane"]) == 2
    (drawing,) = strip.all("svg")
    assert "pictures: 12 of 30 tokens kept" in drawing["aria-label"]
    assert "evidence 2 at 00:04–00:05" in drawing["aria-label"]


def test_equal_steps_are_one_cell_and_a_silent_film_one_row():
    timeline = {
        "start_s": 3590,
        "step_s": 5,
        "video": {"encoded": [4] * 9, "kept": [2] * 9},
        "audio": {"encoded": [0] * 9, "kept": [0] * 9},
    }
    strip = Page(draw.heat_strip(timeline, []))
    assert [a["class"] for a in strip.all("rect")] == ["video"]
    assert "59:50" in strip.text
    assert "1:00:35" in strip.text
    assert "sound" not in strip.text
    nothing = {**timeline, "video": timeline["audio"]}
    assert draw.heat_strip(nothing, []) == ""


@pytest.mark.parametrize("where", ["media", "question", "answer", "preset"])
def test_nothing_that_a_row_holds_becomes_markup(where):
    rows = [make_row(**{where: EVIL}), make_row(**{where: EVIL})]
    text = page.build(rows)  # with thumbnails: the note on a missing film is text as well
    found = check(text)
    assert "<script" not in text
    assert EVIL in found.text


def test_inner_values_are_escaped_too():
    row = make_row(warnings=[EVIL], versions={EVIL: EVIL}, stages={EVIL: 1.0}, busy={EVIL: 1.0})
    row["model"] = {"name": EVIL, "dtype": EVIL, "device": EVIL, "quantize": EVIL}
    row["evidence"] = [{"start_s": 0, "end_s": 1, "score": None, "modality": EVIL}]
    row["config"] = {**row["config"], "params": {EVIL: EVIL}, "model": EVIL}
    row |= {"expected": EVIL, "correct": False, "choices": [EVIL], "choice": EVIL}
    other = {**row, "config": load_config("avoc").to_dict()}
    text = page.build([row, other, failed_row(error={"code": 3, "message": EVIL})])
    check(text)
    assert "<script" not in text


def test_characters_that_cannot_be_shown():
    text = page.build([make_row(media="caf\udce9.mp4", answer="a\x00\x1b[31mb\u202e")], thumbnails=False)
    check(text)
    text.encode()
    assert "\x00" not in text
    assert "\x1b" not in text
    assert r"omni ask $&#x27;caf\351.mp4&#x27;" in text


def test_failed_and_skipped_rows():
    skipped = failed_row(status="skipped", error={"code": 0, "message": "b.mp4: the same file as a.mp4; see its row"})
    found = check(page.build([make_row(), failed_row(), skipped], thumbnails=False))
    assert "1 answer about 2 files" in found.text
    assert "1 failed, 1 skipped" in found.text
    assert "failed: bad.mp4: not a film (exit code 3)" in found.text
    assert "the same file as a.mp4" in found.text


def test_runs_of_one_question_are_compared():
    settings = load_config("avoc", ["avoc.tokens=64"]).to_dict()
    several = [
        at_retention(make_row(answer="one"), 0.5, 3.0),
        make_row(question="Another?"),
        at_retention(make_row(answer="two", config=settings), 0.25, 1.0),
        at_retention(make_row(preset="seats-10", answer="three"), 0.125, 4.0),
        failed_row(media="film.mp4", preset="full", error={"code": 4, "message": "does not fit"}),
    ]
    text = page.build(several, thumbnails=False)
    found = check(text)
    section = text[text.index("<h2>Compared:") : text.index("<article")]
    assert text.count("<h2>Compared:") == 1
    for part in ("50 %", "3.00 s", "25 %", "1.00 s", "2.5 T", "1.00 GiB", "two", "three", "failed: does not fit"):
        assert part in section, part
    assert "avoc (params.tokens=10240)" in section
    assert "avoc (params.tokens=64)" in section
    assert "Another?" not in section
    assert section.count("<circle") == 3
    assert [a["href"] for a in Page(section[section.index("<table") : section.index("</section>")]).all("a")] == [
        "#answer-1",
        "#answer-3",
        "#answer-4",
        "#answer-5",
    ]
    assert found.text.count("Compared:") == 1


def test_the_line_joins_what_no_other_run_beats():
    points = [
        draw.Point(i, "", *p) for i, p in enumerate([(0.5, 3.0), (0.25, 4.0), (0.6, 3.0), (1.0, 1.0), (1.0, 2.0)])
    ]
    assert [p.number for p in draw.best(points)] == [1, 0, 3]
    drawing = Page(draw.scatter(points))
    x = [float(a["cx"]) for a in drawing.all("circle")]
    y = [float(a["cy"]) for a in drawing.all("circle")]
    assert x[1] < x[0] < x[2] < x[3] == x[4]
    assert y[1] < y[0] == y[2] < y[4] < y[3]
    assert len(drawing.all("polyline")) == 1


# --- pictures of the film -------------------------------------------------------------------------------------------


def test_a_thumbnail_shows_the_frame_in_the_middle_of_its_range(film):
    from PIL import Image

    row = make_row(media=str(film))
    notes = []
    text = page.build([row], note=notes.append)
    assert notes == []
    (image,) = check(text).all("img")
    assert "00:01–00:03" in image["alt"]
    data = base64.b64decode(image["src"].partition(",")[2])
    shown = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((196, 112)), float)
    distance = [np.abs(shown - films.picture(i)).mean() for i in range(48)]
    assert int(np.argmin(distance)) == int(1.7 * films.FPS)  # on the screen at 1.7 s: from 1.625 s on
    assert text == page.build([row])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"media": "gone.mp4"}, "gone.mp4: no such file"),
        ({"media_used": make_row()["media_used"] | {"video_present_s": 60.0}}, "another film now"),
        ({"config": load_config("avoc", ["media.clock=nominal"]).to_dict()}, "times are nominal"),
    ],
    ids=["gone", "changed", "nominal"],
)
def test_without_the_film_a_note_stands_for_its_pictures(film, change, words):
    notes = []
    found = check(page.build([make_row(**{"media": str(film), **change})], note=notes.append))
    assert found.all("img") == []
    assert words in found.text
    assert len(notes) == 1
    assert words in notes[0]


def test_no_thumbnails_reads_no_film(film):
    found = check(page.build([make_row(media=str(film))], thumbnails=False))
    assert found.all("img") == []
    assert "No thumbnails" not in found.text


# --- asking again ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", slow_but(preset_files(), lambda preset: "/" not in preset))
@pytest.mark.parametrize("change", [(), ("generate.stop=[a, '1']", "media.start=10", "generate.temperature=0.5")])
def test_the_command_repeats_every_preset(preset, change):
    config = load_config(preset, change).to_dict()
    assert settings_of(make_row(preset=preset, config=config)) == config
    assert load_config({**config, "preset": preset}).to_dict() == config


@pytest.mark.parametrize("settings", [["method=fastv"], ["params.tokens=64"], ["params.retention_video=0.5"]])
def test_the_command_repeats_changed_methods_and_budgets(settings):
    config = load_config("avoc", settings).to_dict()
    assert settings_of(make_row(config=config)) == config
    assert settings_of(make_row(config=config, preset="/gone/mine.yaml")) == config
    chain = load_config("avoc", ["method=avoc+seats", "seats.late_layer=off"]).to_dict()
    assert settings_of(make_row(config=chain)) == chain


def settings_of(row):
    """Return the configuration that the command of a row comes to."""
    words = shlex.split(repeat.command(row))
    assert words[:4] == ["omni", "ask", row["media"], row["question"]]
    given = dict.fromkeys(w for w in words if w.startswith("--"))
    sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    for name in ("preset", "model", "device", "dtype"):
        if f"--{name}" in given:
            given[f"--{name}"] = words[words.index(f"--{name}") + 1]
    sets += [f"{k}={given[f'--{k}']}" for k in ("model", "device", "dtype") if given.get(f"--{k}")]
    return load_config(given["--preset"], sets).to_dict() | {"preset": row["config"]["preset"]}


@pytest.mark.parametrize("name", ["a b.mp4", "it's.mp4", "line\nbreak", "caf\udce9.mp4", "esc\x1b'\\.mp4", "日本.mp4"])
def test_names_survive_the_shell(name):
    import os

    command = repeat.command(make_row(media=name, evidence=[]))
    script = f"omni() {{ printf '%s' \"$2\"; }}; {command}"
    out = subprocess.run(["bash", "-c", os.fsencode(script)], capture_output=True, check=True).stdout
    assert out == os.fsencode(name)


def test_names_with_a_dash_are_no_options():
    words = shlex.split(repeat.command(make_row(media="-film.mp4", question="--why?")))
    assert words[2:4] == ["./-film.mp4", "--question=--why?"]


# --- the command ----------------------------------------------------------------------------------------------------


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_files_of_every_kind_make_one_page(omni, tmp_path):
    (tmp_path / "a.jsonl").write_text(lines(make_row(answer="one"), failed_row()))
    (tmp_path / "b.json").write_text(json.dumps(make_row(answer="two"), indent=2))
    (tmp_path / "c.json").write_text(json.dumps([make_row(answer="three")]))
    argv = ["report", *(tmp_path / n for n in ("a.jsonl", "b.json", "c.json")), "-", "-o", tmp_path / "out.html"]
    result = omni(*argv, stdin=lines(make_row(answer="four")))
    assert (result.code, result.out) == (0, "")
    assert "5 rows" in result.err
    text = (tmp_path / "out.html").read_text(encoding="utf-8")
    found = check(text)
    for answer in ("one", "two", "three", "four"):
        assert answer in found.text
    assert omni(*argv, stdin=lines(make_row(answer="four"))).code == 0
    assert (tmp_path / "out.html").read_text(encoding="utf-8") == text
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["a.jsonl", "b.json", "c.json", "out.html"]


def test_stdout_holds_the_page_alone(omni_process):
    result = omni_process("report", "-", "-o", "-", "--no-thumbnails", stdin=lines(make_row()))
    assert (result.code, result.err) == (0, "")
    check(result.out)


def test_a_line_that_a_killed_writer_left_is_left_out(omni, tmp_path):
    (tmp_path / "a.jsonl").write_text(lines(make_row()) + '{"schema": 1, "id": "0')
    result = omni("report", tmp_path / "a.jsonl", "-o", tmp_path / "out.html", "--no-thumbnails")
    assert result.code == 0
    assert "line 2 is not whole" in result.err
    assert "1 answer about 1 file" in (tmp_path / "out.html").read_text(encoding="utf-8")


def without(row, *path):
    row = copy.deepcopy(row)
    inner = row
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return row


def uneven():
    row = copy.deepcopy(make_row())
    row["tokens"]["timeline"]["audio"]["kept"] = [1]
    return row


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "holds no answers"),
        ("[]", "holds no answers"),
        ("not json\n", "line 1: not JSON"),
        (lines(make_row()) + "no\n" + lines(make_row()), "line 2: not JSON"),
        (b"\xff\xfe\x00", "not UTF-8"),
        ("[" * 100_000, "nested too deeply"),
        ("3", "no row of omni ask"),
        ('{"a": 1}', "no row of omni ask"),
        (lines(make_row(schema=2)), "schema 2, but this omni reads schema 1"),
        (lines(make_row(), make_row(schema="1")), "line 2: schema '1'"),
        (lines(make_row(status="fine")), "status"),
        (lines(without(make_row(), "tokens", "video", "kept")), "tokens.video.kept: is missing"),
        (lines(without(failed_row(), "error")), "error: is missing"),
        (lines(make_row(answer=None)), "answer: None is not allowed"),
        (lines(make_row(wall_s=True)), "wall_s: True is not allowed"),
        (lines(make_row(wall_s=float("nan"))), "NaN"),
        (lines(make_row(wall_s=1)).replace('"wall_s": 1,', '"wall_s": 1e999,'), "wall_s: inf"),
        (lines(make_row(warnings="none")), "warnings: must be a list"),
        (lines(make_row(stages={"a": "b"})), "stages.a: 'b'"),
        (
            lines(make_row(tokens=make_row()["tokens"] | {"retention_nominal": {"video": "x"}})),
            "retention_nominal.video",
        ),
        (lines(make_row(evidence=[{"start_s": 0}])), "evidence[0].end_s: is missing"),
        (lines(make_row(config={})), "config.method: is missing"),
        (lines(make_row(tokens=5)), "tokens: must be an object"),
        (lines(uneven()), "tokens.timeline"),
    ],
    ids=lambda v: None if isinstance(v, str | bytes) and len(v) > 60 else str(v)[:30],
)
def test_bad_input_is_one_line_and_exit_code_3(omni, tmp_path, content, words):
    file = tmp_path / "runs.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = omni("report", file, "-o", tmp_path / "out.html")
    assert result.code == 3
    line = result.error_line()
    assert words in line
    assert str(file) in line
    assert not (tmp_path / "out.html").exists()


def places(value, path=()):
    """Yield the path of every value inside a row."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*path, key)
        yield from places(item, (*path, key))


@pytest.mark.slow
def test_a_damaged_row_is_drawn_or_refused():
    odd = [None, True, 0, -1, 3.5, 1e20, "", "x", "\x00", "\ud800", [], {}, [1], ["a"], {"a": 1}, [[]], 10**25]
    rng = random.Random(1)
    outcomes = Counter()
    for n in range(200):
        row = make_row() if n % 5 else failed_row()
        row = json.loads(json.dumps(row))
        path = rng.choice(list(places(row)))
        inner = row
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = rng.choice(odd)
        try:
            found = rows.read(lines(row).encode(), "runs", pytest.fail)
        except MediaError as error:
            outcomes["refused"] += 1
            assert str(error).startswith("runs: ")
            continue
        outcomes["drawn"] += 1
        check(page.build(found))
    assert min(outcomes["refused"], outcomes["drawn"]) > 30


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["runs.json"], 2, "--output"),
        (["-o", "out.html"], 2, "RUN"),
        (["-", "-", "-o", "out.html"], 2, "only once"),
        (["runs.json", "-o", "runs.json"], 2, "is what is read"),
        (["runs.json", "-o", "."], 2, "is a folder"),
        (["runs.json", "-o", "nowhere/out.html"], 2, "does not exist"),
        (["gone.json", "-o", "out.html"], 3, "gone.json: cannot be read"),
        ([".", "-o", "out.html"], 3, "cannot be read"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_wrong_usage(omni, tmp_path, monkeypatch, argv, code, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs.json").write_text(lines(make_row()))
    result = omni("report", *argv)
    assert result.code == code
    assert words in result.error_line()
    assert (tmp_path / "runs.json").read_text() == lines(make_row())


def test_no_torch_is_imported(film):
    script = (
        "import sys\nfrom omnicli.cli.main import run\n"
        "assert run(['report', '-', '-o', '-']) == 0\nprint('torch' in sys.modules, file=sys.stderr)"
    )
    text = lines(make_row(media=str(film)))
    done = subprocess.run([sys.executable, "-c", script], input=text, capture_output=True, text=True, check=True)
    assert done.stderr == "False\n"
    assert "data:image/jpeg" in done.stdout


@pytest.mark.slow
def test_what_ask_and_batch_write_is_read_and_can_be_repeated(omni, film, film_folder, tiny_model, tmp_path):
    asked = omni(
        "ask",
        film,
        "why?",
        "--json",
        "--model",
        tiny_model,
        "--fps",
        "2",
        "--preset",
        "random-10",
        "--max-new-tokens",
        "4",
    )
    batch = omni("batch", film_folder / "noise.mkv", "-q", "why?", "--model", tiny_model, "--quiet")
    (tmp_path / "runs.jsonl").write_text(asked.out + batch.out)
    assert omni("report", tmp_path / "runs.jsonl", "-o", tmp_path / "out.html").code == 0
    found = check((tmp_path / "out.html").read_text(encoding="utf-8"))
    assert "noise.mkv" in found.text
    (command,) = [text for text in found.texts if text.startswith(f"omni ask {shlex.quote(str(film))}")]
    again = omni(*shlex.split(command)[1:], "--json")
    assert json.loads(again.out)["id"] == json.loads(asked.out)["id"]


# --- a real browser -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    binary = browser.find()
    if binary is None:
        pytest.skip("no Chromium on the PATH or in $CHROMIUM")
    with browser.Browser(binary, tmp_path_factory.mktemp("chromium")) as found:
        yield found


def told(chromium):
    """Return what the browser had to say about the page."""
    return [
        e for e in chromium.events if e[0] in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    ]


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (360, "dark"),
        (1100, "light"),
        (360, "light"),
        (1100, "dark"),
    ],
)
@pytest.mark.slow
def test_in_a_browser(chromium, film, tmp_path, width, scheme):
    from PIL import Image

    rows = [
        make_row(media=str(film)),
        make_row(media=str(film), preset="seats-10"),
        make_row(question="Why " + "very" * 40 + "?", answer="x" * 300, media=f"{'long' * 30}.mp4"),
        failed_row(),
        make_row(answer=EVIL),
    ]
    (tmp_path / "out.html").write_text(page.build(rows), encoding="utf-8")
    chromium.open(tmp_path / "out.html", width, 2000, scheme)
    chromium.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert chromium.evaluate("document.documentElement.scrollWidth") == width
    outside = """e => { const card = e.closest('article, section').getBoundingClientRect();
        const own = e.getBoundingClientRect();
        return own.width && (own.right > card.right || own.left < card.left); }"""
    inner = "[...document.querySelectorAll('main table, main th, main td, main p, main pre, main li, main svg')]"
    assert chromium.evaluate(f"{inner}.filter({outside}).map(e => e.outerHTML.slice(0, 80))") == []
    assert chromium.evaluate("document.querySelector('.tokens tbody th').offsetHeight") < 40  # no letter for letter
    assert chromium.evaluate("document.querySelectorAll('article').length") == len(rows)
    assert chromium.evaluate("[...document.images].map(i => i.naturalWidth)") == [240, 240]
    assert chromium.evaluate("document.querySelector('h1').offsetHeight") > 0
    paper = "rgb(20, 22, 26)" if scheme == "dark" else "rgb(251, 250, 248)"
    assert chromium.evaluate("getComputedStyle(document.body).backgroundColor") == paper
    picture = np.asarray(Image.open(io.BytesIO(chromium.screenshot())).convert("RGB"), int)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
    assert picture.std() > 10
    fetched = [p["request"]["url"] for name, p in chromium.events if name == "Network.requestWillBeSent"]
    assert {url.split(":")[0] for url in fetched} <= {"file", "data"}
    assert told(chromium) == []


def test_a_script_that_slipped_through_would_not_run(chromium, tmp_path):
    text = page.build([make_row()], thumbnails=False)
    slipped = "<script>document.title = 'ran'</script><img src=x onerror=\"document.title = 'ran'\">"
    (tmp_path / "out.html").write_text(text.replace("</main>", slipped + "</main>"), encoding="utf-8")
    chromium.open(tmp_path / "out.html", 360, 800)
    assert chromium.evaluate("document.title").startswith("omni: 1 answer")
    assert "Content Security Policy" in str(told(chromium))
