"""Gaps of streams, their distribution, and the verdicts."""

import json

import msgspec
import pytest

from tests.harmony_text import byte_vocabulary
from verger.bench.served import Own
from verger.bench.stall_report import (
    Gaps,
    Span,
    StallPlan,
    StallReport,
    StallRun,
    gaps_of,
    longest_gap_ms,
    percentile,
    stall_report,
)


def run(
    disturbed_ms: list[float], undisturbed_ms: list[float] | None = None, rate_ratio: float = 0.9
) -> StallRun:
    return StallRun(
        prompt_tokens=8000,
        alone_s=10.0,
        beside_s=12.0,
        rate_ratio=rate_ratio,
        undisturbed_ms=undisturbed_ms or [20.0, 40.0],
        disturbed_ms=disturbed_ms,
        restarts=0,
    )


def report(*runs: StallRun) -> StallReport:
    plan = StallPlan(
        own=Own("nano", 16),
        running=None,
        model="nano",
        vocabulary=byte_vocabulary(),
        has_models_vocabulary=True,
        seed=1,
        streams=2,
        prompt_tokens=8000,
        target_itl_ms=250.0,
        repeats=len(runs),
    )
    return stall_report(plan, runs, "a Mac", 8)


def test_the_longest_gap_is_that_within_the_span() -> None:
    times = [0.0, 5.0, 10.0, 11.0, 13.0, 14.0, 20.0]
    assert longest_gap_ms([times], Span(10.5, 13.5)) == 2000.0


def test_gaps_that_reach_into_the_span_count_in_full() -> None:
    assert longest_gap_ms([[0.0, 5.0, 6.0, 7.0]], Span(4.0, 6.5)) == 5000.0
    assert longest_gap_ms([[0.0, 1.0, 2.0, 9.0]], Span(0.5, 2.5)) == 7000.0
    assert longest_gap_ms([[0.0, 1.0, 2.0, 9.0]], Span(0.5, 2.0)) == 1000.0


def test_a_stream_that_still_stands_at_the_end_has_a_gap() -> None:
    """Else a server that freezes its streams until the very end would look perfect."""
    assert longest_gap_ms([[0.0, 1.0]], Span(2.0, 9.0)) == 8000.0


def test_between_two_answers_of_a_stream_there_is_no_gap() -> None:
    assert longest_gap_ms([[0.0, 1.0], [8.0, 8.5, 12.0]], Span(0.5, 8.4)) == 1000.0
    assert longest_gap_ms([[0.0, 1.0], []], Span(2.0, 9.0)) is None
    assert longest_gap_ms([[]], Span(2.0, 9.0)) is None


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([3.0], 99, 3.0), ([1.0, 2.0], 50, 1.0), (list(range(1, 41)), 99, 40),
     (list(range(1, 101)), 99, 99), (list(range(1, 101)), 90, 90)],
)  # fmt: skip
def test_percentiles_are_values_that_occurred(
    values: list[float], percent: int, expected: float
) -> None:
    assert percentile(values, percent) == expected
    assert percentile(values[::-1], percent) == expected


def test_the_distribution_is_over_streams() -> None:
    assert gaps_of([10.0, 30.0, 20.0]) == Gaps(
        median_ms=20.0, p90_ms=30.0, p99_ms=30.0, longest_ms=30.0
    )


@pytest.mark.parametrize(("gap_ms", "expected"), [(345.0, True), (345.1, False)])
def test_a_gap_may_be_the_target_a_fifth_and_the_longest_undisturbed(
    gap_ms: float, expected: bool
) -> None:
    """250 ms × 1.2 + 45 ms, which is the longest of any run."""
    made = report(run([100.0, 100.0], [1.0, 45.0]), run([gap_ms, 100.0]))
    assert (made.allowed_ms, made.is_gap_met) == (345.0, expected)


@pytest.mark.parametrize(("rate_ratio", "expected"), [(0.80, True), (0.79, False)])
def test_the_rate_is_the_median_of_the_runs(rate_ratio: float, expected: bool) -> None:
    runs = [run([1.0], rate_ratio=ratio) for ratio in (0.1, rate_ratio, 2.0)]
    assert (report(*runs).rate_ratio, report(*runs).is_rate_met) == (rate_ratio, expected)


def test_the_json_carries_its_schema_version_and_every_gap() -> None:
    body = json.loads(msgspec.json.encode(report(run([7.0, 8.0]))))
    assert body["schema_version"] == 1
    assert body["url"] is None
    assert body["runs"][0]["disturbed_ms"] == [7.0, 8.0]
    assert body["disturbed"]["p99_ms"] == 8.0
