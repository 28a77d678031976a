"""What processes hold, as the systems tell it, and how its growth is judged."""

import asyncio
import os
import struct
import sys

import pytest

from verger.bench import soak_memory
from verger.bench.footprint import footprint_bytes, parse_kib, parse_rusage_v0
from verger.bench.soak_memory import (
    MAX_SAMPLES,
    SAMPLE_S,
    TARGET_MINUTES,
    Sample,
    Sampler,
    interval_of,
    memory_of,
)

ROLLUP = """00400000-7ffd1000 ---p 00000000 00:00 0    [rollup]
Rss:                5120 kB
Pss:                1234 kB
Pss_Anon:            800 kB
"""


def samples(
    gateway: list[int | None], engine: list[int | None], bounded: list[int] | None = None
) -> list[Sample]:
    """One per twelfth of a soak."""
    bounded = bounded or [0] * len(gateway)
    count = len(gateway)
    return [
        Sample(number / count, *held)
        for number, held in enumerate(zip(gateway, engine, bounded, strict=True))
    ]


def test_a_line_of_proc_is_found_by_its_whole_name() -> None:
    assert parse_kib(ROLLUP, "Pss") == 1234 * 1024
    assert parse_kib(ROLLUP, "VmRSS") is None


def test_the_footprint_is_the_eighth_number_of_rusage_info_v0() -> None:
    """ri_uuid, user, system, idle and interrupt wake-ups, page-ins, wired, resident, footprint,
    start, exit."""
    raw = struct.pack("=16s10Q", b"u" * 16, *range(1, 11))
    assert parse_rusage_v0(raw) == 8


@pytest.mark.skipif(sys.platform not in ("darwin", "linux"), reason="nowhere else is it known how")
def test_a_process_holds_more_after_it_has_taken_memory() -> None:
    before = footprint_bytes(os.getpid())
    taken = bytearray(b"x") * (64 * 2**20)
    after = footprint_bytes(os.getpid())
    assert before is not None
    assert after is not None
    assert 48 * 2**20 < after - before < 96 * 2**20
    assert len(taken) == 64 * 2**20


def test_nobody_has_a_footprint_under_an_id_that_is_not_in_use() -> None:
    assert footprint_bytes(2**22 + 1) is None


def test_growth_is_between_the_medians_of_the_second_and_the_last_quarter() -> None:
    # Before it is warm it may take what it likes; a peak is told and does not count.
    gateway: list[int | None] = [1, 2, 3, 100, 100, 900, 0, 0, 0, 110, 110, 300]
    engine: list[int | None] = [1, 1, 1, 1000, 1000, 1000, 0, 0, 0, 1500, 1500, 1500]
    bounded = [0, 0, 0, 200, 200, 200, 0, 0, 0, 600, 600, 600]
    memory = memory_of(samples(gateway, engine, bounded), 0, TARGET_MINUTES)
    assert memory is not None
    assert memory.gateway.quarter_bytes == [2, 100, 0, 110]
    assert (memory.gateway.warm_bytes, memory.gateway.end_bytes) == (100, 110)
    assert (memory.gateway.peak_bytes, memory.gateway.growth_ratio) == (900, 0.1)
    assert (memory.engine.growth_bytes, memory.engine.bounded_bytes) == (500, 400)
    assert memory.engine.growth_ratio == 0.1
    assert memory.is_met


@pytest.mark.parametrize("who", [0, 1])
def test_whoever_grows_by_more_than_a_tenth_misses_the_target(who: int) -> None:
    held: list[list[int | None]] = [[1000] * 12, [1000] * 12]
    held[who][9:] = [1101] * 3
    memory = memory_of(samples(held[0], held[1]), 0, TARGET_MINUTES)
    assert memory is not None
    assert memory.is_met is False


def test_a_short_soak_is_not_judged() -> None:
    told = samples([100] * 12, [100] * 12)
    for minutes in (None, TARGET_MINUTES - 1):
        memory = memory_of(told, 0, minutes)
        assert memory is not None
        assert memory.is_met is None


def test_what_is_seen_after_the_end_counts_to_the_last_quarter() -> None:
    told = [*samples([100] * 4, [100] * 4), Sample(1.2, 300, 100, 0)]
    memory = memory_of(told, 0, None)
    assert memory is not None
    assert memory.gateway.quarter_bytes == [100, 100, 100, 200]


def test_without_samples_of_each_quarter_there_is_nothing_to_compare() -> None:
    assert memory_of([], 0, None) is None
    assert memory_of(samples([100] * 3, [100] * 3), 0, None) is None
    assert memory_of(samples([100] * 12, [None] * 12), 0, None) is None
    assert memory_of(samples([100, 100], [100, 100]), 0, None) is None


def test_a_long_soak_is_looked_at_less_often() -> None:
    assert interval_of(None) == interval_of(1.0) == SAMPLE_S
    assert interval_of(1440.0) * (MAX_SAMPLES - 1) == 1440 * 60


def test_the_sampler_ends_at_its_bound_and_notices_another_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pids = iter([None, 11, 11, None, 12, 12])
    monkeypatch.setattr(soak_memory, "MAX_SAMPLES", 6)
    monkeypatch.setattr(soak_memory, "_child_of", lambda pid: next(pids))
    monkeypatch.setattr(soak_memory, "footprint_bytes", lambda pid: pid * 10)

    async def bounded_bytes() -> int:
        return 7

    sampler = Sampler(5, lambda: 0.5, bounded_bytes, interval_s=0.0)
    asyncio.run(sampler.run())
    assert [one.engine_bytes for one in sampler.samples] == [None, 110, 110, None, 120, 120]
    assert {(one.gateway_bytes, one.bounded_bytes) for one in sampler.samples} == {(50, 7)}
    assert sampler.engine_restarts == 1
