"""Schema of the store: its tables, which rows carry a checksum, and what that checksum is.

A row's checksum is over its table's name and all its other values, so that a row which was changed, or which came
to stand elsewhere, is noticed when it is read. `progress` has none: it is advice for people, written often.

The tables of facts that are only ever added to share one sequence of numbers, 1, 2, 3 ... in the order of writing: the
number of a fact says where it stands among all facts of the run, and whoever knows everything up to a number can ask
for what came after it.
"""

import re
import zlib
from collections.abc import Sequence
from typing import cast

from coordinator.database import Value

SCHEMA_VERSION = 3

TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum INTEGER NOT NULL) STRICT;
CREATE TABLE trials (
    position INTEGER PRIMARY KEY, trial_id TEXT NOT NULL UNIQUE, stage TEXT NOT NULL, phase TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'succeeded', 'failed')), epoch INTEGER NOT NULL,
    attempts INTEGER NOT NULL, agent TEXT, hardware TEXT, queued_unix REAL NOT NULL, first_leased_unix REAL,
    leased_unix REAL, lease_expires_unix REAL, ended_unix REAL, spent_seconds REAL NOT NULL,
    checksum INTEGER NOT NULL) STRICT;
CREATE INDEX open_trials ON trials (state) WHERE state IN ('queued', 'running');
CREATE TABLE work (
    position INTEGER PRIMARY KEY REFERENCES trials, trial_id TEXT NOT NULL, planned TEXT NOT NULL,
    checksum INTEGER NOT NULL) STRICT;
