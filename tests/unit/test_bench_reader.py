"""What the reader makes of the bytes of a stream, however they were cut."""

import json

import pytest

from tests.harmony_text import byte_vocabulary
from verger.bench.reader import UNSEEN_TOKENS, Arrival, ReadError, times_of

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
USAGE = {"prompt_tokens": 70, "completion_tokens": 12, "total_tokens": 82}


def chunked(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def event(**fields: object) -> bytes:
    return chunked(b"data: " + json.dumps({"id": "c", **fields}).encode() + b"\n\n")


def delta(**fields: str) -> bytes:
    return event(choices=[{"index": 0, "delta": fields, "finish_reason": None}], usage=None)


END = event(choices=[], usage=USAGE) + chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def test_tokens_are_counted_when_they_arrive() -> None:
    arrivals = [
        Arrival(0.5, HEAD + delta(role="assistant", content="")),
        Arrival(1.0, delta(reasoning="a")),
        Arrival(2.0, delta(content="bc") + delta(content="d")),
        Arrival(3.0, END),
    ]
    times = times_of(arrivals, byte_vocabulary())
    assert times.token_s == [1.0] * (UNSEEN_TOKENS + 1) + [2.0] * 3
    assert (times.prompt_tokens, times.tokens, times.ended_s) == (70, 12, 3.0)


def test_how_the_bytes_were_cut_does_not_matter() -> None:
    """One byte at a time: an event has arrived when its last byte has."""
    stream = HEAD + delta(content="ab") + END
    arrivals = [Arrival(float(at), stream[at : at + 1]) for at in range(len(stream))]
    times = times_of(arrivals, byte_vocabulary())
    # The byte that completes a chunk is the line feed behind it.
    assert times.token_s[-1] == len(HEAD + delta(content="ab")) - 1
    assert times.ended_s == len(stream) - len(b"0\r\n\r\n") - 1


def test_an_answer_without_text_has_no_times() -> None:
    assert times_of([Arrival(1.0, HEAD + END)], byte_vocabulary()).token_s == []


@pytest.mark.parametrize(
    ("received", "message"),
    [
        (b"", "no response"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n{}", "503 Service Unavailable"),
        (HEAD + delta(content="a"), r"ended before \[DONE\]"),
        (HEAD + event(error={"message": "The engine stopped."}), "The engine stopped"),
    ],
)
def test_an_incomplete_answer_is_a_failure(received: bytes, message: str) -> None:
    with pytest.raises(ReadError, match=message):
        times_of([Arrival(1.0, received)], byte_vocabulary())
