"""Why the server was started: what the run before it has left behind, in `run.json`.

Begun by `server` once the port is its own, ended when it has drained. A run that ends in no good
order, by a crash, a SIGKILL or a panic of the machine, leaves its beginning there. Must not know
engines.

    the run before …            → reason
    ─────────────────────────────────────
    there was none              → first
    did not end, other boot     → power     the machine went down with it
    was another version         → update
    ended with exit code 0      → clean
    ended with another one      → failed
    did not end                 → crash
    still runs (`run.lock`)     → beside    nothing is kept of a second one
"""

import fcntl
import logging
import os
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from uuid import uuid4

import msgspec
from msgspec import Struct

from verger import __version__
from verger.errors import ConfigError
from verger.log import key_values

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
SYSCTL = "/usr/sbin/sysctl"
SYSCTL_S = 5.0

logger = logging.getLogger("verger.gateway")


class StartReason(Enum):
    """Why the server was started; the table is in the module docstring."""

    FIRST = "first"
    POWER = "power"
    UPDATE = "update"
    CLEAN = "clean"
    FAILED = "failed"
    CRASH = "crash"
    BESIDE = "beside"


class Run(Struct, frozen=True):
    """What is kept of a run. `exit_code` is None until it ends."""

    version: str
    boot_id: str
    pid: int
    is_cautious: bool = False
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """Why this run began, and whether it is cautious."""

    reason: StartReason = StartReason.FIRST
    is_cautious: bool = False


class RunRecord:
    """Owns the file, as long as the process lives that has begun first."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock_fd: int | None = None

    def begin(self, boot_id: str) -> Start:
        """Note that a run has begun; why it did. Raises ConfigError."""
        if not self._is_ours():
            return Start(StartReason.BESIDE)
        before = self._read()
        start = start_of(before, __version__, boot_id)
        self._write(Run(__version__, boot_id, os.getpid(), start.is_cautious))
        return start

    def end(self, exit_code: int) -> None:
        """It ends in good order, be it because it could not start. Raises ConfigError."""
        run = self._read()
        if self._lock_fd is not None and run is not None and run.pid == os.getpid():
            self._write(msgspec.structs.replace(run, exit_code=exit_code))

    def _is_ours(self) -> bool:
        if self._lock_fd is not None:
            return True
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            lock_fd = os.open(self._file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise self._unusable(error) from None
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock_fd)
            return False
        self._lock_fd = lock_fd
        return True

    def _read(self) -> Run | None:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Run)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(error) from None
        except msgspec.DecodeError as error:
            logger.warning(key_values(event="run_record_unreadable", file=self._file, reason=error))
            return None

    def _write(self, run: Run) -> None:
        """Whole or not at all, also if the machine goes down now."""
        partial = self._file.with_name(f"{self._file.name}.{uuid4()}")
        try:
            with partial.open("wb") as writing:
                writing.write(msgspec.json.encode(run) + b"\n")
                writing.flush()
                os.fsync(writing.fileno())
            partial.replace(self._file)
        except OSError as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"cannot keep {self._file}: {error.strerror}; give the state folder to this user"
        )


def start_of(before: Run | None, version: str, boot_id: str) -> Start:
    """Whoever begins after the machine went down with it is cautious, until a run has ended
    cleanly: what took the machine down may do so again."""
    if before is None:
        return Start()
    reason = _reason(before, version, boot_id)
    stays_cautious = before.is_cautious and before.exit_code != 0
    return Start(reason, reason is StartReason.POWER or stays_cautious)


def read_boot_id(file: Path = BOOT_ID, sysctl: str = SYSCTL) -> str:
    """Another one after each boot of this machine; empty where the system does not say.

    Not the time of the boot: it moves when the clock is set.
    """
    with suppress(OSError):
        return file.read_text(encoding="ascii").strip()
    try:
        done = subprocess.run(  # noqa: S603 (the system's own program)
            [sysctl, "-n", "kern.bootsessionuuid"],
            capture_output=True,
            text=True,
            timeout=SYSCTL_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _reason(before: Run, version: str, boot_id: str) -> StartReason:
    is_known = bool(before.boot_id and boot_id)
    if before.exit_code is None and is_known and before.boot_id != boot_id:
        return StartReason.POWER
    if before.version != version:
        return StartReason.UPDATE
    match before.exit_code:
        case None:
            return StartReason.CRASH
        case 0:
            return StartReason.CLEAN
        case _:
            return StartReason.FAILED
