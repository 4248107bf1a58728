"""Run directories: where runs live, which one to resume, which one is meant.

RUNS/NAME-YYYYMMDD-HHMMSS/   store.sqlite3 · coordinator.lock · blobs/ · agents/ · report.html ·
                             recommendation.json · runs.csv · architectures/NAME/config.json
"""

import difflib
import time
from contextlib import suppress
from pathlib import Path

from coordinator.errors import StoreError
from coordinator.store import FILE_NAME, LOCK_NAME, StoreReader


def list_runs(runs: Path) -> list[Path]:
    """All run directories below `runs`, oldest first: ordered by when a coordinator last took them up."""
    return sorted((path.parent for path in runs.glob(f"*/{FILE_NAME}")), key=lambda path: (_taken_up(path), path.name))


def _taken_up(run_directory: Path) -> float:
    """Only a coordinator writes the lock; the directory's own time changes when a reader or a report touches it."""
    lock = run_directory / LOCK_NAME
    return (lock if lock.exists() else run_directory / FILE_NAME).stat().st_mtime


def unfinished_run(runs: Path, study_name: str) -> Path | None:
    """The last run of this study, if it did not finish; else None.

    Raises:
        StoreError: the last run of this name cannot be read (made by a newer version, say).
    """
    last = last_run(runs, study_name)
    return None if last is None or last[1] == "finished" else last[0]


def last_run(runs: Path, study_name: str) -> tuple[Path, str | None] | None:
    """The last run of this study, and its state; or None.

    Raises:
        StoreError: the last run of this name cannot be read (made by a newer version, say).
    """
    for path in reversed(list_runs(runs)):
        if not path.name.startswith(f"{study_name}-"):
            continue
        with StoreReader.open(path) as store:
            if store.study().name == study_name:
                return path, store.meta("state")
    return None


def new_run_directory(runs: Path, study_name: str, *, now_unix: float) -> Path:
    """A fresh name below `runs`; two runs begun in one second get different names."""
    stem = f"{study_name}-{time.strftime('%Y%m%d-%H%M%S', time.localtime(now_unix))}"
    names = [stem, *(f"{stem}-{number}" for number in range(2, 100))]
    return next(runs / name for name in names if not (runs / name).exists())


def find_run(run: str | None, runs: Path) -> Path:
    """The run a user means: a path, a name below `runs`, or by default the last one.

    Raises:
        StoreError: there is none.
    """
    if run is not None:
        for path in (Path(run), runs / run):
            with suppress(OSError):  # a name longer than names can be
                if (path / FILE_NAME).is_file():
                    return path
        raise StoreError(_no_such_run(run, runs))
    found = list_runs(runs)
    if not found:
        raise StoreError(f"no run in {runs}/ yet; start one with `archfleet run`, or give a run directory.")
    return found[-1]


NUM_NAMED = 8
"""Runs that a message names: the newest."""


def _no_such_run(run: str, runs: Path) -> str:
    names = [path.name for path in reversed(list_runs(runs))]
    typed = run.rstrip("/").rpartition("/")[2][:200]
    begun = [name for name in names if typed and name.startswith(typed)]  # a study's name: its newest run
    close = begun or difflib.get_close_matches(typed, names, n=1)
    meant = f" Did you mean {close[0]!r}?" if close else ""
    more = f" and {len(names) - NUM_NAMED} older ones" if len(names) > NUM_NAMED else ""
    known = ", ".join(names[:NUM_NAMED]) + more if names else "none yet"
    return f"no run {run!r:.200}: expected a run directory, or the name of one in {runs}/ ({known}).{meant}"
