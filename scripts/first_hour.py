"""What only a real machine can show, in one JSON and one page; behind scripts/first_hour.

Each part is bounded in time. One that fails is recorded and the rest goes on; one that this machine
cannot do is skipped, with the reason and what to run instead. Must not know how anything is
measured: `verger bench` and the modules of the parts do.
"""

import argparse
import json
import os
import platform
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from scripts.hour.bonjour import SERVICE, found_from, served_id
from scripts.hour.page import page
from scripts.hour.panics import DOCTOR, DOCTOR_LIMIT_S, UNWELL, Before, before_all, since
from scripts.hour.parts import VERGER, Fail, Part, Result, asked, carry_out
from scripts.hour.power import measure_here
from scripts.hour.process_type import compare_here
from scripts.hour.run import Beside, Run, beside, run_command

SCHEMA_VERSION = 2
QUESTION_LIMIT_S = 60.0
QUICK_LIMIT_S, FULL_LIMIT_S = 300.0, 3600.0
SOAK_MINUTES, QUICK_SOAK_MINUTES = 60.0, 1.0
MAX_HOURS = 24.0
SOAK_SPARE_S = 900.0
"""For loading the model, and for what runs when the time is over."""
POWER_LOAD = ("--contexts", "1000", "--batches", "8", "--repeats", "1")
POWER_TOKENS, QUICK_POWER_TOKENS = "1024", "512"
BENCHES = ("rates", "overhead", "stall", "replay", "fallback")
PARTS = ("fit", "doctor", *BENCHES, "process-type", "power", "bonjour", "memory", "panics")
"""In the order in which they run."""


@dataclass(frozen=True)
class Asked:
    """What the command line says."""

    model: str
    is_quick: bool
    soak_minutes: float
    second_machine: str | None
    service: str
    only: Sequence[str]
    out: Path

    @property
    def limit_s(self) -> float:
        """Of a bench."""
        return QUICK_LIMIT_S if self.is_quick else FULL_LIMIT_S


@dataclass(frozen=True)
class Means:
    """How things are run; tests give others."""

    run: Run = run_command
    beside: Beside = beside
    id_of: Callable[[str], str | None] = served_id


def bench(given: Asked, name: str, *options: str) -> tuple[str, ...]:
    """A command of `verger bench` that prints its report as JSON."""
    model = () if name == "fallback" else ("--model", given.model)
    quick = ("--quick",) if given.is_quick and "--quick" not in options else ()
    return (*VERGER, "bench", name, *model, *quick, *options, "--json", "-")


def parts(given: Asked, means: Means, before: Before) -> list[Part]:
    """All that are wanted, in order."""
    run, limit_s = means.run, given.limit_s
    soak = bench(given, "soak", "--minutes", f"{given.soak_minutes:g}")
    soak_s = given.soak_minutes * 60 + SOAK_SPARE_S
    tokens = QUICK_POWER_TOKENS if given.is_quick else POWER_TOKENS
    load = bench(given, "rates", *POWER_LOAD, "--tokens", tokens)
    asks: dict[str, Callable[[], object]] = {
        "fit": partial(asked, run, (*VERGER, "models", "--json"), QUESTION_LIMIT_S),
        "doctor": partial(asked, run, DOCTOR, DOCTOR_LIMIT_S, (0, UNWELL)),
        **{name: partial(asked, run, bench(given, name), limit_s) for name in BENCHES},
        "process-type": partial(compare_here, bench(given, "rates", "--quick"), run, limit_s),
        "power": partial(measure_here, load, run, means.beside, limit_s),
        "bonjour": partial(found_from, given.second_machine, given.service, run, means.id_of),
        "memory": partial(asked, run, soak, soak_s),
        "panics": partial(since, before, run),
    }
    return [Part(name, asks[name]) for name in PARTS if name in given.only]


def main(arguments: Sequence[str] | None = None, means: Means | None = None) -> int:
    """0 if no part failed."""
    given, means = parse(arguments), means or Means()
    given.out.mkdir(parents=True, exist_ok=True)
    report = given.out / "first-hour.json"
    before = Before(None)
    if "panics" in given.only:
        try:
            before = before_all(report, means.run)
        except Fail as error:
            print(f"panics before the start are not known: {error}")
    results: list[Result] = []
    for part in parts(given, means, before):
        write(given, before, results, part.name)
        results.append(carry_out(part))
        print(f"{results[-1].state:8}{part.name}  {results[-1].reason}", flush=True)
    write(given, before, results, None)
    return int(any(result.state == "failed" for result in results))


def write(given: Asked, before: Before, results: Sequence[Result], running: str | None) -> None:
    """Both files, before each part and after all: a Mac that goes down leaves what it had shown."""
    machine = platform.platform()
    body = {
        "schema_version": SCHEMA_VERSION,
        "machine": machine,
        "model": given.model,
        "running": running,
        "panic_before": before.finding,
        "parts": [asdict(one) for one in results],
    }
    replace(given.out / "first-hour.json", json.dumps(body, indent=1, ensure_ascii=False))
    replace(given.out / "first-hour.md", page(f"{given.model} on {machine}", results, running))


def replace(path: Path, text: str) -> None:
    """Whole or not at all, also if the machine goes down."""
    temporary = path.with_suffix(f"{path.suffix}.new")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def parse(arguments: Sequence[str] | None) -> Asked:
    """Exits with status 2 for what makes no sense."""
    parser = argparse.ArgumentParser(prog="scripts/first_hour", description=__doc__)
    parser.add_argument("--model", default="nano", help="what to measure; default nano")
    parser.add_argument("--quick", action="store_true", help="minutes instead of hours")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, help="of the soak, by default 60; 1 with --quick")
    length.add_argument("--hours", type=float, help="the same in hours")
    parser.add_argument("--second-machine", help="USER@HOST, asked over ssh what it finds")
    parser.add_argument("--service", default=SERVICE, help=f"what it should find: {SERVICE}")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between them")
    parser.add_argument("--out", type=Path, default=Path("first-hour"), help="folder to write")
    given = parser.parse_args(arguments)
    only = given.only.split(",")
    if unknown := [name for name in only if name not in PARTS]:
        parser.error(f"--only: {unknown[0]} is none of {', '.join(PARTS)}")
    minutes = given.minutes if given.hours is None else given.hours * 60
    if minutes is None:
        minutes = QUICK_SOAK_MINUTES if given.quick else SOAK_MINUTES
    if not 0 < minutes <= MAX_HOURS * 60:
        parser.error(f"the soak takes up to {MAX_HOURS:g} hours, and more than none")
    return Asked(
        given.model,
        given.quick,
        minutes,
        given.second_machine,
        given.service,
        only,
        given.out,
    )


if __name__ == "__main__":
    # So that what a part has started is ended, and a job of launchd's booted out.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    sys.exit(main())
