"""What the prefix cache says to the device, one behaviour at a time; see also the random tests."""

from collections.abc import Sequence

import pytest

from tests.prefix_device import GEOMETRY, PLACE, PrefixDevice
from verger.engine.prefix_cache import MIN_CACHED_TOKENS, Hit, Kind, PrefixCache
from verger.engine.steps import Close, Cut, FreeSpan, FreeWindow, Kept, Open, Running, Split, Stored
from verger.messages import Submit

WINDOW_BYTES = GEOMETRY.window_bytes(100)


def recompute_s(start: int, stop: int) -> float:
    return float(stop - start)


class Bench:
    """A cache on a device double; `run` is one request from its hit to its close."""

    def __init__(self) -> None:
        self.device = PrefixDevice()
        self.cache = PrefixCache(GEOMETRY, recompute_s, self.device.apply)
        self.now_s = 0.0

    def open(self, request_id: int, prompt: list[int], salt: str = "") -> int:
        tokens = self.cache.match(salt, prompt, len(prompt) - 1).tokens
        submit = Submit(request_id, prompt, 1, [], cache_salt=salt)
        self.cache.open(submit, PLACE, tokens, self.now_s)
        return tokens

    def extend(self, request_id: int, prompt: list[int], at: int, kind: Kind = Kind.GRID) -> None:
        row = self.device.rows[request_id]
        self.device.compute(request_id, prompt[len(row.ids) : at])
        window_id = None
        if self.cache.needs_window(request_id, prompt, at):
            window_id = self.cache.new_window_id()
            self.device.cut(request_id, window_id, at)
        self.cache.extend(request_id, prompt, at, window_id, kind, self.now_s)
        self.check()

    def close(self, request_id: int, tokens: Sequence[int], kind: Kind = Kind.END) -> None:
        row = self.device.rows[request_id]
        self.device.compute(request_id, tokens[len(row.ids) :])
        self.cache.close(request_id, tokens, kind, self.now_s)
        self.check()

    def run(self, request_id: int, prompt: list[int], *cuts: int, salt: str = "") -> int:
        tokens = self.open(request_id, prompt, salt)
        for at in cuts:
            self.extend(request_id, prompt, at)
        self.close(request_id, prompt)
        return tokens

    def check(self) -> None:
        self.cache.check_integrity()
        assert self.cache.bytes == self.device.held_bytes


def ids(start: int, stop: int) -> list[int]:
    return list(range(start, stop))


def test_an_exact_repeat_finds_all_but_its_last_token() -> None:
    bench = Bench()
    prompt = ids(0, 100)
    assert bench.run(1, prompt, 99) == 0
    assert bench.cache.match("", prompt, 99) == Hit(99, 99)
    assert bench.run(2, prompt) == 99


def test_a_hit_moves_the_spans_into_the_row_and_closing_gives_them_back() -> None:
    bench = Bench()
    prompt = ids(0, 100)
    bench.run(1, prompt, 64)
    held = bench.cache.bytes
    assert held == 100 * GEOMETRY.token_bytes + 2 * WINDOW_BYTES
    longer = prompt + ids(500, 510)
    assert bench.cache.moved_bytes("", longer, 100) == 100 * GEOMETRY.token_bytes
    assert bench.open(2, longer) == 100
    assert bench.cache.bytes == 2 * WINDOW_BYTES
    opened = bench.device.opened[-1]
    assert [(s.start, s.stop) for s in opened.sources] == [(0, 64), (64, 100)]
    assert all(isinstance(source, Stored) for source in opened.sources)
    assert not any(isinstance(edit, FreeSpan) for edit in bench.device.edits)
    bench.close(2, longer)
    assert bench.cache.bytes == 110 * GEOMETRY.token_bytes + 3 * WINDOW_BYTES


def test_what_a_row_holds_is_copied_from_it_and_the_rest_from_spans() -> None:
    bench = Bench()
    trunk = ids(0, 64)
    bench.run(1, trunk + ids(100, 140), 64)
    bench.open(2, trunk + ids(200, 240))
    bench.extend(2, trunk + ids(200, 240), 90)
    longer = trunk + ids(100, 150)
    assert bench.open(3, longer) == 104
    first, second = bench.device.opened[-1].sources
    assert first == Running(2, 0, 64)
    assert isinstance(second, Stored)
    assert (second.start, second.stop) == (64, 104)


