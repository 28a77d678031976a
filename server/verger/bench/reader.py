"""Reads many HTTP streams at once and notes when each token arrived.

Run by `overhead.py` as a process of its own (`python -P -m verger.bench.reader TOKENIZER`), so
that its CPU is neither the gateway's nor the engine's; one line of JSON in and out per round
(`timings.py`). While answers arrive it only stamps bytes; it takes them apart afterwards. Must not
know what is measured. Chunked transfer coding: RFC 9112 section 7.1.
"""

import selectors
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from msgspec import Struct

from verger.formats.vocabulary import Vocabulary
from verger.timings import HttpRound, StreamTimes, Timings

READ_BYTES = 64 * 1024
CONNECT_S = 10.0
UNSEEN_TOKENS = 3
"""<|channel|> analysis <|message|>: sampled before the first token that a client can see."""


class ReadError(Exception):
    """The answer was refused, cut off, or is not what the chat endpoint sends."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """Bytes as the socket gave them."""

    at_s: float
    bytes: bytes


@dataclass(slots=True)
class Stream:
    """One connection and what has come from it."""

    socket: socket.socket
    arrivals: list[Arrival] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Event:
    """The data of one server-sent event, at the time when it was complete."""

    at_s: float
    data: bytes


class _Delta(Struct):
    content: str = ""
    reasoning: str = ""


class _Choice(Struct):
    delta: _Delta


class _Usage(Struct):
    prompt_tokens: int
    completion_tokens: int


class _Chunk(Struct):
    choices: list[_Choice]
    usage: _Usage | None = None


def main() -> None:
    """Answer rounds until standard input ends."""
    vocabulary = Vocabulary.from_file_bytes(Path(sys.argv[1]).read_bytes())
    for line in sys.stdin.buffer:
        timings = read_round(msgspec.json.decode(line, type=HttpRound), vocabulary)
        sys.stdout.buffer.write(msgspec.json.encode(timings) + b"\n")
        sys.stdout.buffer.flush()


def read_round(asked: HttpRound, vocabulary: Vocabulary) -> Timings:
    """Connect all, send all, then read until every answer has ended or the limit is reached."""
    address = ("127.0.0.1", asked.port)
    streams = [Stream(socket.create_connection(address, CONNECT_S)) for _ in asked.bodies]
    started_s = time.perf_counter()
    for stream, body in zip(streams, asked.bodies, strict=True):
        stream.socket.sendall(_request(body.encode()))
    _read(streams, started_s, asked.limit_s)
    timings = Timings([], [])
    for stream in streams:
        try:
            timings.streams.append(times_of(stream.arrivals, vocabulary))
        except ReadError as error:
            timings.failures.append(str(error))
    return timings


def times_of(arrivals: Sequence[Arrival], vocabulary: Vocabulary) -> StreamTimes:
    """Raises ReadError unless the answer is complete."""
    token_s: list[float] = []
    usage = None
    for event in events_of(arrivals):
        if event.data == b"[DONE]" and usage is not None:
            unseen_s = token_s[:1] * UNSEEN_TOKENS
            return StreamTimes(
                prompt_tokens=usage.prompt_tokens,
                tokens=usage.completion_tokens,
                token_s=unseen_s + token_s,
                ended_s=event.at_s,
            )
        chunk = _decode(event.data)
        usage = chunk.usage or usage
        for choice in chunk.choices:
            # A chunk may hold several tokens: those of two steps, or of one split character.
            text = choice.delta.reasoning + choice.delta.content
            token_s += [event.at_s] * len(vocabulary.encode(text))
    raise ReadError("the stream ended before [DONE]")


def events_of(arrivals: Sequence[Arrival]) -> Iterator[Event]:
    """The events of a response; raises ReadError for any status but 200."""
    received = iter(arrivals)
    raw = b""
    for arrival in received:
        raw += arrival.bytes
        head, has_ended, rest = raw.partition(b"\r\n\r\n")
        if has_ended:
            break
    else:
        raise ReadError("no response")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise ReadError(raw[:400].decode("utf-8", "replace"))
    transfer, body = rest, b""
    while True:
        content, transfer = _unchunked(transfer)
        *texts, body = (body + content).split(b"\n\n")
        yield from (Event(arrival.at_s, text.removeprefix(b"data: ")) for text in texts)
        if (following := next(received, None)) is None:
            return
        arrival = following
        transfer += arrival.bytes


def _unchunked(transfer: bytes) -> tuple[bytes, bytes]:
    """The content of all complete chunks, and what follows them."""
    content = b""
    while True:
        size, has_ended, rest = transfer.partition(b"\r\n")
        if not has_ended or len(rest) < int(size, 16) + 2:
            return content, transfer
        content += rest[: int(size, 16)]
        transfer = rest[int(size, 16) + 2 :]


def _decode(data: bytes) -> _Chunk:
    try:
        return msgspec.json.decode(data, type=_Chunk)
    except msgspec.DecodeError:
        raise ReadError(data[:400].decode("utf-8", "replace")) from None


def _request(body: bytes) -> bytes:
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _read(streams: Sequence[Stream], started_s: float, limit_s: float) -> None:
    """A bare selector: what a reader costs here is taken from those who are measured."""
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            selector.register(stream.socket, selectors.EVENT_READ, stream)
        while selector.get_map():
            remaining_s = started_s + limit_s - time.perf_counter()
            ready = selector.select(max(0.0, remaining_s))
            at_s = time.perf_counter() - started_s
            for key, _ in ready:
                stream = key.data
                received = stream.socket.recv(READ_BYTES)
                if received:
                    stream.arrivals.append(Arrival(at_s, received))
                else:
                    selector.unregister(stream.socket)
            if remaining_s <= 0:
                break
    for stream in streams:
        stream.socket.close()


if __name__ == "__main__":
    main()
