"""`omni bench` as a user calls it: tables, JSON, CSV, Markdown, pictures, mistakes."""

from __future__ import annotations

import csv
import io
import json
import sys
from typing import Any

import pytest

from omnicli.bench import measure as room
from omnicli.bench.table import number, percent, times
from omnicli.cli.commands import bench as command
from omnicli.llm import prefix_cache as reader
from omnicli.models.loading import find_facts

NAMES = ["full", "seats-10", "random-10"]
SPREAD = {"median", "q1", "q3", "min", "max", "values"}
TIMES = {"decode", "encode", "compress", "select_in_llm", "prefill", "generate", "time_to_first_token", "wall"}


@pytest.fixture
def film(film_folder):
    """Return a film of half a second: what is shown does not depend on its length."""
    return film_folder / "short.mp4"


@pytest.fixture
def bench(omni, tiny_model, film):
    """Return a function that benches the tiny model on a short film with few frames."""

    def call(*argv, media=film, model=tiny_model):
        chosen = () if model is None else ("--model", model, "--device", "cpu")
        short = ("--repeat", 2, "--max-new-tokens", 4, "--max-frames", 4, "--fps", 8)
        return omni("bench", *(() if media is None else (media,)), *chosen, *short, *argv)

    return call


PRESETS = ("-p", "seats-10", "-p", "random-10")
OUTCOMES: dict[bool, Any] = {}


@pytest.fixture(params=[False])
def measured_once(request, monkeypatch):
    """Measure `PRESETS` once for all tests that only show it otherwise; ``indirect`` True: seats runs out of memory."""
    real, failing = room.measure, request.param
    if failing:
        _fail(monkeypatch, "seats", MemoryError("no room"))

    def measure(*args, **how):
        if failing not in OUTCOMES:
            OUTCOMES[failing] = real(*args, **how)
        return OUTCOMES[failing]

    monkeypatch.setattr(room, "measure", measure)


out_of_memory = pytest.mark.parametrize("measured_once", [True], indirect=True)


def test_tables(bench, film, measured_once):
    result = bench(*PRESETS)
    assert result.code == 0, result.err
    first, second, facts = result.out.strip().split("\n\n")
    for part in (first, second):
        assert [line.split()[0] for line in part.splitlines()] == ["preset", *NAMES]
        assert max(len(line) for line in part.splitlines()) <= 120
    assert "100.0 %" in first.splitlines()[1]
    assert "1x" in second.splitlines()[1]
    assert str(film) in facts and "medians of 2 rounds" in facts and "4 tokens written by each" in facts
    assert "\x1b" not in result.out
    assert result.err == ""


def test_json(bench, film, tiny_model, measured_once):
    result = bench(*PRESETS, "--json", "-q", "What is heard?")
    assert result.code == 0, result.err
    value = json.loads(result.out, parse_constant=pytest.fail)
    assert list(value) == [
        "schema",
        "kind",
        "media",
        "question",
        "expected",
        "model",
        "machine",
        "settings",
        "rows",
        "notes",
        "versions",
    ]
    assert (value["schema"], value["kind"], value["question"], value["expected"]) == (
        1,
        "bench",
        "What is heard?",
        None,
    )
    assert value["media"]["name"] == str(film)
    assert value["media"]["used"]["frames"] == 4
    assert value["model"]["name"] == str(tiny_model)
    assert value["settings"]["repeat"] == 2 and value["settings"]["max_new_tokens"] == 4
    assert value["settings"]["media"]["max_frames"] == 4
    assert [r["preset"] for r in value["rows"]] == NAMES
    for row in value["rows"]:
        _check(row)
    reference, seats, _ = value["rows"]
    assert reference["agreement"] == 1 and reference["factor"]["prefill"] == 1
    assert reference["seconds"]["select_in_llm"]["median"] == 0 < seats["seconds"]["select_in_llm"]["median"]
    assert 0 < seats["tokens"]["video"]["kept"] < seats["tokens"]["video"]["encoded"]
    assert seats["flops"]["factor"] > 1


def _check(row):
    assert list(row) == [
        "preset",
        "method",
        "error",
        "captured",
        "tokens",
        "retention",
        "flops",
        "peak_memory",
        "seconds",
        "decode_tokens_per_s",
        "factor",
        "stages",
        "stage_gap",
        "agreement",
        "answer",
        "answer_ids",
    ]
    assert row["error"] is None
    assert set(row["seconds"]) == TIMES
    for found in (*row["seconds"].values(), row["decode_tokens_per_s"]):
        assert set(found) == SPREAD and len(found["values"]) == 2
        assert found["min"] <= found["q1"] <= found["median"] <= found["q3"] <= found["max"]
    assert row["tokens"]["generated"] == 4
    assert set(row["peak_memory"]) == {"host_bytes", "device_bytes", "encode_host_bytes", "encode_device_bytes"}
    assert row["peak_memory"]["host_bytes"] > 0
    assert row["stages"] and abs(row["stage_gap"]) < 1


