"""The page: rows become sections of one HTML document without scripts, fonts or anything fetched.

The same rows and films give the same bytes. Reads films only through `thumbs`, and only where pictures are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePath
from typing import Any

from omnicli.config.config import precision
from omnicli.errors import MediaError
from omnicli.report import repeat
from omnicli.report.draw import Point, bar, heat_strip, memory, scatter, size
from omnicli.report.rows import Row
from omnicli.report.style import CSS
from omnicli.utils.display import KINDS, percent, span, text
from omnicli.utils.timing import LABELS
from omnicli.version import __version__

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What a browser may do with the page: show it."""

_INDEXED = 3  # so many answers or more get a list at the top
_OPEN = 20  # ... which is open up to so many
_SHOWN_S = 0.005

Images = dict[tuple[str, float], str]


def build(rows: Sequence[Row], *, thumbnails: bool = True, note: Callable[[str], None] = lambda line: None) -> str:
    """Return the report as HTML.

    Parameters
    ----------
    rows : sequence of Row
        As `rows.read` gives them; at least one.
    thumbnails : bool
        Show the film at the evidence, where the film is still there.
    note : callable
        Told, one line each, why a film gave no pictures.
    """
    images, why = _images(rows, note) if thumbnails else ({}, {})
    good = sum(row["status"] == "ok" for row in rows)
    films = len({row["media"] for row in rows})
    title = f"{good} {'answer' if good == 1 else 'answers'} about {films} {'file' if films == 1 else 'files'}"
    rest = ", ".join(
        f"{n} {status}" for status in ("failed", "skipped") if (n := sum(r["status"] == status for r in rows))
    )
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{text(POLICY)}">',
        f"<title>omni: {title}</title><style>{CSS}</style></head><body>",
        f"<header><h1>{title}</h1>{_p(rest, 'bad') if rest else ''}</header><main>",
        *([_index(rows)] if len(rows) >= _INDEXED else []),
        *(_compared(rows, group) for group in groups(rows)),
        *(_article(row, i, images, why) for i, row in enumerate(rows, 1)),
        f'</main><footer><p class="soft">Written by omni {text(__version__)}; nothing in this file is fetched.</p>'
        "</footer></body></html>\n",
    ]
    return "\n".join(parts)


def groups(rows: Sequence[Row]) -> list[list[int]]:
    """Return the places of rows that ask the same question about the same file, where there are several."""
    found: dict[tuple[str, str], list[int]] = {}
    for i, row in enumerate(rows):
        found.setdefault((row["media"], row["question"]), []).append(i)
    return [places for places in found.values() if len(places) > 1]


def _images(rows: Sequence[Row], note: Callable[[str], None]) -> tuple[Images, dict[str, str]]:
    """Return the pictures at all evidence by film and second, and why films gave none. Every film is read once."""
    wanted: dict[tuple[str, float], list[float]] = {}
    why: dict[str, str] = {}
    for row in rows:
        if row["status"] != "ok":
            continue
        times = [_middle(found) for found in row["evidence"] if found["modality"] == "video"]
        if not times:
            continue
        if row["config"]["media"].get("clock") == "nominal":
            why[row["media"]] = f"{row['media']}: times are nominal, not those of the film"
        else:
            wanted.setdefault((row["media"], row["media_used"]["video_present_s"]), []).extend(times)
    images: Images = {}
    for (media, present_s), times in wanted.items():
        from omnicli.report import thumbs

        try:
            images |= {(media, time_s): uri for time_s, uri in thumbs.cut(media, present_s, times).items()}
        except MediaError as error:
            why[media] = str(error)
    for line in why.values():
        note(f"no thumbnails: {line}")
    return images, why


def _middle(found: dict[str, Any]) -> float:
    return (found["start_s"] + found["end_s"]) / 2


def _p(content: str, kind: str = "soft") -> str:
    return f'<p class="{kind}">{text(content)}</p>'


def _index(rows: Sequence[Row]) -> str:
    items = "".join(
        f'<li><a href="#answer-{i}">{text(row["question"])}</a> '
        f'<span class="soft">{text(_name(row))}, {text(row["preset"])}</span> {text(_outcome(row))}</li>'
        for i, row in enumerate(rows, 1)
    )
    return f"<section><details open><summary>All answers</summary><ol>{items}</ol></details></section>"


def _name(row: Row) -> str:
    return PurePath(row["media"]).name or row["media"]


def _outcome(row: Row) -> str:
    return row["answer"] if row["status"] == "ok" else f"{row['status']}: {row['error']['message']}"


# --- several runs ---------------------------------------------------------------------------------------------------


