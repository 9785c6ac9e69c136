"""The documentation against the code."""

from __future__ import annotations

import re

from tests.conftest import ROOT
from tests.support import schema


def test_json_page_names_every_key_and_no_other():
    answer, plan = _page().split("## `omni plan --json`")
    assert _rows(plan.split("\n## ")[0]) == schema.PLAN.keys()
    for inner in (*schema.PLAN.values(), schema.PLAN_CHANGE):
        assert all(f"`{key}`" in plan for key in (inner if isinstance(inner, dict) else ()))
    named = _rows(answer)
    keys = {k for k in schema.ANSWER if k not in ("media_used", "tokens")}
    keys |= {*schema.BATCH, "media_used", "tokens", *schema.ANSWER["media_used"], *schema.ANSWER["tokens"]}
    assert named == keys
    for inner in ("model", "peak_memory", "flops"):
        for key in schema.ANSWER[inner]:
            assert f"`{key}`" in _page()
    for key in (*schema.EVIDENCE, *schema.WITHOUT_ANSWER, "encoded", "kept", "code", "message"):
        assert f"`{key}`" in _page()


def _rows(text: str) -> set[str]:
    """Return the names in the first cells of a page's tables."""
    return set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`[^|]*) \|", text, re.M))))


def _page() -> str:
    return (ROOT / "docs" / "reference" / "json.md").read_text(encoding="utf-8")


def test_ci_runs_the_readmes_test_command():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^python3 -m venv .*pytest -q$", readme, re.M)
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
