"""The gateway's view of the engine: submit a sequence, iterate what comes back.

Built by the app, used by the endpoints. `EngineSupervisor` keeps the process alive and hands over
its frames; here they find their request. Must not know HTTP, text or processes.

A request waits in the queue, then is in `_pending` exactly as long as the engine works on it:
Finished, Rejected, the engine's death and an overflow take it out. So whoever leaves and still
finds it there owes the engine one Cancel, and nobody else sends one. Whatever takes one out lets
the next ones in.
"""

import asyncio
import itertools
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

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
from verger.gateway.hits import Hits, LookUps
from verger.gateway.principal import ANONYMOUS, Principal
from verger.gateway.rates import RateFit, Rates
from verger.gateway.submit_queue import MAX_QUEUED, Choices, Origin, SubmitQueue
from verger.messages import (
    BACKGROUND,
    Cancel,
    Finished,
    Found,
    FromEngine,
    Hello,
    Progress,
    Ready,
    Rejected,
    RejectReason,
    RowTokens,
    Stats,
    Submit,
    Tokens,
)

__all__ = ["EngineClient", "EngineState", "Event", "Generation", "RestartLimits"]

MAX_QUEUED_EVENTS = 4096
"""What a consumer may leave untaken, about a token each, before its request is cancelled."""
RETRY_AFTER_S = 2
RETRY_WITHOUT_WEIGHTS_S = 60
"""Gigabytes have to come."""
NOBODY = Origin()
"""Of requests of which nothing is known."""


