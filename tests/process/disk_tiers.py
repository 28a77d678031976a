"""Disk tiers for tests: a settable day, a folder that fails or hangs on demand."""

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from verger.engine.disk import DiskEvent, DiskTier, ReadDone, ReadFailed, WriteFailed, Written
from verger.engine.disk_counts import Bounds
from verger.engine.disk_folder import DiskFolder, WrittenToday
from verger.engine.disk_format import DIGEST_BYTES, encode_head
from verger.engine.prefix_files import FileHeader

FINGERPRINT = "nano-1"
GIB = 1024**3
HANG_LIMIT_S = 60.0
PAYLOAD_BYTES = 200
"""At least in the tests' payloads; notes and headers are shorter."""
NEVER = threading.Event()


class FaultyFolder(DiskFolder):
    """Raises what it is told to; while a gate is closed, the thread waits before that method."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        super().__init__(path, fingerprint)
        self.write_error: OSError | None = None
        self.chunk_error: OSError | None = None
        self.flush_error: OSError | None = None
        self.note_error: OSError | None = None
        self.remove_error: OSError | None = None
        self.read_error: Exception | None = None
        self.sweep_error: OSError | None = None
        self.read_written_error: OSError | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.is_waiting = threading.Event()
        self.log: list[str] = []
        self._is_noted = False

    def write(self, name: str, parts: Sequence[bytes]) -> None:
        self._pass("write", name)
        if self.write_error:
            raise self.write_error
        self._is_noted = True
        super().write(name, parts)

    def read(self, name: str) -> tuple[FileHeader, bytes]:
        self._pass("read", name)
        if self.read_error:
            raise self.read_error
        return super().read(name)

    def remove(self, name: str) -> None:
        self._pass("remove", name)
        if self.remove_error:
            raise self.remove_error
        super().remove(name)

    def sweep(self) -> None:
        if self.sweep_error:
            raise self.sweep_error
        super().sweep()

    def read_written(self) -> WrittenToday | None:
        if self.read_written_error:
            raise self.read_written_error
        return super().read_written()

    def note_written(self, written: WrittenToday) -> None:
        self._is_noted = False
        if self.note_error:
            raise self.note_error
        super().note_written(written)

    def _write_all(self, fd: int, rest: memoryview) -> None:
        if self.chunk_error and len(rest) >= PAYLOAD_BYTES:
            super()._write_all(fd, rest[: len(rest) // 2])
            raise self.chunk_error
        super()._write_all(fd, rest)

    def _flush_folder(self) -> None:
        if self.flush_error and self._is_noted:
            raise self.flush_error
        super()._flush_folder()

    def _pass(self, verb: str, name: str) -> None:
        self.log.append(f"{verb} {name}")
        self.is_waiting.set()
        assert self.gate.wait(HANG_LIMIT_S)


@dataclass
class Desk:
    """Opens tiers on one folder, and closes them in the end."""

    path: Path
    day: str = "2026-11-23"
    now_s: float = 100.0
    free_bytes: int = 100 * GIB
    tiers: list[DiskTier] = field(default_factory=list)
    folders: list[FaultyFolder] = field(default_factory=list)

    def tier(
        self,
        *,
        limit_bytes: int = GIB,
        daily_bytes: int = GIB,
        fingerprint: str = FINGERPRINT,
        bounds: Bounds | None = None,
    ) -> DiskTier:
        """A tier that has not been scanned."""
        tier = DiskTier(
            self.path,
            fingerprint,
            limit_bytes,
            daily_bytes,
            lambda: self.day,
            lambda folder: self.free_bytes,
            clock=lambda: self.now_s,
            bounds=bounds,
            make_folder=self._make_folder,
        )
        self.tiers.append(tier)
        return tier

    @property
    def folder(self) -> FaultyFolder:
        """The newest tier's."""
        return self.folders[-1]

    def file(self, name: str) -> Path:
        return self.path / f"{name}.prefix"

    def close(self) -> None:
        for folder in self.folders:
            folder.gate.set()
        for tier in self.tiers:
            tier.close(HANG_LIMIT_S)

    def _make_folder(self, path: Path, fingerprint: str) -> DiskFolder:
        self.folders.append(FaultyFolder(path, fingerprint))
        return self.folders[-1]


def header_for(name: str, payload: bytes, start: int = 0) -> FileHeader:
    window_bytes = len(payload) // 4
    kv_bytes = len(payload) - window_bytes
    return FileHeader(name, "tenant", start, [1, 2, 3], "", kv_bytes, window_bytes, 1)


def payload_for(name: str, size: int = 1000) -> bytes:
    return hashlib.shake_128(name.encode()).digest(size)


def file_bytes_for(name: str, size: int = 1000) -> int:
    """What the file of `put(tier, name, size)` takes."""
    head = encode_head(header_for(name, payload_for(name, size)), FINGERPRINT)
    assert head is not None
    return len(head) + size + DIGEST_BYTES


def put(tier: DiskTier, name: str, size: int = 1000) -> bool:
    payload = payload_for(name, size)
    return tier.write(header_for(name, payload), payload)


def settle(tier: DiskTier) -> list[DiskEvent]:
    """Poll until nothing is pending; the test's own timeout bounds it."""
    events = []
    while tier.pending:
        events += tier.poll()
        # A loop that never lets go would take the interpreter from the tier's thread.
        NEVER.wait(0.0005)
    return events


def words(events: Sequence[DiskEvent]) -> list[str]:
    """Events, short enough to compare."""
    verbs = {Written: "written", WriteFailed: "unwritten", ReadDone: "read", ReadFailed: "unread"}
    return [f"{verbs[type(event)]} {event.name}" for event in events]
