"""One engine process and the socket to it: spawn, send and receive frames, kill, reap.

Used by `engine_supervisor.py`, once per life of an engine. Must not know requests, restarts or what
a frame means. The socketpair has no name in any file system, and the engine is its only other
owner: whichever side dies, the other reads an EOF.
"""

import asyncio
import signal
import socket
from asyncio.subprocess import DEVNULL
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Protocol

import msgspec

from verger.messages import MAX_FRAME_BYTES, FromEngine, ToEngine

LENGTH_BYTES = 4
READ_BUFFER_BYTES = 256 * 1024
EXIT_S = 1.0
"""How long a process may take to exit by itself once its socket is closed."""
REAP_S = 5.0
"""How long a killed process may take to go; one stuck in a driver is left behind."""


class ProtocolError(Exception):
    """What arrived is no frame of ours; the engine cannot be trusted any further."""


class Child(Protocol):
    """What is needed of asyncio.subprocess.Process."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    def kill(self) -> None: ...

    async def wait(self) -> int: ...


class EngineProcess:
    """Owns the child and the gateway's end of the socket; belongs to one task."""

    def __init__(
        self, child: Child, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.pid = child.pid
        self._child = child
        self._reader = reader
        self._writer = writer
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)

    def send(self, frame: ToEngine) -> None:
        """Queue a frame; the caller bounds how many it has under way. To a dead engine: nothing.

        Never waits: an engine that does not read is either computing or found by the watchdog.
        """
        payload = self._encoder.encode(frame)
        assert len(payload) <= MAX_FRAME_BYTES
        if not self._writer.is_closing():
            self._writer.write(len(payload).to_bytes(LENGTH_BYTES, "little") + payload)

    async def receive(self) -> FromEngine | None:
        """The next frame; None once the engine is gone, even in the middle of a frame."""
        try:
            length = int.from_bytes(await self._reader.readexactly(LENGTH_BYTES), "little")
            if length > MAX_FRAME_BYTES:
                raise ProtocolError(f"the engine announced a frame of {length} bytes")
            return self._decoder.decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        except msgspec.DecodeError as error:
            raise ProtocolError(f"the engine sent an unreadable frame: {error}") from error

    def kill(self) -> None:
        """SIGKILL; a hung device listens to nothing less."""
        with suppress(ProcessLookupError):
            self._child.kill()

    async def close(self) -> str:
        """Close the socket, make sure that the process ends, and say how it did."""
        self._writer.close()
        try:
            await self._wait(EXIT_S)
        finally:
            self.kill()
        return _describe(await self._wait(REAP_S))

    async def _wait(self, limit_s: float) -> int | None:
        try:
            return await asyncio.wait_for(self._child.wait(), limit_s)
        except TimeoutError:
            return None


async def spawn(command: Sequence[str]) -> EngineProcess:
    """Start the command with `--fd N` appended, N being its inherited end of the socket."""
    ours, theirs = socket.socketpair()
    with theirs, ExitStack() as on_failure:
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=READ_BUFFER_BYTES)
        on_failure.callback(writer.close)
        child = await asyncio.create_subprocess_exec(
            *command,
            "--fd",
            str(theirs.fileno()),
            pass_fds=(theirs.fileno(),),
            stdin=DEVNULL,
            stdout=DEVNULL,
        )
        on_failure.pop_all()
    return EngineProcess(child, reader, writer)


def _describe(returncode: int | None) -> str:
    if returncode is None:
        return "does not die"
    if returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}"
    return f"exit code {returncode}"
