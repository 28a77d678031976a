"""The engine's end of the socket: whole frames, whatever pieces they come in."""

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import pytest

from verger.engine.transport import (
    MAX_READS,
    READ_BYTES,
    Connection,
    ConnectionClosed,
    ProtocolError,
)
from verger.messages import MAX_FRAME_BYTES, Cancel, Drain, Heartbeat, Submit, ToEngine

WAIT_S = 10.0


@dataclass(slots=True)
class Ends:
    """Both ends of one socketpair: the engine's connection and the gateway's raw socket."""

    engine: Connection
    gateway: socket.socket


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = socket.socketpair()
    ours.settimeout(WAIT_S)
    connection = Connection(theirs)
    yield Ends(connection, ours)
    connection.close()
    ours.close()


def frame(message: object) -> bytes:
    payload = msgspec.msgpack.encode(message)
    return len(payload).to_bytes(4, "little") + payload


def test_nothing_to_receive_is_no_error(ends: Ends) -> None:
    assert ends.engine.receive(0.0) == []


def test_several_frames_arrive_at_once_and_in_order(ends: Ends) -> None:
    ends.gateway.sendall(frame(Cancel(1)) + frame(Cancel(2)) + frame(Drain()))
    assert ends.engine.receive(WAIT_S) == [Cancel(1), Cancel(2), Drain()]
    assert ends.engine.receive(0.0) == []


def test_a_frame_may_come_byte_by_byte(ends: Ends) -> None:
    received: list[ToEngine] = []
    for byte in frame(Cancel(1)):
        assert received == []
        ends.gateway.sendall(bytes([byte]))
        received += ends.engine.receive(WAIT_S)
    assert received == [Cancel(1)]


def test_a_frame_and_a_half_is_one_frame_now_and_one_later(ends: Ends) -> None:
    second = frame(Cancel(2))
    ends.gateway.sendall(frame(Cancel(1)) + second[:5])
    assert ends.engine.receive(WAIT_S) == [Cancel(1)]
    ends.gateway.sendall(second[5:])
    assert ends.engine.receive(WAIT_S) == [Cancel(2)]


def test_a_frame_larger_than_one_read_arrives_whole(ends: Ends) -> None:
    submit = Submit(request_id=1, prompt=[200_000] * 131_072, max_tokens=1, stop_ids=[])
    assert len(frame(submit)) > READ_BYTES
    sender = threading.Thread(target=ends.gateway.sendall, args=(frame(submit),))
    sender.start()
    received: list[ToEngine] = []
    while not received:
        received = ends.engine.receive(WAIT_S)
    sender.join()
    assert received == [submit]


class EndlessSocket(socket.socket):
    """A gateway that never stops sending."""

    reads = 0

    def recv(self, *_: object) -> bytes:
        self.reads += 1
        return frame(Cancel(self.reads))


def test_one_call_does_not_read_forever() -> None:
    """The engine must get to compute, whatever the gateway does."""
    ours, theirs = socket.socketpair()
    ours.send(b"readable")
    with ours, EndlessSocket(fileno=theirs.detach()) as endless:
        assert len(Connection(endless).receive(WAIT_S)) == MAX_READS


def test_the_gateways_end_is_noticed(ends: Ends) -> None:
    ends.gateway.close()
    with pytest.raises(ConnectionClosed):
        ends.engine.receive(WAIT_S)


def test_a_gateway_that_closed_without_reading_is_an_end_too(ends: Ends) -> None:
    """Linux resets such a connection instead of ending it."""
    ends.engine.send([Heartbeat(1)])
    ends.gateway.close()
    with pytest.raises(ConnectionClosed):
        ends.engine.receive(WAIT_S)


def test_half_a_frame_and_then_the_end_is_an_end(ends: Ends) -> None:
    ends.gateway.sendall(frame(Cancel(1))[:5])
    ends.gateway.close()
    with pytest.raises(ConnectionClosed):
        ends.engine.receive(WAIT_S)


def test_sending_to_a_gateway_that_is_gone_is_an_end(ends: Ends) -> None:
    ends.gateway.close()
    with pytest.raises(ConnectionClosed):
        ends.engine.send([Heartbeat(1)])


def test_frames_are_sent_in_one_piece(ends: Ends) -> None:
    ends.engine.send([Heartbeat(1), Heartbeat(2)])
    assert ends.gateway.recv(READ_BYTES) == frame(Heartbeat(1)) + frame(Heartbeat(2))


@pytest.mark.parametrize(("payload_bytes", "is_refused"), [(0, False), (1, True)])
def test_the_largest_frame_is_awaited_and_a_larger_one_refused(
    ends: Ends, payload_bytes: int, is_refused: bool
) -> None:
    ends.gateway.sendall((MAX_FRAME_BYTES + payload_bytes).to_bytes(4, "little"))
    if is_refused:
        with pytest.raises(ProtocolError, match="67108865 bytes"):
            ends.engine.receive(WAIT_S)
    else:
        assert ends.engine.receive(WAIT_S) == []


@pytest.mark.parametrize("message", [["cancel"], ["nonsense"], [], 7, Heartbeat(1)], ids=str)
def test_an_unreadable_frame_is_a_protocol_error(ends: Ends, message: object) -> None:
    ends.gateway.sendall(frame(message))
    with pytest.raises(ProtocolError, match="unreadable"):
        ends.engine.receive(WAIT_S)
