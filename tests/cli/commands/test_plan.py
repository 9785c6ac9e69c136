"""`omni plan`: the table, the JSON, codes, speed; and the same check in `omni ask`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from omnicli.planning import machine
from omnicli.planning.constants import ERROR
from tests.support import schema

HOST = 64 << 30


@pytest.fixture
def free(monkeypatch):
    """Return a function that says how many bytes of host memory are free; there is no graphics card."""

    def say(host):
        monkeypatch.setattr(machine, "host_memory", lambda: (host, host))

    monkeypatch.setattr(machine, "devices", list)
    say(HOST)
    return say


def test_a_plan_that_fits(omni, film, free):
    result = omni("plan", film, "--model", "pocket")
    assert result.code == 0 and result.err == ""
    rows = {line[:21].strip(): line[21:] for line in result.out.splitlines()}
    assert rows["verdict"] == "fits" and rows["largest position"].endswith("trained up to 131,072")
    value = json.loads(omni("plan", film, "--model", "pocket", "--json").out)
    assert schema.problems(value, schema.PLAN, "plan") == []
    assert value["fits"] and value["problems"] == value["changes"] == []
    assert value["free"] == {"host_bytes": HOST, "device_bytes": None}
    answer = json.loads(omni("ask", film, "Who?", "--model", "pocket", "--json", "--max-new-tokens", "1").out)
    for name in ("video", "audio"):
        assert value["tokens"][name] == answer["tokens"][name]


def test_a_plan_that_does_not(omni, film, free):
    result = omni("plan", film, "--model", "qwen2.5-omni-7b", "--dtype", "bf16", "--json")
    assert result.code == 0
    free(14 << 30)
    result = omni("plan", film, "--model", "qwen2.5-omni-7b", "--dtype", "bf16", "--json")
    value = json.loads(result.out)
    assert result.code == 4 and result.err == "" and not value["fits"]
    assert schema.problems(value, schema.PLAN, "plan") == []
    assert [c["change"] for c in value["changes"]] == ["--quantize int8", "--model qwen2.5-omni-3b"]
    assert schema.problems(value["changes"][0], schema.PLAN_CHANGE, "change") == []
    text = omni("plan", film, "--model", "qwen2.5-omni-7b", "--dtype", "bf16").out
    assert "does not fit" in text and "--model qwen2.5-omni-3b" in text


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["nowhere.mp4"], 3),
        (["FILM", "--model", "qwen25-omni-7b"], 5),
        (["FILM", "--preset", "ful"], 6),
        (["FILM", "--set", "avoc.token=1"], 6),
        (["FILM", "--start", "5", "--end", "2"], 2),
        (["FILM", "--device", "cuda:9"], 5),
    ],
)
def test_wrong_names_are_one_line(omni, film, free, argv, code):
    result = omni("plan", *[film if a == "FILM" else a for a in argv])
    assert result.code == code
    result.error_line()


def test_ask_refuses_before_loading_and_fit_answers(omni, film, free, monkeypatch):
    from omnicli.models import loading

    plan = json.loads(omni("plan", film, "--model", "pocket", "--preset", "full", "--fps", "8", "--json").out)
    small = json.loads(omni("plan", film, "--model", "pocket", "--preset", "full", "--fps", "1", "--json").out)
    assert small["peak"]["host_bytes"] < plan["peak"]["host_bytes"]
    free(int((small["peak"]["host_bytes"] + plan["peak"]["host_bytes"]) / 2 / ERROR))
    argv = ("ask", film, "Who?", "--preset", "full", "--model", "pocket", "--fps", "8", "--max-new-tokens", "1")
    with monkeypatch.context() as patch:
        patch.setattr(loading, "load_model", lambda *a: pytest.fail("the model was loaded"))
        result = omni(*argv, "--no-cache")
    assert result.code == 4
    assert "does not fit" in result.error_line() and "; try " in result.error_line()
    result = omni(*argv, "--json", "--fit")
    value = json.loads(result.out)
    assert result.code == 0 and schema.problems(value) == []
    assert value["warnings"][0].startswith("did not fit (") and value["warnings"][0].endswith("(--fit)")


def test_planning_is_quick_and_imports_no_torch(film):
    script = (
        "import sys\n"
        "from omnicli.cli.main import run\n"
        "for preset in ('avoc', 'full', 'avoc-seats', 'omnisift-36'):\n"
        f"    code = run(['plan', {str(film)!r}, '--model', 'qwen3-omni-30b', '--preset', preset, '--json'])\n"
        "    assert code in (0, 4), code\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_no_method_needs_torch_to_be_described():
    script = (
        "import sys\n"
        "from omnicli.config import registry\n"
        "from omnicli.config.config import list_presets, load_config\n"
        "list(registry.methods().values()), [load_config(p.name) for p in list_presets()]\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_bits_and_offloading_are_planned(omni, film, free, monkeypatch):
    model = ("--model", "qwen2.5-omni-7b", "--preset", "avoc")
    plain, small = (
        json.loads(omni("plan", film, *model, "--json", *more).out) for more in ((), ("--quantize", "int4"))
    )
    assert small["model"]["quantize"] == "int4" and plain["model"]["quantize"] == "none"
    assert small["bytes"]["weights"] < 0.6 * plain["bytes"]["weights"]
    assert "the LLM's layers in int4" in omni("plan", film, *model, "--quantize", "int4").out
    result = omni("plan", film, *model, "--offload", "--device", "cpu")
    assert result.code == 5 and "no device to offload from" in result.err
    monkeypatch.setattr(machine, "devices", lambda: [machine.Device(0, "a card", 24 << 30, 24 << 30)])
    away = json.loads(omni("plan", film, *model, "--offload", "--json").out)
    assert away["model"]["offload"] and away["peak"]["device_bytes"] < 24 << 30
    assert "of the encoders in turn with the LLM" in omni("plan", film, *model, "--offload").out


def test_cards_are_told_one_by_one(omni, film, free, monkeypatch):
    one = machine.Device(0, "a card", 48 << 30, 48 << 30)
    monkeypatch.setattr(machine, "devices", lambda: [one, machine.Device(1, "another", 48 << 30, 48 << 30)])
    call = ("plan", film, "--model", "qwen2.5-omni-7b", "--preset", "avoc", "--device", "cuda:0,cuda:1")
    value = json.loads(omni(*call, "--json").out)
    assert schema.problems(value, schema.PLAN) == []
    assert [card["device"] for card in value["cards"]] == ["cuda:0 a card", "cuda:1 another"]
    assert sum(card["layers"] for card in value["cards"]) == 28
    assert sum(card["peak_bytes"] for card in value["cards"]) == value["peak"]["device_bytes"]
    assert "cuda:1 another" in omni(*call).out and " layers, " in omni(*call).out
    result = omni(*call[:-1], "cuda:0,cpu")
    assert result.code == 5 and result.err.count("\n") == 1 and "'cpu' is not one of several cards" in result.err
    set_so = omni(*call[:-2], "--set", "device=cuda:0,cuda:1", "--json")
    assert json.loads(set_so.out)["cards"] == value["cards"]
