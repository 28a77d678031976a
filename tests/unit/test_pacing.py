"""How large a chunk may be: the rules at their borders, on machines whose cost is known."""

import pytest

from verger.engine.pacing import (
    CHUNK_QUANTUM_TOKENS,
    FIRST_BESIDE_TOKENS,
    LARGE_TOKENS,
    LONG_STEP_S,
    MAX_ALONE_STEP_S,
    MAX_CHUNK_TOKENS,
    MAX_GROWTH,
    MIN_ALONE_TOKENS,
    MIN_OBSERVED_TOKENS,
    MIN_RATE_SHARE,
    Pacer,
)
from verger.engine.step_cost import StepCost
from verger.engine.steps import Work, prefill_work
from verger.messages import PrefillStats

NOTHING = Work(0, 0)
DECODES = Work(8, 16000)
FAST = StepCost(fixed_s=0.02, token_s=0.0005, attended_s=1e-8)
LAPTOP = StepCost(fixed_s=0.054, token_s=0.00136, attended_s=3.7e-8)


def taught(cost: StepCost, target_s: float = 0.25, max_chunk_tokens: int = 2048) -> Pacer:
    """A pacer that has seen a machine of this cost at every size, then settled beside decodes."""
    pacer = Pacer(target_s, max_chunk_tokens)
    for start in (0, 4096, 16384):
        for size in (16, 32, 64, 128, 256, 512, 1024, 2048):
            work = prefill_work(start, start + size)
            pacer.observe(work, cost.seconds(work), size)
    for _ in range(10):
        pacer.chunk_tokens(0, DECODES, has_decodes=True)
    return pacer


def step_s(cost: StepCost, start: int, tokens: int, beside: Work = NOTHING) -> float:
    return cost.seconds(prefill_work(start, start + tokens) + beside)


def test_before_any_step_chunks_are_of_a_sensible_size() -> None:
    pacer = Pacer(0.25)
    assert pacer.chunk_tokens(0, NOTHING, has_decodes=False) == MAX_CHUNK_TOKENS
    assert pacer.chunk_tokens(0, DECODES, has_decodes=True) == FIRST_BESIDE_TOKENS
    assert pacer.prefill_s(0, 10_000) == pytest.approx(10, rel=0.2)
    assert pacer.stats() == PrefillStats(target_itl_s=0.25)


def test_alone_a_chunk_is_as_large_as_allowed() -> None:
    assert taught(FAST).chunk_tokens(0, NOTHING, has_decodes=False) == MAX_CHUNK_TOKENS
    small = taught(FAST, max_chunk_tokens=500)
    assert small.chunk_tokens(0, NOTHING, has_decodes=False) == 480


@pytest.mark.parametrize("start", [0, 8192, 100_000])
def test_alone_a_step_ends_in_time_for_a_cancel(start: int) -> None:
    tokens = taught(LAPTOP).chunk_tokens(start, NOTHING, has_decodes=False)
    assert MIN_ALONE_TOKENS < tokens < MAX_CHUNK_TOKENS
    assert tokens % CHUNK_QUANTUM_TOKENS == 0
    assert step_s(LAPTOP, start, tokens - 32) < MAX_ALONE_STEP_S
    assert step_s(LAPTOP, start, tokens + 64) > MAX_ALONE_STEP_S


def test_alone_a_chunk_has_a_least_size_however_slow() -> None:
    slow = StepCost(fixed_s=1, token_s=0.1, attended_s=1e-6)
    assert taught(slow).chunk_tokens(0, NOTHING, has_decodes=False) == MIN_ALONE_TOKENS
    tiny = taught(slow, max_chunk_tokens=64)
    assert tiny.chunk_tokens(0, NOTHING, has_decodes=False) == 64


@pytest.mark.parametrize("start", [0, 8192, 20_000])
@pytest.mark.parametrize("cost", [FAST, LAPTOP])
def test_beside_decodes_a_step_just_keeps_the_target(cost: StepCost, start: int) -> None:
    pacer = taught(cost)
    tokens = pacer.chunk_tokens(start, DECODES, has_decodes=True)
    assert tokens % CHUNK_QUANTUM_TOKENS == 0
    assert step_s(cost, start, tokens, DECODES) <= 0.25 * 1.02
    assert step_s(cost, start, tokens + 32, DECODES) > 0.25 * 0.98
    stats = pacer.stats()
    assert stats.meets_target
    assert stats.chunk_tokens == tokens
    assert stats.step_s == pytest.approx(step_s(cost, start, tokens, DECODES), rel=0.02)
    alone = pacer.chunk_tokens(start, NOTHING, has_decodes=False)
    best_tokens_s = alone / step_s(cost, start, alone)
    assert stats.best_tokens_s == pytest.approx(best_tokens_s, rel=0.02)
    assert stats.efficiency == pytest.approx(tokens / stats.step_s / best_tokens_s, rel=0.02)


