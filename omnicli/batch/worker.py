"""Doing one job after the other in this process: a file is encoded once, every question about it becomes a row.

Whatever goes wrong with a file or a question becomes a failed row. Knows no journal and nothing of other processes.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from omnicli import pipeline
from omnicli.batch import rows
from omnicli.batch.errors import DeviceLostError
from omnicli.batch.limit import time_limit
from omnicli.encode.encode import DecodeJob
from omnicli.encode.film import EncodedFilm, load_film
from omnicli.errors import ConfigError, MemoryLimitError, ModelError, OmniError
from omnicli.llm.prefix_cache import PrefixCache
from omnicli.media.pieces import HERE
from omnicli.media.probe import MediaInfo, probe
from omnicli.models.loading import load_configured
from omnicli.planning.fit import smaller
from omnicli.utils import memory
from omnicli.utils.context import RunContext
from omnicli.utils.timing import StageClock

if TYPE_CHECKING:
    from omnicli.batch.items import Item, Job
    from omnicli.batch.journal import Row
    from omnicli.config.config import Config
    from omnicli.encode.cache import Cache
    from omnicli.media.pieces import Decoder
    from omnicli.models.base import OmniModel

_log = logging.getLogger(__name__)


def load(config: Config) -> OmniModel:
    """Return the model of a configuration."""
    return load_configured(config)


@dataclass
class Worker:
    """Answers questions with one model.

    Parameters
    ----------
    config : Config
    timeout_s : float or None
        For each question; reading and encoding the file count with the first one.
    fit : bool
        Ask again with a smaller budget (`smaller`) what did not fit in memory or context.
    load : callable
        Returns the model of a configuration.
    cache : Cache or None
        Where encoded films are kept.
    evidence : bool
        Tell which seconds answers rest on.
    """

    config: Config
    timeout_s: float | None = None
    fit: bool = False
    load: Callable[[Config], OmniModel] = load
    cache: Cache | None = None
    evidence: bool = False

    def __post_init__(self) -> None:
        self._decoder: Decoder = HERE
        self._ahead: _Ahead | None = None
        self._answered = 0
        self._small: tuple[Config, str, str] | None = None  # what this film is asked with, once it did not fit, and why

    def open(self, decoder: Decoder | None = None) -> None:
        """Load the model. ``decoder``: where films are decoded; None: in this process."""
        self.model, self._decoder = self.load(self.config), decoder or HERE

    def answer(self, jobs: Sequence[Job]) -> Iterator[Row]:
        """Do jobs in this process, the next file being decoded while the model works on this one."""
        self.open()
        for job, following in itertools.zip_longest(jobs, jobs[1:]):
            yield from self.do(job, following.media if following else None)

    def do(self, job: Job, following: str | None = None) -> Iterator[Row]:
        """Yield a row for each item of a job.

        Parameters
        ----------
        following : str
            The file that comes next: its decoding begins as soon as this one is encoded.

        Raises
        ------
        ConfigError, ModelError
            Before the first answer: the settings do not fit the model, and no film will change that.
        DeviceLostError
        """
        self._clean(memory.reset)  # peaks in the rows are those of the film
        self._small = None
        film: EncodedFilm | None = None
        lost: tuple[int, str] | None = None
        self._prefix_cache = PrefixCache(self.model)
        for item in job.items:
            if lost is not None:
                yield rows.failed(item, self.config, *lost, 0.0)
                continue
            begin, clean = time.perf_counter(), True
            try:
                with time_limit(self.timeout_s):
                    film = film or self._look(job.media)
                    self._look_ahead(following)
                    row = self._answer(film, item, last=item is job.items[-1])
                self._answered += 1
            except Exception as error:
                if isinstance(error, ConfigError | ModelError) and not self._answered:
                    raise
                _log.info("%s: %s", job.media, item.question, exc_info=True)
                failure, clean = self._failure(job.media, error), isinstance(error, OmniError)
                lost = failure if film is None else None
                row = rows.failed(item, self.config, *failure, time.perf_counter() - begin)
                self._look_ahead(following)
            yield row
            if not clean:
                self._clean(memory.free)

    def _look(self, media: str) -> EncodedFilm:
        settings, needs, ahead = self.config.media, self.config.compressor.needs, self._ahead
        if ahead is None or ahead.media != media:
            self.forget()
            return load_film(media, settings, needs, self.model, cache=self.cache, decoder=self._decoder)
        try:
            ahead.clock.restart()
            with ahead.clock.stage("probe"):
                begun = ahead.result()
            return load_film(begun, settings, needs, self.model, cache=self.cache)
        finally:
            self.forget()

    def _look_ahead(self, following: str | None) -> None:
        if following is None or (self._ahead is not None and self._ahead.media == following):
            return
        self.forget()
        if self.cache is None or not self.cache.knows(Path(following)):
            context, decoder = RunContext.on(self.model.device), self._decoder
            begin = partial(DecodeJob, settings=self.config.media, model=self.model, context=context, decoder=decoder)
            self._ahead = _Ahead(following, context.clock, begin)

    def forget(self) -> None:
        """Stop decoding the file that was to follow."""
        if self._ahead is not None:
            self._ahead.drop()
            self._ahead = None

    def _answer(self, film: EncodedFilm, item: Item, last: bool) -> Row:
        """Ask; if it does not fit and that is wanted, once more with less, as all further questions on this film."""
        ask = partial(pipeline.answer, film, item.question, evidence=self.evidence)
        if self._small is None:
            try:
                return rows.answered(item, ask(self.config, self.model, prefix_cache=self._prefix_cache, last=last), [])
            except Exception as error:
                code, message = _told(item.media, error)
                if not self.fit or code != MemoryLimitError.exit_code:
                    raise
                config, what = smaller(self.config)
            self._small = config, what, message
            self._clean(memory.free)
        config, what, message = self._small
        return rows.answered(item, ask(config, self.model), [f"did not fit ({message}); answered with {what} (--fit)"])

    def _failure(self, media: str, error: Exception) -> tuple[int, str]:
        """Return code and message of a failure; the message says if less was tried."""
        code, message = _told(media, error)
        return code, message if self._small is None else f"{message}; asked with {self._small[1]} (--fit)"

    def _clean(self, free: Callable[[torch.device], None]) -> None:
        """Give memory back, and make sure that the device still works."""
        devices = self.model.devices
        try:
            free(devices[0])
            for device in devices if devices[0].type == "cuda" else ():
                torch.cuda.synchronize(device)
        except RuntimeError as error:
            text = (
                f"the device does not work any more ({' '.join(str(error).split())[:160]}); run the same command again"
            )
            raise DeviceLostError(text) from error


def _told(media: str, error: Exception) -> tuple[int, str]:
    """Return code and message of a failure, the file's name included."""
    if (short := memory.failure(error)) is not None:
        message, code = short
    elif isinstance(error, OmniError):
        message, code = str(error), error.exit_code
    else:
        message, code = f"internal error: {type(error).__name__}: {str(error)[:300]}", OmniError.exit_code
    return code, message if message.startswith(str(Path(media))) else f"{media}: {message}"


class _Ahead:
    """A file that threads probe and begin to decode; one that never comes back keeps neither next file nor process."""

    def __init__(self, media: str, clock: StageClock, begin: Callable[[MediaInfo], DecodeJob]) -> None:
        self.media, self.clock, self._begin = media, clock, begin
        self._future: Future[DecodeJob] = Future()
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        try:
            self._future.set_result(self._begin(probe(self.media)))
        except BaseException as error:
            self._future.set_exception(error)

    def result(self) -> DecodeJob:
        """Wait for it; raises what `probe` and `DecodeJob` raise."""
        return self._future.result()

    def drop(self) -> None:
        """Stop decoding, without waiting for it."""
        threading.Thread(target=self._close, daemon=True).start()

    def _close(self) -> None:
        if self._future.exception() is None:
            self._future.result().close()
