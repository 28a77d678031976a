"""What one connection may send, hold and wait for: each bound, and one beyond it."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from tests.gateway.harness import Gateway, PlayedEngine, raw_chat
from tests.gateway.test_streams import FINAL
from verger.gateway.connection import (
    CLOSE,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_URL_BYTES,
    Connection,
)

pytestmark = pytest.mark.anyio

Served = tuple[Gateway, PlayedEngine]
LIVEZ = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"
CONSTANTS = "verger.gateway.connection."


@asynccontextmanager
async def connected(
    gateway: Gateway,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def reply_to(gateway: Gateway, *pieces: bytes) -> tuple[int, Any]:
    """The status of the one reply to all that is sent, and its JSON."""
    async with connected(gateway) as (reader, writer):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        return await next_reply(reader)


async def next_reply(reader: asyncio.StreamReader) -> tuple[int, Any]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
    return int(head.split()[1]), json.loads(await reader.readexactly(length))


async def all_of(reader: asyncio.StreamReader) -> bytes:
    """What comes until the connection is over, by a close or a reset."""
    received = bytearray()
    try:
        while piece := await reader.read(65_536):
            received += piece
    except ConnectionResetError:
        pass
    return bytes(received)


def get(path: str = "/livez", headers: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n".encode()


@pytest.mark.parametrize("extra", [0, 1])
async def test_a_url_is_bounded(served: Served, extra: int) -> None:
    path = "/" + "x" * (MAX_URL_BYTES - 1 + extra)
    status, body = await reply_to(served[0], get(path))

    expected = (414, "url_too_long") if extra else (404, "route_not_found")
    assert (status, body["error"]["code"]) == expected


@pytest.mark.parametrize("extra", [0, 1])
async def test_the_number_of_headers_is_bounded(served: Served, extra: int) -> None:
    status, body = await reply_to(served[0], get(headers="a: b\r\n" * (MAX_HEADERS - 1 + extra)))

    assert status == (431 if extra else 200)
    if extra:
        assert body["error"]["code"] == "headers_too_large"


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("count", [1, 40])
async def test_the_bytes_of_headers_are_bounded(served: Served, extra: int, count: int) -> None:
    room = MAX_HEADER_BYTES - len("hostlocalhost") + extra
    sizes = [room // count] * (count - 1)
    sizes.append(room - sum(sizes))
    headers = "".join(f"n: {'v' * (size - 1)}\r\n" for size in sizes)

    status, _ = await reply_to(served[0], get(headers=headers))

    assert status == (431 if extra else 200)


@pytest.mark.parametrize("part", [b"GET /", b"GET / HTTP/1.1\r\nn", b"GET / HTTP/1.1\r\nn: "])
async def test_a_head_without_end_is_refused_before_it_ends(served: Served, part: bytes) -> None:
    async with connected(served[0]) as (reader, writer):
        writer.write(part)
        for _ in range(64):
            writer.write(b"x" * MAX_HEADER_BYTES)
        status, body = await next_reply(reader)

    assert (status, body["error"]["type"]) in [
        (414, "invalid_request_error"),
        (431, "invalid_request_error"),
    ]


@pytest.mark.parametrize(
    "piece", [b"", b"\r\n", b"G", b"GET /livez HTTP/1.1\r\n", LIVEZ[:-2], LIVEZ[:-1]]
)
async def test_a_head_that_does_not_come_is_cut_off(
    served: Served, piece: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CONSTANTS + "HEAD_TIMEOUT_S", 0.05)
    async with connected(served[0]) as (reader, writer):
        writer.write(piece)
        assert await all_of(reader) == b""


async def test_a_head_that_trickles_in_is_cut_off(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Bytes do not buy time."""
    caplog.set_level("INFO")
    monkeypatch.setattr(CONSTANTS + "HEAD_TIMEOUT_S", 0.1)
    async with connected(served[0]) as (reader, writer):
        writer.write(LIVEZ[:-2])
        ending = asyncio.create_task(all_of(reader))
        while not ending.done():
            writer.write(b"a: b\r\n")
            await asyncio.wait([ending], timeout=0.02)
        assert await ending == b""
    assert "event=cut_off reason=slow_head client=127.0.0.1" in caplog.text


@pytest.mark.parametrize("piece", [b"\r\n", LIVEZ[:10]])
async def test_a_second_head_has_its_own_time(
    served: Served, piece: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CONSTANTS + "HEAD_TIMEOUT_S", 0.05)
    async with connected(served[0]) as (reader, writer):
        writer.write(LIVEZ)
        assert (await next_reply(reader))[0] == 200
        writer.write(piece)
        assert await all_of(reader) == b""


