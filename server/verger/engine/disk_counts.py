"""What the disk tier counts: its bounds, the files it knows, how fast reads have been.

Used by `disk.py`. Pure: must not know files' contents, threads or clocks.
"""

from dataclasses import dataclass

MAX_QUEUED_BYTES = 256 * 1024 * 1024
"""Waiting to be written; as much again may wait as reads."""
MAX_QUEUED_WRITES = 256
MAX_QUEUED_READS = 32
MAX_FILES = 100_000
RESERVE_BYTES = 5 * 1024**3
"""Left free on the volume: macOS swaps there, and a full one hurts every program."""
PRIOR_READ_BYTES_PER_S = 1e9
PRIOR_WEIGHT_BYTES = 64e6
"""The prior counts like a read of so many bytes, and fades like any."""
KEPT_WEIGHT = 0.9
"""What the reads before it still count, at each read."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What may pile up, and what stays free; tests choose smaller ones."""

    queued_bytes: int = MAX_QUEUED_BYTES
    queued_writes: int = MAX_QUEUED_WRITES
    queued_reads: int = MAX_QUEUED_READS
    files: int = MAX_FILES
    reserve_bytes: int = RESERVE_BYTES


class KnownFiles:
    """Names and sizes of the files on disk."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        self.total_bytes = 0

    def __len__(self) -> int:
        return len(self._sizes)

    def bytes_of(self, name: str) -> int | None:
        """A file's size; None if there is none."""
        return self._sizes.get(name)

    def add(self, name: str, file_bytes: int) -> None:
        """Know a file, or its new size."""
        self.drop(name)
        self._sizes[name] = file_bytes
        self.total_bytes += file_bytes

    def drop(self, name: str) -> None:
        """Forget a file, if it is known."""
        self.total_bytes -= self._sizes.pop(name, 0)


class ReadRate:
    """A fading mean of what reads have taken."""

    def __init__(self) -> None:
        self._bytes = PRIOR_WEIGHT_BYTES
        self._seconds = PRIOR_WEIGHT_BYTES / PRIOR_READ_BYTES_PER_S

    def add(self, file_bytes: int, seconds: float) -> None:
        """Learn from a read."""
        self._bytes = self._bytes * KEPT_WEIGHT + file_bytes
        self._seconds = self._seconds * KEPT_WEIGHT + seconds

    def seconds(self, file_bytes: int) -> float:
        """What reading so many bytes is expected to take."""
        return file_bytes * self._seconds / self._bytes
