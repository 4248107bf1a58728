"""Promise 5, the store's part: a full disk loses nothing acknowledged, and the store goes on when there is room."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.database import DatabaseError
from coordinator.store import FILE_NAME, Store


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root")
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_fills_loses_nothing_and_the_store_goes_on_with_room(
    small_disk: Path, planned_run, run_trials
) -> None:
    planned, trial_ids, result = planned_run
    run = Path(shutil.copytree(planned, small_disk / "run"))
    acknowledged: list[str] = []
    with Store.resume(run) as store:
        ballast = small_disk / "ballast"
        ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - 200_000))
        with pytest.raises(DatabaseError) as caught:
            run_trials(store, trial_ids, result, acknowledged)
        assert caught.value.reason in ("full", "io")
        assert 0 < len(acknowledged) < len(trial_ids)
        assert {record.assignment_id for record in store.observations()} >= set(acknowledged)
        ballast.unlink()
        rest = [row.trial_id for row in store.unfinished_trials()]
        run_trials(store, rest[:5], result, acknowledged)
        store.verify()
        assert {record.assignment_id for record in store.observations()} >= set(acknowledged)
        assert store.free_bytes() > 0


WRITE_WITH_LITTLE_ROOM = """
import resource, signal, sys
from pathlib import Path
from coordinator.database import DatabaseError
from coordinator.store import FILE_NAME, Store

run = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Store.resume(run) as store:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
    number = 0
    try:
        while True:
            store.set_meta(f"fact-{number}", "x" * 10_000)
            number += 1
    except DatabaseError as error:
        print(number, error.reason)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    store.set_meta("after", "fine")
"""


def test_a_limit_on_file_sizes_loses_nothing_acknowledged(run_copy: Path) -> None:
    limit = (run_copy / FILE_NAME).stat().st_size + 100_000
    done = subprocess.run(
        [sys.executable, "-c", WRITE_WITH_LITTLE_ROOM, str(run_copy), str(limit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    number, reason = done.stdout.split()
    assert reason in ("full", "io")
    assert int(number) > 3
    with Store.resume(run_copy) as store:
        assert all(store.meta(f"fact-{n}") for n in range(int(number)))
        assert store.meta("after") == "fine"
        store.verify()
