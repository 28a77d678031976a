"""What the scheduler makes of cached prefixes: hits, shared prefills, the background."""

from random import Random

from msgspec.structs import replace

from tests.schedulers import Engine, make_scheduler, opened
from verger.engine.steps import Prefill, Step
from verger.messages import BACKGROUND, FinishReason, Progress, Submit

STOP_ID, CALL_ID = 1, 2


def submit(request_id: int, prompt: list[int], max_tokens: int = 4, salt: str = "") -> Submit:
    return Submit(
        request_id, prompt, max_tokens, [STOP_ID, CALL_ID], cache_salt=salt, kept_stop_ids=[CALL_ID]
    )


def background(request_id: int, prompt: list[int]) -> Submit:
    return replace(submit(request_id, prompt, max_tokens=0), priority=BACKGROUND)


def make_engine(max_rows: int = 4, chunk: int = 512, caches: bool = True) -> Engine:
    scheduler = make_scheduler(
        max_rows, alone=chunk, beside=chunk, context_tokens=20_000, caches=caches
    )
    return Engine(scheduler)


def text(count: int, seed: int = 0) -> list[int]:
    random = Random(seed)
    return [random.randrange(10, 1_000) for _ in range(count)]


def prefilled(step: Step) -> list[tuple[int, int, int]]:
    return [(chunk.request_id, chunk.start, chunk.stop) for chunk in step.plan.prefills]


def test_the_next_turn_computes_only_what_is_new() -> None:
    engine = make_engine()
    engine.run(submit(1, text(700)))
    history = text(700) + engine.ids(1)
    engine.run(submit(2, [*history, *text(50, seed=1)]))
    # The last token of an answer cut by max_tokens was never fed.
    assert engine.finished(2).cached_tokens == len(history) - 1
    assert engine.scheduler.prefill_tokens == 700 + 51


def test_a_tool_call_stays_in_the_prefix_and_a_return_does_not() -> None:
    for stop_id, kept in ((CALL_ID, 1), (STOP_ID, 0)):
        engine = make_engine()
        said = [*text(40, seed=9), stop_id, *text(100)]
        engine.run(submit(1, said, max_tokens=100))
        assert engine.finished(1).reason is FinishReason.STOP
        history = said + engine.ids(1)
        engine.run(submit(2, [*history, *text(50, seed=1)]))
        assert engine.finished(2).cached_tokens == len(said) + 40 + kept


def test_an_exact_repeat_leaves_one_token_to_compute() -> None:
    engine = make_engine()
    engine.run(submit(1, text(700)), submit(2, text(900, seed=1)))
    engine.run(submit(3, text(700)))
    assert engine.finished(3).cached_tokens == 699
    assert engine.ids(3) == engine.ids(1)


def test_what_is_cached_is_told_with_the_row() -> None:
    engine = make_engine()
    engine.run(submit(1, text(700)), submit(2, text(900, seed=1)))
    engine.frames.clear()
    engine.submit(submit(3, text(700)))
    engine.step()
    assert engine.frames[0] == Progress(3, 699, 700, 699)
    stats = engine.scheduler.cache_stats()
    assert (stats.asked_tokens, stats.cached_tokens) == (700 + 900 + 700, 699)


def test_tenants_share_nothing() -> None:
    engine = make_engine()
    engine.run(submit(1, text(700), salt="a"))
    engine.run(submit(2, text(700), salt="b"))
    assert engine.finished(2).cached_tokens == 0


def test_without_the_cache_everything_works_and_nothing_is_reused() -> None:
    engine = make_engine(caches=False)
    engine.run(submit(1, text(700)))
    engine.run(submit(2, text(700)))
    assert engine.finished(2).cached_tokens == 0
    assert engine.ids(2) == engine.ids(1)
    assert engine.scheduler.cache_stats().bytes == 0


def test_whoever_shares_a_prefix_waits_until_it_is_computed() -> None:
    engine = make_engine(chunk=256)
    shared = text(1_024)
    engine.submit(submit(1, shared + text(600, seed=1)), submit(2, shared + text(600, seed=2)))
    assert [s.request_id for s in opened(engine.step())] == [1]
    for _ in range(3):
        step = engine.step()
        assert prefilled(step)[0][0] == 1
        assert not opened(step)
    assert [s.request_id for s in opened(engine.step())] == [2]
    engine.run()
    assert engine.finished(2).cached_tokens == 1_024
    assert engine.scheduler.prefill_tokens == 1_024 + 2 * 600


