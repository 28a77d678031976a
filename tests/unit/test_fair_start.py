"""A greedy neighbour must not be felt: the queue and the scheduler together, in exact time."""

import pytest

from tests.principals import caller
from tests.simulated_office import Office
from verger.messages import Submit

GREEDY, MODEST = caller("greedy"), caller("modest")
GREEDY_REQUESTS = 100
ARRIVES_S = 20.0


def submit(first_id: int, prompt_tokens: int, max_tokens: int) -> Submit:
    """No two of them begin alike."""
    return Submit(0, [first_id] + [1] * (prompt_tokens - 1), max_tokens, stop_ids=[])


def modest_ttft_s(office: Office, prompt_tokens: int) -> float:
    """One request of the modest key, whatever else goes on."""
    asked = office.ask(MODEST, submit(7, prompt_tokens, 3))
    while office.seen[asked].first_token_s is None:
        office.step()
    assert office.seen[asked].first_chunk_plans == 1, "the next chunk computed is its own"
    return office.seen[asked].ttft_s


def alone_s(max_rows: int, prompt_tokens: int) -> float:
    office = Office(max_rows)
    # A machine that is known already.
    office.ask(MODEST, submit(3, 3_000, 3))
    office.run_until(ARRIVES_S)
    return modest_ttft_s(office, prompt_tokens)


@pytest.mark.slow
@pytest.mark.parametrize("max_rows", [2, 4, 16])
@pytest.mark.parametrize("greedy_tokens", [60, 1_500, 6_000])
@pytest.mark.parametrize("prompt_tokens", [2, 300, 2_100, 12_000])
def test_a_greedy_neighbour_at_most_doubles_the_time_to_a_first_token(
    max_rows: int, greedy_tokens: int, prompt_tokens: int
) -> None:
    """Wherever in a step the request comes."""
    alone = alone_s(max_rows, prompt_tokens)
    for phase in range(6):
        office = Office(max_rows)
        for number in range(GREEDY_REQUESTS):
            office.ask(GREEDY, submit(100 + number, greedy_tokens, 400))
        office.run_until(ARRIVES_S + 0.29 * phase)
        assert office.queue.sequences > 50
        ttft_s = modest_ttft_s(office, prompt_tokens)
        assert ttft_s <= 2 * alone + office.longest_step_s


def test_of_deep_contexts_too() -> None:
    """A chunk far into a long prompt takes longer than one at its beginning."""
    office = Office(max_rows=4)
    for number in range(GREEDY_REQUESTS):
        office.ask(GREEDY, submit(100 + number, 30_000, 400))
    office.run_until(ARRIVES_S)
    assert modest_ttft_s(office, 2_100) <= 2 * alone_s(4, 2_100) + office.longest_step_s


@pytest.mark.slow
def test_a_neighbours_prompts_are_computed_all_the_same() -> None:
    """The head start is bounded: a key with several rows is not starved by one that asks for one
    long prompt after the other."""
    office = Office(max_rows=4)
    asked = [office.ask(GREEDY, submit(100 + number, 9_000, 5)) for number in range(2)]
    for number in range(40):
        office.ask(MODEST, submit(300 + number, 9_000, 1))
        office.run_until(office.now_s + 9.0)

    assert all(office.seen[request_id].is_finished for request_id in asked)
