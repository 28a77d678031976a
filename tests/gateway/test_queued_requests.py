"""Requests that wait for their turn, as their clients see it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.gateway.harness import MAX_ROWS, Gateway, PlayedEngine, chat_body, ready_gateway
from tests.gateway.test_streams import FINAL, chat_stream, deltas_of
from verger.gateway.rates import Rates
from verger.gateway.routing import Limits
from verger.gateway.submit_queue import LOOK_AHEAD_ROWS, MAX_QUEUED
from verger.messages import Submit

pytestmark = pytest.mark.anyio

Served = tuple[Gateway, PlayedEngine]

PLACES = MAX_ROWS + LOOK_AHEAD_ROWS


@pytest.fixture
async def busy(tmp_path: Path) -> AsyncIterator[tuple[Gateway, PlayedEngine, Submit]]:
    """A gateway whose engine has all that it is given; one of its submissions."""
    async with ready_gateway(tmp_path, heartbeat_s=0.02) as (gateway, engine):
        submit = Submit(request_id=0, prompt=[1], max_tokens=1, stop_ids=[])
        async with AsyncExitStack() as stack:
            for _ in range(PLACES):
                await stack.enter_async_context(gateway.service.engine.generate(submit))
            submits = [await engine.submits.get() for _ in range(PLACES)]
            yield gateway, engine, submits[0]


async def test_a_stream_that_waits_has_its_headers_and_heartbeats(
    busy: tuple[Gateway, PlayedEngine, Submit],
) -> None:
    gateway, engine, running = busy
    async with chat_stream(gateway) as events:
        assert "x-verger-queue-ms" in events.response.headers
        assert deltas_of([await events.next()]) == [{"role": "assistant", "content": ""}]
        for _ in range(3):
            assert deltas_of([await events.next()]) == [{}]
        assert (await gateway.http.get("/v1/status")).json()["rows"]["queued"] == 1
        assert engine.submits.empty()

        engine.finish(running)
        await engine.answer(FINAL + "hi<|return|>")
        shown = [delta for delta in deltas_of(await events.rest()) if delta]
    assert shown == [{"content": "hi"}]


async def test_a_client_that_leaves_while_it_waits_costs_the_engine_nothing(
    busy: tuple[Gateway, PlayedEngine, Submit],
) -> None:
    gateway, engine, running = busy
    async with chat_stream(gateway) as events:
        await events.next()
    while (await gateway.http.get("/v1/status")).json()["rows"]["queued"]:
        pass
    asking = asyncio.create_task(gateway.chat(messages=[{"role": "user", "content": "second"}]))
    engine.finish(running)
    submit = await engine.answer(FINAL + "hi<|return|>")

    assert gateway.service.vocabulary.decode(submit.prompt).endswith("secondassistant")
    assert (await asking).status_code == 200
    assert engine.cancels.empty()


async def test_a_full_queue_is_a_503_before_the_stream_begins(
    busy: tuple[Gateway, PlayedEngine, Submit],
) -> None:
    gateway, _, running = busy
    async with AsyncExitStack() as stack:
        for _ in range(MAX_QUEUED):
            await stack.enter_async_context(gateway.service.engine.generate(running))
        response = await gateway.chat(stream=True)

    assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")
    assert int(response.headers["retry-after"]) >= 1


async def test_a_wait_that_is_too_long_is_a_503_that_says_so(tmp_path: Path) -> None:
    limits = Limits(ttft_objective_s=1.0, max_wait_s=2.0)
    async with (
        ready_gateway(tmp_path, limits=limits) as (gateway, engine),
        AsyncExitStack() as stack,
    ):
        submit = Submit(request_id=0, prompt=[1], max_tokens=2_000, stop_ids=[])
        for _ in range(PLACES):
            await stack.enter_async_context(gateway.service.engine.generate(submit))
        gateway.service.engine._rates.rates = Rates(step_s=0.01, is_measured=True)
        response = await gateway.chat(stream=True)
        status = (await gateway.http.get("/v1/status")).json()

    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (503, "overloaded")
    assert "spill.max_wait_s = 2" in error["message"]
    assert 1 <= int(response.headers["retry-after"]) <= 60
    assert status["admission"]["refused"] == 1
    assert status["admission"]["step_ms"] is not None


async def test_the_usage_of_a_stream_says_how_long_it_has_waited(
    busy: tuple[Gateway, PlayedEngine, Submit],
) -> None:
    """The headers were sent before that was known."""
    gateway, engine, running = busy
    async with chat_stream(gateway, stream_options={"include_usage": True}) as events:
        for _ in range(3):
            await events.next()
        engine.finish(running)
        await engine.answer(FINAL + "hi<|return|>")
        *_, last = await events.rest()
        waited_ms = int(events.response.headers["x-verger-queue-ms"])

    assert last["usage"]["queue_ms"] >= waited_ms + 20, "two heartbeats of 20 ms were heard"
    assert last["usage"]["served_by"] == events.response.headers["x-verger-served-by"] == "local"
    assert last["usage"]["reason"] == "unmeasured"


@pytest.mark.parametrize(("header", "priority"), [(None, 0), ("interactive", 0), ("batch", 1)])
async def test_the_class_of_a_request_reaches_the_engine(
    served: Served, header: str | None, priority: int
) -> None:
    gateway, engine = served
    headers = {"x-verger-priority": header} if header else {}
    asking = asyncio.create_task(
        gateway.http.post("/v1/chat/completions", json=chat_body(), headers=headers)
    )
    submit = await engine.answer(FINAL + "hi<|return|>")

    assert (await asking).status_code == 200
    assert submit.priority == priority


async def test_an_unknown_class_is_refused_and_named(served: Served) -> None:
    gateway, _ = served
    headers = {"x-verger-priority": "urgent"}
    response = await gateway.http.post("/v1/chat/completions", json=chat_body(), headers=headers)

    assert response.status_code == 400
    assert "x-verger-priority" in response.json()["error"]["message"]
