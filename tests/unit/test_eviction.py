"""What the prefix cache gives up first, and what it says that costs."""

import math

import pytest

from tests.prefix_device import GEOMETRY, PLACE
from verger.engine.eviction import (
    END_PROBABILITY,
    REBUILD_S,
    RETURN_S,
    SHARED_PROBABILITY,
    STALE_ENTRIES,
    SUPERSEDED_PROBABILITY,
    YOUNG_S,
    Evictor,
    never_reloaded,
    probability,
)
from verger.engine.prefix_cache import Kind, PrefixCache, Taker
from verger.engine.prefix_node import Node, ids_of
from verger.messages import Submit

WINDOW_BYTES = GEOMETRY.window_bytes(100)


def recompute_s(start: int, stop: int) -> float:
    return float(stop - start)


def cache_of() -> PrefixCache:
    return PrefixCache(GEOMETRY, recompute_s, lambda edit: None)


def add(
    cache: PrefixCache,
    request_id: int,
    prompt: list[int],
    end: Kind = Kind.END,
    cuts: dict[int, Kind] | None = None,
    now_s: float = 0.0,
) -> None:
    tokens = cache.match("", prompt, len(prompt) - 1).tokens
    cache.open(Submit(request_id, prompt, 1, []), PLACE, tokens, now_s)
    for at, kind in (cuts or {}).items():
        needed = cache.needs_window(request_id, prompt, at)
        window_id = cache.new_window_id() if needed else None
        cache.extend(request_id, prompt, at, window_id, kind, now_s)
    cache.close(request_id, prompt, end, now_s)
    cache.check_integrity()


def found(cache: PrefixCache, prompt: list[int]) -> int:
    return cache.match("", prompt, len(prompt)).tokens


def chat(first: int, tokens: int = 100) -> list[int]:
    return list(range(first, first + tokens))


def node(kind: Kind, path_kind: Kind = Kind.GRID) -> Node:
    return Node(1, "", None, ids_of(()), 0, 1, kind=kind, path_kind=path_kind)


@pytest.mark.parametrize("kind", Kind)
def test_an_end_is_as_likely_to_return_as_its_kind_says(kind: Kind) -> None:
    assert probability(node(kind), True, 0.0) == END_PROBABILITY[kind]


def test_what_leads_to_an_open_tool_call_is_as_likely_as_the_call() -> None:
    assert probability(node(Kind.GRID, Kind.OPEN), True, 0.0) == END_PROBABILITY[Kind.OPEN]


@pytest.mark.parametrize("kind", [Kind.GRID, Kind.PROMPT, Kind.END, Kind.OPEN])
def test_what_was_gone_on_from_is_unlikely_to_be_used_again(kind: Kind) -> None:
    assert probability(node(kind), False, 0.0) == SUPERSEDED_PROBABILITY


def test_turns_systems_and_branches_keep_their_likelihood() -> None:
    assert probability(node(Kind.TURN), False, 0.0) == END_PROBABILITY[Kind.TURN]
    assert probability(node(Kind.SYSTEM), False, 0.0) == SHARED_PROBABILITY
    branch = node(Kind.GRID)
    branch.children = {1: node(Kind.GRID), 2: node(Kind.GRID)}
    assert probability(branch, False, 0.0) == SHARED_PROBABILITY


@pytest.mark.parametrize(
    ("age_s", "share"),
    [(0.0, 1.0), (2 * YOUNG_S - 1, 1.0), (2 * YOUNG_S, 0.5), (5 * YOUNG_S, 0.25)],
)
def test_likelihood_halves_with_each_doubling_of_the_age(age_s: float, share: float) -> None:
    assert probability(node(Kind.OPEN), True, age_s) == END_PROBABILITY[Kind.OPEN] * share


def test_what_a_waiting_request_will_use_is_certain_at_any_age() -> None:
    wanted = node(Kind.GRID)
    wanted.wanted = 1
    assert probability(wanted, False, 1e9) == 1.0


