"""The files of the state folder that a backup holds, and whether they are in use.

Called by `backup`; `exchange` puts others in their place. Whether the server runs is asked from
SQLite: every connection to a database in WAL mode holds a shared lock on it for as long as it is
open, also one that does nothing.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from verger.cli.archive import NAMES
from verger.errors import BackupError
from verger.gateway.database import MIGRATIONS

BUSY_S = 5.0
DATABASE = "verger.db"
_PLAIN = ("config.toml", "instance_id", "secrets/*", "tls/*")


def collect(home: Path, folder: Path) -> dict[str, Path]:
    """Name in the archive → file; the database as a copy in `folder`. Raises BackupError."""
    found: dict[str, Path] = {}
    for pattern in _PLAIN:
        for path in sorted(home.glob(pattern)):
            name = path.relative_to(home).as_posix()
            is_linked = any(link.is_symlink() for link in (path, path.parent) if link != home)
            if is_linked or not path.is_file() or not NAMES.fullmatch(name):
                raise BackupError(f"{path} is not a plain file with a plain name; move it away")
            found[name] = path
    if (home / DATABASE).exists():
        found[DATABASE] = _copied(home / DATABASE, folder / DATABASE)
    if not found:
        raise BackupError(f"there is nothing to back up in {home}; VERGER_HOME names another")
    return found


@contextmanager
def unused_database(file: Path) -> Iterator[None]:
    """Nobody else has it open, and nobody can open it meanwhile. Raises BackupError."""
    if not file.exists():
        yield
        return
    try:
        with closing(sqlite3.connect(file, timeout=0, isolation_level=None)) as connection:
            # Leaving WAL mode needs the file for oneself; the lock of EXCLUSIVE is kept.
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA journal_mode = DELETE")
            connection.execute("BEGIN EXCLUSIVE")
            yield
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise BackupError(f"cannot use {file}: {error}; move it away to restore") from None
        raise BackupError(
            "the server runs, or another command uses its state: stop it first (verger service "
            "stop, or Ctrl-C)"
        ) from None
    except sqlite3.DatabaseError as error:
        raise BackupError(f"cannot use {file}: {error}; move it away to restore") from None


def check_database(file: Path) -> None:
    """Raises BackupError unless it is whole, and not of a newer Verger."""
    if not file.exists():
        return
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as connection:
            (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.Error as error:
        raise BackupError(f"the archive's database is damaged: {error}") from None
    if found != "ok":
        raise BackupError(f"the archive's database is damaged: {found}")
    if version > len(MIGRATIONS):
        raise BackupError("a newer Verger has written the archive's database: use that one")


def _copied(file: Path, copy: Path) -> Path:
    """A consistent copy, also while the server writes."""
    os.close(os.open(copy, os.O_CREAT | os.O_EXCL, 0o600))
    try:
        source = closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=BUSY_S))
        with source as reading, closing(sqlite3.connect(copy)) as writing:
            reading.backup(writing)
            # The copy is one file.
            writing.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.Error as error:
        raise BackupError(f"cannot copy {file}: {error}") from None
    return copy
