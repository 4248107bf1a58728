"""Store: the run's memory, on SQLite. Append, lease, read back.

One process writes, through one connection, in WAL mode with synchronous=FULL: what was acknowledged survives
kill -9 and power loss. Readers (status, metrics, report) open the file read-only. Every record is versioned by
its own schema_version; the database by `SCHEMA_VERSION`, checked on opening. Every row carries a checksum, looked at
whenever the row is read: a row that does not match is a StoreError that names file, table and row.

What a transaction encloses is kept together or not at all; one within another joins it.

Times in the store are seconds since the epoch, for people; leases are decided on the coordinator's monotonic clock.
"""

import fcntl
import json
import math
import os
import shutil
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ValidationError

from coordinator.database import Database, DatabaseError, Row, Value
from coordinator.errors import StoreError
from coordinator.events import Event, Fitted, event_of
from coordinator.garbage import without_collection
from coordinator.migrations import migrate
from coordinator.plan import Plan
from coordinator.schema import COLUMNS, LAST_SEQ, NUMBERED, SCHEMA_VERSION, TABLES, canonical, checksum
from coordinator.store_rows import (
    AgentRow,
    AttemptCount,
    AttemptOutcome,
    AttemptRow,
    CanaryRow,
    Count,
    DecisionRow,
    FitRow,
    Histogram,
    Tallied,
    TrialFields,
    TrialRow,
    Work,
)
from coordinator.study import StudySpec
from scaling.observations import Failure, Observation, ObservationAdapter, Progress

__all__ = [
    "FILE_NAME",
    "LOCK_NAME",
    "SCHEMA_VERSION",
    "AgentRow",
    "AttemptRow",
    "DecisionRow",
    "FitRow",
    "Store",
    "StoreReader",
    "TrialRow",
]

FILE_NAME = "store.sqlite3"
LOCK_NAME = "coordinator.lock"
DURATION_BOUNDS_SECONDS = (1, 5, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800)
"""Buckets of `durations` and `queue_waits`; longer ones count in a last bucket without end."""

_UNFINISHED = "WHERE position IN (SELECT position FROM trials WHERE state IN ('queued', 'running'))"
_EndState = Literal["queued", "succeeded", "failed"]
_OPEN_STATES = ("queued", "running")
_LEASE_EXPIRES = TrialFields._fields.index("lease_expires_unix")
_DIFFERENT_TRIALS = "the tables trials and work hold different trials"


