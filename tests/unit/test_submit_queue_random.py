"""Properties of the queue under any sequence of arrivals, ends, cancels and charges."""

import itertools
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.principals import caller
from verger.gateway.generation import Generation
from verger.gateway.submit_queue import BATCH_TURN_S, LOOK_AHEAD_ROWS, Choices, Origin, SubmitQueue
from verger.messages import BATCH, INTERACTIVE, Progress, RowTokens, Submit

KEYS = ("", "a", "b", "c", "d")
Operation = tuple[str, int, int]

operations = st.lists(
    st.tuples(
        st.sampled_from(
            ["come", "come", "come batch", "end", "leave", "decode", "prefill", "wait"]
        ),
        st.integers(0, 1_000),
        st.integers(1, 3),
    ),
    max_size=120,
)


class Play:
    """A queue, what the engine has, and what must hold after every operation."""

    def __init__(self, max_rows: int) -> None:
        self.queue = SubmitQueue()
        self.max_rows = max_rows
        self.now_s = 0.0
        self.waiting: dict[int, tuple[str, Choices]] = {}
        self.running: dict[int, tuple[str, Choices]] = {}
        """By sequence."""
        self.counters = dict.fromkeys(KEYS, 0.0)
        self._ids = itertools.count(1)

    def do(self, operation: Operation) -> None:
        name, number, size = operation
        match name:
            case "come":
                self.come(KEYS[number % len(KEYS)], size)
            case "come batch":
                self.come(KEYS[number % len(KEYS)], size, BATCH)
            case "wait":
                self.now_s += number / 10
            case "leave" if self.waiting:
                _, choices = self.waiting.pop(self._one(self.waiting, number))
                assert self.queue.remove(choices)
            case "end" if self.running:
                self.end(self._one(self.running, number))
            case "decode" if self.running:
                self.queue.note(RowTokens(self._one(self.running, number), [0] * size))
            case "prefill" if self.running:
                self.queue.note(Progress(self._one(self.running, number), number, 1_000, size))
        self.pump()
        self.check()

    def come(self, key_id: str, size: int, priority: int = INTERACTIVE) -> None:
        submit = Submit(0, [1] * 1_000, 5, [], priority=priority)
        choices = tuple(Generation(next(self._ids), submit) for _ in range(size))
        assert self.queue.push(choices, Origin(caller(key_id)), self.now_s)
        self.waiting[choices[0].request_id] = (key_id, choices)

    def end(self, request_id: int) -> None:
        del self.running[request_id]
        self.queue.end(request_id)

    def pump(self) -> None:
        while True:
            used_s = {key_id: self.queue.counters.counter_s(key_id) for key_id in self.keys()}
            choices = self.queue.pop_next(self.max_rows, self.now_s)
            if choices is None:
                return
            key_id, _ = self.waiting.pop(choices[0].request_id)
            if not self.has_waited_long():
                self.check_order(key_id, used_s)
            self.check_limits(key_id, choices)
            self.running |= {g.request_id: (key_id, choices) for g in choices}

    def keys(self) -> set[str]:
        return {key_id for key_id, _ in self.waiting.values()}

    def has_waited_long(self) -> bool:
        """Then a batch request may go first."""
        return self.now_s >= BATCH_TURN_S

    def check_order(self, key_id: str, used_s: dict[str, float]) -> None:
        """Nobody who has no row, and has used less, was passed over."""
        for other, choices in self.waiting.values():
            is_urgent = choices[0].submit.priority == INTERACTIVE
            if is_urgent and not self.rows()[other]:
                assert used_s[key_id] <= used_s[other]

    def check_limits(self, key_id: str, choices: Choices) -> None:
        """Before they are given."""
        rows = self.rows()
        assert not rows.total() or rows.total() + len(choices) <= self.max_rows + LOOK_AHEAD_ROWS
        if self.is_shared and rows[key_id]:
            assert rows[key_id] + len(choices) <= (self.max_rows + 1) // 2
            assert rows.total() + len(choices) <= max(1, self.max_rows - 1), "a row is kept"

    @property
    def is_shared(self) -> bool:
        return self.queue._is_shared

    def rows(self) -> Counter[str]:
        return Counter(key_id for key_id, _ in self.running.values())

    def check(self) -> None:
        rows = self.rows()
        assert self.queue.given == rows.total()
        assert self.queue.sequences == sum(len(c) for _, c in self.waiting.values())
        for key_id in KEYS:
            assert self.queue.counters.counter_s(key_id) >= self.counters[key_id], "goes back"
            self.counters[key_id] = self.queue.counters.counter_s(key_id)
        heads = [c[0].submit.priority for _, c in self.waiting.values()]
        if self.waiting and not rows:
            raise AssertionError("somebody waits for an engine that has nothing")
        narrow = [
            (key_id, choices)
            for key_id, choices in self.waiting.values()
            if len(choices) == 1 and choices[0].submit.priority == INTERACTIVE
        ]
        is_wide_waiting = any(len(c) > 1 for _, c in self.waiting.values())
        if is_wide_waiting or BATCH in heads:
            return
        for key_id, _ in narrow:
            if not self.is_shared or not rows[key_id]:
                assert rows.total() >= self.max_rows, "a row is idle and a key has none"
            elif rows[key_id] < (self.max_rows + 1) // 2:
                assert rows.total() >= self.max_rows - 1, "rows are idle and may be used"

    @staticmethod
    def _one(table: dict[int, tuple[str, Choices]], number: int) -> int:
        return list(table)[number % len(table)]

    def drain(self, pick: Callable[[int], int]) -> None:
        """Let everything that runs end, until nobody waits."""
        for number in range(10_000):
            if not self.running:
                break
            self.end(list(self.running)[pick(number) % len(self.running)])
            self.pump()
            self.check()


@pytest.mark.slow
@given(st.integers(1, 6), operations, st.integers(0, 7))
def test_shares_hold_no_row_idles_no_counter_goes_back_and_all_are_served(
    max_rows: int, played: list[Operation], pick: int
) -> None:
    play = Play(max_rows)
    for operation in played:
        play.do(operation)
    play.drain(lambda number: number * pick)

    assert not play.waiting, "starved"
    assert (play.queue.given, play.queue.sequences) == (0, 0), "permits have returned"
    assert not play.queue._running
    accounts = play.queue.counters._accounts.values()
    assert not any(account.is_active for account in accounts)


@pytest.mark.slow
@given(st.integers(1, 6), st.lists(st.integers(0, 1_000), min_size=30, max_size=120))
def test_a_flood_of_interactive_requests_does_not_starve_a_batch_request(
    max_rows: int, ends: list[int]
) -> None:
    play = Play(max_rows)
    play.come("night", 1, BATCH)
    for number in range(20):
        play.come(f"day {number}", 1)
    play.come("night", 1, BATCH)
    play.pump()
    play.now_s += 2 * BATCH_TURN_S
    for number, end in enumerate(ends):
        play.end(list(play.running)[end % len(play.running)])
        play.come(f"day {number % 20}", 1)
        play.pump()
        play.now_s += 2 * BATCH_TURN_S / 20
    assert not any(choices[0].submit.priority == BATCH for _, choices in play.waiting.values())
