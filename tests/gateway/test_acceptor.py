"""How many connections there may be, in total and of one client."""

import asyncio
import json
import resource
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.gateway.harness import ready_gateway
from tests.gateway.test_connection import all_of, connected, get, next_reply
from verger.gateway.acceptor import (
    MAX_CLIENT_CONNECTIONS,
    MAX_CONNECTIONS,
    REFUSAL_LOG_S,
    Crowd,
)
from verger.gateway.server import raise_open_files
from verger.gateway.submit_queue import MAX_QUEUED


def test_one_client_has_so_many_places_and_no_more() -> None:
    crowd = Crowd(MAX_CONNECTIONS, MAX_CLIENT_CONNECTIONS)
    places = [crowd.enter("10.0.0.1") for _ in range(MAX_CLIENT_CONNECTIONS)]
    assert all(places)
    assert crowd.enter("10.0.0.1") is None
    assert crowd.enter("10.0.0.2")

    for place in places[:1] * 2:
        assert place is not None
        place.leave()
    assert crowd.total == MAX_CLIENT_CONNECTIONS
    assert crowd.enter("10.0.0.1")
    assert crowd.enter("10.0.0.1") is None


def test_all_clients_together_have_so_many_places_and_no_more() -> None:
    crowd = Crowd(MAX_CONNECTIONS, MAX_CLIENT_CONNECTIONS)
    places = [crowd.enter(f"10.0.0.{index % 200}") for index in range(MAX_CONNECTIONS)]
    assert all(places)
    assert crowd.enter("10.0.1.1") is None

    for place in places:
        assert place is not None
        place.leave()
    assert crowd.total == 0
    assert crowd.enter("10.0.1.1")


def test_one_client_may_have_all_answers_that_wait() -> None:
    assert MAX_QUEUED + 16 + 2 < MAX_CLIENT_CONNECTIONS < MAX_CONNECTIONS


def test_refusals_are_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now_s = 0.0
    crowd = Crowd(0, 0, lambda: now_s)
    for _ in range(3):
        crowd.enter("10.0.0.1")
    assert caplog.text.count("event=too_many_connections client=10.0.0.1") == 1

    now_s = REFUSAL_LOG_S
    crowd.enter("10.0.0.1")
    assert "refused=4" in caplog.text


@pytest.mark.anyio
async def test_a_client_for_whom_there_is_no_place_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verger.gateway.server.MAX_CLIENT_CONNECTIONS", 3)
    async with ready_gateway(tmp_path) as (gateway, _), AsyncExitStack() as stack:
        pairs = [await stack.enter_async_context(connected(gateway)) for _ in range(3)]
        for reader, writer in pairs:
            writer.write(get())
            assert (await next_reply(reader))[0] == 200
        async with connected(gateway) as (refused, _):
            head, _, body = (await all_of(refused)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: " in head
        assert json.loads(body)["error"]["code"] == "overloaded"

        pairs[0][1].close()
        await _until(lambda: gateway.server.crowd.total < 3)
        async with connected(gateway) as (reader, writer):
            writer.write(get())
            assert (await next_reply(reader))[0] == 200


@pytest.mark.anyio
async def test_every_place_is_given_back(tmp_path: Path) -> None:
    """However a connection ends."""
    async with ready_gateway(tmp_path) as (gateway, _):
        for sent in (b"", b"GET", get(), b"nonsense\r\n\r\n", get("/" + "x" * 9_000)):
            async with connected(gateway) as (_, writer):
                writer.write(sent)
        await _until(lambda: gateway.server.crowd.total == 0)


async def _until(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110 (the server's own counter tells nobody)
        await asyncio.sleep(0)


def test_there_are_file_descriptors_for_all_of_them() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1]))
        raise_open_files(300)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, limits[1])
        raise_open_files(250)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, limits[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
