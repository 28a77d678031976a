"""Whether the engine that a stream waits for still turns, so that heartbeats do not hide a hang.

One per stream, asked at every tick of its heartbeat. Must not know what the stream waits for.
While the engine has work its loop sends statistics every second, from the thread that computes.
"""

from collections.abc import Callable
from typing import Protocol

from verger.gateway.engine_client import EngineState
from verger.messages import Stats

MAX_SILENCE_S = 10.0
"""Longer than any step of a healthy engine, shorter than what gets a silent one killed."""


class Engine(Protocol):
    """What is looked at of an EngineClient."""

    @property
    def state(self) -> EngineState: ...

    @property
    def stats(self) -> Stats | None: ...


class EngineVitals:
    """Trusts the engine for MAX_SILENCE_S after each change that it sees."""

    def __init__(self, engine: Engine, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock
        self._last_stats = engine.stats
        self._changed_s = clock()

    def is_alive(self) -> bool:
        """Ready or draining, and heard of lately."""
        if self._engine.stats is not self._last_stats:
            self._last_stats = self._engine.stats
            self._changed_s = self._clock()
        is_silent = self._clock() - self._changed_s > MAX_SILENCE_S
        return self._engine.state in (EngineState.READY, EngineState.STOPPED) and not is_silent
