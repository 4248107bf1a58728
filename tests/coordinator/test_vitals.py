"""Vitals: written by the next commit, counted once."""

import math

import pytest

from coordinator.store import Store
from coordinator.vitals import BOUNDS_SECONDS, TIMINGS, Vitals


def test_nothing_is_written_twice(store: Store) -> None:
    vitals = Vitals()
    vitals.heard("heartbeat")
    for _ in range(2):
        vitals.write(store)
        vitals.written()
    assert [(row.name, row.num) for row in store.tallied("reports")] == [("heartbeat", 1)]


def test_what_could_not_be_written_is_written_later(store: Store) -> None:
    vitals = Vitals()
    vitals.heard("heartbeat")
    with pytest.raises(ZeroDivisionError):
        write_and_fail(store, vitals)
    vitals.heard("heartbeat")
    vitals.write(store)
    assert [row.num for row in store.tallied("reports")] == [2]


@pytest.mark.parametrize("kind", TIMINGS)
def test_a_duration_counts_in_the_first_bucket_that_holds_it(store: Store, kind) -> None:
    vitals, bounds = Vitals(), BOUNDS_SECONDS[kind]
    for seconds in (0, bounds[0], bounds[0] * 1.01, bounds[-1] + 1):
        vitals.took(kind, seconds)
    vitals.write(store)
    told = {float(row.name): row.num for row in store.tallied(kind)}
    assert told == {bounds[0]: 2, bounds[1]: 1, math.inf: 1}
    assert sum(row.seconds for row in store.tallied(kind)) == pytest.approx(2.01 * bounds[0] + bounds[-1] + 1)


def test_a_commit_that_fails_makes_the_store_unwritable_until_one_works(store: Store) -> None:
    vitals = Vitals()
    vitals.not_committed("full")
    assert not vitals.is_writable
    vitals.committed(0.01)
    assert vitals.is_writable
    vitals.write(store)
    assert [(row.name, row.num) for row in store.tallied("store_errors")] == [("full", 1)]
    assert sum(row.num for row in store.tallied("commit_seconds")) == 1


def write_and_fail(store: Store, vitals: Vitals) -> None:
    with store.transaction():
        vitals.write(store)
        raise ZeroDivisionError
