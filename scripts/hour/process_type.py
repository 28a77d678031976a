"""What a job's ProcessType does to its decode rate: the same bench as three temporary jobs.

A part of `scripts/first_hour.py`. launchd runs each job in turn, as Interactive, without a
ProcessType, and as Background; a job writes how it ended into a file, which is waited for, and is
booted out whatever happened. As root the jobs are daemons of the system, as the service is; else
agents of the user. Must not know what the bench measures. Keys: launchd.plist(5); verbs:
launchctl(1), neither of them tried on a Mac by us.
"""

import os
import plistlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from scripts.hour.parts import Fail, Skip, answer_of, listed, number
from scripts.hour.run import Done, Run

KINDS: Mapping[str, str | None] = {
    "interactive": "Interactive",
    "none": None,
    "background": "Background",
}
VERB_LIMIT_S = 30.0
POLL_S = 1.0
GONE_TRIES = 30
"""So often is it asked whether a job that was booted out is still there."""
LABEL = "com.verger.first-hour"
# $0 is the place of the job's files, and the rest is the command.
SHELL = 'cd /; "$@" >"$0.json" 2>"$0.log"; echo $? >"$0.status"'
PASSED_ON = ("HOME", "PATH", "VERGER_HOME")


@dataclass(frozen=True)
class Launchd:
    """How launchd is reached, as whom, and how long a job may take."""

    run: Run
    launchctl: str
    uid: int
    limit_s: float
    pause: Callable[[float], None] = time.sleep

    def domain(self) -> str:
        """Of the system for root; else of the user, who may or may not be logged in at a screen."""
        if self.uid == 0:
            return "system"
        gui = f"gui/{self.uid}"
        return gui if self.ask("print", gui).status == 0 else f"user/{self.uid}"

    def ask(self, *arguments: str) -> Done:
        """One verb."""
        return self.run((self.launchctl, *arguments), VERB_LIMIT_S)


@dataclass(frozen=True)
class Job:
    """A job on paper; `base` is where its files begin."""

    label: str
    process_type: str | None
    command: Sequence[str]
    base: Path
    domain: str

    def file(self, suffix: str) -> Path:
        """One of its files."""
        return self.base.with_name(f"{self.base.name}.{suffix}")

    def plist(self, variables: Mapping[str, str]) -> bytes:
        """What launchd is told: to run it once, at once."""
        keys: dict[str, object] = {
            "Label": self.label,
            "ProgramArguments": ["/bin/sh", "-c", SHELL, str(self.base), *self.command],
            "EnvironmentVariables": dict(variables),
            "RunAtLoad": True,
        }
        if self.process_type is not None:
            keys["ProcessType"] = self.process_type
        if self.domain != "system":
            # Without it launchd keeps an agent for who is logged in at the screen.
            keys["LimitLoadToSessionType"] = ["Aqua", "Background"]
        return plistlib.dumps(keys)


def compare_here(command: Sequence[str], run: Run, limit_s: float) -> object:
    """On this machine. Raises Skip where there is no launchd."""
    launchctl = shutil.which("launchctl")
    if launchctl is None:
        raise Skip("there is no launchctl here: only a Mac has it")
    variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return compare(Launchd(run, launchctl, os.geteuid(), limit_s), command, variables)


def compare(
    launchd: Launchd, command: Sequence[str], variables: Mapping[str, str]
) -> dict[str, object]:
    """`command` prints the report of `verger bench rates`. Raises Fail."""
    domain = launchd.domain()
    answers: dict[str, object] = {}
    with TemporaryDirectory(prefix="verger-first-hour-") as folder:
        for kind, process_type in KINDS.items():
            label = f"{LABEL}.{kind}.{os.getpid()}"
            job = Job(label, process_type, command, Path(folder) / kind, domain)
            answers[kind] = _answer_of(launchd, job, variables)
    return {
        "domain": domain,
        "interactive_to_none": decode_ratio(answers["interactive"], answers["none"]),
        "interactive_to_background": decode_ratio(answers["interactive"], answers["background"]),
        "rates": answers,
    }


def decode_ratio(one: object, other: object) -> float | None:
    """Of the decode rates that both reports have: the median. None if there is no such."""
    others = {_cell(row): number(row, "tok_s") for row in listed(other, "decode")}
    ratios = []
    for row in listed(one, "decode"):
        ours, theirs = number(row, "tok_s"), others.get(_cell(row))
        if ours is not None and theirs:
            ratios.append(ours / theirs)
    return round(median(ratios), 3) if ratios else None


def _cell(row: object) -> tuple[float | None, float | None]:
    return number(row, "batch"), number(row, "context_tokens")


def _answer_of(launchd: Launchd, job: Job, variables: Mapping[str, str]) -> object:
    job.file("plist").write_bytes(job.plist(variables))
    try:
        loaded = launchd.ask("bootstrap", job.domain, str(job.file("plist")))
        if loaded.status != 0:
            raise Fail(f"launchctl bootstrap {job.domain}: {loaded.reason}")
        status = _awaited(launchd, job)
    finally:
        _boot_out(launchd, job)
    return answer_of(_done(job, status))


def _awaited(launchd: Launchd, job: Job) -> int:
    """How the job ended; a job that is never started, or never ends, is given up."""
    for _ in range(max(1, round(launchd.limit_s / POLL_S))):
        if job.file("status").exists() and (text := job.file("status").read_text().strip()):
            return int(text)
        launchd.pause(POLL_S)
    raise Fail(f"{job.label} did not end within {launchd.limit_s:g} s: {_said(job)}")


def _boot_out(launchd: Launchd, job: Job) -> None:
    """bootout may return before the job is gone."""
    target = f"{job.domain}/{job.label}"
    launchd.ask("bootout", target)
    for _ in range(GONE_TRIES):
        if launchd.ask("print", target).status != 0:
            return
        launchd.pause(POLL_S)
    raise Fail(f"{job.label} is still loaded: launchctl bootout {target}")


def _done(job: Job, status: int) -> Done:
    out = job.file("json").read_text(errors="replace")
    return Done(status, out, job.file("log").read_text(errors="replace"))


def _said(job: Job) -> str:
    log = job.file("log")
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else "it said nothing"
