"""Store: the run's memory, on SQLite. Append, lease, read back.

One process writes, through one connection, in WAL mode with synchronous=FULL: what was acknowledged survives
kill -9 and power loss. Readers (status, metrics, report) open the file read-only. Every record is versioned by
its own schema_version; the database by `SCHEMA_VERSION`, checked on opening.

Times in the store are seconds since the epoch, for people; leases are decided on the coordinator's monotonic clock.
"""

import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from coordinator.errors import StoreError
from coordinator.plan import Plan, PlannedTrial
from coordinator.study import StudySpec
from scaling.observations import Failure, Observation, Progress

SCHEMA_VERSION = 1
FILE_NAME = "store.sqlite3"
LOCK_NAME = "coordinator.lock"

_observation_adapter: TypeAdapter[Observation] = TypeAdapter(Observation)

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE trials (
    trial_id TEXT PRIMARY KEY, position INTEGER NOT NULL, stage TEXT NOT NULL, phase TEXT NOT NULL,
    planned TEXT NOT NULL, state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'succeeded', 'failed')),
    epoch INTEGER NOT NULL DEFAULT 0, attempts INTEGER NOT NULL DEFAULT 0, agent TEXT, hardware TEXT,
    done_fraction REAL NOT NULL DEFAULT 0, queued_unix REAL NOT NULL, first_leased_unix REAL, leased_unix REAL,
    lease_expires_unix REAL, ended_unix REAL, spent_seconds REAL NOT NULL DEFAULT 0) STRICT;
CREATE TABLE observations (
    seq INTEGER PRIMARY KEY, trial_id TEXT NOT NULL REFERENCES trials, epoch INTEGER NOT NULL, kind TEXT NOT NULL,
    record TEXT NOT NULL, unix REAL NOT NULL, UNIQUE (trial_id, epoch)) STRICT;
CREATE UNIQUE INDEX one_result_a_trial ON observations (trial_id) WHERE kind != 'failure';
CREATE TABLE rejections (
    seq INTEGER PRIMARY KEY, trial_id TEXT NOT NULL, epoch INTEGER NOT NULL, agent TEXT NOT NULL,
    reason TEXT NOT NULL, unix REAL NOT NULL) STRICT;
CREATE TABLE plans (
    seq INTEGER PRIMARY KEY, stage TEXT NOT NULL UNIQUE, record TEXT NOT NULL, unix REAL NOT NULL) STRICT;
CREATE TABLE fits (
    seq INTEGER PRIMARY KEY, num_points INTEGER NOT NULL, outcome TEXT NOT NULL, seconds REAL NOT NULL,
    record TEXT NOT NULL, unix REAL NOT NULL) STRICT;
CREATE TABLE recommendations (seq INTEGER PRIMARY KEY, record TEXT NOT NULL, unix REAL NOT NULL) STRICT;
CREATE TABLE agents (
    agent TEXT PRIMARY KEY, hardware TEXT NOT NULL, state TEXT NOT NULL, pid INTEGER NOT NULL,
    heartbeat_unix REAL NOT NULL, joined_unix REAL NOT NULL) STRICT;
CREATE TABLE counters (name TEXT PRIMARY KEY, value REAL NOT NULL) STRICT;
"""


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One trial as the store knows it."""

    trial_id: str
    position: int
    stage: str
    phase: str
    planned: PlannedTrial
    state: str
    epoch: int
    attempts: int
    agent: str | None
    hardware: str | None
    done_fraction: float
    queued_unix: float
    first_leased_unix: float | None
    leased_unix: float | None
    ended_unix: float | None
    spent_seconds: float


@dataclass(frozen=True, kw_only=True)
class AgentRow:
    """One agent as last heard of."""

    agent: str
    hardware: str
    state: str
    pid: int
    heartbeat_unix: float
    joined_unix: float


@dataclass(frozen=True, kw_only=True)
class FitRow:
    """One fit: its record is LawFit's JSON with what else the coordinator derived from it."""

    num_points: int
    outcome: str
    seconds: float
    record: dict[str, Any]
    unix: float


