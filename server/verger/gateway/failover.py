"""Several providers in turn until one answers: attempts in order, and no turning back.

Called by `cloud_turns`. The commit point is the first piece that a client could see (deltas here
are never empty): before it the next attempt is invisible, after it nothing is ever spliced, and a
provider that breaks off becomes an error. One budget covers the whole wait for that piece.

    attempt fails before the commit      what follows
    ─────────────────────────────────    ──────────────────────────────────────────────────────
    unreachable, broken, faulty, busy    once more after a short pause, then the next one
    busy, and says until when            the next one; if there is none, a short time is waited
    silent, denied, absent, too long     the next one
    beyond a budget                      the next one; it was not asked
    refused (400, 422)                   once more without the refused parameter, else the error
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

from verger.api.answer import Piece
from verger.errors import (
    BudgetExhausted,
    ProviderContextExceeded,
    ProviderRefused,
    ProviderUnavailable,
    ReplyError,
    UpstreamInterrupted,
)
from verger.gateway.backends.cloud_request import CloudRequest
from verger.gateway.backends.failure import Fault, UpstreamFailure, refused_field
from verger.gateway.backends.upstream_body import STRIPPABLE
from verger.gateway.breaker import Breaker, Breakers, Permit
from verger.gateway.providers import Target
from verger.log import key_values

logger = logging.getLogger("verger.gateway")

BUDGET_S = 60.0
"""From the request to the commit, over all attempts together."""
RETRY_PAUSE_S = 0.25
MAX_PATIENCE_S = 2.0
"""How long a request waits for the only provider there is, if that one says when to come back."""
MIN_ATTEMPT_S = 0.05
MAX_RETRY_AFTER_S = 60
_WORTH_A_RETRY = (Fault.UNREACHABLE, Fault.BROKEN, Fault.FAULTY, Fault.BUSY)


class OpenStream(Protocol):
    """What `CloudBackend.open_stream` is."""

    def __call__(
        self, target: Target, request: CloudRequest, budget_s: float, without: frozenset[str]
    ) -> AsyncGenerator[Piece]:
        """The pieces of one attempt."""


@dataclass(frozen=True, slots=True)
class _Attempt:
    target: Target
    without: frozenset[str] = frozenset()
    may_retry: bool = True


@dataclass(slots=True)
class _Journey:
    """One request on its way from provider to provider."""

    targets: Sequence[Target]
    request: CloudRequest
    until_s: float
    attempts: deque[_Attempt]
    failures: list[tuple[Target, UpstreamFailure]] = field(default_factory=list)
    unpaid: dict[str, BudgetExhausted] = field(default_factory=dict)
    """Targets that were not asked because it might have cost too much."""
    has_waited: bool = False


class Failover:
    """Belongs to the event loop; all requests share its breakers."""

    def __init__(
        self,
        open_stream: OpenStream,
        *,
        budget_s: float = BUDGET_S,
        monotonic_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.breakers = Breakers(monotonic_s)
        self._open_stream = open_stream
        self._budget_s = budget_s
        self._monotonic_s = monotonic_s
        self._sleep = sleep

    def breaker_of(self, target: Target) -> Breaker:
        """That of the provider's model."""
        return self.breakers.of(target.provider.name, target.model_id)

    async def pieces(
        self,
        targets: Sequence[Target],
        request: CloudRequest,
        on_commit: Callable[[Target], None],
    ) -> AsyncGenerator[Piece]:
        """The answer of the first that gives one; `on_commit` is told who that is, before it is.

        Raises ProviderUnavailable, ProviderRefused, ProviderContextExceeded, UpstreamInterrupted,
        BudgetExhausted, LedgerUnavailable.
        """
        until_s = self._monotonic_s() + self._budget_s
        journey = _Journey(targets, request, until_s, deque(map(_Attempt, targets)))
        while (attempt := await self._next(journey)) is not None:
            breaker = self.breaker_of(attempt.target)
            permit = breaker.try_acquire()
            if permit is None:
                continue
            is_committed = False
            try:
                await journey.request.reserve(attempt.target)
                async with aclosing(self._opened(attempt, journey)) as pieces:
                    async for piece in pieces:
                        if not is_committed:
                            is_committed = True
                            permit = breaker.begin(permit)
                            on_commit(attempt.target)
                        yield piece
                breaker.succeed(permit)
                return
            except UpstreamFailure as failure:
                _judge(breaker, permit, failure)
                _log(attempt.target, journey, failure, is_committed)
                if is_committed:
                    raise _interrupted(attempt.target, failure) from None
                journey.request.on_failed()
                await self._prepare_next(attempt, failure, journey)
            except BudgetExhausted as refusal:
                # Another provider may be cheaper, or have a budget of its own.
                journey.unpaid[attempt.target.name] = refusal
            finally:
                # Without a verdict so far, the client has left.
                breaker.release(permit)
        raise self._verdict(journey)

    def _opened(self, attempt: _Attempt, journey: _Journey) -> AsyncGenerator[Piece]:
        budget_s = journey.until_s - self._monotonic_s()
        return self._open_stream(attempt.target, journey.request, budget_s, attempt.without)

    async def _next(self, journey: _Journey) -> _Attempt | None:
        """The next attempt for which there is time."""
        if not journey.attempts and not journey.has_waited:
            await self._wait_for_the_soonest(journey)
        left_s = journey.until_s - self._monotonic_s()
        return journey.attempts.popleft() if journey.attempts and left_s > MIN_ATTEMPT_S else None

    async def _wait_for_the_soonest(self, journey: _Journey) -> None:
        """All have failed; one of them may have said that it will be back in a moment."""
        journey.has_waited = True
        waits = [(self.breaker_of(target).wait_s, target) for target in journey.targets]
        wait_s, target = min(waits, key=lambda wait: wait[0] or math.inf, default=(0.0, None))
        left_s = journey.until_s - self._monotonic_s()
        if target is not None and 0 < wait_s <= min(MAX_PATIENCE_S, left_s):
            await self._sleep(wait_s)
            journey.attempts.append(_Attempt(target, may_retry=False))

    async def _prepare_next(
        self, attempt: _Attempt, failure: UpstreamFailure, journey: _Journey
    ) -> None:
        """Put a second attempt of the same provider first, if it helps. Raises what is final."""
        journey.failures.append((attempt.target, failure))
        if failure.fault is Fault.REFUSED:
            field = refused_field(failure, STRIPPABLE - attempt.without)
            if field is None or attempt.without:
                raise _refused(attempt.target, failure)
            journey.attempts.appendleft(_Attempt(attempt.target, frozenset({field}), False))
        elif attempt.may_retry and failure.fault in _WORTH_A_RETRY and not failure.retry_after_s:
            if RETRY_PAUSE_S < journey.until_s - self._monotonic_s():
                await self._sleep(RETRY_PAUSE_S)
            journey.attempts.appendleft(_Attempt(attempt.target, attempt.without, False))

    def _verdict(self, journey: _Journey) -> ReplyError:
        """What the client is told when nobody has answered."""
        if journey.unpaid and not journey.failures:
            return list(journey.unpaid.values())[-1]
        last = {target.name: (target, failure) for target, failure in journey.failures}
        if last and all(failure.fault is Fault.TOO_LONG for _, failure in last.values()):
            target, failure = journey.failures[-1]
            return ProviderContextExceeded(
                f"The prompt is too long for {target.name}. {failure.words}".strip()
            )
        told = [f"{target.provider.name} {failure.what}" for target, failure in last.values()]
        told += [
            self._why_not(target, journey) for target in journey.targets if target.name not in last
        ]
        waits_s = [self.breaker_of(target).wait_s for target in journey.targets]
        soonest_s = math.ceil(min((wait_s for wait_s in waits_s if wait_s > 0), default=1))
        return ProviderUnavailable(
            f"No provider could answer: {'; '.join(told)}. Try again later.",
            retry_after_s=min(max(soonest_s, 1), MAX_RETRY_AFTER_S),
        )

    def _why_not(self, target: Target, journey: _Journey) -> str:
        if target.name in journey.unpaid:
            return f"{target.provider.name} may cost more than a budget has left"
        is_resting = not self.breaker_of(target).is_passable
        why = "is left alone after failures" if is_resting else "was not asked: no time was left"
        return f"{target.provider.name} {why}"


