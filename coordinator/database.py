"""Database: SQLite under the store. Opening, executing, transactions, errors. The only file that imports apsw.

apsw bundles its own SQLite: Debian's 3.40.1 may reset a write-ahead log that a reader still needs (fixed in 3.51.3),
and apsw lets tests put a file system that forgets or fails beneath the real store.

DatabaseError            what SQLite could not do; `reason` is one of full, busy, io, corrupt, constraint, other
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import apsw

from coordinator import failpoints

BUSY_TIMEOUT_MS = 10_000
MAX_LOG_BYTES = 64 * 2**20
"""To this the write-ahead log is cut when it was larger and everything in it has been checkpointed."""

Value = str | int | float | bytes | None
Row = tuple[Any, ...]
Reason = Literal["full", "busy", "io", "corrupt", "constraint", "other"]

_REASONS: tuple[tuple[type[apsw.Error], Reason], ...] = (
    (apsw.FullError, "full"),
    (apsw.BusyError, "busy"),
    (apsw.LockedError, "busy"),
    (apsw.CorruptError, "corrupt"),
    (apsw.NotADBError, "corrupt"),
    (apsw.FormatError, "corrupt"),
    (apsw.IOError, "io"),
    (apsw.CantOpenError, "io"),
    (apsw.ReadOnlyError, "io"),
    (apsw.ConstraintError, "constraint"),
)


class DatabaseError(Exception):
    """SQLite could not do what it was asked; nothing of the transaction was kept."""

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message)
        self.reason = reason


class Database:
    """One connection. Statements outside `transaction` commit by themselves."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._transaction = Transaction(self)
        self.last_commit_seconds: float | None = None
        """How long the last COMMIT took, syncing to the disk included."""

    @classmethod
    def open_for_reading(cls, path: Path, *, vfs: str | None = None) -> "Database":
        """Open an existing file; it cannot be written through this connection.

        Raises:
            DatabaseError: it cannot be opened.
        """
        return cls(_connect(path, apsw.SQLITE_OPEN_READONLY, vfs))

    @classmethod
    def open_for_writing(cls, path: Path, *, vfs: str | None = None) -> "Database":
        """Open or make a file; every commit is on the disk before it returns (write-ahead log, synchronous=FULL).

        Raises:
            DatabaseError: it cannot be opened or written.
        """
        database = cls(_connect(path, apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE, vfs))
        try:
            if vfs is not None:
                database.execute("PRAGMA locking_mode = EXCLUSIVE")  # a VFS written in Python shares no memory
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            database.execute(f"PRAGMA journal_size_limit = {MAX_LOG_BYTES}")
        except BaseException:
            database.close()
            raise
        return database

    @classmethod
    def open_for_copy(cls, path: Path) -> "Database":
        """Make a file that another database is to be copied into.

        Raises:
            DatabaseError: it cannot be made.
        """
        return cls(_connect(path, apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE, None))

    @classmethod
    def in_memory(cls) -> "Database":
        """An empty database that is gone when it is closed."""
        return cls(apsw.Connection(":memory:"))

    def close(self) -> None:
        """Close the connection. What could not be checkpointed now stays in the write-ahead log, as after a crash."""
        with suppress(apsw.Error):
            self._connection.close()

    def execute(self, statement: str, bindings: Sequence[Value] = ()) -> None:
        """Carry out a statement whose rows nobody wants; without bindings it may be several, ended by semicolons."""
        try:
            self._connection.execute(statement, bindings or None).fetchall()
        except apsw.Error as error:
            raise _translated(error) from error
        except UnicodeDecodeError as error:
            raise DatabaseError(f"a text is not UTF-8: {error.reason}", "corrupt") from error

    def rows(self, query: str, bindings: Sequence[Value] = ()) -> list[Row]:
        """All rows of a query."""
        try:
            return self._connection.execute(query, bindings or None).fetchall()
        except apsw.Error as error:
            raise _translated(error) from error
        except UnicodeDecodeError as error:
            raise DatabaseError(f"a text is not UTF-8: {error.reason}", "corrupt") from error

    def each_row(self, query: str, bindings: Sequence[Value] = ()) -> Iterator[Row]:
        """The same rows one after the other, none of them kept; nothing may be written meanwhile."""
        try:
            yield from self._connection.execute(query, bindings or None)
        except apsw.Error as error:
            raise _translated(error) from error
        except UnicodeDecodeError as error:
            raise DatabaseError(f"a text is not UTF-8: {error.reason}", "corrupt") from error

    def row(self, query: str, bindings: Sequence[Value] = ()) -> Row | None:
        """The first row of a query that has one or none."""
        rows = self.rows(query, bindings)
        return rows[0] if rows else None

    def number(self, query: str, bindings: Sequence[Value] = ()) -> int:
        """The one whole number that a query is sure to give."""
        row = self.row(query, bindings)
        assert row is not None, query
        assert isinstance(row[0], int), query
        return row[0]

    @property
    def is_in_transaction(self) -> bool:
        """Whether SQLite holds a transaction open."""
        return not self._connection.get_autocommit()

    def transaction(self) -> "Transaction":
        """All or nothing, as a context. Within another transaction it joins that one: the outermost commits for all."""
        return self._transaction

    def on_end(self, *, finish: Callable[[], None], abandon: Callable[[], None]) -> None:
        """Call `finish` last before every commit, `abandon` after whatever ended without one."""
        self._transaction.finish, self._transaction.abandon = finish, abandon

    def copy_to(self, other: "Database", *, pages_a_step: int = -1, between: Callable[[], None] = lambda: None) -> None:
        """Copy everything into another database, online; writers may go on meanwhile.

        Args:
            other: what it held is lost.
            pages_a_step: pages copied at a time, all of them when negative.
            between: called between two steps.
        """
        try:
            with other._connection.backup("main", self._connection, "main") as backup:
                while not backup.done:
                    backup.step(pages_a_step)
                    between()
        except apsw.Error as error:
            raise _translated(error) from error


