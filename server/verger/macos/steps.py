"""The steps that an installation is made of: data, with how each is checked and undone.

Planned by `service_plan` and `launchd`, carried out by `executor`, printed by --dry-run. Pure.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from verger.macos.programs import COMMAND_TIMEOUT_S


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeFolder:
    """A folder with this mode and owner. Undone: removed with all in it, if it was not there."""

    path: Path
    mode: int
    owner: str

    @property
    def what(self) -> str:
        """What it does, in a few words."""
        return f"folder {self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteFile:
    """A file, whole or not at all. Undone: what was there before, or nothing."""

    path: Path
    content: bytes
    mode: int
    owner: str

    @property
    def what(self) -> str:
        """What it does, in a few words."""
        return f"file {self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveLink:
    """A symbolic link, replaced in one move. Undone: where it pointed before, or nothing."""

    path: Path
    target: str

    @property
    def what(self) -> str:
        """What it does, in a few words."""
        return f"link {self.path} -> {self.target}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Remove:
    """A file, a link, or a folder with all in it. Cannot be undone."""

    path: Path

    @property
    def what(self) -> str:
        """What it does, in a few words."""
        return f"remove {self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A command that must end with one of `statuses`; `check` is then asked for `expect`."""

    what: str
    argv: tuple[str, ...]
    statuses: frozenset[int] = frozenset({0})
    check: tuple[str, ...] = ()
    expect: str = ""
    """Must be in what `check` prints, or without one in what the command prints."""
    is_silent: bool = False
    """It fails if it prints anything: that is then what is wrong."""
    advice: str = ""
    """What a person can do about it if it fails."""
    undo: "tuple[Step, ...]" = ()
    timeout_s: float = COMMAND_TIMEOUT_S
    is_shown: bool = False
    """What it prints is for the person at the terminal."""
    is_live: bool = False
    """It prints to the terminal itself, while it runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Await:
    """Ask a command again and again until it succeeds, or until it fails."""

    what: str
    argv: tuple[str, ...]
    attempts: int
    pause_s: float = 1.0
    wants_success: bool = True
    log: Path | None = None
    """Its last line is told when the waiting is given up."""
    error_log: Path | None = None
    """Its last error, rather, if curl was answered, though not with success."""


Step = MakeFolder | WriteFile | MoveLink | Remove | Run | Await


def transcript(steps: Sequence[Step]) -> str:
    """Every file with its content and every command, as --dry-run prints them."""
    return "\n".join(line for step in steps for line in _lines(step))


def _lines(step: Step) -> list[str]:
    match step:
        case MakeFolder():
            return [f"# {step.what}  mode {step.mode:04o}  owner {step.owner}"]
        case WriteFile():
            heading = f"# {step.what}  mode {step.mode:04o}  owner {step.owner}"
            return [heading, *(f"    {line}" for line in step.content.decode().splitlines())]
        case MoveLink() | Remove():
            return [f"# {step.what}"]
        case Run():
            checked = [f"#   checked: {shlex.join(step.check)}"] if step.check else []
            must = ": this must fail" if 0 not in step.statuses else ""
            must = ": this must print nothing" if step.is_silent else must
            return [f"# {step.what}{must}", shlex.join(step.argv), *checked]
        case Await():
            end = "succeeds" if step.wants_success else "fails"
            limit_s = step.attempts * step.pause_s
            until = f"# {step.what}: until this {end}, at most {limit_s:g} s"
            return [until, shlex.join(step.argv)]
