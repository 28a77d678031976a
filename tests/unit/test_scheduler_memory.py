"""What the scheduler does when memory is short: evict, wait, preempt, in this order."""

from dataclasses import replace as with_rows
from random import Random

import pytest
from msgspec.structs import replace

from tests.fakes import ECHO_KV
from tests.schedulers import Engine, make_scheduler, opened
from verger.engine.allowance import SHARE
from verger.engine.eviction import RETURN_S
from verger.engine.places import MIN_CAPACITY_TOKENS
from verger.engine.row_queue import MAX_PATIENCE_S
from verger.messages import BACKGROUND, BATCH, FinishReason, Rejected, RejectReason, Submit

MAX_ROWS = 4
KV = with_rows(ECHO_KV, max_rows=MAX_ROWS)


def make_engine(tokens: int, chunk: int = 4_096, context_tokens: int = 50_000) -> Engine:
    """With memory for so many positions in rows and spans, windows included."""
    return Engine(
        make_scheduler(
            MAX_ROWS,
            alone=chunk,
            beside=chunk,
            context_tokens=context_tokens,
            limit_bytes=KV.ring_bytes + tokens * KV.token_bytes,
        )
    )


def submit(request_id: int, prompt_tokens: int, max_tokens: int = 4) -> Submit:
    return Submit(request_id, text(prompt_tokens, request_id), max_tokens, [1])


def text(count: int, seed: int) -> list[int]:
    random = Random(seed)
    return [random.randrange(10, 1_000) for _ in range(count)]


def running(engine: Engine) -> set[int]:
    return set(engine.runner.open_rows)


def test_the_context_is_cut_to_what_memory_holds() -> None:
    engine = make_engine(10 * 1024 + 500)
    assert engine.scheduler.context_tokens == 10 * 1024
    engine.submit(submit(1, 10 * 1024))
    assert engine.scheduler.take_frames() == [Rejected(1, RejectReason.TOO_LONG)]
    engine.run(submit(2, 10 * 1024 - 1, max_tokens=50))
    assert engine.finished(2).completion_tokens == 1


@pytest.mark.parametrize(
    ("tokens", "context_tokens"),
    [(MIN_CAPACITY_TOKENS - 1, 0), (MIN_CAPACITY_TOKENS, MIN_CAPACITY_TOKENS)],
)
def test_less_than_the_smallest_place_holds_nothing(tokens: int, context_tokens: int) -> None:
    assert make_engine(tokens).scheduler.context_tokens == context_tokens


def test_a_request_waits_for_rows_that_end() -> None:
    engine = make_engine(12_000)
    engine.submit(submit(1, 6_000, max_tokens=20), submit(2, 6_000, max_tokens=20))
    engine.step()
    assert running(engine) == {1}
    engine.run()
    assert engine.finished(2).reason is FinishReason.LENGTH
    assert engine.scheduler.preemptions == 0


def test_a_request_is_never_refused_while_something_can_be_evicted() -> None:
    engine = make_engine(12_000)
    for request_id in range(1, 8):
        engine.run(submit(request_id, 5_000))
        assert engine.finished(request_id).reason is FinishReason.LENGTH
    assert engine.scheduler.cache_stats().evictions > 0


def submit_warm(engine: Engine, *requests: Submit) -> None:
    """Requests whose prompts are cached already: they need no room beyond their rows."""
    for request in requests:
        engine.run(replace(request, request_id=100 + request.request_id, max_tokens=1))
    engine.submit(*requests)


def grown_rows(engine: Engine) -> None:
    """Two rows in blocks of their own, which both have to grow soon."""
    submit_warm(engine, submit(1, 5_000, max_tokens=1_000), submit(2, 5_000, max_tokens=1_000))
    engine.step()
    engine.step()
    assert running(engine) == {1, 2}


def test_when_rows_outgrow_memory_the_youngest_is_preempted_and_resumes() -> None:
    engine = make_engine(11_500)
    grown_rows(engine)
    while engine.scheduler.running == 2:
        engine.step()
    assert running(engine) == {1}
    assert engine.scheduler.preemptions == 1
    engine.run()
    for request_id in (1, 2):
        assert engine.ids(request_id) == text(5_000, request_id)[:1_000]
        ended = engine.finished(request_id)
        assert (ended.prompt_tokens, ended.completion_tokens) == (5_000, 1_000)


def test_the_least_class_is_preempted_first() -> None:
    engine = make_engine(11_500)
    submit_warm(
        engine,
        replace(submit(1, 5_000, max_tokens=1_000), priority=BATCH),
        submit(2, 5_000, max_tokens=1_000),
    )
    while engine.scheduler.preemptions == 0:
        engine.step()
    assert running(engine) == {2}
    engine.run()
    assert engine.ids(1) == text(5_000, 1)[:1_000]


def test_a_preempted_row_finds_what_it_had_computed() -> None:
    engine = make_engine(11_000)
    submit_warm(engine, submit(1, 5_000, max_tokens=130), submit(2, 5_000, max_tokens=1_000))
    engine.run()
    assert engine.scheduler.preemptions == 1
    assert engine.scheduler.prefill_tokens <= 10_000 + 3


