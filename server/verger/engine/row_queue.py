"""Who waits for a row, and what for: a free one, memory, or somebody else's prefill.

Owned by the scheduler. Pure; must not know frames or plans. The order is that of arrival within a
priority: the gateway decides whose turn it is. Two things change it. A request whose prefix is
being prefilled for another one waits for that instead of computing it twice. And a request that
could only get its row by evicting prefixes that others will soon go on with may have to wait
(`allowance.py`): meanwhile those whose prefix is at hand go first, so that a working set larger
than the memory is worked off in turns instead of being thrashed.
"""

from collections.abc import Collection, Iterator

from verger.engine.kv_budget import KVBudget
from verger.engine.sequence import Sequence, SequenceState

MAX_WAITING = 256
MIN_SHARED_TOKENS = 256
"""Waiting for another request's prefill must save at least so much."""
MAX_PATIENCE_S = 60.0
"""After that nobody overtakes a request for which rows have left no room."""


class RowQueue:
    """Sequences in the state WAITING."""

    def __init__(self, kv: KVBudget, max_rows: int, max_waiting: int) -> None:
        self._kv = kv
        self._max_rows = max_rows
        self._max_waiting = max_waiting
        self._waiting: dict[int, Sequence] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._waiting.values())

    def __contains__(self, request_id: int) -> bool:
        return request_id in self._waiting

    @property
    def has_urgent(self) -> bool:
        """Whether anybody waits who is not in the background."""
        return any(not sequence.is_background for sequence in self)

    def get(self, request_id: int) -> Sequence | None:
        """The one of that id, if it waits."""
        return self._waiting.get(request_id)

    def has_room(self, count: int, running: int) -> bool:
        """Whoever fits into a free row does not count as waiting."""
        return len(self) + count <= self._max_waiting + self._max_rows - running

    def add(self, sequence: Sequence) -> None:
        """Queue it, and what is cached of its prompt becomes certain to be used."""
        self._waiting[sequence.request_id] = sequence
        self._kv.want(sequence)

    def remove(self, sequence: Sequence) -> None:
        """It got a row, or gave up."""
        del self._waiting[sequence.request_id]
        self._kv.unwant(sequence)

    def forks_of(self, leader: Sequence) -> list[Sequence]:
        """Who waits together with it."""
        return [sequence for sequence in self if sequence.leader is leader]

    def candidates(self, rows: Collection[Sequence], settled_steps: int) -> Iterator[Sequence]:
        """Who could start now, the first in turn first; forks come with their leader. `rows` may
        grow meanwhile: whoever has just got one may be worth waiting for."""
        ready = [
            sequence
            for sequence in self
            if sequence.leader is None and sequence.resumes_after <= settled_steps
        ]
        ready.sort(key=lambda sequence: (sequence.asked.priority, sequence.order))
        for sequence in ready:
            if not any(self._shares(sequence, row) for row in rows):
                yield sequence

    def is_out_of_patience(self, sequence: Sequence, now_s: float) -> bool:
        """Whether nobody may overtake it any more."""
        return not sequence.is_background and now_s - sequence.arrived_s >= MAX_PATIENCE_S

    def check_integrity(self) -> None:
        """Assert what must hold between any two calls; for randomised tests."""
        assert len(self) <= self._max_waiting + self._max_rows
        for request_id, sequence in self._waiting.items():
            assert request_id == sequence.request_id
            assert sequence.state is SequenceState.WAITING
            assert sequence.place is None
            assert sequence.prefilled_tokens == sequence.launched_tokens == 0
            if sequence.leader is not None:
                assert sequence.leader.request_id in self._waiting

    def _shares(self, sequence: Sequence, row: Sequence) -> bool:
        """Whether the row will soon reach a checkpoint that saves much of this one's prefill."""
        if not self._kv.caches or row.state is not SequenceState.PREFILLING:
            return False
        if row.leader is not None or row.submit.cache_salt != sequence.submit.cache_salt:
            return False
        common = min(_common_tokens(sequence, row), sequence.reusable_tokens)
        if common - row.prefilled_tokens < 1 or common < MIN_SHARED_TOKENS:
            return False
        ahead = [checkpoint.at for checkpoint in row.checkpoints(row.prefilled_tokens, common)]
        return bool(ahead) and ahead[-1] - self._kv.match(sequence) >= MIN_SHARED_TOKENS


def _common_tokens(sequence: Sequence, row: Sequence) -> int:
    """The length of the prompts' common prefix; compared once, by halves."""
    known = sequence.shared_tokens.get(row.request_id)
    if known is None:
        a, b = sequence.prompt_ids, row.prompt_ids
        low, high = 0, min(len(a), len(b))
        while low < high:
            middle = (low + high + 1) // 2
            if a[low:middle] == b[low:middle]:
                low = middle
            else:
                high = middle - 1
        known = sequence.shared_tokens[row.request_id] = low
    return known