class StoreReader:
    """Read access to a run, safe beside the writing coordinator."""

    def __init__(self, database: Database, run_directory: Path) -> None:
        self._database = database
        self.run_directory = run_directory

    @classmethod
    def open(cls, run_directory: Path) -> Self:
        """Open a run for reading.

        Raises:
            StoreError: there is no run, or a newer archfleet made it.
        """
        path = run_directory / FILE_NAME
        if not path.is_file():
            raise StoreError(
                f"{run_directory} is no run directory: it has no {FILE_NAME}. Start one with `archfleet run`."
            )
        return cls(_open_known(path, run_directory), run_directory)

    def close(self) -> None:
        """Close the connection."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        """Close; a store that turned out to be damaged while it was read is a StoreError that names it."""
        self.close()
        if isinstance(error, ValidationError):
            raise StoreError(_damaged(self.run_directory, f"it holds an unreadable {error.title}")) from None
        if isinstance(error, DatabaseError):
            raise StoreError(_damaged(self.run_directory, str(error))) from None

    def _rows(self, table: str, tail: str = "", bindings: Sequence[Value] = ()) -> list[Row]:
        """Rows of a checked table, each looked at, without their checksums."""
        query = f"SELECT {', '.join(COLUMNS[table])}, checksum FROM {table} {tail}"
        return [self._sound(table, row) for row in self._database.rows(query, bindings)]

    def _each_row(self, table: str, tail: str, bindings: Sequence[Value]) -> Iterator[Row]:
        """The same, some at a time: of a large table all at once would be too much."""
        query = f"SELECT {', '.join(COLUMNS[table])}, checksum FROM {table} {tail}"
        for row in self._database.each_row(query, bindings):
            yield self._sound(table, row)

    def _sound(self, table: str, row: Row) -> Row:
        values = row[:-1]
        if checksum(table, values) != row[-1]:
            beginning = repr(values[:2])[:80]
            raise StoreError(
                _damaged(self.run_directory, f"the row of table {table} that begins with {beginning} was changed")
            )
        return values

    def meta(self, key: str) -> str | None:
        """One named fact of the run."""
        rows = self._rows("meta", "WHERE key = ?", (key,))
        return str(rows[0][1]) if rows else None

    def study(self) -> StudySpec:
        """The study as it was when the run began."""
        text = self.meta("study")
        if text is None:
            raise StoreError(_damaged(self.run_directory, "it holds no study"))
        return StudySpec.model_validate_json(text)

    def corpus(self) -> dict[str, Any] | None:
        """The manifest of the corpus, once it was built."""
        text = self.meta("corpus")
        return None if text is None else json.loads(text)

    def trials(self, *, after_position: int = 0) -> list[TrialRow]:
        """All trials in planned order, or those behind a position."""
        return self._trial_rows("WHERE position > ?", after_position)

    def unfinished_trials(self) -> list[TrialRow]:
        """Queued and running trials in planned order."""
        return self._trial_rows(_UNFINISHED)

    def trial(self, trial_id: str) -> TrialRow | None:
        """One trial."""
        rows = self._trial_rows("WHERE position = (SELECT position FROM trials WHERE trial_id = ?)", trial_id)
        return rows[0] if rows else None

    def _trial_rows(self, where: str, *bindings: Value) -> list[TrialRow]:
        with without_collection():
            trials = self._rows("trials", f"{where} ORDER BY position", bindings)
            works: dict[int, Row] = {row[0]: row for row in self._works_at_hand(where, bindings)}
            progress: dict[str, float] = dict(self._database.rows("SELECT trial_id, done_fraction FROM progress"))
            rows = [self._trial_row(trial, works.pop(trial[0], None), progress) for trial in trials]
        if works:
            raise StoreError(_damaged(self.run_directory, _DIFFERENT_TRIALS))
        return rows

    def _trial_row(self, trial: Row, work: Row | None, progress: Mapping[str, float]) -> TrialRow:
        position, trial_id, _, _, state = trial[:5]
        if work is None and self._must_hold_work(state):
            raise StoreError(_damaged(self.run_directory, _DIFFERENT_TRIALS))
        done_fraction = 1.0 if state == "succeeded" else progress.get(trial_id, 0.0)
        work_of = Work(position, trial_id, work, self)
        return TrialRow._make((*trial[:_LEASE_EXPIRES], *trial[_LEASE_EXPIRES + 1 :], work_of, done_fraction))

    def _work_rows(self, where: str, bindings: Sequence[Value]) -> list[Row]:
        """What trials consist of, with its checksums; looked at when somebody asks."""
        return self._database.rows(f"SELECT {', '.join(COLUMNS['work'])}, checksum FROM work {where}", bindings)

    def _works_at_hand(self, where: str, bindings: Sequence[Value]) -> list[Row]:
        """What is read together with the trials."""
        return self._work_rows(where, bindings)

    def _must_hold_work(self, _state: str) -> bool:
        """Whether the work of a trial in this state is at hand."""
        return True

    def work_text(self, position: int, trial_id: str, row: Row | None) -> str:
        """What a trial consists of, as JSON.

        Args:
            position: of the trial.
            trial_id: the same trial's.
            row: its row in `work` with the checksum, where that was read already.

        Raises:
            StoreError: it is missing, another trial's, or not what was written.
        """
        if row is None:
            rows = self._work_rows("WHERE position = ?", (position,))
            row = rows[0] if rows else None
        if row is None or row[:2] != (position, trial_id):
            raise StoreError(_damaged(self.run_directory, _DIFFERENT_TRIALS))
        return str(self._sound("work", row)[2])

    def epochs(self) -> dict[str, int]:
        """The epoch of the last lease of every trial that was ever leased."""
        rows = self._rows("trials", "WHERE epoch > 0")
        return {str(row[1]): row[5] for row in rows}

    def attempts(self, *, unfinished: bool = False) -> list[AttemptRow]:
        """Every lease with its end, in the order of leasing; or those of trials that are queued or running."""
        tail = (
            "WHERE trial_id IN (SELECT trial_id FROM trials WHERE state IN ('queued', 'running'))" if unfinished else ""
        )
        return [AttemptRow(*row) for row in self._rows("attempts", f"{tail} ORDER BY seq")]

    def observations(self, *, after_seq: int = 0) -> list[Observation]:
        """Every accepted observation, failures of single attempts included, in order of arrival."""
        return list(self.each_observation(after_seq=after_seq))

    def each_observation(self, *, after_seq: int = 0) -> Iterator[Observation]:
        """The same, read one after the other: a run's curves need not all be in memory."""
        for row in self._each_row("observations", "WHERE seq > ? ORDER BY seq", (after_seq,)):
            yield ObservationAdapter.validate_json(row[4])

    def num_observations(self) -> int:
        """How many observations were accepted, failures of single attempts included."""
        return self._database.number("SELECT count(*) FROM observations")

    def last_seq(self) -> int:
        """Number of the newest of all facts; 0 before the first."""
        return self._database.number(LAST_SEQ)

    def events(self, after_seq: int = 0, *, limit: int = 500) -> list[Event]:
        """What happened after a number and not after that number plus `limit`, in order.

        Safe beside the writer: facts have the order of their commits, so that all up to the newest seen here stay.

        Raises:
            StoreError: a fact does not match its checksum, or holds what its table does not.
        """
        until = min(after_seq + limit, self.last_seq())
        tail, bindings = "WHERE seq > ? AND seq <= ?", (after_seq, until)
        try:
            found = [event_of(table, row) for table in NUMBERED for row in self._rows(table, tail, bindings)]
        except ValueError as error:
            raise StoreError(_damaged(self.run_directory, str(error))) from None
        return sorted(found, key=attrgetter("seq"))

    def data_version(self) -> int:
        """Another number whenever another connection has committed since it was asked last; costs no read of data."""
        return self._database.number("PRAGMA data_version")

    def decisions(self, kind: str | None = None) -> list[DecisionRow]:
        """What was decided, in order; of one kind if asked."""
        rows = self._rows("decisions", "WHERE ?1 IS NULL OR kind = ?1 ORDER BY seq", (kind,))
        return [
            DecisionRow(
                seq=seq,
                kind=kind,
                stage=stage,
                record=json.loads(record),
                inputs=json.loads(inputs),
                random_state=random_state,
                unix=unix,
            )
            for seq, kind, stage, record, inputs, random_state, unix in rows
        ]

    def stages(self) -> list[str]:
        """The stages that were planned, in order."""
        return [str(row[2]) for row in self._rows("decisions", "WHERE kind = 'plan' ORDER BY seq")]

    def plans(self) -> list[Plan]:
        """The plans, in the order they were made."""
        decisions = self.decisions("plan")
        if not decisions:
            return []
        planned = {trial.trial_id: trial for trial in self.trials()}
        return [
            Plan(
                stage=decision.stage,
                trials=tuple(planned[trial_id].planned for trial_id in decision.record["trial_ids"]),
                notes=tuple(decision.record["notes"]),
            )
            for decision in decisions
        ]

    def last_fit(self) -> FitRow | None:
        """The newest fit."""
        for _, num_points, outcome, seconds, record, unix in self._rows("fits", "ORDER BY seq DESC LIMIT 1"):
            return FitRow(num_points=num_points, outcome=outcome, seconds=seconds, record=json.loads(record), unix=unix)
        return None

    def fit_history(self) -> list[tuple[str, float, float]]:
        """(outcome, seconds, unix) of every fit."""
        return [(row[2], row[3], row[5]) for row in self._rows("fits", "ORDER BY seq")]

    def fits(self) -> list[Fitted]:
        """Every fit in short, in order: without its bootstrap."""
        events = (event_of("fits", row) for row in self._rows("fits", "ORDER BY seq"))
        return [event for event in events if isinstance(event, Fitted)]

    def recommendation(self) -> dict[str, Any] | None:
        """The newest recommendation."""
        rows = self._rows("recommendations", "ORDER BY seq DESC LIMIT 1")
        return json.loads(rows[0][1]) if rows else None

    def agents(self) -> list[AgentRow]:
        """All agents that ever joined this run."""
        return [
            AgentRow(**dict(zip(COLUMNS["agents"], row, strict=True)) | {"versions": json.loads(row[-1])})
            for row in self._rows("agents", "ORDER BY agent")
        ]

    def canaries(self) -> list[CanaryRow]:
        """Every canary, in order."""
        return [CanaryRow(*row) for row in self._rows("canaries", "ORDER BY seq")]

    def rejections(self) -> list[tuple[str, str, int, str]]:
        """(reason, trial_id, epoch, agent) of every refused report."""
        rows = self._rows("rejections", "ORDER BY seq")
        return [(reason, trial_id, epoch, agent) for _, trial_id, epoch, agent, reason, _ in rows]

    def counters(self) -> dict[str, float]:
        """Named totals that survive restarts."""
        return dict(self._rows("counters"))

    # Tallies: kept up with every change, so that asking costs the same with 100,000 trials as with ten.

    def counts(self) -> list[Count]:
        """How many trials there are of each stage, phase, hardware and state."""
        return [Count(*row[1:]) for row in self._tallies("trials") if row[5]]

    def attempt_counts(self) -> list[AttemptCount]:
        """How many attempts ended in each way, and what they spent."""
        return [AttemptCount(*row[2:]) for row in self._tallies("attempts")]

    def rejection_counts(self) -> dict[str, int]:
        """How many reports were refused, by reason."""
        return {row[4]: row[5] for row in self._tallies("rejections")}

    def fit_counts(self) -> dict[str, int]:
        """How many fits there were, by outcome."""
        return {row[4]: row[5] for row in self._tallies("fits")}

    def fit_durations(self) -> list[Histogram]:
        """How long fits took; without phase and hardware."""
        return self._histograms("fit_durations")

    def tallied(self, kind: str) -> list[Tallied]:
        """What was tallied under this kind; see `Store.tally`. `final_failures` are the trials that were given up."""
        return [Tallied(*row[2:]) for row in self._tallies(kind)]

    def running_seconds(self, *, now_unix: float) -> list[tuple[str, str, float]]:
        """(phase, hardware, seconds) of every lease that is held; a lease counts until it ends without renewal."""
        held = self._database.rows(
            "SELECT phase, hardware, leased_unix, max(coalesce(lease_expires_unix, 0), coalesce(expires_unix, 0)) "
            "FROM trials LEFT JOIN progress USING (trial_id) "
            "WHERE state IN ('queued', 'running') AND state = 'running'"
        )
        return [
            (phase, hardware or "", max(0.0, min(now_unix, expires) - leased))
            for phase, hardware, leased, expires in held
            if leased is not None
        ]

    def running(self) -> list[tuple[str, str, float]]:
        """(trial, agent, share done) of every trial that is held, in planned order."""
        held = self._database.rows(
            "SELECT trial_id, agent, coalesce(done_fraction, 0.0) FROM trials LEFT JOIN progress USING (trial_id) "
            "WHERE state IN ('queued', 'running') AND state = 'running' ORDER BY position"
        )
        return [(trial_id, agent, done_fraction) for trial_id, agent, done_fraction in held]

    def queued_benchmarks(self) -> dict[str | None, int]:
        """How many benchmarks wait, by the hardware that they name."""
        waiting = "state IN ('queued', 'running') AND state = 'queued' AND phase = 'bench'"  # as its index says it
        tail = f"WHERE position IN (SELECT position FROM trials WHERE {waiting})"
        return Counter(json.loads(row[2])["assignment"].get("hardware") for row in self._rows("work", tail))

    def newest_attempts(self, num: int) -> list[AttemptRow]:
        """The last leases, in the order of leasing."""
        return [AttemptRow(*row) for row in reversed(self._rows("attempts", "ORDER BY seq DESC LIMIT ?", (num,)))]

    def newest_canaries(self, num: int) -> list[CanaryRow]:
        """The last canaries, in order."""
        return [CanaryRow(*row) for row in reversed(self._rows("canaries", "ORDER BY seq DESC LIMIT ?", (num,)))]

    def num_plans(self) -> dict[str, int]:
        """How many plans there are of each stage."""
        return dict(self._database.rows("SELECT stage, count(*) FROM decisions WHERE kind = 'plan' GROUP BY stage"))

    def durations(self) -> list[Histogram]:
        """Lease to end of the trials that succeeded."""
        return self._histograms("durations")

    def queue_waits(self) -> list[Histogram]:
        """Queueing to first lease; its hardware is empty."""
        return self._histograms("queue_waits")

    def _tallies(self, kind: str) -> list[Any]:
        return self._rows("tallies", "WHERE kind = ?", (kind,))

    def _histograms(self, kind: str) -> list[Histogram]:
        found: dict[tuple[str, str], dict[float, tuple[int, float]]] = {}
        for _, _, phase, hardware, bound, num, seconds in self._tallies(kind):
            found.setdefault((phase, hardware), {})[float(bound)] = (num, seconds)
        return [
            Histogram(
                phase=phase,
                hardware=hardware,
                buckets=tuple((bound, by_bound.get(bound, (0, 0))[0]) for bound in _BOUNDS),
                sum_seconds=sum(seconds for _, seconds in by_bound.values()),
            )
            for (phase, hardware), by_bound in sorted(found.items())
        ]

    def free_bytes(self) -> int:
        """Room on the disk of this run."""
        return shutil.disk_usage(self.run_directory).free

    def check(self) -> None:
        """Look at the file's structure, about a second a gigabyte: a damaged page could hide rows without a trace.

        Raises:
            StoreError: it is damaged.
        """
        try:
            verdict = self._database.row("PRAGMA quick_check(1)")
        except DatabaseError as error:
            verdict = (str(error),)
        if verdict != ("ok",):
            raise StoreError(_damaged(self.run_directory, str(verdict and verdict[0])))

    def verify(self) -> None:
        """Read everything.

        Raises:
            StoreError: something does not match its checksum, or cannot be read.
        """
        try:
            verdict = self._database.row("PRAGMA integrity_check(1)")
            if verdict != ("ok",):
                raise StoreError(_damaged(self.run_directory, str(verdict and verdict[0])))
            for table in COLUMNS:
                self._rows(table)
            self.trials()
            self._verify_tallies()
            self._verify_sequence()
        except DatabaseError as error:
            raise StoreError(_damaged(self.run_directory, str(error))) from None

    def _verify_tallies(self) -> None:
        counted = self._database.rows(
            "SELECT stage, phase, coalesce(hardware, ''), state, count(*) FROM trials GROUP BY 1, 2, 3, 4"
        )
        if sorted(counted) != sorted(count[:5] for count in self.counts()):
            raise StoreError(_damaged(self.run_directory, "its tallies do not match its trials"))

    def _verify_sequence(self) -> None:
        """Every number from 1 on is that of one fact."""
        numbers = " UNION ALL ".join(f"SELECT seq FROM {table}" for table in NUMBERED)
        counts = self._database.row(f"SELECT count(*), count(DISTINCT seq), coalesce(max(seq), 0) FROM ({numbers})")
        if counts is None or len(set(counts)) != 1:
            raise StoreError(_damaged(self.run_directory, "the numbers of its facts have gaps or repeats"))