async def test_a_body_that_nobody_reads_has_its_time_too(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal comes at once, and the rest of the body may follow, but not for ever."""
    monkeypatch.setattr(CONSTANTS + "MESSAGE_TIMEOUT_S", 0.1)
    async with connected(served[0]) as (reader, writer):
        writer.write(b"POST /nothing HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\nx")
        assert (await next_reply(reader))[0] == 404
        assert await all_of(reader) == b""


async def test_after_a_late_body_the_connection_is_used_again_or_closed(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CONSTANTS + "KEEP_ALIVE_S", 0.1)
    async with connected(served[0]) as (reader, writer):
        for _ in range(2):
            head = b"POST /nothing HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n"
            writer.write(head)
            assert (await next_reply(reader))[0] == 404
            writer.write(b"x" * 9)
        assert await all_of(reader) == b""


async def test_a_request_that_does_not_wait_is_not_read(served: Served) -> None:
    """The answer before it is whole, and the connection then ends."""
    gateway, engine = served
    async with connected(gateway) as (reader, writer):
        writer.write(raw_chat())
        submit = await engine.submits.get()
        writer.write(LIVEZ * 50)
        writer.write(b"\x00" * 100_000)
        await writer.drain()
        engine.say(submit, FINAL + "hello<|return|>")
        engine.finish(submit)
        status, body = await next_reply(reader)
        assert await all_of(reader) == b""

    assert status == 200
    assert body["choices"][0]["message"]["content"] == "hello"


async def test_blank_lines_after_a_request_do_no_harm(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CONSTANTS + "HEAD_TIMEOUT_S", 0.05)
    gateway, engine = served
    async with connected(gateway) as (reader, writer):
        writer.write(raw_chat() + b"\r\n")
        submit = await engine.submits.get()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.1)
        engine.say(submit, FINAL + "hello<|return|>")
        engine.finish(submit)
        assert (await next_reply(reader))[0] == 200
        writer.write(LIVEZ)
        assert (await next_reply(reader))[0] == 200


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # A TLS client.
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\na\x00: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\na: \x01\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET http://h HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"CONNECT localhost:80 HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: " + b"9" * 5_000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
        b"transfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_what_is_no_http_is_a_400_in_our_own_shape(served: Served, nonsense: bytes) -> None:
    async with connected(served[0]) as (reader, writer):
        writer.write(nonsense)
        status, body = await next_reply(reader)
        writer.write_eof()
        assert await all_of(reader) == b""

    assert (status, body["error"]["code"]) == (400, "invalid_request")


async def test_nonsense_behind_a_request_lets_its_stream_end(served: Served) -> None:
    """Its own body has ended: what is broken would have been the next request."""
    gateway, engine = served
    async with connected(gateway) as (reader, writer):
        writer.write(raw_chat(stream=True))
        submit = await engine.submits.get()
        await reader.readuntil(b"assistant")
        writer.write(b"\x00\x00\x00")
        engine.say(submit, FINAL + "hello<|return|>")
        engine.finish(submit)
        rest = await all_of(reader)

    assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


async def test_an_upgrade_that_would_lose_a_body_is_refused(served: Served) -> None:
    upgrade = b"connection: upgrade\r\nupgrade: h2c\r\n"
    status, body = await reply_to(served[0], raw_chat().replace(b"host:", upgrade + b"host:", 1))
    assert (status, body["error"]["code"]) == (400, "invalid_request")
    assert "Upgrade" in body["error"]["message"]

    status, _ = await reply_to(served[0], get(headers=upgrade.decode()))
    assert status == 200


async def test_who_was_refused_and_stays_is_cut_off(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CONSTANTS + "CLOSE_S", 0.05)
    async with connected(served[0]) as (reader, writer):
        writer.write(b"nonsense\r\n\r\n")
        assert (await next_reply(reader))[0] == 400
        writer.write(b"more")
        assert await all_of(reader) == b""


class StubTransport(asyncio.Transport):
    """Of a client that never reads: what is closed stays open until it is aborted."""

    def __init__(self) -> None:
        super().__init__()
        self.is_closed = False
        self.aborted = asyncio.Event()

    def write(self, data: Any) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def abort(self) -> None:
        self.aborted.set()


def a_connection(transport: StubTransport) -> Connection:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    connection = Connection(uvicorn.Config(app), ServerState(), {}, lambda: None)
    connection.connection_made(transport)
    return connection


async def test_a_client_that_stops_reading_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is sent: uvicorn itself would wait for it for ever."""
    monkeypatch.setattr(CONSTANTS + "SEND_TIMEOUT_S", 0.05)
    transport = StubTransport()
    connection = a_connection(transport)

    connection.pause_writing()
    connection.resume_writing()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(transport.aborted.wait(), 0.1)

    connection.pause_writing()
    await transport.aborted.wait()
    connection.connection_lost(None)


async def test_a_client_that_does_not_go_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CONSTANTS + "CLOSE_S", 0.05)
    ends: list[Callable[[Connection], None]] = [
        lambda connection: connection.timeout_keep_alive_handler(),
        lambda connection: connection.shutdown(),
        lambda connection: connection.app_state[CLOSE](),  # A stream that failed.
    ]
    for end in ends:
        transport = StubTransport()
        connection = a_connection(transport)
        end(connection)
        assert transport.is_closed
        await transport.aborted.wait()
        connection.connection_lost(None)