def test_csv_parses_back(bench, measured_once):
    result = bench(*PRESETS, "--csv")
    assert result.code == 0, result.err
    rows = list(csv.DictReader(io.StringIO(result.out)))
    assert [r["preset"] for r in rows] == NAMES
    for row in rows:
        assert None not in row and row["error"] == ""
        assert 0 < float(row["prefill_s_q1"]) <= float(row["prefill_s"]) <= float(row["prefill_s_q3"])
        assert float(row["decode_tokens_per_s"]) > 0
        assert int(row["video_kept"]) <= int(row["video_encoded"])
        assert {"retention_door", "retention_layers", "agreement", "host_bytes", "prefill_factor"} <= set(row)


def test_markdown_parses_back(bench, measured_once):
    result = bench(*PRESETS, "--markdown")
    assert result.code == 0, result.err
    lines = [line for line in result.out.splitlines() if line.startswith("|")]
    cells = [[c.strip() for c in line.strip("|").split(" | ")] for line in lines]
    assert [row[0] for row in cells] == ["preset", "---", *NAMES]
    assert len({len(row) for row in cells}) == 1
    shown = dict(zip(cells[0], cells[2], strict=True))
    assert (shown["kept"], shown["prefill x"], shown["device GiB"]) == ("100.0 %", "1x", "-")


def papers(d, lengths):
    """The formula that the papers' TFLOPs come from: a layer reads S positions, the head all that are left."""
    width, kv = d.heads * d.head_dim, d.kv_heads * d.head_dim
    layer = [
        2 * s * d.hidden_size * width
        + 2 * s * d.hidden_size * kv
        + 2 * s * s * width
        + 3 * s * d.hidden_size * d.intermediate_size
        for s in lengths
    ]
    return sum(layer) + lengths[-1] * d.hidden_size * d.vocab_size


def test_the_papers_count_is_their_formula(bench, measured_once, tiny_model):
    true, paper = (json.loads(bench(*PRESETS, "--json", *how).out) for how in ((), ("--count", "paper")))
    assert (true["settings"]["count"], paper["settings"]["count"]) == ("true", "paper")
    facts = find_facts(str(tiny_model))[0]
    for mine, theirs in zip(true["rows"], paper["rows"], strict=True):
        assert (mine["flops"]["count"], theirs["flops"]["count"]) == ("true", "paper")
        assert list(mine["flops"]) == list(theirs["flops"]) == ["prefill", "full_prefill", "factor", "count"]
        tokens = theirs["tokens"]
        ends = [first for first, _ in tokens["by_layer"][1:]] + [facts.llm.depth]
        lengths = [
            tokens["text"] + n
            for (first, n), end in zip(tokens["by_layer"], ends, strict=True)
            for _ in range(first, end)
        ]
        whole = tokens["text"] + tokens["video"]["encoded"] + tokens["audio"]["encoded"]
        assert theirs["flops"]["prefill"] == papers(facts.llm, lengths)
        assert theirs["flops"]["full_prefill"] == papers(facts.llm, [whole] * facts.llm.depth)
        ratio = papers(facts.llm, [whole] * facts.llm.depth) / papers(facts.llm, lengths)
        assert theirs["flops"]["factor"] == pytest.approx(ratio, rel=1e-5)
        assert {k: v for k, v in mine.items() if k != "flops"} == {k: v for k, v in theirs.items() if k != "flops"}
        assert mine["flops"]["prefill"] != theirs["flops"]["prefill"]
    assert "one per multiply-add" in bench(*PRESETS, "--count", "paper").out
    assert "one per multiply-add" not in bench(*PRESETS).out
    rows = csv.DictReader(io.StringIO(bench(*PRESETS, "--csv", "--count", "paper").out))
    assert [r["flops_count"] for r in rows] == ["paper"] * 3


HEADS = {
    "avoc-3": ["preset", "rho", "compression s", "prefilling s", "TTFT s"],
    "seats-4": ["preset", "R", "TFLOPs", "GPU peak GiB", "pre-LLM s", "inner-LLM s", "prefill s", "TTFT s"],
    "omarc-6": ["preset", "time s", "memory GiB"],
}


