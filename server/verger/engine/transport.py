"""The engine's end of the socket: blocking, length-prefixed msgpack frames, one thread.

Used by `__main__` and the loop. Must not know what a frame means. The frame format is described
in `messages.py`; the gateway's end is `gateway/engine_process.py`.
"""

import os
import select
import socket
from collections.abc import Iterable

import msgspec

from verger.messages import MAX_FRAME_BYTES, FromEngine, ToEngine

LENGTH_BYTES = 4
READ_BYTES = 256 * 1024
MAX_READS = 64
"""Reads a call: frames are acted on after 16 MiB even if more keeps arriving."""


class ConnectionClosed(Exception):
    """The gateway is gone; there is nobody left to work for."""


class ProtocolError(Exception):
    """What arrived is no frame of ours; the stream cannot be read any further."""


class Connection:
    """Frames in and out. The receive buffer is bounded by one frame and one call's reads."""

    def __init__(self, stream: socket.socket) -> None:
        stream.setblocking(True)
        self._stream = stream
        self._buffer = bytearray()
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)

    @classmethod
    def from_fd(cls, fd: int) -> "Connection":
        """Take over an inherited descriptor; our own children must not keep it open."""
        os.set_inheritable(fd, False)
        return cls(socket.socket(fileno=fd))

    def close(self) -> None:
        """Close the socket; the gateway sees an EOF."""
        self._stream.close()

    def receive(self, timeout_s: float) -> list[ToEngine]:
        """All frames that are here, after waiting up to timeout_s for the first bytes."""
        readable, _, _ = select.select([self._stream], [], [], timeout_s)
        if readable:
            self._fill()
        return self._take_frames()

    def send(self, frames: Iterable[FromEngine]) -> None:
        """Write all frames in one call; blocks while the gateway does not read."""
        parts = bytearray()
        for frame in frames:
            payload = self._encoder.encode(frame)
            assert len(payload) <= MAX_FRAME_BYTES
            parts += len(payload).to_bytes(LENGTH_BYTES, "little")
            parts += payload
        try:
            self._stream.sendall(parts)
        except ConnectionError as error:
            raise ConnectionClosed from error

    def _fill(self) -> None:
        for _ in range(MAX_READS):
            try:
                chunk = self._stream.recv(READ_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionError as error:
                raise ConnectionClosed from error
            if not chunk:
                raise ConnectionClosed
            self._buffer += chunk

    def _take_frames(self) -> list[ToEngine]:
        frames: list[ToEngine] = []
        start = 0
        while (stop := self._frame_stop(start)) <= len(self._buffer):
            frames.append(self._decode(self._buffer[start + LENGTH_BYTES : stop]))
            start = stop
        del self._buffer[:start]
        return frames

    def _frame_stop(self, start: int) -> int:
        """Where the frame at `start` ends; beyond the buffer while some of it is missing."""
        payload_start = start + LENGTH_BYTES
        if len(self._buffer) < payload_start:
            return payload_start
        payload_bytes = int.from_bytes(self._buffer[start:payload_start], "little")
        if payload_bytes > MAX_FRAME_BYTES:
            raise ProtocolError(f"a frame of {payload_bytes} bytes; {MAX_FRAME_BYTES} are allowed")
        return payload_start + payload_bytes

    def _decode(self, payload: bytearray) -> ToEngine:
        try:
            return self._decoder.decode(payload)
        except msgspec.DecodeError as error:
            raise ProtocolError(f"an unreadable frame: {error}") from error
