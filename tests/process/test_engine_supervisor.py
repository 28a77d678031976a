"""Starting, losing, restarting and giving up an engine; the engine and time are the test's."""

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Sequence

import msgspec
import pytest

from tests.fakes import READY, FakeEngine, FakeEngines, FakeTime, settle
from verger.errors import EngineUnavailable
from verger.gateway.engine_client import EngineClient, EngineState, RestartLimits
from verger.gateway.engine_process import EngineProcess
from verger.gateway.engine_supervisor import SILENCE_CHECKS
from verger.messages import (
    MAX_FRAME_BYTES,
    PROTOCOL_VERSION,
    Drain,
    Fatal,
    Finished,
    FinishReason,
    Heartbeat,
    Hello,
    Submit,
)

pytestmark = pytest.mark.anyio

WAIT_S = 10.0
HELLO = Hello(1, 5)
SUBMIT = Submit(request_id=0, prompt=[1, 2, 3], max_tokens=10, stop_ids=[])
LIMITS = RestartLimits(
    silence_s=30.0,
    load_s=90.0,
    first_delay_s=1.0,
)
CHECK_S = LIMITS.silence_s / SILENCE_CHECKS


class World:
    """A client, the engines it starts, and the time they live in."""

    def __init__(self) -> None:
        self.engines = FakeEngines()
        self.time = FakeTime()
        self.client = self.make_client()

    def make_client(self, limits: RestartLimits = LIMITS) -> EngineClient:
        return EngineClient(
            ["engine", "--flag"],
            HELLO,
            limits,
            spawn=self.engines.spawn,
            clock=self.time.clock,
            sleep=self.time.sleep,
        )

    async def start_ready(self) -> FakeEngine:
        await self.client.start()
        engine = await self.engines.next_ready()
        await self.client.wait_ready(WAIT_S)
        return engine

    async def backoff_s(self) -> float:
        """Wait until the client sleeps before a restart; for how long."""
        async with asyncio.timeout(WAIT_S):
            while (seconds := await self.time.sleeps_s.get()) == CHECK_S:
                pass
        return seconds


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    world.engines.exit_all()
    await world.client.stop(drain_s=0.0)


async def test_the_engine_is_greeted_and_becomes_ready(world: World) -> None:
    with pytest.raises(EngineUnavailable, match="being loaded"):
        await world.client.generate(SUBMIT).__aenter__()
    await world.start_ready()
    assert world.engines.commands == [["engine", "--flag"]]
    assert world.client.state is EngineState.READY
    assert world.client.ready == READY
    assert world.client.failure == ""


async def test_waiting_for_a_slow_engine_has_a_limit(world: World) -> None:
    await world.client.start()
    with pytest.raises(EngineUnavailable, match="being loaded"):
        await world.client.wait_ready(timeout_s=0.01)


async def test_a_dead_engine_is_restarted_and_serves_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    engine = await world.start_ready()
    engine.exit(-9)
    assert await world.backoff_s() == LIMITS.first_delay_s
    assert world.client.state is EngineState.RESTARTING
    assert world.client.failure == "killed by SIGKILL"
    assert "killed by SIGKILL" in caplog.text
    await world.time.advance(LIMITS.first_delay_s)
    second = await world.engines.next_ready()
    await world.client.wait_ready(WAIT_S)
    async with world.client.generate(SUBMIT) as generation:
        second.send(Finished(generation.request_id, FinishReason.STOP, 3, 0))
        assert len([event async for event in generation]) == 1


async def test_wait_ready_waits_through_a_restart(world: World) -> None:
    engine = await world.start_ready()
    engine.exit(1)
    await world.backoff_s()
    waiting = asyncio.create_task(world.client.wait_ready(WAIT_S))
    await world.time.advance(LIMITS.first_delay_s)
    assert not waiting.done()
    await world.engines.next_ready()
    assert await waiting == READY


async def into_safe_mode(world: World) -> None:
    await world.client.start()
    for failure in range(1, 4):
        engine = await world.engines.next()
        engine.send(Fatal(f"failure {failure}"))
        engine.exit(1)
        assert await world.backoff_s() == (1.0, 2.0, 600.0)[failure - 1]
        if failure < 3:
            await world.time.advance(2.0)


