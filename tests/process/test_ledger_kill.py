"""kill -9 while the ledger writes, in a real process, again and again on one database.

The writer plays a gateway with eight calls at once. It says `call NAME COST` when a call is made,
which is after its reservation, and `done NAME COST` when its settlement is said to be on disk, or,
where the cost is 0, its release. It is killed at a line that a seeded draw picks, so in the middle
of whatever the other calls are at.
"""

import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ledgers import NOVEMBER_MS
from verger.gateway.ledger_store import LedgerStore

pytestmark = pytest.mark.process

WORST, BUDGET, CALLS_AT_ONCE = 1_000, 120_000, 8
WRITER = """
import asyncio, random, sys
from pathlib import Path
from tests.ledgers import cloud_row, local_row, reservation
from verger.errors import BudgetExhausted
from verger.gateway.ledger import Ledger
from verger.gateway.ledger_store import Budget

BUDGET, WORST, CALLS_AT_ONCE = map(int, sys.argv[2:5])
start, draw = sys.argv[5], random.Random(sys.argv[5])

async def caller(ledger, number):
    for call in range(10_000):
        taken = reservation(f"{start}-{number}-{call}", worst=WORST)
        try:
            await ledger.reserve(taken, Budget(BUDGET, BUDGET))
        except BudgetExhausted:
            return
        cost = 0 if draw.random() < 0.1 else draw.randint(1, WORST)
        print("call", taken.request_id, cost, flush=True)
        ledger.record(local_row(f"local-{taken.request_id}"))
        ending = ledger.settle(taken, cloud_row(taken, cost)) if cost else ledger.release(taken)
        assert await ending
        print("done", taken.request_id, cost, flush=True)

async def main():
    ledger = Ledger(Path(sys.argv[1]))
    ledger.open()
    await asyncio.gather(*(caller(ledger, number) for number in range(CALLS_AT_ONCE)))
    print("exhausted", flush=True)
    sys.stdin.read()

asyncio.run(main())
"""


def start(file: Path, name: str) -> subprocess.Popen[str]:
    figures = [str(figure) for figure in (BUDGET, WORST, CALLS_AT_ONCE)]
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(file), *figures, name],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def said_until_killed(writer: subprocess.Popen[str], lines: int) -> Iterator[list[str]]:
    """All that it said, also what was on its way when it was killed; half a line is not said."""
    assert writer.stdout is not None
    for number, line in enumerate(writer.stdout, start=1):
        if line.endswith("\n"):
            yield line.split()
        if number == lines or line == "exhausted\n":
            writer.kill()
    writer.communicate()


@pytest.mark.parametrize("seed", range(2))
def test_no_settled_row_is_lost_and_no_budget_is_exceeded(seed: int, tmp_path: Path) -> None:
    file, draw = tmp_path / "verger.db", random.Random(seed)
    called: dict[str, int] = {}
    ended: dict[str, int] = {}
    is_exhausted, starts = False, 0
    while not is_exhausted:
        starts += 1
        writer = start(file, f"{seed}-{starts}")
        for verb, *rest in said_until_killed(writer, draw.randint(1, 60)):
            is_exhausted |= verb == "exhausted"
            match verb, rest:
                case "call", [name, cost]:
                    called[name] = int(cost)
                case "done", [name, cost]:
                    ended[name] = int(cost)
        _check(file, called, ended)
    assert starts > 3, "it was hardly ever killed"
    assert _spent(file) > BUDGET - WORST


def _check(file: Path, called: dict[str, int], ended: dict[str, int]) -> None:
    """What was said to be on disk is there; nothing that was called is missing from the sum."""
    assert _spent(file) <= BUDGET
    reading = sqlite3.connect(file)
    rows = reading.execute("SELECT request_id, cost_micro_usd FROM ledger WHERE route = 'cloud'")
    written: dict[str, int] = dict(rows)
    reading.close()
    for name, cost in ended.items():
        assert written.get(name, 0) == cost, name
    for name, cost in called.items():
        # One that was under way counts at its worst, or as it was ended just before the kill.
        assert name in ended or written.get(name, 0) in (cost, WORST), name
    assert sum(called.values()) <= _spent(file)


def _spent(file: Path) -> int:
    """As the next start of the server has it."""
    store = LedgerStore(file)
    try:
        return store.spending("alice", "acme", NOVEMBER_MS).total_micro_usd
    finally:
        store.close()
