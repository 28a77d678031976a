"""Where running rows lie: pure bookkeeping of the blocks that hold their full-attention KV.

Owned by the KV budget; `device/kv.py` holds the arrays at these places. A decode step attends once
per block, so rows of similar length share a block, and nothing is padded to the longest row or
copied because another row joins or leaves. Must not know tokens, requests or MLX.

    block of capacity 512: 8 rows
    ┌ row 0 ████████░░░░ length 300
    │ row 1 ███░░░░░░░░░ length 120
    └ row 2 (free)
"""

import heapq
import itertools
from dataclasses import dataclass, field

from verger.engine.steps import Place

MIN_CAPACITY_TOKENS = 256
BLOCK_TOKENS = 4096
"""Positions in a shared block: 16 rows of 256, 8 of 512 …"""
MAX_SHARED_TOKENS = 2048
"""Longer rows have a block of their own, so that little of it is empty."""
GROWTH_TOKENS = 512
"""They grow by this much."""


@dataclass(slots=True)
class _Block:
    block_id: int
    rows: int
    capacity: int
    free: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return self.rows * self.capacity


class Places:
    """Hands out places in blocks, for at most `max_rows` rows; a block without rows is gone."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._blocks: dict[int, _Block] = {}
        self._ids = itertools.count()

    @property
    def tokens(self) -> int:
        """Positions allocated, taken or not."""
        return sum(block.tokens for block in self._blocks.values())

    @property
    def held_in_common(self) -> int:
        """Positions of places that free nothing when they are released, since others share their
        block."""
        shared = (block for block in self._blocks.values() if block.rows > 1)
        return sum((block.rows - len(block.free)) * block.capacity for block in shared)

    def take(self, tokens: int, *, is_lone: bool = False) -> Place:
        """A place with room for `tokens` positions; a lone one has no room for others beside it,
        unless there is some already."""
        capacity = capacity_for(tokens)
        block = self._with_room(capacity)
        if block is None:
            rows = 1 if is_lone else self._rows_of(capacity)
            block = _Block(next(self._ids), rows, capacity, list(range(rows)))
            self._blocks[block.block_id] = block
        return Place(block.block_id, heapq.heappop(block.free), block.rows, capacity)

    def release(self, place: Place) -> None:
        """Give a place back."""
        block = self._blocks[place.block_id]
        assert place.row not in block.free
        heapq.heappush(block.free, place.row)
        if len(block.free) == block.rows:
            del self._blocks[place.block_id]

    def check_integrity(self, taken: list[Place]) -> None:
        """Assert that exactly these places are taken; for randomised tests."""
        rows = {(place.block_id, place.row) for place in taken}
        assert len(rows) == len(taken)
        for block in self._blocks.values():
            held = {row for block_id, row in rows if block_id == block.block_id}
            assert held
            assert held.isdisjoint(block.free)
            assert len(held) + len(block.free) == block.rows
        assert {block_id for block_id, _ in rows} == self._blocks.keys()

    def _with_room(self, capacity: int) -> _Block | None:
        blocks = (b for b in self._blocks.values() if b.capacity == capacity and b.free)
        return next(blocks, None)

    def _rows_of(self, capacity: int) -> int:
        if capacity > MAX_SHARED_TOKENS:
            return 1
        return min(self._max_rows, BLOCK_TOKENS // capacity)


def capacity_for(tokens: int) -> int:
    """Powers of two and the halves between them, then multiples of the growth."""
    if tokens > MAX_SHARED_TOKENS:
        return -(-tokens // GROWTH_TOKENS) * GROWTH_TOKENS
    power = max(MIN_CAPACITY_TOKENS, 1 << (tokens - 1).bit_length())
    between = power * 3 // 4
    return between if MIN_CAPACITY_TOKENS < between and tokens <= between else power


def largest_capacity(tokens: int) -> int:
    """The largest capacity of a lone place in memory for so many positions; 0 if there is none."""
    if tokens > MAX_SHARED_TOKENS:
        return tokens // GROWTH_TOKENS * GROWTH_TOKENS
    if tokens < MIN_CAPACITY_TOKENS:
        return 0
    power = 1 << (tokens.bit_length() - 1)
    between = power * 3 // 2
    return between if between <= tokens else power
