"""The choices of one answer: a leader and its forks, one prefill, separate lives afterwards."""

import pytest

from tests import schedulers
from tests.schedulers import PlainScheduler, closed, opened
from verger.engine.steps import Plan, Prefill
from verger.messages import Finished, FromEngine, Rejected, RejectReason, Submit


def make_scheduler(max_rows: int = 4, max_waiting: int = 8, chunk: int = 4) -> PlainScheduler:
    return schedulers.make_scheduler(max_rows, max_waiting, chunk, chunk, caches=False)


def submit(request_id: int, prompt_tokens: int = 6, forks: tuple[int, ...] = ()) -> Submit:
    return Submit(request_id, list(range(prompt_tokens)), 5, [99], forks=list(forks))


def endings(frames: list[FromEngine]) -> list[int]:
    return [frame.request_id for frame in frames if isinstance(frame, Finished)]


def test_forks_start_with_the_step_that_ends_their_leaders_prompt() -> None:
    scheduler = make_scheduler()
    scheduler.submit(submit(1, forks=(2, 3)))
    first, second = scheduler.plan(), scheduler.plan()
    assert [s.request_id for s in opened(first)] == [1, 2, 3]
    assert [s.sampling.choice for s in opened(first)] == [0, 1, 2]
    assert first.plan == Plan((Prefill(1, 0, 4),))
    assert second.plan == Plan((Prefill(1, 4, 6, forks=(2, 3)),))


def test_a_group_is_admitted_whole_or_not_at_all() -> None:
    scheduler = make_scheduler(max_rows=3)
    scheduler.submit(submit(1))
    scheduler.submit(submit(2, forks=(3, 4)))
    scheduler.submit(submit(5))
    scheduler.plan()
    assert (scheduler.running, scheduler.waiting) == (1, 4)
    scheduler.cancel(1)
    scheduler.plan()
    assert (scheduler.running, scheduler.waiting) == (3, 1)


def test_a_group_larger_than_the_queue_is_rejected_whole() -> None:
    scheduler = make_scheduler(max_rows=3, max_waiting=1)
    scheduler.submit(submit(1, forks=(2,)))
    scheduler.submit(submit(3, forks=(4, 5)))
    rejected = [frame for frame in scheduler.take_frames() if isinstance(frame, Rejected)]
    assert rejected == [Rejected(i, RejectReason.QUEUE_FULL) for i in (3, 4, 5)]
    scheduler.submit(submit(6, forks=(7,)))
    assert not [frame for frame in scheduler.take_frames() if isinstance(frame, Rejected)]


@pytest.mark.parametrize("is_planned", [False, True], ids=["waiting", "prefilling"])
def test_when_the_leader_is_cancelled_the_next_of_them_computes_the_prompt(
    is_planned: bool,
) -> None:
    scheduler = make_scheduler()
    scheduler.submit(submit(1, forks=(2, 3)))
    if is_planned:
        scheduler.plan()
        scheduler.settle([])
    scheduler.cancel(1)
    scheduler.check_integrity()
    assert scheduler.plan().plan == Plan((Prefill(2, 0, 4),))
    assert scheduler.plan().plan == Plan((Prefill(2, 4, 6, forks=(3,)),))
    assert endings(scheduler.take_frames()) == [1]


def test_a_cancelled_fork_is_not_started() -> None:
    scheduler = make_scheduler()
    scheduler.submit(submit(1, forks=(2, 3)))
    scheduler.plan()
    scheduler.cancel(2)
    step = scheduler.plan()
    assert closed(step) == [2]
    assert step.plan == Plan((Prefill(1, 4, 6, forks=(3,)),))


def test_the_end_of_one_choice_leaves_the_others_alone() -> None:
    scheduler = make_scheduler()
    scheduler.submit(submit(1, prompt_tokens=2, forks=(2, 3)))
    scheduler.plan()
    scheduler.cancel(1)
    assert scheduler.plan().plan == Plan(decodes=(2, 3))
