"""Where rows lie: blocks are shared, or not where memory is short, and limits hold."""

import random

import pytest

from verger.engine.places import (
    BLOCK_TOKENS,
    GROWTH_TOKENS,
    MIN_CAPACITY_TOKENS,
    Places,
    capacity_for,
    largest_capacity,
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
    assert places.take(300).block_id != longer.block_id


def test_a_full_block_is_followed_by_another() -> None:
    places = Places(MAX_ROWS)
    rows = BLOCK_TOKENS // 512
    taken = [places.take(512) for _ in range(rows)]
    assert places.tokens == BLOCK_TOKENS
    assert places.take(512).block_id != taken[0].block_id
    assert places.tokens == 2 * BLOCK_TOKENS


def test_a_lone_place_takes_no_more_than_it_needs_and_stays_alone() -> None:
    places = Places(MAX_ROWS)
    lone = places.take(300, is_lone=True)
    assert (lone.block_rows, places.tokens) == (1, 384)
    assert places.take(300).block_id != lone.block_id


def test_where_there_is_room_beside_others_a_lone_place_is_not_needed() -> None:
    places = Places(MAX_ROWS)
    shared = places.take(300)
    assert places.take(300, is_lone=True).block_id == shared.block_id


def test_places_beside_others_free_nothing_by_themselves() -> None:
    places = Places(MAX_ROWS)
    places.take(5_000)
    places.take(300, is_lone=True)
    assert places.held_in_common == 0
    taken = [places.take(1_000), places.take(1_000)]
    assert places.held_in_common == 2 * 1_024
    places.release(taken[0])
    assert places.held_in_common == 1_024


@pytest.mark.parametrize(
    ("tokens", "largest"),
    [(0, 0), (255, 0), (256, 256), (383, 256), (384, 384), (2_047, 1_536), (2_048, 2_048)]
    + [(2_559, 2_048), (2_560, 2_560), (10_100, 9_728)],
)
def test_the_largest_capacity_fits_and_the_next_one_does_not(tokens: int, largest: int) -> None:
    assert largest_capacity(tokens) == largest
    assert largest == 0 or capacity_for(largest) == largest
    assert capacity_for(largest + 1) > tokens


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
def test_places_add_up_whatever_is_taken_and_released(seed: int) -> None:
    rng = random.Random(seed)
    places = Places(max_rows=rng.randint(1, MAX_ROWS))
    taken: list[Place] = []
    for _ in range(300):
        if taken and rng.random() < 0.45:
            places.release(taken.pop(rng.randrange(len(taken))))
        else:
            tokens = rng.choice([rng.randint(1, 600), rng.randint(1, 3 * BLOCK_TOKENS)])
            taken.append(places.take(tokens, is_lone=rng.random() < 0.3))
            assert tokens <= taken[-1].capacity
        places.check_integrity(taken)
    for place in taken:
        places.release(place)
    assert places.tokens == 0
    places.check_integrity([])
