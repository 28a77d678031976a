"""A part of the first hour, and what came of it: done, failed or skipped.

Used by `scripts/first_hour.py` and the modules of its parts. Must not know any part.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scripts.hour.run import Done, Run

VERGER = (sys.executable, "-P", "-m", "verger.cli.main")
MAX_OUTPUT_CHARACTERS = 4000


class Skip(Exception):
    """This machine cannot do it; the text says why, and what would show it."""


class Fail(Exception):
    """It was tried and did not go well; `answer` is what there is of it."""

    def __init__(self, reason: str, answer: object = None) -> None:
        super().__init__(reason)
        self.answer = answer


@dataclass(frozen=True)
class Part:
    """`ask` returns the answer, as JSON knows it, or raises Skip or Fail."""

    name: str
    ask: Callable[[], object]


@dataclass
class Result:
    """What came of it: done, failed or skipped."""

    name: str
    state: str
    reason: str = ""
    wall_s: float = 0.0
    answer: object = None


def carry_out(part: Part, now: Callable[[], float] = time.monotonic) -> Result:
    """Never raises for what a part finds."""
    started_s = now()
    result = Result(part.name, "done")
    try:
        result.answer = part.ask()
    except Skip as error:
        result.state, result.reason = "skipped", str(error)
    except Fail as error:
        result.state, result.reason, result.answer = "failed", str(error), error.answer
    result.wall_s = round(now() - started_s, 1)
    return result


def asked(
    run: Run, command: Sequence[str], limit_s: float, fine: Sequence[int] = (0,)
) -> dict[str, object]:
    """The JSON that a command prints. Raises Fail for a status that is not `fine`."""
    return answer_of(run(command, limit_s), fine)


def answer_of(done: Done, fine: Sequence[int] = (0,)) -> dict[str, object]:
    """The JSON that was printed. Raises Fail for a status that is not `fine`."""
    try:
        answer = json.loads(done.out)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise Fail(done.reason, done.out[-MAX_OUTPUT_CHARACTERS:] or None)
    if done.status not in fine:
        raise Fail(done.reason, answer)
    return answer


def at(answer: object, *path: str | int) -> object:
    """What lies there in an answer; None if there is no such place."""
    for step in path:
        if isinstance(answer, dict) and isinstance(step, str):
            answer = answer.get(step)
        elif isinstance(answer, list) and isinstance(step, int) and step < len(answer):
            answer = answer[step]
        else:
            return None
    return answer


def listed(answer: object, *path: str | int) -> list[object]:
    """The list that lies there; empty if there is none."""
    found = at(answer, *path)
    return found if isinstance(found, list) else []


def number(answer: object, *path: str | int) -> float | None:
    """The number that lies there."""
    found = at(answer, *path)
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    return float(found) if is_number and isinstance(found, int | float) else None
