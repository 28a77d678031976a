"""When a waiting stream speaks, and when it must not."""

from dataclasses import dataclass
from typing import Any

import pytest

from tests.fakes import FakeTime
from verger.gateway.engine_client import EngineState
from verger.gateway.sse import DONE, Ending, Heartbeat
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


async def test_nothing_follows_the_last_frame_but_the_end() -> None:
    """A heartbeat that was made before it has been overtaken."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    def body(frame: bytes, more_body: bool = True) -> dict[str, Any]:
        return {"type": "http.response.body", "body": frame, "more_body": more_body}

    ending = Ending()
    guarded = ending.guard(send)
    start = {"type": "http.response.start", "status": 200}
    frames = [body(b"one"), body(b"beat"), body(b"two")]
    for message in (start, *frames):
        await guarded(message)
    ending.frame = DONE
    for message in (body(b"beat"), body(DONE), body(b"beat"), body(b"beat"), body(b"", False)):
        await guarded(message)

    assert sent == [start, *frames, body(b"beat"), body(DONE), body(b"", False)]


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
