"""What the gateway does with an engine's frames; the engine is played by the test."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from tests.fakes import READY, FakeEngine, FakeEngines, FakeTime, settle
from verger.errors import ContextLengthExceeded, EngineUnavailable, Overloaded
from verger.gateway.engine_client import EngineClient, EngineState, Event, Generation
from verger.messages import (
    Cancel,
    Drain,
    Finished,
    FinishReason,
    Hello,
    Logprob,
    Progress,
    Rejected,
    RejectReason,
    RowTokens,
    Stats,
    Submit,
    ToEngine,
    Tokens,
)

pytestmark = pytest.mark.anyio

WAIT_S = 10.0
MAX_QUEUED_EVENTS = 5
SUBMIT = Submit(request_id=0, prompt=[1, 2, 3], max_tokens=10, stop_ids=[])


@dataclass(slots=True)
class Gateway:
    """A started client, the engine it talks to, and their time."""

    client: EngineClient
    engines: FakeEngines
    engine: FakeEngine


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    engines, time = FakeEngines(), FakeTime()
    client = EngineClient(
        ["engine"],
        Hello(1, 5),
        max_queued_events=MAX_QUEUED_EVENTS,
        spawn=engines.spawn,
        clock=time.clock,
        sleep=time.sleep,
    )
    await client.start()
    engine = await engines.next_ready()
    await client.wait_ready(WAIT_S)
    yield Gateway(client, engines, engine)
    engines.exit_all()
    await client.stop(drain_s=0.0)


def finish(request_id: int, reason: FinishReason = FinishReason.STOP) -> Finished:
    return Finished(request_id, reason, prompt_tokens=3, completion_tokens=2)


async def sent_until_stop(gateway: Gateway) -> list[ToEngine]:
    """What the engine has been sent, and is sent when the client stops."""
    stopping = asyncio.create_task(gateway.client.stop(WAIT_S))
    frames = [await gateway.engine.receive()]
    while frames[-1] != Drain():
        frames.append(await gateway.engine.receive())
    gateway.engine.exit()
    await stopping
    return frames


async def collect(generation: Generation) -> list[Event]:
    return [event async for event in generation]


async def test_events_of_a_request_arrive_in_order(gateway: Gateway) -> None:
    async with gateway.client.generate(SUBMIT) as generation:
        sent = await gateway.engine.receive()
        assert isinstance(sent, Submit)
        assert sent.prompt == SUBMIT.prompt
        gateway.engine.send(Progress(sent.request_id, 3, 3))
        assert await anext(generation) == Progress(sent.request_id, 3, 3)
        gateway.engine.send(Tokens([RowTokens(sent.request_id, [7])]))
        assert await anext(generation) == RowTokens(sent.request_id, [7])
        gateway.engine.send(finish(sent.request_id))
        assert await collect(generation) == [finish(sent.request_id)]
    assert gateway.client.pending == 0


async def test_one_frame_serves_all_its_requests(gateway: Gateway) -> None:
    client, engine = gateway.client, gateway.engine
    async with client.generate(SUBMIT) as first, client.generate(SUBMIT) as second:
        a, b = first.request_id, second.request_id
        assert a != b
        engine.send(Tokens([RowTokens(a, [7]), RowTokens(b, [8])]), finish(b), finish(a))
        assert await collect(first) == [RowTokens(a, [7]), finish(a)]
        assert await collect(second) == [RowTokens(b, [8]), finish(b)]


async def test_tokens_that_wait_are_merged_and_only_the_last_progress_stays(
    gateway: Gateway,
) -> None:
    async with gateway.client.generate(SUBMIT) as generation:
        id_ = generation.request_id
        gateway.engine.send(
            Progress(id_, 1, 3),
            Progress(id_, 3, 3),
            Tokens([RowTokens(id_, [7], [Logprob(-0.5)])]),
            Tokens([RowTokens(id_, [8], [Logprob(-1.0)])]),
            finish(id_),
        )
        await settle()
        assert await collect(generation) == [
            Progress(id_, 3, 3),
            RowTokens(id_, [7, 8], [Logprob(-0.5), Logprob(-1.0)]),
            finish(id_),
        ]


async def test_leaving_early_sends_exactly_one_cancel(gateway: Gateway) -> None:
    async with gateway.client.generate(SUBMIT) as generation:
        pass
    async with gateway.client.generate(SUBMIT) as other:
        pass
    frames = [await gateway.engine.receive() for _ in range(4)]
    assert [type(frame) for frame in frames] == [Submit, Cancel, Submit, Cancel]
    assert frames[1] == Cancel(generation.request_id)
    assert frames[3] == Cancel(other.request_id)
    assert gateway.client.pending == 0


async def test_leaving_after_the_end_sends_none(gateway: Gateway) -> None:
    async with gateway.client.generate(SUBMIT) as generation:
        gateway.engine.send(finish(generation.request_id))
        await collect(generation)
    async with gateway.client.generate(SUBMIT) as unread:
        gateway.engine.send(finish(unread.request_id))
        await settle()
    sent = await sent_until_stop(gateway)
    assert [type(frame) for frame in sent] == [Submit, Submit, Drain]


async def test_a_cancelled_task_cancels_its_request(gateway: Gateway) -> None:
    async def consume() -> None:
        async with gateway.client.generate(SUBMIT) as generation:
            await collect(generation)

    task = asyncio.create_task(consume())
    assert isinstance(await gateway.engine.receive(), Submit)
    task.cancel()
    assert isinstance(await gateway.engine.receive(), Cancel)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_arrives_after_leaving_is_ignored(gateway: Gateway) -> None:
    async with gateway.client.generate(SUBMIT) as gone:
        pass
    async with gateway.client.generate(SUBMIT) as generation:
        id_ = generation.request_id
        gateway.engine.send(Tokens([RowTokens(gone.request_id, [7]), RowTokens(id_, [8])]))
        gateway.engine.send(Rejected(gone.request_id, RejectReason.QUEUE_FULL))
        gateway.engine.send(finish(gone.request_id, FinishReason.CANCELLED), finish(id_))
        assert await collect(generation) == [RowTokens(id_, [8]), finish(id_)]


async def test_a_consumer_that_falls_behind_is_cancelled_and_told(gateway: Gateway) -> None:
    """At the bound nothing happens, one more event is too many; others do not notice."""
    client, engine = gateway.client, gateway.engine
    async with client.generate(SUBMIT) as slow, client.generate(SUBMIT) as other:
        assert [type(await engine.receive()) for _ in range(2)] == [Submit, Submit]
        for token_id in range(MAX_QUEUED_EVENTS):
            engine.send(Tokens([RowTokens(slow.request_id, [token_id])]))
        await settle()
        assert client.pending == 2
        engine.send(Tokens([RowTokens(slow.request_id, [99]), RowTokens(other.request_id, [7])]))
        assert await engine.receive() == Cancel(slow.request_id)
        engine.send(finish(other.request_id))
        assert len(await collect(other)) == 2
        assert await anext(slow) == RowTokens(slow.request_id, list(range(MAX_QUEUED_EVENTS)))
        with pytest.raises(Overloaded, match="not read"):
            await anext(slow)
    assert await sent_until_stop(gateway) == [Drain()], "leaving sends no second Cancel"


async def test_the_end_reaches_a_consumer_whose_queue_is_full(gateway: Gateway) -> None:
    async with gateway.client.generate(SUBMIT) as generation:
        for token_id in range(MAX_QUEUED_EVENTS):
            gateway.engine.send(Tokens([RowTokens(generation.request_id, [token_id])]))
        gateway.engine.send(finish(generation.request_id))
        await settle()
        assert (await collect(generation))[-1] == finish(generation.request_id)


async def test_how_much_was_cached_survives_the_merging_of_progress(gateway: Gateway) -> None:
    """The first Progress says it; the end says it again."""
    async with gateway.client.generate(SUBMIT) as generation:
        id_ = generation.request_id
        assert generation.cached_tokens is None
        gateway.engine.send(Progress(id_, 2, 3, 2), Progress(id_, 3, 3))
        await settle()
        assert await anext(generation) == Progress(id_, 3, 3)
        assert generation.cached_tokens == 2
    async with gateway.client.generate(SUBMIT) as generation:
        gateway.engine.send(Finished(generation.request_id, FinishReason.STOP, 3, 2, 1))
        await collect(generation)
        assert generation.cached_tokens == 1


@pytest.mark.parametrize(
    ("reason", "error", "words"),
    [
        (RejectReason.TOO_LONG, ContextLengthExceeded, "1000 tokens.*resulted in 3 tokens"),
        (RejectReason.QUEUE_FULL, Overloaded, "waiting"),
        (RejectReason.DRAINING, EngineUnavailable, "shutting down"),
    ],
)
async def test_a_rejection_is_raised_where_the_answer_is_read(
    gateway: Gateway, reason: RejectReason, error: type[Exception], words: str
) -> None:
    async with gateway.client.generate(SUBMIT) as generation:
        gateway.engine.send(Rejected(generation.request_id, reason))
        with pytest.raises(error, match=words):
            await anext(generation)
        assert gateway.client.pending == 0


async def test_the_engines_death_fails_every_pending_request_at_once(gateway: Gateway) -> None:
    client, engine = gateway.client, gateway.engine
    async with client.generate(SUBMIT) as first, client.generate(SUBMIT) as second:
        engine.send(Tokens([RowTokens(first.request_id, [7])]))
        await settle()
        engine.exit(-9)
        assert await anext(first) == RowTokens(first.request_id, [7])
        for generation in (first, second):
            with pytest.raises(EngineUnavailable, match="restarted"):
                await anext(generation)
        assert client.pending == 0
        assert client.state is EngineState.RESTARTING
        with pytest.raises(EngineUnavailable):
            await client.generate(SUBMIT).__aenter__()


async def test_statistics_are_the_living_engines(gateway: Gateway) -> None:
    stats = Stats(1, 2, 3, 4, 5, 6, 7, 8)
    gateway.engine.send(stats)
    await settle()
    assert gateway.client.stats == stats
    gateway.engine.exit(1)
    await settle()
    assert gateway.client.stats is None
    assert gateway.client.ready == READY


@pytest.mark.parametrize(
    "defect",
    [
        Submit(request_id=0, prompt=[], max_tokens=1, stop_ids=[]),
        Submit(request_id=0, prompt=[1], max_tokens=0, stop_ids=[]),
    ],
)
async def test_a_submit_that_would_crash_the_engine_never_leaves(
    gateway: Gateway, defect: Submit
) -> None:
    with pytest.raises(AssertionError):
        await gateway.client.generate(defect).__aenter__()
    assert gateway.client.pending == 0
