"""However a request ends, its key may make the next one: every exit is walked."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.harness import Gateway, PlayedEngine, chat_body, choices_of, ready_gateway
from tests.gateway.test_streams import FINAL, Events
from tests.keys import bearer, make_key
from verger.gateway.receive import MAX_BODY_BYTES
from verger.messages import Rejected, RejectReason

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"


@pytest.fixture
async def narrow(tmp_path: Path) -> AsyncIterator[tuple[Gateway, PlayedEngine]]:
    """A gateway whose client has a key for one request at a time; every test leaves none."""
    file = tmp_path / "verger.db"
    secret = make_key(file, "ada", max_parallel=1)
    async with ready_gateway(tmp_path, database_file=file) as (gateway, engine):
        gateway.http.headers.update(bearer(secret))
        yield gateway, engine
        (held,) = gateway.service.keys.held
        # What has just been cut off is still being cleaned up.
        while held.running:
            await gateway.http.get("/livez")
        assert (await gateway.http.get("/v1/models")).status_code == 200


Narrow = tuple[Gateway, PlayedEngine]


@asynccontextmanager
async def open_stream(gateway: Gateway) -> AsyncIterator[httpx.Response]:
    async with gateway.http.stream("POST", CHAT, json=chat_body(stream=True)) as response:
        assert response.status_code == 200
        yield response


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"n": 2}])
async def test_an_answer(narrow: Narrow, fields: dict[str, Any]) -> None:
    gateway, engine = narrow
    asking = asyncio.create_task(gateway.chat(**fields))
    for submit in choices_of(await engine.submits.get()):
        engine.say(submit, FINAL + "hello<|return|>")
        engine.finish(submit)
    assert (await asking).status_code == 200


async def test_a_request_that_the_engine_does_not_take(narrow: Narrow) -> None:
    gateway, engine = narrow
    asking = asyncio.create_task(gateway.chat())
    engine.send(Rejected((await engine.submits.get()).request_id, RejectReason.QUEUE_FULL))
    assert (await asking).status_code == 503


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("GET", "/v1/models", b"", 200),
        ("GET", "/v1/models/other", b"", 404),
        ("GET", "/nowhere", b"", 404),
        ("PUT", CHAT, b"", 405),
        ("POST", CHAT, b"{", 400),
        ("POST", CHAT, b" " * (MAX_BODY_BYTES + 1), 413),
    ],
)
async def test_an_error(
    narrow: Narrow, method: str, path: str, content: bytes, status: int
) -> None:
    gateway, _ = narrow
    assert (await gateway.http.request(method, path, content=content)).status_code == status


async def test_an_unknown_priority(narrow: Narrow) -> None:
    gateway, _ = narrow
    headers = {"x-verger-priority": "urgent"}
    assert (await gateway.http.get("/v1/models", headers=headers)).status_code == 400


async def test_a_defect(narrow: Narrow, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway, _ = narrow
    monkeypatch.setattr(gateway.service, "vocabulary", None)
    assert (await gateway.chat()).status_code == 500
    monkeypatch.undo()


async def test_one_too_many(narrow: Narrow) -> None:
    """The refused one holds no permit that could be returned twice."""
    gateway, engine = narrow
    asking = asyncio.create_task(gateway.chat())
    submit = await engine.submits.get()
    for _ in range(2):
        assert (await gateway.http.get("/v1/models")).status_code == 429
    engine.finish(submit)
    await asking


async def test_a_client_that_leaves_before_its_answer(narrow: Narrow) -> None:
    gateway, engine = narrow
    asking = asyncio.create_task(gateway.chat())
    submit = await engine.submits.get()
    asking.cancel()
    assert await engine.cancels.get() == submit.request_id


async def test_a_client_that_leaves_its_stream(narrow: Narrow) -> None:
    gateway, engine = narrow
    async with open_stream(gateway) as response:
        submit = await engine.submits.get()
        engine.say(submit, FINAL + "hello")
        await Events(response).next()
    assert await engine.cancels.get() == submit.request_id


async def test_a_client_that_never_sends_its_body(narrow: Narrow) -> None:
    gateway, _ = narrow
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    head = f"POST {CHAT} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 9\r\n"
    key = f"authorization: {gateway.http.headers['authorization']}\r\n\r\n"
    writer.write((head + key).encode())
    (held,) = gateway.service.keys.held
    while not held.running:
        await gateway.http.get("/livez")
    writer.close()


async def test_an_engine_that_dies_in_mid_stream(narrow: Narrow) -> None:
    gateway, engine = narrow
    async with open_stream(gateway) as response:
        submit = await engine.submits.get()
        engine.say(submit, FINAL + "hello")
        events = Events(response)
        await events.next()
        engine.die()
        with pytest.raises(httpx.RemoteProtocolError):
            await events.rest()
    second = await gateway.next_engine()
    second.become_ready()
    await gateway.service.engine.wait_ready(30)