def test_the_decoding_rows_work_counts() -> None:
    pacer = taught(FAST)
    few = pacer.chunk_tokens(0, Work(1, 100), has_decodes=True)
    many = pacer.chunk_tokens(0, Work(16, 8_000_000), has_decodes=True)
    assert step_s(FAST, 0, many, Work(16, 8_000_000)) <= 0.25 * 1.02
    assert many < few


@pytest.mark.parametrize("start", [0, 8192])
def test_half_of_the_best_rate_is_kept_where_the_target_would_take_more(start: int) -> None:
    pacer = taught(LAPTOP, target_s=0.1)
    tokens = pacer.chunk_tokens(start, DECODES, has_decodes=True)
    stats = pacer.stats()
    half = MIN_RATE_SHARE * stats.best_tokens_s
    assert tokens / step_s(LAPTOP, start, tokens, DECODES) >= half * 0.98
    assert (tokens - 32) / step_s(LAPTOP, start, tokens - 32, DECODES) < half
    assert not stats.meets_target
    assert stats.step_s > 0.1
    assert stats.efficiency >= MIN_RATE_SHARE


def test_a_target_beyond_a_step_alone_asks_for_no_more_than_that() -> None:
    pacer = taught(LAPTOP, target_s=60)
    for _ in range(3):
        tokens = pacer.chunk_tokens(0, DECODES, has_decodes=True)
    assert tokens == pacer.chunk_tokens(0, NOTHING, has_decodes=False)
    assert pacer.stats().meets_target


def test_decodes_that_take_all_the_time_leave_the_largest_chunk() -> None:
    """Nothing reaches half of the best rate then; the bound of a step alone still holds."""
    pacer = taught(LAPTOP)
    for _ in range(10):
        tokens = pacer.chunk_tokens(0, Work(16, 10**9), has_decodes=True)
    assert tokens == pacer.chunk_tokens(0, NOTHING, has_decodes=False)
    assert not pacer.stats().meets_target


def test_chunks_beside_decodes_grow_step_by_step() -> None:
    pacer = taught(FAST)
    small = pacer.chunk_tokens(100_000, DECODES, has_decodes=True)
    assert pacer.chunk_tokens(0, DECODES, has_decodes=True) == small * MAX_GROWTH
    assert pacer.chunk_tokens(0, DECODES, has_decodes=True) > small * MAX_GROWTH
    fresh = Pacer(60)
    fresh.observe(prefill_work(0, 64), 0.001, 64)
    first = fresh.chunk_tokens(0, DECODES, has_decodes=True)
    assert first == FIRST_BESIDE_TOKENS * MAX_GROWTH


def test_deeper_in_a_prompt_chunks_are_smaller() -> None:
    pacer = taught(LAPTOP)
    for has_decodes in (False, True):
        sizes = [pacer.chunk_tokens(start, DECODES, has_decodes) for start in range(0, 60_000, 500)]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[-1] < sizes[0]


def test_a_quantum_shrinks_to_a_smaller_largest_chunk() -> None:
    pacer = taught(LAPTOP, max_chunk_tokens=5)
    assert pacer.chunk_tokens(0, NOTHING, has_decodes=False) == 5
    assert pacer.chunk_tokens(0, DECODES, has_decodes=True) == 5
    assert Pacer(0.25, max_chunk_tokens=5).chunk_tokens(0, DECODES, has_decodes=True) == 5


def test_steps_with_too_few_prompt_tokens_tell_nothing() -> None:
    pacer = Pacer(0.25)
    for _ in range(20):
        pacer.observe(Work(8, 8000), 0.03, 0)
        pacer.observe(Work(23, 9000), 0.04, MIN_OBSERVED_TOKENS - 1)
    assert pacer.chunk_tokens(0, NOTHING, has_decodes=False) == MAX_CHUNK_TOKENS
    assert pacer.prefill_s(0, 100) == Pacer(0.25).prefill_s(0, 100)
    pacer.observe(Work(24, 9000), 1, MIN_OBSERVED_TOKENS)
    assert pacer.chunk_tokens(0, NOTHING, has_decodes=False) < MAX_CHUNK_TOKENS


def test_a_step_that_took_no_time_tells_nothing() -> None:
    pacer = Pacer(0.25)
    pacer.observe(prefill_work(0, 512), 0, 512)
    assert pacer.prefill_s(0, 100) == Pacer(0.25).prefill_s(0, 100)