@pytest.mark.slow
def test_a_lone_row_grows_up_to_all_the_memory() -> None:
    """Its old and its new place do not fit together: it is preempted and comes back larger."""
    engine = make_engine(8 * 1024)
    engine.run(submit(1, 5_000, max_tokens=10_000))
    ended = engine.finished(1)
    assert ended.reason is FinishReason.LENGTH
    assert ended.completion_tokens == 8 * 1024 - 5_000


def test_choices_that_do_not_fit_together_come_one_by_one() -> None:
    engine = make_engine(11_000)
    engine.run(replace(submit(1, 5_000), forks=[2, 3]))
    for request_id in (1, 2, 3):
        assert engine.ids(request_id) == text(5_000, 1)[:4]
    assert engine.scheduler.prefill_tokens < 5_000 + 2 * 600


def open_loops(engine: Engine) -> None:
    """Two conversations that fill the memory and end with a tool call."""
    for request_id in (1, 2):
        prompt = [*text(30, request_id), 1, *text(5_000, request_id)]
        asked = Submit(request_id, prompt, 50, [1], kept_stop_ids=[1])
        engine.run(asked)
        assert engine.finished(request_id).reason is FinishReason.STOP


def history(engine: Engine, request_id: int) -> list[int]:
    """What one of them begins its next prompt with."""
    return [*text(30, request_id), 1, *text(5_000, request_id), *engine.ids(request_id)]


def wait_for_row(engine: Engine, request_id: int, step_s: float = 1.0) -> float:
    """Seconds until it has a row; the clock goes by `step_s` a step."""
    start_s = engine.now_s
    while request_id not in [submit.request_id for submit in opened(engine.step())]:
        engine.now_s += step_s
        assert engine.now_s < start_s + 1000
    return engine.now_s - start_s


@pytest.mark.slow
def test_whoever_costs_others_their_prefix_saves_for_it_while_nobody_computes() -> None:
    """Losing 5,000 tokens takes five seconds of computing again, of which it pays for one."""
    engine = make_engine(12_000)
    open_loops(engine)
    engine.submit(submit(3, 5_000))
    engine.step()
    assert engine.scheduler.waiting == 1
    assert 3.0 <= wait_for_row(engine, 3, step_s=0.1) <= 5.5


def test_while_others_compute_it_saves_a_share_of_the_time() -> None:
    engine = make_engine(18_000)
    open_loops(engine)
    for request_id in (1, 2):
        engine.scheduler.kv.cache.want(90 + request_id, "", history(engine, request_id))
    engine.submit(submit(4, 3_000, max_tokens=10_000))
    engine.step()
    engine.submit(submit(3, 5_000))
    wait_s = wait_for_row(engine, 3)
    assert 4.0 / SHARE <= wait_s <= 6.0 / SHARE


@pytest.mark.slow
def test_who_computes_much_waits_for_room_in_which_others_can_grow_as_well() -> None:
    """It would soon be lost again; a short one has little to lose."""
    engine = make_engine(12_000)
    engine.submit(submit(1, 5_000, max_tokens=1_000), submit(2, 5_900), submit(3, 200))
    engine.step()
    assert running(engine) == {1, 3}
    engine.run()
    assert engine.scheduler.preemptions == 0


def test_what_a_short_question_costs_is_paid_at_once() -> None:
    engine = make_engine(12_000)
    open_loops(engine)
    engine.submit(submit(3, 200))
    assert [s.request_id for s in opened(engine.step())] == [3]


def test_nobody_waits_for_those_who_are_not_expected_soon() -> None:
    engine = make_engine(12_000)
    open_loops(engine)
    engine.now_s += RETURN_S
    engine.submit(submit(3, 5_000))
    assert [s.request_id for s in opened(engine.step())] == [3]


def test_a_conversation_that_is_at_hand_overtakes() -> None:
    engine = make_engine(12_000)
    open_loops(engine)
    engine.submit(submit(3, 5_000))
    engine.submit(Submit(4, [*history(engine, 1), *text(20, 4)], 4, [1]))
    assert [s.request_id for s in opened(engine.step())] == [4]


def test_nobody_is_overtaken_for_ever() -> None:
    engine = make_engine(12_000)
    engine.submit(submit(1, 6_000, max_tokens=50_000))
    engine.step()
    engine.submit(submit(2, 6_000))
    engine.step()
    engine.now_s += MAX_PATIENCE_S
    engine.submit(submit(3, 100))
    assert not opened(engine.step())
    engine.scheduler.cancel(1)
    assert [s.request_id for s in opened(engine.step())][0] == 2


def test_the_background_is_not_kept_waiting_for_room_that_there_never_is() -> None:
    """A history that leaves less than a quarter of the memory free is computed all the same."""
    engine = make_engine(12_000)
    engine.run(replace(submit(1, 10_000, max_tokens=0), priority=BACKGROUND), max_steps=100)
    assert engine.finished(1).prompt_tokens == 10_000
