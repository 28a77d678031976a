"""Lets requests in: each is forecast and routed before it is queued, and again while it waits.

Asked for every turn. Decides within LOOK_UP_WAIT_S: longer than that it does not wait for what the
engine has of the prompt. Belongs to the event loop; owns the task that looks at the queue every
second. Must not know JSON, HTTP or providers.

    look up ─► outlook ─► route ─► a ticket, good for a place in the queue ─► its end teaches how
                            └────► Overloaded                                 good the forecast was
"""

import asyncio
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from verger.errors import Overloaded
from verger.gateway.engine_client import EngineClient, EngineState
from verger.gateway.engine_supervisor import Sleep
from verger.gateway.generation import Generation
from verger.gateway.outlook import Observer, Outlook, newcomer
from verger.gateway.output_lengths import OutputLengths
from verger.gateway.prediction import Score, Scores
from verger.gateway.principal import Principal
from verger.gateway.rates import Rates
from verger.gateway.routing import (
    Facts,
    Hysteresis,
    Kind,
    Limits,
    Reason,
    Route,
    Snapshot,
    choose,
    retry_after_s,
)
from verger.gateway.submit_queue import Origin, Waiting
from verger.messages import Submit

logger = logging.getLogger("verger.gateway")

REVIEW_S = 1.0
"""Between two looks at those that wait."""
KEPT_ROW_TIMES = 64
MAX_JITTER = 1.25


