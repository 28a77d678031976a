"""Runs programs of the system to their end, within a limit: nothing else of `macos` starts any.

Used by the executor of plans and by what `verger doctor` asks. Must not know what they are for.
"""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

COMMAND_TIMEOUT_S = 60.0
MAX_REASON_CHARACTERS = 400
MAX_OUTPUT_CHARACTERS = 1 << 20
_NOT_RUN = 126


@dataclass(frozen=True, slots=True)
class Done:
    """How a program ended."""

    status: int
    out: str = ""
    err: str = ""
    has_run: bool = True
    """False: it is not there, could not be started, or did not end in time."""

    @property
    def output(self) -> str:
        """All that it printed, as far as anybody reads it."""
        return (self.out + self.err)[:MAX_OUTPUT_CHARACTERS]

    @property
    def reason(self) -> str:
        """The last line it printed, as far as it fits into a message."""
        lines = (self.err.strip() or self.out.strip()).splitlines() or [f"status {self.status}"]
        return lines[-1].strip()[:MAX_REASON_CHARACTERS]


class Runner(Protocol):
    """Runs a program to its end; never raises."""

    def __call__(self, argv: Sequence[str], timeout_s: float = COMMAND_TIMEOUT_S) -> Done:
        """Blocks for at most `timeout_s`."""


def run_command(
    argv: Sequence[str],
    timeout_s: float = COMMAND_TIMEOUT_S,
    *,
    environment: Mapping[str, str] | None = None,
    is_live: bool = False,
) -> Done:
    """The real runner. What it makes can be read by all: the service is not who installs it.

    What a live one prints goes to the terminal as it comes, and is not in what is returned.
    """
    try:
        ended = subprocess.run(  # noqa: S603 (no shell)
            list(argv),
            stdin=subprocess.DEVNULL,
            capture_output=not is_live,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env=environment,
            cwd="/",
            umask=0o022,
        )
    except FileNotFoundError:
        return Done(_NOT_RUN, err=f"there is no {argv[0]}", has_run=False)
    except subprocess.TimeoutExpired:
        return Done(_NOT_RUN, err=f"{argv[0]} took longer than {timeout_s:g} s", has_run=False)
    except OSError as error:
        return Done(_NOT_RUN, err=f"cannot run {argv[0]}: {error.strerror}", has_run=False)
    if is_live:
        return Done(ended.returncode, err=f"it ended with status {ended.returncode}")
    return Done(ended.returncode, ended.stdout, ended.stderr)


def run_live(argv: Sequence[str], timeout_s: float = COMMAND_TIMEOUT_S) -> Done:
    """The same, printed to the terminal."""
    return run_command(argv, timeout_s, is_live=True)
