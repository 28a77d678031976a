"""Memory pressure: what the system says, and a cache that makes room and grows again."""

from random import Random

import pytest

from tests.unit.test_engine_loop import Engine as LoopEngine
from tests.unit.test_engine_loop import engine as engine
from tests.unit.test_engine_loop import submit as loop_submit
from tests.unit.test_scheduler_cache import make_engine, submit, text
from verger.engine.loop import HEARTBEAT_S
from verger.engine.pressure import (
    CRITICAL_AVAILABLE,
    KEPT_SHARE,
    WARN_AVAILABLE,
    Pressure,
    of_level,
    of_meminfo,
)
from verger.messages import Drain, FinishReason


def meminfo(share: float) -> str:
    total_kib = 1_000_000
    available_kib = round(share * total_kib)
    return f"MemTotal: {total_kib} kB\nMemFree: 1 kB\nMemAvailable:  {available_kib} kB\n"


@pytest.mark.parametrize(
    ("share", "pressure"),
    [
        (1.0, Pressure.NORMAL),
        (WARN_AVAILABLE, Pressure.NORMAL),
        (WARN_AVAILABLE - 1e-3, Pressure.WARN),
        (CRITICAL_AVAILABLE, Pressure.WARN),
        (CRITICAL_AVAILABLE - 1e-3, Pressure.CRITICAL),
        (0.0, Pressure.CRITICAL),
    ],
)
def test_linux_is_short_of_memory_when_little_is_available(
    share: float, pressure: Pressure
) -> None:
    assert of_meminfo(meminfo(share)) is pressure


def test_what_macos_says_is_taken_as_it_says_it() -> None:
    assert [of_level(level) for level in (1, 2, 4)] == list(Pressure)
    assert of_level(None) is of_level(3) is Pressure.NORMAL


def test_a_loop_under_pressure_keeps_no_more_than_the_share(engine: LoopEngine) -> None:
    scheduler, runner = engine.scheduler, engine.runner
    engine.gateway.send(loop_submit(prompt_tokens=400, max_tokens=1), Drain())
    engine.loop.run()
    assert runner.held.cache_bytes == scheduler.kv.cache.bytes > 0
    scheduler.is_draining = False
    engine.loop._read_pressure = lambda: Pressure.CRITICAL
    engine.clock.now_s += 2 * HEARTBEAT_S
    engine.gateway.send(loop_submit(2, prompt_tokens=5, max_tokens=2), Drain())
    engine.loop.run()
    # Only what came after the last beat is there.
    assert runner.held.cache_bytes == scheduler.kv.cache.bytes
    assert scheduler.kv.cache.evictions > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_after_any_pressure_everything_is_as_it_was(seed: int) -> None:
    """No answer is lost or cut, no limit moves, and the cache is as good as before."""
    random, pressed = Random(seed), make_engine()
    kv = pressed.scheduler.kv
    limit_bytes, longest = kv.limit_bytes, kv.longest_row()
    for request_id in range(1, 40):
        prompt = text(random.randrange(1, 900), seed=random.randrange(4))
        pressed.submit(submit(request_id, prompt, max_tokens=random.randrange(1, 9)))
        for _ in range(random.randrange(6)):
            share = KEPT_SHARE[random.choice(list(Pressure))]
            kv.shrink_cache(int(share * kv.cache.bytes), pressed.now_s)
            pressed.step()
    pressed.run()
    assert all(pressed.finished(i).reason is FinishReason.LENGTH for i in range(1, 40))
    kv.shrink_cache(0, pressed.now_s)
    pressed.run()
    assert kv.cache.bytes == 0

    assert (kv.limit_bytes, kv.longest_row()) == (limit_bytes, longest)
    again = [submit(100, text(700, seed=50)), submit(101, text(700, seed=50) + text(60, seed=51))]
    for asked in again:
        pressed.run(asked)
    fresh = make_engine()
    for asked in again:
        fresh.run(asked)
    for i in (100, 101):
        assert pressed.finished(i).cached_tokens == fresh.finished(i).cached_tokens
    assert kv.cache.bytes == fresh.scheduler.kv.cache.bytes