@dataclass(slots=True, eq=False)
class Ticket:
    """A request that was let in."""

    origin: Origin
    may_spill: bool
    arrived_s: float
    first: Route
    """What was decided when it came."""
    route: Route
    """What would be decided now, as long as it waits; it is never refused any more."""
    is_scored: bool
    """Whether the forecast knew what is cached, or had to decide without."""
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it shall go to the cloud after all."""


class Admission:
    """One per process."""

    def __init__(
        self,
        engine: EngineClient,
        model: str,
        limits: Limits,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = asyncio.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.limits = limits
        self.scores = Scores()
        self.decisions: Counter[Kind] = Counter()
        self._engine = engine
        self._lengths = OutputLengths()
        self._observer = Observer(engine.queue, self._lengths, model)
        self._hysteresis = Hysteresis(limits.ttft_objective_s)
        self._row_times_s: deque[float] = deque(maxlen=KEPT_ROW_TIMES)
        self._tickets: dict[Origin, Ticket] = {}
        """Of all that wait or run."""
        self._clock = clock
        self._sleep = sleep
        self._uniform = uniform
        self._reviewing: asyncio.Task[None] | None = None

    async def admit(
        self,
        submit: Submit,
        choices: int,
        principal: Principal,
        effort: str,
        *,
        may_spill: bool = False,
    ) -> Ticket:
        """A ticket, to be given to `end`; its route is the cloud only if the request may spill.

        Raises Overloaded, or EngineUnavailable if it may not spill.
        """
        if self._engine.state is not EngineState.READY and may_spill:
            return self._down(principal, effort)
        origin = Origin(principal, effort, self._engine.look_up(submit))
        queue, max_rows = self._engine.queue, self._max_rows
        is_busy = queue.given > 0
        has_place = not queue.sequences and queue.given + choices < max_rows
        if not (is_busy and has_place):
            # Whoever goes at once would only miss the next step by waiting for the answer.
            await origin.hits.wait()
        asked = newcomer(submit, choices, origin, self._clock())
        outlook = self._outlook(asked)
        self._hysteresis.observe(outlook.forecast.ttft_s)
        route = self._choose(outlook, may_spill)
        self.decisions[route.kind] += 1
        if route.kind is Kind.REJECT:
            raise self._refusal(route)
        is_scored = origin.hits.is_told or not has_place
        ticket = Ticket(origin, may_spill, asked.arrived_s, route, route, is_scored)
        self._tickets[origin] = ticket
        self._review_later()
        return ticket

    def end(self, ticket: Ticket, generations: Sequence[Generation], *, is_whole: bool) -> None:
        """The request is over; whether it was answered to the end. Anything else teaches nothing
        of how long answers are."""
        self._tickets.pop(ticket.origin, None)
        if not generations:
            return
        self._score(ticket, generations[0])
        if is_whole:
            kind = self._observer.kind(ticket.origin)
            for generation in generations:
                self._lengths.add(kind, generation.sampled_tokens)
                if generation.given_s is not None:
                    self._row_times_s.append(self._clock() - generation.given_s)

    @property
    def rates(self) -> Rates:
        """How fast the engine is."""
        return self._engine.rates

    @property
    def longest_wait_s(self) -> float:
        """Of those that wait, as forecast."""
        outlooks = self._observer.outlooks(self._engine.rates, self._max_rows)
        return max((outlook.forecast.wait_s for outlook in outlooks), default=0.0)

    async def close(self) -> None:
        """Look at nobody any more."""
        if self._reviewing is not None:
            self._reviewing.cancel()
            await asyncio.wait({self._reviewing})

    @property
    def _max_rows(self) -> int:
        return 1 if self._engine.ready is None else self._engine.ready.max_rows

    def _outlook(self, asked: Waiting) -> Outlook:
        outlooks = self._observer.outlooks(self._engine.rates, self._max_rows, asked)
        return next(outlook for outlook in outlooks if outlook.waiting is asked)

    def _choose(self, outlook: Outlook, may_spill: bool) -> Route:
        facts = Facts(
            outlook.waiting.submit.priority,
            outlook.forecast,
            outlook.sequences_ahead,
            outlook.tokens_ahead,
            may_spill,
        )
        return choose(facts, self._snapshot(), self.limits)

    def _snapshot(self) -> Snapshot:
        rates = self._engine.rates
        return Snapshot(
            self._max_rows,
            rates.alone_s,
            fmean(self._row_times_s) if self._row_times_s else None,
            is_measured=rates.is_measured,
            is_trusted=self.scores.is_trusted,
            is_spilling=self._hysteresis.is_spilling,
        )

    def _down(self, principal: Principal, effort: str) -> Ticket:
        route = Route(Kind.CLOUD, Reason.ENGINE_DOWN, 0.0, 0.0)
        self.decisions[route.kind] += 1
        return Ticket(Origin(principal, effort), True, self._clock(), route, route, False)

    def _refusal(self, route: Route) -> Overloaded:
        retry_s = retry_after_s(route, self.limits, self._uniform(1.0, MAX_JITTER))
        limit = f"spill.max_wait_s = {self.limits.max_wait_s:g}"
        why = f"it would wait about {route.wait_s:.0f} s for others, more than {limit} allows"
        if route.reason is Reason.QUEUE_TOO_LONG:
            why = f"more is waiting before it than can be answered within {limit} s"
        return Overloaded(
            f"The request was not queued: {why}. Try again in {retry_s} s, or send fewer requests "
            "at once.",
            retry_after_s=retry_s,
        )

    def _score(self, ticket: Ticket, generation: Generation) -> None:
        if ticket.is_scored and generation.first_token_s is not None:
            actual_s = generation.first_token_s - ticket.arrived_s
            objective_s = self.limits.ttft_objective_s
            self.scores.add(Score(ticket.first.ttft_s, actual_s, objective_s))

    # Those that wait.

    def review(self) -> None:
        """Forecast all that wait again; whoever may still spill is told when it shall."""
        for outlook in self._observer.outlooks(self._engine.rates, self._max_rows):
            ticket = self._tickets.get(outlook.waiting.origin)
            if ticket is None:
                continue
            route = self._choose(outlook, ticket.may_spill)
            if route.kind is not Kind.REJECT:
                ticket.route = route
            if route.kind is Kind.CLOUD:
                ticket.left.set()

    def _review_later(self) -> None:
        if self._reviewing is None or self._reviewing.done():
            self._reviewing = asyncio.create_task(self._review_all(), name="admission")
            self._reviewing.add_done_callback(_end)

    async def _review_all(self) -> None:
        """Until nobody waits."""
        await self._sleep(REVIEW_S)
        while self._engine.queue.sequences:
            self.review()
            await self._sleep(REVIEW_S)


def _end(task: asyncio.Task[None]) -> None:
    """A defect here costs nobody an answer, but must not go unseen."""
    if not task.cancelled() and (defect := task.exception()) is not None:
        logger.critical("event=review_failed", exc_info=defect)
