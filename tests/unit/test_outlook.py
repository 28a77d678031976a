"""What a request has to expect: its place in fair order, and what stands before it."""

import pytest
from msgspec.structs import replace

from tests.principals import caller
from verger.gateway.generation import Generation
from verger.gateway.hits import Hits
from verger.gateway.outlook import Observer, newcomer
from verger.gateway.output_lengths import OutputLengths
from verger.gateway.rates import Rates
from verger.gateway.submit_queue import Origin, SubmitQueue
from verger.messages import BATCH, Found, Progress, RowTokens, Submit

RATES = Rates(step_s=0.05, row_s=0.0, prompt_s=0.001, alone_s=0.001, beside_s=0.002)
MAX_ROWS = 2


def submit(prompt_tokens: int = 1_000, max_tokens: int = 100, priority: int = 0) -> Submit:
    return Submit(0, [1] * prompt_tokens, max_tokens, [], priority=priority)


def origin(key_id: str, cached_tokens: int = 0) -> Origin:
    hits = Hits()
    hits.tell(Found(1, 0, cached_tokens))
    return Origin(caller(key_id), "low", hits)


class Office:
    """A queue, and requests with numbers."""

    def __init__(self) -> None:
        self.queue = SubmitQueue()
        self.observer = Observer(self.queue, OutputLengths(), "m")
        self._last_id = 0

    def come(self, asked: Submit, whose: Origin, choices: int = 1) -> tuple[Generation, ...]:
        leader = self._last_id + 1
        self._last_id += choices
        asked = replace(asked, request_id=leader)
        made = tuple(Generation(leader + choice, asked) for choice in range(choices))
        assert self.queue.push(made, whose, 0.0)
        return made

    def order(self) -> list[int]:
        outlooks = self.observer.outlooks(RATES, MAX_ROWS)
        return [outlook.waiting.request_id for outlook in outlooks]


def test_keys_take_turns_by_what_each_request_will_cost() -> None:
    """A request of a costs 2 s, one of b 3 s; then those of batch."""
    office = Office()
    for key_id, prompt_tokens in (("a", 1_000), ("b", 2_000)):
        for _ in range(3):
            office.come(submit(prompt_tokens), origin(key_id))
    office.come(submit(priority=BATCH), origin("c"))
    assert office.order() == [1, 4, 2, 5, 3, 6, 7]


def test_cached_prompts_cost_less_and_go_earlier() -> None:
    office = Office()
    for _ in range(3):
        office.come(submit(5_000), origin("a", cached_tokens=4_990))
    for _ in range(3):
        office.come(submit(5_000), origin("b"))
    assert office.order() == [1, 4, 2, 3, 5, 6]


def test_the_fair_order_is_the_order_in_which_requests_go_when_nobody_else_comes() -> None:
    office = Office()
    for number in range(12):
        office.come(submit(500 * (1 + number % 3), 50), origin("abc"[number % 3]))
    expected = office.order()
    went = []
    while (choices := office.queue.pop_next(1, 0.0)) is not None:
        (generation,) = choices
        went.append(generation.request_id)
        office.queue.note(Progress(generation.request_id, 1, len(generation.submit.prompt)))
        office.queue.note(RowTokens(generation.request_id, [0] * 50))
        office.queue.end(generation.request_id)
    assert went == expected


def test_a_newcomer_is_told_what_is_ahead_of_it_and_is_not_queued() -> None:
    office = Office()
    for _ in range(3):
        office.come(submit(1_000), origin("a"))
    asked = newcomer(submit(700), 1, origin("b"), 0.0)
    outlooks = office.observer.outlooks(RATES, MAX_ROWS, asked)
    (outlook,) = (one for one in outlooks if one.waiting is asked)

    assert (outlook.sequences_ahead, outlook.tokens_ahead) == (1, 1_000)
    assert outlooks[-1].sequences_ahead == 3
    assert outlooks[-1].tokens_ahead == 2_700
    assert office.queue.sequences == 3


def test_what_runs_counts_with_what_is_left_of_it() -> None:
    office = Office()
    running = office.come(submit(1_000, max_tokens=100), origin("a", cached_tokens=500))
    assert office.queue.pop_next(MAX_ROWS, 0.0) == running
    asked = newcomer(submit(1, max_tokens=9), 1, origin("a"), 0.0)

    def ttft_s() -> float:
        return office.observer.outlooks(RATES, MAX_ROWS, asked)[0].forecast.ttft_s

    unbegun_s = ttft_s()
    running[0].put(Progress(1, 1_000, 1_000, cached_tokens=400))
    prefilled_s = ttft_s()
    running[0].put(RowTokens(1, [0] * 80))
    assert unbegun_s - prefilled_s == pytest.approx(0.55 + (0.55 - 0.05) / 2)
    assert prefilled_s - ttft_s() == pytest.approx(80 * 0.05)


def test_choices_of_one_answer_compute_its_prompt_once() -> None:
    office = Office()
    made = office.come(submit(), origin(""), choices=2)
    assert office.queue.pop_next(4, 0.0) == made
    jobs = [office.observer._running(g, o, 4) for g, o in office.queue.running()]
    assert [job.prompt_tokens for job in jobs] == [1_000, 0]
