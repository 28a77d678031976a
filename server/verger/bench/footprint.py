"""How much memory a process holds, asked from the system.

Called by `soak_memory.py`. On a Mac the physical footprint, which is what Activity Monitor shows
and what the system judges a process by: its resident size leaves out what the GPU holds. On Linux
the proportional set size, or the resident size where that is not told. Must not know which process
is what. Sources: xnu's bsd/sys/resource.h, `struct rusage_info_v0`; proc(5).
"""

import ctypes
import re
import struct
import sys
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
LIBPROC = "/usr/lib/libproc.dylib"
RUSAGE_INFO_V0 = 0
_RUSAGE_V0 = struct.Struct("=16s10Q")
"""A UUID; user time, system time, two counts of wake-ups, page-ins, wired, resident, footprint."""
_FOOTPRINT_FIELD = 8


def footprint_bytes(pid: int) -> int | None:
    """None where it has ended, or where the system does not tell."""
    return _of_mac(pid) if sys.platform == "darwin" else _of_linux(pid)


def parse_rusage_v0(raw: bytes) -> int:
    """`ri_phys_footprint` of what proc_pid_rusage fills in."""
    footprint: int = _RUSAGE_V0.unpack(raw)[_FOOTPRINT_FIELD]
    return footprint


def parse_kib(text: str, name: str) -> int | None:
    """Bytes of a line such as `Pss:  120 kB`."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", text, re.M)
    return int(found[1]) * 1024 if found else None


def _of_linux(pid: int) -> int | None:
    for file, name in (("smaps_rollup", "Pss"), ("status", "VmRSS")):
        # It has ended, or it is another user's.
        with suppress(OSError):
            if found := parse_kib((PROC / str(pid) / file).read_text(), name):
                return found
    return None


def _of_mac(pid: int) -> int | None:
    try:
        proc_pid_rusage = ctypes.CDLL(LIBPROC).proc_pid_rusage
    except (OSError, AttributeError):
        return None
    buffer = ctypes.create_string_buffer(_RUSAGE_V0.size)
    if proc_pid_rusage(pid, RUSAGE_INFO_V0, buffer) != 0:
        return None
    return parse_rusage_v0(buffer.raw)