class EngineClient:
    """Owns the engine; belongs to one event loop."""

    def __init__(
        self,
        command: Sequence[str],
        hello: Hello,
        limits: RestartLimits | None = None,
        *,
        no_weights: str = "",
        max_queued: int = MAX_QUEUED,
        max_queued_events: int = MAX_QUEUED_EVENTS,
        spawn: Spawn = spawn,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.stats: Stats | None = None
        """The living engine's last snapshot."""
        self._max_queued_events = max_queued_events
        self._pending: dict[int, Generation] = {}
        self.queue = SubmitQueue(max_queued)
        """Who waits and who runs, for forecasts; only this class changes it."""
        self._rates = RateFit()
        self._look_ups = LookUps(lambda look_up: self._supervisor.send(look_up))
        self._is_queue_empty = asyncio.Event()
        self._is_queue_empty.set()
        self._is_stopping = False
        self._no_weights = no_weights
        """Why there is nothing to load, and what to do about it; empty: there is."""
        self._clock = clock
        self._request_ids = itertools.count(1)
        self._supervisor = EngineSupervisor(
            command,
            hello,
            limits or RestartLimits(),
            has_weights=not no_weights,
            on_frame=self._dispatch,
            on_down=self._fail_pending,
            spawn=spawn,
            clock=clock,
            sleep=sleep,
        )

    @property
    def rates(self) -> Rates:
        """How fast the engine is."""
        return self._rates.rates

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
    def next_probe_s(self) -> float | None:
        """In safe mode, how long until the engine is tried again; else None."""
        return self._supervisor.next_probe_s

    @property
    def pid(self) -> int | None:
        """The engine's process id, None while there is none."""
        return self._supervisor.pid

    @property
    def pending(self) -> int:
        """Sequences that the engine works on, not counting what it does in the background."""
        return self.queue.given

    @property
    def queued(self) -> int:
        """Sequences that wait for their turn."""
        return self.queue.sequences

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
        """Take no new requests, let all others finish for up to drain_s, end the engine.

        What it does in the background is cancelled at once.
        """
        self._is_stopping = True
        for generation in list(filter(_is_background, self._pending.values())):
            self.cancel(generation.request_id)
            generation.fail(self._unavailable())
        started_s = self._clock()
        # An engine told to drain takes no more: first it gets what was promised an answer.
        with suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                await self._is_queue_empty.wait()
        await self._supervisor.stop(max(0.0, drain_s - (self._clock() - started_s)))

    @asynccontextmanager
    async def generate(self, submit: Submit, origin: Origin = NOBODY) -> AsyncIterator[Generation]:
        """Generate one sequence; its request id is given here. Leaving early cancels it.

        While the engine has enough to do the sequence waits for its key's turn.
        Raises EngineUnavailable or Overloaded; so does iterating, and ContextLengthExceeded.
        """
        async with self.generate_choices(submit, 1, origin) as (generation,):
            yield generation

    @asynccontextmanager
    async def generate_choices(
        self, submit: Submit, choices: int, origin: Origin = NOBODY
    ) -> AsyncIterator[Choices]:
        """Generate several sequences from one prompt, which is computed once; choice i samples
        with `sampling.choice` i. As `generate` otherwise; leaving cancels those that still run."""
        generations = self._enter(submit, choices, origin)
        try:
            yield generations
        finally:
            self._leave(generations)

    @asynccontextmanager
    async def prefill(
        self, submit: Submit, principal: Principal = ANONYMOUS
    ) -> AsyncIterator[Generation]:
        """Compute a prompt in the background, for a later request to find its KV.

        Waits for no turn and takes no place in the queue; `stop` cancels it. Errors as `generate`.
        """
        assert submit.prompt
        assert submit.max_tokens == 0
        assert submit.priority == BACKGROUND
        choices = self._new_choices(submit, 1)
        self.queue.start_background(choices[0], principal)
        self._send(choices)
        try:
            yield choices[0]
        finally:
            self._leave(choices)

    def require_ready(self) -> None:
        """Raises EngineUnavailable, which says why it is not."""
        if self._is_stopping or self.state is not EngineState.READY:
            raise self._unavailable()

    def look_up(self, submit: Submit) -> Hits:
        """Ask how much of a prompt is cached; the answer comes with `Hits.wait`, or later."""
        self.require_ready()
        return self._look_ups.ask(submit)

    def give_up(self, choices: Choices, error: ReplyError) -> None:
        """Take out a request that waits for its turn; whoever iterates gets the error, at once."""
        was_waiting = self.queue.remove(choices)
        assert was_waiting
        for generation in choices:
            generation.fail(error)

    def cancel(self, request_id: int) -> None:
        """Let the engine stop a request, if it still works on it; nothing more will come of it."""
        if self._take_out(request_id) is not None:
            self._supervisor.send(Cancel(request_id))
            self._submit_next()

    def _new_choices(self, submit: Submit, choices: int) -> Choices:
        self.require_ready()
        leader, *forks = itertools.islice(self._request_ids, choices)
        submit = msgspec.structs.replace(submit, request_id=leader, forks=forks)
        return tuple(Generation(request_id, submit) for request_id in (leader, *forks))

    def _enter(self, submit: Submit, count: int, origin: Origin) -> Choices:
        assert submit.prompt
        assert submit.max_tokens >= 1
        choices = self._new_choices(submit, count)
        if not self.queue.push(choices, origin, self._clock()):
            raise _overloaded()
        self._submit_next()
        return choices

    def _leave(self, choices: Choices) -> None:
        if not self.queue.remove(choices):
            for generation in choices:
                self.cancel(generation.request_id)
        self._submit_next()

    def _submit_next(self) -> None:
        """Give the engine whose turn it is; called whenever that may have changed."""
        assert self.ready is not None
        max_rows = self.ready.max_rows
        while (choices := self.queue.pop_next(max_rows, self._clock())) is not None:
            self._send(choices)
        if self.queued:
            self._is_queue_empty.clear()
        else:
            self._is_queue_empty.set()

    def _send(self, choices: Choices) -> None:
        # Registered before it is sent, so that no answer can overtake it.
        self._pending.update({generation.request_id: generation for generation in choices})
        self._supervisor.send(choices[0].submit)

    def _dispatch(self, frame: FromEngine) -> None:
        """Called for every frame, by the one task that reads: never waits, ignores the departed."""
        match frame:
            case Tokens():
                for row in frame.rows:
                    self._deliver(row)
            case Progress() | Finished():
                self._deliver(frame)
            case Rejected():
                generation = self._take_out(frame.request_id)
                if generation is not None:
                    generation.fail(self._rejection(frame.reason, len(generation.submit.prompt)))
                    self._submit_next()
            case Found():
                self._look_ups.tell(frame)
            case Stats():
                self.stats = frame
                self._rates.observe(frame, self._clock())
                self.queue.counters.prices = self.rates.prices(self._rates.rows)

    def _deliver(self, event: Event) -> None:
        generation = self._pending.get(event.request_id)
        if generation is None:
            return
        self.queue.note(event)
        if isinstance(event, RowTokens) and generation.first_token_s is None:
            generation.first_token_s = self._clock()
        if isinstance(event, Finished):
            self._take_out(event.request_id)
            self._submit_next()
        elif generation.queued_events >= self._max_queued_events:
            self.cancel(event.request_id)
            generation.fail(Overloaded("The answer was not read for too long and was cancelled."))
            return
        generation.put(event)

    def _take_out(self, request_id: int) -> Generation | None:
        """The one place where the engine's work on a sequence ends; None if it has ended."""
        generation = self._pending.pop(request_id, None)
        if generation is not None:
            self.queue.end(request_id)
        return generation

    def _fail_pending(self) -> None:
        self.stats = None
        self._look_ups.forget()
        self._rates.restart()
        pending = [self._take_out(request_id) for request_id in list(self._pending)]
        queued = itertools.chain.from_iterable(self.queue.clear())
        self._is_queue_empty.set()
        for generation in (*filter(None, pending), *queued):
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
        if self._is_stopping:
            return EngineUnavailable("Verger is shutting down.")
        if self.state is EngineState.NO_WEIGHTS:
            return EngineUnavailable(self._no_weights, retry_after_s=RETRY_WITHOUT_WEIGHTS_S)
        if self.state is EngineState.FAILED:
            return EngineUnavailable(f"The engine cannot run: {self.failure}")
        if (probe_s := self.next_probe_s) is not None:
            return EngineUnavailable(
                f"Verger is in safe mode, as its engine does not stay up: {self.failure}. It is "
                f"tried again in {math.ceil(probe_s)} s, or at once if Verger is restarted.",
                retry_after_s=max(1, math.ceil(probe_s)),
            )
        message = "The model is still being loaded. Try again in a few seconds."
        if self.state is EngineState.RESTARTING:
            message = "The engine stopped and is being restarted. Send the request again."
        return EngineUnavailable(message, retry_after_s=RETRY_AFTER_S)


def _is_background(generation: Generation) -> bool:
    return generation.submit.priority == BACKGROUND


def _overloaded() -> Overloaded:
    return Overloaded(
        "Too many requests are waiting. Try again in a few seconds.", retry_after_s=RETRY_AFTER_S
    )
