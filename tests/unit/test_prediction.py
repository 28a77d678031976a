"""Forecasts of a first token, case by case; the replayed day shows them all together."""

import pytest

from verger.gateway.prediction import (
    KEPT_SCORES,
    MIN_SCORES,
    POOR_ERROR,
    Job,
    Score,
    Scores,
    forecasts,
)
from verger.gateway.rates import Rates

RATES = Rates(
    step_s=0.05, row_s=0.0, prompt_s=0.001, alone_s=0.001, beside_s=0.002, chunk_tokens=100
)
"""A step in which a chunk is computed beside rows takes 0.2 s, four times one without."""
HALF_STEP_S = 0.025
LAST_STEP_S = 0.05
"""What a step takes besides the tokens of its chunk, where that is more than its part in them."""


def job(key: str = "", prompt: int = 0, output: int = 100, rows: int = 1, share: int = 2) -> Job:
    return Job(key, prompt, output, rows, share if key else None)


def ttft_s(waiting: list[Job], running: list[Job], max_rows: int = 4) -> float:
    """Of the last one that waits."""
    return forecasts(waiting, running, RATES, max_rows)[-1].ttft_s


def test_alone_it_takes_what_its_prompt_takes() -> None:
    (told,) = forecasts([job("a", prompt=3_000)], [], RATES, 4)
    assert told.ttft_s == told.prompt_s == pytest.approx(3.0 + LAST_STEP_S)
    assert told.wait_s == 0


def test_a_cached_prompt_takes_a_step() -> None:
    assert ttft_s([job("a", prompt=1)], []) == pytest.approx(0.051)


def test_beside_rows_a_prompt_takes_longer_and_one_comes_in_the_middle_of_a_step() -> None:
    assert ttft_s([job("a", prompt=1_000)], [job("b")]) == pytest.approx(2.0 + HALF_STEP_S)


def test_a_step_in_progress_may_be_one_with_a_large_chunk() -> None:
    """Of somebody who prefills alone, the whole chunk; beside rows that decode, a small one."""
    alone = ttft_s([job("a", prompt=1)], [job("b", prompt=1_000)])
    assert alone == pytest.approx((1.0 + 0.05) / 2 + 2 * 0.051)
    beside = ttft_s([job("a", prompt=1)], [job("b", prompt=1_000), job("c")])
    assert beside == pytest.approx(0.2 / 2 + 2 * 0.051)


def test_when_all_rows_are_taken_the_first_to_end_makes_room() -> None:
    running = [job(f"k{n}", output=100 * n) for n in (4, 2, 3)]
    told = ttft_s([job("a", prompt=1_000)], running, max_rows=3)
    assert told == pytest.approx(200 * 0.05 + 2.0 + HALF_STEP_S)


def test_those_ahead_take_their_rows_first() -> None:
    running = [job("x", output=100)]
    waiting = [job("b", prompt=100, output=40), job("a", prompt=100)]
    told = ttft_s(waiting, running, max_rows=1)
    first_s = 100 * 0.05 + max(0.05 + 0.1, 0.1)
    assert told == pytest.approx(first_s + 40 * 0.05 + 0.15 + HALF_STEP_S)


def test_computing_prompts_delays_the_rows_that_decode() -> None:
    """While 1,000 tokens are computed a row gets one token in the time of four."""
    running, ahead = [job("x", output=100)], job("b", prompt=1_000, output=1_000)
    told = ttft_s([ahead, job("a", prompt=1)], running, max_rows=2)
    assert told == pytest.approx(5.0 + 2.0 * 0.75 + 0.051, abs=0.05)


def test_prompts_that_are_computed_at_the_same_time_share_the_engine() -> None:
    waiting = [job("b", prompt=5_000), job("a", prompt=1_000)]
    assert ttft_s(waiting, []) == pytest.approx(2 * (1.0 + LAST_STEP_S))


def test_a_keys_only_prompt_does_not_wait_for_those_of_a_key_with_several() -> None:
    waiting = [job("b", prompt=5_000), job("b", prompt=5_000), job("a", prompt=1_000)]
    assert ttft_s(waiting, []) == pytest.approx(1.0 + LAST_STEP_S)


def test_a_key_at_its_share_waits_for_itself_and_others_pass() -> None:
    running = [job("a", output=100), job("a", output=200)]
    assert ttft_s([job("a", prompt=1)], running) == pytest.approx(5.0 + 0.051 + HALF_STEP_S)
    passing = [job("a", prompt=1), job("b", prompt=1)]
    assert ttft_s(passing, running) < 1.0


def test_the_kept_row_is_for_keys_without_one() -> None:
    running = [job("a", output=100), job("b", output=50), job("b", output=70)]
    assert ttft_s([job("a", prompt=1)], running) == pytest.approx(50 * 0.05 + 0.051 + HALF_STEP_S)
    assert ttft_s([job("c", prompt=1)], running) < 1.0


def test_without_keys_all_rows_are_used() -> None:
    running = [job(output=100) for _ in range(3)]
    assert ttft_s([job(prompt=1)], running) < 1.0


def test_a_request_of_several_rows_waits_for_all_of_them() -> None:
    running = [job(output=100 * n) for n in (1, 2, 3)]
    assert ttft_s([job(prompt=1, rows=3)], running) == pytest.approx(10.0 + 0.051 + HALF_STEP_S)


@pytest.mark.parametrize(
    ("predicted_s", "actual_s", "error", "is_wrong"),
    [
        (3.0, 2.0, 0.5, False),
        (3.0, 6.0, 0.5, True),
        (6.0, 3.0, 1.0, True),
        (0.01, 0.2, 0.0, False),
        (0.01, 0.5, 0.5, False),
        (4.0, 4.0, 0.0, False),
    ],
)
def test_a_score_says_how_far_off_and_whether_that_mattered(
    predicted_s: float, actual_s: float, error: float, is_wrong: bool
) -> None:
    score = Score(predicted_s, actual_s, objective_s=4.0)
    assert score.error == pytest.approx(error)
    assert score.is_wrong is is_wrong


def test_scores_of_the_last_forecasts_are_kept() -> None:
    scores = Scores()
    assert (scores.median_error, scores.wrong_share, len(scores)) == (None, None, 0)
    for _ in range(KEPT_SCORES):
        scores.add(Score(8.0, 4.0, objective_s=5.0))
    assert (scores.median_error, scores.wrong_share) == (1.0, 1.0)
    for _ in range(KEPT_SCORES):
        scores.add(Score(4.0, 4.0, objective_s=5.0))
    assert (scores.median_error, scores.wrong_share, len(scores)) == (0.0, 0.0, KEPT_SCORES)


@pytest.mark.parametrize(
    ("count", "error", "is_trusted"),
    [
        (MIN_SCORES - 1, 5.0, True),
        (MIN_SCORES, POOR_ERROR, True),
        (MIN_SCORES, POOR_ERROR + 0.01, False),
    ],
)
def test_poor_forecasts_are_not_trusted(count: int, error: float, is_trusted: bool) -> None:
    scores = Scores()
    for _ in range(count):
        scores.add(Score(4.0 * (1 + error), 4.0, objective_s=10.0))
    assert scores.is_trusted is is_trusted