def _compared(rows: Sequence[Row], places: Sequence[int]) -> str:
    """Return the table of runs that ask the same, and their scatter plot."""
    same = [rows[i] for i in places]
    names = _labels(same)
    heads = ("run", "preset", "answer", "tokens kept", "first token", "prefill FLOPs", "peak memory")
    body, points = [], []
    for number, (i, row, name) in enumerate(zip(places, same, names, strict=True), 1):
        cells = [f'<a href="#answer-{i + 1}">{number}</a>', f"<span>{text(name)}</span>"]
        if row["status"] == "ok":
            kept, first_s = row["tokens"]["retention"], row["time_to_first_token_s"]
            points.append(Point(number, name, kept, first_s))
            cells += [text(row["answer"]), percent(kept), f"{first_s:.2f} s", size(row["flops"]["prefill"])]
            cells.append(text(_peak(row)))
            cells[2:] = [f"<span>{cell}</span>" for cell in cells[2:]]
        else:
            cells.append(f'<span class="bad">{text(_outcome(row))}</span>')
        told = [f'<td data-label="{head}">{cell}</td>' for head, cell in zip(heads, cells, strict=False)]
        body.append(f"<tr>{''.join(told)}{'<td></td>' * (len(heads) - len(cells))}</tr>")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    drawing = scatter(points) if len(points) > 1 else ""
    first = same[0]
    return (
        f"<section><h2>Compared: <bdi>{text(first['question'])}</bdi></h2>"
        f'<p class="soft"><bdi>{text(_name(first))}</bdi></p><table class="compare"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>{drawing}</section>"
    )


def _labels(rows: Sequence[Row]) -> list[str]:
    """Return the presets' names, with the settings in which runs of one preset differ."""
    flat = [dict(_flat(row["config"])) for row in rows]
    out = []
    for row, mine in zip(rows, flat, strict=True):
        others = [f for r, f in zip(rows, flat, strict=True) if r["preset"] == row["preset"]]
        told = [f"{k}={v}" for k, v in mine.items() if any(o.get(k) != v for o in others) and k != "preset"]
        out.append(row["preset"] + (f" ({', '.join(told)})" if told else ""))
    return out


