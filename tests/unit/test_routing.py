"""Where requests go, case by case."""

from dataclasses import replace

import pytest

from verger.gateway.prediction import Forecast
from verger.gateway.routing import (
    ENTER_SAMPLES,
    LEAVE_SHARE,
    MAX_RETRY_S,
    MIN_RETRY_S,
    Facts,
    Hysteresis,
    Limits,
    Place,
    Reason,
    Route,
    Snapshot,
    choose,
    retry_after_s,
)
from verger.messages import BATCH, INTERACTIVE

LIMITS = Limits(ttft_objective_s=10.0, max_wait_s=120.0)


def facts(
    wait_s: float,
    prompt_s: float = 1.0,
    priority: int = INTERACTIVE,
    sequences_ahead: int = 0,
    tokens_ahead: int = 0,
    may_spill: bool = False,
    prefers_local: bool = True,
) -> Facts:
    forecast = Forecast(wait_s + prompt_s, prompt_s)
    return Facts(priority, forecast, sequences_ahead, tokens_ahead, may_spill, prefers_local)


def engine(
    *,
    row_s: float | None = 10.0,
    is_ready: bool = True,
    is_measured: bool = True,
    is_trusted: bool = True,
    is_spilling: bool = False,
) -> Snapshot:
    return Snapshot(
        max_rows=4,
        prompt_s=0.001,
        row_s=row_s,
        is_ready=is_ready,
        is_measured=is_measured,
        is_trusted=is_trusted,
        is_spilling=is_spilling,
    )


def went(asked: Facts, snapshot: Snapshot) -> tuple[Place, Reason]:
    route = choose(asked, snapshot, LIMITS)
    return route.place, route.reason


@pytest.mark.parametrize(
    ("wait_s", "prompt_s", "expected"),
    [
        (0.0, 0.1, (Place.LOCAL, Reason.WITHIN_OBJECTIVE)),
        (9.0, 1.0, (Place.LOCAL, Reason.WITHIN_OBJECTIVE)),
        (9.0, 1.1, (Place.QUEUE, Reason.WAITS)),
        (120.0, 1.0, (Place.QUEUE, Reason.WAITS)),
        (120.1, 1.0, (Place.REJECT, Reason.WAIT_TOO_LONG)),
        (0.0, 500.0, (Place.QUEUE, Reason.WAITS)),
    ],
)
def test_without_a_cloud_the_wait_decides(
    wait_s: float, prompt_s: float, expected: tuple[Place, Reason]
) -> None:
    """The last one has a long prompt and an idle machine: nobody could serve it sooner."""
    assert went(facts(wait_s, prompt_s), engine()) == expected


@pytest.mark.parametrize(
    ("wait_s", "is_spilling", "priority", "expected"),
    [
        (5.0, True, INTERACTIVE, (Place.LOCAL, Reason.WITHIN_OBJECTIVE)),
        (20.0, False, INTERACTIVE, (Place.QUEUE, Reason.WAITS)),
        (20.0, True, INTERACTIVE, (Place.CLOUD, Reason.SATURATED)),
        (20.0, True, BATCH, (Place.QUEUE, Reason.WAITS)),
        (200.0, False, INTERACTIVE, (Place.CLOUD, Reason.WAIT_TOO_LONG)),
        (200.0, True, BATCH, (Place.CLOUD, Reason.WAIT_TOO_LONG)),
    ],
)
def test_what_may_spill_does_so_when_late_and_batch_only_instead_of_a_refusal(
    wait_s: float, is_spilling: bool, priority: int, expected: tuple[Place, Reason]
) -> None:
    asked = facts(wait_s, priority=priority, may_spill=True)
    assert went(asked, engine(is_spilling=is_spilling)) == expected


@pytest.mark.parametrize(
    ("wait_s", "priority", "expected"),
    [
        (9.0, INTERACTIVE, (Place.LOCAL, Reason.WITHIN_OBJECTIVE)),
        (9.1, INTERACTIVE, (Place.CLOUD, Reason.SATURATED)),
        (9.1, BATCH, (Place.QUEUE, Reason.WAITS)),
    ],
)
def test_whoever_does_not_prefer_this_machine_spills_as_soon_as_it_is_late(
    wait_s: float, priority: int, expected: tuple[Place, Reason]
) -> None:
    asked = facts(wait_s, priority=priority, may_spill=True, prefers_local=False)
    assert went(asked, engine(is_spilling=False)) == expected


