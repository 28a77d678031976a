"""The disk tier's one thread: takes jobs, carries them out in its folder, reports.

Owned by `disk.py`, which alone decides what is queued and how much. Must not know limits, days or
MLX. Shares nothing with the engine's thread but two queues and what goes through them. Reads go
before everything else, as a request waits for them; all other jobs are done in the order given.
"""

import errno
import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from verger.engine.disk_folder import DiskFolder, WrittenToday
from verger.engine.disk_format import DIGEST_BYTES, UnusableFile, payload_digest
from verger.engine.prefix_files import FileHeader

THREAD_NAME = "verger-disk"


class Priority(IntEnum):
    """The lower, the sooner."""

    STOP = 0
    READ = 1
    IN_ORDER = 2


@dataclass(frozen=True, slots=True)
class WriteJob:
    """Write a file; `written` is the day's count with it, noted first."""

    name: str
    head: bytes
    payload: bytes
    written: WrittenToday


@dataclass(frozen=True, slots=True)
class ReadJob:
    """Read a file, and remove it if it cannot be believed."""

    name: str
    file_bytes: int


@dataclass(frozen=True, slots=True)
class RemoveJob:
    """Remove a file."""

    name: str
    file_bytes: int


@dataclass(frozen=True, slots=True)
class StopJob:
    """End the thread; jobs still queued are abandoned."""


Job = WriteJob | ReadJob | RemoveJob | StopJob


@dataclass(frozen=True, slots=True)
class Written:
    """A file is on disk."""

    name: str


@dataclass(frozen=True, slots=True)
class WriteFailed:
    """A file was not written; nothing is under its name."""

    name: str


@dataclass(frozen=True, slots=True)
class ReadDone:
    """A file, whole and undamaged."""

    name: str
    header: FileHeader
    payload: bytes


@dataclass(frozen=True, slots=True)
class ReadFailed:
    """A file could not be read; it is gone."""

    name: str


@dataclass(frozen=True, slots=True)
class Timed:
    """A read and how long it took."""

    done: ReadDone
    seconds: float


@dataclass(frozen=True, slots=True)
class Removed:
    """A removal has been carried out, or tried."""


@dataclass(frozen=True, slots=True)
class Unremoved:
    """A file that should be gone still takes its bytes."""

    name: str
    file_bytes: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The disk does not take what we write."""

    reason: str


Report = Written | WriteFailed | Timed | ReadFailed | Removed | Unremoved | Refused


@dataclass(order=True, frozen=True, slots=True)
class _Queued:
    priority: Priority
    number: int
    job: Job = field(compare=False)


class DiskWorker:
    """Starts its thread with `start`; a daemon, so that a hung disk cannot keep a process alive."""

    def __init__(
        self,
        folder: DiskFolder,
        free_bytes: Callable[[Path], int],
        reserve_bytes: int,
        clock: Callable[[], float],
    ) -> None:
        self._folder = folder
        self._free_bytes = free_bytes
        self._reserve_bytes = reserve_bytes
        self._clock = clock
        # Both are bounded by what the owner admits.
        self._jobs: queue.PriorityQueue[_Queued] = queue.PriorityQueue()
        self._reports: queue.SimpleQueue[Report] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether jobs will be carried out."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin with the jobs."""
        self._thread.start()

    def put(self, job: Job, priority: Priority = Priority.IN_ORDER) -> None:
        """Queue a job; never blocks."""
        self._jobs.put(_Queued(priority, next(self._numbers), job))

    def reports(self) -> Iterator[Report]:
        """What has been done since the last call; never blocks."""
        while True:
            try:
                yield self._reports.get_nowait()
            except queue.Empty:
                return

    def stop(self, timeout_s: float) -> bool:
        """Wait for the job in hand, abandon the rest; whether the thread has ended."""
        self.put(StopJob(), Priority.STOP)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        # No name here holds a job while the thread waits: its payload would stay in memory.
        while self._carry_out(self._jobs.get().job):
            pass

    def _carry_out(self, job: Job) -> bool:
        match job:
            case WriteJob():
                self._write(job)
            case ReadJob():
                self._read(job)
            case RemoveJob():
                self._remove(job.name, job.file_bytes)
                self._reports.put(Removed())
            case StopJob():
                return False
        return True

    def _write(self, job: WriteJob) -> None:
        digest = payload_digest(job.head[-DIGEST_BYTES:], job.payload)
        try:
            self._check_space(len(job.head) + len(job.payload) + DIGEST_BYTES)
            self._folder.note_written(job.written)
            self._folder.write(job.name, [job.head, job.payload, digest])
        except OSError as error:
            self._reports.put(Refused(_reason(error)))
            self._reports.put(WriteFailed(job.name))
        else:
            self._reports.put(Written(job.name))

    def _check_space(self, file_bytes: int) -> None:
        if self._free_bytes(self._folder.path) - file_bytes < self._reserve_bytes:
            raise OSError(errno.ENOSPC, f"less than {self._reserve_bytes} bytes would be free")

    def _read(self, job: ReadJob) -> None:
        started_s = self._clock()
        try:
            header, payload = self._folder.read(job.name)
        except (OSError, UnusableFile):
            self._reports.put(ReadFailed(job.name))
            self._remove(job.name, job.file_bytes)
        else:
            done = ReadDone(job.name, header, payload)
            self._reports.put(Timed(done, self._clock() - started_s))

    def _remove(self, name: str, file_bytes: int) -> None:
        try:
            self._folder.remove(name)
        except OSError as error:
            self._reports.put(Unremoved(name, file_bytes))
            self._reports.put(Refused(_reason(error)))


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
