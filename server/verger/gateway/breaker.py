"""Which provider is left alone for how long: one circuit breaker per provider and model.

Asked by `failover` before each attempt and told how it went. Pure: the clock is injected, nothing
waits. Must not know HTTP.

              3 failures in a row, or more than half of at least 10 in 60 s,
              or one that says how long to stay away
    CLOSED ─────────────────────────────────────────────────────────────► OPEN
       ▲                                                                  │  ▲
       │ the probe succeeds          the time has passed: one probe may go │  │ the probe fails:
       └──────────────────────────── HALF_OPEN ◄──────────────────────────┘──┘ twice as long
    any ── the key or the account is refused ──► REFUSED, until the configuration is read again
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

MAX_FAILURES_IN_ROW = 3
WINDOW_S = 60.0
MIN_WINDOW_ATTEMPTS = 10
MAX_FAILURE_RATIO = 0.5
MAX_WINDOW_ATTEMPTS = 1_000
"""More are not remembered: the ratio of a thousand is the ratio."""
FIRST_OPEN_S = 30.0
MAX_OPEN_S = 600.0
MAX_RETRY_AFTER_S = 3_600.0
"""A provider may ask for a longer rest than we would choose, but not for ever."""


class BreakerState(Enum):
    """Whether attempts may be made."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Permit:
    """For one attempt; it must be given back by exactly one of the breaker's four verdicts."""

    epoch: int


class Breaker:
    """One provider's one model. Verdicts on attempts begun before the last change are ignored."""

    def __init__(self, monotonic_s: Callable[[], float]) -> None:
        self._monotonic_s = monotonic_s
        self._state = BreakerState.CLOSED
        self._epoch = 0
        self._failures_in_row = 0
        self._openings = 0
        self._open_until_s = 0.0
        self._is_probing = False
        self._window: deque[tuple[float, bool]] = deque(maxlen=MAX_WINDOW_ATTEMPTS)

    @property
    def state(self) -> BreakerState:
        """As it is now: time alone makes OPEN into HALF_OPEN."""
        if self._state is BreakerState.OPEN and self._monotonic_s() >= self._open_until_s:
            self._change(BreakerState.HALF_OPEN)
        return self._state

    @property
    def wait_s(self) -> float:
        """How long until an attempt may be made, as far as that is known."""
        is_open = self.state is BreakerState.OPEN
        return self._open_until_s - self._monotonic_s() if is_open else 0.0

    @property
    def is_passable(self) -> bool:
        """Whether `try_acquire` would give a permit."""
        state = self.state
        is_free = state is BreakerState.HALF_OPEN and not self._is_probing
        return state is BreakerState.CLOSED or is_free

    def try_acquire(self) -> Permit | None:
        """A permit for one attempt, or None; half-open there is only one at a time."""
        if not self.is_passable:
            return None
        self._is_probing = self._state is BreakerState.HALF_OPEN
        return Permit(self._epoch)

    def begin(self, permit: Permit) -> Permit:
        """An answer has begun: as a probe that is enough, so that others need not wait for its end.

        The permit for the rest of it.
        """
        if permit.epoch == self._epoch and self._state is BreakerState.HALF_OPEN:
            self.succeed(permit)
            return Permit(self._epoch)
        return permit

    def succeed(self, permit: Permit) -> None:
        """The provider answered."""
        if permit.epoch != self._epoch:
            return
        if self._state is BreakerState.HALF_OPEN:
            self._openings = 0
            self._change(BreakerState.CLOSED)
        self._failures_in_row = 0
        self._window.append((self._monotonic_s(), False))

    def fail(self, permit: Permit, retry_after_s: float | None = None) -> None:
        """The provider is at fault, or asks to be left alone for a while."""
        if permit.epoch != self._epoch:
            return
        self._failures_in_row += 1
        self._window.append((self._monotonic_s(), True))
        is_probe = self._state is BreakerState.HALF_OPEN
        if is_probe or retry_after_s or self._has_failed_too_often():
            self._open(retry_after_s)

    def refuse(self, permit: Permit) -> None:
        """The provider does not take our key, or our account: no retry will change that."""
        if permit.epoch == self._epoch:
            self._change(BreakerState.REFUSED)

    def release(self, permit: Permit) -> None:
        """The attempt says nothing of the provider: the request was at fault, or nobody waits."""
        if permit.epoch == self._epoch:
            self._is_probing = False

    def _has_failed_too_often(self) -> bool:
        if self._failures_in_row >= MAX_FAILURES_IN_ROW:
            return True
        since_s = self._monotonic_s() - WINDOW_S
        while self._window and self._window[0][0] < since_s:
            self._window.popleft()
        failures = sum(has_failed for _, has_failed in self._window)
        is_telling = len(self._window) >= MIN_WINDOW_ATTEMPTS
        return is_telling and failures > MAX_FAILURE_RATIO * len(self._window)

    def _open(self, retry_after_s: float | None) -> None:
        own_s = min(FIRST_OPEN_S * 2**self._openings, MAX_OPEN_S)
        # At the limit the exponent would only grow.
        self._openings += own_s < MAX_OPEN_S
        rest_s = min(retry_after_s, MAX_RETRY_AFTER_S) if retry_after_s else own_s
        self._open_until_s = self._monotonic_s() + rest_s
        self._change(BreakerState.OPEN)

    def _change(self, state: BreakerState) -> None:
        self._state = state
        self._epoch += 1
        self._is_probing = False
        self._failures_in_row = 0
        self._window.clear()


class Breakers:
    """Those of all providers; as many as the configuration names models."""

    def __init__(self, monotonic_s: Callable[[], float]) -> None:
        self._monotonic_s = monotonic_s
        self._breakers: dict[tuple[str, str], Breaker] = {}

    def of(self, provider: str, model: str) -> Breaker:
        """The breaker of a configured pair."""
        return self._breakers.setdefault((provider, model), Breaker(self._monotonic_s))
