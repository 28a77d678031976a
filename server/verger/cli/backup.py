"""`verger backup` and `verger restore`: what makes this server this server, in one private file.

Keys and ledger, configuration, secrets, TLS files and the id; not models, caches and logs. The
archive begins with a manifest that names every file with its size and SHA-256. A backup may be made
while the server runs: SQLite copies a consistent state. A restore needs it stopped, checks all of
the archive first, and puts back what was there if a file cannot be moved; if it is killed, the next
of the two commands does that first.
"""

import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from verger import paths
from verger.cli.archive import read_archive, write_archive
from verger.cli.exchange import exchange, is_cut_off, restore_folder, undo_cut_off
from verger.cli.state_files import (
    DATABASE,
    check_database,
    collect,
    unused_database,
)
from verger.config import load_config
from verger.errors import BackupError, ConfigError
from verger.macos.owner import acting_for_owner


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The archive to make.")],
) -> None:
    """Write keys, ledger, configuration, secrets and id to an archive that only you can read."""
    home = paths.home()
    if not home.is_dir():
        raise BackupError(f"there is no state folder {home}; VERGER_HOME names another")
    if file.exists():
        raise BackupError(f"{file} is there already; choose another name")
    try:
        if is_cut_off(home):
            _settle(home)
        with tempfile.TemporaryDirectory(dir=file.absolute().parent) as folder:
            found = collect(home, Path(folder))
            write_archive(file, found)
    except OSError as error:
        raise BackupError(f"cannot make {file}: {error.strerror or error}") from None
    if outside := _tls_files_outside(home / "tls"):
        print(f"verger: not in it, keep them yourself: {', '.join(outside)}", file=sys.stderr)
    size_mb = file.stat().st_size / 1e6
    print(f"Wrote {len(found)} files, {size_mb:.1f} MB, to {file}. It holds secrets: keep it safe.")


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `verger backup` made.")],
) -> None:
    """Put an archive's files in the place of the state folder's; the server must be stopped."""
    home = paths.home()
    if not file.is_file():
        raise BackupError(f"there is no archive {file}")
    try:
        with file.open("rb") as content:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            with acting_for_owner(home):
                names = _restored(home, content)
    except OSError as error:
        reason = error.strerror or str(error)
        left = "nothing was changed"
        if is_cut_off(home):
            left = "run it again: it puts back what was there first"
        raise BackupError(f"cannot restore {file} to {home}: {reason}; {left}") from None
    print(f"Restored {len(names)} files to {home}. Next: start the server.")


def _restored(home: Path, content: BinaryIO) -> list[str]:
    with restore_folder(home) as folder:
        names = read_archive(content, folder / "new")
        check_database(folder / "new" / DATABASE)
        with unused_database(paths.database_file()):
            _undo_cut_off(home, but=folder)
            exchange(home, names, folder)
    return names


def _settle(home: Path) -> None:
    """No mixture of old and new is backed up."""
    try:
        with acting_for_owner(home), unused_database(paths.database_file()):
            _undo_cut_off(home)
    except BackupError as error:
        raise BackupError(f"a restore was cut off and has to be undone first: {error}") from None


def _undo_cut_off(home: Path, but: Path | None = None) -> None:
    is_told = is_cut_off(home)
    undo_cut_off(home, but)
    if is_told:
        print("verger: a restore that was cut off was undone first", file=sys.stderr)


def _tls_files_outside(folder: Path) -> list[str]:
    """What the configuration names of the kind, and lies somewhere else."""
    # A configuration that is wrong is backed up all the same.
    with suppress(ConfigError):
        server = load_config().server
        files = [Path(text).expanduser() for text in (server.tls_cert, server.tls_key) if text]
        return [str(file) for file in files if not file.is_relative_to(folder)]
    return []
