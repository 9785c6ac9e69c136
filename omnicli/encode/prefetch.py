"""Iterators that run in threads of their own, a bounded number of items ahead of whoever consumes them.

Knows nothing of what the items are. Order holds within a source; between sources items come as they are ready.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


@contextmanager
def prefetch(sources: Sequence[Iterator[T]], size: int = 2) -> Iterator[Iterator[tuple[int, T]]]:
    """Run ``sources`` at the same time for as long as the context lasts.

    Parameters
    ----------
    sources : sequence of iterators
        Each is advanced in its own thread only. Generators are closed there when the context ends, even in the middle.
    size : int
        A source stops while so many of its items wait to be consumed; one more may be in the making.

    Yields
    ------
    iterator of (source, item)
        The source's number and what it gave. An exception of a source is raised here, behind the items before it.
    """
    run = _Run(sources, size)
    try:
        yield run.items()
    finally:
        run.stop()


class _Run:
    def __init__(self, sources: Sequence[Iterator[Any]], size: int) -> None:
        self.stopped = False
        self.done: queue.SimpleQueue[tuple[int, Any, BaseException | None, bool]] = queue.SimpleQueue()
        self.room = [threading.Semaphore(size) for _ in sources]
        self.threads = [
            threading.Thread(target=self._work, args=(i, source), daemon=True) for i, source in enumerate(sources)
        ]
        for thread in self.threads:
            thread.start()

    def items(self) -> Iterator[tuple[int, Any]]:
        left = len(self.threads)
        while left:
            number, item, error, last = self.done.get()
            if error is not None:
                raise error
            if last:
                left -= 1
                continue
            self.room[number].release()
            yield number, item

    def stop(self) -> None:
        self.stopped = True
        for room in self.room:
            room.release()
        for thread in self.threads:
            thread.join()

    def _work(self, number: int, source: Iterator[Any]) -> None:
        try:
            for item in source:
                self.room[number].acquire()
                if self.stopped:
                    break
                self.done.put((number, item, None, False))
            else:
                self.done.put((number, None, None, True))
        except BaseException as error:  # raised where the items are consumed
            self.done.put((number, None, error, True))
        finally:
            if (close := getattr(source, "close", None)) is not None:
                close()