class Store(StoreReader):
    """The one writer of a run. Holds the run directory's lock for as long as it is open."""

    def __init__(self, database: Database, lock: int, run_directory: Path) -> None:
        super().__init__(database, run_directory)
        self._lock = lock
        self._pending: dict[tuple[str, ...], list[float]] = {}
        """Changes of tallies that the open transaction has not written yet: number and seconds."""
        self._seq: int | None = None
        """Number of the newest fact; null until it is looked up, and again where a transaction was given up."""
        database.on_end(finish=self._write_tallies, abandon=self._abandon)

    @classmethod
    def create(cls, run_directory: Path, study: StudySpec, *, now_unix: float, vfs: str | None = None) -> "Store":
        """Make a new run directory with its store.

        Args:
            run_directory: must not exist yet.
            study: kept with the run for good.
            now_unix: when the run was created.
            vfs: another file system under SQLite, for tests.

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
            return cls._open(run_directory, study=study, now_unix=now_unix, vfs=vfs)
        except BaseException:
            _remove_if_unused(run_directory)
            raise

    @classmethod
    def resume(cls, run_directory: Path, *, vfs: str | None = None) -> "Store":
        """Open an existing run for writing; one of an older schema is migrated.

        Raises:
            StoreError: no run there, a newer or a damaged one, one that another coordinator holds, or one that cannot
                be written.
        """
        path = run_directory / FILE_NAME
        if not path.is_file():
            StoreReader.open(run_directory)
        if vfs is None:
            _open_known(path, run_directory, migrate_copy=False).close()
        return cls._open(run_directory, study=None, now_unix=0, vfs=vfs)

    @classmethod
    def _open(cls, run_directory: Path, *, study: StudySpec | None, now_unix: float, vfs: str | None) -> "Store":
        lock = _take_lock(run_directory)
        database: Database | None = None
        try:
            database = Database.open_for_writing(run_directory / FILE_NAME, vfs=vfs)
            store = cls(database, lock, run_directory)
            if study is not None:
                store._initialise(study, now_unix)
            else:
                store.check()
                migrate(database)
                store.probe_commit()
            return store
        except DatabaseError as error:
            _close_quietly(database, lock)
            told = _damaged(run_directory, str(error)) if error.reason == "corrupt" else None
            raise StoreError(told or _cannot_write(run_directory, error)) from None
        except BaseException:
            _close_quietly(database, lock)
            raise

    def _initialise(self, study: StudySpec, now_unix: float) -> None:
        with self.transaction():
            self._database.execute(TABLES)
            self._database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            for key, value in (
                ("study", study.model_dump_json()),
                ("state", "running"),
                ("created_unix", repr(now_unix)),
            ):
                self.set_meta(key, value)

    def close(self) -> None:
        """Close the connection and give the lock back."""
        try:
            super().close()
        finally:
            os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def transaction(self) -> AbstractContextManager[None]:
        """What is written within is on the disk when this ends, all of it, or not at all when it raises.

        Every writing method is one by itself; called within another it joins that one (group commit).

        Raises:
            DatabaseError: it could not be committed (`reason` says why: full, busy, io ...); the store can be used on.
        """
        return self._database.transaction()

    def _works_at_hand(self, where: str, bindings: Sequence[Value]) -> list[Row]:
        """Those of trials that have not ended: the others' are read if somebody asks, while the store is open."""
        return self._work_rows(f"{where} AND {_UNFINISHED.removeprefix('WHERE ')}", bindings)

    def _must_hold_work(self, state: str) -> bool:
        return state in _OPEN_STATES

    def _insert(self, table: str, values: Sequence[Value]) -> None:
        values = canonical(table, values)
        places = ", ".join("?" * len(values))
        self._database.execute(f"INSERT INTO {table} VALUES ({places}, ?)", (*values, checksum(table, values)))

    def _put(self, table: str, values: Sequence[Value]) -> None:
        """Insert a row, or let it take the place of the one with its key."""
        values = canonical(table, values)
        places = ", ".join("?" * len(values))
        self._database.execute(
            f"INSERT OR REPLACE INTO {table} VALUES ({places}, ?)", (*values, checksum(table, values))
        )

    def _append(self, table: str, *values: Value) -> None:
        """Add a fact under the next number, within a transaction."""
        self._seq = 1 + (self.last_seq() if self._seq is None else self._seq)
        self._insert(table, (self._seq, *values))

    def _abandon(self) -> None:
        self._pending.clear()
        self._seq = None

    def _tally(self, kind: str, *key: str, num: int, seconds: float) -> None:
        """Note a change of a tally; the transaction writes it at its end, once for all changes."""
        change = self._pending.setdefault((kind, *key), [0, 0.0])
        change[0] += num
        change[1] += seconds

    def tally(
        self, kind: str, name: str = "", *, phase: str = "", hardware: str = "", num: int = 1, seconds: float = 0.0
    ) -> None:
        """Count something that is asked for as a whole: it costs one row, however often it happens."""
        with self.transaction():
            self._tally(kind, "", phase, hardware, name, num=num, seconds=seconds)

    def _write_tallies(self) -> None:
        for key, (num, seconds) in self._pending.items():
            if not num and not seconds:
                continue
            where = "WHERE kind = ? AND stage = ? AND phase = ? AND hardware = ? AND name = ?"
            for row in self._rows("tallies", where, key):
                num, seconds = num + row[5], seconds + row[6]
            self._put("tallies", (*key, int(num), float(seconds)))
        self._pending.clear()

    def _tallies(self, kind: str) -> list[Any]:
        if self._pending:
            self._write_tallies()
        return super()._tallies(kind)

    def probe_commit(self) -> None:
        """Commit a harmless row: proof that the store can be written."""
        self.set_meta("probe", "written")

    def set_meta(self, key: str, value: str) -> None:
        """Set one named fact of the run."""
        with self.transaction():
            self._put("meta", (key, value))

    def add_plan(
        self,
        plan: Plan,
        *,
        now_unix: float,
        inputs: Mapping[str, Any] | None = None,
        random_state: str | None = None,
    ) -> list[str]:
        """Queue a plan's trials. Trials that are known already are not queued again. Returns the new ids.

        Args:
            plan: of a stage that has none yet.
            now_unix: when it was made.
            inputs: what it followed from; kept with it.
            random_state: of whatever chance it used; kept with it.
        """
        added = []
        with self.transaction():
            record = {"trial_ids": [trial.trial_id for trial in plan.trials], "notes": list(plan.notes)}
            self.add_decision(
                "plan", plan.stage, record, inputs=inputs or {}, random_state=random_state, now_unix=now_unix
            )
            position = self._database.number("SELECT coalesce(max(position), 0) FROM trials")
            for planned, trial_id in zip(plan.trials, record["trial_ids"], strict=True):
                if self._database.row("SELECT 1 FROM trials WHERE trial_id = ?", (trial_id,)) is not None:
                    continue
                position += 1
                phase = planned.assignment.kind
                unleased = (None, None, now_unix, None, None, None, None, 0.0)
                self._insert("trials", (position, trial_id, plan.stage, phase, "queued", 0, 0, *unleased))
                self._insert("work", (position, trial_id, planned.model_dump_json()))
                self._tally("trials", plan.stage, phase, "", "queued", num=1, seconds=0)
                added.append(trial_id)
        return added

    def add_decision(
        self,
        kind: str,
        stage: str,
        record: Mapping[str, Any],
        *,
        inputs: Mapping[str, Any],
        random_state: str | None = None,
        now_unix: float,
    ) -> None:
        """Append a decision with what it followed from. A stage is planned once."""
        texts = (json.dumps(record, allow_nan=False), json.dumps(inputs, allow_nan=False))
        with self.transaction():
            self._append("decisions", kind, stage, *texts, random_state, now_unix)

    def lease(
        self,
        trial_id: str,
        *,
        agent: str,
        hardware: str,
        epoch: int,
        now_unix: float,
        expires_unix: float,
        ahead: bool = False,
    ) -> None:
        """Record that `agent` holds `trial_id` under `epoch`, which must rise with every lease.

        One that is handed ahead waits there: `leased_unix` stays null until its end tells when it was begun.
        """
        with self.transaction():
            old = self._fields(trial_id)
            assert old.state in _OPEN_STATES and old.epoch < epoch, (  # noqa: PT018
                f"{trial_id}: epoch {epoch} does not rise, or the trial has ended"
            )
            if old.state == "running":
                self._end_attempt(old, "interrupted", None, began_unix=old.leased_unix, now_unix=now_unix)
            first = old.first_leased_unix
            if first is None:
                first = now_unix
                self._observe("queue_waits", old.phase, "", now_unix - old.queued_unix)
            self._move(
                old,
                state="running",
                epoch=epoch,
                attempts=old.attempts + 1,
                agent=agent,
                hardware=hardware,
                leased_unix=None if ahead else now_unix,
                first_leased_unix=first,
                lease_expires_unix=expires_unix,
            )
            self._append("attempts", trial_id, epoch, agent, hardware, now_unix, None, None, None, 0.0)

    def record_progress(self, trial_id: str, progress: Progress, *, expires_unix: float) -> None:
        """Note how far a running trial is, and until when its lease was renewed."""
        with self.transaction():
            self._database.execute(
                "INSERT OR REPLACE INTO progress VALUES (?, ?, ?)", (trial_id, progress.done_fraction, expires_unix)
            )

    def record_result(
        self, trial_id: str, epoch: int, observation: Observation, *, now_unix: float, spent_seconds: float = 0.0
    ) -> None:
        """Accept the result of a trial: the observation and the trial's end are one transaction.

        Args:
            trial_id: of a trial that runs.
            epoch: of its lease.
            observation: what came of it.
            now_unix: when it ended.
            spent_seconds: what it took its agent, where it was handed ahead: when it was begun nobody else knows.
        """
        self._record_end(
            trial_id, epoch, observation, state="succeeded", now_unix=now_unix, spent_seconds=spent_seconds
        )

    def record_failure(
        self,
        trial_id: str,
        epoch: int,
        failure: Failure,
        *,
        final: bool,
        now_unix: float,
        spent_seconds: float = 0.0,
    ) -> None:
        """Record a failed attempt; the trial goes back to the queue unless `final`. Arguments as in `record_result`."""
        state: _EndState = "failed" if final else "queued"
        self._record_end(trial_id, epoch, failure, state=state, now_unix=now_unix, spent_seconds=spent_seconds)

    def _record_end(
        self,
        trial_id: str,
        epoch: int,
        record: Observation,
        *,
        state: _EndState,
        now_unix: float,
        spent_seconds: float,
    ) -> None:
        with self.transaction():
            old = self._fields(trial_id)
            assert old.state == "running" and old.epoch == epoch, (  # noqa: PT018
                f"{trial_id}: not running under epoch {epoch}; dispatch fences such reports"
            )
            began = now_unix - spent_seconds if old.leased_unix is None else old.leased_unix
            self._append("observations", trial_id, epoch, record.kind, record.model_dump_json(), now_unix)
            failure_kind = record.failure_kind if isinstance(record, Failure) else None
            outcome: AttemptOutcome = "retried" if state == "queued" else state
            spent = self._end_attempt(old, outcome, failure_kind, began_unix=began, now_unix=now_unix)
            if state == "succeeded":
                self._observe("durations", old.phase, old.hardware or "", now_unix - began)
                self._database.execute("DELETE FROM progress WHERE trial_id = ?", (trial_id,))
            elif state == "failed":
                self._tally("final_failures", "", old.phase, old.hardware or "", str(failure_kind), num=1, seconds=0)
            self._move(
                old,
                state=state,
                agent=None if state == "queued" else old.agent,
                leased_unix=began,
                ended_unix=None if state == "queued" else now_unix,
                lease_expires_unix=None,
                spent_seconds=old.spent_seconds + spent,
            )

    def requeue_running(self, *, now_unix: float) -> list[str]:
        """At a restart: whatever was leased goes back to the front of the queue. Returns the ids.

        Time after a lease's end was nobody's: the coordinator may have been down for days. What was handed ahead has
        spent nothing that anybody knows of.
        """
        with self.transaction():
            running = [TrialFields(*row) for row in self._rows("trials", "WHERE state = 'running'")]
            for old in running:
                now = min(now_unix, self._expiry(old))
                spent = self._end_attempt(old, "interrupted", None, began_unix=old.leased_unix, now_unix=now)
                self._move(
                    old, state="queued", agent=None, lease_expires_unix=None, spent_seconds=old.spent_seconds + spent
                )
            for agent in self.agents():
                self._put_agent(replace(agent, state="lost"))
        return [old.trial_id for old in running]

    def _expiry(self, trial: TrialFields) -> float:
        """When the lease ended or ends, its renewals included."""
        renewed = self._database.row("SELECT expires_unix FROM progress WHERE trial_id = ?", (trial.trial_id,))
        ends = [trial.lease_expires_unix or 0.0, renewed[0] if renewed else 0.0]
        return max(ends)

    def _fields(self, trial_id: str) -> TrialFields:
        rows = self._rows("trials", "WHERE trial_id = ?", (trial_id,))
        assert rows, f"{trial_id}: no such trial"
        return TrialFields(*rows[0])

    def _move(self, old: TrialFields, **changes: Any) -> None:
        new = old._replace(**changes)
        values = canonical("trials", new)
        self._database.execute(_UPDATE_TRIAL, (*values[4:], checksum("trials", values), new.position))
        for fields, sign in ((old, -1), (new, 1)):
            key = (fields.stage, fields.phase, fields.hardware or "", fields.state)
            self._tally("trials", *key, num=sign, seconds=sign * fields.spent_seconds)

    def _end_attempt(
        self,
        trial: TrialFields,
        outcome: AttemptOutcome,
        failure_kind: str | None,
        *,
        began_unix: float | None,
        now_unix: float,
    ) -> float:
        """Close the attempt that holds a trial; what it spent, in seconds: nothing where it never began."""
        (row,) = self._rows("attempts", "WHERE trial_id = ? AND epoch = ?", (trial.trial_id, trial.epoch))
        attempt = AttemptRow(*row)
        began = now_unix if began_unix is None else began_unix
        spent = max(0.0, now_unix - began)
        ended = attempt._replace(
            leased_unix=began, ended_unix=now_unix, outcome=outcome, failure_kind=failure_kind, spent_seconds=spent
        )
        values = canonical("attempts", ended)
        self._database.execute(_UPDATE_ATTEMPT, (*values[5:], checksum("attempts", values), ended.seq))
        self._tally("attempts", "", trial.phase, attempt.hardware, failure_kind or outcome, num=1, seconds=spent)
        return spent

    def _observe(self, kind: str, phase: str, hardware: str, seconds: float) -> None:
        bound = _BOUNDS[bisect_left(DURATION_BOUNDS_SECONDS, seconds)]
        self._tally(kind, "", phase, hardware, repr(bound), num=1, seconds=seconds)

    def reject(self, trial_id: str, *, epoch: int, agent: str, reason: str, now_unix: float) -> None:
        """Record a report that was refused."""
        with self.transaction():
            self._append("rejections", trial_id, epoch, agent, reason, now_unix)
            self._tally("rejections", "", "", "", reason, num=1, seconds=0)

    def add_fit(
        self, *, num_points: int, outcome: str, seconds: float, record: dict[str, Any], now_unix: float
    ) -> None:
        """Append a fit."""
        text = json.dumps(record, allow_nan=False)
        with self.transaction():
            self._append("fits", num_points, outcome, seconds, text, now_unix)
            self._tally("fits", "", "", "", outcome, num=1, seconds=seconds)
            self._observe("fit_durations", "", "", seconds)

    def add_recommendation(self, record: dict[str, Any], *, now_unix: float) -> None:
        """Append a recommendation."""
        text = json.dumps(record, allow_nan=False)
        with self.transaction():
            self._append("recommendations", text, now_unix)

    def upsert_agent(self, row: AgentRow) -> None:
        """Record what an agent is and does."""
        with self.transaction():
            self._put_agent(row)

    def _put_agent(self, row: AgentRow) -> None:
        self._put("agents", (*_AGENT_FACTS(row), _versions_text(tuple(row.versions.items()))))

    def add_canary(
        self, *, agent: str, hardware: str, kind: str, rate: float, deviation: float | None, now_unix: float
    ) -> None:
        """Append a canary."""
        with self.transaction():
            self._append("canaries", agent, hardware, kind, rate, deviation, now_unix)

    def count(self, name: str, amount: float = 1) -> None:
        """Add to a named total."""
        with self.transaction():
            before = self._rows("counters", "WHERE name = ?", (name,))
            self._put("counters", (name, amount + (before[0][1] if before else 0)))