def _judge(breaker: Breaker, permit: Permit, failure: UpstreamFailure) -> None:
    match failure.fault:
        case Fault.REFUSED | Fault.TOO_LONG:
            breaker.release(permit)
        case Fault.DENIED:
            breaker.refuse(permit)
        case _:
            breaker.fail(permit, failure.retry_after_s)


def _refused(target: Target, failure: UpstreamFailure) -> ProviderRefused:
    words = failure.words or failure.what
    return ProviderRefused(f"{target.provider.name} refuses the request: {words}")


def _interrupted(target: Target, failure: UpstreamFailure) -> UpstreamInterrupted:
    return UpstreamInterrupted(
        f"{target.provider.name} {failure.what} in the middle of the answer, which is incomplete. "
        "Send the request again."
    )


def _log(target: Target, journey: _Journey, failure: UpstreamFailure, is_committed: bool) -> None:
    """Refused keys are for an administrator to repair: until then the provider is not used."""
    is_denied = failure.fault is Fault.DENIED
    logger.log(
        logging.ERROR if is_denied else logging.WARNING,
        key_values(
            event="provider_failed",
            id=journey.request.id,
            provider=target.provider.name,
            model=target.model_id,
            fault=failure.fault.value,
            reason=failure.what,
            retry_after_s=failure.retry_after_s,
            is_committed=is_committed,
            advice="run: verger providers check" if is_denied else None,
        ),
    )
