"""What `ask`, `chat` and `demo` share: cheap checks first, then the model, then the pipeline, all on the right stream.

Checks that need no torch (the file, the preset, the settings, the model's folder) come before the model is loaded.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnicli.cli import defaults, render
from omnicli.cli.options import SharedOptions
from omnicli.errors import MediaError, UsageError, near_names
from omnicli.utils.display import clock_time
from omnicli.utils.timing import StageClock

if TYPE_CHECKING:
    from omnicli.answer.answer import Answer
    from omnicli.config.config import Config
    from omnicli.encode.cache import Cache
    from omnicli.media.probe import MediaInfo
    from omnicli.models.base import OmniModel

POCKET_FOLDER = Path(__file__).resolve().parent.parent / "models" / "pocket"
HONESTY = (
    "pocket is a small model trained on generated films: it reads captioned and spoken numbers and tells who speaks "
    "first or last; for anything else choose a real model (omni models list)"
)


def check_media(name: str) -> Path:
    """Return ``name`` as a path to a file that is there and holds something.

    Raises
    ------
    MediaError
        It does not exist (with near names from its folder), is a folder, is empty, or may not be read.
    """
    path = Path(name).expanduser()
    if "://" in name and not path.exists():
        raise MediaError(f"{name}: not a local file; download it first, omni fetches nothing by itself")
    try:
        if path.is_dir():
            raise MediaError(f"{name}: is a folder; give one file")
        if not path.exists():
            folder = path.parent
            files = [p.name for p in folder.iterdir() if p.is_file()] if folder.is_dir() else []
            hint = near_names(path.name, files)
            raise MediaError(f"{name}: no such file{hint if hint.startswith('; did') else ''}")
        with path.open("rb") as file:
            if path.is_file() and not file.read(1):
                raise MediaError(f"{name}: the file is empty (0 bytes)")
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise MediaError(f"{name}: cannot be read ({reason})") from error
    return path


def prepare(given: SharedOptions) -> Config:
    """Resolve preset, settings and model from options, preset, environment and config file, in this order.

    The result names model, device and dtype as they will be used, so that it can repeat the run.

    Raises
    ------
    ConfigError
        A wrong preset, setting or config file.
    ModelError
        No such model.
    """
    config = resolve(given)
    check_model(config.model or "")
    return config


def resolve(given: SharedOptions) -> Config:
    """Do the same for a model that need not be on this machine."""
    from omnicli.config.config import DEFAULT_MODEL, DEFAULT_PRESET, load_config

    mine = defaults.load_defaults()
    config = load_config(given.preset or mine.preset or DEFAULT_PRESET, [*mine.set, *given.settings])
    name = given.model or config.model or mine.model or DEFAULT_MODEL
    return dataclasses.replace(
        config,
        model=name,
        device=given.device or _chosen(config.device) or mine.device or "auto",
        dtype=given.dtype or _chosen(config.dtype) or mine.dtype or "auto",
    )


def check_model(name: str) -> None:
    """Raise `ModelError` if there is no such model on this machine; reads no weights."""
    from omnicli.models.loading import find_folder

    if not name.startswith("dummy:"):
        find_folder(name)


def _chosen(value: str | None) -> str | None:
    """Return a setting unless it leaves the choice open."""
    return None if value in (None, "auto") else value


def load(config: Config, clock: StageClock) -> OmniModel:
    """Load the configured model under the clock's ``load`` stage; pocket says first what it can answer."""
    if config.model == "pocket":
        render.note(honesty())
    with clock.stage("load"):
        from omnicli.models.loading import load_configured

        model = load_configured(config)
    clock.cuda = model.device.type == "cuda"
    return model


def honesty() -> str:
    """Return the one line on what the pocket model is able to answer, from its own card where there is one."""
    try:
        text = json.loads((POCKET_FOLDER / "card.json").read_text(encoding="utf-8"))["honesty"]
    except (OSError, ValueError, KeyError, TypeError):
        return HONESTY
    return " ".join(str(text).split())