@lru_cache(maxsize=1024)
def _versions_text(versions: tuple[tuple[str, str], ...]) -> str:
    """An agent's versions as JSON; its row is written at every sign of life."""
    return json.dumps(dict(versions))


_AGENT_FACTS = attrgetter(*COLUMNS["agents"][:-1])
_BOUNDS = (*(float(bound) for bound in DURATION_BOUNDS_SECONDS), math.inf)
_UPDATE_TRIAL = (
    f"UPDATE trials SET {', '.join(f'{name} = ?' for name in (*COLUMNS['trials'][4:], 'checksum'))} WHERE position = ?"
)
_UPDATE_ATTEMPT = (
    f"UPDATE attempts SET {', '.join(f'{name} = ?' for name in (*COLUMNS['attempts'][5:], 'checksum'))} WHERE seq = ?"
)


def note_backup(run_directory: Path, *, now_unix: float) -> None:
    """Note when the last sound backup was made, beside a coordinator that may be writing. Older schemas have no place.

    Raises:
        StoreError: the store cannot be written.
    """
    try:
        database = Database.open_for_writing(run_directory / FILE_NAME)
        try:
            if database.number("PRAGMA user_version") == SCHEMA_VERSION:
                values = ("last_backup_unix", repr(now_unix))
                database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (*values, checksum("meta", values)))
        finally:
            database.close()
    except DatabaseError as error:
        raise StoreError(_cannot_write(run_directory, error)) from None


def _open_known(path: Path, run_directory: Path, *, migrate_copy: bool = True) -> Database:
    """Open a store of this version or of an older one; the older is read from a migrated copy in memory."""
    try:
        database = Database.open_for_reading(path)
        try:
            version = _known_version(database, run_directory)
            if version == SCHEMA_VERSION or not migrate_copy:
                return database
            copy = Database.in_memory()
            database.copy_to(copy)
            database.close()
            migrate(copy)
            return copy
        except BaseException:
            database.close()
            raise
    except DatabaseError as error:
        raise StoreError(f"{path} cannot be read as a store: {error}.") from None


def _known_version(database: Database, run_directory: Path) -> int:
    version = database.number("PRAGMA user_version")
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{run_directory} was made by a newer archfleet (store schema {version}; "
            f"this one knows {SCHEMA_VERSION}).\n"
            "Install that version, or start a new run with `archfleet run --new`."
        )
    if version == 0:
        raise StoreError(
            f"{run_directory} was never completely set up (store schema {version}); "
            "start a new run with `archfleet run --new`."
        )
    return version


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


def _close_quietly(database: Database | None, lock: int) -> None:
    if database is not None:
        database.close()
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
