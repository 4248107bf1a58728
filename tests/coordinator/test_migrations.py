"""Stores that earlier code made: read as they are, taken up by a coordinator, or left alone."""

import gzip
import lzma
from pathlib import Path

import pytest

from coordinator.database import Database
from coordinator.errors import StoreError
from coordinator.migrations import migrate
from coordinator.schema import COLUMNS, NUMBERED, SCHEMA_VERSION, canonical, checksum
from coordinator.store import FILE_NAME, Store, StoreReader

SCHEMA_1 = Path(__file__).with_name("data") / "store-schema-1.sqlite3.gz"
"""Of commit 4085804: one trial succeeded, one after a time-out, one failed, one running at 40 %, one queued."""

SCHEMA_2 = SCHEMA_1.with_name("schema-2-e5a0776.sqlite3.xz")
"""A whole study on a simulated fleet with faults; each table numbers its own rows."""


@pytest.fixture
def run_of_schema_2(tmp_path: Path) -> Path:
    directory = tmp_path / "laptop-old"
    directory.mkdir()
    (directory / FILE_NAME).write_bytes(lzma.decompress(SCHEMA_2.read_bytes()))
    return directory


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    directory = tmp_path / "quick-old"
    directory.mkdir()
    (directory / FILE_NAME).write_bytes(gzip.decompress(SCHEMA_1.read_bytes()))
    return directory


def check_content(store: StoreReader) -> None:
    first, second, third, fourth, fifth = store.trials()
    assert [first.state, second.state, third.state] == ["succeeded", "succeeded", "failed"]
    assert fifth.state == "queued"
    assert (fourth.done_fraction, first.done_fraction) == (0.4, 1)
    assert first.planned.trial_id == first.trial_id
    assert [record.kind for record in store.observations()] == ["training", "failure", "training", "failure"]
    (plan,) = store.plans()
    assert (plan.stage, plan.notes, len(plan.trials)) == ("first-round", ("a note",), 5)
    assert store.rejections() == [("fenced", first.trial_id, 1, "agent-0")]
    assert store.counters() == {"leases_expired": 2}
    assert store.last_fit().record == {"n": 2}
    assert store.recommendation() == {"n": 1}
    assert [agent.agent for agent in store.agents()] == ["agent-0"]
    assert sum(trial.spent_seconds for trial in store.trials()) == sum(count.spent_seconds for count in store.counts())


def test_a_reader_reads_an_old_store_and_leaves_it_as_it_is(old_run: Path) -> None:
    before = (old_run / FILE_NAME).read_bytes()
    with StoreReader.open(old_run) as store:
        check_content(store)
        store.verify()
        assert [a.outcome for a in store.attempts()] == [None, "succeeded", "retried", "succeeded", "failed"]
    assert (old_run / FILE_NAME).read_bytes() == before


def test_a_coordinator_takes_an_old_store_up(old_run: Path) -> None:
    with Store.resume(old_run) as store:
        check_content(store)
        running = store.trials()[3]
        assert running.state == "running"
        assert store.requeue_running(now_unix=running.leased_unix + 10) == [running.trial_id]
        assert store.trials()[3].spent_seconds == 10
        store.verify()
    database = Database.open_for_reading(old_run / FILE_NAME)
    assert database.row("PRAGMA user_version") == (SCHEMA_VERSION,)
    assert not [name for (name,) in database.rows("SELECT name FROM sqlite_schema") if name.startswith("old_")]
    database.close()


def test_a_store_of_today_is_left_alone(store: Store) -> None:
    before = store._database.number("PRAGMA schema_version")
    migrate(store._database)
    assert store._database.number("PRAGMA schema_version") == before


def test_an_old_store_that_cannot_be_migrated_stays_what_it_was(old_run: Path) -> None:
    database = Database.open_for_writing(old_run / FILE_NAME)
    database.execute("UPDATE plans SET record = 'rubbish'")
    database.close()
    with pytest.raises(StoreError, match="is damaged: it holds a record"):
        Store.resume(old_run)
    database = Database.open_for_reading(old_run / FILE_NAME)
    assert database.row("PRAGMA user_version") == (1,)
    assert database.number("SELECT count(*) FROM trials") == 5
    database.close()


