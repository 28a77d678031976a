"""Where the KV of running rows lives: blocks of rows that share a shape.

Called by the forward and the edits, owned by the runner's thread; knows nothing of tokens, layers'
weights or requests, and chooses no places: those come from `engine/places.py`. Full-attention
layers keep a row in a block whose capacity fits it, at one contiguous place; sliding layers keep
every row's last `window` positions in one ring block. A decode step attends once per block, so rows
of similar length cost one call and nothing is ever padded to the longest row or copied because
another row joins or leaves.

    full block of capacity 512: 8 rows            ring block: max_rows rows of `window`
    ┌ row 0 ████████░░░░ length 300               ┌ row 0 ██▒███  position p at index p % window
    │ row 1 ███░░░░░░░░░ length 120               │ row 1 ███░░░
    └ row 2 (free)                                └ …

Arrays are updated in place: MLX does so only while nobody else holds the array and no pending work
reads it, which is why the runner submits a step, and edits write, only after all before has ended.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from verger.engine.steps import Place


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one kind of layer stores per position: (layers, kv heads, head_dim) of a dtype."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: mx.Dtype

    @property
    def layer_token_bytes(self) -> int:
        """Keys and values of one position in one layer."""
        return 2 * self.kv_heads * self.head_dim * self.dtype.size

    @property
    def token_bytes(self) -> int:
        """Keys and values of one position over all layers of the kind."""
        return self.layers * self.layer_token_bytes


class Block:
    """`keys[layer]` and `values[layer]` of shape (rows, kv heads, capacity, head_dim).

    They are lazy zeros at first, so each layer is allocated when it is first evaluated.
    """

    def __init__(self, shape: KVShape, rows: int, capacity: int) -> None:
        size = (rows, shape.kv_heads, capacity, shape.head_dim)
        self.keys = [mx.zeros(size, shape.dtype) for _ in range(shape.layers)]
        self.values = [mx.zeros(size, shape.dtype) for _ in range(shape.layers)]
        self.rows = rows
        self.capacity = capacity
        self.kv_bytes = rows * capacity * shape.token_bytes

    def drop(self, layer: int) -> None:
        """Let go of a layer for good, also where a launched step still knows the block."""
        self.keys[layer] = self.values[layer] = mx.zeros((0,))

    def arrays(self) -> Iterator[mx.array]:
        """All arrays, to be evaluated with the step that changed them."""
        yield from self.keys
        yield from self.values


@dataclass(slots=True)
class RowKV:
    """Where one row's KV lies. `length` counts the positions written, or being written;
    `restored` those that it began with."""

    ring_row: int
    block_id: int
    block: Block
    block_row: int
    length: int = 0
    restored: int = 0


@dataclass(slots=True)
class KVStore:
    """All blocks. `ring` serves the sliding layers, `blocks` the full-attention ones, by id."""

    full: KVShape
    sliding: KVShape
    ring: Block
    free_ring_rows: list[int]
    blocks: dict[int, Block] = field(default_factory=dict)
    taken: dict[int, set[int]] = field(default_factory=dict)
    """The taken rows of each block."""

    @classmethod
    def create(cls, full: KVShape, sliding: KVShape, max_rows: int, window: int) -> "KVStore":
        """An empty store for at most `max_rows` rows; the ring is allocated at once."""
        ring = Block(sliding, max_rows, window)
        mx.eval(*ring.arrays())
        return cls(full, sliding, ring, list(range(max_rows)))

    @property
    def kv_bytes(self) -> int:
        """Bytes of all blocks, taken rows or not."""
        return self.ring.kv_bytes + sum(block.kv_bytes for block in self.blocks.values())

    def open(self, place: Place) -> RowKV:
        """Take a place for a new row."""
        block = self._take(place)
        return RowKV(heapq.heappop(self.free_ring_rows), place.block_id, block, place.row)

    def replace(self, row: RowKV, place: Place) -> RowKV:
        """Take a further place for a row and return the old one, still taken."""
        old = RowKV(row.ring_row, row.block_id, row.block, row.block_row, row.length)
        row.block, row.block_id, row.block_row = self._take(place), place.block_id, place.row
        return old

    def close(self, row: RowKV) -> None:
        """Free the row's places."""
        heapq.heappush(self.free_ring_rows, row.ring_row)
        self.release(row)

    def release(self, row: RowKV) -> None:
        """Free a row's place in its block, and the block with its last row."""
        taken = self.taken[row.block_id]
        taken.remove(row.block_row)
        if not taken:
            block = self.blocks.pop(row.block_id)
            del self.taken[row.block_id]
            for layer in range(self.full.layers):
                block.drop(layer)

    def is_alone(self, row: RowKV) -> bool:
        """Whether no other row has a place in its block."""
        return len(self.taken[row.block_id]) == 1

    def fork(self, source: RowKV, rows: Sequence[RowKV]) -> None:
        """Give new rows a copy of what another has computed; part of the step's graph."""
        n = source.length
        for block in {id(row.block): row.block for row in rows}.values():
            at = mx.array([row.block_row for row in rows if row.block is block])
            for layer in range(self.full.layers):
                keys, values = source.block.keys[layer], source.block.values[layer]
                block.keys[layer][at, :, :n] = keys[source.block_row, :, :n]
                block.values[layer][at, :, :n] = values[source.block_row, :, :n]
        at = mx.array([row.ring_row for row in rows])
        for arrays in (self.ring.keys, self.ring.values):
            for array in arrays:
                array[at] = array[source.ring_row]
        for row in rows:
            row.length = n

    def arrays(self) -> Iterator[mx.array]:
        """Every array of the store."""
        yield from self.ring.arrays()
        for block in self.blocks.values():
            yield from block.arrays()

    def _take(self, place: Place) -> Block:
        block = self.blocks.get(place.block_id)
        if block is None:
            block = Block(self.full, place.block_rows, place.capacity)
            self.blocks[place.block_id] = block
            self.taken[place.block_id] = set()
        assert (block.rows, block.capacity) == (place.block_rows, place.capacity)
        assert place.row not in self.taken[place.block_id]
        self.taken[place.block_id].add(place.row)
        return block
