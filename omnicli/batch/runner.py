"""The loop: what is still to be done goes to whoever answers, each row into the journal as it comes.

Knows neither models nor processes: an `Answering` is this process, one beside it (`omnicli.batch.isolate`), or anything
else that takes jobs and gives rows in whatever order, such as a cluster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from omnicli.batch.items import Item, Job
from omnicli.batch.journal import Row, Sink

ITEM_FAILED = 7
"""Exit code of a run that ended with failed items."""


class Answering(Protocol):
    """Does jobs."""

    def answer(self, jobs: Sequence[Job]) -> Iterator[Row]:
        """Yield one row for every item of every job, failed ones included."""


def pending(jobs: Sequence[Job], sink: Sink, *, retry_failed: bool = False, force: bool = False) -> list[Job]:
    """Return what is still to be done: items without a row; failed ones too if told so; with ``force`` everything."""
    done = {"ok", "skipped"} if retry_failed else {"ok", "skipped", "failed"}
    out = []
    for job in jobs:
        items = tuple(i for i in job.items if force or sink.status.get(i.key) not in done)
        if items:
            out.append(Job(job.media, items))
    return out


def run(
    jobs: Sequence[Job],
    answering: Answering,
    sink: Sink,
    *,
    skipped: Callable[[Item], Row],
    tell: Callable[[Row], None] = lambda row: None,
) -> None:
    """Do jobs. Second names of a file get their row from ``skipped`` and are not worked on."""
    work = []
    for job in jobs:
        for item in job.items:
            if item.same_as is not None:
                row = skipped(item)
                sink.add(row)
                tell(row)
        if items := tuple(i for i in job.items if i.same_as is None):
            work.append(Job(job.media, items))
    if work:
        for row in answering.answer(work):
            sink.add(row)
            tell(row)


def tally(jobs: Sequence[Job], sink: Sink) -> Counter[str]:
    """Return how many of the items have which status, whenever they got it."""
    return Counter(sink.status[i.key] for job in jobs for i in job.items if i.key in sink.status)
