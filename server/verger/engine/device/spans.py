"""KV that no running row owns: spans of prefixes, and windows at which sliding layers can go on.

Called by the edits and the forward, on the runner's thread; knows nothing of tokens, requests or
why something is kept. Both are contiguous copies: a slice would keep its whole parent alive.

A piece as bytes, for the disk: layer by layer, keys before values, each (kv heads, tokens,
head_dim) in the model's own dtype. `Runner.export` puts a span's bytes before a window's.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from verger.engine.device.kv import KVShape, KVStore, RowKV

COPY_BYTES = 32 << 20
"""What edits copy before they wait for it, so that both copies need not fit: or one layer."""


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """The KV of adjoining positions in the layers of one kind.

    Each layer is (2, kv heads, tokens, head_dim), keys and values; empty until it is made.
    """

    shape: KVShape
    tokens: int
    layers: list[mx.array] = field(default_factory=list)

    @property
    def kv_bytes(self) -> int:
        """What it holds."""
        return self.tokens * self.shape.token_bytes

    def take(self, layer: int) -> mx.array:
        """A layer, which the piece lets go of."""
        taken = self.layers[layer]
        self.layers[layer] = mx.zeros((0,))
        return taken

    def split(self, tokens: int) -> tuple["Piece", "Piece"]:
        """Copies of the first `tokens` positions and of the rest; empties this one as it goes."""
        upper = Piece(self.shape, tokens)
        lower = Piece(self.shape, self.tokens - tokens)
        for layers in layer_groups(self.shape, self.tokens):
            for layer in layers:
                both = self.take(layer)
                upper.layers.append(mx.contiguous(both[:, :, :tokens]))
                lower.layers.append(mx.contiguous(both[:, :, tokens:]))
            del both
            mx.async_eval(upper.layers[layers.start :], lower.layers[layers.start :])
        return upper, lower

    def exported(self) -> list[memoryview]:
        """Its bytes, in the layout of the module's docstring; waits for them."""
        mx.eval(self.layers)
        return [np.asarray(layer.view(mx.uint8)).data for layer in self.layers]


def piece_from(payload: memoryview, shape: KVShape, tokens: int, first: int, stop: int) -> Piece:
    """Positions first:stop of an exported piece of `tokens` positions."""
    assert len(payload) == tokens * shape.token_bytes
    piece = Piece(shape, stop - first)
    layer_bytes = tokens * shape.layer_token_bytes
    width = shape.head_dim * shape.dtype.size
    for layers in layer_groups(shape, tokens):
        for layer in layers:
            raw = np.frombuffer(payload[layer * layer_bytes : (layer + 1) * layer_bytes], np.uint8)
            part = raw.reshape(2, shape.kv_heads, tokens, width)[:, :, first:stop]
            piece.layers.append(mx.array(part).view(shape.dtype))
        mx.async_eval(piece.layers[layers.start :])
    return piece


def layer_groups(shape: KVShape, tokens: int) -> Iterator[range]:
    """The layers, as many at a time as may be copied for so many positions. Waits in between, so
    that what was let go of is free before more is allocated."""
    count = max(1, COPY_BYTES // max(1, tokens * shape.layer_token_bytes))
    for first in range(0, shape.layers, count):
        if first > 0:
            mx.synchronize()
        yield range(first, min(first + count, shape.layers))


def cut_ring(store: KVStore, row: RowKV, at: int) -> Piece:
    """The window before position `at` out of a row's ring.

    The ring has room for one position more than a window, so the window survives the step that was
    launched ahead of the decision to close the row, with at = length - 1 (a window of 4):

        position   … 5 6 7 8 9          length 10, of which the last was written ahead
        ring holds     6 7 8 9          any of the last four
        window at 9    6 7 8            what the query at 9 sees besides itself
        window at 10     7 8 9
    """
    assert 0 <= row.length - at <= (1 if row.length > row.restored else 0)
    capacity = store.ring.capacity
    tokens = min(at, capacity - 1)
    piece = Piece(store.sliding, tokens)
    places = ring_indices(at - tokens, at, capacity)
    for keys, values in zip(store.ring.keys, store.ring.values, strict=True):
        piece.layers.append(mx.stack([keys[row.ring_row], values[row.ring_row]])[:, :, places])
    mx.async_eval(piece.layers)
    return piece


def fill_ring(store: KVStore, row: RowKV, at: int, window: Piece) -> None:
    """Write the window before position `at` where a row's ring keeps it."""
    assert window.tokens == min(at, store.ring.capacity - 1)
    places = ring_indices(at - window.tokens, at, store.ring.capacity)
    ring, row_slice = store.ring, slice(row.ring_row, row.ring_row + 1)
    for layer, both in enumerate(window.layers):
        ring.keys[layer][row_slice, :, places] = both[:1]
        ring.values[layer][row_slice, :, places] = both[1:]
    mx.async_eval(*ring.arrays())


def ring_indices(start: int, stop: int, window: int) -> mx.array:
    """Where the ring keeps the positions start:stop."""
    return mx.arange(start, stop) % window