@pytest.mark.parametrize("view", list(HEADS))
def test_a_view_has_the_papers_columns(bench, measured_once, view):
    whole = {r["preset"]: r for r in json.loads(bench(*PRESETS, "--json").out)["rows"]}
    result = bench(*PRESETS, "--view", view, "--markdown")
    cells = [[c.strip() for c in line.strip("|").split(" | ")] for line in result.out.splitlines() if line[0:1] == "|"]
    assert cells[0] == HEADS[view] and [row[0] for row in cells[2:]] == NAMES
    assert "columns of " in result.out and ("left out" in result.out) == (view != "avoc-3")
    for row in cells[2:]:
        shown, measured = dict(zip(cells[0], row, strict=True)), whole[row[0]]
        seconds = {name: number(found["median"]) for name, found in measured["seconds"].items()}
        if view == "avoc-3":
            assert shown["rho"] == percent(measured["retention"]["door"])
            assert (shown["prefilling s"], shown["TTFT s"]) == (seconds["prefill"], seconds["time_to_first_token"])
            assert shown["compression s"] == seconds["compress"]
        elif view == "seats-4":
            assert shown["R"] == percent(measured["retention"]["layers"]) and shown["GPU peak GiB"] == "-"
            assert shown["prefill s"] == f"{seconds['prefill']} ({times(measured['factor']['prefill'])})"
            assert (shown["inner-LLM s"] == "-") == (row[0] != "seats-10")
            flops = measured["flops"]
            assert shown["TFLOPs"] == f"{number(flops['prefill'], 1e12)} ({times(flops['factor'])})"
        else:
            assert (shown["time s"], shown["memory GiB"]) == (seconds["wall"], "-")
    text = bench(*PRESETS, "--view", view).out.split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in text] == ["preset", *NAMES]


def test_full_is_always_there_and_once(bench):
    value = json.loads(bench("-p", "full", "-p", "random-10", "-p", "full", "--json").out)
    assert [r["preset"] for r in value["rows"]] == ["full", "random-10"]
    assert [r["preset"] for r in json.loads(bench("--json").out)["rows"]] == ["full", "auto"]


def test_one_sampling_for_all(bench):
    result = bench(
        "-p", "omac-30", "-p", "seats-10", "--set", "media.start=0.25", "--set", "params.mode=official", "--json"
    )
    assert result.code == 6  # omac has no such setting
    result = bench("-p", "omac-30", "--set", "media.start=0.25", "--set", "params.retention_video=0.5", "--json")
    value = json.loads(result.out)
    full, omac = value["rows"]
    assert full["tokens"]["video"]["encoded"] == omac["tokens"]["video"]["encoded"]
    assert value["settings"]["media"]["start"] == 0.25
    assert omac["tokens"]["video"]["kept"] == pytest.approx(omac["tokens"]["video"]["encoded"] / 2, abs=1)
    assert full["retention"]["door"] == 1
    assert "omni: omac-30 has max_pixels 50176 of its own" in result.err
    assert any("capturing saliency" in note for note in value["notes"])


@out_of_memory
def test_out_of_memory_stands_in_its_row(bench, measured_once):
    result = bench(*PRESETS)
    assert result.code == 0, result.err
    first = result.out.split("\n\n")[0].splitlines()
    assert first[0].endswith("error")
    assert first[2].startswith("seats-10") and first[2].endswith("out of memory on the host (no room)")
    assert "%" in first[3]
    assert result.err == "omni: seats-10: out of memory on the host (no room)\n"
    (row,) = [r for r in csv.DictReader(io.StringIO(bench(*PRESETS, "--csv").out)) if r["preset"] == "seats-10"]
    assert row["error"].startswith("out of memory") and row["prefill_s"] == ""
    marked = bench(*PRESETS, "--markdown").out
    assert "| out of memory on the host (no room) |" in marked


def _fail(monkeypatch, name, error):
    real = reader.prefill

    def prefill(*args, pruner, **kwargs):
        if pruner.name == name:
            raise error
        return real(*args, pruner=pruner, **kwargs)

    monkeypatch.setattr(reader, "prefill", prefill)


def test_the_exit_code_when_nothing_asked_for_could_be_measured(bench, monkeypatch):
    result = bench("-p", "fastv-25")  # half of the tiny model's layers read everything
    assert result.code == 6
    assert "first 2 of 4 layers" in result.err and "fastv-25" in result.out
    _fail(monkeypatch, "seats", MemoryError())
    assert bench("-p", "seats-10", "--json").code == 4


@out_of_memory
def test_plot_is_a_png(bench, tmp_path, measured_once):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "out.png"
    result = bench(*PRESETS, "--plot", picture)
    assert result.code == 0, result.err
    from PIL import Image

    with Image.open(picture) as image:
        assert image.format == "PNG" and min(image.size) > 300
        assert len(set(image.convert("RGB").resize((200, 60)).getdata())) > 20


