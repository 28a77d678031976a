"""Prefixes that are on disk: when they are written, read back, and left alone."""

from random import Random

import pytest

from tests.schedulers import Engine, make_scheduler, opened
from verger.engine.kv_budget import MAX_READS, Opened, Shortage
from verger.engine.prefix_cache import Kind
from verger.engine.prefix_files import SaveOrder
from verger.engine.sequence import Checkpoint, Sequence
from verger.engine.steps import Place
from verger.messages import BACKGROUND, FinishReason, Submit


def text(count: int, seed: int = 0) -> list[int]:
    random = Random(seed)
    return [random.randrange(10, 1_000) for _ in range(count)]


def submit(request_id: int, prompt: list[int]) -> Submit:
    return Submit(request_id, prompt, 4, [1])


def make_engine() -> Engine:
    scheduler = make_scheduler(alone=512, beside=512, context_tokens=20_000)
    return Engine(scheduler, has_disk=True)


def restarted(before: Engine) -> Engine:
    """A new engine that finds the files of another."""
    engine = make_engine()
    engine.disk.files = before.disk.files
    assert engine.scheduler.kv.cache.files.adopt(before.disk.headers.values()) == []
    return engine


def saved_engine() -> Engine:
    """A conversation of 2,000 tokens, all of it on disk."""
    engine = make_engine()
    engine.run(submit(1, text(2_000)))
    engine.scheduler.kv.order_saves(now_s=engine.now_s + 60, limit=100)
    engine.run()
    engine.disk.settle(engine.now_s)
    assert engine.disk.files
    return engine


def twice_saved_engine() -> Engine:
    """Two conversations of 2,000 tokens that have nothing in common, on disk."""
    engine = saved_engine()
    engine.run(submit(5, text(2_000, seed=5)))
    engine.scheduler.kv.order_saves(now_s=engine.now_s + 60, limit=100)
    engine.run()
    engine.disk.settle(engine.now_s)
    return engine


def run_with_disk(engine: Engine, request: Submit) -> None:
    engine.submit(request)
    while not engine.scheduler.is_idle:
        engine.step()
        engine.disk.settle(engine.now_s)


def test_nothing_is_written_before_it_was_reused_or_idle() -> None:
    engine = make_engine()
    engine.run(submit(1, text(2_000)))
    engine.scheduler.kv.order_saves(now_s=engine.now_s + 59, limit=100)
    engine.run()
    assert not engine.disk.files
    engine.run(submit(2, text(2_000)))
    engine.scheduler.kv.order_saves(now_s=engine.now_s, limit=100)
    engine.run()
    assert engine.disk.files


def test_after_a_restart_a_prompt_is_read_back() -> None:
    engine = restarted(saved_engine())
    run_with_disk(engine, submit(2, text(2_000) + text(30, seed=1)))
    assert engine.finished(2).cached_tokens == 1_999
    assert engine.scheduler.prefill_tokens == 31


def test_what_is_computed_faster_is_not_read() -> None:
    engine = restarted(saved_engine())
    engine.disk.seconds_per_byte = 1.0
    engine.run(submit(2, text(2_000) + text(30, seed=1)))
    assert engine.finished(2).cached_tokens == 0


def test_a_lost_file_is_computed_again() -> None:
    engine = restarted(saved_engine())
    engine.disk.files.clear()
    run_with_disk(engine, submit(2, text(2_000) + text(30, seed=1)))
    assert engine.finished(2).cached_tokens == 0
    assert engine.ids(2) == (text(2_000) + text(30, seed=1))[:4]


def test_others_do_not_wait_for_the_disk() -> None:
    engine = restarted(saved_engine())
    engine.submit(submit(2, text(2_000) + text(30, seed=1)), submit(3, text(100, seed=2)))
    assert [s.request_id for s in opened(engine.step())] == [3]


def test_there_is_no_reading_without_room() -> None:
    """What was read is dropped when it does not fit, and the file stays."""
    engine = restarted(saved_engine())
    engine.submit(submit(2, text(2_000) + text(30, seed=1)))
    engine.step()
    engine.scheduler.kv.limit_bytes = engine.scheduler.kv.used_bytes
    engine.disk.settle(engine.now_s)
    assert engine.scheduler.cache_stats().bytes == 0
    assert engine.scheduler.kv.cache.files.count > 0


