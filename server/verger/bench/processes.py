"""CPU time of processes, asked from the system: /proc on Linux, `ps` elsewhere.

Called by `overhead.py` before and after a round. Must not know which process is what.
"""

import os
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
PS = ("/bin/ps", "-A", "-o", "pid=,ppid=,time=")
PS_LIMIT_S = 10


@dataclass(frozen=True, slots=True)
class Process:
    """`cpu_s` is user and system time since it started."""

    pid: int
    parent_pid: int
    cpu_s: float


def processes() -> dict[int, Process]:
    """All processes that can be seen, by id."""
    found = _from_proc() if (PROC / "self" / "stat").exists() else _from_ps()
    return {process.pid: process for process in found}


def parse_stat(text: str, ticks_per_s: int) -> Process:
    """A line of /proc/PID/stat; see proc(5). The name in it may hold spaces and parentheses."""
    fields = text.rpartition(")")[2].split()
    cpu_ticks = int(fields[11]) + int(fields[12])
    return Process(int(text.split(" ", 1)[0]), int(fields[1]), cpu_ticks / ticks_per_s)


def parse_ps(line: str) -> Process:
    """A line of `ps -o pid=,ppid=,time=`, the time as [[DD-]HH:]MM:SS[.ss]."""
    pid, parent_pid, time = line.split()
    days, _, clock = time.rpartition("-")
    cpu_s = 0.0
    for part in clock.split(":"):
        cpu_s = cpu_s * 60 + float(part)
    return Process(int(pid), int(parent_pid), int(days or 0) * 86_400 + cpu_s)


def _from_proc() -> list[Process]:
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    found = []
    for folder in PROC.glob("[0-9]*"):
        with suppress(OSError):  # It has ended meanwhile.
            found.append(parse_stat((folder / "stat").read_text(), ticks_per_s))
    return found


def _from_ps() -> list[Process]:
    listing = subprocess.run(PS, capture_output=True, text=True, check=True, timeout=PS_LIMIT_S)  # noqa: S603 (constant)
    return [parse_ps(line) for line in listing.stdout.splitlines()]
