"""Puts what a restore brings in the place of the state folder's files: all of it, or nothing.

    .restore-X/new/       the archive's files, checked; as yet the state is as it was
    .restore-X/journal    written: from here on, whoever is cut off is undone by the next command
    .restore-X/old/       a second name for each file that is about to be replaced, one by one
    verger.db             replaced last: done, there is nothing to undo any more

So each file is the old one or the new one at any moment, and never missing; and no undoing ever
replaces a database, which may have been used since. Called by `backup`, with the database unused.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from verger.cli.archive import digest
from verger.cli.private_file import write_private
from verger.cli.state_files import DATABASE
from verger.errors import BackupError

PREFIX, JOURNAL = ".restore-", "journal"


class Replaced(Struct, frozen=True):
    """A file that is exchanged."""

    name: str
    sha256: str
    """Of the new one."""
    was_there: bool


class Journal(Struct, frozen=True):
    """What a restore is about to do."""

    files: list[Replaced]
    has_database: bool


@contextmanager
def restore_folder(home: Path) -> Iterator[Path]:
    """A private folder beside the files; it stays only if what is in it may be needed again."""
    folder = Path(tempfile.mkdtemp(dir=home, prefix=PREFIX))
    try:
        yield folder
    finally:
        if not (folder / JOURNAL).exists():
            shutil.rmtree(folder)


def is_cut_off(home: Path) -> bool:
    """Whether a restore has left a mixture of old files and new ones."""
    return any(home.glob(f"{PREFIX}*/{JOURNAL}"))


def undo_cut_off(home: Path, but: Path | None) -> None:
    """What other restores have left that were killed. Raises OSError; may be cut off itself."""
    for folder in home.glob(f"{PREFIX}*"):
        if folder == but:
            continue
        if (folder / JOURNAL).exists():
            _undo(home, folder)
        shutil.rmtree(folder)


def exchange(home: Path, names: Sequence[str], folder: Path) -> None:
    """The files of `folder`/new to where the old ones are. Raises OSError or BackupError.

    What is not among them stays as it is: models, caches, and settings made since.
    """
    plain = [name for name in names if name != DATABASE]
    for name in names:
        _require_plain(home, name)
    _begin(home, plain, folder, has_database=DATABASE in names)
    with ExitStack() as on_failure:
        on_failure.callback(_undo, home, folder)
        for name in plain:
            _replace(home, name, folder)
        if DATABASE in names:
            for rest in ("-wal", "-shm"):
                # What SQLite still has of the old database must not be read with the new one.
                (home / f"{DATABASE}{rest}").unlink(missing_ok=True)
            os.replace(folder / "new" / DATABASE, home / DATABASE)
        on_failure.pop_all()
    (folder / JOURNAL).unlink()


def _begin(home: Path, names: Sequence[str], folder: Path, *, has_database: bool) -> None:
    files = [
        Replaced(name, digest(folder / "new" / name), (home / name).exists()) for name in names
    ]
    write_private(folder / JOURNAL, msgspec.json.encode(Journal(files, has_database)))


def _replace(home: Path, name: str, folder: Path) -> None:
    place, old = home / name, folder / "old" / name
    place.parent.mkdir(mode=0o700, exist_ok=True)
    if place.exists():
        old.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.link(place, old)
    os.replace(folder / "new" / name, place)


def _undo(home: Path, folder: Path) -> None:
    """Every new file makes way for the old one, unless somebody has written another one since."""
    journal = msgspec.json.decode((folder / JOURNAL).read_bytes(), type=Journal)
    is_done = journal.has_database and not (folder / "new" / DATABASE).exists()
    for file in [] if is_done else journal.files:
        place, old = home / file.name, folder / "old" / file.name
        if not place.exists() or digest(place) != file.sha256:
            continue
        if not file.was_there:
            place.unlink()
        elif old.exists():
            os.replace(old, place)
    (folder / JOURNAL).unlink()


def _require_plain(home: Path, name: str) -> None:
    """A link in there could lead out of the state folder."""
    place = home / name
    for path in (place.parent, place):
        if path.is_symlink() and path != home:
            raise BackupError(f"{path} is a symbolic link; move it away")
    if place.exists() and not place.is_file():
        raise BackupError(f"{place} is not a file; move it away")
