"""An error at the N-th call to the disk, N from 1 until nothing fails: what was acknowledged stays."""

from functools import partial
from pathlib import Path

import apsw
import pytest

from coordinator.database import DatabaseError
from coordinator.errors import StoreError
from coordinator.store import Store

NUM_RUN = 3


@pytest.mark.slow
@pytest.mark.parametrize("error", [apsw.IOError, apsw.FullError])
def test_an_error_at_every_call_loses_nothing_acknowledged(
    disk, planned_run, run_trials, promises_kept, tmp_path: Path, error: type[apsw.Error]
) -> None:
    directory, trial_ids, result = planned_run
    some, nth, reached = trial_ids[:NUM_RUN], 0, True
    while reached:
        nth += 1
        disk.files.clear()
        disk.put(directory)
        acknowledged: list[str] = []
        write = partial(run_trials, trial_ids=some, result=result, acknowledged=acknowledged)
        reached = fail_once(disk, directory, nth, error, write)
        assert promises_kept(disk.give(tmp_path / f"{nth}"), acknowledged), f"call {nth}"
    assert nth > 100
    assert acknowledged == some


def fail_once(disk, directory: Path, nth: int, error: type[apsw.Error], write) -> bool:
    """Write with the N-th call failing; whether there was such a call."""
    num_calls = 0

    def fail_at_nth(_call: str, _path: str) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls == nth:
            raise error("as asked")

    disk.before_call = fail_at_nth
    try:
        with Store.resume(directory, vfs="memory") as store:
            store._database.execute("PRAGMA wal_autocheckpoint = 8")
            write(store)
    except (DatabaseError, StoreError):
        pass
    disk.before_call = lambda _call, _path: None
    return num_calls >= nth


def test_a_store_whose_commit_failed_takes_the_next_one(disk, planned_run, run_trials) -> None:
    directory, trial_ids, result = planned_run
    disk.put(directory)
    acknowledged: list[str] = []
    with Store.resume(directory, vfs="memory") as store:

        def refuse_syncs(call: str, _path: str) -> None:
            if call == "sync":
                raise apsw.FullError("no room")

        disk.before_call = refuse_syncs
        with pytest.raises(DatabaseError) as caught:
            run_trials(store, trial_ids[:1], result, acknowledged)
        assert caught.value.reason == "full"
        disk.before_call = lambda _call, _path: None
        run_trials(store, trial_ids[:2], result, acknowledged)
        assert acknowledged == trial_ids[:2]
        assert len(store.observations()) == 2
        store.verify()
