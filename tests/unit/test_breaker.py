"""The circuit breaker, by an injected clock: when it opens, for how long, and what ends it."""

import pytest

from tests.fakes import FakeTime
from verger.gateway import breaker as rules
from verger.gateway.breaker import Breaker, Breakers, BreakerState, Permit


def acquire(breaker: Breaker) -> Permit:
    permit = breaker.try_acquire()
    assert permit is not None
    return permit


def state_of(breaker: Breaker) -> BreakerState:
    """As a call: the type checker takes a property for constant."""
    return breaker.state


def fail(breaker: Breaker, times: int, retry_after_s: float | None = None) -> None:
    for _ in range(times):
        breaker.fail(acquire(breaker), retry_after_s)


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def breaker(time: FakeTime) -> Breaker:
    return Breaker(time.clock)


def test_opens_at_three_failures_in_a_row_and_not_at_two(breaker: Breaker) -> None:
    fail(breaker, 2)
    assert state_of(breaker) is BreakerState.CLOSED
    fail(breaker, 1)
    assert state_of(breaker) is BreakerState.OPEN
    assert breaker.try_acquire() is None
    assert breaker.wait_s == rules.FIRST_OPEN_S


def test_a_success_between_failures_begins_the_row_anew(breaker: Breaker) -> None:
    fail(breaker, 2)
    breaker.succeed(acquire(breaker))
    fail(breaker, 2)
    assert state_of(breaker) is BreakerState.CLOSED


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ("-+-+-+-+-", BreakerState.CLOSED),  # Five of nine: too few to tell.
        ("-+-+-+-+-+-", BreakerState.OPEN),  # Six of eleven.
        ("+-+-+-+-+-", BreakerState.CLOSED),  # Five of ten are not more than half.
        ("--+-+-+--+-", BreakerState.OPEN),
    ],
)
def test_opens_when_more_than_half_of_at_least_ten_fail(
    breaker: Breaker, outcomes: str, state: BreakerState
) -> None:
    for outcome in outcomes:
        permit = acquire(breaker)
        breaker.fail(permit) if outcome == "-" else breaker.succeed(permit)
    assert state_of(breaker) is state


def test_what_failed_more_than_a_minute_ago_is_forgotten(breaker: Breaker, time: FakeTime) -> None:
    for _ in range(5):
        fail(breaker, 1)
        breaker.succeed(acquire(breaker))
    time.now_s += rules.WINDOW_S + 1
    fail(breaker, 1)
    assert state_of(breaker) is BreakerState.CLOSED


def test_the_memory_of_attempts_is_bounded(breaker: Breaker) -> None:
    for _ in range(rules.MAX_WINDOW_ATTEMPTS + 1):
        breaker.succeed(acquire(breaker))
    assert len(breaker._window) == rules.MAX_WINDOW_ATTEMPTS


def test_half_open_lets_one_probe_through_at_a_time(breaker: Breaker, time: FakeTime) -> None:
    fail(breaker, 3)
    time.now_s += rules.FIRST_OPEN_S
    assert state_of(breaker) is BreakerState.HALF_OPEN
    probe = acquire(breaker)
    assert breaker.try_acquire() is None
    breaker.release(probe)
    breaker.succeed(acquire(breaker))
    assert state_of(breaker) is BreakerState.CLOSED
    assert breaker.wait_s == 0


def test_a_probe_has_succeeded_when_its_answer_begins(breaker: Breaker, time: FakeTime) -> None:
    """A stream may take minutes, in which nobody else would be served."""
    fail(breaker, 3)
    time.now_s += rules.FIRST_OPEN_S
    rest = breaker.begin(acquire(breaker))
    assert state_of(breaker) is BreakerState.CLOSED
    fail(breaker, 2)
    breaker.fail(rest)
    assert state_of(breaker) is BreakerState.OPEN


def test_an_answer_that_begins_is_no_success_yet(breaker: Breaker) -> None:
    """Whoever always breaks off in the middle must not look healthy."""
    for _ in range(3):
        breaker.fail(breaker.begin(acquire(breaker)))
    assert state_of(breaker) is BreakerState.OPEN


def test_each_failed_probe_doubles_the_rest_up_to_a_limit(breaker: Breaker, time: FakeTime) -> None:
    fail(breaker, 3)
    rests_s = []
    for _ in range(7):
        rests_s.append(breaker.wait_s)
        time.now_s += breaker.wait_s
        fail(breaker, 1)
    assert rests_s == [30, 60, 120, 240, 480, 600, 600]


def test_a_success_after_a_probe_makes_the_next_rest_short_again(
    breaker: Breaker, time: FakeTime
) -> None:
    fail(breaker, 3)
    time.now_s += 30
    fail(breaker, 1)
    time.now_s += 60
    breaker.succeed(acquire(breaker))
    fail(breaker, 3)
    assert breaker.wait_s == rules.FIRST_OPEN_S


@pytest.mark.parametrize(
    ("asked_s", "rest_s"), [(5, 5), (300, 300), (3_600, 3_600), (3_601, 3_600)]
)
def test_one_failure_with_a_retry_after_opens_for_as_long(
    breaker: Breaker, asked_s: float, rest_s: float
) -> None:
    fail(breaker, 1, asked_s)
    assert breaker.wait_s == rest_s


def test_a_refused_key_is_not_tried_again(breaker: Breaker, time: FakeTime) -> None:
    breaker.refuse(acquire(breaker))
    time.now_s += 1_000_000
    assert state_of(breaker) is BreakerState.REFUSED
    assert breaker.try_acquire() is None


def test_verdicts_on_attempts_from_before_a_change_are_ignored(
    breaker: Breaker, time: FakeTime
) -> None:
    """A slow stream that began before the breaker opened ends well: that is not the probe."""
    early = [acquire(breaker) for _ in range(3)]
    fail(breaker, 3)
    breaker.succeed(early[0])
    assert state_of(breaker) is BreakerState.OPEN
    time.now_s += 30
    probe = acquire(breaker)
    breaker.release(early[1])
    breaker.fail(early[2])
    assert breaker.try_acquire() is None
    breaker.succeed(probe)
    assert state_of(breaker) is BreakerState.CLOSED


def test_a_request_that_was_at_fault_itself_counts_for_nothing(breaker: Breaker) -> None:
    for _ in range(100):
        breaker.release(acquire(breaker))
    assert state_of(breaker) is BreakerState.CLOSED


def test_each_provider_and_model_has_a_breaker_of_its_own(time: FakeTime) -> None:
    breakers = Breakers(time.clock)
    fail(breakers.of("a", "m"), 3)
    assert breakers.of("a", "m").state is BreakerState.OPEN
    assert breakers.of("a", "n").state is BreakerState.CLOSED
    assert breakers.of("b", "m").state is BreakerState.CLOSED
