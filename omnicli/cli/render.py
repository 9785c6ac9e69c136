"""What a run looks like: the answer as it is written, progress, the stage table. Knows no command and no model.

Results go to stdout, everything else to stderr. Progress is drawn only on a terminal; rich is imported only then.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from omnicli.utils.display import KINDS, clock_time, plain
from omnicli.utils.timing import LABELS

if TYPE_CHECKING:
    from omnicli.answer.answer import Answer

PER_QUESTION = frozenset({"compress", "prefill", "select_in_llm", "generate"})
"""Stages that every question goes through by itself; their progress is counted in tokens, that of others in seconds."""

_SHOWN_S = 0.005


def print_json(value: Any, *, indent: int | None = None, out: TextIO | None = None) -> None:
    """Print one JSON value on ``out`` (default: stdout), in ASCII where the terminal's encoding cannot show it."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    out = out or sys.stdout
    try:
        text.encode(out.encoding or "utf-8")
    except UnicodeEncodeError:  # also lone surrogates, from file names that are not UTF-8
        text = json.dumps(value, indent=indent)
    print(text, file=out, flush=True)


def write_text(text: str, stream: TextIO | None = None) -> None:
    """Write answer text; on a terminal control characters become U+FFFD, since a film may make a model say anything."""
    out = sys.stdout if stream is None else stream
    if out.isatty():
        text = plain(text)
    encoding = out.encoding or "utf-8"
    out.write(text.encode(encoding, "backslashreplace").decode(encoding))
    out.flush()


def on_terminal() -> bool:
    """Tell whether bars can be drawn on stderr."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def note(text: str) -> None:
    """Write one line to stderr."""
    print(f"omni: {' '.join(text.split())}", file=sys.stderr, flush=True)


class AnswerStream:
    """Writes answers to stdout piece by piece, one after the other, each ending in a newline.

    With several questions, each one is named on stderr before its answer; stdout holds the answers alone. White space
    around an answer is not written: stdout holds what `Answer.answer` holds.
    """

    def __init__(self, questions: Sequence[str], progress: ProgressDisplay | None = None) -> None:
        self.questions = questions
        self.progress = progress
        self._current = -1
        self._open = False
        self._begun = False
        self._held = ""
        if progress is not None:
            progress.before_drawing = self.close

    def __call__(self, index: int, piece: str) -> None:
        """Write one piece of the answer to question ``index``."""
        if self.progress is not None:
            self.progress.pause()
        if index != self._current:
            self.close()
            self._current, self._held, self._begun = index, "", False
            if len(self.questions) > 1:
                print(f"[{index + 1}/{len(self.questions)}] {self.questions[index]}", file=sys.stderr, flush=True)
        self._open = True
        text = self._held + piece
        if not self._begun:
            text = text.lstrip()
        shown = text.rstrip()
        self._held, self._begun = text[len(shown) :], self._begun or bool(shown)
        if shown:
            write_text(shown)

    def close(self) -> None:
        """End the line of the answer being written, if there is one."""
        if self._open:
            write_text("\n")
            self._open = False

    def finish(self, answers: Sequence[Answer]) -> None:
        """Write what was never streamed (an empty answer, say), so that every question has its line."""
        self.close()
        for index in range(self._current + 1, len(answers)):
            self(index, answers[index].answer)
            self.close()


def evidence_lines(answers: Sequence[Answer]) -> str:
    """Return a line for each stretch that an answer rests on, strongest first; with several answers, their numbers."""
    out = []
    for number, one in enumerate(answers, start=1):
        which = f"[{number}] " if len(answers) > 1 else ""
        for found in one.evidence:
            what = KINDS[found["modality"]]
            span = f"{clock_time(found['start_s'])} - {clock_time(found['end_s'])}"
            out.append(f"{which}{span}  {what}  {100 * found['score']:.0f} % of the attention\n")
        if not one.evidence:
            out.append(f"{which}no stretch of the film stands out\n")
    return "".join(out)


class ProgressDisplay:
    """Bars on stderr for the stages of a run, with rate and time left; nothing at all where stderr is no terminal.

    Use as a context manager and call it with ``(stage, done, total)``: media seconds for decoding and encoding, tokens
    for the stages of the LLM. May be called from several threads.
    """

    def __init__(self, enabled: bool | None = None) -> None:
        self.enabled = on_terminal() if enabled is None else enabled
        self.before_drawing: Callable[[], None] = lambda: None
        """Called before bars appear: the line that is being written must be ended, or they would wipe it out."""
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(self, *exc: object) -> None:
        self.pause()

    def __call__(self, stage: str, done: float, total: float | None = None) -> None:
        """Show that ``done`` of ``total`` (None: unknown) is through ``stage``."""
        if not self.enabled or stage == "generate":  # the answer itself shows how far generation is
            return
        with self._lock:
            if self._bars is None:
                self.before_drawing()
                self._bars = _make_bars()
                self._bars.start()
            if stage not in self._tasks:
                unit = "tokens" if stage in PER_QUESTION else "s"
                self._tasks[stage] = self._bars.add_task(LABELS.get(stage, stage), total=total, unit=unit)
            self._bars.update(self._tasks[stage], completed=done, total=total)

    def pause(self) -> None:
        """Take the bars off the screen; the next call draws new ones."""
        with self._lock:
            if self._bars is not None:
                self._bars.stop()
                self._bars = None
                self._tasks.clear()


def _make_bars() -> Any:
    """Return a rich progress display on stderr that vanishes when it stops."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Amount(ProgressColumn):
        def render(self, task: Task) -> Text:
            total = "" if task.total is None else f" / {task.total:,.0f}"
            return Text(f"{task.completed:,.0f}{total} {task.fields['unit']}")

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            if not speed:
                return Text("")
            return Text(f"{speed:.1f}x real time" if task.fields["unit"] == "s" else f"{speed:,.0f} tokens/s")

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        Amount(),
        Rate(),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        transient=True,
    )


