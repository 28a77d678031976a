"""Whose turn it is: order, bound, shares, and requests of several sequences."""

import itertools

import pytest
from msgspec.structs import replace

from tests.principals import caller
from verger.gateway.generation import Generation
from verger.gateway.principal import ANONYMOUS, Principal, Priority
from verger.gateway.submit_queue import (
    BATCH_TURN_S,
    LOOK_AHEAD_ROWS,
    MAX_QUEUED,
    Choices,
    Origin,
    SubmitQueue,
)
from verger.messages import BATCH, INTERACTIVE, Progress, RowTokens, Submit

MAX_ROWS = 4
PLACES = MAX_ROWS + LOOK_AHEAD_ROWS
SUBMIT = Submit(request_id=0, prompt=[1] * 100, max_tokens=1, stop_ids=[])
GREEDY, MODEST, THIRD = (caller(name) for name in ("greedy", "modest", "third"))

_ids = itertools.count(1)


def request(choices: int = 1, submit: Submit = SUBMIT) -> Choices:
    return tuple(Generation(next(_ids), submit) for _ in range(choices))


def batch(choices: int = 1) -> Choices:
    return request(choices, replace(SUBMIT, priority=BATCH))


def push(queue: SubmitQueue, choices: Choices, principal: Principal = ANONYMOUS) -> bool:
    return queue.push(choices, Origin(principal), now_s=0.0)


def filled(*requests: Choices, principal: Principal = ANONYMOUS) -> SubmitQueue:
    queue = SubmitQueue()
    for choices in requests:
        assert push(queue, choices, principal)
    return queue


def given(queue: SubmitQueue, max_rows: int = MAX_ROWS, now_s: float = 0.0) -> list[Choices]:
    """All that the engine gets now."""
    return list(iter(lambda: queue.pop_next(max_rows, now_s), None))


def end(queue: SubmitQueue, *requests: Choices) -> None:
    for choices in requests:
        for generation in choices:
            queue.end(generation.request_id)


def test_without_keys_first_come_first_served_and_all_places_are_used() -> None:
    requests = [request() for _ in range(PLACES + 1)]
    queue = filled(*requests)

    assert given(queue) == requests[:PLACES]
    end(queue, requests[3])
    assert given(queue) == requests[PLACES:]


def test_a_request_waits_until_all_its_choices_fit_and_nobody_overtakes_it() -> None:
    first, wide, narrow = request(PLACES - 2), request(3), request()
    queue = filled(first, wide, narrow)

    assert given(queue) == [first]
    end(queue, first[:1])
    assert given(queue) == [wide]
    end(queue, first[1:2])
    assert given(queue) == [narrow]


def test_a_request_wider_than_all_places_goes_once_the_engine_has_nothing_else() -> None:
    narrow, wide = request(), request(PLACES + 1)
    queue = filled(narrow, wide)

    assert given(queue) == [narrow]
    end(queue, narrow)
    assert given(queue) == [wide]


def test_sequences_are_bounded_not_requests() -> None:
    queue = filled(*(request() for _ in range(MAX_QUEUED - 3)), request(2))

    assert queue.sequences == MAX_QUEUED - 1
    assert not push(queue, request(2))
    assert push(queue, request())
    assert queue.sequences == MAX_QUEUED
    assert not push(queue, request())


def test_who_leaves_frees_its_place_and_is_not_served() -> None:
    first, second, third = request(), request(2), request()
    queue = filled(first, second, third)

    assert queue.remove(second)
    assert not queue.remove(second)
    assert queue.sequences == 2
    assert queue.pop_next(MAX_ROWS, 0.0) == first
    assert not queue.remove(first)
    assert queue.clear() == [third]
    assert queue.sequences == 0


def test_an_empty_queue_has_nobody_next() -> None:
    assert SubmitQueue().pop_next(MAX_ROWS, 0.0) is None


@pytest.mark.parametrize(("max_rows", "share"), [(1, 1), (2, 1), (3, 2), (4, 2), (16, 8)])
def test_a_key_has_half_of_the_rows_rounded_up(max_rows: int, share: int) -> None:
    queue = filled(*(request() for _ in range(20)), principal=GREEDY)
    assert len(given(queue, max_rows)) == share


@pytest.mark.parametrize(("max_parallel", "share"), [(1, 1), (3, 3), (4, 3), (100, 3)])
def test_a_keys_own_limit_holds_but_one_row_is_always_kept(max_parallel: int, share: int) -> None:
    principal = caller("k", max_parallel=max_parallel)
    queue = filled(*(request() for _ in range(10)), principal=principal)
    assert len(given(queue)) == share


