"""The disk tier of the prefix cache: queues files to be written, read and removed, and counts.

Used by the engine's loop on its one thread; nothing here blocks but `scan` and `close`. Which
prefix is worth a file, and which file must go, is decided elsewhere. Must not know MLX, tokens or
scheduling. The thread is in `disk_worker.py`, the folder in `disk_folder.py`, a file's layout in
`disk_format.py`.

    write ─► queue ─► Written | WriteFailed          exactly one event for each write accepted
    read ──► queue ─► ReadDone | ReadFailed          after ReadFailed the file is gone
    remove ► queue                                   done before anything written later

Nothing that the disk does raises here. Where it refuses a write (full, read-only, less free than
the reserve) writing is off until the next day or start, with one warning; reading goes on. Without
the folder, or where another engine has locked it, the whole tier is off until the next start.
"""

import logging
import shutil
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from verger.engine.disk_counts import Bounds, KnownFiles, ReadRate
from verger.engine.disk_folder import DiskFolder, Entry, WrittenToday
from verger.engine.disk_format import DIGEST_BYTES, UnusableFile, encode_head, is_name
from verger.engine.disk_worker import (
    DiskWorker,
    Priority,
    ReadDone,
    ReadFailed,
    ReadJob,
    Refused,
    Removed,
    RemoveJob,
    Report,
    Timed,
    Unremoved,
    WriteFailed,
    WriteJob,
    Written,
)
from verger.engine.prefix_files import FileHeader
from verger.log import key_values

__all__ = ["DiskEvent", "DiskTier", "ReadDone", "ReadFailed", "WriteFailed", "Written"]

READ_TIMEOUT_S = 10.0
"""A request does not wait longer for a disk that hangs."""
CLOSE_TIMEOUT_S = 2.0

logger = logging.getLogger("verger.engine")

DiskEvent = Written | WriteFailed | ReadDone | ReadFailed


def free_bytes(folder: Path) -> int:
    """What the folder's volume has left for us."""
    return shutil.disk_usage(folder).free


@dataclass(slots=True)
class _Write:
    file_bytes: int
    is_removed: bool = False


@dataclass(slots=True)
class _Read:
    file_bytes: int
    deadline_s: float
    is_overdue: bool = False


