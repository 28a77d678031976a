"""The fit of a step's time: what it recovers, what it ignores, how soon it follows."""

import random
from collections.abc import Callable

import pytest

from verger.engine.step_cost import (
    CLASS_STEPS,
    PRIOR,
    RECENT_STEPS,
    SPEED_CHANGE,
    StepCost,
    StepCostFit,
)
from verger.engine.steps import Work, prefill_work

TRUE = StepCost(fixed_s=0.054, token_s=0.00136, attended_s=3.7e-8)
SIZES = (64, 200, 700, 2048)
STARTS = (0, 3000, 12000)
WORKS = [prefill_work(start, start + size) for start in STARTS for size in SIZES]


def exact(seconds: float) -> float:
    return seconds


def noisy(rng: random.Random, accidents: float = 0.0) -> Callable[[float], float]:
    """20 % up or down, and some steps take ten times as long."""
    return lambda seconds: seconds * rng.uniform(0.8, 1.2) * (10 if rng.random() < accidents else 1)


def observe_all(
    fit: StepCostFit, cost: StepCost, measured: Callable[[float], float] = exact, rounds: int = 4
) -> None:
    for _ in range(rounds):
        for work in WORKS:
            fit.observe(work, measured(cost.seconds(work)))


def test_a_cost_is_recovered_part_by_part() -> None:
    fit = StepCostFit()
    observe_all(fit, TRUE)
    assert fit.cost.fixed_s == pytest.approx(TRUE.fixed_s, rel=0.05)
    assert fit.cost.token_s == pytest.approx(TRUE.token_s, rel=0.05)
    assert fit.cost.attended_s == pytest.approx(TRUE.attended_s, rel=0.05)


@pytest.mark.parametrize("seed", range(4))
def test_noise_and_accidents_move_the_fit_little(seed: int) -> None:
    fit = StepCostFit()
    observe_all(fit, TRUE, noisy(random.Random(seed), accidents=0.1))
    assert fit.cost.fixed_s == pytest.approx(TRUE.fixed_s, rel=0.5)
    assert fit.cost.token_s == pytest.approx(TRUE.token_s, rel=0.25)
    for work in WORKS:
        assert fit.cost.seconds(work) == pytest.approx(TRUE.seconds(work), rel=0.25)


@pytest.mark.parametrize("seed", [5, 6, 7])
def test_steps_beside_which_the_machine_was_busy_move_the_fit_little(seed: int) -> None:
    """Three times as long is no clear accident, and still counts for less."""
    rng = random.Random(seed)
    fit = StepCostFit()
    observe_all(fit, TRUE, lambda seconds: seconds * (3 if rng.random() < 0.25 else 1))
    for work in WORKS:
        assert fit.cost.seconds(work) == pytest.approx(TRUE.seconds(work), rel=0.12)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_machines_speed_is_known_after_one_step(scale: float) -> None:
    fit = StepCostFit()
    work = prefill_work(0, 512)
    fit.observe(work, scale)
    assert fit.cost.seconds(work) == pytest.approx(scale)


def test_a_first_step_that_was_an_accident_is_overruled() -> None:
    fit = StepCostFit()
    work = prefill_work(0, 512)
    for seconds in (10.0, 1.0, 1.0):
        fit.observe(work, seconds)
    assert fit.cost.seconds(work) == pytest.approx(1.0, rel=0.1)


def test_steps_of_one_size_leave_the_prior_proportions() -> None:
    fit = StepCostFit()
    work = prefill_work(0, 512)
    for _ in range(50):
        fit.observe(work, 3 * PRIOR.seconds(work))
    assert fit.cost.fixed_s == pytest.approx(3 * PRIOR.fixed_s)
    assert fit.cost.token_s == pytest.approx(3 * PRIOR.token_s)
    assert fit.cost.attended_s == pytest.approx(3 * PRIOR.attended_s)


@pytest.mark.parametrize("seed", range(6))
def test_no_part_is_ever_negative_whatever_is_seen(seed: int) -> None:
    rng = random.Random(seed)
    fit = StepCostFit()
    for _ in range(60):
        start, size = rng.randrange(50_000), rng.randrange(16, 2048)
        fit.observe(prefill_work(start, start + size), 10 ** rng.uniform(-4, 2))
        parts = (fit.cost.fixed_s, fit.cost.token_s, fit.cost.attended_s)
        assert min(parts) >= 0 < max(parts)


def test_a_part_that_would_be_negative_is_left_out() -> None:
    """Time that falls with the size fits a fixed cost best; time that rises faster than the size
    and with nothing else, none."""
    falling, steep = StepCostFit(), StepCostFit()
    for size in (64, 128, 256, 512, 1024) * 4:
        falling.observe(prefill_work(0, size), 1 / size)
        steep.observe(prefill_work(0, size), 1e-6 * size**2)
    assert falling.cost.token_s == 0
    assert steep.cost.fixed_s == 0


@pytest.mark.parametrize("change", [0.4, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_change_of_speed_is_followed_also_for_sizes_not_seen_since(
    change: float, seed: int
) -> None:
    measured = noisy(random.Random(seed))
    fit = StepCostFit()
    observe_all(fit, TRUE, measured)
    seen, unseen = prefill_work(5000, 5128), prefill_work(5000, 7048)
    for _ in range(RECENT_STEPS + 3):
        fit.observe(seen, measured(change * TRUE.seconds(seen)))
    assert fit.cost.seconds(seen) == pytest.approx(change * TRUE.seconds(seen), rel=0.2)
    assert fit.cost.seconds(unseen) == pytest.approx(change * TRUE.seconds(unseen), rel=0.35)


def test_a_change_of_speed_is_known_as_soon_as_it_is_sure() -> None:
    fit = StepCostFit()
    observe_all(fit, TRUE)
    work = prefill_work(5000, 5128)
    for _ in range(RECENT_STEPS):
        fit.observe(work, 2 * TRUE.seconds(work))
    # An accident just behind does not make it a second change.
    fit.observe(work, 20 * TRUE.seconds(work))
    for other in (work, *WORKS):
        assert fit.cost.seconds(other) == pytest.approx(2 * TRUE.seconds(other), rel=0.05)


def test_a_few_slow_steps_are_no_change_of_speed() -> None:
    fit = StepCostFit()
    observe_all(fit, TRUE)
    work = prefill_work(5000, 5128)
    for _ in range(RECENT_STEPS - 1):
        fit.observe(work, 5 * TRUE.seconds(work))
    for other in WORKS:
        assert fit.cost.seconds(other) == pytest.approx(TRUE.seconds(other), rel=0.1)


def test_a_small_lasting_change_comes_with_the_newer_steps() -> None:
    fit = StepCostFit()
    observe_all(fit, TRUE)
    change = SPEED_CHANGE * 0.95
    work = prefill_work(5000, 5128)
    for _ in range(3 * CLASS_STEPS):
        fit.observe(work, change * TRUE.seconds(work))
    assert fit.cost.seconds(work) == pytest.approx(change * TRUE.seconds(work), rel=0.1)


def test_each_size_class_keeps_its_last_steps_only() -> None:
    fit = StepCostFit()
    for _ in range(CLASS_STEPS):
        fit.observe(Work(100, 5000), 0.2)
        fit.observe(Work(200, 20000), 0.3)
    assert len(fit.steps) == 2 * CLASS_STEPS
    fit.observe(Work(127, 8000), 0.25)
    assert len(fit.steps) == 2 * CLASS_STEPS
    assert [step.seconds for step in fit.steps if step.work.tokens == 127] == [0.25]
