"""Requests that leave for a provider before their first delta, and those that never may."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fault_plays import ANSWER, USAGE
from tests.gateway.harness import MODEL_ID
from tests.gateway.offices import LIMITS, Office, ask, busy_office, streamed_and_not
from tests.gateway.test_streams import FINAL, chat_stream
from verger.gateway.principal import Priority, RoutePolicy

pytestmark = pytest.mark.anyio


# Leaving.


@pytest.mark.slow
@streamed_and_not
async def test_a_request_that_waits_leaves_when_it_would_be_too_late(
    stream: bool, tmp_path: Path
) -> None:
    async with busy_office(tmp_path) as office:
        asking = asyncio.create_task(ask(office.gateway, stream))
        await office.until_queued()
        office.review()
        reply = await asking
        row = await office.row()
        assert office.engine.submits.empty(), "the engine has never heard of it"

    reply.assert_served("cloud:first", "saturated")
    assert reply.headers["x-verger-served-by"] == ("local" if stream else "cloud:first")
    assert reply.headers["x-verger-reason"] == ("waits" if stream else "saturated")
    assert reply.usage["queue_ms"] >= int(reply.headers["x-verger-queue-ms"])
    assert reply.usage["queue_ms"] > 0
    assert reply.usage["cost_usd"] == USAGE["cost"]
    assert (row["route"], row["provider"], row["reason"]) == ("cloud", "first", "saturated")
    assert (row["output_tokens"], row["finish"]) == (len(ANSWER), "stop")


@pytest.mark.slow
@streamed_and_not
async def test_a_request_that_comes_too_late_is_never_queued(stream: bool, tmp_path: Path) -> None:
    async with busy_office(tmp_path, route=RoutePolicy.ANY) as office:
        reply = await ask(office.gateway, stream)
        await office.settled()
    reply.assert_served("cloud:first", "saturated")
    assert reply.headers["x-verger-served-by"] == "cloud:first"


@pytest.mark.slow
@streamed_and_not
async def test_one_whose_engine_dies_before_its_first_delta_leaves(
    stream: bool, tmp_path: Path
) -> None:
    async with busy_office(tmp_path) as office:
        await office.taken.aclose()
        asking = asyncio.create_task(ask(office.gateway, stream))
        submit = await office.engine.submits.get()
        office.engine.say(submit, "<|channel|>")
        office.engine.die()
        reply = await asking
        row = await office.row()
    reply.assert_served("cloud:first", "engine-down")
    assert (row["route"], row["reason"]) == ("cloud", "engine-down")


@pytest.mark.slow
@streamed_and_not
async def test_one_whose_engine_dies_after_a_delta_stays_and_fails(
    stream: bool, tmp_path: Path
) -> None:
    async with busy_office(tmp_path) as office:
        await office.taken.aclose()
        if stream:
            await _dies_in_a_stream(office)
        else:
            await _dies_in_a_whole_answer(office)
        await office.settled()
        assert office.server.exchanges == []


async def _dies_in_a_stream(office: Office) -> None:
    async with chat_stream(office.gateway) as events:
        await events.next()
        office.engine.say(await office.engine.submits.get(), f"{FINAL}half")
        assert (await events.next())["choices"][0]["delta"] == {"content": "half"}
        office.engine.die()
        assert (await events.next())["error"]["code"] == "engine_unavailable"
        with pytest.raises(httpx.RemoteProtocolError):
            await events.next()


async def _dies_in_a_whole_answer(office: Office) -> None:
    asking = asyncio.create_task(office.gateway.chat())
    office.engine.say(await office.engine.submits.get(), f"{FINAL}half")
    office.engine.die()
    response = await asking
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_unavailable")


@pytest.mark.slow
@streamed_and_not
async def test_a_prompt_that_is_too_long_for_this_machine_leaves(
    stream: bool, tmp_path: Path
) -> None:
    async with busy_office(tmp_path) as office:
        reply = await ask(office.gateway, stream, messages=office.too_long())
        await office.settled()
    reply.assert_served("cloud:first", "too-long-for-here")


@pytest.mark.slow
@streamed_and_not
@pytest.mark.parametrize("priority", list(Priority))
async def test_one_that_would_be_refused_for_its_wait_leaves(
    priority: Priority, stream: bool, tmp_path: Path
) -> None:
    """So does a batch request, which waits for as long as it may."""
    impatient = replace(LIMITS, max_wait_s=2.0)
    async with busy_office(tmp_path, limits=impatient, priority=priority) as office:
        reply = await ask(office.gateway, stream)
        await office.settled()
    reply.assert_served("cloud:first", "wait-too-long")


async def test_a_batch_request_waits_though_it_may_leave(tmp_path: Path) -> None:
    batch = {"priority": Priority.BATCH, "route": RoutePolicy.ANY}
    async with busy_office(tmp_path, **batch) as office:  # type: ignore[arg-type]
        asking = asyncio.create_task(ask(office.gateway, True))
        await office.until_queued()
        office.review()
        assert office.queued == 1
        await office.answer_here()
        (await asking).assert_served("local", "waits")
        assert office.server.exchanges == []


# Staying.

HOME = {"x-verger-route": "local-only"}

Staying = Callable[[Office], Awaitable[httpx.Response]]


async def waits(office: Office) -> httpx.Response:
    asking = asyncio.create_task(_ask_home(office))
    await office.until_queued()
    office.review()
    assert office.queued == 1
    await office.answer_here()
    return await asking


async def dies(office: Office) -> httpx.Response:
    await office.taken.aclose()
    asking = asyncio.create_task(_ask_home(office))
    await office.engine.submits.get()
    office.engine.die()
    return await asking


async def dies_while_it_waits(office: Office) -> httpx.Response:
    asking = asyncio.create_task(_ask_home(office))
    await office.until_queued()
    office.engine.die()
    return await asking


async def is_too_long(office: Office) -> httpx.Response:
    return await _ask_home(office, messages=office.too_long())


async def would_wait_too_long(office: Office) -> httpx.Response:
    admission = office.gateway.service.admission
    admission.limits = replace(admission.limits, max_wait_s=2.0)
    return await _ask_home(office)


async def _ask_home(office: Office, **fields: Any) -> httpx.Response:
    body = {"model": MODEL_ID, "messages": [{"role": "user", "content": "hi"}], **fields}
    policy = office.gateway.service.keys.anonymous.route
    headers = {} if policy is RoutePolicy.LOCAL_ONLY else HOME
    return await office.gateway.http.post("/v1/chat/completions", json=body, headers=headers)


@pytest.mark.slow
@pytest.mark.parametrize("route", [RoutePolicy.LOCAL_ONLY, RoutePolicy.ANY], ids=["key", "header"])
@pytest.mark.parametrize(
    ("staying", "status"),
    [
        (waits, 200),
        (dies, 503),
        (dies_while_it_waits, 503),
        (is_too_long, 400),
        (would_wait_too_long, 503),
    ],
)
async def test_what_stays_at_home_by_its_key_or_its_header_never_leaves(
    staying: Staying, status: int, route: RoutePolicy, tmp_path: Path
) -> None:
    async with busy_office(tmp_path, route=route) as office:
        response = await staying(office)
        assert response.status_code == status, response.text
        await office.settled()
        assert office.server.exchanges == []
