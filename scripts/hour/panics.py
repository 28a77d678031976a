"""Whether macOS has panicked since the first hour began.

A part of `scripts/first_hour.py`: doctor's finding before all parts and after all. A panic takes
the first hour down with the Mac, so a run that finds the one before it unfinished goes by what that
one had noted first. Must not know how doctor finds a panic.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from scripts.hour.parts import VERGER, Fail, Skip, asked, at, listed
from scripts.hour.run import Run

CHECK = "last panic"
DOCTOR = (*VERGER, "doctor", "--json")
DOCTOR_LIMIT_S = 60.0
UNWELL = 7
"""`verger doctor` answers so if a check fails: an answer, not a failure."""


@dataclass(frozen=True)
class Before:
    """Doctor's finding before all, None if it is not known, and the part in which the run before
    this one ended, if it did not finish."""

    finding: object
    broke_off_in: str | None = None


def finding(run: Run) -> object:
    """Raises Fail."""
    findings = listed(asked(run, DOCTOR, DOCTOR_LIMIT_S, (0, UNWELL)), "findings")
    return next((one for one in findings if at(one, "check") == CHECK), None)


def before_all(file: Path, run: Run) -> Before:
    """`file` is what the run before has written, or is not there. Raises Fail."""
    try:
        earlier = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        earlier = None
    part, noted = at(earlier, "running"), at(earlier, "panic_before")
    if isinstance(part, str) and noted is not None:
        return Before(noted, part)
    return Before(finding(run))


def since(before: Before, run: Run) -> object:
    """What doctor finds now. Raises Fail for a panic that is new, Skip where nobody can tell."""
    now = finding(run)
    why = str(at(now, "why"))
    if at(now, "level") == "skipped":
        raise Skip(why)
    if before.finding is None:
        raise Skip(f"what doctor found before is not known; now: {why}")
    answer = {"before": before.finding, "now": now, "broke_off_in": before.broke_off_in}
    if at(now, "level") == "warn" and now != before.finding:
        when = "" if before.broke_off_in is None else f", while `{before.broke_off_in}` ran"
        raise Fail(f"new since the start{when}: {why}", answer)
    return answer
