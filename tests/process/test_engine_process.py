"""The engine process itself, without a client: how it ends, and what it ends with."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.fakes import FakeEngine
from tests.process.engines import HELLO, WAIT_S, ask, make_command
from verger.gateway import engine_process
from verger.gateway.engine_process import EngineProcess, spawn
from verger.messages import (
    PROTOCOL_VERSION,
    Cancel,
    Drain,
    Fatal,
    Finished,
    FinishReason,
    FromEngine,
    Progress,
    Ready,
    Tokens,
)

pytestmark = [pytest.mark.anyio, pytest.mark.process]


@asynccontextmanager
async def spawned(tmp_path: Path) -> AsyncIterator[EngineProcess]:
    """A ready engine process; the test closes it."""
    async with asyncio.timeout(WAIT_S):
        engine = await spawn(make_command(tmp_path))
        try:
            engine.send(HELLO)
            assert isinstance(await engine.receive(), Ready)
            yield engine
        finally:
            engine.kill()
            await engine.close()


async def read_to_the_end(engine: EngineProcess) -> list[FromEngine]:
    frames = []
    while (frame := await engine.receive()) is not None:
        frames.append(frame)
    return frames


async def test_a_drained_engine_exits_with_0(tmp_path: Path) -> None:
    async with spawned(tmp_path) as engine:
        engine.send(ask("say hello"))
        engine.send(Drain())
        frames = await read_to_the_end(engine)
        assert sum(isinstance(frame, Finished) for frame in frames) == 1
        assert await engine.close() == "exit code 0"


async def test_a_prompt_that_is_only_computed_ends_without_tokens(tmp_path: Path) -> None:
    submit = ask("say hello" * 10, max_tokens=0)
    async with spawned(tmp_path) as engine:
        engine.send(submit)
        engine.send(Drain())
        frames = [f for f in await read_to_the_end(engine) if isinstance(f, Progress | Finished)]
        tokens = len(submit.prompt)
        assert frames[-2:] == [
            Progress(0, tokens, tokens),
            Finished(0, FinishReason.LENGTH, tokens, 0),
        ]
        assert await engine.close() == "exit code 0"


async def test_the_engine_ends_with_the_gateways_socket(tmp_path: Path) -> None:
    async with spawned(tmp_path) as engine:
        assert await engine.close() == "exit code 0"


@pytest.mark.parametrize(
    "signal_", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda s: s.name
)
async def test_signals_to_the_process_group_do_not_end_the_engine(
    tmp_path: Path, signal_: signal.Signals
) -> None:
    async with spawned(tmp_path) as engine:
        os.kill(engine.pid, signal_)
        engine.send(ask("say hello"))
        engine.send(Drain())
        frames = await read_to_the_end(engine)
        assert sum(isinstance(frame, Tokens) for frame in frames) > 1
        assert await engine.close() == "exit code 0"


async def test_a_frame_out_of_place_ends_the_engine_with_a_reason(tmp_path: Path) -> None:
    async with spawned(tmp_path) as engine:
        engine.send(HELLO)
        frames = await read_to_the_end(engine)
        assert frames[-1] == Fatal("ProtocolError: Hello while the engine runs")
        assert await engine.close() == "exit code 1"


async def test_anything_but_hello_at_first_ends_the_engine(tmp_path: Path) -> None:
    async with asyncio.timeout(WAIT_S):
        engine = await spawn(make_command(tmp_path))
        engine.send(Cancel(1))
        assert await read_to_the_end(engine) == [
            Fatal("ProtocolError: Cancel instead of one Hello")
        ]
        assert await engine.close() == "exit code 1"


async def test_a_process_that_cannot_even_be_killed_is_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such as one stuck in a GPU driver: stopping and restarting go on without it."""

    class Stuck(FakeEngine):
        kills = 0

        def kill(self) -> None:
            self.kills += 1

    monkeypatch.setattr(engine_process, "EXIT_S", 0.01)
    monkeypatch.setattr(engine_process, "REAP_S", 0.01)
    ours, theirs = socket.socketpair()
    stuck = Stuck(*await asyncio.open_unix_connection(sock=theirs))
    engine = EngineProcess(stuck, *await asyncio.open_unix_connection(sock=ours))
    assert await engine.close() == "does not die"
    assert stuck.kills == 1
    stuck.exit()


async def test_the_engine_does_not_outlive_a_killed_gateway(tmp_path: Path) -> None:
    """Both hold the write end of a pipe; its end is read when the last of them is gone."""
    gateway = f"""
import asyncio, os, signal
from verger.gateway import engine_process
from verger.gateway.engine_client import EngineClient
from verger.messages import Hello

async def main():
    client = EngineClient({make_command(tmp_path)!r}, Hello({PROTOCOL_VERSION}, 5))
    await client.start()
    await client.wait_ready({WAIT_S})
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
    finished = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", gateway], stderr=subprocess.PIPE, timeout=WAIT_S
    )
    assert finished.returncode == -signal.SIGKILL
    assert finished.stderr == b""
