"""Commands of the first hour: each in a process group of its own that is ended as a whole.

Called by the parts of `scripts/first_hour.py`. A bench starts servers, and a server an engine: what
ends only the first of them leaves a Mac that computes. Must not know what a command measures.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

TIMED_OUT, NOT_FOUND = 124, 127
END_LIMIT_S = 20.0
"""From SIGTERM to SIGKILL: a server that is ended lets its answers finish."""
POLL_S = 0.05
REST_LIMIT_S = 5.0
"""For what was printed and not yet read, once all have ended."""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    out: str = ""
    err: str = ""

    @property
    def reason(self) -> str:
        """The last line that it printed."""
        lines = (self.err.strip() or self.out.strip()).splitlines()
        return lines[-1].strip() if lines else f"status {self.status}"


Run = Callable[[Sequence[str], float], Done]
"""Carries out a command within so many seconds."""
Beside = Callable[[Sequence[str], Path], AbstractContextManager[None]]
"""Runs a command as long as the context is open; its output goes to the file."""


def run_command(command: Sequence[str], limit_s: float, end_limit_s: float = END_LIMIT_S) -> Done:
    """The real runner; whatever interrupts it ends the whole group as well."""
    try:
        process = _start(command, subprocess.PIPE)
    except OSError as error:
        return Done(NOT_FOUND, err=f"cannot run {command[0]}: {error.strerror}")
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        end_group(process, end_limit_s)
        return Done(TIMED_OUT, _rest(process), f"it took longer than {limit_s:g} s")
    finally:
        if process.poll() is None:
            end_group(process, end_limit_s)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    return Done(process.returncode, _text(out), _text(err))


@contextmanager
def beside(command: Sequence[str], file: Path) -> Iterator[None]:
    """The real one of its kind. Raises OSError if it cannot be started."""
    with file.open("wb") as out:
        process = _start(command, out.fileno())
    try:
        yield
    finally:
        end_group(process, END_LIMIT_S)


def end_group(
    process: "subprocess.Popen[bytes]",
    limit_s: float,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """SIGTERM to all of a group whose leader was not waited for yet, SIGKILL to who stays."""
    _signal(process, signal.SIGTERM)
    for _ in range(max(1, round(limit_s / POLL_S))):
        process.poll()
        if not _signal(process, 0):
            return
        pause(POLL_S)
    _signal(process, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(REST_LIMIT_S)


def _start(command: Sequence[str], out: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.PIPE if out == subprocess.PIPE else subprocess.DEVNULL,
        start_new_session=True,
    )


def _signal(process: "subprocess.Popen[bytes]", number: int) -> bool:
    """Whether anybody of the group is there. It bears the leader's id, also when that has ended."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        # A Mac says so of a group of which only a zombie is left.
        return process.poll() is None
    return True


def _rest(process: "subprocess.Popen[bytes]") -> str:
    try:
        return _text(process.communicate(timeout=REST_LIMIT_S)[0])
    except subprocess.TimeoutExpired:
        return ""


def _text(printed: bytes) -> str:
    return printed.decode("utf-8", "replace")
