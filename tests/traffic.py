"""Puts every exchange before the validator: inside the server, or inside the official client.

`WatchedApp` is wrapped around the gateway by the harness; the transports go under the SDK where
the server is another process. Faults are collected, and raised by `assert_valid`: an exception
in the middle of a stream would be taken for the very failures that the tests provoke.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

import httpx2  # The official SDK's HTTP library.
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.validator import Exchange, faults


@dataclass(slots=True)
class Traffic:
    """What has been watched so far."""

    exchanges: int = 0
    faults: list[str] = field(default_factory=list)

    def note(self, exchange: Exchange) -> None:
        """Judge an exchange that is over."""
        self.exchanges += 1
        self.faults += [f"{fault} in {exchange}" for fault in faults(exchange)]

    def assert_valid(self) -> None:
        """Raise what was found since the last time."""
        found, self.faults = self.faults, []
        assert not found, f"{len(found)} faults:\n" + "\n".join(found)


class WatchedApp:
    """An ASGI app around another that notes what passes."""

    def __init__(self, app: ASGIApp, traffic: Traffic) -> None:
        self._app = app
        self._traffic = traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        watch = _Watch(receive, send)
        try:
            await self._app(scope, watch.receive, watch.send)
        finally:
            if watch.start is not None:
                self._traffic.note(watch.exchange(scope["path"], watch.start))


@dataclass(slots=True)
class _Watch:
    """What one call of the app has received and sent."""

    _receive: Receive
    _send: Send
    start: Message | None = None
    _request: bytearray = field(default_factory=bytearray)
    _body: bytearray = field(default_factory=bytearray)
    _is_complete: bool = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._request += message.get("body", b"")
        return message

    async def send(self, message: Message) -> None:
        await self._send(message)
        if message["type"] == "http.response.start":
            self.start = message
        else:
            self._body += message.get("body", b"")
            self._is_complete = not message.get("more_body", False)

    def exchange(self, path: str, start: Message) -> Exchange:
        headers = {key.decode(): value.decode() for key, value in start["headers"]}
        request, body = bytes(self._request), bytes(self._body)
        return Exchange(path, request, start["status"], headers, body, self._is_complete)


class WatchedTransport(httpx2.HTTPTransport):
    """Under a synchronous client."""

    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self._traffic = traffic

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        sent = request.read()
        response = super().handle_request(request)
        assert isinstance(response.stream, httpx2.SyncByteStream)
        response.stream = _Watched(response.stream, _noting(self._traffic, request, sent, response))
        return response


class WatchedAsyncTransport(httpx2.AsyncHTTPTransport):
    """Under an asynchronous client."""

    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self._traffic = traffic

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        sent = await request.aread()
        response = await super().handle_async_request(request)
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        note = _noting(self._traffic, request, sent, response)
        response.stream = _WatchedAsync(response.stream, note)
        return response


Note = Callable[[bytes, bool], None]


def _noting(
    traffic: Traffic, request: httpx2.Request, sent: bytes, response: httpx2.Response
) -> Note:
    def note(body: bytes, is_complete: bool) -> None:
        path, headers = request.url.path, dict(response.headers)
        traffic.note(Exchange(path, sent, response.status_code, headers, body, is_complete))

    return note


class _Watched(httpx2.SyncByteStream):
    def __init__(self, stream: httpx2.SyncByteStream, note: Note) -> None:
        self._stream = stream
        self._note = note
        self._body = bytearray()
        self._is_complete = False

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._stream:
            self._body += piece
            yield piece
        self._is_complete = True

    def close(self) -> None:
        self._stream.close()
        self._note(bytes(self._body), self._is_complete)


class _WatchedAsync(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, note: Note) -> None:
        self._stream = stream
        self._note = note
        self._body = bytearray()
        self._is_complete = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._stream:
            self._body += piece
            yield piece
        self._is_complete = True

    async def aclose(self) -> None:
        await self._stream.aclose()
        self._note(bytes(self._body), self._is_complete)