async def test_an_engine_that_dies_again_and_again_is_only_probed(world: World) -> None:
    await into_safe_mode(world)
    assert world.client.state is EngineState.SAFE_MODE
    assert world.client.next_probe_s == 600
    with pytest.raises(
        EngineUnavailable, match="safe mode, .*: failure 3.* again in 600 s"
    ) as raised:
        await world.client.generate(SUBMIT).__aenter__()
    assert raised.value.retry_after_s == 600
    with pytest.raises(EngineUnavailable, match="safe mode"):
        await world.client.wait_ready(WAIT_S)
    await world.time.advance(599.0)
    assert len(world.engines.commands) == 3
    await world.time.advance(1.0)
    (await world.engines.next()).exit(1)
    assert await world.backoff_s() == 1_200
    assert world.client.state is EngineState.SAFE_MODE


async def test_a_probe_that_becomes_ready_serves_again(world: World) -> None:
    await into_safe_mode(world)
    await world.time.advance(600.0)
    engine = await world.engines.next_ready()
    await settle()
    assert (await world.client.wait_ready(WAIT_S), world.client.next_probe_s) == (READY, None)
    async with world.client.generate(SUBMIT) as generation:
        engine.send(Finished(generation.request_id, FinishReason.STOP, 3, 0))
        assert len([event async for event in generation]) == 1


async def test_a_permanent_failure_is_not_retried(world: World) -> None:
    await world.client.start()
    engine = await world.engines.next()
    engine.send(Fatal("the folder is no gpt-oss", is_permanent=True))
    engine.exit(3)
    with pytest.raises(EngineUnavailable, match="no gpt-oss"):
        await world.client.wait_ready(WAIT_S)
    assert world.client.state is EngineState.FAILED
    assert world.client.failure == "the folder is no gpt-oss"
    assert len(world.engines.commands) == 1


async def test_who_does_not_give_up_only_probes_an_engine_that_could_never_run(
    world: World,
) -> None:
    world.client = world.make_client(dataclasses.replace(LIMITS, gives_up=False))
    await world.client.start()
    engine = await world.engines.next()
    engine.send(Fatal("no memory", is_permanent=True))
    engine.exit(3)
    with pytest.raises(EngineUnavailable, match=r"safe mode.*no memory.*600 s"):
        await world.client.wait_ready(WAIT_S)
    assert world.client.state is EngineState.SAFE_MODE
    await world.time.advance(600.0)
    await world.engines.next_ready()
    await settle()
    assert await world.client.wait_ready(WAIT_S) == READY


async def test_an_engine_of_another_version_is_given_up(world: World) -> None:
    await world.client.start()
    engine = await world.engines.next()
    engine.send(msgspec.structs.replace(READY, version=PROTOCOL_VERSION + 1))
    with pytest.raises(EngineUnavailable, match=f"protocol version {PROTOCOL_VERSION + 1}"):
        await world.client.wait_ready(WAIT_S)
    assert engine.returncode == -9


async def test_a_silent_engine_is_killed(world: World) -> None:
    """Each frame starts a new count, which the next check begins."""
    engine = await world.start_ready()
    await world.time.advance(LIMITS.silence_s)
    engine.send(Heartbeat(0))
    await settle()
    await world.time.advance(LIMITS.silence_s)
    assert engine.returncode is None
    await world.time.advance(CHECK_S)
    assert engine.returncode == -9
    await world.backoff_s()
    assert world.client.failure == "it was silent for 30 s and was killed"


async def test_loading_may_be_silent_for_longer(world: World) -> None:
    await world.client.start()
    engine = await world.engines.next()
    await world.time.advance(LIMITS.load_s - CHECK_S)
    assert engine.returncode is None
    await world.time.advance(CHECK_S)
    assert engine.returncode == -9
    await world.backoff_s()
    assert world.client.failure == "it was still loading after 90 s and was killed"


