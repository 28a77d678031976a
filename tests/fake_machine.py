"""A machine whose tools answer as a test says; the texts are written after the tools' manuals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from verger.macos.programs import Done

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


@dataclass
class FakeMachine:
    """Implements `Machine`. What is not named is not there."""

    is_mac: bool = True
    release: str = "26.1"
    outputs: Mapping[str, str | Done] = field(default_factory=dict)
    """Command → what it prints, with exit status 0 unless it says otherwise."""
    files: Mapping[Path, bytes] = field(default_factory=dict)
    modes: Mapping[Path, int] = field(default_factory=dict)
    folders: Mapping[Path, list[str]] = field(default_factory=dict)
    free: int | None = 100 * 10**9
    is_writable: bool = True
    listener: str | None = None
    """The id that answers on the port; empty: something that is no Verger; None: nothing."""
    now: datetime = NOW

    def run(self, command: Sequence[str]) -> Done | None:
        output = self.outputs.get(" ".join(command))
        return Done(0, output) if isinstance(output, str) else output

    def read(self, path: Path) -> bytes | None:
        return self.files.get(path)

    def mode(self, path: Path) -> int | None:
        return self.modes.get(path)

    def names(self, folder: Path) -> list[str] | None:
        return self.folders.get(folder)

    def may_write(self, folder: Path) -> bool:
        return self.is_writable

    def free_bytes(self, folder: Path) -> int | None:
        return self.free

    def is_listening(self, host: str, port: int) -> bool:
        return self.listener is not None

    def served_id(self, host: str, port: int) -> str | None:
        return self.listener or None

    def now_s(self) -> float:
        return self.now.timestamp()
