"""Whose turn it is: order, bound, and requests of several sequences."""

import itertools

import pytest

from verger.gateway.generation import Generation
from verger.gateway.submit_queue import LOOK_AHEAD_ROWS, MAX_QUEUED, Choices, SubmitQueue
from verger.messages import Submit

MAX_ROWS = 4
PLACES = MAX_ROWS + LOOK_AHEAD_ROWS
SUBMIT = Submit(request_id=0, prompt=[1], max_tokens=1, stop_ids=[])

_ids = itertools.count(1)


def request(choices: int = 1) -> Choices:
    return tuple(Generation(next(_ids), SUBMIT) for _ in range(choices))


def filled(*requests: Choices) -> SubmitQueue:
    queue = SubmitQueue()
    for choices in requests:
        assert queue.push(choices)
    return queue


def test_first_come_first_served() -> None:
    requests = [request(), request(2), request()]
    queue = filled(*requests)

    assert [queue.pop_next(0, MAX_ROWS) for _ in range(4)] == [*requests, None]


def test_the_engine_is_given_its_rows_and_two_more() -> None:
    queue = filled(request())

    assert queue.pop_next(PLACES, MAX_ROWS) is None
    assert queue.pop_next(PLACES - 1, MAX_ROWS) is not None


def test_a_request_waits_until_all_its_choices_fit_and_nobody_overtakes_it() -> None:
    wide, narrow = request(3), request()
    queue = filled(wide, narrow)

    assert queue.pop_next(PLACES - 2, MAX_ROWS) is None
    assert queue.pop_next(PLACES - 3, MAX_ROWS) == wide
    assert queue.pop_next(PLACES - 1, MAX_ROWS) == narrow


def test_a_request_wider_than_all_places_goes_once_the_engine_has_nothing_else() -> None:
    wide = request(PLACES + 1)
    queue = filled(wide)

    assert queue.pop_next(1, MAX_ROWS) is None
    assert queue.pop_next(0, MAX_ROWS) == wide


def test_sequences_are_bounded_not_requests() -> None:
    queue = filled(*(request() for _ in range(MAX_QUEUED - 3)), request(2))

    assert queue.sequences == MAX_QUEUED - 1
    assert not queue.push(request(2))
    assert queue.push(request())
    assert queue.sequences == MAX_QUEUED
    assert not queue.push(request())


def test_who_leaves_frees_its_place_and_is_not_served() -> None:
    first, second, third = request(), request(2), request()
    queue = filled(first, second, third)

    assert queue.remove(second)
    assert not queue.remove(second)
    assert queue.sequences == 2
    assert queue.pop_next(0, MAX_ROWS) == first
    assert not queue.remove(first)
    assert queue.clear() == [third]
    assert queue.sequences == 0


@pytest.mark.parametrize("submitted", [0, 1, PLACES])
def test_an_empty_queue_has_nobody_next(submitted: int) -> None:
    assert SubmitQueue().pop_next(submitted, MAX_ROWS) is None
