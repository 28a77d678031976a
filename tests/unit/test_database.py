"""The state database: whose it is, how it grows older, and what it says when it cannot be used."""

import sqlite3
import stat
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

import pytest

from verger.errors import DatabaseError
from verger.gateway import database as module
from verger.gateway.database import MIGRATIONS, database, open_database, transaction


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "verger.db"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_the_owners_alone_with_all_its_files(file: Path) -> None:
    with database(file) as connection:
        connection.execute("CREATE TABLE t (n)")
        modes = {path.name: mode(path) for path in file.parent.iterdir()}
    assert modes == dict.fromkeys(("verger.db", "verger.db-wal", "verger.db-shm"), 0o600)
    assert mode(file.parent) == 0o700


def test_a_file_that_others_could_read_is_closed_to_them(file: Path) -> None:
    with database(file):
        pass
    file.chmod(0o644)
    with database(file):
        assert mode(file) == 0o600


def test_what_was_written_is_there_again(file: Path) -> None:
    with database(file) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        connection.execute("CREATE TABLE t (n)")
    with database(file) as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS)
        assert connection.execute("SELECT count(*) FROM t").fetchone()[0] == 0


def test_an_older_one_gets_what_it_lacks(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with database(file):
        pass
    monkeypatch.setattr(module, "MIGRATIONS", (*MIGRATIONS, "CREATE TABLE later (n)"))
    for _ in range(2):
        with database(file) as connection:
            assert connection.execute("SELECT count(*) FROM later").fetchone()[0] == 0


def test_a_migration_that_fails_leaves_what_there_was(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIGRATIONS", (*MIGRATIONS, "CREATE TABLE keys (n)"))
    with pytest.raises(DatabaseError, match="already exists"), database(file):
        pass
    monkeypatch.undo()
    with database(file) as connection:
        assert connection.execute("SELECT count(*) FROM keys").fetchone()[0] == 0


def test_a_newer_one_is_left_alone(file: Path) -> None:
    with database(file) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(DatabaseError, match="a newer Verger"), database(file):
        pass


@pytest.mark.parametrize("content", [b"no database" * 100, b"SQLite format 3\0" + bytes(84)])
def test_a_damaged_one_is_named(file: Path, content: bytes) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(DatabaseError, match=f"{file}: "), database(file) as connection:
        connection.execute("SELECT * FROM keys").fetchall()


def test_a_folder_in_its_place_is_named(file: Path) -> None:
    file.mkdir(parents=True)
    with pytest.raises(DatabaseError, match=f"{file}: Is a directory"), database(file):
        pass


def test_a_writer_waits_for_another_no_longer_than_it_may(file: Path) -> None:
    with database(file) as first:
        second = open_database(file, busy_s=0)
        with transaction(first):
            with pytest.raises(sqlite3.OperationalError, match="locked"), transaction(second):
                pass
            assert second.execute("SELECT count(*) FROM keys").fetchone()[0] == 0
        with transaction(second):
            second.execute("CREATE TABLE t (n)")
        second.close()


def test_half_a_transaction_is_none(file: Path) -> None:
    with database(file) as connection:
        with suppress(ZeroDivisionError), transaction(connection):
            connection.execute("CREATE TABLE t (n)")
            raise ZeroDivisionError
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            connection.execute("SELECT * FROM t")


def test_a_second_connection_leaves_the_first_ones_lock(tmp_path: Path) -> None:
    """SQLite's locks are the process's, and closing any descriptor of the file ends them all. Then
    another process takes itself for the last one, and deletes the log that is still written."""
    file = tmp_path / "verger.db"
    with closing(open_database(file)), closing(open_database(file)):
        program = (
            "import sqlite3, sys\n"
            "connection = sqlite3.connect(sys.argv[1], timeout=0)\n"
            "connection.execute('PRAGMA journal_mode = DELETE')"
        )
        command = [sys.executable, "-c", program, str(file)]
        other = subprocess.run(command, capture_output=True, text=True)
        assert "database is locked" in other.stderr
