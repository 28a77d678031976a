"""When a waiting stream speaks, and when it must not."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import pytest
from starlette.types import Message

from tests.fakes import FakeTime
from verger.gateway.edge import RequestRecord
from verger.gateway.engine_client import EngineState
from verger.gateway.sse import DONE, PING, EventStream, Heartbeat
from verger.gateway.vitals import MAX_SILENCE_S, EngineVitals
from verger.messages import Stats

pytestmark = pytest.mark.anyio


@dataclass
class StubEngine:
    """What the vitals look at."""

    state: EngineState = EngineState.READY
    stats: Stats | None = None


def stats() -> Stats:
    return Stats(1, 0, 1, 0, 0, 0, 0, 0)


def test_a_quiet_stream_speaks_at_every_tick_after_the_first() -> None:
    heartbeat = Heartbeat(lambda: b"beat", 5, is_alive=lambda: True)

    assert heartbeat.tick_s == 2.5
    assert [heartbeat.tick() for _ in range(4)] == [b"", b"beat", b"beat", b"beat"]


def test_a_stream_that_flows_needs_no_heartbeats() -> None:
    """A frame right after one tick and none later: the tick after the next is the deadline."""
    heartbeat = Heartbeat(lambda: b"beat", 5, is_alive=lambda: True)
    spoken = []
    for _ in range(3):
        spoken.append(heartbeat.tick())
        heartbeat.note_sent()

    assert spoken == [b"", b"", b""]
    assert heartbeat.tick() == b""
    assert heartbeat.tick() == b"beat"


async def test_a_heartbeat_does_not_speak_of_a_choice_that_has_ended() -> None:
    """It is due just when the last frames come, which overtake whoever sends it."""
    is_due, sent = asyncio.Event(), list[bytes]()

    def beat() -> bytes:
        is_due.set()
        return b"beat"

    async def frames() -> AsyncGenerator[bytes]:
        yield b"first"
        await is_due.wait()
        for frame in (b"finish", DONE):
            yield frame

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    record = RequestRecord("req_1", 0.0, finish="stop")
    scope = {"type": "http", "method": "POST", "path": "/", "verger.record": record}
    stream = EventStream(frames(), Heartbeat(beat, 0.02, is_alive=lambda: True), {})
    await stream(scope, receive, send)

    assert sent == [b"", b"first", b"beat", b"finish", DONE, b""]


async def test_nothing_is_made_while_a_frame_waits_to_be_sent() -> None:
    """A client that reads again finds the frame first, and what was made meanwhile behind it."""
    is_read, sent = asyncio.Event(), list[bytes]()

    async def send(message: Message) -> None:
        sent.append(message["body"])
        if message["body"] == DONE:
            await is_read.wait()

    heartbeat = Heartbeat(lambda: b"beat", 5, is_alive=lambda: True)
    speaking = heartbeat.speaking(send)
    for body in (PING, PING):
        await speaking({"type": "http.response.body", "body": body})
    heartbeat.note_sent()
    ending = asyncio.ensure_future(speaking({"type": "http.response.body", "body": DONE}))
    await asyncio.sleep(0)
    for body in (PING, PING, PING):
        await speaking({"type": "http.response.body", "body": body})
    is_read.set()
    await ending

    assert sent == [b"beat", DONE]


async def test_an_engine_that_falls_silent_silences_the_heartbeat() -> None:
    engine, now = StubEngine(), FakeTime()
    vitals = EngineVitals(engine, now.clock)
    assert vitals.is_alive()

    await now.advance(MAX_SILENCE_S)
    assert vitals.is_alive()
    await now.advance(0.1)
    assert not vitals.is_alive()

    engine.stats = stats()
    assert vitals.is_alive()
    engine.state = EngineState.STOPPED
    assert vitals.is_alive(), "a draining engine still answers"
    engine.state = EngineState.RESTARTING
    assert not vitals.is_alive()
