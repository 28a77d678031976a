"""`verger bench soak` against nano, and against servers that misbehave in known ways."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from itertools import count

import pytest

from tests.soak_stand_in import Play, StandIn, idle, standing_in
from verger.bench import served, soak, soak_client
from verger.bench.chat import Target
from verger.bench.children import BenchError
from verger.bench.served import Own
from verger.bench.soak import NO_PID, measure
from verger.bench.soak_asks import Leave, plain
from verger.bench.soak_check import Outcome, judge
from verger.bench.soak_client import reply_to
from verger.bench.soak_report import MAX_BAD, SoakPlan, SoakReport
from verger.cli.machine import has_engine

pytestmark = pytest.mark.process

REQUESTS, AT_ONCE = 200, 20
LIMIT_S = 20.0
PLAN = SoakPlan(
    own=None, running=None, model="m", seed=1, at_once=AT_ONCE, requests=REQUESTS, minutes=None
)


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in is at rest at once; and whoever it refuses need not wait."""
    monkeypatch.setattr(served, "QUIET_S", 0.0)
    monkeypatch.setattr(served, "IDLE_POLL_S", 0.01)
    monkeypatch.setattr(soak, "REFUSED_PAUSE_S", 0.0)


async def soaked(stand_in: StandIn, plan: SoakPlan = PLAN) -> SoakReport:
    async with asyncio.timeout(LIMIT_S), standing_in(stand_in) as endpoint:
        return await measure(replace(plan, running=Target(endpoint, "m")), lambda text: None)


def playing(play: Play, every: int = 7, status: Callable[[], dict[str, object]] = idle) -> StandIn:
    """The play for every so manyth request after the first, which only greets."""
    return StandIn(lambda number: play if number % every == every - 1 else Play.RIGHT, status)


def test_a_server_that_answers_right_passes() -> None:
    report = asyncio.run(soaked(playing(Play.RIGHT)))
    counts = report.counts
    assert (report.requests, counts.answered + counts.left) == (REQUESTS, REQUESTS)
    assert counts.left > 0
    assert (report.is_sound, report.is_restored, report.examples) == (True, True, [])
    assert (report.memory, report.memory_skipped) == (None, NO_PID)
    assert report.are_copies_met is None, "nobody knows what this model has to say"


@pytest.mark.parametrize(
    ("play", "outcome", "example"),
    [
        (Play.CUT, Outcome.LOST, "cut off"),
        (Play.SILENT, Outcome.LOST, "the connection failed"),
        (Play.GARBLED, Outcome.MALFORMED, "not JSON"),
        (Play.ERROR, Outcome.FAILED, ": m"),
    ],
)
def test_each_misbehaviour_is_reported(play: Play, outcome: Outcome, example: str) -> None:
    report = asyncio.run(soaked(playing(play)))
    found = {name: n for name, n in vars_of(report).items() if name not in ("answered", "left")}
    assert 0 < found.pop(outcome.value) <= REQUESTS / 7
    assert not any(found.values())
    assert not report.is_sound
    assert example in report.examples[0]


def vars_of(report: SoakReport) -> dict[str, int]:
    counts = report.counts
    return {outcome.value: getattr(counts, outcome.value) for outcome in Outcome}


def test_a_server_that_is_full_loses_nothing() -> None:
    report = asyncio.run(soaked(playing(Play.FULL)))
    assert report.counts.overloaded > 0
    assert report.is_sound


def test_a_permit_that_is_not_given_back_is_reported() -> None:
    asked = count()
    report = asyncio.run(soaked(playing(Play.RIGHT, status=lambda: idle(min(next(asked), 3)))))
    assert report.is_sound
    assert [remains.endswith("permits of the key ada") for remains in report.remains] == [True]
    assert not report.is_restored


def test_a_server_that_does_nothing_right_any_more_is_given_up() -> None:
    plan = replace(PLAN, requests=10 * MAX_BAD)
    broken = StandIn(lambda number: Play.GARBLED if number else Play.RIGHT, idle)
    report = asyncio.run(soaked(broken, plan))
    assert MAX_BAD <= report.counts.malformed < MAX_BAD + AT_ONCE
    assert report.requests < 10 * MAX_BAD
    assert "a plain question is malformed" in report.remains[0]


def test_a_soak_needs_a_server_that_answers_and_tells_its_status() -> None:
    with pytest.raises(BenchError, match="the first question was malformed"):
        asyncio.run(soaked(StandIn(lambda number: Play.GARBLED, idle)))
    with pytest.raises(BenchError, match="tells no status"):
        asyncio.run(soaked(StandIn(lambda number: Play.RIGHT, dict)))


async def asked_in_vain(leave: Leave | None, limit_s: float) -> str:
    async with standing_in(StandIn(lambda number: Play.HANG, idle)) as endpoint:
        question = replace(plain("m"), leave=leave)
        reply = await reply_to(Target(endpoint, "m"), question, limit_s)
        return judge(question, reply).outcome.value + reply.failure


def test_a_request_ends_at_its_limit_or_when_its_client_leaves() -> None:
    assert asyncio.run(asked_in_vain(None, 0.05)) == "lostnot complete within 0 s"
    assert asyncio.run(asked_in_vain(Leave(None, 0.05), LIMIT_S)) == "left"
    assert asyncio.run(asked_in_vain(Leave(None, LIMIT_S), 0.05)) == "lostnot complete within 0 s"


def test_a_reply_that_does_not_end_is_given_up_at_its_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def reply_size() -> int:
        async with standing_in(StandIn(lambda number: Play.RIGHT, idle)) as endpoint:
            return len((await reply_to(Target(endpoint, "m"), plain("m"), LIMIT_S)).body)

    async def failure_at(bound: int) -> str:
        monkeypatch.setattr(soak_client, "MAX_REPLY_BYTES", bound)
        async with standing_in(StandIn(lambda number: Play.RIGHT, idle)) as endpoint:
            return (await reply_to(Target(endpoint, "m"), plain("m"), LIMIT_S)).failure

    size = asyncio.run(reply_size())
    assert asyncio.run(failure_at(size)) == ""
    assert "more than" in asyncio.run(failure_at(size - 1))


@pytest.mark.mlx
@pytest.mark.timeout(300)
@pytest.mark.skipif(not has_engine(), reason="the server needs the engine")
def test_a_real_server_answers_all_and_keeps_nothing() -> None:
    plan = replace(PLAN, own=Own("nano", 16), model="nano", requests=80)
    told: list[str] = []
    report = asyncio.run(measure(plan, told.append))
    print(report)
    assert report.requests == 80
    assert report.counts.left > 5
    assert report.is_sound, report.examples
    assert report.are_copies_met, report.examples
    assert report.is_restored, report.remains
    assert report.memory is not None
    assert report.memory.engine.peak_bytes > report.memory.gateway.peak_bytes > 10 * 2**20
