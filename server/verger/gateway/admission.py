"""Lets requests in: each is forecast and routed before it is queued, and again while it waits.

Asked for every turn. Decides within LOOK_UP_WAIT_S: longer than that it does not wait for what the
engine has of the prompt, unless the request would be turned away for lack of it. Belongs to the
event loop; owns the task that looks at the queue every second. Must not know JSON, HTTP or
providers.

    look up ─► outlook ─► route ─► a ticket, good for a place in the queue ─► its end teaches how
                            ├────► Overloaded      │ as long as it waits      good the forecast was
                            └────► Spilled ◄───────┘
"""

import asyncio
import logging
import random
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from verger.errors import Overloaded
from verger.gateway.engine_client import EngineClient, EngineState
from verger.gateway.engine_supervisor import Sleep
from verger.gateway.generation import Generation
from verger.gateway.outlook import Observer, Outlook, newcomer
from verger.gateway.output_lengths import OutputLengths
from verger.gateway.prediction import Score, Scores
from verger.gateway.principal import Principal, RoutePolicy
from verger.gateway.rates import Rates
from verger.gateway.routing import (
    Facts,
    Hysteresis,
    Limits,
    Place,
    Reason,
    Route,
    Snapshot,
    Spilled,
    choose,
    retry_after_s,
)
from verger.gateway.submit_queue import Origin, Waiting
from verger.messages import Submit

logger = logging.getLogger("verger.gateway")

REVIEW_S = 1.0
"""Between two looks at those that wait."""
REFUSAL_WAIT_S = 2.0
"""The engine tells between steps: nobody is turned away during a long one for a prompt that is
cached, or for those of others."""
KEPT_ROW_TIMES = 64
MAX_JITTER = 1.25
MAX_SPILLING = 1024
"""Keys of which it is known whether spilling has set in; the one used least lately is forgotten."""

_WITHOUT_ENGINE = {
    EngineState.STARTING: Reason.ENGINE_LOADING,
    EngineState.NO_WEIGHTS: Reason.NO_WEIGHTS,
}

Cloud = Callable[[], bool]
"""Whether a cloud can and may take a request now; asked when it comes and every second while it
waits, so it must not block."""


def nowhere() -> bool:
    """There is no cloud."""
    return False


