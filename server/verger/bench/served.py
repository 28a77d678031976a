"""A server under measurement: our own, started with given settings, or one that runs already.

Used by `replay.py`, `stall.py`, `rates.py` and the like. A server's own counters are read from
`/v1/status`, which only Verger has; without them the usage of the answers must do. Must not know
what is measured.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

from verger.bench.children import BenchError, child, free_port, wait_ready
from verger.bench.client import Endpoint, get
from verger.bench.reader import ReadError

STATUS_PATH = "/status"
STATUS_LIMIT_S = 10.0
IDLE_LIMIT_S = 600.0
"""Work in the background included."""
IDLE_POLL_S = 0.5
QUIET_S = 2.0
"""So long must nothing change: the counters are at most a second old."""
COMMAND_LIMIT_S = 60.0
END_LIMIT_S = 120.0
"""A server may have prefixes to write before it ends."""


class _Made(Struct):
    """What `verger keys add --json` prints."""

    secret: str


class _Rows(Struct, frozen=True):
    max: int = 0
    running: int = 0
    waiting: int = 0
    queued: int = 0


class _Tokens(Struct, frozen=True):
    prefilled: int
    decoded: int
    background: int


class _Cache(Struct, frozen=True):
    bytes: int
    limit_bytes: int
    asked_tokens: int
    cached_tokens: int
    token_bytes: int
    window_bytes: int
    evictions: int = 0
    preemptions: int = 0


class _Memory(Struct, frozen=True):
    kv_bytes: int
    buffer_bytes: int = 0


class _Key(Struct, frozen=True):
    name: str
    running: int


class Status(Struct, frozen=True):
    """The part of `/v1/status` that is looked at; counters run from the engine's start."""

    rows: _Rows
    tokens: _Tokens
    cache: _Cache
    memory: _Memory
    keys: tuple[_Key, ...] = ()

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs or waits, in the background either."""
        return not (self.rows.running or self.rows.waiting or self.rows.queued)

    @property
    def ring_bytes(self) -> int:
        """While idle: what the sliding layers of rows take, rows or not."""
        return max(0, self.memory.kv_bytes - self.cache.bytes)


@dataclass(frozen=True, slots=True)
class Own:
    """How to start our own server: `requested` is what --model said."""

    requested: str
    max_rows: int


@dataclass(frozen=True, slots=True)
class Started:
    """A server of ours, ready so long after its process was started; what it logs is in `log`."""

    endpoint: Endpoint
    pid: int
    ready_s: float
    log: Path


@asynccontextmanager
async def serving(
    own: Own, home: Path, settings: Mapping[str, str] | None = None
) -> AsyncIterator[Endpoint]:
    """As `started`, for those who only ask it."""
    async with started(own, home, settings) as server:
        yield server.endpoint


@asynccontextmanager
async def started(
    own: Own, home: Path, settings: Mapping[str, str] | None = None
) -> AsyncIterator[Started]:
    """`verger serve` on a free loopback port, ready; `settings` are VERGER_ variables."""
    port, started_s = free_port(), time.monotonic()
    arguments = ["-m", "verger.cli.main", "serve", "--host", "127.0.0.1", "--port", str(port)]
    arguments += ["--model", own.requested, "--max-rows", str(own.max_rows)]
    variables = {"VERGER_HOME": str(home), **(settings or {})}
    async with child("server", arguments, home.parent, variables, END_LIMIT_S) as server:
        ready_s = await wait_ready(server, port, started_s)
        endpoint = Endpoint("127.0.0.1", port, "/v1")
        yield Started(endpoint, server.process.pid, ready_s, server.log)


async def made_key(folder: Path, home: Path, name: str, *flags: str) -> str:
    """A key for a server that is started afterwards, as an administrator makes it."""
    command = ["-m", "verger.cli.main", "keys", "add", name, *flags, "--json"]
    async with child(f"keys-{name}", command, folder, {"VERGER_HOME": str(home)}) as adding:
        assert adding.process.stdout is not None
        try:
            async with asyncio.timeout(COMMAND_LIMIT_S):
                printed = await adding.process.stdout.read()
                await adding.process.wait()
        except TimeoutError:
            raise adding.failure("did not end") from None
        if adding.process.returncode:
            raise adding.failure("made none")
    return msgspec.json.decode(printed, type=_Made).secret


async def read_status(endpoint: Endpoint, key: str = "") -> Status | None:
    """None where there is no such thing, or another one."""
    try:
        body = await get(endpoint, STATUS_PATH, key, STATUS_LIMIT_S)
        return None if body is None else msgspec.json.decode(body, type=Status)
    except (ReadError, msgspec.DecodeError):
        return None


async def settled_status(endpoint: Endpoint, key: str = "") -> Status | None:
    """The status once nothing has happened for a while; a server without one is not waited for."""
    last = await read_status(endpoint, key)
    if last is None:
        return None
    changed_s = started_s = time.monotonic()
    while (now_s := time.monotonic()) < changed_s + QUIET_S or not last.is_idle:
        if now_s > started_s + IDLE_LIMIT_S:
            raise BenchError(f"the server was not idle within {IDLE_LIMIT_S:.0f} s")
        await asyncio.sleep(IDLE_POLL_S)
        status = await read_status(endpoint, key)
        if status is None:
            raise BenchError("the server does not tell its status any more")
        if status != last:
            last, changed_s = status, time.monotonic()
    return last
