"""Server-sent events of other servers, however they are cut up."""

import pytest

from verger.gateway.backends.event_reader import MAX_EVENT_BYTES, EventReader, OversizedEvent

STREAM = (
    b": comment\n\n"
    b'data: {"a": 1}\n\n'
    b"event: message\r\nid: 7\r\ndata:two\r\ndata: lines\r\n\r\n"
    b"\n\n"
    b"data: [DONE]\n\n"
)
EVENTS = [b'{"a": 1}', b"two\nlines", b"[DONE]"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_the_same_however_the_bytes_are_cut(size: int) -> None:
    reader = EventReader()
    pieces = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
    assert [event for piece in pieces for event in reader.feed(piece)] == EVENTS


def test_an_event_that_never_ends_is_not_an_event() -> None:
    assert EventReader().feed(b"data: x") == []


@pytest.mark.parametrize("parts", [1, 64])
def test_the_largest_event_is_taken_and_one_byte_more_is_not(parts: int) -> None:
    data = b"x" * (MAX_EVENT_BYTES - len(b"data: "))
    event = b"data: " + data + b"\n\n"
    size = len(event) // parts + 1
    reader = EventReader()
    fed = [reader.feed(event[at : at + size]) for at in range(0, len(event), size)]
    assert sum(fed, []) == [data]
    with pytest.raises(OversizedEvent):
        EventReader().feed(b"data: x" + data)
    with pytest.raises(OversizedEvent):
        EventReader().feed(b"data: x" + data + b"\n\n")


def test_many_lines_of_one_event_are_bounded_together() -> None:
    line = b"data: " + b"x" * 1018 + b"\n"
    with pytest.raises(OversizedEvent):
        EventReader().feed(line * (MAX_EVENT_BYTES // 1024 + 2))


def test_any_number_of_comments_is_no_large_event() -> None:
    reader = EventReader()
    comments = b": still working\n" * 1000
    for _ in range(100):
        assert reader.feed(comments) == []
    assert reader.feed(b"data: x\n\n") == [b"x"]