def test_what_a_plan_has_yet_to_compute_is_not_saved_before() -> None:
    """A row lengthens its prefix over what another conversation shares; that one is evicted while
    the plan is being made, when the only copy of what both share is still to be computed."""
    engine = make_engine()
    kv = engine.scheduler.kv
    # The runner repeats what a prompt begins with: the first ends with a call.
    prompt = [*text(30), 1, *text(2_000)]
    engine.run(Submit(1, prompt, 50, [1], kept_stop_ids=[1], boundaries=[200, 700]))
    request = Submit(2, prompt[:900] + text(700, seed=3), 4, [1], boundaries=[200, 700])
    row = Sequence(request, request, 4, order=2, arrived_s=0.0)
    row.open(*opened_at(kv.open(row, [], engine.now_s, is_first=True)), turn=0)
    assert row.prefilled_tokens == 700
    assert kv.cut(row, Checkpoint(1_100, Kind.TURN), engine.now_s)
    kv.cache.evict(1 << 30, engine.now_s)
    assert not [edit for edit in kv.take_edits() if isinstance(edit, SaveOrder)]
    assert kv.cache.files.count == 0


def opened_at(opened: Opened | Shortage) -> tuple[Place, int]:
    assert isinstance(opened, Opened)
    return opened.places[0], opened.cached_tokens


def test_one_prefix_is_read_at_a_time_and_the_next_one_waits_for_it() -> None:
    engine = restarted(twice_saved_engine())
    for request_id, seed in ((2, 0), (3, 5)):
        engine.submit(submit(request_id, text(2_000, seed) + text(30, seed=1)))
    engine.step()
    engine.disk.settle(engine.now_s)
    assert [s.request_id for s in opened(engine.step())] == [2]
    run_with_disk(engine, submit(4, text(10)))
    assert engine.scheduler.prefill_tokens == 31 + 31 + 10


def test_who_leaves_while_his_prefix_is_read_leaves_the_disk_to_the_next() -> None:
    engine = restarted(saved_engine())
    engine.submit(submit(2, text(2_000) + text(30, seed=1)))
    engine.step()
    engine.scheduler.cancel(2, engine.now_s)
    engine.disk.settle(engine.now_s)
    assert engine.scheduler.cache_stats().bytes == 0, "nobody wants it any more"
    run_with_disk(engine, submit(3, text(2_000) + text(30, seed=1)))
    assert engine.finished(3).cached_tokens == 1_999


def test_a_prefix_that_is_read_for_the_background_keeps_nobody_waiting() -> None:
    """Who waits needs a file as well; and the background, whose turn comes when nobody waits any
    more, would never give up the disk."""
    engine = restarted(twice_saved_engine())
    refill = Submit(2, text(2_000) + text(30, seed=1), 0, [1], priority=BACKGROUND)
    engine.submit(refill)
    engine.step()
    engine.submit(submit(3, text(2_000, seed=5) + text(30, seed=2)))
    for _ in range(20):
        engine.disk.settle(engine.now_s)
        engine.step()
    assert engine.finished(3).cached_tokens == 1_999
    assert engine.finished(2).reason is FinishReason.LENGTH


@pytest.mark.slow
def test_rows_that_must_grow_come_before_what_is_being_read() -> None:
    engine = restarted(saved_engine())
    engine.submit(Submit(9, text(300, seed=9), 2_000, [1]))
    engine.step()
    kv = engine.scheduler.kv
    engine.submit(submit(2, text(2_000) + text(30, seed=1)))
    engine.step()
    kv.limit_bytes = kv.used_bytes + 200 * kv.geometry.token_bytes
    while not engine.scheduler.is_idle:
        engine.step()
        engine.disk.settle(engine.now_s)
        kv.limit_bytes += 10 * kv.geometry.token_bytes
    assert engine.finished(9).completion_tokens == 2_000
    assert engine.ids(2) == (text(2_000) + text(30, seed=1))[:4]


def test_a_prefix_that_was_read_and_lost_is_read_again_a_few_times() -> None:
    engine = restarted(saved_engine())
    request = submit(2, text(2_000) + text(30, seed=1))
    row = Sequence(request, request, 4, order=2, arrived_s=0.0)
    kv = engine.scheduler.kv
    for _ in range(MAX_READS):
        assert kv.open(row, [], engine.now_s, is_first=True) is Shortage.READING
        assert kv.stop_reading()
    assert not kv.stop_reading()
    opened = kv.open(row, [], engine.now_s, is_first=True)
    assert isinstance(opened, Opened)
    assert opened.cached_tokens == 0