def stage_table(answers: Sequence[Answer], wall_s: float | None = None) -> str:
    """Return the plain-text table of where time and tokens went.

    Parameters
    ----------
    answers : sequence of Answer
        Of one run. What is done once for all questions (up to encoding) is counted in each of them, and shown once.
    wall_s : float
        Seconds that the run took; by default those of the last answer, which is right for one question.
    """
    wall = answers[-1].wall_s if wall_s is None else wall_s
    if len(answers) == 1:
        rows = [["stage", "seconds", "share"]]
        for name, seconds in answers[0].stages.items():
            if name != "other" and seconds >= _SHOWN_S:
                rows.append([LABELS.get(name, name), f"{seconds:.2f}", _share(seconds, wall)])
    else:
        rows = _several(answers, wall)
    named = sum(_total(answers, name) for name in answers[0].stages if name not in ("other", "select_in_llm"))
    blanks = [""] * (len(rows[0]) - 3)
    for label, seconds in ((LABELS["other"], max(0.0, wall - named)), ("wall time", wall)):
        rows.append([label, *blanks, f"{seconds:.2f}", _share(seconds, wall)])
    return "\n".join([*_aligned(rows), *_beside(answers[0]), *_facts(answers)])


def _beside(answer: Answer) -> list[str]:
    """Return what threads beside the main one did; their stages above are only the waiting for them."""
    busy = [f"{LABELS.get(n, n)} {s:.2f} s" for n, s in answer.busy.items() if s >= _SHOWN_S]
    return [f"beside it: {', '.join(busy)}"] if busy else []


def _several(answers: Sequence[Answer], wall: float) -> list[list[str]]:
    """Return the stages' rows for several questions: what each one took (the first five), and the whole run."""
    shown = answers[:5]
    rows = [["stage", *(f"Q{i + 1}" for i in range(len(shown))), f"all {len(answers)}", "share"]]
    for name in answers[0].stages:
        total = _total(answers, name)
        if name == "other" or total < _SHOWN_S:
            continue
        each = [f"{a.stages.get(name, 0.0):.2f}" if name in PER_QUESTION else "" for a in shown]
        rows.append([LABELS.get(name, name), *each, f"{total:.2f}", _share(total, wall)])
    return rows


def _total(answers: Sequence[Answer], name: str) -> float:
    """Return a stage's seconds in the whole run."""
    if name in PER_QUESTION:
        return sum(a.stages.get(name, 0.0) for a in answers)
    return answers[0].stages.get(name, 0.0)


def _share(seconds: float, wall: float) -> str:
    return f"{100 * seconds / wall:.0f} %" if wall > 0 else ""


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines: first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _facts(answers: Sequence[Answer]) -> list[str]:
    """Return the lines under the table: media used, tokens, first token, memory, model and preset."""
    first = answers[0]
    used = first.media_used
    out = [
        f"used: pictures {used.video_s:.0f}/{used.video_present_s:.0f} s "
        f"({used.frames} frames {used.width}x{used.height}), sound {used.audio_s:.0f}/{used.audio_present_s:.0f} s"
    ]
    parts = []
    for key, label in (("video", "pictures"), ("audio", "sound")):
        count = first.tokens.get(key)
        if count:
            parts.append(f"{label} {count['encoded']} -> {count['kept']}")
    retention = first.tokens.get("retention")
    if parts:
        out.append(
            "tokens: " + ", ".join(parts) + (f" ({100 * retention:.1f} % kept)" if retention is not None else "")
        )
    memory = [
        f"{label} {value / 2**30:.2f} GiB"
        for label, value in (
            ("host", first.peak_memory.get("host_bytes")),
            ("device", first.peak_memory.get("device_bytes")),
        )
        if value
    ]
    line = f"first token after {first.time_to_first_token_s:.2f} s"
    out.append(line + (f"; peak memory {', '.join(memory)}" if memory else ""))
    from omnicli.config.config import precision

    model = first.model
    return [*out, f"model {model.get('name')} ({model.get('device')}, {precision(model)}), preset {first.preset}"]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows (the first one the heads) as aligned plain text, all columns to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)