def test_plot_without_matplotlib_names_the_extra(bench, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = bench(*PRESETS, "--plot", tmp_path / "out.png")
    assert result.code == 2
    assert "omnicli[plots]" in result.error_line()


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (("-p", "seats-1", "-p", "avok"), 6, "seats-10"),
        (("--json", "--csv"), 2, "only one"),
        (("--stages", "-p", "avoc"), 2, "--stages"),
        (("--stages", "--count", "paper"), 2, "--stages"),
        (("--view", "seats-5"), 2, "avoc-3, seats-4, omarc-6"),
        (("--view", "seats-4", "--json"), 2, "hold everything"),
        (("--count", "mine"), 2, "paper"),
        (("--duration", "60"), 2, "without MEDIA"),
        (("--layers", "2"), 2, "--dummy-weights"),
        (("--dummy-weights", "qwen2.5-omni-7b"), 2, "--model and --dummy-weights"),
        (("--plot", "out.gif"), 2, ".png"),
        (("--plot", "nowhere/out.png"), 2, "does not exist"),
        (("--set", "media.fsp=1"), 6, "fps"),
        (("--repeat", "0"), 2, "repeat"),
        (("--warmup", "0"), 2, "warmup"),
    ],
    ids=lambda v: " ".join(map(str, v)) if isinstance(v, tuple) else "",
)
def test_mistakes(bench, argv, code, words):
    result = bench(*argv)
    assert result.code == code
    assert words in result.error_line()


def test_all_wrong_presets_are_named_at_once(bench):
    line = bench("-p", "seats-1", "-p", "avok").error_line()
    assert "'seats-1'" in line and "'avok'" in line


def test_files_and_models_that_are_not_there(bench, film_folder):
    assert bench(media=film_folder / "nothing.mp4").code == 3
    assert bench(media=film_folder / "text.mp4").code == 3
    result = bench("--dummy-weights", "qwen9-omni", model=None)
    assert result.code == 5 and "no dummy weights called 'qwen9-omni'" in result.error_line()


SMALL = ("--dummy-weights", "qwen2.5-omni-3b", "--layers", 2, "--scale", 0.01, "--device", "cpu")


@pytest.mark.slow
def test_a_made_film_and_random_weights(bench):
    result = bench(
        *SMALL, "--fps", 1, "--duration", 12, "-p", "random-10", "--repeat", 1, "--json", media=None, model=None
    )
    assert result.code == 0, result.err
    value = json.loads(result.out)
    assert value["model"]["name"] == "dummy:qwen2.5-omni-3b,layers=2,scale=0.01"
    assert value["model"]["revision"] == "random"
    assert value["media"]["generated"] and value["media"]["duration_s"] == 12
    assert value["media"]["used"]["audio_s"] == pytest.approx(12, abs=0.2)
    assert value["question"].startswith("What") and value["expected"].isdigit()
    assert "writing a film of 12 s" in result.err


def test_a_made_film_is_long_enough_for_its_question(bench):
    short = bench(*SMALL, "--duration", 3, media=None, model=None)
    assert short.code == 2 and "at least 12 seconds" in short.err


def test_model_names():
    assert command.model_name(None, "qwen2.5-omni-7b", None, None) == "dummy:qwen2.5-omni-7b"
    assert command.model_name(None, "x", 4, 0.25) == "dummy:x,layers=4,scale=0.25"
    assert command.model_name("pocket", None, None, None) == "pocket"


@pytest.mark.parametrize("media", ["film.mp4", "silent.mp4", "sound.wav"])
def test_stages(bench, film_folder, media):
    value = json.loads(bench("--stages", "--json", "--fps", 1, media=film_folder / media).out)
    rows = {r["stage"]: r for r in value["rows"]}
    pictures = {"decode_video", "encode_video"} if media != "sound.wav" else set()
    sound = {"decode_audio", "measure_mel", "encode_audio"} if media != "silent.mp4" else set()
    assert set(rows) == {"probe"} | pictures | sound
    assert value["kind"] == "bench_stages"
    for name, row in rows.items():
        assert row["seconds"]["median"] > 0 and len(row["seconds"]["values"]) == 2
        assert row["x_real_time"] == pytest.approx(row["film_s"] / row["seconds"]["median"], rel=0.01)
        assert row["film_s"] == pytest.approx(6, abs=0.3)
        assert row["frames"] == (4 if name in pictures else None)
        assert row["cpu_s_per_hour"] == pytest.approx(600 * row["cpu_s"]["median"], rel=0.1)
    if pictures:
        assert rows["decode_video"]["decoded"] >= 4


def test_stages_as_tables(bench):
    text = bench("--stages", "--repeat", 1)
    assert text.code == 0 and "CPU s per hour" in text.out
    table = list(csv.DictReader(io.StringIO(bench("--stages", "--csv", "--repeat", 1).out)))
    assert {"decode_video", "encode_audio"} < {r["stage"] for r in table}
