"""One client's connection: uvicorn's HTTP/1.1 protocol with a bound on all that a client can do.

Made by the acceptor. Must not know what is asked for: it counts, waits and cuts off.

    accepted ──► head ──────────► body ──────────────► answer ──────────► idle ──► head …
                 HEAD_TIMEOUT_S   MESSAGE_TIMEOUT_S    SEND_TIMEOUT_S     KEEP_ALIVE_S
                 MAX_URL_BYTES    (receive.py: bytes)  while the client
                 MAX_HEADERS                           reads nothing
                 MAX_HEADER_BYTES

What arrives before an answer is complete is not read: the connection ends with that answer. (No
client that we know pipelines, and RFC 9112, 9.3.2, has those that do send the rest again.) A
connection that was told to close and does not is aborted after CLOSE_S.

Leans on the callbacks and attributes of HttpToolsProtocol (uvicorn 0.54), which has no bound on a
head, nor on connections that say nothing, read nothing or do not go.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from verger.errors import HeadersTooLarge, InvalidRequest, ReplyError, UrlTooLong
from verger.gateway.edge import error_response
from verger.gateway.receive import BODY_TIMEOUT_S
from verger.log import key_values

logger = logging.getLogger("verger.gateway")

MAX_URL_BYTES = 8 * 1024
MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 * 1024
"""Of all names and values together."""
HEAD_TIMEOUT_S = 10.0
MESSAGE_TIMEOUT_S = BODY_TIMEOUT_S + 5
"""From the head's end to the body's, also where nobody reads the body: a refusal comes first."""
KEEP_ALIVE_S = 30
SEND_TIMEOUT_S = 30.0
CLOSE_S = 5.0
CLOSE = "verger.close"
"""Key of the function in a scope's state that ends the connection after what has been sent."""


