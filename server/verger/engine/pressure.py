"""Whether the system is short of memory, and how much of the cache may stay then.

Asked by the loop with every heartbeat. Only cached prefixes are given up: no limit is changed, so
there is nothing to take back when the pressure ends, and nobody who runs or waits is touched.

macOS says it itself, as `kern.memorystatus_vm_pressure_level`; Linux by `MemAvailable`.
"""

import ctypes
import sys
from collections.abc import Callable, Mapping
from enum import IntEnum
from pathlib import Path

WARN_AVAILABLE, CRITICAL_AVAILABLE = 0.08, 0.04
"""Of all memory, on Linux."""
MEMINFO = Path("/proc/meminfo")
_SYSCTL = b"kern.memorystatus_vm_pressure_level"


class Pressure(IntEnum):
    """As macOS numbers it."""

    NORMAL = 1
    WARN = 2
    CRITICAL = 4


KEPT_SHARE: Mapping[Pressure, float] = {
    Pressure.NORMAL: 1.0,
    Pressure.WARN: 0.5,
    Pressure.CRITICAL: 0.0,
}
"""Of the limit of the KV, what cached prefixes may fill."""

ReadPressure = Callable[[], Pressure]


def no_pressure() -> Pressure:
    """Where the system does not say."""
    return Pressure.NORMAL


def system_pressure() -> ReadPressure:
    """How it is read here; reading takes microseconds."""
    if sys.platform == "darwin":
        return lambda: of_level(_sysctl(_SYSCTL))
    return (lambda: of_meminfo(MEMINFO.read_text())) if MEMINFO.exists() else no_pressure


def of_level(level: int | None) -> Pressure:
    """What macOS's number means; one that is not known is no pressure."""
    return Pressure(level) if level in list(Pressure) else Pressure.NORMAL


def of_meminfo(text: str) -> Pressure:
    """From the text of /proc/meminfo."""
    share = meminfo_bytes(text, "MemAvailable") / meminfo_bytes(text, "MemTotal")
    if share < CRITICAL_AVAILABLE:
        return Pressure.CRITICAL
    return Pressure.WARN if share < WARN_AVAILABLE else Pressure.NORMAL


def meminfo_bytes(text: str, name: str) -> int:
    """One of the amounts in the text of /proc/meminfo."""
    fields = dict(line.split(":", 1) for line in text.splitlines())
    return int(fields[name].split()[0]) << 10


def _sysctl(name: bytes) -> int | None:
    value, size = ctypes.c_int(), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    libc = ctypes.CDLL(None)
    failed = libc.sysctlbyname(name, ctypes.byref(value), ctypes.byref(size), None, 0)
    return None if failed else value.value