def test_an_open_tool_call_outlives_a_finished_chat_that_is_newer() -> None:
    cache = cache_of()
    add(cache, 1, chat(0), Kind.OPEN)
    add(cache, 2, chat(1000), Kind.END)
    cache.evict(1, 1.0)
    assert (found(cache, chat(0)), found(cache, chat(1000))) == (100, 0)


def test_among_equals_the_newest_conversation_goes_however_recent_the_others() -> None:
    cache = cache_of()
    for request_id in range(4):
        add(cache, request_id, chat(1000 * request_id), Kind.OPEN)
    for request_id in (3, 2, 1, 0):
        add(cache, 10 + request_id, chat(1000 * request_id, 110), Kind.OPEN, now_s=5.0)
    for kept in (3, 2, 1, 0):
        assert [found(cache, chat(1000 * i, 110)) > 0 for i in range(4)] == [
            i <= kept for i in range(4)
        ]
        while found(cache, chat(1000 * kept, 110)):
            cache.evict(1, 6.0)
            cache.check_integrity()


def test_a_system_prompt_stays_one_whatever_else_ends_there() -> None:
    cache = cache_of()
    add(cache, 1, chat(0), Kind.END, {60: Kind.SYSTEM})
    cache.open(Submit(2, chat(0), 1, []), PLACE, 60, 0.0)
    cache.extend(2, chat(0), 60, None, Kind.GRID, 0.0)
    cache.close(2, chat(0, 60), Kind.END, 0.0)
    add(cache, 3, chat(1000, 60), Kind.OPEN)
    cache.evict(1, 0.0)
    cache.evict(1, 0.0)
    assert (found(cache, chat(0, 60)), found(cache, chat(1000, 60))) == (60, 0)


def test_a_shared_trunk_stays_as_likely_as_the_likeliest_that_went_through() -> None:
    cache = cache_of()
    trunk = chat(0, 100)
    add(cache, 1, chat(5000), Kind.END)
    add(cache, 2, trunk + chat(1000, 5), Kind.OPEN, {100: Kind.GRID})
    add(cache, 3, trunk + chat(2000, 5), Kind.END)
    ends_bytes = 2 * (5 * GEOMETRY.token_bytes + WINDOW_BYTES)
    cache.want(4, "", chat(5000, 101))
    assert cache.evict(ends_bytes, 0.0) == ends_bytes, "the short ends of both go first"
    cache.unwant(4)
    cache.evict(1, 0.0)
    assert (found(cache, trunk), found(cache, chat(5000))) == (100, 0)


def test_a_turn_that_has_become_the_end_competes_as_an_end_at_once() -> None:
    """Its window alone was dear, its window with its KV is not, and one call sees both."""
    cache = cache_of()
    add(cache, 1, chat(0, 105), Kind.GRID, {100: Kind.TURN})
    add(cache, 2, chat(1000, 100), Kind.OPEN)
    short_bytes = 5 * GEOMETRY.token_bytes + WINDOW_BYTES
    turn_bytes = 100 * GEOMETRY.token_bytes + WINDOW_BYTES
    assert cache.evict(short_bytes + 1, 0.0) == short_bytes + turn_bytes
    assert (found(cache, chat(0)), found(cache, chat(1000))) == (0, 100)


def test_inner_windows_go_before_any_end_and_evenly() -> None:
    """Each one gone makes its neighbour worth more, so they thin out instead of all going."""
    cache = cache_of()
    cuts = {at: Kind.GRID for at in range(40, 400, 40)}
    add(cache, 1, chat(0, 400), Kind.OPEN, cuts)
    for _ in range(4):
        assert cache.evict(1, 0.0) == WINDOW_BYTES
    left = [
        at for at in (40, 80, 120, 160, 200, 240, 280, 320, 360) if found(cache, chat(0, at)) == at
    ]
    gaps = [stop - start for start, stop in zip([0, *left], [*left, 400], strict=True)]
    assert found(cache, chat(0, 400)) == 400
    assert max(gaps) == 80