def test_a_divergence_splits_a_span_and_both_ends_are_found() -> None:
    bench = Bench()
    left, right = ids(0, 50) + ids(100, 150), ids(0, 50) + ids(200, 250)
    bench.run(1, left)
    assert bench.run(2, right) == 0, "no checkpoint lies at the divergence"
    assert [edit.tokens for edit in bench.device.edits if isinstance(edit, Split)] == [50]
    assert bench.cache.bytes == 150 * GEOMETRY.token_bytes + 2 * WINDOW_BYTES, "the trunk once"
    assert bench.cache.match("", left + [7], 100) == Hit(100, 100)
    assert bench.cache.match("", right + [7], 100) == Hit(100, 100)
    assert bench.cache.match("", ids(0, 80), 79) == Hit(0, 0)


def test_a_row_that_computes_what_is_stored_frees_the_span() -> None:
    bench = Bench()
    prompt = ids(0, 100)
    bench.run(1, prompt)
    bench.cache.open(Submit(2, prompt, 1, []), PLACE, 0, 0.0)
    bench.extend(2, prompt, 100)
    assert bench.cache.bytes == WINDOW_BYTES
    bench.close(2, prompt)
    assert bench.cache.bytes == 100 * GEOMETRY.token_bytes + WINDOW_BYTES


def test_a_window_that_is_there_already_frees_the_newcomer() -> None:
    bench = Bench()
    prompt = ids(0, 100)
    for request_id in (1, 2):
        bench.cache.open(Submit(request_id, prompt, 1, []), PLACE, 0, 0.0)
        bench.device.compute(request_id, prompt)
        bench.device.cut(request_id, 40 + request_id, 64)
    bench.cache.extend(1, prompt, 64, 41, Kind.GRID, 0.0)
    bench.cache.extend(2, prompt, 64, 42, Kind.GRID, 0.0)
    assert bench.device.edits[-1] == FreeWindow(42)
    bench.check()


def test_forks_cover_what_their_leader_covers_and_it_is_kept_once() -> None:
    bench = Bench()
    prompt = ids(0, 100)
    bench.open(1, prompt)
    bench.open(2, prompt)
    bench.extend(1, prompt, 99)
    bench.device.fork(2, 1)
    bench.cache.fork(2, 1)
    bench.check()
    bench.close(1, prompt + [301])
    assert bench.device.closed[-1] == Close(1, (Kept(1, 99, 101),), Cut(2, 101))
    bench.close(2, prompt + [302])
    kept = [(kept.start, kept.stop) for kept in bench.device.closed[-1].kept]
    assert kept == [(0, 99), (100, 101)], "position 99 is in the span of the leader, split off"


def test_a_closed_row_keeps_no_positions_without_a_checkpoint() -> None:
    bench = Bench()
    prompt = ids(0, 100)
    bench.open(1, prompt)
    bench.extend(1, prompt, 64)
    bench.cache.extend(1, prompt, 80, None, Kind.GRID, 0.0)
    bench.device.compute(1, prompt[64:])
    bench.cache.close(1, [], Kind.GRID, 0.0)
    bench.check()
    assert [(kept.start, kept.stop) for kept in bench.device.closed[-1].kept] == [(0, 64)]
    assert bench.device.closed[-1].window is None


@pytest.mark.parametrize(("tokens", "found"), [(MIN_CACHED_TOKENS - 1, 0), (MIN_CACHED_TOKENS, 32)])
def test_short_sequences_are_not_kept(tokens: int, found: int) -> None:
    bench = Bench()
    bench.open(1, ids(0, tokens))
    assert bench.cache.needs_window(1, ids(0, tokens), tokens) == (found > 0)
    bench.close(1, ids(0, tokens))
    assert bench.cache.match("", ids(0, 100), 99) == Hit(found, found)


def test_a_tenant_never_finds_what_another_computed() -> None:
    bench = Bench()
    prompt = ids(0, 100)
    bench.run(1, prompt, 64, salt="red")
    assert bench.cache.match("blue", prompt, 99) == Hit(0, 0)
    assert bench.run(2, prompt, 64, salt="blue") == 0
    assert bench.cache.bytes == 2 * (100 * GEOMETRY.token_bytes + 2 * WINDOW_BYTES)


def test_an_open_without_a_hit_has_no_sources() -> None:
    bench = Bench()
    bench.open(1, ids(0, 100))
    assert bench.device.edits == [Open(Submit(1, ids(0, 100), 1, []), PLACE)]


def test_a_limit_of_a_match_excludes_deeper_checkpoints() -> None:
    bench = Bench()
    bench.run(1, ids(0, 100), 64, 99)
    assert [bench.cache.match("", ids(0, 100), limit).tokens for limit in (100, 99, 98, 63)] == [
        100,
        99,
        64,
        0,
    ]