def begin(
    path: Path, config: Config, clock: StageClock, cache: Cache | None, fit: bool = False
) -> tuple[Path | MediaInfo, Config, OmniModel, str | None]:
    """Return the file, probed, the settings to go on with, the model, and a note if ``fit`` changed the settings.

    A file that cannot be read and what would not fit are told of before the model is loaded. A file that the cache
    knows was read, and did fit, before: it is returned as it is.

    Raises
    ------
    MediaError, MemoryLimitError, ModelError
    """
    from omnicli.media.probe import MediaInfo, probe
    from omnicli.planning.fit import fitted

    if config.media.subtitles not in ("auto", "off"):
        check_media(config.media.subtitles)
    note = None
    with clock.stage("probe"):
        source = path if cache is not None and cache.knows(path) else probe(path)
        if isinstance(source, MediaInfo):
            config, note = fitted(source, config, fit)
    return source, config, load(config, clock), note


def answer(
    path: Path,
    questions: Sequence[str],
    config: Config,
    *,
    json_out: bool,
    clock: StageClock | None = None,
    on_text: Any = None,
    cache: Cache | None = None,
    evidence: bool = False,
    fit: bool = False,
) -> list[Answer]:
    """Load the model, ask, and render: answers (or JSON lines) on stdout, notes and the stage table on stderr.

    ``clock`` may already run, so that checking and importing count. ``on_text(index, piece)`` replaces the writing of
    answers to stdout; the caller then renders them. ``cache``: where encoded films are kept; None: nowhere. ``fit``:
    change the settings where they do not fit; a film that the cache knows has been encoded here and is not planned.

    Raises
    ------
    MemoryLimitError
        It would not fit; told before the model is loaded.
    """
    clock = clock or StageClock()
    source, config, model, note = begin(path, config, clock, cache, fit)
    with clock.stage("load"):
        from omnicli import pipeline
        from omnicli.utils.context import RunContext

    with render.ProgressDisplay() as progress:
        stream = render.AnswerStream(questions, progress)
        write = on_text or (None if json_out else stream)
        try:
            answers = pipeline.ask(
                source,
                questions,
                config,
                model,
                on_text=write,
                context=RunContext(progress, clock),
                cache=cache,
                evidence=evidence,
            )
        except BaseException:
            stream.close()
            raise
        progress.pause()
    if note is not None:
        answers = [dataclasses.replace(one, warnings=[note, *one.warnings]) for one in answers]
    if json_out and on_text is None:
        for one in answers:
            render.print_json(one.to_dict())
    elif on_text is None:
        stream.finish(answers)
        if evidence:
            render.write_text(render.evidence_lines(answers))
    show_costs(answers, clock.report().wall_s)
    return answers


def write_evidence(path: Path, answers: Sequence[Answer], folder: Path) -> None:
    """Write the seconds that answers rest on: a clip of each range and, of pictures, the frame in its middle.

    Raises
    ------
    UsageError
        The folder cannot be made.
    MediaError
        A clip or a frame cannot be written.
    """
    from omnicli.media import cut
    from omnicli.media.probe import probe

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--clip-dir {folder}: {error.strerror or error}") from error
    info, written = probe(path), 0
    for number, answer in enumerate(answers, start=1):
        for found in answer.evidence:
            at = f"{clock_time(found['start_s'])}-{clock_time(found['end_s'])}".replace(":", ".")
            name = f"{path.stem} q{number} {at} {found['modality']}"
            cut.write_clip(info, found["start_s"], found["end_s"], folder / f"{name}.mkv")
            written += 1
            if found["modality"] == "video":
                cut.write_frame(info, (found["start_s"] + found["end_s"]) / 2, folder / f"{name}.jpg")
    render.note(f"{written} clips in {folder}")


def show_costs(answers: Sequence[Answer], wall_s: float) -> None:
    """Write warnings (each one once) and the stage table to stderr."""
    for text in dict.fromkeys(w for one in answers for w in one.warnings):
        render.note(text)
    print(render.stage_table(answers, wall_s), file=sys.stderr, flush=True)
