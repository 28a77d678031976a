"""Virtual token counters: what is charged, given back, lifted and forgotten."""

import pytest

from verger.gateway.fairness import MAX_KEYS, WEIGHTS, FairCounters, Prices
from verger.messages import BACKGROUND, BATCH, INTERACTIVE

PRICES = Prices(prompt_s=0.01, output_s=0.5)


def counters(max_keys: int = MAX_KEYS) -> FairCounters:
    made = FairCounters(max_keys)
    made.prices = PRICES
    return made


def used(made: FairCounters, key_id: str, prompt_tokens: int, priority: int = INTERACTIVE) -> None:
    """A request from its arrival to its end."""
    made.enter(key_id, priority)
    work = made.begin(key_id, priority, prompt_tokens, 0)
    made.note_prefilled(work, prompt_tokens, 0)
    made.end(work)
    made.leave(key_id, priority)


def test_uncached_prompt_tokens_are_charged_at_once_and_output_as_it_comes() -> None:
    made = counters()
    work = made.begin("k", INTERACTIVE, prompt_tokens=1_000, cached_tokens=900)
    assert made.counter_s("k") == pytest.approx(1.0)
    made.note_prefilled(work, 1_000, 900)
    made.note_decoded(work, 3)
    made.end(work)

    assert made.counter_s("k") == pytest.approx(1.0 + 1.5)


def test_what_was_less_cached_than_it_seemed_is_charged_when_that_is_known() -> None:
    made = counters()
    work = made.begin("k", INTERACTIVE, 1_000, cached_tokens=900)
    made.note_prefilled(work, 400, cached_tokens=200)
    assert made.counter_s("k") == pytest.approx(8.0)


def test_what_was_charged_for_nothing_pays_for_what_follows() -> None:
    made = counters()
    work = made.begin("k", INTERACTIVE, 1_000, cached_tokens=0)
    made.note_prefilled(work, 1_000, cached_tokens=900)
    assert made.counter_s("k") == pytest.approx(10.0)
    made.note_decoded(work, 18)
    assert made.counter_s("k") == pytest.approx(10.0)
    made.note_decoded(work, 1)
    assert made.counter_s("k") == pytest.approx(10.5)


def test_a_cancelled_request_costs_what_was_computed_of_it() -> None:
    made = counters()
    work = made.begin("k", INTERACTIVE, 1_000, cached_tokens=0)
    made.note_prefilled(work, 300, cached_tokens=0)
    made.end(work)
    used(made, "k", 800)

    assert made.counter_s("k") == pytest.approx(3.0 + 8.0)


def test_tokens_prove_that_the_prompt_was_computed_though_no_progress_was_told() -> None:
    made = counters()
    work = made.begin("k", INTERACTIVE, 100, cached_tokens=0)
    made.note_decoded(work, 1)
    made.end(work)
    assert made.counter_s("k") == pytest.approx(1.5)
    made.note_decoded(made.begin("k", INTERACTIVE, 1, cached_tokens=1), 1)
    assert made.counter_s("k") == pytest.approx(2.0)


def test_batch_work_counts_a_quarter_and_background_work_in_full() -> None:
    made = counters()
    for key_id, priority in (("i", INTERACTIVE), ("b", BATCH), ("r", BACKGROUND)):
        used(made, key_id, 400, priority)
    assert [made.counter_s(key_id) for key_id in "ibr"] == pytest.approx([4.0, 1.0, 4.0])
    assert WEIGHTS[BATCH] == 4


def test_whoever_comes_is_lifted_to_the_least_of_those_that_are_there() -> None:
    made = counters()
    for key_id in "ab":
        made.enter(key_id, INTERACTIVE)
    for key_id, tokens in (("a", 300), ("b", 200)):
        made.begin(key_id, INTERACTIVE, tokens, 0)
    made.enter("c", INTERACTIVE)
    assert made.counter_s("c") == pytest.approx(2.0)
    made.enter("a", INTERACTIVE)
    assert made.counter_s("a") == pytest.approx(3.0)


def test_when_nobody_is_there_it_is_lifted_to_whoever_left_last() -> None:
    made = counters()
    used(made, "a", 300)
    made.enter("b", INTERACTIVE)
    assert made.counter_s("b") == pytest.approx(3.0)


def test_a_key_that_only_waits_in_the_batch_class_lifts_nobody_else_less() -> None:
    """It may wait long at a low counter, and whoever was lifted to that would go before all."""
    made = counters()
    made.enter("night", BATCH)
    made.enter("day", INTERACTIVE)
    made.begin("day", INTERACTIVE, 500, 0)
    made.enter("new", INTERACTIVE)
    assert made.counter_s("new") == pytest.approx(5.0)


@pytest.mark.parametrize(("keys", "kept"), [(3, True), (4, False)])
def test_the_table_is_bounded_and_forgets_the_idle_key_that_used_least(
    keys: int, kept: bool
) -> None:
    made = counters(max_keys=3)
    made.enter("busy", INTERACTIVE)
    for number in range(1, keys):
        made.begin(f"k{number}", INTERACTIVE, 100 * number, 0)
    assert len(made) == 3
    assert (made.counter_s("k1") > 0) is kept
    assert made.counter_s("k2") > 0