CREATE TABLE progress (
    trial_id TEXT PRIMARY KEY, done_fraction REAL NOT NULL, expires_unix REAL NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE attempts (
    seq INTEGER PRIMARY KEY, trial_id TEXT NOT NULL REFERENCES trials (trial_id), epoch INTEGER NOT NULL,
    agent TEXT NOT NULL, hardware TEXT NOT NULL, leased_unix REAL NOT NULL, ended_unix REAL,
    outcome TEXT CHECK (outcome IN ('succeeded', 'failed', 'retried', 'interrupted')), failure_kind TEXT,
    spent_seconds REAL NOT NULL, checksum INTEGER NOT NULL, UNIQUE (trial_id, epoch)) STRICT;
CREATE TABLE observations (
    seq INTEGER PRIMARY KEY, trial_id TEXT NOT NULL REFERENCES trials (trial_id), epoch INTEGER NOT NULL,
    kind TEXT NOT NULL, record TEXT NOT NULL, unix REAL NOT NULL, checksum INTEGER NOT NULL,
    UNIQUE (trial_id, epoch)) STRICT;
CREATE UNIQUE INDEX one_result_a_trial ON observations (trial_id) WHERE kind != 'failure';
CREATE TABLE rejections (
    seq INTEGER PRIMARY KEY, trial_id TEXT NOT NULL, epoch INTEGER NOT NULL, agent TEXT NOT NULL,
    reason TEXT NOT NULL, unix REAL NOT NULL, checksum INTEGER NOT NULL) STRICT;
CREATE TABLE decisions (
    seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, stage TEXT NOT NULL, record TEXT NOT NULL, inputs TEXT NOT NULL,
    random_state TEXT, unix REAL NOT NULL, checksum INTEGER NOT NULL) STRICT;
CREATE UNIQUE INDEX one_plan_a_stage ON decisions (stage) WHERE kind = 'plan';
CREATE TABLE fits (
    seq INTEGER PRIMARY KEY, num_points INTEGER NOT NULL, outcome TEXT NOT NULL, seconds REAL NOT NULL,
    record TEXT NOT NULL, unix REAL NOT NULL, checksum INTEGER NOT NULL) STRICT;
CREATE TABLE recommendations (
    seq INTEGER PRIMARY KEY, record TEXT NOT NULL, unix REAL NOT NULL, checksum INTEGER NOT NULL) STRICT;
CREATE TABLE agents (
    agent TEXT PRIMARY KEY, hardware TEXT NOT NULL, state TEXT NOT NULL, pid INTEGER NOT NULL,
    heartbeat_unix REAL NOT NULL, joined_unix REAL NOT NULL, node TEXT NOT NULL, clock_offset_seconds REAL,
    versions TEXT NOT NULL, checksum INTEGER NOT NULL) STRICT;
CREATE TABLE canaries (
    seq INTEGER PRIMARY KEY, agent TEXT NOT NULL, hardware TEXT NOT NULL, kind TEXT NOT NULL, rate REAL NOT NULL,
    deviation REAL, unix REAL NOT NULL, checksum INTEGER NOT NULL) STRICT;
CREATE TABLE counters (name TEXT PRIMARY KEY, value REAL NOT NULL, checksum INTEGER NOT NULL) STRICT;
CREATE TABLE tallies (
    kind TEXT NOT NULL, stage TEXT NOT NULL, phase TEXT NOT NULL, hardware TEXT NOT NULL, name TEXT NOT NULL,
    num INTEGER NOT NULL, seconds REAL NOT NULL, checksum INTEGER NOT NULL,
    PRIMARY KEY (kind, stage, phase, hardware, name)) STRICT, WITHOUT ROWID;
"""

COLUMNS: dict[str, tuple[str, ...]] = {
    "meta": ("key", "value"),
    "trials": (
        *("position", "trial_id", "stage", "phase", "state", "epoch", "attempts", "agent", "hardware", "queued_unix"),
        *("first_leased_unix", "leased_unix", "lease_expires_unix", "ended_unix", "spent_seconds"),
    ),
    "work": ("position", "trial_id", "planned"),
    "attempts": (
        *("seq", "trial_id", "epoch", "agent", "hardware", "leased_unix", "ended_unix", "outcome", "failure_kind"),
        "spent_seconds",
    ),
    "observations": ("seq", "trial_id", "epoch", "kind", "record", "unix"),
    "rejections": ("seq", "trial_id", "epoch", "agent", "reason", "unix"),
    "decisions": ("seq", "kind", "stage", "record", "inputs", "random_state", "unix"),
    "fits": ("seq", "num_points", "outcome", "seconds", "record", "unix"),
    "recommendations": ("seq", "record", "unix"),
    "agents": (
        *("agent", "hardware", "state", "pid", "heartbeat_unix", "joined_unix", "node", "clock_offset_seconds"),
        "versions",
    ),
    "canaries": ("seq", "agent", "hardware", "kind", "rate", "deviation", "unix"),
    "counters": ("name", "value"),
    "tallies": ("kind", "stage", "phase", "hardware", "name", "num", "seconds"),
}
"""Columns of every table whose rows carry a checksum, the checksum itself left out."""

NUMBERED = tuple(table for table, names in COLUMNS.items() if names[0] == "seq")
"""The tables that share one sequence of numbers."""
LAST_SEQ = f"SELECT max({', '.join(f'coalesce((SELECT max(seq) FROM {table}), 0)' for table in NUMBERED)})"
"""Query of the newest number; 0 before the first."""


_SEEDS = {table: zlib.crc32(table.encode()) for table in COLUMNS}
_REAL = re.compile(r"(\w+) REAL")
_REAL_COLUMNS = {
    table: tuple(place for place, name in enumerate(names) if name in set(_REAL.findall(_definition)))
    for table, names in COLUMNS.items()
    for _definition in [TABLES[TABLES.index(f"CREATE TABLE {table} (") :].partition("STRICT")[0]]
}
"""Places of the columns that SQLite gives back as floats."""


def canonical(table: str, values: Sequence[Value]) -> Sequence[Value]:
    """A row to be written as it will be read back: a REAL column gives 1 back as 1.0."""
    as_read = list(values)
    for place in _REAL_COLUMNS[table]:
        if type(as_read[place]) is int:
            as_read[place] = float(cast("int", as_read[place]))
    return tuple(as_read)


def checksum(table: str, values: Sequence[Value]) -> int:
    """CRC-32 of a canonical row."""
    return zlib.crc32(repr(values).encode(), _SEEDS[table])
