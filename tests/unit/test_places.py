"""Where rows lie: blocks are shared, limits hold, and what growing costs is known beforehand."""

import random

import pytest

from verger.engine.places import (
    BLOCK_TOKENS,
    GROWTH_TOKENS,
    MIN_CAPACITY_TOKENS,
    Places,
    capacity_for,
)
from verger.engine.steps import Place

MAX_ROWS = 16


@pytest.mark.parametrize(
    ("tokens", "capacity"),
    [
        (1, MIN_CAPACITY_TOKENS),
        (MIN_CAPACITY_TOKENS, MIN_CAPACITY_TOKENS),
        (MIN_CAPACITY_TOKENS + 1, 384),
        (384, 384),
        (385, 512),
        (3072, 3072),
        (3073, 3072 + GROWTH_TOKENS),
        (BLOCK_TOKENS, BLOCK_TOKENS),
        (BLOCK_TOKENS + 1, BLOCK_TOKENS + GROWTH_TOKENS),
        (BLOCK_TOKENS + GROWTH_TOKENS, BLOCK_TOKENS + GROWTH_TOKENS),
        (BLOCK_TOKENS + GROWTH_TOKENS + 1, BLOCK_TOKENS + 2 * GROWTH_TOKENS),
    ],
)
def test_capacities_grow_in_steps(tokens: int, capacity: int) -> None:
    assert capacity_for(tokens) == capacity


def test_no_capacity_wastes_more_than_half_of_what_is_asked() -> None:
    """From the smallest on; and a larger one is never given for less."""
    capacities = [capacity_for(tokens) for tokens in range(1, 3 * BLOCK_TOKENS)]
    assert capacities == sorted(capacities)
    for tokens, capacity in enumerate(capacities, start=1):
        assert tokens <= capacity
        assert capacity == MIN_CAPACITY_TOKENS or capacity < tokens * 3 / 2


def test_short_rows_share_a_block() -> None:
    places = Places(MAX_ROWS)
    taken = [places.take(300) for _ in range(3)]
    assert {(place.block_id, place.capacity) for place in taken} == {(taken[0].block_id, 384)}
    assert [place.row for place in taken] == [0, 1, 2]
    assert places.tokens == taken[0].block_rows * 384 <= BLOCK_TOKENS


def test_rows_of_another_length_have_another_block() -> None:
    places = Places(MAX_ROWS)
    longer = places.take(1000)
    assert places.growth(300) > 0
    assert places.take(300).block_id != longer.block_id


def test_a_full_block_is_followed_by_another() -> None:
    places = Places(MAX_ROWS)
    rows = BLOCK_TOKENS // 512
    taken = [places.take(512) for _ in range(rows)]
    assert places.tokens == BLOCK_TOKENS
    assert places.growth(512) == BLOCK_TOKENS
    assert places.take(512).block_id != taken[0].block_id


def test_a_long_row_has_a_block_of_its_own() -> None:
    places = Places(MAX_ROWS)
    place = places.take(BLOCK_TOKENS + 1)
    assert (place.block_rows, place.row) == (1, 0)
    assert places.tokens == place.capacity == BLOCK_TOKENS + GROWTH_TOKENS


def test_a_block_has_no_more_rows_than_there_can_be() -> None:
    places = Places(max_rows=2)
    assert places.take(1).block_rows == 2
    assert places.tokens == 2 * MIN_CAPACITY_TOKENS


def test_a_free_row_is_used_again_and_an_empty_block_is_gone() -> None:
    places = Places(MAX_ROWS)
    first, second = places.take(100), places.take(100)
    places.release(first)
    assert places.growth(100) == 0
    assert places.take(100) == first
    places.release(first)
    places.release(second)
    assert places.tokens == 0


def test_a_place_is_released_once() -> None:
    places = Places(MAX_ROWS)
    first, _ = places.take(100), places.take(100)
    places.release(first)
    with pytest.raises(AssertionError):
        places.release(first)


@pytest.mark.parametrize("seed", range(20))
def test_growth_says_what_take_will_allocate(seed: int) -> None:
    rng = random.Random(seed)
    places = Places(max_rows=rng.randint(1, MAX_ROWS))
    taken: list[Place] = []
    for _ in range(300):
        if taken and rng.random() < 0.45:
            places.release(taken.pop(rng.randrange(len(taken))))
        else:
            tokens = rng.choice([rng.randint(1, 600), rng.randint(1, 3 * BLOCK_TOKENS)])
            before, growth = places.tokens, places.growth(tokens)
            taken.append(places.take(tokens))
            assert places.tokens == before + growth
            assert tokens <= taken[-1].capacity
        places.check_integrity(taken)
    for place in taken:
        places.release(place)
    assert places.tokens == 0
    places.check_integrity([])
