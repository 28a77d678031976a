"""The state database: one SQLite file in WAL mode, private to its owner.

Opened by the server and by the commands that change state, at the same time: readers never wait
for a writer, and writers wait for each other for a bounded time. Must not know what the tables
mean; whoever owns a table adds its statements here and its queries elsewhere.
"""

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from verger.errors import DatabaseError

BUSY_S = 5.0
"""How long a command waits for another writer."""

MIGRATIONS = (
    """
    CREATE TABLE keys (
        prefix TEXT PRIMARY KEY,
        digest BLOB NOT NULL,
        name TEXT NOT NULL,
        tenant TEXT NOT NULL,
        class TEXT NOT NULL,
        route TEXT NOT NULL,
        monthly_budget_usd REAL NOT NULL,
        rpm INTEGER,
        max_parallel INTEGER,
        is_admin INTEGER NOT NULL,
        created_unix_s INTEGER NOT NULL,
        expires_unix_s INTEGER,
        revoked_unix_s INTEGER
    ) STRICT
    """,
    "CREATE UNIQUE INDEX keys_name ON keys (name) WHERE revoked_unix_s IS NULL",
)
"""Only ever appended to. The schema's version is how many of them have been carried out."""


def open_database(file: Path, busy_s: float = BUSY_S) -> sqlite3.Connection:
    """Open it in this thread, make or migrate it if need be; the caller closes it.

    Raises DatabaseError.
    """
    with explained(file), ExitStack() as on_failure:
        connection = connect(file, busy_s)
        on_failure.callback(connection.close)
        connection.row_factory = sqlite3.Row
        _migrate(connection, file)
        on_failure.pop_all()
        return connection


def connect(file: Path, busy_s: float, *, any_thread: bool = False) -> sqlite3.Connection:
    """The file, private to its owner and in WAL mode, whatever tables it has. Errors are as they
    come."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if file.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    # SQLite gives its other two files the mode of this one. A file that is there is not opened: to
    # close it would end this process's POSIX locks on it, those of other connections too.
    with suppress(FileExistsError):
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    file.chmod(0o600)
    with ExitStack() as on_failure:
        connection = sqlite3.connect(
            file, timeout=busy_s, isolation_level=None, check_same_thread=not any_thread
        )
        on_failure.callback(connection.close)
        connection.execute("PRAGMA journal_mode = WAL")
        on_failure.pop_all()
    return connection


@contextmanager
def database(file: Path) -> Iterator[sqlite3.Connection]:
    """For one command: opened, handed over, closed. Whatever fails is a DatabaseError."""
    connection = open_database(file)
    try:
        with explained(file):
            yield connection
    finally:
        connection.close()


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Everything within is written, or nothing; other writers wait."""
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


@contextmanager
def explained(file: Path) -> Iterator[None]:
    """What the system or SQLite complain of becomes a DatabaseError."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DatabaseError(f"cannot use the state database {file}: {reason}") from error


def _migrate(connection: sqlite3.Connection, file: Path) -> None:
    if _version(connection) == len(MIGRATIONS):
        return
    with transaction(connection):
        # Asked again: another process may have done it meanwhile.
        version = _version(connection)
        if version > len(MIGRATIONS):
            raise DatabaseError(
                f"a newer Verger has written the state database {file}: install that one again"
            )
        for statement in MIGRATIONS[version:]:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])