def test_as_long_as_it_may_be_warm_it_leaves_only_instead_of_a_refusal() -> None:
    unknown = replace(facts(20.0, may_spill=True), is_certain=False)
    assert went(unknown, engine(is_spilling=True)) == (Place.QUEUE, Reason.WAITS)
    unknown = replace(facts(200.0, may_spill=True), is_certain=False)
    assert went(unknown, engine(is_spilling=True)) == (Place.CLOUD, Reason.WAIT_TOO_LONG)


def test_a_warm_conversation_stays_here_while_a_cold_one_spills() -> None:
    """Behind the same queue: what it does not have to compute it does not have to wait for."""
    spilling = engine(is_spilling=True)
    assert went(facts(4.0, prompt_s=0.2, may_spill=True), spilling)[0] is Place.LOCAL
    assert went(facts(4.0, prompt_s=20.0, may_spill=True), spilling)[0] is Place.CLOUD


def test_an_engine_that_is_down_leaves_the_cloud_or_nothing() -> None:
    down = engine(is_ready=False)
    assert went(facts(0.0, may_spill=True), down) == (Place.CLOUD, Reason.ENGINE_DOWN)
    assert went(facts(0.0), down) == (Place.REJECT, Reason.ENGINE_DOWN)


def test_before_anything_is_measured_everybody_is_let_in() -> None:
    unmeasured = engine(is_measured=False, row_s=None)
    assert went(facts(1_000.0), unmeasured) == (Place.LOCAL, Reason.UNMEASURED)


@pytest.mark.parametrize(
    ("sequences", "tokens", "expected"),
    [
        (48, 0, Place.QUEUE),
        (49, 0, Place.REJECT),
        (0, 120_000, Place.QUEUE),
        (0, 120_001, Place.REJECT),
    ],
)
def test_littles_law_caps_what_is_ahead_whatever_is_forecast(
    sequences: int, tokens: int, expected: Place
) -> None:
    """4 rows of 10 s are 48 answers in 120 s; 1,000 prompt tokens a second are 120,000."""
    asked = facts(20.0, sequences_ahead=sequences, tokens_ahead=tokens)
    assert choose(asked, engine(), LIMITS).place is expected


def test_fewer_than_there_are_rows_are_never_too_many() -> None:
    slow = engine(row_s=1_000.0)
    assert choose(facts(20.0, sequences_ahead=4), slow, LIMITS).place is Place.QUEUE
    assert choose(facts(20.0, sequences_ahead=5), slow, LIMITS).place is Place.REJECT


@pytest.mark.parametrize(
    ("sequences", "tokens", "kind", "wait_s"),
    [
        (0, 0, Place.LOCAL, 0.0),
        (3, 0, Place.LOCAL, 7.5),
        (8, 0, Place.QUEUE, 20.0),
        (0, 30_000, Place.QUEUE, 30.0),
        (60, 0, Place.REJECT, 150.0),
    ],
)
def test_when_forecasts_are_poor_the_depth_of_the_queue_decides(
    sequences: int, tokens: int, kind: Place, wait_s: float
) -> None:
    asked = facts(99.0, sequences_ahead=sequences, tokens_ahead=tokens)
    route = choose(asked, engine(is_trusted=False), LIMITS)
    assert route.place is kind
    assert route.wait_s == pytest.approx(wait_s)


@pytest.mark.parametrize(
    ("ttft_s", "jitter", "expected"),
    [(9.0, 1.0, MIN_RETRY_S), (30.2, 1.0, 21), (30.2, 1.25, 26), (500.0, 1.0, MAX_RETRY_S)],
)
def test_whoever_is_refused_comes_back_when_it_would_be_in_time(
    ttft_s: float, jitter: float, expected: int
) -> None:
    route = Route(Place.REJECT, Reason.WAIT_TOO_LONG, ttft_s, ttft_s)
    assert retry_after_s(route, LIMITS, jitter) == expected


def test_spilling_sets_in_after_several_late_ones_and_ends_well_below_the_objective() -> None:
    hysteresis = Hysteresis(objective_s=10.0)
    seen = []
    for ttft_s in [11, 11, 9, 11, 11, 11, 9, 7, 10 * LEAVE_SHARE, 5.9, 11]:
        hysteresis.observe(ttft_s)
        seen.append(hysteresis.is_spilling)
    assert ENTER_SAMPLES == 3
    assert seen == [False] * 5 + [True] * 4 + [False] * 2
