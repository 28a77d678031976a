"""Server-sent events: frames to a client at its own pace, kept alive, and never a false clean end.

Called by streaming endpoints. The only module that imports sse_starlette, which on import wraps
uvicorn's `Server.handle_exit` so that SIGTERM ends every stream at once; `drain_streams` turns
that off, because here SIGTERM lets running answers finish.

    frames end        → the body is completed: a clean end
    frames raise      → an event with the error, then the body is left incomplete and the connection
                        closed: the client can tell that something is missing
    the client leaves → the frames are closed; so they are when `connection` cuts it off, because it
                        has stopped reading
"""

import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing

from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import AppStatus, EventSourceResponse
from starlette.types import Message, Receive, Scope, Send

from verger.api.errors import encode_error
from verger.errors import ReplyError
from verger.gateway.connection import CLOSE
from verger.gateway.edge import internal_error, record_of
from verger.gateway.receive import ClientGone
from verger.log import key_values

logger = logging.getLogger("verger.gateway")

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
"""What stands for a heartbeat until it is its turn to be sent."""


class _Aborted(Exception):
    """The stream ends in the middle; the error event has been sent."""


class Heartbeat:
    """Ticks twice per interval and speaks when nothing was sent since the last tick.

    So no silence is longer than the interval, while a stream that flows carries no extra frames.
    Silent as well while `is_alive` is false: a hung engine must not look like a slow one.
    """

    def __init__(
        self, new_frame: Callable[[], bytes], interval_s: float, is_alive: Callable[[], bool]
    ) -> None:
        self.tick_s = interval_s / 2
        self._new_frame = new_frame
        self._is_alive = is_alive
        self._is_quiet = False

    def note_sent(self) -> None:
        """Something else has just kept the stream alive."""
        self._is_quiet = False

    def tick(self) -> bytes:
        """What to send now, possibly nothing."""
        is_due, self._is_quiet = self._is_quiet, True
        return self._new_frame() if is_due and self._is_alive() else b""

    def speaking(self, send: Send) -> Send:
        """What is sent with it, with each PING replaced by what there is to say at that moment.

        A task of its own sends them: one made before could be overtaken by the end of a choice or
        of the stream. None is made while a frame waits to be sent.
        """
        is_sending = False

        async def send_in_turn(message: Message) -> None:
            nonlocal is_sending
            if message.get("body") != PING:
                is_sending = True
                await send(message)
                is_sending = False
            elif not is_sending and (spoken := self.tick()):
                await send({**message, "body": spoken})

        return send_in_turn


def drain_streams() -> None:
    """Let open streams finish on shutdown. Called once, before the server runs."""
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]


def data_frame(json: bytes) -> bytes:
    """One event."""
    return b"data: " + json + b"\n\n"


class EventStream:
    """An ASGI response: headers at once, then the frames at the client's pace."""

    def __init__(
        self, frames: AsyncGenerator[bytes], heartbeat: Heartbeat, headers: Mapping[str, str]
    ) -> None:
        self._frames = frames
        self._heartbeat = heartbeat
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises ClientGone if the client leaves, or is cut off, before the end."""
        response = EventSourceResponse(
            _guarded(self._frames, self._heartbeat, scope),
            headers=self._headers,
            ping=self._heartbeat.tick_s,
            ping_message_factory=lambda: _RawEvent(PING),
            sep="\n",
        )
        try:
            await response(scope, receive, self._heartbeat.speaking(send))
        except _Aborted:
            scope["state"][CLOSE]()
            return
        if record_of(scope).finish is None:
            raise ClientGone


class _RawEvent(ServerSentEvent):
    """Bytes that are sent as they are."""

    def __init__(self, raw: bytes) -> None:
        super().__init__()
        self._raw = raw

    def encode(self) -> bytes:
        return self._raw


async def _guarded(
    frames: AsyncGenerator[bytes], heartbeat: Heartbeat, scope: Scope
) -> AsyncGenerator[bytes]:
    """The frames; if they fail, an event that says so and no clean end."""
    record = record_of(scope)
    try:
        async with aclosing(frames):
            async for frame in frames:
                heartbeat.note_sent()
                yield frame
        return
    except ReplyError as error:
        failure = error
    except Exception:
        logger.exception(key_values(event="defect", id=record.id, path=scope["path"]))
        failure = internal_error()
    record.error = failure.code
    heartbeat.note_sent()
    yield data_frame(encode_error(failure))
    raise _Aborted
