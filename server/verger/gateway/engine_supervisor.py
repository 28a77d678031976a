"""Keeps an engine alive: spawns it, reads it, watches for silence, restarts it.

Owned by `engine_client.py`, which gets every frame and is told of every death. Must not know
requests, HTTP or what the tokens mean.

    STARTING ──► READY ◄──► RESTARTING ◄─┐
      │ │                    │  │ ▲  └───┘       died again before it was ready
      │ └────────────────────┘  │ ▼
      │                         │ SAFE_MODE      died too often (`safe_mode.py`); left by a probe
      │                         └──► FAILED      permanent
      └──► NO_WEIGHTS                            nothing to load, so nothing is ever started
                                     STOPPED     from any state, by stop()
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from verger.gateway.engine_process import EngineProcess, ProtocolError, spawn
from verger.gateway.safe_mode import RestartPolicy
from verger.log import key_values
from verger.messages import (
    PROTOCOL_VERSION,
    Drain,
    Fatal,
    FromEngine,
    Hello,
    Ready,
    ToEngine,
)

SILENCE_CHECKS = 10
"""How often the watchdog looks within the silence it allows."""

logger = logging.getLogger("verger.gateway")

Spawn = Callable[[Sequence[str]], Awaitable[EngineProcess]]
Sleep = Callable[[float], Awaitable[None]]


class EngineState(Enum):
    """Whether the engine can be used; the diagram is in the module docstring."""

    STARTING = "starting"
    NO_WEIGHTS = "no_weights"
    READY = "ready"
    RESTARTING = "restarting"
    SAFE_MODE = "safe_mode"
    FAILED = "failed"
    STOPPED = "stopped"


_MOVES = {
    EngineState.STARTING: (
        EngineState.NO_WEIGHTS,
        EngineState.READY,
        EngineState.RESTARTING,
        EngineState.FAILED,
        EngineState.STOPPED,
    ),
    EngineState.NO_WEIGHTS: (EngineState.STOPPED,),
    EngineState.READY: (EngineState.RESTARTING, EngineState.STOPPED),
    EngineState.RESTARTING: (
        EngineState.READY,
        EngineState.RESTARTING,
        EngineState.SAFE_MODE,
        EngineState.FAILED,
        EngineState.STOPPED,
    ),
    EngineState.SAFE_MODE: (EngineState.RESTARTING, EngineState.STOPPED),
    EngineState.FAILED: (EngineState.STOPPED,),
    EngineState.STOPPED: (),
}


@dataclass(frozen=True, slots=True)
class RestartLimits:
    """When an engine is killed, and how soon it is started again."""

    silence_s: float = 30.0
    """An engine that sends nothing for so long, not even a heartbeat, is killed."""
    load_s: float = 900.0
    """The same while it loads the model, when it cannot send heartbeats."""
    first_delay_s: float = 0.25
    """Doubled at a further death; what comes after that is for `safe_mode.py` to say."""
    gives_up: bool = True
    """Whether an engine that could never run is FAILED; else it is only probed."""


@dataclass(slots=True)
class _Life:
    """What became of one engine process."""

    ready_at_s: float | None = None
    is_heard: bool = False
    is_permanent: bool = False
    is_hung: bool = False
    """The watchdog has killed it."""
    reason: str = ""
    """Why it ended; how the process exited where nothing more is known."""


class EngineSupervisor:
    """Owns the process and the task that reads it; belongs to one event loop."""

    def __init__(
        self,
        command: Sequence[str],
        hello: Hello,
        limits: RestartLimits,
        *,
        has_weights: bool = True,
        on_frame: Callable[[FromEngine], None],
        on_down: Callable[[], None],
        spawn: Spawn = spawn,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.state = EngineState.STARTING
        self.ready: Ready | None = None
        """What the last engine that became ready said of itself."""
        self.failure = ""
        """Why the last engine ended; empty as long as none did."""
        self._command = command
        self._hello = hello
        self._limits = limits
        self._has_weights = has_weights
        self._on_frame = on_frame
        self._on_down = on_down
        self._spawn = spawn
        self._clock = clock
        self._sleep = sleep
        self._process: EngineProcess | None = None
        self._probe_s = 0.0
        self._is_decided = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The engine's process id, None while there is none."""
        return None if self._process is None else self._process.pid

    @property
    def next_probe_s(self) -> float | None:
        """In safe mode, how long until the engine is tried again; else None."""
        if self.state is not EngineState.SAFE_MODE:
            return None
        return max(0.0, self._probe_s - self._clock())

    def start(self) -> None:
        """Start the engine in the background, if it has something to load."""
        assert self._task is None
        if not self._has_weights:
            self._become(EngineState.NO_WEIGHTS)
            return
        self._task = asyncio.create_task(self._supervise(), name="engine-supervisor")
        self._task.add_done_callback(self._end)

    def send(self, frame: ToEngine) -> None:
        """Send a frame to the living engine."""
        assert self._process is not None
        self._process.send(frame)

    async def wait_decided(self) -> None:
        """Wait as long as it is STARTING or RESTARTING."""
        await self._is_decided.wait()

    async def stop(self, drain_s: float) -> None:
        """End the engine; one that is ready may finish its requests for up to drain_s."""
        was_ready = self.state is EngineState.READY
        if self.state is not EngineState.STOPPED:
            self._become(EngineState.STOPPED)
        if self._task is None:
            return
        if was_ready:
            self.send(Drain())
            await asyncio.wait({self._task}, timeout=drain_s)
        self._task.cancel()
        await asyncio.wait({self._task})
        if not self._task.cancelled():
            self._task.result()

    def _become(self, state: EngineState) -> None:
        """The one place where the state changes."""
        assert state in _MOVES[self.state], (self.state, state)
        self.state = state
        if state is EngineState.RESTARTING:
            self._is_decided.clear()
        else:
            self._is_decided.set()

    def _end(self, task: asyncio.Task[None]) -> None:
        """A defect here must not look like a restart that takes long; `stop` raises it."""
        if not task.cancelled() and (defect := task.exception()) is not None:
            logger.critical("event=engine_supervisor_failed", exc_info=defect)
            self.failure = f"its supervisor failed: {defect}"
            if self.state is not EngineState.STOPPED:
                self._become(EngineState.FAILED)

    async def _supervise(self) -> None:
        policy = RestartPolicy(self._limits.first_delay_s)
        while True:
            life = await self._live()
            if self.state is EngineState.STOPPED:
                return
            self.failure = life.reason
            cause = "watchdog" if life.is_hung else "crash"
            logger.error(key_values(event="engine_ended", cause=cause, reason=life.reason))
            if life.is_permanent and self._limits.gives_up:
                self._become(EngineState.FAILED)
                return
            now_s = self._clock()
            ready_s = 0.0 if life.ready_at_s is None else now_s - life.ready_at_s
            delay_s = policy.delay_s(now_s, ready_s, is_hopeless=life.is_permanent)
            if policy.is_safe:
                await self._pause(now_s + delay_s, delay_s)
            else:
                await self._sleep(delay_s)

    async def _pause(self, until_s: float, delay_s: float) -> None:
        """Safe mode, until a probe."""
        self._probe_s = until_s
        self._become(EngineState.SAFE_MODE)
        logger.error(key_values(event="safe_mode", next_probe_s=delay_s, reason=self.failure))
        await self._sleep(delay_s)
        if self.state is EngineState.SAFE_MODE:
            self._become(EngineState.RESTARTING)
            logger.warning("event=safe_mode_probe")

    async def _live(self) -> _Life:
        """One engine, from its start until it is reaped."""
        life = _Life()
        try:
            self._process = process = await self._spawn(self._command)
        except OSError as error:
            self._go_down()
            life.reason = f"cannot start {self._command[0]}: {error}"
            return life
        try:
            process.send(self._hello)
            await self._attend(process, life)
        finally:
            self._process = None
            self._go_down()
            ending = await process.close()
        life.reason = life.reason or ending
        return life

    def _go_down(self) -> None:
        if self.state is not EngineState.STOPPED:
            self._become(EngineState.RESTARTING)
        self._on_down()

    async def _attend(self, process: EngineProcess, life: _Life) -> None:
        async with asyncio.TaskGroup() as group:
            watchdog = group.create_task(self._watch(process, life), name="engine-watchdog")
            await self._read(process, life)
            watchdog.cancel()

    async def _read(self, process: EngineProcess, life: _Life) -> None:
        try:
            while (frame := await process.receive()) is not None:
                life.is_heard = True
                self._take(frame, process, life)
        except ProtocolError as error:
            life.reason = str(error)

    def _take(self, frame: FromEngine, process: EngineProcess, life: _Life) -> None:
        match frame:
            case Ready() if frame.version != PROTOCOL_VERSION:
                life.reason = f"it speaks protocol version {frame.version}. Restart verger."
                life.is_permanent = True
                process.kill()
            case Ready():
                life.ready_at_s = self._clock()
                self.ready = frame
                self._become(EngineState.READY)
            case Fatal():
                life.reason = frame.message
                life.is_permanent = frame.is_permanent
            case _:
                self._on_frame(frame)

    async def _watch(self, process: EngineProcess, life: _Life) -> None:
        """Kill an engine that has fallen silent.

        Silence is counted in checks, not read from a clock: a gateway that was itself suspended
        (Ctrl-Z, a debugger) must not blame the engine for the time it slept through.
        """
        interval_s = self._limits.silence_s / SILENCE_CHECKS
        silent_s = 0.0
        while True:
            await self._sleep(interval_s)
            silent_s = 0.0 if life.is_heard else silent_s + interval_s
            life.is_heard = False
            is_loading = life.ready_at_s is None
            if silent_s >= (self._limits.load_s if is_loading else self._limits.silence_s):
                what = "still loading after" if is_loading else "silent for"
                life.reason = f"it was {what} {silent_s:.0f} s and was killed"
                life.is_hung = True
                process.kill()
                return
