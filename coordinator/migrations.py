"""Migrations: an older store becomes one of today's schema, step by step in one transaction, forward only."""

import json
from itertools import accumulate
from typing import Any

from coordinator import failpoints
from coordinator.database import Database, DatabaseError, Row, Value
from coordinator.plan import Plan
from coordinator.schema import COLUMNS, NUMBERED, SCHEMA_VERSION, TABLES, canonical, checksum

_V1_TABLES = ("meta", "trials", "observations", "rejections", "plans", "fits", "recommendations", "agents", "counters")


def migrate(database: Database) -> None:
    """Bring a database of an older schema up to date; one of today's is left alone.

    Raises:
        DatabaseError: it could not be read or written; nothing was changed.
    """
    if database.number("PRAGMA user_version") == SCHEMA_VERSION:
        return
    with database.transaction():
        version = database.number("PRAGMA user_version")
        if version not in _STEPS:
            raise DatabaseError(f"no way leads from schema {version} to {SCHEMA_VERSION}", "other")
        try:
            for step in range(version, SCHEMA_VERSION):
                _STEPS[step](database)
        except (ValueError, KeyError, TypeError) as error:
            raise DatabaseError(f"it holds a record that cannot be migrated: {error}", "corrupt") from error
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _from_1_to_2(database: Database) -> None:
    """Checksums on every row; attempts, decisions, canaries and tallies; progress apart from trials."""
    database.execute("PRAGMA defer_foreign_keys = ON")
    database.execute("DROP INDEX one_result_a_trial")
    for table in _V1_TABLES:
        database.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
    database.execute(TABLES)
    failpoints.hit("store.mid_migration")
    tallies: dict[tuple[str, ...], list[Any]] = {}
    for table, columns in (
        ("meta", "key, value"),
        ("rejections", "seq, trial_id, epoch, agent, reason, unix"),
        ("fits", "seq, num_points, outcome, seconds, record, unix"),
        ("recommendations", "seq, record, unix"),
        ("agents", "agent, hardware, state, pid, heartbeat_unix, joined_unix, '', NULL, '{}'"),
        ("counters", "name, value"),
    ):
        for row in database.rows(f"SELECT {columns} FROM old_{table}"):
            _insert(database, table, *row)
    _migrate_trials(database, tallies)
    _migrate_observations(database, tallies)
    _migrate_plans(database)
    for outcome, seconds in database.rows("SELECT outcome, seconds FROM old_fits"):
        _count(tallies, "fits", "", "", "", outcome, seconds=seconds)
    for (reason,) in database.rows("SELECT reason FROM old_rejections"):
        _count(tallies, "rejections", "", "", "", str(reason))
    for key, (num, seconds) in tallies.items():
        _insert(database, "tallies", *key, num, seconds)
    for table in ("observations", *(name for name in _V1_TABLES if name != "observations")):
        database.execute(f"DROP TABLE old_{table}")


def _migrate_trials(database: Database, tallies: dict[tuple[str, ...], list[Any]]) -> None:
    query = (
        "SELECT position, trial_id, stage, phase, state, epoch, attempts, agent, hardware, queued_unix, "
        "first_leased_unix, leased_unix, lease_expires_unix, ended_unix, spent_seconds, planned, done_fraction "
        "FROM old_trials ORDER BY position"
    )
    for *fields, planned, done_fraction in database.rows(query):
        position, trial_id, stage, phase, state = fields[:5]
        _insert(database, "trials", *fields)
        _insert(database, "work", position, trial_id, planned)
        _count(tallies, "trials", stage, phase, fields[8] or "", state, seconds=fields[14])
        if state == "running":
            # What is needed to close it at the restart that follows.
            _insert_attempt(database, trial_id, fields[5], fields[7], fields[8], fields[11], None, None, None, 0.0)
        if done_fraction and state != "succeeded":
            expires = fields[12] or 0.0
            database.execute("INSERT INTO progress VALUES (?, ?, ?)", (trial_id, done_fraction, expires))


