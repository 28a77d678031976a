"""A day's arrivals, forecast one by one and then played."""

from statistics import median

import pytest

from tests.principals import caller
from tests.replayed_day import Day, Person
from verger.engine.step_cost import StepCost
from verger.gateway.prediction import Score

COST = StepCost(fixed_s=0.03, token_s=0.0008, attended_s=2e-8)
OBJECTIVE_S = 4.0
PEOPLE = [
    *(Person(caller(f"dev {n}"), 500, 120, 12, step_pause_s=6, pause_s=120) for n in range(5)),
    Person(caller("writer"), 200, 500, 3, step_pause_s=40, pause_s=200),
    Person(caller("agents"), 1_500, 200, 10, step_pause_s=3, pause_s=400, parallel=5),
    Person(caller("reader"), 9_000, 150, 1, step_pause_s=3, pause_s=500),
]
HOURS = ((300, 0.5), (900, 2.0), (1_200, 1.0))
"""A quiet morning, a rush, an afternoon: until which second, and how busy."""
END_S = 1_200


def pace(now_s: float) -> float:
    return next((busy for until_s, busy in HOURS if now_s < until_s), 0.5)


def figures(scores: list[Score]) -> str:
    errors = [abs(s.predicted_s - s.actual_s) / s.actual_s for s in scores]
    waits = sorted(s.actual_s for s in scores)
    wrong = sum(s.is_wrong for s in scores) / len(scores)
    return (
        f"{len(scores)} first tokens, median {median(waits):.1f} s, "
        f"p90 {waits[int(0.9 * len(waits))]:.1f} s: "
        f"median error {median(errors):.1%}, wrong {wrong:.1%}"
    )


@pytest.mark.parametrize(
    "seeds", [[1], pytest.param([2, 3, 4, 5, 6], marks=pytest.mark.slow)], ids=["a day", "a week"]
)
def test_forecasts_of_a_day_are_good_enough_to_decide_by(seeds: list[int]) -> None:
    scores: list[Score] = []
    for seed in seeds:
        day = Day(PEOPLE, 4, COST, seed, OBJECTIVE_S, pace)
        day.run(END_S)
        scores += day.scores
    busy = [score for score in scores if score.actual_s > OBJECTIVE_S / 2]
    print(f"all:  {figures(scores)}")
    print(f"busy: {figures(busy)}")

    for some in (scores, busy):
        assert median(abs(s.predicted_s - s.actual_s) / s.actual_s for s in some) <= 0.25
    assert sum(score.is_wrong for score in scores) / len(scores) <= 0.05
    assert len(busy) >= 20 * len(seeds), "nobody had to wait"