@dataclass(slots=True, eq=False)
class Ticket:
    """A request that was let in."""

    origin: Origin
    cloud: Cloud
    arrived_s: float
    first: Route
    """What was decided when it came."""
    route: Route
    """What would be decided now, as long as it waits; it is never refused any more."""
    is_scored: bool
    """Whether the forecast knew what is cached, or had to decide without."""
    spill: Callable[[Spilled], None] | None = None
    """Called once, when a cloud shall answer after all; None: it cannot leave, or has left."""


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
        self.decisions: Counter[Place] = Counter()
        self._engine = engine
        self._lengths = OutputLengths()
        self._observer = Observer(engine.queue, self._lengths, model)
        self._spilling: OrderedDict[str, Hysteresis] = OrderedDict()
        """By key: what one waits says little of what another would."""
        self._row_times_s: deque[float] = deque(maxlen=KEPT_ROW_TIMES)
        self._tickets: dict[Origin, Ticket] = {}
        """Of all that wait or run."""
        self._clock = clock
        self._sleep = sleep
        self._uniform = uniform
        self._reviewing: asyncio.Task[None] | None = None

    def require_engine(self, principal: Principal, cloud: Cloud) -> None:
        """Raises Spilled if there is none and a cloud shall answer, else EngineUnavailable."""
        if self._engine.state is not EngineState.READY:
            reason = _WITHOUT_ENGINE.get(self._engine.state, Reason.ENGINE_DOWN)
            self.spill_if_may(principal, cloud, reason)
        self._engine.require_ready()

    async def admit(
        self,
        submit: Submit,
        choices: int,
        principal: Principal,
        effort: str,
        cloud: Cloud = nowhere,
        *,
        was_let_in: bool = False,
    ) -> Ticket:
        """A ticket, to be given to `end`. Whoever was let in before is not refused for its wait.

        Raises Spilled if a cloud shall answer, else Overloaded or EngineUnavailable.
        """
        self.require_engine(principal, cloud)
        queue, max_rows = self._engine.queue, self._max_rows
        if not queue.has_place(choices):
            self.spill_if_may(principal, cloud, Reason.QUEUE_TOO_LONG)
        origin = Origin(principal, effort, self._engine.look_up(submit))
        is_busy = queue.given > 0
        has_place = not queue.sequences and queue.given + choices < max_rows
        if not (is_busy and has_place):
            # Whoever goes at once would only miss the next step by waiting for the answer.
            await origin.hits.wait()
        asked = newcomer(submit, choices, origin, self._clock())
        route = self._route(asked, cloud)
        if route.place in (Place.CLOUD, Place.REJECT) and not origin.hits.is_told:
            # When it is told of this one, it is of those ahead: they have asked before.
            await origin.hits.wait(REFUSAL_WAIT_S)
            route = self._route(asked, cloud)
        if route.place is Place.REJECT and was_let_in:
            route = replace(route, place=Place.QUEUE, reason=Reason.WAITS)
        self.decisions[route.place] += 1
        if route.place is Place.REJECT:
            raise self._refusal(route)
        if route.place is Place.CLOUD:
            raise Spilled(route)
        is_scored = origin.hits.is_told or not has_place
        ticket = Ticket(origin, cloud, asked.arrived_s, route, route, is_scored)
        self._tickets[origin] = ticket
        self._review_later()
        return ticket

    def spill_if_may(self, principal: Principal, cloud: Cloud, reason: Reason) -> None:
        """This machine cannot answer, for this reason: raise Spilled if a cloud may."""
        if _may_spill(principal, cloud):
            self.decisions[Place.CLOUD] += 1
            raise Spilled(Route(Place.CLOUD, reason, 0.0, 0.0))

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

    def replace_limits(self, limits: Limits) -> None:
        """Others from now on, also for those that wait."""
        if limits != self.limits:
            self.limits = limits
            self._spilling.clear()  # Each was measured by the old objective.

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

    def _route(self, asked: Waiting, cloud: Cloud) -> Route:
        """Of somebody who has come, by what is known now."""
        outlook, principal = self._outlook(asked), asked.origin.principal
        is_told = asked.origin.hits.is_told
        if is_told:
            self._spilling_of(asked.key_id).observe(outlook.forecast.ttft_s)
        return self._choose(outlook, _may_spill(principal, cloud), is_certain=is_told)

    def _choose(self, outlook: Outlook, may_spill: bool, *, is_certain: bool) -> Route:
        facts = Facts(
            outlook.waiting.submit.priority,
            outlook.forecast,
            outlook.sequences_ahead,
            outlook.tokens_ahead,
            may_spill,
            prefers_local=outlook.waiting.origin.principal.route is not RoutePolicy.ANY,
            is_certain=is_certain,
        )
        return choose(facts, self._snapshot(outlook.waiting.key_id), self.limits)

    def _snapshot(self, key_id: str) -> Snapshot:
        rates = self._engine.rates
        return Snapshot(
            self._max_rows,
            rates.alone_s,
            fmean(self._row_times_s) if self._row_times_s else None,
            is_measured=rates.is_measured,
            is_trusted=self.scores.is_trusted,
            is_spilling=self._spilling_of(key_id).is_spilling,
        )

    def _spilling_of(self, key_id: str) -> Hysteresis:
        hysteresis = self._spilling.pop(key_id, None) or Hysteresis(self.limits.ttft_objective_s)
        self._spilling[key_id] = hysteresis
        if len(self._spilling) > MAX_SPILLING:
            self._spilling.popitem(last=False)
        return hysteresis

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
        """Forecast all that wait again; those that may still spill, and shall, are told so."""
        outlooks = self._observer.outlooks(self._engine.rates, self._max_rows)
        latest_s: dict[str, float] = {}
        for outlook in outlooks:
            key_id, ttft_s = outlook.waiting.key_id, outlook.forecast.ttft_s
            latest_s[key_id] = max(ttft_s, latest_s.get(key_id, 0.0))
        for key_id, ttft_s in latest_s.items():
            self._spilling_of(key_id).observe(ttft_s)
        for outlook in outlooks:
            ticket = self._tickets.get(outlook.waiting.origin)
            if ticket is not None:
                self._review(ticket, outlook)

    def _review(self, ticket: Ticket, outlook: Outlook) -> None:
        spill = ticket.spill
        may_spill = spill is not None and _may_spill(ticket.origin.principal, ticket.cloud)
        # By now the engine has told, or it will not soon.
        route = self._choose(outlook, may_spill, is_certain=True)
        if route.place is not Place.REJECT:
            ticket.route = route
        if route.place is Place.CLOUD and spill is not None:
            ticket.spill = None
            self.decisions[Place.CLOUD] += 1
            spill(Spilled(route))

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


def _may_spill(principal: Principal, cloud: Cloud) -> bool:
    """What a key or a request keeps here stays here, whatever else holds."""
    return principal.route is not RoutePolicy.LOCAL_ONLY and cloud()


def _end(task: asyncio.Task[None]) -> None:
    """A defect here costs nobody an answer, but must not go unseen."""
    if not task.cancelled() and (defect := task.exception()) is not None:
        logger.critical("event=review_failed", exc_info=defect)