def test_an_end_goes_with_all_that_is_of_no_use_without_it() -> None:
    cache = cache_of()
    trunk = chat(0, 50)
    add(cache, 1, trunk + chat(1000, 50))
    add(cache, 2, trunk + chat(2000, 50))
    end_bytes = 50 * GEOMETRY.token_bytes + WINDOW_BYTES
    assert cache.evict(1, 0.0) == end_bytes, "the other end still needs the trunk"
    assert cache.evict(1, 0.0) == end_bytes + 50 * GEOMETRY.token_bytes
    assert cache.nodes == 0


def test_the_shared_system_prompt_outlives_every_conversation() -> None:
    cache = cache_of()
    system = chat(0, 60)
    for request_id in range(3):
        add(cache, request_id, system + chat(1000 * request_id + 1000), cuts={60: Kind.SYSTEM})
    while cache.nodes > 1:
        cache.evict(1, 0.0)
        assert found(cache, system) == 60
    cache.evict(1, 0.0)
    assert cache.nodes == 0


def test_a_wanted_prefix_goes_last_and_one_evicted_under_a_want_leaves_the_one_before() -> None:
    cache = cache_of()
    add(cache, 1, chat(0), Kind.END, {50: Kind.GRID})
    add(cache, 2, chat(1000), Kind.OPEN)
    cache.want(3, "", chat(0, 101))
    cache.evict(1, 0.0)
    cache.check_integrity()
    cache.evict(1, 0.0)
    assert (found(cache, chat(0)), found(cache, chat(1000))) == (100, 0)
    cache.evict(1, 0.0)
    cache.check_integrity()
    cache.unwant(3)
    cache.check_integrity()


def test_the_price_is_what_those_lose_who_will_soon_be_back() -> None:
    cache = cache_of()
    add(cache, 1, chat(0), Kind.END)
    end_bytes = 100 * GEOMETRY.token_bytes + WINDOW_BYTES
    assert cache.price(0, 0.0) == 0.0
    assert cache.price(-5, 0.0) == 0.0
    assert cache.price(end_bytes, 0.0) == 0.0
    assert cache.price(end_bytes + 1, 0.0) == math.inf
    add(cache, 2, chat(1000), Kind.OPEN)
    open_s = 100 * END_PROBABILITY[Kind.OPEN]
    assert cache.price(end_bytes, 0.0) == 0.0
    assert cache.price(end_bytes + 1, 0.0) == cache.price(end_bytes + 1, RETURN_S - 0.1) == open_s
    assert cache.price(end_bytes + 1, RETURN_S) == 0.0
    cache.want(3, "", chat(0, 120))
    assert cache.price(2 * end_bytes, RETURN_S) == 100
    assert cache.evict(end_bytes + 1, 0.0) == 2 * end_bytes
    assert cache.evictions == 2


SYSTEM = chat(500, 40)
END_BYTES = 80 * GEOMETRY.token_bytes + WINDOW_BYTES


def conversation(number: int) -> list[int]:
    return SYSTEM + chat(1000 * (number + 1), 80)


def conversations(count: int) -> PrefixCache:
    """They share a system prompt, each has made a tool call, and the first is the oldest."""
    cache = cache_of()
    for number in range(count):
        add(cache, number, conversation(number), Kind.OPEN, {40: Kind.SYSTEM})
    return cache


def taker(prompt: list[int], tokens: int = 0, is_background: bool = False) -> Taker:
    return Taker("", [*prompt, 7, 8, 9], tokens, is_background)


def test_an_older_conversation_takes_from_a_newer_one_for_nothing() -> None:
    cache = conversations(3)
    price_s = 80 * END_PROBABILITY[Kind.OPEN]
    assert cache.price(END_BYTES, 0.0, taker(conversation(0))) == 0.0
    assert cache.price(END_BYTES, 0.0, taker(conversation(1))) == 0.0
    newest = taker(conversation(2), 120)
    assert cache.price(END_BYTES, 0.0, newest) == price_s, "its own is spared"
    newcomer = taker(SYSTEM, 40)
    assert cache.price(END_BYTES, 0.0, newcomer) == price_s
    in_background = taker(conversation(0), is_background=True)
    assert cache.price(END_BYTES, 0.0, in_background) == price_s