class StoreReader:
    """Read access to a run, safe beside the writing coordinator."""

    def __init__(self, connection: sqlite3.Connection, run_directory: Path) -> None:
        self._connection = connection
        self._connection.row_factory = sqlite3.Row
        self.run_directory = run_directory

    @classmethod
    def open(cls, run_directory: Path) -> "StoreReader":
        """Open a run for reading.

        Raises:
            StoreError: there is no run, or a newer archfleet made it.
        """
        path = run_directory / FILE_NAME
        if not path.is_file():
            raise StoreError(
                f"{run_directory} is no run directory: it has no {FILE_NAME}. Start one with `archfleet run`."
            )
        connection = _connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            _check_version(connection, run_directory)
        except BaseException:
            connection.close()
            raise
        return cls(connection, run_directory)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> "StoreReader":
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        """Close; a store that turned out to be damaged while it was read is a StoreError that names it."""
        self.close()
        if isinstance(error, ValidationError):
            raise StoreError(_damaged(self.run_directory, f"it holds an unreadable {error.title}")) from None
        if isinstance(error, sqlite3.DatabaseError):
            raise StoreError(_damaged(self.run_directory, str(error))) from None

    def meta(self, key: str) -> str | None:
        """One named fact of the run."""
        row = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def study(self) -> StudySpec:
        """The study as it was when the run began."""
        text = self.meta("study")
        assert text is not None, "a run is created together with its study"
        return StudySpec.model_validate_json(text)

    def corpus(self) -> dict[str, Any] | None:
        """The manifest of the corpus, once it was built."""
        text = self.meta("corpus")
        return None if text is None else json.loads(text)

    def trials(self) -> list[TrialRow]:
        """All trials in planned order."""
        names = ", ".join(TrialRow.__dataclass_fields__)
        rows = self._connection.execute(f"SELECT {names} FROM trials ORDER BY position").fetchall()
        return [TrialRow(**{**dict(row), "planned": PlannedTrial.model_validate_json(row["planned"])}) for row in rows]

    def observations(self) -> list[Observation]:
        """Every accepted observation, failures of single attempts included, in order of arrival."""
        rows = self._connection.execute("SELECT record FROM observations ORDER BY seq")
        return [_observation_adapter.validate_json(row[0]) for row in rows]

    def plans(self) -> list[Plan]:
        """The plans, in the order they were made."""
        return [
            Plan.model_validate_json(row[0])
            for row in self._connection.execute("SELECT record FROM plans ORDER BY seq")
        ]

    def last_fit(self) -> FitRow | None:
        """The newest fit."""
        row = self._connection.execute("SELECT * FROM fits ORDER BY seq DESC LIMIT 1").fetchone()
        if row is None:
            return None
        values = {key: row[key] for key in ("num_points", "outcome", "seconds", "unix")}
        return FitRow(**values, record=json.loads(row["record"]))

    def fit_history(self) -> list[tuple[str, float, float]]:
        """(outcome, seconds, unix) of every fit."""
        rows = self._connection.execute("SELECT outcome, seconds, unix FROM fits ORDER BY seq").fetchall()
        return [(row[0], row[1], row[2]) for row in rows]

    def recommendation(self) -> dict[str, Any] | None:
        """The newest recommendation."""
        row = self._connection.execute("SELECT record FROM recommendations ORDER BY seq DESC LIMIT 1").fetchone()
        return None if row is None else json.loads(row[0])

    def agents(self) -> list[AgentRow]:
        """All agents that ever joined this run."""
        return [AgentRow(**dict(row)) for row in self._connection.execute("SELECT * FROM agents ORDER BY agent")]

    def rejections(self) -> list[tuple[str, str, int, str]]:
        """(reason, trial_id, epoch, agent) of every refused report."""
        rows = self._connection.execute("SELECT reason, trial_id, epoch, agent FROM rejections ORDER BY seq").fetchall()
        return [(row[0], row[1], row[2], row[3]) for row in rows]

    def counters(self) -> dict[str, float]:
        """Named totals that survive restarts."""
        return {row[0]: row[1] for row in self._connection.execute("SELECT name, value FROM counters")}


