"""A cloud provider on loopback that answers at once: what `verger bench fallback` passes through.

Run by `fallback.py` as a process of its own (`python -P -m verger.bench.loopback PORT`). An answer
is as many chunks as `max_tokens` says, each of one token and written by itself: the model `fast`
writes them as fast as they are taken, `paced` at a rate that a provider might have. Must not know
what is measured.
"""

import asyncio
import sys
from asyncio import StreamReader, StreamWriter
from collections.abc import Sequence

import msgspec
from msgspec import Struct

FAST, PACED = "fast", "paced"
PACE_TOK_S = 50
MAX_BODY_BYTES = 8 * 1024 * 1024
MAX_TOKENS = 1_000_000
IDLE_S = 600.0
"""For a request; a connection that stays silent for longer is closed."""

_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
    b"connection: keep-alive\r\n\r\n"
)


class _Asked(Struct):
    model: str
    max_tokens: int


async def serve(port: int) -> None:
    """Until the process is ended."""
    async with await asyncio.start_server(_converse, "127.0.0.1", port) as server:
        await server.serve_forever()


async def _converse(reader: StreamReader, writer: StreamWriter) -> None:
    """Requests of one connection, one after the other."""
    try:
        while True:
            async with asyncio.timeout(IDLE_S):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                body = await reader.readexactly(_body_bytes(head))
            if head.startswith("get "):
                await _say(writer, b'{"data":[{"id":"fast"},{"id":"paced"}]}')
            else:
                await _answer(writer, msgspec.json.decode(body, type=_Asked))
    except (OSError, asyncio.IncompleteReadError):
        # Whoever asked has what was wanted; a timeout is one of them.
        pass
    finally:
        writer.transport.abort()


def _body_bytes(head: str) -> int:
    lines = [line for line in head.split("\r\n") if line.startswith("content-length:")]
    return min(int(lines[0].partition(":")[2]), MAX_BODY_BYTES) if lines else 0


async def _say(writer: StreamWriter, body: bytes) -> None:
    """Of the list of models, and of whether it is ready."""
    head = (
        f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await writer.drain()


async def _answer(writer: StreamWriter, asked: _Asked) -> None:
    tokens = min(asked.max_tokens, MAX_TOKENS)
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    writer.write(_HEAD)
    for number in range(tokens):
        if asked.model == PACED:
            await asyncio.sleep(max(0.0, started_s + number / PACE_TOK_S - loop.time()))
        writer.write(_chunk(_event({"content": " word"})))
        await writer.drain()
    usage = {"prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": 10 + tokens}
    ending = [_event({}, "stop"), msgspec.json.encode({"choices": [], "usage": usage}), b"[DONE]"]
    writer.write(b"".join(map(_chunk, ending)) + b"0\r\n\r\n")
    await writer.drain()


def _event(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return msgspec.json.encode({"id": "chatcmpl-loopback", "choices": [choice]})


def _chunk(data: bytes) -> bytes:
    """A server-sent event as a chunk of HTTP's."""
    return b"%x\r\ndata: %s\n\n\r\n" % (len(data) + 8, data)


def main(arguments: Sequence[str]) -> None:
    """The port is the only argument."""
    asyncio.run(serve(int(arguments[0])))


if __name__ == "__main__":
    main(sys.argv[1:])
