"""``omni batch``: questions about an archive, one row each. Parses, plans, calls `omnicli.batch`, renders."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omnicli.cli import options as opt
from omnicli.cli import render
from omnicli.errors import UsageError

if TYPE_CHECKING:
    from omnicli.batch.items import Job, Wanted
    from omnicli.batch.journal import Row, Sink
    from omnicli.batch.runner import Answering
    from omnicli.batch.worker import Worker
    from omnicli.config.config import Config

EXAMPLES = """\b
Examples:
  omni batch films/ -q "What is the secret number?" -o answers.jsonl
  omni batch "archive/**/*.mkv" -q "Who speaks first?" -q "Who speaks last?" -o answers.jsonl --timeout 600 --fit
  omni batch --manifest questions.csv -o answers.jsonl --retry-failed
  omni batch /shared/films -q "Who speaks first?" -o answers.jsonl --ray --address auto
  find films -name "*.mp4" -print0 | omni batch -0 -q "Who speaks last?" | jq -r .answer"""

STDIN = "-"

PLACE = 30
"""In the order of the help."""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("batch", epilog=EXAMPLES)(batch)


@opt.shared(*opt.PRESET, *opt.SAMPLING, "require_audio", *opt.WRITING, *opt.DEVICE)
def batch(
    *,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATH]...", help="Files, folders (with all in them), quoted patterns; - is a list on stdin."
        ),
    ] = None,
    questions: Annotated[
        list[str] | None, typer.Option("-q", "--question", metavar="TEXT", help="A question; repeatable.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Append rows here, and go on from it; else to stdout."),
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option("--manifest", metavar="FILE", help="JSONL or CSV: media, question, and if wanted id, choices."),
    ] = None,
    null: Annotated[
        bool, typer.Option("-0", "--null", help="Read a list from stdin that ends names with NUL.")
    ] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Do failed items of FILE again.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Do every item again, answered ones too.")] = False,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", help="Let an item fail that takes longer; no limit otherwise."),
    ] = None,
    fit: Annotated[
        bool, typer.Option("--fit", help="What does not fit in memory or context is asked once more with less.")
    ] = False,
    isolate: Annotated[
        bool,
        typer.Option(
            "--isolate/--no-isolate",
            help="Work in a process of its own, that is replaced if it dies or hangs, or in this one.",
        ),
    ] = True,
    ray: Annotated[
        bool, typer.Option("--ray", help="Work on a Ray cluster, one worker for each GPU or for two CPUs.")
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            metavar="ADDRESS",
            help="Of the cluster: HOST:PORT, or auto for this machine's; else RAY_ADDRESS, else this machine alone.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", min=1, help="Workers on the cluster, sharing its CPUs.")
    ] = None,
    evidence: opt.EvidenceFlag = False,
    no_cache: opt.NoCacheFlag = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Nothing on stderr but errors that end the run.")] = False,
    given: opt.SharedOptions,
    verbose: opt.VerboseFlag = False,
) -> int:
    """Ask questions about many files; one JSON row per file and question, whatever happens.

    Rows are those of `omni ask --json` and, where there is no answer, say why (docs/reference/json.md). With -o,
    answers that are there already are not computed again, however the files are called now; a run that was stopped
    goes on.
    """
    if output is None and (retry_failed or force):
        raise UsageError(f"{'--force' if force else '--retry-failed'} has no meaning without -o FILE")
    if output is not None and not output.absolute().parent.is_dir():
        raise UsageError(f"-o {output}: the folder {output.parent} does not exist")
    if timeout is not None and not timeout > 0:
        raise UsageError(f"--timeout must be above 0, not {timeout:g}")
    cluster = _on_cluster(ray, address, workers, isolate, given.device)
    asked = _questions(questions or [])
    display = Display(quiet)
    wanted = _wanted(paths or [], manifest, null, asked, display)
    from omnicli.batch import items, runner
    from omnicli.batch.journal import Journal, Stream
    from omnicli.cli import answering, defaults

    config = answering.prepare(given)
    if config.media.subtitles not in ("auto", "off"):
        answering.check_media(config.media.subtitles)
    jobs = items.plan(wanted, _settings_key(config), config.media.subtitles)
    with contextlib.ExitStack() as stack:
        stack.callback(display.clear)
        sink: Sink = Stream(display.row) if output is None else stack.enter_context(Journal(output))
        left = runner.pending(jobs, sink, retry_failed=retry_failed, force=force)
        display.begin(jobs, left)
        try:
            if left:
                from omnicli.batch import rows
                from omnicli.batch.worker import Worker

                cache = None if no_cache else defaults.open_cache()
                worker = Worker(config, timeout, fit, cache=cache, evidence=evidence)
                answerer = stack.enter_context(_answering(worker, isolate, cluster, display))
                runner.run(left, answerer, sink, skipped=partial(rows.skipped, config=config), tell=display.tell)
        except KeyboardInterrupt:
            if output is not None:
                display.note(f"{display.done} of {display.total} items done; the same command goes on from here")
            raise
        counts = runner.tally(jobs, sink)
    display.end(counts)
    return runner.ITEM_FAILED if counts["failed"] else 0


def _questions(texts: Sequence[str]) -> list[str]:
    """Return the questions, without repetitions."""
    out = list(dict.fromkeys(text.strip() for text in texts))
    if not all(out):
        raise UsageError("a question is empty")
    for text in out:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UsageError(f"a question is not valid UTF-8: {text!r}") from None
    return out


def _wanted(
    paths: Sequence[str], manifest: Path | None, null: bool, asked: Sequence[str], display: Display
) -> list[Wanted]:
    """Return what is to be asked of what, in order."""
    from omnicli.batch.items import Wanted, find_media
    from omnicli.batch.manifest import read_manifest

    if manifest is not None:
        if paths or null:
            raise UsageError("give either paths or --manifest")
        wanted, problems = read_manifest(manifest, asked)
        if problems:
            for text in problems[:-1]:
                render.note(text)
            raise UsageError(problems[-1])
        return wanted
    if not paths and not null:
        raise UsageError('no film; try: omni batch FOLDER -q "What is the secret number?" -o answers.jsonl')
    if not asked:
        raise UsageError("no question; give one or more with -q")
    if list(paths).count(STDIN) + null > 1:
        raise UsageError("stdin can be read only once")
    media: dict[str, None] = {}
    for name in [*paths, STDIN] if null else paths:
        if name == STDIN:
            found = find_media(_listed(null), display.note, patterns=False)
        else:
            found = find_media([name], display.note)
        media.update(dict.fromkeys(found))
    if not media:
        raise UsageError(f"no film or sound file in {', '.join(paths)}" if paths else "no name on stdin")
    return [Wanted(one, question) for one in media for question in asked]


def _listed(null: bool) -> list[str]:
    """Return the names on stdin, one a line or each ended by NUL, whatever bytes they are made of."""
    data = sys.stdin.buffer.read()
    parts = data.split(b"\0") if null else [line.removesuffix(b"\r") for line in data.split(b"\n")]
    return [os.fsdecode(part) for part in parts if part]


def _settings_key(config: Config) -> str:
    """Return what identifies the settings and the weights that answers depend on."""
    from omnicli.models.loading import find_folder
    from omnicli.utils import fingerprint

    known: list[Any] = [config.to_dict()]
    if config.model and not config.model.startswith("dummy:"):
        folder, revision = find_folder(config.model)
        known += [revision, fingerprint.checkpoint(folder)]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _on_cluster(
    ray: bool, address: str | None, workers: int | None, isolate: bool, device: str | None
) -> dict[str, Any] | None:
    """Return what `omnicli.batch.ray.Cluster` is made with, after what can be checked at once; None without --ray."""
    if not ray:
        if address is not None or workers is not None:
            raise UsageError(f"{'--address' if address is not None else '--workers'} has no meaning without --ray")
        return None
    if not isolate:
        raise UsageError("--no-isolate has no meaning with --ray")
    if device is not None and device.startswith("cuda:"):
        raise UsageError(f"--device {device} has no meaning with --ray, which hands out the GPUs; write cuda")
    from omnicli.batch.ray import check

    check(address)
    return {"address": address, "workers": workers}


@contextlib.contextmanager
def _answering(worker: Worker, isolate: bool, cluster: dict[str, Any] | None, display: Display) -> Iterator[Answering]:
    """Return who answers: the worker in this process, in one of its own, or workers on a cluster."""
    from omnicli.batch import rows
    from omnicli.batch.isolate import Isolated
    from omnicli.batch.ray import Cluster
    from omnicli.cli import answering

    if worker.config.model == "pocket":
        display.note(answering.honesty())
    if not isolate:
        yield worker
        return

    def failed(item: Any, code: int, message: str, seconds: float) -> Row:
        return rows.failed(item, worker.config, code, message, seconds)

    verbose = opt.is_verbose()
    setup = partial(opt.set_verbose, verbose)
    if cluster is None:
        with Isolated(worker, failed, worker.timeout_s, setup=setup) as isolated:
            yield isolated
        return
    gpus = worker.config.device != "cpu"
    # Ray prints its own messages on stdout, where rows may go; `Display` keeps the real one.
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(sys.stderr if verbose else nowhere),
        Cluster(worker, failed, worker.timeout_s, setup=setup, gpus=gpus, verbose=verbose, **cluster) as many,
    ):
        display.note(many.told())
        yield many


class Display:
    """What is told on stderr: failures as they come, one line of progress on a terminal, and a last line."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.out = sys.stdout
        self.live = not quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self.start = time.monotonic()
        self.done = self.failed = self.total = 0
        self.last = ""

    def note(self, text: str) -> None:
        """Write one line for good."""
        if not self.quiet:
            self.clear()
            render.note(text)

    def row(self, row: Row) -> None:
        """Write a row to stdout, which may be the same terminal."""
        self.clear()
        render.print_json(row, out=self.out)

    def begin(self, jobs: Sequence[Job], left: Sequence[Job]) -> None:
        """Say how much there is to do."""
        total, self.total = (sum(len(job.items) for job in some) for some in (jobs, left))
        if total > self.total:
            self.note(f"{total - self.total} of {total} items are done already")
        self.start = time.monotonic()
        self._write(f"[0/{self.total}]")

    def tell(self, row: Row) -> None:
        """Count a row."""
        self.done += 1
        if row["status"] == "failed":
            self.failed += 1
            if row["error"]["message"] != self.last:  # all questions about a broken file fail alike
                self.last = row["error"]["message"]
                self.note(f"failed: {self.last}")
        seconds = max(1e-9, time.monotonic() - self.start)
        left = (self.total - self.done) * seconds / self.done
        rate = f"{60 * self.done / seconds:.3g} a minute, {_clock(left)} left"
        failed = f", {self.failed} failed" if self.failed else ""
        self._write(f"[{self.done}/{self.total}] {rate}{failed}: {os.path.basename(row['media'])}")

    def end(self, counts: Any) -> None:
        """Say what came out."""
        told = ", ".join(f"{counts[status]} {status}" for status in ("ok", "failed", "skipped") if counts[status])
        earlier = f" ({counts['failed'] - self.failed} of them before; --retry-failed does them again)"
        again = earlier if counts["failed"] > self.failed else ""
        self.note(f"{told}{again}; {_clock(time.monotonic() - self.start)}")

    def clear(self) -> None:
        """Take the line of progress off the screen."""
        self._write("")

    def _write(self, text: str) -> None:
        """Replace the line of progress; it is kept within the terminal's width."""
        if self.live:
            shown = "".join(c if c.isprintable() else "\ufffd" for c in text)  # names may hold anything
            width = (os.get_terminal_size(sys.stderr.fileno()).columns or 80) - 1
            print(f"\r\033[K{shown[:width]}", end="", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
