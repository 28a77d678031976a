"""A small HTTP/1.1 client for streams: one connection per request, events as they arrive.

Used by `replay.py`, `second_turn.py`, `stall.py` and `soak_client.py`, which need many requests at
once, from Verger or from any other server, and the moment of each event. Must not know what the
events say.
Server-sent events: WHATWG HTML; chunked transfer coding: RFC 9112 section 7.1.
"""

import asyncio
import time
from asyncio import StreamReader
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from verger.bench.reader import Event, ReadError

CONNECT_S = 10.0
MAX_LINE_BYTES = 16 * 1024 * 1024
"""Of a header or an event."""
MAX_HEADERS = 200
MAX_BODY_BYTES = 64 * 1024 * 1024
QUOTED_BYTES = 400
"""How much of a refusal is shown."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server's API; `path` is what stands before `/chat/completions`."""

    host: str
    port: int
    path: str
    is_tls: bool = False

    @property
    def url(self) -> str:
        """As people write it."""
        return f"{'https' if self.is_tls else 'http'}://{self.host}:{self.port}{self.path}"


@dataclass(frozen=True, slots=True)
class Response:
    """A status, headers with names and values in lower case, and a body still to come."""

    status: int
    headers: Mapping[str, str]
    reader: StreamReader

    def parts(self) -> AsyncGenerator[bytes]:
        """The body as it arrives. Raises OSError, IncompleteReadError, ValueError or ReadError
        where it breaks off or is not HTTP's."""
        return _body(self)


def parse_url(url: str) -> Endpoint:
    """`http://localhost:8080/v1` and the like; raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
        raise ValueError(url)
    is_tls = parts.scheme == "https"
    port = parts.port or (443 if is_tls else 80)
    return Endpoint(parts.hostname, port, parts.path.rstrip("/"), is_tls)


async def events(endpoint: Endpoint, path: str, body: bytes, key: str) -> AsyncGenerator[Event]:
    """Post a body and yield the data of each event; leaving early closes the connection.

    Raises ReadError for a refusal or a broken answer. How long it may take is the caller's to say.
    """
    try:
        async with post(endpoint, path, body, key) as response:
            if response.status != 200:
                refusal = await _start_of(response)
                raise ReadError(f"{response.status}: {refusal.decode('utf-8', 'replace')}")
            async with aclosing(_data(_body(response))) as data:
                async for event in data:
                    yield event
    except (OSError, asyncio.IncompleteReadError) as error:
        raise ReadError(f"the connection failed: {error}") from None
    except ValueError as error:
        raise ReadError(f"not HTTP: {error}") from None


def post(
    endpoint: Endpoint, path: str, body: bytes, key: str
) -> AbstractAsyncContextManager[Response]:
    """Send JSON; leaving closes the connection. Raises what `Response.parts` raises."""
    head = f"POST {endpoint.path}{path} HTTP/1.1\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}\r\n"
    return _send(endpoint, head, body, key)


async def get(endpoint: Endpoint, path: str, key: str, limit_s: float) -> bytes | None:
    """The body of a 200, None for any other status. Raises ReadError."""
    head = f"GET {endpoint.path}{path} HTTP/1.1\r\n"
    try:
        async with asyncio.timeout(limit_s), _send(endpoint, head, b"", key) as response:
            received = bytearray()
            async for part in _body(response):
                received += part
                if len(received) > MAX_BODY_BYTES:
                    raise ReadError(f"more than {MAX_BODY_BYTES} bytes")
            return bytes(received) if response.status == 200 else None
    except (OSError, asyncio.IncompleteReadError, ValueError) as error:
        raise ReadError(f"GET {path} failed: {error!r}") from None


@asynccontextmanager
async def _send(endpoint: Endpoint, head: str, body: bytes, key: str) -> AsyncIterator[Response]:
    """A connection for one request; a limit on all of it is the caller's."""
    async with asyncio.timeout(CONNECT_S):
        reader, writer = await asyncio.open_connection(
            endpoint.host, endpoint.port, ssl=endpoint.is_tls or None, limit=MAX_LINE_BYTES
        )
    try:
        authorization = f"authorization: Bearer {key}\r\n" if key else ""
        head += f"host: {endpoint.host}\r\nconnection: close\r\n{authorization}\r\n"
        writer.write(head.encode("latin-1") + body)
        await writer.drain()
        yield await _response(reader)
    finally:
        # Not waited for: what is still to come is not wanted.
        writer.transport.abort()


async def _response(reader: StreamReader) -> Response:
    version, _, rest = (await reader.readline()).decode("latin-1").partition(" ")
    if not version.startswith("HTTP/1."):
        raise ReadError("no response")
    headers: dict[str, str] = {}
    while line := (await reader.readline()).decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip().lower()
        if len(headers) > MAX_HEADERS:
            raise ReadError(f"more than {MAX_HEADERS} headers")
    return Response(int(rest[:3]), headers, reader)


async def _body(response: Response) -> AsyncGenerator[bytes]:
    """Parts of the body as they arrive, in whichever of the three ways it is delimited."""
    reader, headers = response.reader, response.headers
    if headers.get("transfer-encoding") == "chunked":
        while size := _chunk_bytes(await reader.readline()):
            if size > MAX_BODY_BYTES:
                raise ReadError(f"a chunk of more than {MAX_BODY_BYTES} bytes")
            yield await reader.readexactly(size)
            await reader.readexactly(2)
        return
    is_counted = "content-length" in headers
    remaining = int(headers["content-length"]) if is_counted else MAX_BODY_BYTES
    while remaining > 0 and (part := await reader.read(min(remaining, 65_536))):
        remaining -= len(part)
        yield part
    if is_counted and remaining:
        raise asyncio.IncompleteReadError(b"", remaining)


def _chunk_bytes(line: bytes) -> int:
    if not line:
        raise asyncio.IncompleteReadError(line, None)
    return int(line.split(b";")[0], 16)


async def _data(parts: AsyncIterator[bytes]) -> AsyncGenerator[Event]:
    """One event per `data:` line: no chat server writes data of several lines."""
    pending = b""
    async for part in parts:
        at_s = time.perf_counter()
        *lines, pending = (pending + part).split(b"\n")
        if len(pending) > MAX_LINE_BYTES:
            raise ReadError(f"an event of more than {MAX_LINE_BYTES} bytes")
        for line in lines:
            if line.startswith(b"data:"):
                yield Event(at_s, line.removeprefix(b"data:").strip())


async def _start_of(response: Response) -> bytes:
    """Enough of a refusal to show."""
    received = b""
    async with aclosing(_body(response)) as parts:
        async for part in parts:
            received += part
            if len(received) >= QUOTED_BYTES:
                break
    return received[:QUOTED_BYTES]
