"""The gateway's view of the engine: submit a sequence, iterate what comes back.

Built by the app, used by the endpoints. `EngineSupervisor` keeps the process alive and hands over
its frames; here they find their request. Must not know HTTP, text or processes.

A request is in `_pending` exactly as long as the engine works on it: Finished, Rejected, the
engine's death and an overflow take it out. So whoever leaves and still finds it there owes the
engine one Cancel, and nobody else sends one.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import msgspec

from verger.errors import ContextLengthExceeded, EngineUnavailable, Overloaded, ReplyError
from verger.gateway.engine_process import spawn
from verger.gateway.engine_supervisor import (
    EngineState,
    EngineSupervisor,
    RestartLimits,
    Sleep,
    Spawn,
)
from verger.gateway.generation import Event, Generation
from verger.messages import (
    Cancel,
    Finished,
    FromEngine,
    Hello,
    Progress,
    Ready,
    Rejected,
    RejectReason,
    Stats,
    Submit,
    Tokens,
)

__all__ = ["EngineClient", "EngineState", "Event", "Generation", "RestartLimits"]

MAX_PENDING = 1024
MAX_QUEUED_EVENTS = 4096
"""What a consumer may leave untaken, about a token each, before its request is cancelled."""
RETRY_AFTER_S = 2


class EngineClient:
    """Owns the engine; belongs to one event loop."""

    def __init__(
        self,
        command: Sequence[str],
        hello: Hello,
        limits: RestartLimits | None = None,
        *,
        max_pending: int = MAX_PENDING,
        max_queued_events: int = MAX_QUEUED_EVENTS,
        spawn: Spawn = spawn,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.stats: Stats | None = None
        """The living engine's last snapshot."""
        self._max_pending = max_pending
        self._max_queued_events = max_queued_events
        self._pending: dict[int, Generation] = {}
        self._request_ids = itertools.count(1)
        self._supervisor = EngineSupervisor(
            command,
            hello,
            limits or RestartLimits(),
            on_frame=self._dispatch,
            on_down=self._fail_pending,
            spawn=spawn,
            clock=clock,
            sleep=sleep,
        )

    @property
    def state(self) -> EngineState:
        """Whether requests are taken."""
        return self._supervisor.state

    @property
    def ready(self) -> Ready | None:
        """What the last engine that became ready said of itself."""
        return self._supervisor.ready

    @property
    def failure(self) -> str:
        """Why the last engine ended; empty as long as none did."""
        return self._supervisor.failure

    @property
    def pid(self) -> int | None:
        """The engine's process id, None while there is none."""
        return self._supervisor.pid

    @property
    def pending(self) -> int:
        """Requests that the engine works on."""
        return len(self._pending)

    async def start(self) -> None:
        """Start the engine in the background; `wait_ready` tells when and whether it runs."""
        self._supervisor.start()

    async def wait_ready(self, timeout_s: float) -> Ready:
        """Wait through starts and restarts; EngineUnavailable if it fails or takes too long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._supervisor.wait_decided()
        except TimeoutError:
            raise self._unavailable() from None
        if self.ready is None or self.state is not EngineState.READY:
            raise self._unavailable()
        return self.ready

    async def stop(self, drain_s: float) -> None:
        """Take no new requests, let the pending ones finish for up to drain_s, end the engine."""
        await self._supervisor.stop(drain_s)

    @asynccontextmanager
    async def generate(self, submit: Submit) -> AsyncIterator[Generation]:
        """Generate one sequence; its request id is given here. Leaving early cancels it.

        Raises EngineUnavailable or Overloaded; so does iterating, and ContextLengthExceeded.
        """
        async with self.generate_choices(submit, 1) as (generation,):
            yield generation

    @asynccontextmanager
    async def generate_choices(
        self, submit: Submit, choices: int
    ) -> AsyncIterator[tuple[Generation, ...]]:
        """Generate several sequences from one prompt, which is computed once; choice i samples
        with `sampling.choice` i. As `generate` otherwise; leaving cancels those that still run."""
        generations = self._register(submit, choices)
        try:
            yield generations
        finally:
            for generation in generations:
                self.cancel(generation.request_id)

    def cancel(self, request_id: int) -> None:
        """Let the engine stop a request, if it still works on it; nothing more will come of it."""
        if self._pending.pop(request_id, None) is not None:
            self._supervisor.send(Cancel(request_id))

    def _register(self, submit: Submit, choices: int) -> tuple[Generation, ...]:
        assert submit.prompt
        assert submit.max_tokens >= 1
        if self.state is not EngineState.READY:
            raise self._unavailable()
        if self.pending + choices > self._max_pending:
            raise _overloaded()
        leader, *forks = itertools.islice(self._request_ids, choices)
        submit = msgspec.structs.replace(submit, request_id=leader, forks=forks)
        generations = {
            request_id: Generation(request_id, submit) for request_id in (leader, *forks)
        }
        # Registered before it is sent, so that no answer can overtake it.
        self._pending.update(generations)
        self._supervisor.send(submit)
        return tuple(generations.values())

    def _dispatch(self, frame: FromEngine) -> None:
        """Called for every frame, by the one task that reads: never waits, ignores the departed."""
        match frame:
            case Tokens():
                for row in frame.rows:
                    self._deliver(row)
            case Progress() | Finished():
                self._deliver(frame)
            case Rejected():
                generation = self._pending.pop(frame.request_id, None)
                if generation is not None:
                    generation.fail(self._rejection(frame.reason, len(generation.submit.prompt)))
            case Stats():
                self.stats = frame

    def _deliver(self, event: Event) -> None:
        generation = self._pending.get(event.request_id)
        if generation is None:
            return
        if isinstance(event, Finished):
            del self._pending[event.request_id]
        elif generation.queued_events >= self._max_queued_events:
            self.cancel(event.request_id)
            generation.fail(Overloaded("The answer was not read for too long and was cancelled."))
            return
        generation.put(event)

    def _fail_pending(self) -> None:
        self.stats = None
        pending, self._pending = self._pending, {}
        for generation in pending.values():
            generation.fail(self._unavailable())

    def _rejection(self, reason: RejectReason, prompt_tokens: int) -> ReplyError:
        match reason:
            case RejectReason.TOO_LONG:
                assert self.ready is not None
                return ContextLengthExceeded(self.ready.context_tokens, prompt_tokens)
            case RejectReason.QUEUE_FULL:
                return _overloaded()
            case RejectReason.DRAINING:
                return EngineUnavailable("Verger is shutting down.")

    def _unavailable(self) -> EngineUnavailable:
        match self.state:
            case EngineState.STARTING | EngineState.READY:
                message = "The model is still being loaded. Try again in a few seconds."
            case EngineState.RESTARTING:
                message = "The engine stopped and is being restarted. Send the request again."
            case EngineState.FAILED:
                return EngineUnavailable(f"The engine cannot run: {self.failure}")
            case EngineState.STOPPED:
                return EngineUnavailable("Verger is shutting down.")
        return EngineUnavailable(message, retry_after_s=RETRY_AFTER_S)


def _overloaded() -> Overloaded:
    return Overloaded(
        "Too many requests are waiting. Try again in a few seconds.", retry_after_s=RETRY_AFTER_S
    )
