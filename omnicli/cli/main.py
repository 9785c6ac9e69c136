"""The ``omni`` command: puts the commands together and turns every way a run can end into an exit code.

Knows the exit codes of `omnicli.errors` and nothing of what a command does. Importing it, and printing any help text,
imports neither torch nor PyAV nor rich: command modules keep such imports inside their functions.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer

from omnicli.cli import registry
from omnicli.cli.options import is_verbose, set_verbose
from omnicli.errors import OmniError, near_names
from omnicli.version import __version__

EXIT_INTERNAL = 1
EXIT_USAGE = 2
EXIT_MEMORY = 4
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

MEMORY_KNOBS = (
    "ask for less: fewer frames (--max-frames or --fps), smaller frames (--set media.max_pixels=...), "
    "or a preset that keeps fewer tokens (omni presets list)"
)


app = typer.Typer(
    name="omni",
    help="Ask questions about films: pictures and sound, an hour long, on one machine.",
    epilog="\b\nExamples:\n"
    '  omni ask film.mp4 "What is the secret number?"\n'
    "  omni probe film.mp4\n"
    "  omni demo --minutes 5\n\n"
    "\b\nExit codes: 0 answered, 1 internal error, 2 usage, 3 input unreadable, 4 does not fit in memory,\n"
    "5 model or weights missing, 6 bad preset or config, 7 a batch is through but items failed, 130 interrupted.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
registry.add_all(app)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"omni {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Ask questions about films: pictures and sound, an hour long, on one machine."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run ``omni`` with ``argv`` (default: the process's arguments) and exit with the documented code."""
    code = run(sys.argv[1:] if argv is None else argv)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = EXIT_BROKEN_PIPE
    if code == EXIT_BROKEN_PIPE:  # the reader is gone: keep the interpreter from complaining when it closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code; every error is one line on stderr."""
    try:
        _quiet_libraries()
        set_verbose(False)
        command = typer.main.get_command(app)
        if "_OMNI_COMPLETE" in os.environ:
            command.main(args=list(argv), prog_name="omni", complete_var="_OMNI_COMPLETE")
        with command.make_context("omni", list(argv)) as context:
            result = command.invoke(context)
        return result if isinstance(result, int) else 0
    except typer.Exit as stop:
        return int(stop.exit_code)
    except BrokenPipeError:
        return EXIT_BROKEN_PIPE
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", EXIT_INTERRUPTED)
    except OmniError as error:
        return _fail(str(error), error.exit_code, error)
    except Exception as error:
        return _unforeseen(error)


def _unforeseen(error: Exception) -> int:
    """Report an exception that no command raised on purpose, or a usage error of the argument parser."""
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # ClickException, wherever typer keeps it
        message = _usage_message(error)
        # no_args_is_help raises a usage error whose message is the help text itself
        return _fail(message, EXIT_USAGE) if message else EXIT_USAGE
    if is_out_of_memory(error):
        detail = str(error).split(". ", maxsplit=1)[0].splitlines()
        return _fail(f"out of memory{f' ({detail[0]})' if detail else ''}; {MEMORY_KNOBS}", EXIT_MEMORY, error)
    line = " ".join(str(error).split()) or "no message"
    if len(line) > 300:
        line = line[:300] + "..."
    hint = "" if is_verbose() else "; run with -v for the traceback"
    return _fail(f"internal error: {type(error).__name__}: {line}{hint}", EXIT_INTERNAL, error)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether ``error`` is the host's or the device's way of saying that memory ran out. Imports no torch."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _usage_message(error: Any) -> str:
    """Return one line for a parser's error: what is wrong, the near name, where the help is."""
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(error.format_message(), err=True)
        return ""
    context = getattr(error, "ctx", None)
    text = " ".join(error.format_message().split()).rstrip(".")
    if getattr(error, "option_name", None) and type(error).__name__ == "NoSuchOption":
        known = [name for p in context.command.params for name in (*p.opts, *p.secondary_opts)] if context else []
        text = f"no such option {error.option_name}{near_names(error.option_name, known)}"
    path = context.command_path if context else "omni"
    return f"{text[:1].lower()}{text[1:]} (try: {path} --help)"


def _fail(message: str, code: int, error: BaseException | None = None) -> int:
    """Print ``omni: message`` on stderr, with the traceback if -v was given, and return ``code``."""
    if error is not None and is_verbose():
        import traceback

        traceback.print_exception(type(error), error, error.__traceback__)
    typer.echo("omni: " + " ".join(message.splitlines()), err=True)
    return code


def _quiet_libraries() -> None:
    """Keep what libraries say about themselves off stderr; each variable can be set by the user instead."""
    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(name, value)


if __name__ == "__main__":
    main()