class DiskTier:
    """Off until `scan`. `today` gives the UTC day; at most `daily_bytes` are written on one."""

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        limit_bytes: int,
        daily_bytes: int,
        today: Callable[[], str],
        free_bytes: Callable[[Path], int] = free_bytes,
        *,
        clock: Callable[[], float] = time.monotonic,
        bounds: Bounds | None = None,
        make_folder: Callable[[Path, str], DiskFolder] = DiskFolder,
    ) -> None:
        self.limit_bytes = limit_bytes
        self.daily_bytes = daily_bytes
        self.written_bytes = 0
        self.read_bytes = 0
        self.off_reason: str | None = "not scanned"
        self._fingerprint = fingerprint
        self._today = today
        self._clock = clock
        self._bounds = bounds or Bounds()
        self._folder = make_folder(folder, fingerprint)
        self._worker = DiskWorker(self._folder, free_bytes, self._bounds.reserve_bytes, clock)
        self._is_open = False
        self._off_day: str | None = None
        self._written = WrittenToday(today(), 0)
        self._files = KnownFiles()
        self._writes: dict[str, _Write] = {}
        self._reads: dict[str, _Read] = {}
        self._removals = 0
        self._unreadable: deque[str] = deque()
        self._rate = ReadRate()

    @property
    def stored_bytes(self) -> int:
        """On disk or about to be; headers and checksums count."""
        return self._files.total_bytes + self._queued_bytes

    @property
    def files(self) -> int:
        """How many files are on disk."""
        return len(self._files)

    @property
    def written_today_bytes(self) -> int:
        """Accepted today for writing, here or by an engine before this one."""
        self._begin_day()
        return self._written.written_bytes

    @property
    def pending(self) -> int:
        """What is still being done: while there is anything, poll."""
        reads = sum(not read.is_overdue for read in self._reads.values())
        return len(self._writes) + reads + self._removals + len(self._unreadable)

    def scan(self) -> list[FileHeader]:
        """Open the folder, once, and list what is in it, parents before children.

        Blocks: reads every header. Removes files that are damaged, cut short or foreign.
        """
        assert self.off_reason == "not scanned"
        self.off_reason = None
        try:
            self._folder.open()
            entries = self._folder.entries()
        except OSError as error:
            taken = isinstance(error, BlockingIOError)
            self._turn_off("another engine uses the folder" if taken else str(error))
            self._folder.close()
            return []
        headers = self._believed(entries)
        self._recall_day()
        self._is_open = True
        self._worker.start()
        logger.info(key_values(event="disk_tier", files=self.files, bytes=self.stored_bytes))
        return sorted(headers, key=lambda header: (header.start, header.name))

    @property
    def savable_bytes(self) -> int:
        """How much can be queued for writing now, headers and checksums included."""
        if not self._may_write():
            return 0
        bounds, written = self._bounds, self._written.written_bytes
        free_bytes = self.limit_bytes - self.stored_bytes
        room = min(free_bytes, self.daily_bytes - written, bounds.queued_bytes - self._queued_bytes)
        return max(0, room) if len(self._writes) < bounds.queued_writes else 0

    def write(self, header: FileHeader, payload: bytes) -> bool:
        """Queue a file, in place of one of its name; False, and nothing is queued, if it may not be
        written now."""
        assert len(payload) == header.payload_bytes
        if header.name in self._writes or not is_name(header.name) or not self._may_write():
            return False
        head = encode_head(header, self._fingerprint)
        if head is None:
            return False
        file_bytes = len(head) + len(payload) + DIGEST_BYTES
        if not self._has_room(header.name, file_bytes):
            return False
        self.remove(header.name)
        self._writes[header.name] = _Write(file_bytes)
        self._written = WrittenToday(self._written.day, self.written_today_bytes + file_bytes)
        self._worker.put(WriteJob(header.name, head, payload, self._written))
        return True

    def read(self, name: str) -> bool:
        """Queue a read; False if too much is queued: ask again after a poll, or do without.

        An unknown name gets its ReadFailed too; two reads of one name may get one event.
        """
        if name in self._reads and not self._reads[name].is_overdue:
            return True
        file_bytes = self._size_of(name)
        if not self._may_read(file_bytes or 0):
            return False
        if file_bytes is None or not self._is_open:
            self._unreadable.append(name)
            return True
        self._reads[name] = _Read(file_bytes, self._clock() + READ_TIMEOUT_S)
        # A file still queued must be written first.
        priority = Priority.IN_ORDER if name in self._writes else Priority.READ
        self._worker.put(ReadJob(name, file_bytes), priority)
        return True

    def remove(self, name: str) -> None:
        """Queue a removal; nothing happens if there is no such file."""
        file_bytes = self._size_of(name)
        if file_bytes is None or not self._is_open:
            return
        if name in self._writes:
            self._writes[name].is_removed = True
        else:
            self._files.drop(name)
        self._removals += 1
        self._worker.put(RemoveJob(name, file_bytes))

    def poll(self) -> list[DiskEvent]:
        """What has happened since the last call; never blocks."""
        # Asked first: what a thread reported before it died is not lost.
        is_alive = self._worker.is_alive
        events: list[DiskEvent] = [ReadFailed(name) for name in self._unreadable]
        self._unreadable.clear()
        if not self._is_open:
            return events
        for report in self._worker.reports():
            if (event := self._settled(report)) is not None:
                events.append(event)
        return events + (self._overdue() if is_alive else self._abandoned())

    def read_seconds(self, file_bytes: int) -> float:
        """How long reading so many bytes will take, checksum included, once it is its turn."""
        return self._rate.seconds(file_bytes)

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Finish the job in hand, abandon the queue without events, let go of the folder."""
        if self._is_open:
            self.off_reason = "closed"
        self._is_open = False
        self._clear_queues()
        # A thread that hangs may still write: then the lock goes with the process.
        if not self._worker.is_alive or self._worker.stop(timeout_s):
            self._folder.close()

    @property
    def _queued_bytes(self) -> int:
        return sum(write.file_bytes for write in self._writes.values())

    def _size_of(self, name: str) -> int | None:
        """Of a file on disk or queued, unless it is to be removed."""
        if (write := self._writes.get(name)) is not None:
            return None if write.is_removed else write.file_bytes
        return self._files.bytes_of(name)

    def _may_write(self) -> bool:
        self._begin_day()
        return self._is_open and self.off_reason is None

    def _has_room(self, name: str, file_bytes: int) -> bool:
        bounds, replaced = self._bounds, self._files.bytes_of(name)
        return (
            self.stored_bytes - (replaced or 0) + file_bytes <= self.limit_bytes
            and self._written.written_bytes + file_bytes <= self.daily_bytes
            and self._queued_bytes + file_bytes <= bounds.queued_bytes
            and len(self._writes) < bounds.queued_writes
            and len(self._files) + len(self._writes) < bounds.files + (replaced is not None)
        )

    def _may_read(self, file_bytes: int) -> bool:
        if any(read.is_overdue for read in self._reads.values()):
            return False
        if len(self._reads) + len(self._unreadable) >= self._bounds.queued_reads:
            return False
        queued = sum(read.file_bytes for read in self._reads.values())
        # One file of any size may be read: it was once small enough to be written.
        return not queued or queued + file_bytes <= self._bounds.queued_bytes

    def _begin_day(self) -> None:
        """On a new day the count begins again, and a disk that refused is tried again."""
        today = self._today()
        if today != self._written.day:
            self._written = WrittenToday(today, 0)
        if self._is_open and self.off_reason is not None and today != self._off_day:
            self.off_reason = None

    def _turn_off(self, reason: str) -> None:
        if self.off_reason is not None:
            return
        self.off_reason = reason
        self._off_day = self._today()
        logger.warning(key_values(event="disk_tier_off", reason=reason, folder=self._folder.path))

    def _believed(self, entries: list[Entry]) -> list[FileHeader]:
        headers = []
        try:
            self._folder.sweep()
        except OSError as error:
            self._turn_off(str(error))
        for number, entry in enumerate(entries):
            header = self._header_of(entry) if number < self._bounds.files else None
            if header is not None:
                headers.append(header)
            if header is not None or not self._is_discarded(entry):
                self._files.add(entry.name, entry.file_bytes)
        return headers

    def _header_of(self, entry: Entry) -> FileHeader | None:
        try:
            return self._folder.read_header(entry.name) if is_name(entry.name) else None
        except (OSError, UnusableFile):
            return None

    def _is_discarded(self, entry: Entry) -> bool:
        try:
            self._folder.remove(entry.name)
        except OSError as error:
            self._turn_off(str(error))
            return False
        return True

    def _recall_day(self) -> None:
        try:
            written = self._folder.read_written()
        except OSError as error:
            self._turn_off(str(error))
            return
        self._written = written or self._written
        self._begin_day()

    def _settled(self, report: Report) -> DiskEvent | None:
        match report:
            case Written(name) | WriteFailed(name):
                return self._settled_write(name, isinstance(report, Written))
            case Timed() | ReadFailed():
                return self._settled_read(report)
            case Removed():
                self._removals -= 1
            case Unremoved(name, file_bytes):
                self._files.add(name, file_bytes)
            case Refused(reason):
                self._turn_off(reason)
        return None

    def _settled_write(self, name: str, is_written: bool) -> DiskEvent:
        write = self._writes.pop(name)
        if not is_written:
            return WriteFailed(name)
        self.written_bytes += write.file_bytes
        if write.is_removed:
            return WriteFailed(name)
        self._files.add(name, write.file_bytes)
        return Written(name)

    def _settled_read(self, report: Timed | ReadFailed) -> DiskEvent | None:
        event = report.done if isinstance(report, Timed) else report
        read = self._reads.pop(event.name)
        if read.is_overdue:
            return None
        if isinstance(report, Timed):
            self.read_bytes += read.file_bytes
            self._rate.add(read.file_bytes, report.seconds)
        else:
            self._files.drop(event.name)
        return event

    def _overdue(self) -> list[DiskEvent]:
        now_s = self._clock()
        late = [n for n, r in self._reads.items() if not r.is_overdue and now_s >= r.deadline_s]
        for name in late:
            self._reads[name].is_overdue = True
            self.remove(name)
        return [ReadFailed(name) for name in late]

    def _abandoned(self) -> list[DiskEvent]:
        """The thread died of a defect; its traceback is on standard error."""
        events: list[DiskEvent] = [WriteFailed(name) for name in self._writes]
        events += [ReadFailed(name) for name, r in self._reads.items() if not r.is_overdue]
        self._clear_queues()
        self._is_open = False
        self._turn_off("the disk thread ended")
        return events

    def _clear_queues(self) -> None:
        self._writes.clear()
        self._reads.clear()
        self._removals = 0
