"""The database under the store: transactions that join, and every error of SQLite translated."""

from contextlib import suppress
from pathlib import Path

import apsw
import pytest

from coordinator import database as module
from coordinator.database import Database, DatabaseError


@pytest.fixture
def database(tmp_path: Path):
    opened = Database.open_for_writing(tmp_path / "a.sqlite3")
    opened.execute("CREATE TABLE facts (name TEXT PRIMARY KEY, number INTEGER NOT NULL) STRICT")
    yield opened
    opened.close()


def names(database: Database) -> list[str]:
    return [name for (name,) in database.rows("SELECT name FROM facts ORDER BY name")]


def add(database: Database, name: str) -> None:
    with database.transaction():
        database.execute("INSERT INTO facts VALUES (?, 1)", (name,))


def test_a_transaction_within_another_is_kept_with_it(database: Database) -> None:
    with database.transaction():
        add(database, "a")
        add(database, "b")
    assert names(database) == ["a", "b"]


def add_and_fail(database: Database) -> None:
    with database.transaction():
        add(database, "a")
        raise ZeroDivisionError


def test_a_transaction_within_one_that_fails_is_undone_with_it(database: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        add_and_fail(database)
    assert names(database) == []
    assert not database.is_in_transaction


def add_and_swallow_a_failure(database: Database, *, then: str | None) -> None:
    with database.transaction():
        add(database, "a")
        with suppress(DatabaseError):
            add(database, "taken")
        if then is not None:
            add(database, then)


@pytest.mark.parametrize("then", [None, "b"])
def test_a_swallowed_failure_still_undoes_everything(database: Database, then: str | None) -> None:
    add(database, "taken")
    with pytest.raises(DatabaseError, match="an earlier part of the transaction failed: UNIQUE"):
        add_and_swallow_a_failure(database, then=then)
    assert names(database) == ["taken"]


def test_the_time_of_a_commit_is_known(database: Database) -> None:
    add(database, "a")
    assert database.last_commit_seconds is not None
    assert database.last_commit_seconds > 0


def test_a_reader_cannot_write(database: Database, tmp_path: Path) -> None:
    reader = Database.open_for_reading(tmp_path / "a.sqlite3")
    with pytest.raises(DatabaseError) as caught:
        add(reader, "a")
    assert caught.value.reason == "io"
    reader.close()


def test_a_text_that_is_no_text_is_damage(database: Database) -> None:
    database.execute("INSERT INTO facts VALUES (CAST(x'ff' AS TEXT), 1)")
    with pytest.raises(DatabaseError, match="not UTF-8") as caught:
        names(database)
    assert caught.value.reason == "corrupt"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (apsw.FullError, "full"),
        (apsw.BusyError, "busy"),
        (apsw.LockedError, "busy"),
        (apsw.CorruptError, "corrupt"),
        (apsw.NotADBError, "corrupt"),
        (apsw.IOError, "io"),
        (apsw.CantOpenError, "io"),
        (apsw.ConstraintError, "constraint"),
        (apsw.MisuseError, "other"),
    ],
)
def test_every_error_has_a_reason(error: type[apsw.Error], reason: str) -> None:
    assert module._translated(error("x")).reason == reason


def test_the_sqlite_beneath_has_no_write_ahead_log_fault() -> None:
    """A log might be reset while a reader still needed it before 3.51.3."""
    assert tuple(map(int, apsw.sqlite_lib_version().split("."))) >= (3, 51, 3)