# From 2 to 3: one sequence of numbers


def facts_by_table(database: Database) -> dict[str, list[tuple]]:
    """What the facts say, by table and in order, without number and checksum."""
    return {table: [row[1:-1] for row in database.rows(f"SELECT * FROM {table} ORDER BY seq")] for table in NUMBERED}


def migrated(directory: Path) -> tuple[dict[str, list[tuple]], dict[str, list[tuple]]]:
    """The facts before and after a coordinator took the run up."""
    database = Database.open_for_reading(directory / FILE_NAME)
    before = facts_by_table(database)
    database.close()
    with Store.resume(directory) as store:
        store.verify()
        return before, facts_by_table(store._database)


def rewrite(directory: Path, table: str, seq: int, **changes: object) -> None:
    """Change a row of schema 2 as its own code would have written it."""
    database = Database.open_for_writing(directory / FILE_NAME)
    row = dict(zip(COLUMNS[table], database.rows(f"SELECT * FROM {table} WHERE seq = ?", (seq,))[0][:-1], strict=True))
    values = canonical(table, tuple((row | changes).values()))
    database.execute(f"DELETE FROM {table} WHERE seq = ?", (seq,))
    database.execute(
        f"INSERT INTO {table} VALUES ({', '.join('?' * (len(values) + 1))})", (*values, checksum(table, values))
    )
    database.close()


def test_facts_keep_what_they_say_and_the_order_of_their_table(run_of_schema_2: Path) -> None:
    before, after = migrated(run_of_schema_2)
    assert before == after
    assert all(after[table] for table in NUMBERED)


def test_facts_of_all_tables_are_numbered_in_the_order_of_their_times(run_of_schema_2: Path) -> None:
    with Store.resume(run_of_schema_2) as store:
        events = store.events(0, limit=10_000)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    told = [event for event in events if event.kind != "leased"]
    assert [event.unix for event in told] == sorted(event.unix for event in told)


def test_a_trial_is_planned_before_it_is_leased_and_leased_before_it_ends(run_of_schema_2: Path) -> None:
    # What was handed ahead tells when it was begun, which is after later ones were leased.
    rewrite(run_of_schema_2, "attempts", 3, leased_unix=1.8e9)
    with Store.resume(run_of_schema_2) as store:
        events, stage_of = store.events(0, limit=10_000), {row.trial_id: row.stage for row in store.trials()}
    planned = {event.subject: event.seq for event in events if event.kind == "planned"}
    leased = {(event.subject, event.epoch): event.seq for event in events if event.kind == "leased"}
    ended = {(event.subject, event.epoch): event.seq for event in events if event.kind in ("result", "failure")}
    assert len(ended) > 50
    assert all(leased[attempt] < seq for attempt, seq in ended.items())
    assert all(planned[stage_of[trial_id]] < seq for (trial_id, _), seq in leased.items())


def test_a_clock_that_was_set_back_does_not_change_a_tables_order(run_of_schema_2: Path) -> None:
    rewrite(run_of_schema_2, "observations", 20, unix=5.0)
    before, after = migrated(run_of_schema_2)
    assert before == after


def test_a_migrated_run_goes_on_after_its_newest_number(run_of_schema_2: Path) -> None:
    with Store.resume(run_of_schema_2) as store:
        last = store.last_seq()
        store.reject("train-0", epoch=1, agent="agent-0", reason="fenced", now_unix=0)
        assert [event.kind for event in store.events(last)] == ["refused"]
        store.verify()


def test_a_row_that_was_changed_is_not_signed_anew(run_of_schema_2: Path) -> None:
    database = Database.open_for_writing(run_of_schema_2 / FILE_NAME)
    database.execute("UPDATE canaries SET rate = 2 * rate WHERE seq = 7")
    database.close()
    with pytest.raises(StoreError, match="row 7 of table canaries was changed"):
        Store.resume(run_of_schema_2)
    database = Database.open_for_reading(run_of_schema_2 / FILE_NAME)
    assert database.number("PRAGMA user_version") == 2
    database.close()
