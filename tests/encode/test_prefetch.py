"""Iterators in threads: order, bounds, errors, and that nothing is left behind."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from omnicli.encode.prefetch import prefetch


def test_each_source_keeps_its_order_and_all_items_come():
    sources = [iter(range(50)), iter("abcdef"), iter(())]
    with prefetch(sources) as items:
        got = list(items)
    assert [x for i, x in got if i == 0] == list(range(50))
    assert [x for i, x in got if i == 1] == list("abcdef")
    assert len(got) == 56


def test_sources_run_at_the_same_time():
    both = threading.Barrier(2, timeout=5)

    def source():
        both.wait()  # would time out if one came after the other
        yield 1

    with prefetch([source(), source()]) as items:
        assert sorted(items) == [(0, 1), (1, 1)]


@pytest.mark.parametrize("size", [1, 3])
def test_a_source_stays_a_bounded_number_of_items_ahead(size):
    made = []

    def source():
        for i in itertools.count():
            made.append(i)
            yield i

    with prefetch([source()], size) as items:
        for taken in range(1, 6):
            next(items)
            time.sleep(0.02)
            assert taken <= len(made) <= taken + size + 1


def test_an_error_comes_behind_the_items_before_it():
    def source():
        yield from (1, 2)
        raise KeyError("broken")

    got = []
    with pytest.raises(KeyError, match="broken"), prefetch([source()]) as items:
        for _, item in items:
            got.append(item)
    assert got == [1, 2]


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_sources_are_closed_and_threads_gone_when_the_consumer_leaves(taken):
    closed = []

    def source(name):
        try:
            yield from itertools.count()
        finally:
            closed.append((name, threading.current_thread()))

    before = threading.active_count()
    with prefetch([source("a"), source("b")], 2) as items:
        for _ in range(taken):
            next(items)
    assert threading.active_count() == before
    assert {name for name, _ in closed} == {"a", "b"}
    assert threading.main_thread() not in {thread for _, thread in closed}