class Deadline:
    """A call at a later time, at most one; its reason is for the log."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_expiry: Callable[[str], None]) -> None:
        self._loop = loop
        self._on_expiry = on_expiry
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_set(self) -> bool:
        """Whether the time is running."""
        return self._timer is not None

    def set(self, seconds: float, reason: str) -> None:
        """From now on; what was set before no longer holds."""
        self.clear()
        self._timer = self._loop.call_later(seconds, self._on_expiry, reason)

    def clear(self) -> None:
        """There is nothing to wait for."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Connection(HttpToolsProtocol):
    """`on_lost` is called once, when the connection is over."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        on_lost: Callable[[], None],
    ) -> None:
        super().__init__(config, server_state, {**app_state, CLOSE: self._close})
        self._on_lost = on_lost
        self._arrival = Deadline(self.loop, self._cut)
        """Of the next thing that the client has to do: send a head, a body, or go."""
        self._reading = Deadline(self.loop, self._cut)
        """Of the client's next read, while our buffers are full."""
        self._is_in_head = False
        self._is_deaf = False
        """What still arrives is thrown away."""
        self._header_bytes = 0
        self._unparsed_bytes = 0
        """Of the head, since the parser last told of something complete."""
        self._refusal: ReplyError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As in uvicorn, the transport of a stream socket is more than a BaseTransport."""
        super().connection_made(transport)
        self._arrival.set(HEAD_TIMEOUT_S, "no_request")

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrival.clear()
        self._reading.clear()
        # uvicorn does so only for a clean end.
        self._unset_keepalive_if_required()
        if self.flow is not None:  # Else the handshake failed: it was never made.
            super().connection_lost(exc)
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        """Instead of uvicorn's, which answers what it cannot parse in plain text."""
        if self._is_deaf:
            return
        self._unset_keepalive_if_required()
        if not (self._arrival.is_set or self._is_answering):
            self._arrival.set(HEAD_TIMEOUT_S, "no_request")
        self._unparsed_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # Only a GET gets here: it is answered as if it had not asked to upgrade.
        except httptools.HttpParserError:
            self._refuse(self._refusal or InvalidRequest("This is not a valid HTTP/1.1 request."))
        else:
            if self._is_in_head and self._header_bytes + self._unparsed_bytes > MAX_HEADER_BYTES:
                self._refuse(_headers_too_large())

    def on_message_begin(self) -> None:
        """The first byte of a head."""
        if self._is_answering:
            raise _Pipelined
        super().on_message_begin()
        self._is_in_head = True
        self._header_bytes = self._unparsed_bytes = 0
        self._arrival.set(HEAD_TIMEOUT_S, "slow_head")

    def on_url(self, url: bytes) -> None:
        """A piece of it."""
        super().on_url(url)
        self._unparsed_bytes = 0
        if len(self.url) > MAX_URL_BYTES:
            self._give_up(UrlTooLong(f"The URL exceeds {MAX_URL_BYTES} bytes."))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A whole one."""
        super().on_header(name, value)
        self._unparsed_bytes = 0
        self._header_bytes += len(name) + len(value)
        if len(self.headers) > MAX_HEADERS or self._header_bytes > MAX_HEADER_BYTES:
            self._give_up(_headers_too_large())

    def on_headers_complete(self) -> None:
        """The request begins to be answered."""
        if self.parser.should_upgrade() and self.parser.get_method() != b"GET":
            # The parser takes what follows for another protocol: the body would be lost.
            self._give_up(
                InvalidRequest(
                    "This server speaks HTTP/1.1 and does not upgrade; send no Upgrade header."
                )
            )
        self._is_in_head = False
        self._arrival.set(MESSAGE_TIMEOUT_S, "slow_body")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """All of the body is there."""
        self._arrival.clear()
        super().on_message_complete()
        if not self._is_answering:
            self._arrival.set(KEEP_ALIVE_S, "no_request")

    def on_response_complete(self) -> None:
        """The client's turn: to ask something else, or to go."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._arrival.set(CLOSE_S, "did_not_close")

    def pause_writing(self) -> None:
        """Our buffer is full: the client has to read some of it."""
        super().pause_writing()
        self._reading.set(SEND_TIMEOUT_S, "slow_reader")

    def resume_writing(self) -> None:
        """It did."""
        super().resume_writing()
        self._reading.clear()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing was asked for in KEEP_ALIVE_S."""
        self._close()

    def shutdown(self) -> None:
        """uvicorn asks all connections to end with what they are answering."""
        super().shutdown()
        if self.transport.is_closing():
            self._arrival.set(CLOSE_S, "did_not_close")

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _give_up(self, refusal: ReplyError) -> None:
        """Within the parser, which turns whatever is raised into an error of its own."""
        self._refusal = refusal
        raise refusal

    def _refuse(self, error: ReplyError) -> None:
        """Answer what is not a request, and hear no more from this client."""
        self._is_deaf = True
        if self._is_answering and not self.cycle.more_body:
            self.cycle.keep_alive = False
        elif self._is_answering and self.cycle.response_started:
            self.transport.abort()
        else:
            logger.info(key_values(event="refused", error=error.code, client=self._address))
            self.transport.write(raw_reply(error))
            # A close while something is still arriving would take the reply away from the client.
            self._arrival.set(CLOSE_S, "did_not_close")

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
            self._arrival.set(CLOSE_S, "did_not_close")

    def _cut(self, reason: str) -> None:
        level = logging.DEBUG if reason == "no_request" else logging.INFO
        logger.log(level, key_values(event="cut_off", reason=reason, client=self._address))
        self.transport.abort()

    @property
    def _address(self) -> str | None:
        return self.client[0] if self.client else None


class _Pipelined(Exception):
    """A request that does not wait for the answer to the one before."""


def raw_reply(error: ReplyError) -> bytes:
    """A whole reply to what is no request, after which the connection closes."""
    response = error_response(error, {"connection": "close"})
    headers = b"".join(b"%s: %s\r\n" % header for header in response.raw_headers)
    return STATUS_LINE[error.status] + headers + b"\r\n" + bytes(response.body)


def _headers_too_large() -> HeadersTooLarge:
    return HeadersTooLarge(
        f"The headers exceed {MAX_HEADER_BYTES} bytes, or are more than {MAX_HEADERS}."
    )