def test_a_short_common_prefix_is_not_worth_waiting_for() -> None:
    engine = make_engine(chunk=64)
    shared = text(255)
    engine.submit(submit(1, shared + text(600, seed=1)), submit(2, shared + text(600, seed=2)))
    assert len(opened(engine.step())) == 2


def test_when_the_one_that_prefills_leaves_the_next_goes_on_from_there() -> None:
    engine = make_engine(chunk=256)
    prompt = text(1_500)
    engine.submit(submit(1, prompt), submit(2, prompt))
    engine.step()
    engine.step()
    engine.scheduler.cancel(1)
    engine.run()
    assert engine.finished(2).cached_tokens == 512
    assert engine.ids(2) == prompt[:4]


def test_a_client_that_sends_again_finds_the_partial_prefill() -> None:
    engine = make_engine(chunk=300)
    prompt = text(1_500)
    engine.submit(submit(1, prompt))
    engine.step()
    engine.step()
    engine.scheduler.cancel(1)
    engine.run(submit(2, prompt))
    assert engine.finished(2).cached_tokens == 600


def test_prompts_take_turns_chunk_by_chunk() -> None:
    engine = make_engine(chunk=100)
    engine.submit(submit(1, text(5_000)))
    engine.step()
    engine.submit(submit(2, text(150, seed=1)))
    turns = [prefilled(engine.step()) for _ in range(3)]
    assert turns == [[(1, 100, 200)], [(2, 0, 100)], [(1, 200, 300)]]


def test_a_background_prefill_generates_nothing_and_is_found() -> None:
    engine = make_engine()
    engine.run(background(1, text(800)))
    assert engine.finished(1).reason is FinishReason.LENGTH
    assert engine.ids(1) == []
    engine.run(submit(2, text(800) + text(20, seed=1)))
    assert engine.finished(2).cached_tokens == 800
    stats = engine.scheduler.cache_stats()
    assert (stats.background_tokens, stats.asked_tokens) == (800, 820)


def test_a_background_prefill_of_what_is_cached_takes_no_row() -> None:
    engine = make_engine()
    engine.run(background(1, text(800)))
    engine.submit(background(2, text(800)))
    assert not opened(engine.step())
    engine.run()
    assert engine.finished(2).reason is FinishReason.LENGTH
    assert engine.scheduler.prefill_tokens == 800


def test_the_background_makes_way_at_the_next_chunk_and_goes_on_later() -> None:
    engine = make_engine(chunk=100)
    engine.submit(background(1, text(800)))
    engine.step()
    engine.submit(submit(2, text(250, seed=1)))
    step = engine.step()
    assert [chunk.request_id for chunk in step.plan.prefills] == [2]
    engine.run()
    assert engine.finished(1).reason is FinishReason.LENGTH
    assert engine.scheduler.prefill_tokens == 800 + 250
    assert engine.scheduler.preemptions == 0


def test_one_background_prefill_runs_at_a_time_and_a_row_stays_free() -> None:
    engine = make_engine(max_rows=3, chunk=100)
    engine.submit(background(1, text(800)), background(2, text(800, seed=1)))
    assert [s.request_id for s in opened(engine.step())] == [1]
    engine.submit(submit(3, text(50, seed=2), max_tokens=200))
    engine.submit(submit(4, text(50, seed=3), max_tokens=200))
    for _ in range(20):
        assert background(1, []).request_id not in [p.request_id for p in chunks(engine.step())]


def chunks(step: Step) -> tuple[Prefill, ...]:
    return step.plan.prefills


def test_draining_ends_the_background_at_once() -> None:
    engine = make_engine(chunk=100)
    engine.submit(background(1, text(800)), background(2, text(800, seed=1)))
    engine.step()
    engine.scheduler.drain()
    engine.run()
    assert {engine.finished(i).reason for i in (1, 2)} == {FinishReason.CANCELLED}
