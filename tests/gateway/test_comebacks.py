"""Requests that have left and come back, as no provider answers; and clients that do not wait."""

import asyncio
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.gateway.offices import ask, busy_office, streamed_and_not, until
from tests.gateway.test_streams import FINAL, chat_stream
from verger.api.turn_request import TurnRequest
from verger.formats.conversation import Conversation, Message, Role
from verger.formats.harmony import render
from verger.gateway.answers import Asked, open_answer
from verger.gateway.edge import RequestRecord
from verger.gateway.principal import RoutePolicy
from verger.messages import Sampling

pytestmark = pytest.mark.anyio


# Coming back.


@pytest.mark.slow
@streamed_and_not
@pytest.mark.parametrize("play", ["500", "401", "400", "context-length", "cut", "no-response"])
async def test_where_the_provider_fails_it_is_answered_here(
    play: str, stream: bool, tmp_path: Path
) -> None:
    async with busy_office(tmp_path, play, RoutePolicy.ANY) as office:
        asking = asyncio.create_task(ask(office.gateway, stream))
        await office.until_queued()
        assert office.server.exchanges
        await office.answer_here()
        reply = await asking
        row = await office.row()
    reply.assert_served("local", "waits")
    assert (row["route"], row["cost_micro_usd"], row["finish"]) == ("local", 0, "stop")


@pytest.mark.slow
@streamed_and_not
async def test_so_is_one_that_had_waited_here(stream: bool, tmp_path: Path) -> None:
    async with busy_office(tmp_path, "500") as office:
        asking = asyncio.create_task(ask(office.gateway, stream))
        await office.until_queued()
        office.review()
        assert office.queued == 0
        await office.until_queued()
        office.review()
        assert office.queued == 1, "it leaves once"
        await office.answer_here()
        reply = await asking
        row = await office.row()
    reply.assert_served("local", "waits")
    assert (row["output_tokens"], row["finish"]) == (reply.usage["completion_tokens"], "stop")


@pytest.mark.slow
async def test_whoever_was_let_in_is_not_refused_when_it_comes_back(tmp_path: Path) -> None:
    async with busy_office(tmp_path, "500") as office:
        asking = asyncio.create_task(ask(office.gateway, stream=True))
        await office.until_queued()
        admission = office.gateway.service.admission
        admission.replace_limits(replace(admission.limits, max_wait_s=0.001))
        office.review()
        await office.until_queued()
        await office.answer_here()
        reply = await asking
    reply.assert_served("local", "waits")


@pytest.mark.slow
@streamed_and_not
async def test_an_exhausted_budget_brings_it_back(stream: bool, tmp_path: Path) -> None:
    async with busy_office(tmp_path, route=RoutePolicy.ANY, budget_usd=0.0) as office:
        asking = asyncio.create_task(ask(office.gateway, stream))
        await office.until_queued()
        await office.answer_here()
        (await asking).assert_served("local", "waits")
        await office.settled()
        assert office.server.exchanges == []


@pytest.mark.slow
async def test_where_nobody_can_answer_the_client_is_told_what_is_wrong_here(
    tmp_path: Path,
) -> None:
    async with busy_office(tmp_path, "500") as office:
        office.engine.die()
        await office.gateway.next_engine()
        response = await office.gateway.chat(stream=True)
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "engine_unavailable"
        too_much = await office.gateway.chat(messages=office.too_long())
        assert too_much.json()["error"]["code"] == "context_length_exceeded"
        await office.settled()


@pytest.mark.slow
@pytest.mark.parametrize(("play", "is_alive"), [("correct", True), ("500", False)])
async def test_heartbeats_do_not_hide_a_hung_engine_from_one_that_came_back(
    play: str, is_alive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verger.gateway.vitals.MAX_SILENCE_S", -1.0)
    async with busy_office(tmp_path, play, RoutePolicy.ANY) as office:
        service = office.gateway.service
        conversation = Conversation((Message(Role.USER, "hi"),))
        prompt = render(conversation, service.vocabulary)
        record = RequestRecord("id", arrived_s=service.monotonic_s())
        turn = TurnRequest(conversation, Sampling())
        asked = Asked(turn, prompt, service.keys.anonymous, record)
        async with open_answer(service, asked) as answer, aclosing(answer.pieces) as pieces:
            assert answer.is_alive(), "a cloud's deadlines are bounds enough"
            asking = asyncio.ensure_future(anext(pieces))
            await until(lambda: office.queued == 1 or asking.done())
            assert answer.is_alive() is is_alive
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)


# Clients that leave.


async def test_a_client_that_leaves_while_it_waits_is_forgotten(tmp_path: Path) -> None:
    async with busy_office(tmp_path) as office:
        async with chat_stream(office.gateway) as events:
            await events.next()
            await office.until_queued()
        await office.until_queued(0)
        asking = asyncio.create_task(office.gateway.chat())
        await office.until_queued()
        asking.cancel()
        await office.until_queued(0)
        office.review()
        await office.settled()
        assert office.server.exchanges == []


@pytest.mark.slow
@pytest.mark.parametrize("route", [RoutePolicy.PREFER_LOCAL, RoutePolicy.ANY])
async def test_a_client_that_leaves_closes_the_providers_stream_and_pays_for_what_it_got(
    route: RoutePolicy, tmp_path: Path
) -> None:
    """Whether the request had waited here before it left or not."""
    async with busy_office(tmp_path, "endless", route) as office:
        async with chat_stream(office.gateway) as events:
            if route is RoutePolicy.PREFER_LOCAL:
                await office.until_queued()
                office.review()
            deltas = 0
            while deltas < 3:
                chunk = await events.next()
                deltas += bool(chunk["choices"][0]["delta"].get("content"))
        exchange = await office.server.left.get()
        row = await office.row()
    assert exchange.tokens >= 3
    assert row["output_tokens"] >= 3, "by our own count"
    assert row["cost_micro_usd"] > 0
    assert (row["route"], row["reason"], row["finish"]) == ("cloud", "saturated", "client_gone")


@pytest.mark.slow
async def test_one_that_leaves_after_its_request_came_back_is_counted_too(tmp_path: Path) -> None:
    async with busy_office(tmp_path, "500") as office:
        async with chat_stream(office.gateway) as events:
            await office.until_queued()
            office.review()
            await office.until_queued()
            await office.taken.aclose()
            submit = await office.engine.submits.get()
            office.engine.say(submit, f"{FINAL}some words")
            while not (await events.next())["choices"][0]["delta"].get("content"):
                pass
        assert await office.engine.cancels.get()
        row = await office.row()
    assert (row["route"], row["finish"]) == ("local", "client_gone")
    assert row["output_tokens"] > len("some words")


async def test_a_client_that_leaves_before_the_provider_has_said_anything(tmp_path: Path) -> None:
    async with busy_office(tmp_path, "no-response", RoutePolicy.ANY) as office:
        asking = asyncio.create_task(office.gateway.chat())
        await until(lambda: bool(office.server.exchanges))
        asking.cancel()
        await office.server.left.get()
        row = await office.row()
    assert (row["output_tokens"], row["finish"]) == (0, "client_gone")