def test_nobody_gives_up_what_he_is_about_to_take_over() -> None:
    cache = conversations(1)
    own = taker(conversation(0), 120)
    assert cache.price(END_BYTES, 0.0, own) == math.inf
    assert cache.evict(END_BYTES, 0.0, own) < END_BYTES
    assert found(cache, conversation(0)) == 120


def test_a_promoted_conversation_counts_as_the_oldest() -> None:
    cache = conversations(2)
    prompt = [*conversation(1), 7]
    cache.open(Submit(9, prompt, 1, []), PLACE, 120, 0.0, is_promoted=True)
    cache.close(9, prompt, Kind.OPEN, 0.0)
    cache.check_integrity()
    assert cache.price(END_BYTES, 0.0, taker(conversation(0), 120)) > 0
    assert cache.price(END_BYTES, 0.0, taker(prompt, 121)) == 0.0
    cache.evict(1, 0.0)
    assert (found(cache, conversation(0)), found(cache, prompt)) == (40, 121)


def test_what_can_be_read_back_costs_no_more_than_reading_it() -> None:
    asked: list[tuple[int, int]] = []

    def reload_s(nbytes: int, unsaved_bytes: int) -> float:
        asked.append((nbytes, unsaved_bytes))
        return 2.5

    cache = PrefixCache(GEOMETRY, recompute_s, lambda edit: None, reload_s=reload_s)
    add(cache, 1, chat(0), Kind.OPEN)
    assert cache.price(1, 0.0) == 2.5
    nbytes = 100 * GEOMETRY.token_bytes + WINDOW_BYTES
    assert asked[-1] == (nbytes, nbytes)


def test_what_rows_hold_cannot_be_evicted_but_their_windows_can() -> None:
    cache = cache_of()
    add(cache, 1, chat(0))
    cache.open(Submit(2, chat(0, 120), 1, []), PLACE, 100, 0.0)
    assert cache.price(WINDOW_BYTES + 1, 0.0) == math.inf
    assert cache.evict(1, 0.0) == WINDOW_BYTES
    assert cache.bytes == 0
    cache.check_integrity()


def test_the_order_is_made_anew_after_a_while_or_when_most_of_it_is_stale() -> None:
    cache = cache_of()
    add(cache, 1, chat(0), Kind.OPEN, now_s=0.0)
    add(cache, 2, chat(1000), Kind.END, now_s=0.0)
    cache.price(1, 0.0)
    add(cache, 3, chat(1000, 130), Kind.END, now_s=8 * YOUNG_S)
    cache.evict(1, 8 * YOUNG_S + REBUILD_S + 1)
    cache.evict(1, 8 * YOUNG_S + REBUILD_S + 1)
    assert found(cache, chat(0)) == 0, "a call open for hours is less likely than a fresh end"


def test_entries_stay_in_proportion_to_the_checkpoints() -> None:
    evictor = Evictor(GEOMETRY, recompute_s, never_reloaded)
    root = Node(0, "", None, ids_of(()), 0, 0)
    end = Node(1, "", root, ids_of(chat(0)), 0, 1, span_id=1, window_id=1)
    evictor.add(end)
    for _ in range(3 * STALE_ENTRIES):
        evictor.touch(end)
        assert len(evictor.victims(1, 0.0)) == 1
        assert evictor.entries <= 2 + STALE_ENTRIES + 1


def test_of_a_conversations_turns_only_the_last_ones_start_is_likely() -> None:
    """A finished turn's reasoning is left out of what follows, so the next prompt parts from the
    cache there, and no earlier."""
    cache = cache_of()
    turns = {100: Kind.TURN, 200: Kind.TURN, 300: Kind.TURN}
    add(cache, 1, chat(0, 400), Kind.OPEN, turns)
    path = cache._tree.path("", chat(0, 400), 400)
    likely = [probability(node, is_end=False, now_s=0.0) for node in path[:-1]]
    assert likely == [SUPERSEDED_PROBABILITY] * 2 + [END_PROBABILITY[Kind.TURN]]
