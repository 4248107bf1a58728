"""`archfleet backup`: a copy of a run's store while it runs, opened and checked before it counts; its logs beside it.

Restoring is putting the copy in the store's place in the run directory; corpus shards are found again by their hashes.
Logs are for people and are not checked: a file of them that makes room meanwhile is left out.
"""

import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from coordinator import failpoints
from coordinator.database import Database, DatabaseError
from coordinator.errors import StoreError
from coordinator.logs import FOLDER as LOGS
from coordinator.store import FILE_NAME, StoreReader, note_backup

PAGES_A_STEP = 1_000
"""Between two steps a writer may write."""


@dataclass(frozen=True, kw_only=True)
class Backup:
    """A copy that was opened and read to its last row."""

    path: Path
    num_bytes: int
    """Of the store."""
    num_log_bytes: int
    num_trials: int
    num_observations: int


def back_up(run_directory: Path, destination: Path | None = None, *, now_unix: float) -> Backup:
    """Copy a run's store, check the copy, lay its logs beside it, and note in the store when that was.

    Args:
        run_directory: of a run that may be running.
        destination: the copy's directory, made if need be; by default backups/ in the run directory.
        now_unix: names the copy.

    Raises:
        StoreError: the store cannot be read, the copy cannot be written, or the copy is not sound; it is removed.
    """
    directory = destination or run_directory / "backups"
    with StoreReader.open(run_directory):
        pass
    path = directory / f"{run_directory.resolve().name}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now_unix))}"
    if path.exists():
        raise StoreError(f"{path} exists already; wait a second, or give another directory.")
    unfinished = path.with_name(f"{path.name}.partial")
    try:
        unfinished.mkdir(parents=True)
        _copy(run_directory / FILE_NAME, unfinished / FILE_NAME)
        found = _check(unfinished, run_directory)
        num_log_bytes = _copy_logs(run_directory / LOGS, unfinished / LOGS)
        _sync(unfinished)
        unfinished.rename(path)
        _sync(directory)
    except (OSError, DatabaseError) as error:
        raise StoreError(
            f"cannot back up to {directory}: {error}.\nGive a directory with room: `archfleet backup RUN DIRECTORY`."
        ) from None
    finally:
        _remove(unfinished)
    note_backup(run_directory, now_unix=now_unix)
    return Backup(
        path=path,
        num_bytes=(path / FILE_NAME).stat().st_size,
        num_log_bytes=num_log_bytes,
        num_trials=found[0],
        num_observations=found[1],
    )


def _copy(source: Path, target: Path) -> None:
    reader = Database.open_for_reading(source)
    try:
        # Not in write-ahead mode: the copy is one file, whole by itself.
        writer = Database.open_for_copy(target)
        try:
            reader.copy_to(writer, pages_a_step=PAGES_A_STEP, between=lambda: failpoints.hit("backup.mid_copy"))
        finally:
            writer.close()
    finally:
        reader.close()


def _copy_logs(source: Path, target: Path) -> int:
    """Gives the number of bytes."""
    if not source.is_dir():
        return 0
    target.mkdir()
    for log in sorted(source.glob("*.log")):
        with suppress(FileNotFoundError):  # it made room meanwhile
            shutil.copyfile(log, target / log.name)
    return sum(copy.stat().st_size for copy in target.iterdir())


def _check(directory: Path, run_directory: Path) -> tuple[int, int]:
    try:
        with StoreReader.open(directory) as copy:
            copy.verify()
            return sum(count.num for count in copy.counts()), copy.num_observations()
    except StoreError as error:
        with StoreReader.open(run_directory) as store:
            store.verify()  # names what the run itself holds, where the damage is there
        raise StoreError(
            f"{run_directory / FILE_NAME} is sound, but its copy in {directory.parent} is not and was removed "
            f"({str(error).partition(chr(10))[0]}).\nLook at that disk, or give another directory."
        ) from None


def _sync(path: Path) -> None:
    """Have the names in a directory survive a loss of power; SQLite has synced the file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(directory: Path) -> None:
    if directory.is_dir():
        shutil.rmtree(directory)
