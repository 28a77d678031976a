"""Where a request goes: here at once, here after a wait, to the cloud, or nowhere for now.

Called by the admission for every request, and every second for those that wait. Pure; must not know
a clock, keys or providers: what those allow has become one `may_spill`.

    first token within the objective               → local
    later, may spill, and spilling has set in      → cloud      (batch waits as long as it may)
    the wait is bearable and the caps hold         → queue
    otherwise                                      → cloud if it may spill, else reject

The wait is what others cost it: however long its own prompt takes, coming later would not help. It
is forecast; when forecasts are poor it is what Little's law says of the requests and prompt tokens
that are ahead, which caps it in any case. A conversation of which the engine has most is forecast a
short time, so it stays where it is warm.
"""

import math
from dataclasses import dataclass
from enum import Enum

from verger.errors import Overloaded
from verger.gateway.prediction import Forecast
from verger.messages import BATCH

MIN_RETRY_S, MAX_RETRY_S = 1, 60
RETRY_ELSEWHERE_S = 5
ENTER_SAMPLES = 3
"""Spilling sets in when so many requests in a row would be later than the objective ..."""
LEAVE_SHARE = 0.6
"""... and ends when one would be earlier than this part of it, so that routes do not flap."""


class Place(Enum):
    """What becomes of a request."""

    LOCAL = "local"
    QUEUE = "queue"
    CLOUD = "cloud"
    REJECT = "reject"


class Reason(Enum):
    """Why; clients read it in a header."""

    WITHIN_OBJECTIVE = "within-objective"
    UNMEASURED = "unmeasured"
    """Nothing is known of how fast the engine is."""
    WAITS = "waits"
    SATURATED = "saturated"
    """Its first token would come later than the objective."""
    WAIT_TOO_LONG = "wait-too-long"
    QUEUE_TOO_LONG = "queue-too-long"
    """Too many requests, or prompt tokens, are ahead of it."""
    ENGINE_DOWN = "engine-down"
    ENGINE_LOADING = "engine-loading"
    NO_WEIGHTS = "no-weights"
    """The served model has not been fetched yet."""
    TOO_LONG_FOR_HERE = "too-long-for-here"
    """Its prompt does not fit into this machine's context."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What is configured."""

    ttft_objective_s: float = 10.0
    max_wait_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one request."""

    priority: int
    forecast: Forecast
    sequences_ahead: int
    """That wait and go first in fair order."""
    tokens_ahead: int
    """Of their prompts, uncached."""
    may_spill: bool = False
    """Whether key, header, budget and privacy allow a cloud, and one is healthy that has what the
    request needs: its context, its features, and going on with a tool loop if it is in one."""
    prefers_local: bool = True
    """Otherwise it does not wait for spilling to set in: it goes as soon as it would be late."""
    is_certain: bool = True
    """Whether it is known what is cached of it: it does not leave a warm cache unknowingly."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is known of the engine."""

    max_rows: int
    prompt_s: float
    """Of a prompt token."""
    row_s: float | None
    """How long an answer keeps its row, lately; None before there was one."""
    is_ready: bool = True
    is_measured: bool = True
    is_trusted: bool = True
    """Whether forecasts have been good."""
    is_spilling: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """A decision."""

    place: Place
    reason: Reason
    ttft_s: float
    """When the first token is expected, from now."""
    wait_s: float
    """What others cost it."""


class Spilled(Overloaded):
    """A cloud shall answer, as nothing has been said yet; raised to whoever can hand it over."""

    def __init__(self, route: Route) -> None:
        assert route.place is Place.CLOUD
        super().__init__(
            "This machine is busy, and no cloud took the request over. Try again in a few seconds.",
            retry_after_s=RETRY_ELSEWHERE_S,
        )
        self.route = route


def choose(facts: Facts, snapshot: Snapshot, limits: Limits) -> Route:
    """Where a request goes, or goes on waiting."""
    wait_s = _wait_s(facts, snapshot)
    ttft_s = wait_s + facts.forecast.prompt_s

    def route(place: Place, reason: Reason) -> Route:
        return Route(place, reason, ttft_s, wait_s)

    if not snapshot.is_ready:
        return route(Place.CLOUD if facts.may_spill else Place.REJECT, Reason.ENGINE_DOWN)
    if not snapshot.is_measured:
        return route(Place.LOCAL, Reason.UNMEASURED)
    if ttft_s <= limits.ttft_objective_s:
        return route(Place.LOCAL, Reason.WITHIN_OBJECTIVE)
    shall_spill = snapshot.is_spilling or not facts.prefers_local
    may_leave = facts.may_spill and facts.is_certain and facts.priority != BATCH
    if may_leave and shall_spill:
        return route(Place.CLOUD, Reason.SATURATED)
    if (refusal := _refusal(facts, snapshot, limits, wait_s)) is None:
        return route(Place.QUEUE, Reason.WAITS)
    return route(Place.CLOUD if facts.may_spill else Place.REJECT, refusal)


def retry_after_s(route: Route, limits: Limits, jitter: float) -> int:
    """When to try again: once it would be in time, if nobody else came. `jitter`, from 1 to 1.25,
    keeps those who are refused together from coming back together."""
    late_s = (route.ttft_s - limits.ttft_objective_s) * jitter
    return min(MAX_RETRY_S, max(MIN_RETRY_S, math.ceil(late_s)))


class Hysteresis:
    """Whether spilling has set in."""

    def __init__(self, objective_s: float) -> None:
        self.is_spilling = False
        self._objective_s = objective_s
        self._late = 0

    def observe(self, ttft_s: float) -> None:
        """A request has come that would see its first token then."""
        self._late = self._late + 1 if ttft_s > self._objective_s else 0
        if self._late >= ENTER_SAMPLES:
            self.is_spilling = True
        elif ttft_s < LEAVE_SHARE * self._objective_s:
            self.is_spilling = False


def _wait_s(facts: Facts, snapshot: Snapshot) -> float:
    if snapshot.is_trusted:
        return facts.forecast.wait_s
    return max(_rows_wait_s(facts, snapshot), facts.tokens_ahead * snapshot.prompt_s)


def _rows_wait_s(facts: Facts, snapshot: Snapshot) -> float:
    """Little's law: as many answers end in a second as there are rows, divided by what each takes.
    So many rows' worth are already in the engine."""
    return facts.sequences_ahead * (snapshot.row_s or 0.0) / snapshot.max_rows


def _refusal(facts: Facts, snapshot: Snapshot, limits: Limits, wait_s: float) -> Reason | None:
    if wait_s > limits.max_wait_s:
        return Reason.WAIT_TOO_LONG
    is_crowd = facts.sequences_ahead > snapshot.max_rows
    if is_crowd and _rows_wait_s(facts, snapshot) > limits.max_wait_s:
        return Reason.QUEUE_TOO_LONG
    if facts.tokens_ahead * snapshot.prompt_s > limits.max_wait_s:
        return Reason.QUEUE_TOO_LONG
    return None