@pytest.mark.parametrize(
    ("piece", "reason"),
    [
        (b"\x20\x00\x00\x00half a frame", "killed by SIGKILL"),
        ((MAX_FRAME_BYTES + 1).to_bytes(4, "little"), "a frame of 67108865 bytes"),
        (b"\x01\x00\x00\x00\x07", "unreadable frame"),
    ],
    ids=["half", "oversized", "unreadable"],
)
async def test_garbage_from_the_engine_is_its_death(
    world: World, piece: bytes, reason: str
) -> None:
    engine = await world.start_ready()
    async with world.client.generate(SUBMIT) as generation:
        engine.send_bytes(piece)
        if reason.startswith("killed"):
            engine.exit(-9)
        with pytest.raises(EngineUnavailable):
            await anext(generation)
    engine.exit(1)
    await world.backoff_s()
    assert reason in world.client.failure


async def test_stop_drains_first(world: World) -> None:
    engine = await world.start_ready()
    async with world.client.generate(SUBMIT) as generation:
        stopping = asyncio.create_task(world.client.stop(drain_s=WAIT_S))
        assert isinstance(await engine.receive(), Submit)
        assert await engine.receive() == Drain()
        with pytest.raises(EngineUnavailable, match="shutting down"):
            await world.client.generate(SUBMIT).__aenter__()
        engine.send(Finished(generation.request_id, FinishReason.STOP, 3, 0))
        assert len([event async for event in generation]) == 1
        engine.exit(0)
        await stopping
    assert world.client.state is EngineState.STOPPED
    assert len(world.engines.commands) == 1


async def test_stop_ends_what_does_not_drain_in_time(world: World) -> None:
    engine = await world.start_ready()
    async with world.client.generate(SUBMIT) as generation:
        stopping = asyncio.create_task(world.client.stop(drain_s=0.0))
        with pytest.raises(EngineUnavailable, match="shutting down"):
            await anext(generation)
    engine.exit(0)
    await stopping


@pytest.mark.parametrize("phase", ["unstarted", "loading", "backoff", "safe", "failed"])
async def test_stop_ends_every_phase(world: World, phase: str) -> None:
    if phase == "safe":
        await into_safe_mode(world)
    elif phase != "unstarted":
        await world.client.start()
        engine = await world.engines.next()
    if phase == "backoff":
        engine.exit(1)
        await world.backoff_s()
    if phase == "failed":
        engine.send(Fatal("broken", is_permanent=True))
        engine.exit(3)
        with pytest.raises(EngineUnavailable):
            await world.client.wait_ready(WAIT_S)
    stopping = asyncio.create_task(world.client.stop(drain_s=WAIT_S))
    await settle()
    world.engines.exit_all()
    await stopping
    await world.client.stop(drain_s=WAIT_S)
    assert world.client.state is EngineState.STOPPED
    with pytest.raises(EngineUnavailable, match="shutting down"):
        await world.client.wait_ready(WAIT_S)


async def test_a_command_that_cannot_be_started_is_a_failure(world: World) -> None:
    async def spawn(command: Sequence[str]) -> EngineProcess:
        raise FileNotFoundError(2, "No such file or directory")

    world.client = EngineClient(
        ["nowhere"], HELLO, LIMITS, spawn=spawn, clock=world.time.clock, sleep=world.time.sleep
    )
    await world.client.start()
    assert await world.backoff_s() == LIMITS.first_delay_s
    assert "cannot start nowhere" in world.client.failure


async def test_a_defect_in_the_supervisor_is_logged_and_ends_all_requests(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def spawn(command: Sequence[str]) -> EngineProcess:
        raise RuntimeError("a defect")

    caplog.set_level(logging.CRITICAL)
    world.client = EngineClient(["engine"], HELLO, LIMITS, spawn=spawn)
    await world.client.start()
    with pytest.raises(EngineUnavailable, match="cannot run"):
        await world.client.wait_ready(WAIT_S)
    with pytest.raises(RuntimeError, match="a defect"):
        await world.client.stop(drain_s=0.0)
    assert "a defect" in caplog.text
    world.client = world.make_client()
