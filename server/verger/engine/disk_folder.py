"""The folder of the disk tier: files that appear whole or not at all, and belong to one engine.

Used by `disk.py`: opened and listed on the engine's thread, afterwards used by the tier's thread
alone. Must not know queues, limits or MLX. Every method may block, and raises OSError.

    lock              held (flock) while an engine uses the folder
    written.json      the day and its written bytes
    <digest>.prefix   a span's KV (`disk_format.py`)
    <any>.partial     being written; left over if the writer died

Other files are not ours and stay. A file is written under another name, flushed, and renamed.
`fsync` on macOS does not empty the drive's own cache: a power cut may damage a file that was
already renamed, which its checksum shows; a full flush would stall the drive for nothing.
"""

import fcntl
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from verger.engine import disk_format
from verger.engine.disk_format import UnusableFile
from verger.engine.prefix_files import FileHeader

SUFFIX = ".prefix"
PARTIAL_SUFFIX = ".partial"
LOCK_NAME = "lock"
WRITTEN_NAME = "written.json"
CHUNK_BYTES = 8 * 1024 * 1024
"""Given to the kernel at once."""


class WrittenToday(Struct, frozen=True, forbid_unknown_fields=True):
    """How much has been written on one day."""

    day: str
    written_bytes: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A file that may hold a prefix."""

    name: str
    file_bytes: int


class DiskFolder:
    """All that touches the disk; tests override single methods to let them fail."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self._fingerprint = fingerprint
        self._lock_fd: int | None = None

    def open(self) -> None:
        """Make the folder, for its owner alone, and lock it; BlockingIOError if another has it."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = stat.S_IMODE(self.path.stat().st_mode)
        if mode & 0o077:
            self.path.chmod(mode & 0o700)
        lock_fd = self._open_lock()
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock_fd)
            raise
        self._lock_fd = lock_fd

    def close(self) -> None:
        """Let another engine have the folder."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def entries(self) -> list[Entry]:
        """Every file named like one of ours, in the order of names."""
        with os.scandir(self.path) as listing:
            return sorted(
                (
                    Entry(entry.name.removesuffix(SUFFIX), entry.stat().st_size)
                    for entry in listing
                    if entry.name.endswith(SUFFIX) and entry.is_file(follow_symlinks=False)
                ),
                key=lambda entry: entry.name,
            )

    def sweep(self) -> None:
        """Remove what a writer that died has left."""
        for path in self.path.glob("*" + PARTIAL_SUFFIX):
            path.unlink()

    def read_header(self, name: str) -> FileHeader:
        """Read what a file says it is; UnusableFile if it is not to be believed."""
        with self._opened(name) as file:
            return self._head(file, name).header

    def read(self, name: str) -> tuple[FileHeader, bytes]:
        """A file's header and payload; UnusableFile unless every bit is as it was written."""
        with self._opened(name) as file:
            head = self._head(file, name)
            return head.header, disk_format.read_payload(file, head)

    def write(self, name: str, parts: Sequence[bytes]) -> None:
        """Write a prefix's file; where that fails, nothing is left under the name."""
        try:
            self._replace(name + SUFFIX, parts)
        except OSError:
            self._discard(self.path / (name + SUFFIX))
            raise

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        (self.path / (name + SUFFIX)).unlink(missing_ok=True)

    def read_written(self) -> WrittenToday | None:
        """What was last noted; None if there is no note, or a damaged one."""
        try:
            noted = (self.path / WRITTEN_NAME).read_bytes()
            return msgspec.json.decode(noted, type=WrittenToday)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def note_written(self, written: WrittenToday) -> None:
        """Remember the day's written bytes over a restart."""
        self._replace(WRITTEN_NAME, [msgspec.json.encode(written)])

    def _open_lock(self) -> int:
        path = self.path / LOCK_NAME
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            # A folder that cannot be written can still be read, and locked by an older file.
            try:
                return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            except OSError:
                raise error from None

    def _opened(self, name: str) -> BinaryIO:
        # Neither a link nor a pipe may lead us astray or block us.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        return os.fdopen(os.open(self.path / (name + SUFFIX), flags), "rb")

    def _head(self, file: BinaryIO, name: str) -> disk_format.Head:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UnusableFile("no regular file")
        return disk_format.read_head(file, status.st_size, self._fingerprint, name)

    def _replace(self, file_name: str, parts: Sequence[bytes]) -> None:
        partial = self.path / (file_name + PARTIAL_SUFFIX)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        try:
            fd = os.open(partial, flags, 0o600)
            try:
                for part in parts:
                    self._write_all(fd, memoryview(part))
                os.fsync(fd)
            finally:
                os.close(fd)
            partial.replace(self.path / file_name)
            self._flush_folder()
        except OSError:
            self._discard(partial)
            raise

    def _write_all(self, fd: int, rest: memoryview) -> None:
        while rest:
            rest = rest[os.write(fd, rest[:CHUNK_BYTES]) :]

    def _flush_folder(self) -> None:
        """Make the rename itself last."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _discard(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError:
            # What made the write fail may forbid this too; the next start sweeps.
            return