def test_the_price_of_recomputing_rises_and_adds_up() -> None:
    pacer = taught(LAPTOP)
    prices = [pacer.prefill_s(0, stop) for stop in (1, 2, 100, 5000, 5001, 50_000, 131_072)]
    assert 0 < prices[0]
    assert prices == sorted(set(prices))
    assert pacer.prefill_s(8000, 9000) > pacer.prefill_s(0, 1000)
    in_parts = pacer.prefill_s(0, 700) + pacer.prefill_s(700, 20_000)
    assert pacer.prefill_s(0, 20_000) == pytest.approx(in_parts)


def test_the_price_of_recomputing_is_what_the_chunks_take() -> None:
    pacer = taught(LAPTOP)
    start, seconds = 0, 0.0
    while start < 30_000:
        tokens = pacer.chunk_tokens(start, NOTHING, has_decodes=False)
        seconds += step_s(LAPTOP, start, tokens)
        start += tokens
    assert pacer.prefill_s(0, start) == pytest.approx(seconds, rel=0.05)


def test_no_better_rate_is_promised_than_was_seen_that_deep_in_a_prompt() -> None:
    """Short prompts that are cheap change the fit, not what large chunks have really taken."""
    pacer = Pacer(target_s=0.25)
    for start in range(0, 8_192, 2_048):
        pacer.observe(prefill_work(start, start + 2_048), 2.0 + start / 2_048, 2_048)
    for _ in range(50):
        pacer.observe(prefill_work(0, 64), 0.01, 64)
    for start, slowest_s in ((0, 2.0), (5_000, 4.0), (50_000, 5.0)):
        pacer.chunk_tokens(start, DECODES, has_decodes=True)
        assert pacer.stats().best_tokens_s <= 2_048 / slowest_s


def test_steps_beside_decodes_that_take_longer_than_said_make_smaller_chunks() -> None:
    pacer = Pacer(target_s=0.25)
    for tokens in (64, 128, 256) * 4:
        pacer.observe(prefill_work(0, tokens), 0.05 + tokens / 1_000, tokens)
    before = pacer.chunk_tokens(0, DECODES, has_decodes=True)
    for _ in range(3):
        pacer.observe(prefill_work(0, 96) + DECODES, 0.4, 96)
    assert pacer.chunk_tokens(0, DECODES, has_decodes=True) < before


def test_a_step_that_took_long_by_accident_shrinks_no_chunk() -> None:
    pacer = taught(LAPTOP)
    before = pacer.chunk_tokens(0, DECODES, has_decodes=True)
    for factor in (1, 10, 1):
        work = prefill_work(0, before) + DECODES
        pacer.observe(work, LAPTOP.seconds(work) * factor, before)
    assert pacer.chunk_tokens(0, DECODES, has_decodes=True) == pytest.approx(
        before, abs=CHUNK_QUANTUM_TOKENS
    )


def test_chunks_keep_the_target_where_attending_is_dearer_in_small_ones() -> None:
    """As on a CPU: the fit, which rests on chunks of all sizes, promises too much of some."""

    def true_s(work: Work, tokens: int) -> float:
        return (
            0.01
            + 3e-4 * work.tokens
            + (2.5e-7 if tokens < LARGE_TOKENS else 9e-8) * (work.attended)
        )

    target_s, prompt_tokens = 0.25, 8192
    pacer = Pacer(target_s)
    for beside in (NOTHING, Work(8, 1600), NOTHING, Work(8, 1600)):
        start, steps_s = 0, []
        while start < prompt_tokens:
            chunk = pacer.chunk_tokens(start, beside, has_decodes=beside.tokens > 0)
            chunk = min(chunk, prompt_tokens - start)
            work = prefill_work(start, start + chunk) + beside
            steps_s.append(true_s(work, chunk))
            pacer.observe(work, steps_s[-1], chunk)
            start += chunk
    assert max(steps_s) <= 1.25 * target_s


def test_a_step_with_a_chunk_is_long_when_it_is_known_to_be() -> None:
    pacer = taught(FAST)
    short = int((LONG_STEP_S - FAST.fixed_s) / FAST.token_s) - 4
    assert not pacer.is_long(Work(short, short), short)
    assert pacer.is_long(Work(short + 8, short + 8), short + 8)
    assert not pacer.is_long(Work(1_000, 10**9), MIN_OBSERVED_TOKENS - 1), "decoding runs ahead"
    assert not Pacer(0.25).is_long(Work(2_048, 10**6), 2_048), "nothing is known yet"


@pytest.mark.parametrize(("seconds", "tokens"), [(0.0, 0), (0.05, 97), (10.0, 500)])
def test_what_lengthens_a_step_by_so_much(seconds: float, tokens: int) -> None:
    assert taught(FAST).tokens_within(seconds, 1_000, most=500) == pytest.approx(tokens, abs=3)
