"""Whose prompt is computed first: a caller's only row, somebody new, and not for ever."""

from msgspec.structs import replace

from tests.schedulers import PlainScheduler, make_scheduler
from verger.engine.step_planner import HEAD_START_CHUNKS
from verger.engine.steps import Sampled
from verger.messages import BATCH, INTERACTIVE, Submit

PROMPTS: dict[int, list[int]] = {}
"""Of the test that runs, by request."""


def submit(request_id: int, caller: str, prompt_tokens: int, priority: int = INTERACTIVE) -> Submit:
    prompt = [request_id] * prompt_tokens
    return Submit(request_id, prompt, 1, [], caller=caller, priority=priority)


def scheduler_of(*submits: Submit, alone: int = 10) -> PlainScheduler:
    scheduler = make_scheduler(alone=alone, beside=alone, context_tokens=10_000, caches=False)
    for asked in submits:
        PROMPTS[asked.request_id] = asked.prompt
        scheduler.submit(asked)
    return scheduler


def step(scheduler: PlainScheduler) -> list[tuple[int, int]]:
    """Who is prefilled, and how many tokens."""
    prefills = scheduler.plan().plan.prefills
    ended = [p.request_id for p in prefills if p.stop == len(PROMPTS[p.request_id])]
    scheduler.settle([Sampled(request_id, 7) for request_id in ended])
    return [(p.request_id, p.stop - p.start) for p in prefills]


def test_a_callers_only_prompt_goes_before_those_of_a_caller_with_several() -> None:
    """The first of those rides along in the chunk that the short prompt leaves half empty."""
    scheduler = scheduler_of(submit(1, "a", 100), submit(2, "a", 100), submit(3, "b", 25))
    assert [step(scheduler)[0] for _ in range(4)] == [(3, 10), (3, 10), (3, 5), (2, 10)]


def test_two_callers_with_a_row_each_take_turns() -> None:
    scheduler = scheduler_of(submit(1, "a", 100), submit(2, "b", 100))
    assert [step(scheduler) for _ in range(4)] == [[(1, 10)], [(2, 10)], [(1, 10)], [(2, 10)]]


def test_the_head_start_is_bounded() -> None:
    scheduler = scheduler_of(submit(1, "a", 100), submit(2, "a", 100), submit(3, "b", 1_000))
    first = [step(scheduler)[0][0] for _ in range(HEAD_START_CHUNKS + 1)]
    assert first == [3] * (HEAD_START_CHUNKS - 1) + [1, 2]


def test_batch_prompts_wait_for_interactive_ones_but_not_for_ever() -> None:
    scheduler = scheduler_of(submit(1, "night", 100, BATCH), submit(2, "day", 1_000))
    first = [step(scheduler)[0][0] for _ in range(HEAD_START_CHUNKS)]
    assert first == [2] * (HEAD_START_CHUNKS - 1) + [1]


def test_the_choices_of_one_answer_are_one_row() -> None:
    forked = replace(submit(1, "a", 100), forks=[2, 3])
    scheduler = scheduler_of(forked, submit(4, "b", 100))
    assert [step(scheduler) for _ in range(3)] == [[(1, 10)], [(4, 10)], [(1, 10)]]


def test_somebody_elses_prompt_does_not_double_the_step_in_which_mine_ends() -> None:
    """Its fixed part is 0.1 s, a token 1 ms: beside 20 tokens others get 0.09 s."""
    scheduler = scheduler_of(
        submit(1, "a", 500), submit(2, "a", 500), submit(3, "b", 20), alone=400
    )
    (own, rider) = step(scheduler)
    assert own == (3, 20)
    assert rider[0] == 1
    assert 80 <= rider[1] <= 90


def test_prompts_of_one_caller_share_a_chunk_as_they_come() -> None:
    scheduler = scheduler_of(*(submit(n, "a", 20) for n in range(3)), alone=400)
    assert step(scheduler) == [(0, 20), (1, 20), (2, 20)]


def test_a_long_step_is_not_followed_by_another_before_it_ends() -> None:
    """Whoever comes meanwhile would wait for both."""
    scheduler = scheduler_of(submit(1, "a", 90), alone=40)
    scheduler.plan()
    assert not scheduler.must_settle
    scheduler.settle([], seconds=5.0)
    scheduler.plan()
    assert scheduler.must_settle