class Transaction:
    """The one transaction of a connection; entered again within itself, it is joined."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._depth = 0
        self._spoilt: BaseException | None = None
        self.finish: Callable[[], None] = _nothing
        self.abandon: Callable[[], None] = _nothing

    def __enter__(self) -> None:
        """Begin, or join.

        Raises:
            DatabaseError: it cannot begin, or a part of it has failed and the failure was swallowed.
        """
        if self._depth == 0:
            self._database.execute("BEGIN IMMEDIATE")
        else:
            self._require_unspoilt()
        self._depth += 1

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        """Commit when this is the outermost; roll everything back when anything in it failed.

        Raises:
            DatabaseError: it could not be committed.
        """
        if self._depth > 1:
            self._depth -= 1
            self._spoilt = self._spoilt or error
            return
        try:
            if error is None:
                self._commit()
            else:
                self._roll_back()
        finally:
            self._depth, self._spoilt = 0, None
        if error is None:
            failpoints.hit("store.after_commit")

    def _commit(self) -> None:
        try:
            self._require_unspoilt()
            self.finish()
            failpoints.hit("store.before_commit")
            started = time.perf_counter()
            self._database.execute("COMMIT")
            self._database.last_commit_seconds = time.perf_counter() - started
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        self.abandon()
        # A full disk makes SQLite roll back by itself; a refused COMMIT leaves the transaction open.
        if self._database.is_in_transaction:
            self._database.execute("ROLLBACK")

    def _require_unspoilt(self) -> None:
        """After a failure SQLite may have rolled back already: what came now would be committed without the rest."""
        if self._spoilt is not None:
            raise DatabaseError(f"an earlier part of the transaction failed: {self._spoilt}", "other") from self._spoilt


def _nothing() -> None:
    """Nothing needs to be done."""


def _connect(path: Path, flags: int, vfs: str | None) -> apsw.Connection:
    try:
        connection = apsw.Connection(str(path), flags=flags, vfs=vfs)
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        connection.execute("PRAGMA foreign_keys = ON")
    except apsw.Error as error:
        raise _translated(error) from error
    return connection


def _translated(error: apsw.Error) -> DatabaseError:
    reason: Reason = next((reason for kind, reason in _REASONS if isinstance(error, kind)), "other")
    return DatabaseError(str(error), reason)
