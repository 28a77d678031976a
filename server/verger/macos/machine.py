"""The machine as `verger doctor` and the choice of a model see it: commands, files, disks, a clock.

`Machine` is what they are given, `ThisMachine` the real one; tests give another. Everything is
bounded: a command that hangs or a file that is huge is the same as one that is not there.
"""

import os
import platform
import shutil
import socket
import sys
import time
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Protocol

from verger.macos.programs import Done, run_command

COMMAND_LIMIT_S = 10.0
ANSWER_LIMIT_S = 2.0
MAX_FILE_BYTES = 1 << 20
SEARCH_PATH = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/libexec/ApplicationFirewall"
"""The system's own tools; a service's PATH may lack them."""


class Machine(Protocol):
    """All that a check may ask. Nothing here raises; None says that there is no answer."""

    @property
    def is_mac(self) -> bool: ...

    @property
    def release(self) -> str:
        """Of the operating system; "26.1" on a Mac."""

    def run(self, command: Sequence[str]) -> Done | None:
        """None if it is not there or does not end in time."""

    def read(self, path: Path) -> bytes | None: ...

    def mode(self, path: Path) -> int | None:
        """The permission bits of a file or folder."""

    def names(self, folder: Path) -> list[str] | None:
        """What lies in a folder, sorted."""

    def may_write(self, folder: Path) -> bool:
        """Whether this user can make files in the folder, or the folder itself."""

    def free_bytes(self, folder: Path) -> int | None:
        """Of the disk on which the folder lies, or would lie."""

    def is_listening(self, host: str, port: int) -> bool: ...

    def served_id(self, host: str, port: int) -> str | None:
        """Which Verger answers there; None if what answers is none."""

    def now_s(self) -> float:
        """Seconds since 1970."""


class ThisMachine:
    """The real one."""

    is_mac = sys.platform == "darwin"

    @property
    def release(self) -> str:
        """As the system's own dialogue says it."""
        return platform.mac_ver()[0] if self.is_mac else platform.release()

    def run(self, command: Sequence[str]) -> Done | None:
        """English, so that it can be read by a program."""
        program = shutil.which(command[0]) or shutil.which(command[0], path=SEARCH_PATH)
        if program is None:
            return None
        done = run_command(
            [program, *command[1:]],
            COMMAND_LIMIT_S,
            environment={"LC_ALL": "C", "PATH": SEARCH_PATH},
        )
        return done if done.has_run else None

    def read(self, path: Path) -> bytes | None:
        """Its first megabyte."""
        try:
            with path.open("rb") as file:
                return file.read(MAX_FILE_BYTES)
        except OSError:
            return None

    def mode(self, path: Path) -> int | None:
        """Links are followed."""
        try:
            return path.stat().st_mode & 0o7777
        except OSError:
            return None

    def names(self, folder: Path) -> list[str] | None:
        """All of them, hidden ones too."""
        try:
            return sorted(os.listdir(folder))
        except OSError:
            return None

    def may_write(self, folder: Path) -> bool:
        """The nearest folder that exists is asked."""
        place = _existing(folder)
        return place.is_dir() and os.access(place, os.W_OK | os.X_OK)

    def free_bytes(self, folder: Path) -> int | None:
        """For a user without privileges."""
        try:
            return shutil.disk_usage(_existing(folder)).free
        except OSError:
            return None

    def is_listening(self, host: str, port: int) -> bool:
        """Whether a connection is taken."""
        try:
            with socket.create_connection((host, port), timeout=ANSWER_LIMIT_S):
                return True
        except OSError:
            return False

    def served_id(self, host: str, port: int) -> str | None:
        """From a route that needs no key."""
        connection = HTTPConnection(host, port, timeout=ANSWER_LIMIT_S)
        try:
            connection.request("GET", "/livez")
            return connection.getresponse().getheader("x-verger-id")
        except (OSError, HTTPException):
            return None
        finally:
            connection.close()

    def now_s(self) -> float:
        """The wall clock."""
        return time.time()


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
