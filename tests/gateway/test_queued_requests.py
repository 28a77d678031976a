"""Requests that wait for their turn, as their clients see it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.gateway.harness import MAX_ROWS, Gateway, PlayedEngine, chat_body, ready_gateway
from tests.gateway.test_streams import FINAL, chat_stream, deltas_of
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