class Store(StoreReader):
    """The one writer of a run. Holds the run directory's lock for as long as it is open."""

    def __init__(self, connection: sqlite3.Connection, lock: int, run_directory: Path) -> None:
        super().__init__(connection, run_directory)
        self._lock = lock

    @classmethod
    def create(cls, run_directory: Path, study: StudySpec, *, now_unix: float) -> "Store":
        """Make a new run directory with its store.

        Raises:
            StoreError: the directory exists already, or cannot be written.
        """
        try:
            run_directory.mkdir(parents=True)
        except FileExistsError:
            raise StoreError(
                f"{run_directory} exists already; resume it, or give another place with --runs DIR."
            ) from None
        except OSError as error:
            raise StoreError(_cannot_write(run_directory, error)) from None
        try:
            return cls._open(run_directory, study=study, now_unix=now_unix)
        except BaseException:
            _remove_if_unused(run_directory)
            raise

    @classmethod
    def resume(cls, run_directory: Path) -> "Store":
        """Open an existing run for writing.

        Raises:
            StoreError: no run there, a newer or a damaged one, one that another coordinator holds, or one that cannot
                be written.
        """
        StoreReader.open(run_directory).close()
        return cls._open(run_directory, study=None, now_unix=0)

    @classmethod
    def _open(cls, run_directory: Path, *, study: StudySpec | None, now_unix: float) -> "Store":
        lock = _take_lock(run_directory)
        connection: sqlite3.Connection | None = None
        try:
            connection = _connect(str(run_directory / FILE_NAME))
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            store = cls(connection, lock, run_directory)
            if study is not None:
                store._initialise(study, now_unix)
            else:
                store._require_sound()
                store.probe_commit()
            return store
        except sqlite3.Error as error:
            _close_quietly(connection, lock)
            raise StoreError(_cannot_write(run_directory, error)) from None
        except BaseException:
            _close_quietly(connection, lock)
            raise

    def _initialise(self, study: StudySpec, now_unix: float) -> None:
        with self._transaction():
            for statement in _TABLES.split(";\n"):
                self._connection.execute(statement)
            self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            for key, value in (
                ("study", study.model_dump_json()),
                ("state", "running"),
                ("created_unix", repr(now_unix)),
            ):
                self._connection.execute("INSERT INTO meta VALUES (?, ?)", (key, value))

    def _require_sound(self) -> None:
        try:
            (verdict,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.DatabaseError as error:
            verdict = str(error)
        if verdict != "ok":
            raise StoreError(_damaged(self.run_directory, verdict))

    def close(self) -> None:
        """Close the connection and give the lock back."""
        super().close()
        os.close(self._lock)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            # A full disk makes SQLite roll back by itself; a refused COMMIT leaves the transaction open.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def probe_commit(self) -> None:
        """Commit a harmless row: proof that the store can be written."""
        self.set_meta("probe", "written")

    def set_meta(self, key: str, value: str) -> None:
        """Set one named fact of the run."""
        with self._transaction():
            self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def add_plan(self, plan: Plan, *, now_unix: float) -> list[str]:
        """Queue a plan's trials. Trials that are known already are not queued again. Returns the new ids."""
        with self._transaction():
            self._connection.execute(
                "INSERT INTO plans (stage, record, unix) VALUES (?, ?, ?)",
                (plan.stage, plan.model_dump_json(), now_unix),
            )
            (position,) = self._connection.execute("SELECT coalesce(max(position), 0) FROM trials").fetchone()
            added = []
            for planned in plan.trials:
                position += 1
                cursor = self._connection.execute(
                    "INSERT OR IGNORE INTO trials (trial_id, position, stage, phase, planned, state, queued_unix) "
                    "VALUES (?, ?, ?, ?, ?, 'queued', ?)",
                    (
                        planned.trial_id,
                        position,
                        plan.stage,
                        planned.assignment.kind,
                        planned.model_dump_json(),
                        now_unix,
                    ),
                )
                if cursor.rowcount:
                    added.append(planned.trial_id)
        return added

    def lease(
        self, trial_id: str, *, agent: str, hardware: str, epoch: int, now_unix: float, expires_unix: float
    ) -> None:
        """Record that `agent` holds `trial_id` under `epoch`, which must rise with every lease."""
        with self._transaction():
            cursor = self._connection.execute(
                "UPDATE trials SET state = 'running', epoch = ?, attempts = attempts + 1, agent = ?, hardware = ?, "
                "leased_unix = ?, first_leased_unix = coalesce(first_leased_unix, ?), lease_expires_unix = ? "
                "WHERE trial_id = ? AND state IN ('queued', 'running') AND epoch < ?",
                (epoch, agent, hardware, now_unix, now_unix, expires_unix, trial_id, epoch),
            )
            assert cursor.rowcount == 1, f"{trial_id}: epoch {epoch} does not rise, or the trial has ended"

    def record_progress(self, trial_id: str, progress: Progress, *, expires_unix: float) -> None:
        """Note how far a running trial is, and renew its lease."""
        with self._transaction():
            self._connection.execute(
                "UPDATE trials SET done_fraction = ?, lease_expires_unix = ? WHERE trial_id = ?",
                (progress.done_fraction, expires_unix, trial_id),
            )

    def record_result(self, trial_id: str, epoch: int, observation: Observation, *, now_unix: float) -> None:
        """Accept the result of a trial: the observation and the trial's end are one transaction."""
        self._record_end(trial_id, epoch, observation, state="succeeded", now_unix=now_unix)

    def record_failure(self, trial_id: str, epoch: int, failure: Failure, *, final: bool, now_unix: float) -> None:
        """Record a failed attempt; the trial goes back to the queue unless `final`."""
        self._record_end(trial_id, epoch, failure, state="failed" if final else "queued", now_unix=now_unix)

    def _record_end(self, trial_id: str, epoch: int, record: Observation, *, state: str, now_unix: float) -> None:
        with self._transaction():
            self._connection.execute(
                "INSERT INTO observations (trial_id, epoch, kind, record, unix) VALUES (?, ?, ?, ?, ?)",
                (trial_id, epoch, record.kind, record.model_dump_json(), now_unix),
            )
            cursor = self._connection.execute(
                "UPDATE trials SET state = ?, ended_unix = CASE WHEN ? = 'queued' THEN NULL ELSE ? END, "
                "spent_seconds = spent_seconds + max(0, ? - leased_unix), "
                "agent = CASE WHEN ? = 'queued' THEN NULL ELSE agent END, "
                "done_fraction = CASE WHEN ? = 'succeeded' THEN 1 ELSE done_fraction END, lease_expires_unix = NULL "
                "WHERE trial_id = ? AND epoch = ? AND state = 'running'",
                (state, state, now_unix, now_unix, state, state, trial_id, epoch),
            )
            assert cursor.rowcount == 1, f"{trial_id}: not running under epoch {epoch}; dispatch fences such reports"

    def requeue_running(self, *, now_unix: float) -> list[str]:
        """At a restart: whatever was leased goes back to the front of the queue. Returns the ids.

        Time after a lease's end was nobody's: the coordinator may have been down for days.
        """
        with self._transaction():
            rows = self._connection.execute("SELECT trial_id FROM trials WHERE state = 'running'").fetchall()
            self._connection.execute(
                "UPDATE trials SET state = 'queued', agent = NULL, lease_expires_unix = NULL, "
                "spent_seconds = spent_seconds + max(0, min(?, lease_expires_unix) - leased_unix) "
                "WHERE state = 'running'",
                (now_unix,),
            )
            self._connection.execute("UPDATE agents SET state = 'lost'")
        return [row[0] for row in rows]

    def reject(self, trial_id: str, *, epoch: int, agent: str, reason: str, now_unix: float) -> None:
        """Record a report that was refused."""
        with self._transaction():
            self._connection.execute(
                "INSERT INTO rejections (trial_id, epoch, agent, reason, unix) VALUES (?, ?, ?, ?, ?)",
                (trial_id, epoch, agent, reason, now_unix),
            )

    def add_fit(
        self, *, num_points: int, outcome: str, seconds: float, record: dict[str, Any], now_unix: float
    ) -> None:
        """Append a fit."""
        with self._transaction():
            self._connection.execute(
                "INSERT INTO fits (num_points, outcome, seconds, record, unix) VALUES (?, ?, ?, ?, ?)",
                (num_points, outcome, seconds, json.dumps(record, allow_nan=False), now_unix),
            )

    def add_recommendation(self, record: dict[str, Any], *, now_unix: float) -> None:
        """Append a recommendation."""
        with self._transaction():
            self._connection.execute(
                "INSERT INTO recommendations (record, unix) VALUES (?, ?)",
                (json.dumps(record, allow_nan=False), now_unix),
            )

    def upsert_agent(self, row: AgentRow) -> None:
        """Record what an agent is and does."""
        with self._transaction():
            self._connection.execute(
                "INSERT OR REPLACE INTO agents (agent, hardware, state, pid, heartbeat_unix, joined_unix) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (row.agent, row.hardware, row.state, row.pid, row.heartbeat_unix, row.joined_unix),
            )

    def count(self, name: str, amount: float = 1) -> None:
        """Add to a named total."""
        with self._transaction():
            self._connection.execute(
                "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
                (name, amount),
            )


def _connect(path: str, *, uri: bool = False) -> sqlite3.Connection:
    # Autocommit: transactions are begun and ended by `_transaction` alone.
    connection = sqlite3.connect(path, uri=uri, isolation_level=None, timeout=10)
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def _check_version(connection: sqlite3.Connection, run_directory: Path) -> None:
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{run_directory / FILE_NAME} cannot be read as a store: {error}.") from None
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{run_directory} was made by a newer archfleet (store schema {version}; "
            f"this one knows {SCHEMA_VERSION}).\n"
            "Install that version, or start a new run with `archfleet run --new`."
        )
    if version < SCHEMA_VERSION:
        raise StoreError(
            f"{run_directory} was never completely set up (store schema {version}); "
            "start a new run with `archfleet run --new`."
        )


def _take_lock(run_directory: Path) -> int:
    path = run_directory / LOCK_NAME
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StoreError(_cannot_write(run_directory, error)) from None
    if not _lock_for_writing(lock):
        holder = os.pread(lock, 32, 0).decode() or "unknown"
        os.close(lock)
        raise StoreError(
            f"another coordinator (process {holder}) holds {run_directory}.\n"
            "Watch it with `archfleet status`, stop it, or start a run beside it with `archfleet run --new`."
        )
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    except OSError as error:
        os.close(lock)
        raise StoreError(_cannot_write(run_directory, error)) from None
    return lock


def _lock_for_writing(lock: int) -> bool:
    """Whether the lock was got. Tried for a while: `archfleet status` shares it for an instant to see if it is held."""
    for _ in range(10):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            return True
    return False


def _close_quietly(connection: sqlite3.Connection | None, lock: int) -> None:
    if connection is not None:
        connection.close()
    os.close(lock)


def _remove_if_unused(run_directory: Path) -> None:
    for path in run_directory.glob("*"):
        path.unlink(missing_ok=True)
    run_directory.rmdir()


def _damaged(run_directory: Path, fault: str) -> str:
    return (
        f"{run_directory / FILE_NAME} is damaged: {' '.join(fault.split())}.\n"
        "Put a copy of it in its place, or start a new run with `archfleet run --new`."
    )


def _cannot_write(run_directory: Path, error: Exception) -> str:
    return (
        f"cannot write to {run_directory}: {error}.\n"
        "A run needs about 1 GiB of free, writable disk: free some, or give another place with --runs DIR."
    )
