"""Requests that wait for the engine: when they reach it, and every way in which they do not."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace

from tests.fakes import READY, FakeEngine, FakeEngines, FakeTime, settle
from verger.errors import EngineUnavailable, Overloaded
from verger.gateway.engine_client import EngineClient, EngineState, Generation
from verger.gateway.submit_queue import LOOK_AHEAD_ROWS
from verger.messages import (
    BACKGROUND,
    Cancel,
    Drain,
    Finished,
    FinishReason,
    Hello,
    Rejected,
    RejectReason,
    RowTokens,
    Submit,
    ToEngine,
    Tokens,
)

pytestmark = pytest.mark.anyio

WAIT_S = 10.0
MAX_ROWS = 1
PLACES = MAX_ROWS + LOOK_AHEAD_ROWS
MAX_QUEUED = 4
MAX_QUEUED_EVENTS = 5
SUBMIT = Submit(request_id=0, prompt=[1, 2, 3], max_tokens=10, stop_ids=[])
REFILL = replace(SUBMIT, max_tokens=0, priority=BACKGROUND)


@dataclass(slots=True)
class Requests:
    """A client, its engine, and the requests that a test has open."""

    client: EngineClient
    engines: FakeEngines
    engine: FakeEngine
    open: dict[int, AsyncExitStack] = field(default_factory=dict)

    async def ask(self, choices: int = 1) -> tuple[Generation, ...]:
        stack = AsyncExitStack()
        asked = self.client.generate_choices(SUBMIT, choices)
        generations = await stack.enter_async_context(asked)
        self.open[generations[0].request_id] = stack
        return generations

    async def leave(self, generation: Generation) -> None:
        await self.open.pop(generation.request_id).aclose()

    async def submitted(self) -> list[int]:
        """The ids of all submissions since the last time, with a Cancel to mark the end."""
        async with self.client.prefill(REFILL) as mark:
            pass
        frames: list[ToEngine] = []
        while Cancel(mark.request_id) not in frames:
            frames.append(await self.engine.receive())
        submits = [frame for frame in frames if isinstance(frame, Submit)]
        return [s.request_id for s in submits if s.priority != BACKGROUND]

    def finish(self, *generations: Generation) -> None:
        for generation in generations:
            self.engine.send(Finished(generation.request_id, FinishReason.STOP, 3, 2))


@pytest.fixture
async def requests() -> AsyncIterator[Requests]:
    engines, time = FakeEngines(), FakeTime()
    client = EngineClient(
        ["engine"],
        Hello(1, 5),
        max_queued=MAX_QUEUED,
        max_queued_events=MAX_QUEUED_EVENTS,
        spawn=engines.spawn,
        clock=time.clock,
        sleep=time.sleep,
    )
    await client.start()
    engine = await engines.next_ready(replace(READY, max_rows=MAX_ROWS))
    await client.wait_ready(WAIT_S)
    opened = Requests(client, engines, engine)
    yield opened
    for stack in opened.open.values():
        await stack.aclose()
    engines.exit_all()
    await client.stop(drain_s=0.0)


def ids(*generations: Generation) -> list[int]:
    return [generation.request_id for generation in generations]


async def test_the_rest_waits_and_follows_in_order(requests: Requests) -> None:
    asked = [(await requests.ask())[0] for _ in range(PLACES + 3)]
    assert await requests.submitted() == ids(*asked[:PLACES])
    assert (requests.client.pending, requests.client.queued) == (PLACES, 3)

    requests.finish(asked[1])
    await settle()
    assert await requests.submitted() == ids(asked[PLACES])

    requests.finish(asked[0], asked[2])
    await settle()
    assert await requests.submitted() == ids(*asked[PLACES + 1 :])
    assert (requests.client.pending, requests.client.queued) == (PLACES, 0)


async def test_a_queue_that_is_full_refuses_and_says_when_to_come_back(requests: Requests) -> None:
    asked = [(await requests.ask())[0] for _ in range(PLACES + MAX_QUEUED)]
    assert requests.client.queued == MAX_QUEUED
    with pytest.raises(Overloaded) as refusal:
        await requests.ask()
    assert refusal.value.retry_after_s

    await requests.leave(asked[-1])
    await requests.ask()
    assert requests.client.queued == MAX_QUEUED


async def test_choices_count_each_and_stay_together(requests: Requests) -> None:
    (first,) = await requests.ask()
    wide = await requests.ask(PLACES)
    with pytest.raises(Overloaded):
        await requests.ask(MAX_QUEUED - PLACES + 1)
    assert requests.client.queued == PLACES
    assert await requests.submitted() == ids(first)

    requests.finish(first)
    await settle()
    assert await requests.submitted() == ids(wide[0])
    assert requests.client.pending == PLACES
    (last,) = await requests.ask()
    requests.finish(wide[1])
    await settle()
    assert await requests.submitted() == ids(last)


async def test_more_choices_than_places_are_served_all_the_same(requests: Requests) -> None:
    (first,) = await requests.ask()
    wide = await requests.ask(PLACES + 1)
    assert await requests.submitted() == ids(first)
    requests.finish(first)
    await settle()
    assert await requests.submitted() == ids(wide[0])


async def test_who_leaves_while_it_waits_never_reaches_the_engine(requests: Requests) -> None:
    asked = [(await requests.ask())[0] for _ in range(PLACES + 2)]
    await requests.leave(asked[PLACES])
    assert requests.client.queued == 1
    requests.finish(asked[0])
    await settle()
    assert await requests.submitted() == ids(*asked[:PLACES], asked[PLACES + 1])


async def test_a_wide_request_that_leaves_lets_those_behind_it_pass(requests: Requests) -> None:
    (first,) = await requests.ask()
    wide = await requests.ask(PLACES)
    (behind,) = await requests.ask()
    await requests.leave(wide[0])
    assert await requests.submitted() == ids(first, behind)


async def test_every_end_makes_room_for_the_next(requests: Requests) -> None:
    """Leaving, a rejection, and a consumer that fell behind; Finished is tested above."""
    left, rejected, slow = [(await requests.ask())[0] for _ in range(PLACES)]
    waiting = [(await requests.ask())[0] for _ in range(3)]
    await requests.submitted()

    await requests.leave(left)
    assert await requests.submitted() == ids(waiting[0])
    requests.engine.send(Rejected(rejected.request_id, RejectReason.QUEUE_FULL))
    await settle()
    assert await requests.submitted() == ids(waiting[1])
    for token_id in range(MAX_QUEUED_EVENTS + 1):
        requests.engine.send(Tokens([RowTokens(slow.request_id, [token_id])]))
    await settle()
    assert await requests.submitted() == ids(waiting[2])


async def test_a_drain_first_serves_those_that_wait(requests: Requests) -> None:
    """An engine that drains takes nothing: it hears of the drain when nobody waits any more."""
    client, engine = requests.client, requests.engine
    asked = [(await requests.ask())[0] for _ in range(PLACES + 1)]
    assert await requests.submitted() == ids(*asked[:PLACES])
    stopping = asyncio.create_task(client.stop(WAIT_S))
    await settle()
    with pytest.raises(EngineUnavailable, match="shutting down"):
        await requests.ask()
    assert client.state is EngineState.READY, "heartbeats go on"

    requests.finish(asked[0])
    last = await engine.receive()
    assert isinstance(last, Submit)
    assert last.request_id == asked[PLACES].request_id
    assert await engine.receive() == Drain()
    requests.finish(asked[PLACES])
    assert [event async for event in asked[PLACES]]
    engine.exit()
    await stopping


@pytest.mark.slow
async def test_a_drain_that_takes_too_long_fails_those_that_wait(requests: Requests) -> None:
    asked = [(await requests.ask())[0] for _ in range(PLACES + 1)]
    await requests.client.stop(drain_s=0.0)
    for generation in asked:
        with pytest.raises(EngineUnavailable, match="shutting down"):
            await anext(generation)
    assert (requests.client.pending, requests.client.queued) == (0, 0)


async def test_the_engines_death_fails_those_that_wait(requests: Requests) -> None:
    client = requests.client
    asked = [(await requests.ask())[0] for _ in range(PLACES + 2)]
    requests.engine.exit(-9)
    for generation in asked:
        with pytest.raises(EngineUnavailable, match="restarted"):
            await anext(generation)
    assert (client.pending, client.queued) == (0, 0)


async def test_background_work_takes_no_place(requests: Requests) -> None:
    async with requests.client.prefill(REFILL) as refill:
        asked = [(await requests.ask())[0] for _ in range(PLACES)]
        assert (requests.client.pending, requests.client.queued) == (PLACES, 0)
        assert await requests.submitted() == ids(*asked)
        requests.finish(refill)
        assert [type(event) async for event in refill] == [Finished]


async def test_background_work_is_cancelled_by_a_drain(requests: Requests) -> None:
    async with requests.client.prefill(REFILL) as refill:
        assert isinstance(await requests.engine.receive(), Submit)
        stopping = asyncio.create_task(requests.client.stop(WAIT_S))
        assert await requests.engine.receive() == Cancel(refill.request_id)
        assert await requests.engine.receive() == Drain()
        with pytest.raises(EngineUnavailable, match="shutting down"):
            await anext(refill)
        requests.engine.exit()
        await stopping
    with pytest.raises(EngineUnavailable):
        await requests.client.prefill(REFILL).__aenter__()


async def test_background_work_ends_with_the_engine(requests: Requests) -> None:
    async with requests.client.prefill(REFILL) as refill:
        requests.engine.exit(-9)
        with pytest.raises(EngineUnavailable, match="restarted"):
            await anext(refill)
    with pytest.raises(EngineUnavailable):
        await requests.client.prefill(REFILL).__aenter__()


@pytest.mark.parametrize(
    "defect",
    [replace(REFILL, max_tokens=1), replace(REFILL, priority=0), replace(REFILL, prompt=[])],
)
async def test_only_prefills_run_in_the_background(requests: Requests, defect: Submit) -> None:
    with pytest.raises(AssertionError):
        await requests.client.prefill(defect).__aenter__()
