"""Promise 1: an acknowledged result survives a loss of power, which forgets, tears and reorders what was not synced."""

import random
from pathlib import Path

import apsw
import pytest

from coordinator.database import DatabaseError
from coordinator.errors import StoreError
from coordinator.store import FILE_NAME, Store

NUM_SEEDS = 200
NUM_SEEDS_OFF = 40


def lose_power(
    disk, planned_run, run_trials, tmp_path: Path, seed: int, *, synchronous: str
) -> tuple[Path, list, bool]:
    """Write until the power goes at some call; what survives, what was acknowledged, whether a checkpoint ran."""
    directory, trial_ids, result = planned_run
    source = random.Random(seed)
    disk.files.clear()
    disk.put(directory)
    left = source.randrange(1, 500)
    acknowledged: list[str] = []

    def count_down(call: str, _path: str) -> None:
        nonlocal left
        if call in ("write", "sync", "truncate", "delete"):
            left -= 1
        if left <= 0:
            raise apsw.IOError("the power is gone")

    disk.before_call = count_down
    try:
        with Store.resume(directory, vfs="memory") as store:
            store._database.execute(f"PRAGMA synchronous = {synchronous}")
            store._database.execute("PRAGMA wal_autocheckpoint = 8")
            run_trials(store, trial_ids, result, acknowledged)
    except (DatabaseError, StoreError):
        pass
    mid_checkpoint = bool(disk.files[str(directory / FILE_NAME)].unsynced)
    survived = disk.give(tmp_path / f"{synchronous}-{seed}", lambda file: file.after_power_loss(source))
    return survived, acknowledged, mid_checkpoint


@pytest.mark.slow
def test_full_synchronisation_loses_nothing_acknowledged(
    disk, planned_run, run_trials, promises_kept, tmp_path: Path
) -> None:
    in_checkpoints = num_acknowledged = 0
    for seed in range(NUM_SEEDS):
        survived, acknowledged, mid = lose_power(disk, planned_run, run_trials, tmp_path, seed, synchronous="FULL")
        assert promises_kept(survived, acknowledged), f"seed {seed}"
        in_checkpoints += mid
        num_acknowledged += len(acknowledged)
    assert in_checkpoints >= 5  # the power went in the middle of checkpoints, too
    assert num_acknowledged >= 4 * NUM_SEEDS


def test_without_synchronisation_something_is_lost(
    disk, planned_run, run_trials, promises_kept, tmp_path: Path
) -> None:
    """So the test above can fail."""
    kept = [
        promises_kept(*lose_power(disk, planned_run, run_trials, tmp_path, seed, synchronous="OFF")[:2])
        for seed in range(NUM_SEEDS_OFF)
    ]
    assert kept.count(False) >= NUM_SEEDS_OFF // 4
