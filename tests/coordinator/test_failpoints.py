"""Failpoints: a process killed at a named place, and what a restart makes of what it left."""

import gzip
import lzma
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from coordinator import failpoints
from coordinator.backup import back_up
from coordinator.database import Database
from coordinator.store import FILE_NAME, Store, StoreReader

DATA = Path(__file__).with_name("data")
OLD_STORES = {
    "schema 1": lambda: gzip.decompress((DATA / "store-schema-1.sqlite3.gz").read_bytes()),
    "schema 2": lambda: lzma.decompress((DATA / "schema-2-e5a0776.sqlite3.xz").read_bytes()),
}
SET_FACTS = """
import sys
from pathlib import Path
from coordinator.store import Store
with Store.resume(Path(sys.argv[1])) as store:
    for number in range(100):
        store.set_meta(f"fact-{number}", "set")
        print(number, flush=True)
"""
BACK_UP = """
import sys
from pathlib import Path
from coordinator.backup import back_up
back_up(Path(sys.argv[1]), now_unix=1_700_000_000)
"""


def run_until_killed(script: str, directory: Path, failpoint: str) -> list[str]:
    """Run a script that meets its end; what it had acknowledged."""
    done = subprocess.run(
        [sys.executable, "-c", script, str(directory)],
        capture_output=True,
        text=True,
        check=False,
        env={failpoints.VARIABLE: failpoint},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stdout.split()


def facts(directory: Path) -> int:
    with Store.resume(directory) as store:
        store.verify()
        return sum(store.meta(f"fact-{number}") is not None for number in range(100))


def test_killed_before_a_commit_nothing_of_it_is_kept(run_copy: Path) -> None:
    # The probe on opening is the first commit.
    assert len(run_until_killed(SET_FACTS, run_copy, "store.before_commit:kill@8")) == 6
    assert facts(run_copy) == 6


def test_killed_after_a_commit_all_of_it_is_kept(run_copy: Path) -> None:
    assert len(run_until_killed(SET_FACTS, run_copy, "store.after_commit:kill@8")) == 6
    assert facts(run_copy) == 7  # one more than was acknowledged


@pytest.mark.parametrize(
    ("old", "failpoint"),
    [
        ("schema 1", "store.mid_migration:kill"),
        ("schema 1", "store.mid_migration:kill@2"),  # within the second step
        ("schema 2", "store.mid_migration:kill"),
    ],
)
def test_killed_in_a_migration_the_old_store_is_whole(tmp_path: Path, old: str, failpoint: str) -> None:
    (tmp_path / FILE_NAME).write_bytes(OLD_STORES[old]())
    assert run_until_killed(SET_FACTS, tmp_path, failpoint) == []
    database = Database.open_for_reading(tmp_path / FILE_NAME)
    assert database.number("PRAGMA user_version") == int(old[-1])
    num_trials = database.number("SELECT count(*) FROM trials")
    database.close()
    with Store.resume(tmp_path) as store:
        store.verify()
        assert len(store.trials()) == num_trials > 0


def test_killed_in_a_backup_no_copy_passes_for_one(run_copy: Path) -> None:
    run_until_killed(BACK_UP, run_copy, "backup.mid_copy:kill")
    left = list((run_copy / "backups").iterdir())
    assert [path.suffix for path in left] == [".partial"]
    with StoreReader.open(run_copy) as run:
        assert run.meta("last_backup_unix") is None
    assert back_up(run_copy, now_unix=1_700_000_100).path.is_dir()


@pytest.mark.parametrize("setting", ["store.no_such_place:kill", "store.after_commit", "store.after_commit:kill@0"])
def test_a_failpoint_that_does_not_exist_is_refused(setting: str, monkeypatch) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, setting)
    failpoints._armed.cache_clear()
    with pytest.raises(ValueError, match="expected NAME:kill or NAME:kill@TIME"):
        failpoints.hit("store.after_commit")
    monkeypatch.delenv(failpoints.VARIABLE)
    failpoints._armed.cache_clear()


def test_an_unset_failpoint_is_passed(store: Store) -> None:
    for name in failpoints.NAMES:
        failpoints.hit(name)
