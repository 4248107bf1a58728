"""A store that the code of schema 1 made: read as it is, taken up by a coordinator, or left alone."""

import gzip
from pathlib import Path

import pytest

from coordinator.database import Database
from coordinator.errors import StoreError
from coordinator.migrations import migrate
from coordinator.schema import SCHEMA_VERSION
from coordinator.store import FILE_NAME, Store, StoreReader

SCHEMA_1 = Path(__file__).with_name("data") / "store-schema-1.sqlite3.gz"
"""Of commit 4085804: one trial succeeded, one after a time-out, one failed, one running at 40 %, one queued."""


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
