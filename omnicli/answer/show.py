"""An answer as people see it: lines for a terminal, a piece of HTML for a notebook. Takes the fields of an `Answer`.

The HTML holds no script, fetches nothing, and takes its colours from the page around it, so that it is readable in
light and dark. Everything that stands in it goes through `text`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omnicli.utils.display import KINDS, percent, plain, span, text
from omnicli.utils.timing import LABELS

_SHOWN_S = 0.005
_SOFT = "opacity:.7;font-size:.9em"
_CELL = "text-align:left;font-weight:normal;padding:.05em .8em .05em 0;border:0;background:none"


def lines(answer: Mapping[str, Any]) -> str:
    """Return a few lines: the answer, what was asked, tokens kept, seconds, evidence and warnings."""
    about = [("asked", f"{_line(answer['question'])} ({_source(answer)})"), ("kept", _tokens(answer["tokens"]))]
    about += [("time", _seconds(answer)), ("evidence", "; ".join(_evidence(e) for e in answer["evidence"]))]
    about += [("warning", _line(warning)) for warning in answer["warnings"]]
    head = plain(answer["answer"]).replace("\n", "\n  ") or "(no answer)"
    return "\n".join([head, *(f"  {name:<9} {value}" for name, value in about if value)])


def html(answer: Mapping[str, Any]) -> str:
    """Return the answer with its evidence, the time of each stage as a bar, and its warnings."""
    kept = text(_tokens(answer["tokens"]))
    out = [
        f'<div style="{_SOFT}">{text(answer["question"])}</div>',
        f'<div style="font-size:1.25em;margin:.2em 0;white-space:pre-wrap">{text(answer["answer"])}</div>',
        f'<div style="{_SOFT}">{text(_source(answer))}{f"<br>kept {kept}" if kept else ""}</div>',
    ]
    if answer["evidence"]:
        items = "".join(f"<li>{text(_evidence(found))}</li>" for found in answer["evidence"])
        out.append(f'<div style="margin:.6em 0">Evidence<ol style="margin:0;padding-left:1.6em">{items}</ol></div>')
    out.append(f'<div style="margin-top:.6em">{text(_seconds(answer))}</div>{_bars(answer["stages"])}')
    if answer["warnings"]:
        items = "".join(f"<li>{text(warning)}</li>" for warning in answer["warnings"])
        out.append(f'<div style="margin:.6em 0">Warnings<ul style="margin:0;padding-left:1.6em">{items}</ul></div>')
    return f'<div style="max-width:50em;line-height:1.4;overflow-wrap:anywhere">{"".join(out)}</div>'


def _bars(stages: Mapping[str, float]) -> str:
    """Return a row per stage that took time: its name, a bar as long as its share of the longest, its seconds."""
    shown = {name: s for name, s in stages.items() if s >= _SHOWN_S}
    longest = max(shown.values(), default=1.0)
    rows = (
        f'<tr style="background:none"><th scope="row" style="{_CELL}">{text(LABELS.get(name, name).strip())}</th>'
        f'<td style="{_CELL};width:16em"><div style="background:#5b8dd9;height:.6em;border-radius:.15em;'
        f'width:{100 * seconds / longest:.1f}%"></div></td>'
        f'<td style="{_CELL};text-align:right">{seconds:.2f} s</td></tr>'
        for name, seconds in shown.items()
    )
    return f'<table style="border-collapse:collapse;border:0;font-size:.9em;margin:0">{"".join(rows)}</table>'


def _line(value: object) -> str:
    return " ".join(plain(value).split())


def _source(answer: Mapping[str, Any]) -> str:
    return _line(f"{Path(answer['media']).name}, {answer['model'].get('name')}, preset {answer['preset']}")


def _tokens(tokens: Mapping[str, Any]) -> str:
    """Return how many media tokens were kept, in all and by modality."""
    counts = {word: tokens[name] for name, word in KINDS.items() if tokens.get(name)}
    kept, encoded = (sum(count[key] for count in counts.values()) for key in ("kept", "encoded"))
    each = ", ".join(f"{word} {c['kept']:,} of {c['encoded']:,}" for word, c in counts.items() if c["encoded"])
    return f"{kept:,} of {encoded:,} tokens, {percent(kept / encoded)} ({each})" if encoded else ""


def _seconds(answer: Mapping[str, Any]) -> str:
    return f"{answer['wall_s']:.2f} s, first token after {answer['time_to_first_token_s']:.2f} s"


def _evidence(found: Mapping[str, Any]) -> str:
    when = span(found["start_s"], found["end_s"])
    return f"{when} {KINDS[found['modality']]}, {percent(found['score'])} of the attention"
