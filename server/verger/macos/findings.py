"""What `verger doctor` says: a finding per check, each with its reason and what mends it. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from msgspec import Struct

from verger.macos.machine import Machine

ONLY_A_MAC = "only a Mac has this"


class Level(StrEnum):
    """How bad it is. Only `fail` makes the command fail."""

    OK = "ok"
    WARN = "warn"
    """It works now, and will not some day, or not as well as it could."""
    FAIL = "fail"
    SKIPPED = "skipped"
    """Nothing could be found out; the finding says why."""


class Finding(Struct, frozen=True):
    """One check's answer."""

    check: str
    level: Level
    why: str
    fix: str | None = None
    """The command, or the step, that mends it."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the checks are told of the installation; the rest they ask the machine."""

    home: Path
    is_service: bool
    """Whether it is the service's, where only root and the service's account may look and write."""
    host: str
    port: int
    instance_id: str | None
    """Of this server, once it has one."""
    python: Path
    """The interpreter itself, links followed: what the firewall knows."""
    label: str
    plist: Path
    plist_problems: Callable[[bytes, str], list[str]]
    """What is wrong with a plist of that file name."""


Check = Callable[[Machine, Facts], Finding]


def only_on_a_mac(name: str, check: Check) -> Check:
    """The same check, which elsewhere has nothing to look at."""

    def checked(machine: Machine, facts: Facts) -> Finding:
        if not machine.is_mac:
            return Finding(name, Level.SKIPPED, ONLY_A_MAC)
        return check(machine, facts)

    return checked


def closed(name: str) -> Finding:
    """The service's own, which others cannot look into."""
    return Finding(name, Level.SKIPPED, "only root can look there: sudo verger doctor")


def unanswered(name: str, command: str) -> Finding:
    """A tool of the system is missing, failed, took too long, or speaks another format."""
    why = f"`{command}` did not say: run it in a terminal to see why"
    return Finding(name, Level.SKIPPED, why)
