"""A server that a soak can be made against: right answers without a model, and faults on order.

Used by the soak's process tests. It knows the two routes that a soak asks and answers each chat
request as `play` says; every answer is empty, which is right whatever was asked.
"""

import asyncio
import json
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from itertools import count
from typing import Any

from tests.chat_samples import HEAD, USAGE
from verger.bench.client import Endpoint

Json = dict[str, Any]


class Play(Enum):
    """What becomes of a request."""

    RIGHT = "right"
    CUT = "cut"
    """The connection ends in the middle of a stream, or of an answer in one piece."""
    GARBLED = "garbled"
    """An event, or the answer, is not JSON."""
    ERROR = "error"
    """A stream ends with an error, an answer in one piece is one."""
    FULL = "full"
    """A 503 at once."""
    SILENT = "silent"
    """Nothing at all, and the connection is closed."""
    HANG = "hang"
    """Nothing, until the client leaves."""


@dataclass
class StandIn:
    """`play` says what becomes of the nth chat request; `status` is told under /v1/status."""

    play: Callable[[int], Play]
    status: Callable[[], Json]

    def __post_init__(self) -> None:
        self._numbers = count()
        self.conversations: set[asyncio.Task[None]] = set()

    async def converse(self, reader: StreamReader, writer: StreamWriter) -> None:
        """One request, then the end."""
        if task := asyncio.current_task():
            self.conversations.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            if head.startswith("get "):
                writer.write(_whole(200, self.status()))
            else:
                size = int(head.partition("content-length: ")[2].split("\r\n")[0])
                asked = json.loads(await reader.readexactly(size))
                play = self.play(next(self._numbers))
                if play is Play.HANG:
                    await reader.read()
                writer.write(_reply(asked, play))
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # The client has left.
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


@asynccontextmanager
async def standing_in(stand_in: StandIn) -> AsyncIterator[Endpoint]:
    """On a free loopback port."""
    async with await asyncio.start_server(stand_in.converse, "127.0.0.1", 0) as server:
        yield Endpoint("127.0.0.1", server.sockets[0].getsockname()[1], "/v1")
        await asyncio.gather(*stand_in.conversations)


def idle(running: int = 0) -> Json:
    """A status of a server at rest, with so many permits of a key in use."""
    cache = dict.fromkeys(
        ("bytes", "limit_bytes", "asked_tokens", "cached_tokens", "token_bytes", "window_bytes"), 0
    )
    return {
        "rows": {},
        "tokens": {"prefilled": 0, "decoded": 0, "background": 0},
        "cache": cache,
        "memory": {"kv_bytes": 0},
        "keys": [{"name": "ada", "running": running}],
    }


def _reply(asked: Json, play: Play) -> bytes:
    if play is Play.SILENT:
        return b""
    if play is Play.FULL:
        return _whole(503, _error("overloaded"), "retry-after: 1\r\n")
    if asked.get("stream"):
        return _stream(asked, play)
    if play is Play.ERROR:
        return _whole(500, _error("internal_error"))
    body = _completion(asked)
    if play is Play.GARBLED:
        return _whole(200, json.dumps(body).replace(":", ";", 1))
    whole = _whole(200, body)
    return whole[:-10] if play is Play.CUT else whole


def _completion(asked: Json) -> Json:
    message = {"role": "assistant", "content": "", "refusal": None}
    choices = [
        {"index": index, "message": message, "logprobs": None, "finish_reason": "stop"}
        for index in range(asked.get("n", 1))
    ]
    return {**HEAD, "object": "chat.completion", "choices": choices, "usage": _usage()}


def _usage() -> Json:
    return {
        **USAGE,
        "completion_tokens": 1,
        "total_tokens": 11,
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def _stream(asked: Json, play: Play) -> bytes:
    has_usage = "stream_options" in asked
    deltas: list[tuple[Json, str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas.append(({}, "stop"))
    events = [
        json.dumps(_chunk([_changed(index, *delta)], has_usage, None))
        for index in range(asked.get("n", 1))
        for delta in deltas
    ]
    if has_usage:
        events.append(json.dumps(_chunk([], has_usage, _usage())))
    events.append("[DONE]")
    match play:
        case Play.GARBLED:
            events[1] = events[1].replace(":", ";", 1)
        case Play.CUT:
            events = events[:1]
        case Play.ERROR:
            events = [*events[:1], json.dumps(_error("engine_unavailable"))]
    head = _head(200, "text/event-stream", "transfer-encoding: chunked\r\n")
    frames = [f"data: {event}\n\n".encode() for event in events]
    body = b"".join(b"%x\r\n%s\r\n" % (len(frame), frame) for frame in frames)
    return head + body + (b"" if play in (Play.CUT, Play.ERROR) else b"0\r\n\r\n")


def _changed(index: int, delta: Json, finish: str | None) -> Json:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


def _chunk(choices: list[Json], has_usage: bool, usage: Json | None) -> Json:
    chunk = {**HEAD, "object": "chat.completion.chunk", "choices": choices}
    return {**chunk, "usage": usage} if has_usage else chunk


def _error(code: str) -> Json:
    return {"error": {"message": "m", "type": "server_error", "param": None, "code": code}}


def _whole(status: int, body: Json | str, headers: str = "") -> bytes:
    content = (body if isinstance(body, str) else json.dumps(body)).encode()
    headers += f"content-length: {len(content)}\r\n"
    return _head(status, "application/json", headers) + content


def _head(status: int, kind: str, headers: str) -> bytes:
    lines = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\nx-request-id: r\r\n{headers}\r\n"
    return lines.encode()