def _flat(value: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from _flat(inner, f"{path}{key}.")
        else:
            yield f"{path}{key}", inner


def _peak(row: Row) -> str:
    peak = row["peak_memory"]
    if peak["device_bytes"] is not None:
        return f"{memory(peak['device_bytes'])} on the device"
    return memory(peak["host_bytes"])


# --- one answer -----------------------------------------------------------------------------------------------------


def _article(row: Row, number: int, images: Images, why: dict[str, str]) -> str:
    warnings = "".join(f"<li>{text(line)}</li>" for line in row["warnings"])
    head = [
        f'<article id="answer-{number}" aria-labelledby="question-{number}">',
        f'<h2 class="question" id="question-{number}"><bdi>{text(row["question"])}</bdi></h2>',
    ]
    tail = [f"<h3>Warnings</h3><ul>{warnings}</ul>" if warnings else "", _settings(row), "</article>"]
    if row["status"] != "ok":
        kind = "bad" if row["status"] == "failed" else "soft"
        code = f" (exit code {row['error']['code']})" if row["status"] == "failed" else ""
        return "".join([*head, f"<p><bdi>{text(_name(row))}</bdi></p>", _p(_outcome(row) + code, kind), *tail])
    timeline = row["tokens"].get("timeline")
    parts = [
        f'<p class="answer"><bdi>{text(row["answer"])}</bdi></p>',
        *_asides(row),
        _facts(row),
        f"<h3>Tokens kept over time</h3>{heat_strip(timeline, row['evidence'])}" if timeline else "",
        _evidence(row, images, why),
        _stages(row),
        _tokens(row),
    ]
    return "".join([*head, *parts, *tail])


def _asides(row: Row) -> list[str]:
    """Return what `omni demo` and multiple choice add to an answer."""
    out = []
    if "expected" in row:
        right = "right" if row.get("correct") is True else "wrong"
        out.append(_p(f"{right}; expected: {row['expected']}", "soft" if right == "right" else "bad"))
    if row.get("choices"):
        out.append(_p(f"choice: {row.get('choice') or 'none read from the answer'}"))
    return out


def _facts(row: Row) -> str:
    used, model, flops = row["media_used"], row["model"], row["flops"]
    lines = [
        f'<bdi title="{text(row["media"])}">{text(_name(row))}</bdi>: pictures {used["video_s"]:.1f} of '
        f"{used['video_present_s']:.1f} s used ({used['frames']} frames, {used['width']}\u00d7{used['height']}), sound "
        f"{used['audio_s']:.1f} of {used['audio_present_s']:.1f} s",
        text(f"{model['name']} ({model['device']}, {precision(model)}), preset {row['preset']}")
        + (", film read from the cache" if row["cached"] else ""),
        f"First token after {row['time_to_first_token_s']:.2f} s, all in {row['wall_s']:.2f} s; peak memory "
        + text(_peak(row)),
    ]
    if flops["prefill"] is not None:
        of = f" of {size(flops['full_prefill'])} without compression" if flops["full_prefill"] else ""
        lines.append(f"Prefill {size(flops['prefill'], 'FLOPs')}{of}")
    return "".join(f'<p class="soft">{line}</p>' for line in lines)


def _evidence(row: Row, images: Images, why: dict[str, str]) -> str:
    if not row["evidence"]:
        return ""
    cards = []
    for number, found in enumerate(row["evidence"], 1):
        when = span(found["start_s"], found["end_s"])
        kind = KINDS.get(found["modality"], found["modality"])
        uri = images.get((row["media"], _middle(found))) if found["modality"] == "video" else None
        image = ""
        if uri:
            image = f'<img src="{uri}" alt="The film in the middle of evidence {number}, {when}" loading="lazy">'
        elif found["modality"] == "video" and row["media"] in why:
            image = '<span class="none">no picture</span>'
        share = "" if found["score"] is None else f", {percent(found['score'])} of the attention"
        cards.append(f"<li>{image}<b>{number}</b> {when}<br>{text(kind)}{share}</li>")
    reason = _p(f"No thumbnails: {why[row['media']]}") if row["media"] in why else ""
    return f'<h3>Evidence</h3><ol class="evidence">{"".join(cards)}</ol>{reason}'


def _stages(row: Row) -> str:
    wall = max(row["wall_s"], 1e-9)
    body = "".join(
        f'<tr><th scope="row">{text(LABELS.get(name, name).strip())}</th><td>{bar(seconds / wall)}</td>'
        f'<td class="n">{seconds:.2f} s</td></tr>'
        for name, seconds in row["stages"].items()
        if seconds >= _SHOWN_S
    )
    busy = ", ".join(f"{LABELS.get(n, n).strip()} {s:.2f} s" for n, s in row["busy"].items() if s >= _SHOWN_S)
    beside = _p(f"Beside it, in other threads: {busy}") if busy else ""
    head = '<tr><th scope="col">stage</th><th scope="col">share of all</th><th scope="col" class="n">seconds</th></tr>'
    return (
        f'<h3>Where the time went</h3><table class="stages"><thead>{head}</thead><tbody>{body}</tbody></table>{beside}'
    )


def _tokens(row: Row) -> str:
    tokens = row["tokens"]
    asked, layers = tokens["retention_nominal"] or {}, tokens["retention_layers"]
    kinds = [kind for kind in KINDS if tokens[kind]["encoded"]]
    counts = [tokens[kind] for kind in kinds]
    told = {
        "out of the encoder": [f"{count['encoded']:,}" for count in counts],
        "into the LLM": [f"{count['kept']:,}" for count in counts],
        "share that is": [percent(count["kept"] / count["encoded"]) for count in counts],
        "share asked for": [percent(asked.get(kind)) for kind in kinds],
        "share read by its layers, on average": [percent(layers.get(kind)) for kind in kinds],
    }
    heads = "".join(f'<th scope="col" class="n">{KINDS[kind]}</th>' for kind in kinds)
    body = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td class=n>{cell}</td>" for cell in cells)}</tr>'
        for name, cells in told.items()
    )
    lines = [
        f"Prompt around the media {tokens['text']:,}, of it read before {tokens['reused']:,}; answer "
        f"{tokens['generated']:,}."
    ]
    if len(tokens["by_layer"]) > 1:
        steps = ", ".join(f"{level[1]:,} from layer {level[0]}" for level in tokens["by_layer"] if len(level) == 2)
        lines.append(f"Media tokens: {steps}.")
    return (
        f'<h3>Tokens</h3><table class="tokens"><thead><tr><th scope="col">tokens</th>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table>{''.join(_p(line) for line in lines)}"
    )


def _settings(row: Row) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    return (
        "<details><summary>Ask this again</summary>"
        f"<pre>{text(repeat.command(row))}</pre>{_p('All settings; saved as a file, a preset:')}"
        f"<pre>{text(repeat.as_yaml(row))}</pre>{_p(versions)}</details>"
    )
