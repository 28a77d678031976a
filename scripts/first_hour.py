"""What only a real machine can show, in one JSON and one page; behind scripts/first_hour.

Each part is a command of Verger in a process of its own, bounded in time. One that fails is
recorded and the rest goes on; one that this machine cannot do is skipped, with the reason and what
to run instead. Must not know how anything is measured: `verger bench` does.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

SCHEMA_VERSION = 1
QUESTION_LIMIT_S = 60.0
QUICK_LIMIT_S, FULL_LIMIT_S = 180.0, 1800.0
MAX_OUTPUT_CHARACTERS = 4000
TIMED_OUT = 124
UNWELL = 7
"""`verger doctor` answers so if a check fails: an answer, not a failure."""
VERGER = (sys.executable, "-P", "-m", "verger.cli.main")
BENCHES = ("overhead", "stall", "replay", "fallback")

Run = Callable[[Sequence[str], float], tuple[int, str, str]]


@dataclass(frozen=True)
class Part:
    """What is asked; without a command it is skipped for `reason`."""

    name: str
    command: tuple[str, ...] = ()
    limit_s: float = QUESTION_LIMIT_S
    reason: str = ""


@dataclass
class Result:
    """What came of it: done, failed or skipped."""

    name: str
    state: str
    reason: str = ""
    wall_s: float = 0.0
    command: list[str] = field(default_factory=list)
    answer: object = None


def parts(model: str, *, is_quick: bool) -> list[Part]:
    """In the order in which they run."""
    quick = ("--quick",) if is_quick else ()
    limit_s = QUICK_LIMIT_S if is_quick else FULL_LIMIT_S
    asked = [
        Part("fit", (*VERGER, "models", "--json")),
        Part("machine and panics", (*VERGER, "doctor", "--json")),
    ]
    for name in BENCHES:
        of = () if name == "fallback" else ("--model", model)
        asked += [Part(name, (*VERGER, "bench", name, *of, *quick, "--json", "-"), limit_s)]
    return [
        *asked,
        Part("bonjour", reason="on a second machine: dns-sd -B _verger._tcp, or verger discover"),
        Part("process type", reason="compare `overhead` with the service's rates: launchd/README"),
        Part("power", reason="beside `overhead`: sudo powermetrics --samplers gpu_power -n 60"),
    ]


def run_command(command: Sequence[str], limit_s: float) -> tuple[int, str, str]:
    """Status, output, errors."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return TIMED_OUT, "", f"it took longer than {limit_s:g} s"
    return done.returncode, done.stdout, done.stderr


def carry_out(part: Part, run: Run, now: Callable[[], float] = time.monotonic) -> Result:
    """Never raises for what a command does."""
    if not part.command:
        return Result(part.name, "skipped", part.reason)
    started_s = now()
    status, out, err = run(part.command, part.limit_s)
    result = Result(part.name, "done", "", round(now() - started_s, 1), list(part.command[1:]))
    try:
        result.answer = json.loads(out)
    except ValueError:
        result.answer = out[-MAX_OUTPUT_CHARACTERS:]
        result.state = "failed"
    if status not in (0, UNWELL):
        result.state = "failed"
    if result.state == "failed":
        lines = err.strip().splitlines() or [f"status {status}, no JSON"]
        result.reason = lines[-1]
    return result


def page(results: Sequence[Result]) -> str:
    """Markdown: a table of what came of each, then the answers."""
    rows = [f"| {r.name} | {r.state} | {r.wall_s:g} | {r.reason} |" for r in results]
    lines = ["# The first hour", "", "| part | state | s | |", "|---|---|---|---|", *rows]
    for result in results:
        if result.answer is not None:
            shown = json.dumps(result.answer, indent=1)
            lines += ["", f"## {result.name}", "", "```json", shown, "```"]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None, run: Run = run_command) -> int:
    """0 if no part failed."""
    parser = argparse.ArgumentParser(prog="scripts/first_hour", description=__doc__)
    parser.add_argument("--model", default="nano", help="what to measure; default nano")
    parser.add_argument("--quick", action="store_true", help="minutes instead of an hour")
    parser.add_argument("--out", type=Path, default=Path("first-hour"), help="folder to write")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    for part in parts(given.model, is_quick=given.quick):
        results.append(carry_out(part, run))
        print(f"{results[-1].state:8}{part.name}  {results[-1].reason}", flush=True)
        body = {"schema_version": SCHEMA_VERSION, "parts": [asdict(one) for one in results]}
        (given.out / "first-hour.json").write_text(json.dumps(body, indent=1))
        (given.out / "first-hour.md").write_text(page(results))
    return int(any(result.state == "failed" for result in results))


if __name__ == "__main__":
    sys.exit(main())
