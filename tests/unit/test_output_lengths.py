"""How long an answer will be."""

import pytest

from verger.gateway.output_lengths import KEPT, UNKNOWN_TOKENS, Kind, OutputLengths

ANN = Kind("ann", "m", "low")
BOB = Kind("bob", "m", "low")


def taught(kind: Kind = ANN, lengths: range = range(100, 900, 100)) -> OutputLengths:
    made = OutputLengths()
    for tokens in lengths:
        made.add(kind, tokens)
    return made


def test_three_quarters_of_answers_are_no_longer_than_expected() -> None:
    assert taught().left(ANN, max_tokens=10_000) == 600


def test_of_an_answer_that_runs_only_longer_ones_count() -> None:
    made = taught()
    assert made.left(ANN, 10_000, sampled_tokens=550) == 700 - 550
    assert made.left(ANN, 10_000, sampled_tokens=800) == 400, "longer than all that were seen"


@pytest.mark.parametrize(("sampled", "left"), [(0, 300), (250, 50), (300, 0), (400, 0)])
def test_its_limit_ends_it(sampled: int, left: int) -> None:
    assert taught().left(ANN, max_tokens=300, sampled_tokens=sampled) == left


def test_a_key_without_answers_is_like_all_others_and_at_first_a_guess() -> None:
    assert taught().left(BOB, 10_000) == 600
    assert taught().left(Kind("ann", "m", "high"), 10_000) == UNKNOWN_TOKENS


def test_old_answers_are_forgotten() -> None:
    made = taught()
    for _ in range(KEPT):
        made.add(ANN, 50)
    assert made.left(ANN, 10_000) == 50


@pytest.mark.parametrize(("others", "expected"), [(1, 600), (2, UNKNOWN_TOKENS)])
def test_the_table_is_bounded_and_forgets_what_was_used_least_lately(
    others: int, expected: int
) -> None:
    """Each effort has a kind of its own, and that of any key."""
    made = OutputLengths(max_kinds=4)
    for tokens in range(100, 900, 100):
        made.add(ANN, tokens)
    for number in range(others):
        made.add(Kind("x", "m", f"effort {number}"), 5)
    assert len(made) <= 4
    assert made.left(ANN, 10_000) == expected
