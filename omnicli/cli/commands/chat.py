"""``omni chat``: follow-up questions about a film that stays encoded. Reads lines, does commands, renders answers.

Answers go to stdout; prompts, notes and what commands show go to stderr. Without a terminal on stdin there is no prompt
and each answer is one line. What a conversation is, is in `omnicli.session`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from omnicli.cli import options as opt
from omnicli.cli import render
from omnicli.errors import OmniError, UsageError, near_names

if TYPE_CHECKING:
    from omnicli.answer.answer import Answer
    from omnicli.session import Session
    from omnicli.utils.timing import Times

EXAMPLES = """\b
Examples:
  omni chat film.mp4
  omni chat film.mp4 --preset seats-25 --start 10:00 --end 30:00
  omni chat film.mp4 < questions.txt > answers.txt
  printf 'Who speaks?\\n/preset full\\nWho speaks?\\n' | omni chat film.mp4 --json"""

PROMPT = "> "
COMMANDS = {
    "help": ("", "these lines"),
    "preset": ("[NAME [KEY=VALUE ...]]", "answer with another preset; how the film is sampled stays as it is"),
    "stages": ("", "where the time and the tokens of the last answer went"),
    "evidence": ("", "which seconds of the film the last answer rests on"),
    "history": ("", "the turns that the next question comes after"),
    "clear": ("", "forget them"),
    "save": ("FILE", "write all answers so far as lines of JSON, each with its history"),
    "quit": ("", "leave, as Ctrl-D does"),
}
"""Commands: what follows them, and what they do."""

PLACE = 20
"""In the order of the help."""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("chat", epilog=EXAMPLES)(chat)


@opt.shared(*opt.PRESET, *opt.SAMPLING, *opt.WRITING, *opt.DEVICE)
def chat(
    *,
    media: Annotated[str, typer.Argument(metavar="MEDIA", help="Film or sound file.", show_default=False)],
    json_out: opt.JsonFlag = False,
    given: opt.SharedOptions,
    no_cache: opt.NoCacheFlag = False,
    verbose: opt.VerboseFlag = False,
) -> int:
    """Ask follow-up questions about a film that is decoded and encoded once.

    Earlier questions and answers stand before each question; the oldest are forgotten, with a note, when the model's
    context is full. /help lists the commands. Ctrl-C stops an answer, which then does not count, or drops the line
    being typed; twice in a row at the prompt it leaves (exit 130), Ctrl-D leaves (exit 0).

    When stdin is no terminal its lines are questions and commands, there is no prompt, and each question gives one
    line on stdout: the answer, empty if there is none, or with --json an object (docs/reference/json.md). A line
    that fails does not stop the others; the exit code is that of the first one.
    """
    from omnicli.cli import answering, defaults
    from omnicli.utils.timing import StageClock

    clock = StageClock()
    path = answering.check_media(media)
    with clock.stage("load"):
        config = answering.prepare(given)
        cache = None if no_cache else defaults.open_cache()
        writing = [text for text in (*defaults.load_defaults().set, *given.settings) if text.startswith("generate.")]
    source, config, loaded, _ = answering.begin(path, config, clock, cache)
    with clock.stage("load"):
        from omnicli.session import Session
        from omnicli.utils.context import RunContext
    with render.ProgressDisplay() as progress:
        session = Session(source, config, loaded, RunContext(progress, clock), cache=cache)
    return Conversation(session, writing, terminal=sys.stdin.isatty(), json_out=json_out).run()


class Conversation:
    """Takes lines, one after the other, and keeps going whatever one of them comes to.

    Parameters
    ----------
    writing : sequence of str
        Settings under ``generate`` that hold for every preset.
    terminal : bool
        Somebody is typing: there is a prompt, answers appear as they are written, and Ctrl-C does not end it.
    """

    def __init__(self, session: Session, writing: Sequence[str], *, terminal: bool, json_out: bool) -> None:
        self.session, self.writing, self.terminal, self.json_out = session, writing, terminal, json_out
        self.code = 0
        self._table = ""
        self._tabled: Times | None = None  # of the film: what it took stands in one table only
        self._noted: set[str] = set()
        self._saved: set[Path] = set()

    def run(self) -> int:
        """Take lines until there are no more; return the exit code of the first that failed, 0 at a terminal."""
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # `take` tells of such a line, and the next one is read
        if self.terminal:
            self._greet()
        warned = False
        while True:
            line: str | None = ""
            try:
                line = self._read()
                if line is None or (line and not self.take(line)):
                    return 0 if self.terminal else self.code
                warned = False
            except KeyboardInterrupt:
                if not self.terminal or (warned and not line):
                    raise
                print(file=sys.stderr)
                render.note("stopped" if line else "Ctrl-C again or Ctrl-D to leave")
                warned = not line

    def take(self, line: str) -> bool:
        """Do a command or answer a question; return False if that was ``/quit``."""
        try:
            if any("\udc80" <= c <= "\udcff" for c in line):
                raise UsageError("stdin: a line is not UTF-8")
            if line.startswith("/"):
                return self._command(line)
            self._answer(line)
        except Exception as error:
            code, text = self._failure(error)
            render.note(text)
            self.code = self.code or code
            if not (line.startswith("/") or self.terminal or self.json_out):
                render.write_text("\n")
        return True

    def _greet(self) -> None:
        if sys.stdout.isatty():
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 (from now on `input` edits lines and remembers them)
        film = self.session.film
        used = film.media.used
        render.note(
            f"{film.info.path}: {used.video_s:.0f} s of pictures, {used.audio_s:.0f} s of sound, "
            f"{len(film.media.clip.tokens):,} tokens; /help for commands, Ctrl-D to leave"
        )

    def _read(self) -> str | None:
        """Return the next line without the spaces around it; None after the last one."""
        prompt = PROMPT if self.terminal else ""
        if prompt and not sys.stdout.isatty():  # `input` would write it there
            print(prompt, end="", file=sys.stderr, flush=True)
            prompt = ""
        try:
            return input(prompt).strip()
        except EOFError:
            if self.terminal:
                print(file=sys.stderr)
            return None

    def _answer(self, question: str) -> None:
        streams = self.terminal and not self.json_out
        with render.ProgressDisplay() as progress:
            stream = render.AnswerStream([question], progress)
            write = partial(stream, 0) if streams else lambda text: None
            try:
                told = self.session.ask(question, on_text=write, progress=progress)
            finally:
                stream.close()
        if streams:
            stream.finish([told.answer])
        elif self.json_out:
            render.print_json(told.to_dict())
        else:
            render.write_text(" ".join(told.answer.answer.split()) + "\n")
        for text in dict.fromkeys(told.answer.warnings):
            if text not in self._noted:
                render.note(text)
        self._noted.update(told.answer.warnings)
        times = self.session.film.times
        self._table = render.stage_table([told.answer if self._tabled is not times else without(told.answer, times)])
        self._tabled = times

    def _failure(self, error: Exception) -> tuple[int, str]:
        """Return exit code and line of an error after which a chat can go on; raise any other one again."""
        from omnicli.utils import memory

        if isinstance(error, OmniError):
            return error.exit_code, str(error)
        short = memory.failure(error)
        if short is None:
            raise error
        memory.free(self.session.model.device)
        return short[1], short[0]

    # ---- commands ----

    def _command(self, line: str) -> bool:
        """Do what a line that begins with a slash says; return False for ``/quit``."""
        try:
            name, *words = shlex.split(line[1:]) or [""]
        except ValueError as error:
            raise UsageError(f"{line}: {str(error).lower()}") from None
        if name not in COMMANDS:
            raise UsageError(f"/{name}: no such command{near_names(name, COMMANDS)} (/help)")
        if words and not COMMANDS[name][0]:
            raise UsageError(f"/{name}: nothing may follow it")
        if name == "quit":
            return False
        shown = getattr(self, f"_{name}")(words)
        render.write_text(shown + "\n" if shown else "", sys.stderr)
        return True

    def _help(self, words: list[str]) -> str:
        return render.table([[f"/{name} {follows}".rstrip(), does] for name, (follows, does) in COMMANDS.items()])

    def _preset(self, words: list[str]) -> str:
        """Take over the method of another preset, and how answers are written; what the film is stays."""
        now = self.session.config
        if not words:
            return f"preset {now.preset}, method {now.method}"
        from omnicli.config.config import LOADED, load_config

        for text in words[1:]:
            key = text.partition("=")[0].strip()
            if key.startswith("media.") or key in LOADED:
                raise UsageError(f"/preset: {key} cannot change in a chat; start another one")
        new = load_config(words[0], [*self.writing, *words[1:]])
        new = dataclasses.replace(new, media=now.media, **{key: getattr(now, key) for key in LOADED})
        if missing := self.session.missing(new):
            render.note(f"{new.method} needs {', '.join(sorted(missing))} of the encoders: looking at the film again")
        with render.ProgressDisplay() as progress:
            self.session.switch(new, progress)
        return f"preset {new.preset}, method {new.method}"

    def _stages(self, words: list[str]) -> str:
        self._need_an_answer("stages")
        return self._table

    def _evidence(self, words: list[str]) -> str:
        self._need_an_answer("evidence")
        return render.evidence_lines([self.session.told[-1].answer]).rstrip()

    def _history(self, words: list[str]) -> str:
        turns = self.session.history
        return "\n".join(f"> {question}\n{answer}" for question, answer in turns) or "no turns"

    def _clear(self, words: list[str]) -> None:
        self.session.history.clear()

    def _save(self, words: list[str]) -> str:
        """Write a new file, or again one that was written here."""
        from omnicli.utils.jsonl import dumps

        if len(words) != 1:
            raise UsageError("/save: name one file, in quotes if there are spaces in it")
        self._need_an_answer("save")
        path = Path(words[0]).expanduser().absolute()
        try:
            with path.open("w" if path in self._saved else "x", encoding="utf-8") as file:
                self._saved.add(path)
                file.writelines(dumps(told.to_dict()) + "\n" for told in self.session.told)
        except OSError as error:
            raise UsageError(f"/save: {words[0]}: {error.strerror or error}") from error
        count = len(self.session.told)
        return f"{count} answer{'s' if count > 1 else ''} in {path}"

    def _need_an_answer(self, name: str) -> None:
        if not self.session.told:
            raise UsageError(f"/{name}: nothing was answered yet")


def without(answer: Answer, film: Times) -> Answer:
    """Return an answer that tells of its own time only, the film's taken off."""
    return dataclasses.replace(
        answer,
        stages={name: max(0.0, s - film.stages.get(name, 0.0)) for name, s in answer.stages.items()},
        busy={name: max(0.0, s - film.busy.get(name, 0.0)) for name, s in answer.busy.items()},
        wall_s=max(0.0, answer.wall_s - film.wall_s),
        time_to_first_token_s=max(0.0, answer.time_to_first_token_s - film.wall_s),
    )