def test_more_choices_than_its_share_go_when_the_key_has_no_row() -> None:
    narrow, wide = request(), request(3)
    queue = filled(narrow, wide, principal=GREEDY)

    assert given(queue) == [narrow]
    end(queue, narrow)
    assert given(queue) == [wide]


def test_a_key_without_a_row_gets_the_kept_one_at_once() -> None:
    queue = filled(*(request() for _ in range(100)), principal=GREEDY)
    for _ in range(2):
        push(queue, request(), MODEST)
    assert len(given(queue)) == MAX_ROWS - 1
    late = request()
    push(queue, late, THIRD)

    assert given(queue) == [late]


def test_keys_without_a_row_fill_the_look_ahead_but_those_that_have_one_do_not() -> None:
    queue = SubmitQueue()
    for number in range(PLACES + 1):
        for _ in range(2):
            push(queue, request(), caller(f"key {number}"))

    got = given(queue)
    assert len(got) == PLACES
    assert len({choices[0].submit.caller for choices in got}) == PLACES


def test_the_key_that_has_used_least_goes_first() -> None:
    queue = SubmitQueue()
    for _ in range(3):
        push(queue, request(), GREEDY)
        push(queue, request(), MODEST)
    first, second, third = given(queue)
    for choices in (first, third):
        for token in range(50):
            queue.note(RowTokens(choices[0].request_id, [token]))
    end(queue, first, second, third)

    assert [choices[0].submit.caller for choices in (first, second, third)] == [
        "greedy",
        "modest",
        "greedy",
    ]
    assert next(iter(given(queue)))[0].submit.caller == "modest"


def test_who_comes_back_is_not_paid_for_having_been_away() -> None:
    queue = filled(*(request() for _ in range(10)), principal=GREEDY)
    for _ in range(4):
        end(queue, *given(queue))
    push(queue, request(), MODEST)

    assert queue.counters.counter_s("modest") == queue.counters.counter_s("greedy") > 0


def test_a_wide_request_of_a_busy_key_is_overtaken_only_by_keys_without_a_row() -> None:
    queue = SubmitQueue()
    busy, wide, behind, newcomer = request(), request(3), request(), request()
    principal = caller("busy", max_parallel=4)
    push(queue, busy, principal)
    assert given(queue) == [busy]
    push(queue, wide, principal)
    other = request()
    push(queue, other, THIRD)
    assert given(queue) == [other]
    push(queue, behind, THIRD)
    push(queue, newcomer, MODEST)

    assert given(queue) == [newcomer]
    end(queue, other, newcomer, busy)
    assert given(queue)[0] == wide


def test_batch_waits_while_interactive_requests_do_and_leaves_a_row() -> None:
    queue = SubmitQueue()
    slow = [batch() for _ in range(10)]
    for choices in slow:
        push(queue, choices, caller("night", max_parallel=100))
    quick = [request() for _ in range(3)]
    for choices in quick:
        push(queue, choices, GREEDY)

    got = given(queue)
    assert got == [*quick[:2], slow[0]]
    assert [choices[0].submit.priority for choices in got] == [INTERACTIVE, INTERACTIVE, BATCH]
    end(queue, quick[0])
    assert given(queue) == [quick[2]]


def test_once_in_a_while_a_batch_request_goes_first_and_as_if_interactive() -> None:
    queue = SubmitQueue()
    night = caller("night", priority=Priority.BATCH)
    slow = [batch(), batch()]
    for choices in slow:
        push(queue, choices, night)
    quick = [request() for _ in range(20)]
    for choices in quick:
        push(queue, choices, caller("day", max_parallel=100))
    got = given(queue)
    assert slow[0] not in got

    end(queue, got[0])
    assert slow[0] not in given(queue, now_s=BATCH_TURN_S - 0.1)
    end(queue, got[1])
    assert given(queue, now_s=BATCH_TURN_S) == [slow[0]]
    assert slow[0][0].submit.priority == INTERACTIVE
    end(queue, slow[0])
    assert slow[1] not in given(queue, now_s=2 * BATCH_TURN_S - 0.1)


def test_work_in_the_background_takes_no_place_and_is_charged_to_its_key() -> None:
    queue = filled(request())
    background = Generation(next(_ids), SUBMIT)
    queue.start_background(background, GREEDY)
    assert (queue.given, queue.counters.counter_s("greedy")) == (0, 0.0)
    queue.note(Progress(background.request_id, 60, 100, cached_tokens=40))

    assert queue.counters.counter_s("greedy") == pytest.approx(60 * queue.counters.prices.prompt_s)
    queue.end(background.request_id)
    assert len(given(queue)) == 1
