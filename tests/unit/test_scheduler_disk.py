"""Prefixes that are on disk: when they are written, read back, and left alone."""

from random import Random

from tests.schedulers import Engine, make_scheduler, opened
from verger.messages import Submit


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