def _migrate_observations(database: Database, tallies: dict[tuple[str, ...], list[Any]]) -> None:
    """Observations with their attempts. Schema 1 kept only a trial's last lease: earlier ones have the end's time."""
    query = (
        "SELECT o.seq, o.trial_id, o.epoch, o.kind, o.record, o.unix, t.phase, t.state, t.epoch, t.hardware, "
        "t.leased_unix FROM old_observations o JOIN old_trials t USING (trial_id) ORDER BY o.seq"
    )
    for *fields, phase, state, last_epoch, hardware, leased in database.rows(query):
        _, trial_id, epoch, kind, text, unix = fields
        _insert(database, "observations", *fields)
        record = json.loads(text)
        made_by = record["provenance"]
        is_last = epoch == last_epoch
        began = leased if is_last and leased is not None else unix
        spent = max(0.0, unix - began)
        outcome = "succeeded" if kind != "failure" else "failed" if is_last and state == "failed" else "retried"
        where = hardware if is_last and hardware is not None else made_by["hardware"]
        failure_kind = record.get("failure_kind")
        _insert_attempt(database, trial_id, epoch, made_by["agent"], where, began, unix, outcome, failure_kind, spent)
        _count(tallies, "attempts", "", phase, where, failure_kind or outcome, seconds=spent)
        if outcome == "failed":
            _count(tallies, "final_failures", "", phase, where, str(failure_kind))


def _migrate_plans(database: Database) -> None:
    """Inputs were not kept in schema 1."""
    for seq, stage, text, unix in database.rows("SELECT seq, stage, record, unix FROM old_plans"):
        plan = Plan.model_validate_json(text)
        record = {"trial_ids": [trial.trial_id for trial in plan.trials], "notes": list(plan.notes)}
        _insert(database, "decisions", seq, "plan", stage, json.dumps(record), "{}", None, unix)


def _insert_attempt(database: Database, *values: Value) -> None:
    seq = database.number("SELECT coalesce(max(seq), 0) + 1 FROM attempts")
    _insert(database, "attempts", seq, *values)


def _insert(database: Database, table: str, *values: Value) -> None:
    row = canonical(table, values)
    places = ", ".join("?" * (len(row) + 1))
    database.execute(f"INSERT INTO {table} VALUES ({places})", (*row, checksum(table, row)))


def _count(tallies: dict[tuple[str, ...], list[Any]], *key: str, seconds: float = 0.0) -> None:
    change = tallies.setdefault(key, [0, 0.0])
    change[0] += 1
    change[1] += seconds


_TIMES = {
    "decisions": "unix",
    "attempts": "leased_unix",
    "canaries": "unix",
    "observations": "unix",
    "rejections": "unix",
    "fits": "unix",
    "recommendations": "unix",
}
"""When each fact was written; of facts of one instant, those of an earlier table came first."""


def _from_2_to_3(database: Database) -> None:
    """One sequence of numbers over all facts, in the order of their times; each table's own order is kept."""
    order = sorted(
        (unix, rank, seq, table)
        for rank, (table, time_column) in enumerate(_TIMES.items())
        for unix, seq in _in_order(database.rows(f"SELECT {time_column}, seq FROM {table} ORDER BY seq"), table)
    )
    for table in NUMBERED:
        database.execute(f"UPDATE {table} SET seq = -seq")  # out of the way of the new numbers
    failpoints.hit("store.mid_migration")
    for number, (_, _, seq, table) in enumerate(order, start=1):
        _renumber(database, table, seq, number)


def _in_order(rows: list[Row], table: str) -> list[Row]:
    """(time, number) of a table's facts, with times that never fall: a clock may have been set back.

    An attempt that was handed ahead tells when it began, after later ones were leased: it counts from theirs.
    """
    if table == "attempts":
        times = list(accumulate((row[0] for row in reversed(rows)), min))[::-1]
    else:
        times = list(accumulate((row[0] for row in rows), max))
    return [(unix, row[1]) for unix, row in zip(times, rows, strict=True)]


def _renumber(database: Database, table: str, seq: int, number: int) -> None:
    """Give the fact that was `seq`, and is -seq meanwhile, its new number and checksum."""
    row = database.row(f"SELECT {', '.join(COLUMNS[table][1:])}, checksum FROM {table} WHERE seq = ?", (-seq,))
    assert row is not None, (table, seq)
    if checksum(table, (seq, *row[:-1])) != row[-1]:
        raise ValueError(f"row {seq} of table {table} was changed")
    bindings = (number, checksum(table, (number, *row[:-1])), -seq)
    database.execute(f"UPDATE {table} SET seq = ?, checksum = ? WHERE seq = ?", bindings)


_STEPS = {1: _from_1_to_2, 2: _from_2_to_3}
"""What leads from each schema to the next."""
