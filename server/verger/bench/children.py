"""The processes that are measured and that measure: started, asked, ended.

Used by `overhead.py` and `served.py`. Every wait is bounded; a child that fails becomes one
BenchError with the last line that it printed. Must not know rounds' contents or statistics.
"""

import asyncio
import socket
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

from verger.errors import StartupError
from verger.timings import Timings

READY_LIMIT_S = 900.0
POLL_S = 0.01
PROBE_LIMIT_S = 5.0
END_LIMIT_S = 10.0
ENV = "/usr/bin/env"
MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""The times of a round, about 20 bytes a token."""


class BenchError(StartupError):
    """The measurement cannot be made."""


@dataclass(frozen=True, slots=True)
class Child:
    """A process of ours; what it prints on standard error is in `log`."""

    name: str
    process: Process
    log: Path

    def failure(self, problem: str) -> BenchError:
        """What went wrong, with the child's last words."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return BenchError(f"{self.name} {problem}: {lines[-1] if lines else 'it said nothing'}")


@asynccontextmanager
async def child(
    name: str,
    arguments: Sequence[str],
    folder: Path,
    variables: Mapping[str, str] | None = None,
    end_limit_s: float = END_LIMIT_S,
) -> AsyncIterator[Child]:
    """A Python process with the given arguments, and variables beside ours; ended on leaving."""
    log = folder / f"{name}.log"
    settings = [f"{variable}={value}" for variable, value in (variables or {}).items()]
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            # env(1) becomes the process: so no one here needs to read the environment.
            ENV, *settings, sys.executable, "-P", *arguments,
            stdin=PIPE, stdout=PIPE, stderr=stderr, limit=MAX_ANSWER_BYTES,
        )  # fmt: skip
    try:
        yield Child(name, process, log)
    finally:
        await _end(process, end_limit_s)


async def ask(worker: Child, question: Struct, limit_s: float) -> Timings:
    """One round of a worker: a line out, a line in."""
    stdin, stdout = worker.process.stdin, worker.process.stdout
    assert stdin is not None
    assert stdout is not None
    try:
        async with asyncio.timeout(limit_s):
            stdin.write(msgspec.json.encode(question) + b"\n")
            await stdin.drain()
            answer = await stdout.readline()
    except TimeoutError:
        raise worker.failure(f"did not answer within {limit_s:.0f} s") from None
    except ConnectionError:
        answer = b""
    if not answer:
        raise worker.failure("ended")
    return msgspec.json.decode(answer, type=Timings)


async def wait_ready(server: Child, port: int, started_s: float) -> float:
    """Seconds from `started_s` to the first green /readyz."""
    while time.monotonic() < started_s + READY_LIMIT_S:
        if await _is_ready(port):
            return time.monotonic() - started_s
        if server.process.returncode is not None:
            raise server.failure("ended")
        await asyncio.sleep(POLL_S)
    raise server.failure(f"was not ready within {READY_LIMIT_S:.0f} s")


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


async def _is_ready(port: int) -> bool:
    try:
        async with asyncio.timeout(PROBE_LIMIT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(
                    b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
                )
                return (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            finally:
                writer.close()
    except OSError:  # Nobody listens yet; a timeout is one of them.
        return False


async def _end(process: Process, limit_s: float) -> None:
    """A server drains on SIGTERM, the workers simply end; SIGKILL is for who does neither."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), limit_s)
    except TimeoutError:
        process.kill()
        await process.wait()
