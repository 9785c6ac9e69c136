"""Options that several commands share, and what their text means. Reads no file and imports no library."""

from __future__ import annotations

import functools
import inspect
import logging
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, get_args

import typer

from omnicli.errors import UsageError

_state = {"verbose": False}


def is_verbose() -> bool:
    """Tell whether -v was given."""
    return _state["verbose"]


def set_verbose(value: bool) -> bool:
    """Send log messages and library warnings to stderr (True) or nowhere, and show tracebacks or not."""
    _state["verbose"] = value
    if value:
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
        warnings.resetwarnings()
    else:
        logging.basicConfig(level=logging.ERROR, handlers=[logging.NullHandler()])
        warnings.simplefilter("ignore")
    return value


def _verbose_callback(value: bool) -> bool:
    return set_verbose(True) if value else value


_TIME = re.compile(r"(?:(?:(\d+):)?(\d{1,2}):)?(\d+(?:\.\d*)?|\.\d+)s?")


def parse_time(text: str) -> float:
    """Return seconds from ``90``, ``90.5``, ``1:30`` or ``1:02:03.5``; anything else is a usage error."""
    found = _TIME.fullmatch(str(text).strip())
    if found is None or (found[2] is not None and (float(found[3]) >= 60 or (found[1] and int(found[2]) >= 60))):
        raise typer.BadParameter(f"{text!r} is not a time; write seconds (90.5), mm:ss or hh:mm:ss")
    return int(found[1] or 0) * 3600.0 + int(found[2] or 0) * 60.0 + float(found[3])


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([KMGT]?)(I?)B?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Return bytes from ``0``, ``20 GB``, ``1.5GiB`` or ``500M``; ValueError for anything else."""
    found = _SIZE.fullmatch(text.strip())
    if found is None or (found[3] and not found[2]):
        raise ValueError(f"{text!r} is not a size; write 20 GB, 500 MB or 1.5 GiB")
    unit = _UNITS[found[2].upper()]
    if found[3]:
        unit = 1 << 10 * list(_UNITS).index(found[2].upper())
    return int(float(found[1]) * unit)


_AGES = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def parse_age(text: str) -> float:
    """Return seconds from ``45s``, ``90m``, ``12h``, ``30d`` or ``2w``; anything else is a usage error."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([smhdw])", str(text).strip())
    if found is None:
        raise typer.BadParameter(f"{text!r} is not an age; write 45s, 90m, 12h, 30d or 2w")
    return float(found[1]) * _AGES[found[2]]


def check_span(start_s: float | None, end_s: float | None) -> None:
    """Raise `UsageError` when a stretch of the film ends before it starts."""
    if end_s is not None and end_s <= (start_s or 0.0):
        raise UsageError(f"--end {end_s:g} s is not after --start {start_s or 0.0:g} s")


class AudioChoice(str, Enum):
    """What to do with the sound track."""

    auto = "auto"
    on = "on"
    off = "off"


JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of text.")]
EvidenceFlag = Annotated[bool, typer.Option("--evidence", help="Tell which seconds of the film an answer rests on.")]
NoCacheFlag = Annotated[
    bool, typer.Option("--no-cache", help="Neither read nor keep the film's tokens (omni cache info).")
]
VerboseFlag = Annotated[
    bool,
    typer.Option("-v", "--verbose", callback=_verbose_callback, help="Log on stderr; show tracebacks of errors."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change one setting of the preset; repeatable."),
]

PRESET = ("preset", "sets", "model")
SAMPLING = ("fps", "max_frames", "start", "end", "audio", "subtitles")
WRITING = ("max_new_tokens", "temperature", "seed")
DEVICE = ("device", "dtype", "quantize", "offload")
_SHARED: dict[str, Any] = {
    "preset": Annotated[
        str | None, typer.Option("--preset", "-p", metavar="NAME", help="Preset name or YAML file (omni presets list).")
    ],
    "sets": SetOption,
    "model": Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="NAME", help="Short name, hub id or folder (omni models list)."),
    ],
    "fps": Annotated[float | None, typer.Option("--fps", metavar="RATE", help="Frames to look at per second of film.")],
    "max_frames": Annotated[
        int | None, typer.Option("--max-frames", metavar="N", help="At most this many frames, spread evenly.")
    ],
    "start": Annotated[
        float | None,
        typer.Option("--start", metavar="TIME", parser=parse_time, help="Begin here: seconds, mm:ss or hh:mm:ss."),
    ],
    "end": Annotated[
        float | None,
        typer.Option("--end", metavar="TIME", parser=parse_time, help="Stop here: seconds, mm:ss or hh:mm:ss."),
    ],
    "audio": Annotated[
        AudioChoice | None,
        typer.Option("--audio", metavar="auto|on|off", help="Listen if there is sound, insist on it, or do not."),
    ],
    "subtitles": Annotated[
        str | None,
        typer.Option(
            "--subtitles",
            metavar="auto|FILE|off",
            help="Read subtitles before the question: those beside or in the film, or a file's.  [default: off]",
        ),
    ],
    "require_audio": Annotated[bool, typer.Option("--require-audio", help="Fail where there is no usable sound.")],
    "max_new_tokens": Annotated[
        int | None, typer.Option("--max-new-tokens", metavar="N", help="Longest answer, in tokens.")
    ],
    "temperature": Annotated[
        float | None, typer.Option("--temperature", metavar="T", help="0 always takes the likeliest token.")
    ],
    "seed": Annotated[int | None, typer.Option("--seed", metavar="N", help="Seed of everything random.")],
    "device": Annotated[
        str | None,
        typer.Option(
            "--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:N, cuda:0,cuda:1 or cuda:all.  [default: auto]"
        ),
    ],
    "dtype": Annotated[
        str | None,
        typer.Option("--dtype", metavar="DTYPE", help="auto, float32, bfloat16 or float16.  [default: auto]"),
    ],
    "quantize": Annotated[
        str | None,
        typer.Option(
            "--quantize",
            metavar="none|int8|int4",
            help="Keep the LLM's weights in 8 or 4 bits (docs/guide/fitting-a-card.md).  [default: none]",
        ),
    ],
    "offload": Annotated[
        bool,
        typer.Option(
            "--offload", help="Keep the encoders in host memory while the LLM works, and the other way round."
        ),
    ],
}
_SECTIONS = {"media": (*SAMPLING, "require_audio"), "generate": WRITING}


@dataclass(frozen=True)
class SharedOptions:
    """What was said by options that commands share; None where nothing was.

    ``settings`` are texts ``key=value`` for the preset: those of --set, then those of options of their own, which win.
    """

    preset: str | None = None
    settings: tuple[str, ...] = ()
    model: str | None = None
    device: str | None = None
    dtype: str | None = None


def shared(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a command that takes `SharedOptions` as ``given``: users get the options ``names`` in its place.

    A command so decorated raises `UsageError` when the stretch of the film ends before it starts.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def run(**values: Any) -> Any:
            said = {name: values.pop(name) for name in names}
            return command(**values, given=_shared_options(said))

        signature = inspect.signature(command, eval_str=True)
        parameters: list[inspect.Parameter] = []
        for own in signature.parameters.values():
            parameters += map(_parameter, names) if own.name == "given" else [own]
        run.__dict__["__signature__"] = signature.replace(parameters=parameters)  # what Typer makes options of
        return run

    return decorate


def _parameter(name: str) -> inspect.Parameter:
    kind = _SHARED[name]
    default = False if get_args(kind)[0] is bool else None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _shared_options(said: dict[str, Any]) -> SharedOptions:
    """Return what options say, by their names; False is nothing said, as None is."""
    check_span(said.get("start"), said.get("end"))
    of_its_own = {name: said.pop(name, None) for name in ("preset", "model", "device", "dtype")}
    settings = list(said.pop("sets", None) or [])
    for name, value in said.items():
        if value is not None and value is not False:
            section = next((f"{key}." for key, names in _SECTIONS.items() if name in names), "")
            text = value.value if isinstance(value, Enum) else str(value).lower() if value is True else str(value)
            settings.append(f"{section}{name}={text}")
    return SharedOptions(settings=tuple(settings), **of_its_own)
