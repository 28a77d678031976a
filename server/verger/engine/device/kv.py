"""Where the KV of running rows lives: blocks of rows that share a shape.

Called by the forward, owned by the runner's thread; knows nothing of tokens, layers' weights or
requests. Full-attention layers keep a row in a block whose capacity fits it, at one contiguous
place; sliding layers keep every row's last `window` positions in one ring block. A decode step
attends once per block, so rows of similar length cost one call and nothing is ever padded to the
longest row or copied because another row joins or leaves.

    full block of capacity 512: 8 rows            ring block: max_rows rows of `window`
    ┌ row 0 ████████░░░░ length 300               ┌ row 0 ██▒███  position p at index p % window
    │ row 1 ███░░░░░░░░░ length 120               │ row 1 ███░░░
    └ row 2 (free)                                └ …

Arrays are updated in place: MLX does so only while nobody else holds the array, which is why the
runner submits a step only after the one before has finished.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

import mlx.core as mx

MIN_CAPACITY_TOKENS = 256
BLOCK_TOKENS = 8192
"""Positions in a shared block: 16 rows of 512, 8 of 1,024 … longer rows have their own."""
GROWTH_TOKENS = 2048
"""Rows with a block of their own grow by this much."""


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one kind of layer stores per position: (layers, kv heads, head_dim) of a dtype."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: mx.Dtype

    @property
    def bytes_per_token(self) -> int:
        """Keys and values of one position over all layers of the kind."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.size


class Block:
    """`keys[layer]` and `values[layer]` of shape (rows, kv heads, capacity, head_dim)."""

    def __init__(self, shape: KVShape, rows: int, capacity: int) -> None:
        size = (rows, shape.kv_heads, capacity, shape.head_dim)
        self.keys = [mx.zeros(size, shape.dtype) for _ in range(shape.layers)]
        self.values = [mx.zeros(size, shape.dtype) for _ in range(shape.layers)]
        self.rows = rows
        self.capacity = capacity
        self.bytes = rows * capacity * shape.bytes_per_token
        self._free = list(range(rows))

    @property
    def is_full(self) -> bool:
        """Whether every row is taken."""
        return not self._free

    @property
    def is_empty(self) -> bool:
        """Whether no row is taken."""
        return len(self._free) == self.rows

    def take(self) -> int:
        """The lowest free row, so that taken rows stay together."""
        return heapq.heappop(self._free)

    def release(self, row: int) -> None:
        """Make a row free; what it holds is overwritten by whoever takes it next."""
        heapq.heappush(self._free, row)

    def arrays(self) -> Iterator[mx.array]:
        """All arrays, to be evaluated with the step that changed them."""
        yield from self.keys
        yield from self.values


@dataclass(slots=True)
class RowKV:
    """Where one row's KV lies. `length` counts the positions written, or being written."""

    ring_row: int
    block: Block
    block_row: int
    length: int = 0


@dataclass(slots=True)
class KVStore:
    """All blocks. `ring` serves the sliding layers, `blocks[capacity]` the full-attention ones."""

    full: KVShape
    ring: Block
    blocks: dict[int, list[Block]] = field(default_factory=dict)

    @classmethod
    def create(cls, full: KVShape, sliding: KVShape, max_rows: int, window: int) -> "KVStore":
        """An empty store for at most `max_rows` rows."""
        return cls(full=full, ring=Block(sliding, max_rows, window))

    @property
    def bytes(self) -> int:
        """Bytes of all blocks, taken rows or not."""
        return self.ring.bytes + sum(b.bytes for many in self.blocks.values() for b in many)

    def open(self, tokens: int) -> RowKV:
        """Place a new row with room for `tokens` positions."""
        block = self._block_with_room(capacity_for(tokens))
        return RowKV(ring_row=self.ring.take(), block=block, block_row=block.take())

    def reserve(self, row: RowKV, tokens: int) -> None:
        """Make room for `tokens` positions; the row moves to a larger block when it must."""
        if tokens <= row.block.capacity:
            return
        old, old_row = row.block, row.block_row
        row.block = self._block_with_room(capacity_for(tokens))
        row.block_row = row.block.take()
        _copy_row(old, old_row, row)
        self._release(old, old_row)

    def fork(self, source: RowKV, row: RowKV) -> None:
        """Give a new row a copy of what another has computed."""
        row.length = source.length
        _copy_row(source.block, source.block_row, row)
        for arrays in (self.ring.keys, self.ring.values):
            for array in arrays:
                array[row.ring_row] = array[source.ring_row]

    def close(self, row: RowKV) -> None:
        """Free the row's places."""
        self.ring.release(row.ring_row)
        self._release(row.block, row.block_row)

    def arrays(self) -> Iterator[mx.array]:
        """Every array of the store."""
        yield from self.ring.arrays()
        for many in self.blocks.values():
            for block in many:
                yield from block.arrays()

    def _block_with_room(self, capacity: int) -> Block:
        many = self.blocks.setdefault(capacity, [])
        for block in many:
            if not block.is_full:
                return block
        rows = min(self.ring.rows, max(1, BLOCK_TOKENS // capacity))
        many.append(Block(self.full, rows, capacity))
        return many[-1]

    def _release(self, block: Block, row: int) -> None:
        block.release(row)
        if block.is_empty:
            self.blocks[block.capacity].remove(block)
            if not self.blocks[block.capacity]:
                del self.blocks[block.capacity]


def capacity_for(tokens: int) -> int:
    """Powers of two up to a block, then multiples of the growth."""
    if tokens > BLOCK_TOKENS:
        return -(-tokens // GROWTH_TOKENS) * GROWTH_TOKENS
    return max(MIN_CAPACITY_TOKENS, 1 << (tokens - 1).bit_length())


def _copy_row(old: Block, old_row: int, row: RowKV) -> None:
    """Copy the positions written so far to the row's new place, in every layer."""
    n = row.length
    new, at = row.block, row.block_row
    for layer in range(len(old.keys)):
        new.keys[layer][at, :, :n] = old.keys[layer][old_row, :, :n]
        new.values[layer][at, :, :n] = old.values[layer][old_row, :, :n]
