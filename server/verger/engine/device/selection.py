"""What the sampler's stages share: picking the rows that use a stage, and the best ids of a row.

Called by sampling, cutoffs and logprobs. Pure functions on arrays, nothing is evaluated here.
Must not know what the numbers mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

BLOCK_IDS = 64
"""Width of the blocks whose maxima `largest` looks at first; divides 201,088."""


@dataclass(frozen=True, slots=True)
class RowSubset:
    """The rows of a batch that use a stage. `index` is None when all do: nothing is copied then."""

    rows: tuple[int, ...]
    index: mx.array | None

    @classmethod
    def where(cls, is_used: Sequence[bool]) -> "RowSubset":
        """The rows whose flag is set."""
        rows = tuple(row for row, used in enumerate(is_used) if used)
        if len(rows) == len(is_used):
            return cls(rows, None)
        return cls(rows, mx.array(rows, mx.int32))

    def __bool__(self) -> bool:
        return bool(self.rows)

    def take(self, batch: mx.array) -> mx.array:
        """The subset's rows of a whole batch."""
        return batch if self.index is None else batch[self.index]

    def raise_to(self, batch: mx.array, floors: mx.array) -> mx.array:
        """The batch, with the subset's rows no lower than `floors`."""
        if self.index is None:
            return mx.maximum(batch, floors)
        return batch.at[self.index].maximum(floors)


def column(values: list[float]) -> mx.array:
    """One parameter per row, shaped (rows, 1) to broadcast over the vocabulary."""
    return mx.array(values, mx.float32)[:, None]


def largest(logits: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """The `count` largest values of each row, descending, and their ids; both (rows, count).

    The largest values can only lie in the `count` blocks with the largest maxima, so a small
    `count` never partitions a vocabulary: that is a full sort on Metal, and on a CPU, for the 20
    best of 16 x 201,088, eight times slower than this.
    """
    rows, size = logits.shape
    if size % BLOCK_IDS != 0 or 8 * count * BLOCK_IDS > size:
        return _largest_by_partition(logits, count)
    blocks = logits.reshape(rows, -1, BLOCK_IDS)
    best_blocks = mx.argpartition(-blocks.max(axis=-1), count - 1, axis=-1)[:, :count]
    candidates = mx.take_along_axis(blocks, best_blocks[:, :, None], axis=1).reshape(rows, -1)
    values, places = _largest_by_partition(candidates, count)
    block = mx.take_along_axis(best_blocks, places // BLOCK_IDS, axis=-1)
    return values, block * BLOCK_IDS + places % BLOCK_IDS


def _largest_by_partition(logits: mx.array, count: int) -> tuple[mx.array, mx.array]:
    ids = mx.argpartition(-logits, count - 1, axis=-1)[:, :count]
    values = mx.take_along_axis(logits, ids, axis=-1)
    order = mx.argsort(-values, axis=-1)
    return mx.take_along_axis(values, order, axis=-1), mx.take_along_axis(ids, order, axis=-1)
