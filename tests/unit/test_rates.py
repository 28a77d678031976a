"""The engine's speed from its statistics."""

from random import Random

import pytest

from verger.gateway.rates import MAX_INTERVAL_S, TYPICAL, RateFit, Rates, solve_nonnegative
from verger.messages import PrefillStats, Stats

STEP_S, ROW_S, PROMPT_S = 0.05, 0.004, 0.0005
PREFILL = PrefillStats(0.25, chunk_tokens=256, best_tokens_s=1_000.0, efficiency=0.8)


def stats(steps: int, sampled: int, prompt: int, running: int = 1) -> Stats:
    return Stats(running, 0, steps, prompt, sampled, 0, 0, 0, prefill=PREFILL)


def taught(intervals: int = 60, seed: int = 1) -> RateFit:
    """Intervals of a second or so, with rows that come and go and chunks now and then."""
    random, fit = Random(seed), RateFit()
    steps = sampled = prompt = 0
    now_s = 100.0
    fit.observe(stats(0, 0, 0), now_s)
    for _ in range(intervals):
        more, rows = random.randint(5, 15), random.randint(1, 8)
        chunk = random.choice([0, 0, 600])
        steps, sampled, prompt = steps + more, sampled + more * rows, prompt + chunk
        now_s += STEP_S * more + ROW_S * more * rows + PROMPT_S * chunk
        fit.observe(stats(steps, sampled, prompt), now_s)
    return fit


def test_the_parts_of_a_step_are_found() -> None:
    rates = taught().rates
    assert rates.is_measured
    assert rates.step_s == pytest.approx(STEP_S, rel=0.05)
    assert rates.row_s == pytest.approx(ROW_S, rel=0.1)
    assert rates.prompt_s == pytest.approx(PROMPT_S, rel=0.1)
    assert rates.token_s(8) == pytest.approx(STEP_S + 8 * ROW_S, rel=0.05)


def test_prompts_take_what_the_engines_own_fit_says() -> None:
    rates = taught().rates
    assert rates.alone_s == pytest.approx(0.001)
    assert rates.beside_s == pytest.approx(0.00125)
    assert rates.prefill_s(4_000, has_decodes=False) == pytest.approx(4.0)
    assert rates.prefill_s(4_000, has_decodes=True) == pytest.approx(5.0)
    assert rates.prefill_s(1, has_decodes=False) == pytest.approx(STEP_S, rel=0.1), "a step"
    assert rates.prefill_s(0, has_decodes=False) == 0
    assert rates.stall == pytest.approx(1 - STEP_S / (256 * 0.00125), rel=0.1)


def test_what_tokens_cost_is_each_rows_part_of_a_step() -> None:
    fit = taught()
    prices = fit.rates.prices(rows=4.0)
    assert prices.prompt_s == pytest.approx(0.001)
    assert prices.output_s == pytest.approx((STEP_S + 4 * ROW_S) / 4, rel=0.05)
    assert 1 <= fit.rows <= 8


def test_a_machine_that_slows_down_is_followed() -> None:
    fit = taught()
    steps = 100_000
    now_s = 10_000.0
    for number in range(150):
        steps += 10
        now_s += 2 * (STEP_S + 4 * ROW_S) * 10
        fit.observe(stats(steps, steps * 4, 0), now_s)
        assert number or fit.rates.step_s == pytest.approx(STEP_S, rel=0.1), "too long an interval"
    assert fit.rates.token_s(4) == pytest.approx(2 * (STEP_S + 4 * ROW_S), rel=0.05)


def test_only_intervals_in_which_the_engine_was_busy_count() -> None:
    fit = RateFit()
    fit.observe(stats(0, 0, 0, running=0), 0.0)
    fit.observe(stats(10, 10, 0), 1.0)
    assert fit.rates == TYPICAL, "it was idle for some of it"
    fit.observe(stats(10, 10, 0), 2.0)
    assert fit.rates == TYPICAL, "no step"
    fit.observe(stats(20, 20, 0), 2.0 + MAX_INTERVAL_S + 0.1)
    assert fit.rates == TYPICAL, "it hung"
    fit.restart()
    fit.observe(stats(30, 30, 0), 6.0)
    assert fit.rates == TYPICAL, "another engine"
    fit.observe(stats(40, 40, 0), 6.0 + MAX_INTERVAL_S)
    assert fit.rates.is_measured


def test_no_part_is_ever_negative() -> None:
    assert solve_nonnegative([[1.0, 0.0], [0.0, 1.0]], [2.0, -1.0]) == [2.0, 0.0]
    assert solve_nonnegative([[1.0]], [-1.0]) == [0.0]


def test_a_chunk_of_nothing_stalls_nobody() -> None:
    assert Rates(beside_s=0.0).stall == 0.0
